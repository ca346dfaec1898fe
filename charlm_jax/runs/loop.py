"""The training loop: epochs, evaluations, samples, checkpoints, and a clean stop."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from charlm_jax.errors import DivergedError, Preempted
from charlm_jax.learning.evaluation import Evaluation, evaluate
from charlm_jax.learning.training import TrainingState, TrainSteps, make_train_steps
from charlm_jax.runs.assembly import Job, first_state
from charlm_jax.runs.checkpoints import open_checkpoints, restore_state, save_state
from charlm_jax.runs.command_line import tell
from charlm_jax.runs.devices import describe_process
from charlm_jax.runs.directory import RunDirectory, append_record, create_run, keep_records
from charlm_jax.runs.samples import Sample, sample_texts

_DISPATCH_SECONDS = 0.5  # of work in one dispatch: long enough to cost nothing, short enough to show and to stop


@dataclass(frozen=True)
class Epoch:
    """What one epoch brought.

    Attributes:
        epoch: its number, from 1.
        step: updates since the start of the run.
        training_loss: nats per character, the mean over the epoch's windows while the model learned from them.
        held_out: the loss on the held-out text after the epoch; None if none is held out.
        seconds: of training, in this process.
        samples: one text a temperature.
    """

    epoch: int
    step: int
    training_loss: float
    held_out: Evaluation | None
    seconds: float
    samples: tuple[Sample, ...]


def train(job: Job, path: Path) -> Iterator[Epoch]:
    """Train in a run directory, from its newest checkpoint if it has one; yield each epoch as it ends.

    After an epoch its records are written first and its checkpoint second, so that a checkpoint at an epoch's end
    vouches for its records; what a stop leaves after the newest checkpoint is done again.

    Raises:
        InputError: the directory cannot be used.
        DivergedError: a number became non-finite; the last finite state is saved.
        Preempted: SIGTERM or SIGINT came; the state is saved.
    """
    chosen = job.configuration
    provenance = {**describe_process(chosen.precision), "corpus": job.describe_corpus()}
    run = create_run(path, chosen, provenance)
    _warn_of_other_bits(run.provenance(), provenance)
    train_steps = make_train_steps(
        job.network, job.optimizer, window=chosen.window, stride=chosen.stride, batch_size=chosen.batch_size
    )
    # Copies: on a CPU a device array may be a view of NumPy's memory.
    ids, held_out_ids = jnp.array(job.training_ids), jnp.array(job.held_out_ids)

    with open_checkpoints(run.checkpoints) as checkpoints, _stop_requests() as stop_requested:
        state = first_state(chosen, job.network, job.optimizer, job.key)
        restored = restore_state(checkpoints, state)
        if restored is not None:
            state = restored
            tell(f"going on from step {int(state.step):,} of {job.steps:,} in {path}")
        keep_records(run.metrics, int(state.step))
        keep_records(run.samples, int(state.step))

        while int(state.step) < job.steps:
            epoch = int(state.step) // job.steps_per_epoch + 1
            # Of these windows `seconds` tells: an epoch that was interrupted goes on in its middle.
            windows = job.windows - int(state.step) % job.steps_per_epoch * chosen.batch_size
            started = time.perf_counter()
            state, unfinished = _train_epoch(train_steps, state, ids, job, epoch, stop_requested)
            if unfinished is not None:
                save_state(checkpoints, state)
                raise unfinished
            seconds = time.perf_counter() - started
            held_out = None
            if len(held_out_ids):
                held_out = evaluate(
                    job.network, state.parameters, held_out_ids, window=chosen.window, stride=chosen.stride
                )
            done = Epoch(
                epoch=epoch,
                step=int(state.step),
                training_loss=float(state.loss_sum) / job.windows,
                held_out=held_out,
                seconds=seconds,
                samples=sample_texts(job, state.parameters, epoch),
            )
            _record(run, job, done, characters_per_second=windows * chosen.window / seconds)
            save_state(checkpoints, state)
            yield done
            if stop_requested() and done.step < job.steps:
                raise Preempted(_stopped(done.step, job))


def _train_epoch(
    train_steps: TrainSteps,
    state: TrainingState,
    ids: jax.Array,
    job: Job,
    epoch: int,
    stop_requested: Callable[[], bool],
) -> tuple[TrainingState, DivergedError | Preempted | None]:
    """Train to the end of an epoch with a progress bar; return the state, and why the end was not reached if so."""
    step, end, steps = int(state.step), epoch * job.steps_per_epoch, 1
    on_terminal = sys.stderr.isatty()
    with tqdm(
        desc=f"epoch {epoch}/{job.configuration.epochs}",
        total=job.steps_per_epoch,
        initial=step % job.steps_per_epoch,
        unit=" steps",
        mininterval=0.1 if on_terminal else 60,  # a log gets a line a minute
        delay=0 if on_terminal else 60,
        leave=False,
        dynamic_ncols=True,
    ) as bar:
        while step < end:
            started = time.perf_counter()
            state, finite = train_steps(state, ids, job.key, min(step + steps, end))
            taken = int(state.step) - step
            step += taken
            if not finite:
                return state, DivergedError(_diverged(step, epoch))
            windows = min((step - (epoch - 1) * job.steps_per_epoch) * job.configuration.batch_size, job.windows)
            bar.set_postfix(loss=f"{float(state.loss_sum) / windows:.4f}", refresh=False)
            bar.update(taken)
            if stop_requested() and step < end:
                return state, Preempted(_stopped(step, job))
            # Any number of steps runs in the same program, so the dispatch grows to a good length as we go.
            steps = max(1, min(4 * steps, int(taken * _DISPATCH_SECONDS / (time.perf_counter() - started))))
    return state, None


def _record(run: RunDirectory, job: Job, done: Epoch, characters_per_second: float) -> None:
    """Append an epoch's records."""
    place = {"epoch": done.epoch, "step": done.step}
    append_record(
        run.metrics,
        {
            "event": "epoch",
            **place,
            "training_loss": done.training_loss,
            "windows": job.windows,
            "seconds": round(done.seconds, 3),
            "characters_per_second": round(characters_per_second),
        },
    )
    if done.held_out is not None:
        append_record(
            run.metrics,
            {
                "event": "evaluation",
                **place,
                "held_out_loss": done.held_out.loss_nats,
                "bits_per_character": done.held_out.bits_per_character,
                "characters": done.held_out.characters,
            },
        )
    for sample in done.samples:
        append_record(
            run.samples,
            {
                **place,
                "temperature": sample.temperature,
                "prompt": sample.prompt,
                "text": sample.text,
                "sampler": job.configuration.sampler,
            },
        )


def _stopped(step: int, job: Job) -> str:
    return f"stopped by a signal at step {step:,} of {job.steps:,}; the state is saved, run the same command to go on"


def _diverged(step: int, epoch: int) -> str:
    return (
        f"training diverged: in epoch {epoch} step {step + 1:,} would have made the loss or a parameter non-finite; "
        f"the state after step {step:,} is saved. Try a smaller --learning-rate, or --clip 1"
    )


def _warn_of_other_bits(there: dict, here: dict) -> None:
    decisive = ("versions", "device_kind", "device_count")
    changed = [name for name in decisive if there.get(name) != here[name]]
    if changed:
        words = "; ".join(f"{name} {there.get(name)} then, {here[name]} now" for name in changed)
        tell(f"not bit-exact: this run was started elsewhere ({words})")


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or SIGINT into a request to stop at the next good moment; the second stops at once."""
    requested = False
    before = {}

    def request(number: int, frame: object) -> None:
        nonlocal requested
        requested = True
        tell(f"{signal.Signals(number).name}: stopping after this dispatch; once more stops at once and saves nothing")
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, request)
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
