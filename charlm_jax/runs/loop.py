"""The training loop: epochs, evaluations, samples, checkpoints, and a clean stop."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from orbax.checkpoint import CheckpointManager
from tqdm import tqdm

from charlm_jax.errors import DivergedError, Preempted
from charlm_jax.learning.evaluation import Evaluation, evaluate
from charlm_jax.learning.training import TrainingState, TrainSteps, make_train_steps
from charlm_jax.mesh import replicate
from charlm_jax.runs.assembly import Job, first_state, state_shapes
from charlm_jax.runs.checkpoints import drop_later_states, open_checkpoints, restore_state, save_state
from charlm_jax.runs.command_line import tell
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.devices import describe_process
from charlm_jax.runs.directory import RunDirectory, append_record, create_run, keep_records, read_records
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
        seconds: of training, the first epoch's with its compilation; None for an epoch that a stop divided.
        samples: one text a temperature, after every `sample_every` epochs and the last.
    """

    epoch: int
    step: int
    training_loss: float
    held_out: Evaluation | None
    seconds: float | None
    samples: tuple[Sample, ...]


def train(job: Job, path: Path) -> Iterator[Epoch]:
    """Train in a run directory, from its newest checkpoint if it has one; yield each epoch as it ends.

    An epoch's last state is saved first; then the model is evaluated and sampled, and the records written, the epoch's
    own last. What a stop leaves unfinished is done again, from the newest checkpoint, with the same result.

    Raises:
        InputError: the directory cannot be used.
        DivergedError: a number became non-finite; the last finite state is saved.
        Preempted: SIGTERM or SIGINT came; the state is saved.
    """
    chosen = job.configuration
    train_steps = make_train_steps(job.network, job.optimizer, job.order, chosen.objective, job.mesh)
    # Copies: on a CPU a device array may be a view of NumPy's memory.
    ids, held_out_ids = replicate((jnp.array(job.training_ids), jnp.array(job.held_out_ids)), job.mesh)
    provenance = {**describe_process(chosen.precision, job.mesh), "corpus": job.describe_corpus()}
    run = create_run(path, chosen, provenance)
    tell(job.describe(path))
    _warn_of_other_bits(run.provenance(), provenance)

    with (
        open_checkpoints(run.checkpoints) as checkpoints,
        open_checkpoints(run.best, kept=1) as best,
        _stop_requests() as stop_requested,
    ):
        like = state_shapes(job.network, job.optimizer, job.order, job.mesh)
        restored = restore_state(checkpoints, like, job.mesh)
        if restored is None:
            state = first_state(job)
        else:
            state = restored
            tell(f"going on from step {int(state.step):,} of {job.steps:,} in {path}")
        seconds = None  # of the training of an epoch whose records are missing; unknown if it was before a stop
        unrecorded = _drop_unfinished_records(run, job, int(state.step))
        drop_later_states(best, int(state.step))
        while True:
            if unrecorded:
                done = _finish_epoch(run, job, state, held_out_ids, seconds, best)
                unrecorded = False
                yield done
            if int(state.step) == job.steps:
                return
            if _out_of_patience(chosen, _held_out_losses(run)):
                tell(
                    f"stopped early: no lower held-out loss for {chosen.patience} epochs; "
                    f"the best model is kept in {run.best}"
                )
                return
            if stop_requested():
                raise Preempted(_stopped(int(state.step), job))
            started, first_step = time.perf_counter(), int(state.step)
            state, unfinished = _train_epoch(train_steps, state, ids, job, stop_requested)
            # A whole epoch's seconds, or nothing: a part of them would be mistaken for the whole.
            whole = first_step % job.steps_per_epoch == 0
            seconds = time.perf_counter() - started if whole else None
            save_state(checkpoints, state)
            if unfinished is not None:
                raise unfinished
            unrecorded = True


def _drop_unfinished_records(run: RunDirectory, job: Job, step: int) -> bool:
    """Drop the records that a stop left beyond a restored step; say whether the epoch that ends there lacks its own."""
    ends_epoch = step > 0 and step % job.steps_per_epoch == 0
    recorded = any(record["event"] == "epoch" and record["step"] == step for record in read_records(run.metrics))
    for path in (run.metrics, run.samples):
        keep_records(path, step - 1 if ends_epoch and not recorded else step)
    return ends_epoch and not recorded


def _held_out_losses(run: RunDirectory) -> list[float]:
    """Return the held-out losses of the run's epochs so far, in nats per character."""
    return [record["held_out_loss"] for record in read_records(run.metrics) if record["event"] == "evaluation"]


def _out_of_patience(configuration: Configuration, losses: list[float]) -> bool:
    """Say whether as many epochs as patience allows have passed since the lowest of the held-out losses."""
    patience = configuration.patience
    return patience is not None and bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


def _finish_epoch(
    run: RunDirectory,
    job: Job,
    state: TrainingState,
    held_out_ids: jax.Array,
    seconds: float | None,
    best: CheckpointManager,
) -> Epoch:
    """Evaluate and sample the model at an epoch's end, keep it if it is the best so far, and write the records."""
    chosen, epoch = job.configuration, int(state.step) // job.steps_per_epoch
    held_out, losses = None, _held_out_losses(run)
    if len(held_out_ids):
        held_out = evaluate(
            job.network, state.parameters, held_out_ids, job.mesh, window=chosen.window, stride=chosen.stride
        )
        if not math.isfinite(held_out.loss_nats):
            raise DivergedError(_diverged(int(state.step), epoch))
        if held_out.loss_nats < min(losses, default=math.inf):
            save_state(best, state)
        losses.append(held_out.loss_nats)
    due = epoch % chosen.sample_every == 0 or epoch == chosen.epochs or _out_of_patience(chosen, losses)
    done = Epoch(
        epoch=epoch,
        step=int(state.step),
        training_loss=float(state.epoch_loss),
        held_out=held_out,
        seconds=seconds,
        samples=sample_texts(job, state.parameters, epoch) if due else (),
    )
    _record(run, job, done)
    return done


def _train_epoch(
    train_steps: TrainSteps,
    state: TrainingState,
    ids: jax.Array,
    job: Job,
    stop_requested: Callable[[], bool],
) -> tuple[TrainingState, DivergedError | Preempted | None]:
    """Train to the end of an epoch with a progress bar; return the state, and why the end was not reached if so."""
    step, steps = int(state.step), 1
    epoch = step // job.steps_per_epoch + 1
    end = epoch * job.steps_per_epoch
    on_terminal = sys.stderr.isatty()
    with tqdm(
        desc=f"epoch {epoch}/{job.configuration.epochs}",
        total=job.steps_per_epoch,
        initial=step % job.steps_per_epoch,
        unit=" steps",
        mininterval=0.1 if on_terminal else 60,  # a log gets a line a minute
        delay=0 if on_terminal else 60,
        leave=not on_terminal,
        dynamic_ncols=True,
    ) as bar:
        while step < end:
            started = time.perf_counter()
            state, finite = train_steps(state, ids, job.key, min(step + steps, end))
            taken = int(state.step) - step
            step += taken
            if not finite:
                return state, DivergedError(_diverged(step, epoch))
            bar.set_postfix(loss=f"{float(state.epoch_loss):.4f}", refresh=False)
            bar.update(taken)
            if stop_requested() and step < end:
                return state, Preempted(_stopped(step, job))
            # Any number of steps runs in the same program, so the dispatch grows to a good length as we go.
            steps = max(1, min(4 * steps, int(taken * _DISPATCH_SECONDS / (time.perf_counter() - started))))
    return state, None


def _record(run: RunDirectory, job: Job, done: Epoch) -> None:
    """Append an epoch's records, its own last: where it is, the others are."""
    place = {"epoch": done.epoch, "step": done.step}
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
    characters = job.windows * job.configuration.window
    append_record(
        run.metrics,
        {
            "event": "epoch",
            **place,
            "training_loss": done.training_loss,
            "windows": job.windows,
            "seconds": None if done.seconds is None else round(done.seconds, 3),
            "characters_per_second": None if done.seconds is None else round(characters / done.seconds),
        },
    )


def _stopped(step: int, job: Job) -> str:
    return f"stopped by a signal at step {step:,} of {job.steps:,}; the state is saved, run the same command to go on"


def _diverged(step: int, epoch: int) -> str:
    return (
        f"training diverged: in epoch {epoch}, after step {step:,}, the loss or a parameter is no longer finite; "
        "the last finite parameters are saved. Try a smaller --learning-rate, or --clip 1"
    )


def _warn_of_other_bits(there: dict, here: dict) -> None:
    """Say what decides the bits of a result and was different when the run was started."""
    flat = [{**record, **record["versions"]} for record in (there, here)]
    decisive = (*here["versions"], "device_kind", "device_count", "cpu_cores")
    changed = [name for name in decisive if flat[0].get(name) != flat[1][name]]
    if changed:
        words = ", ".join(f"{name} {flat[0].get(name)} then and {flat[1][name]} now" for name in changed)
        tell(f"not bit-exact: this run was started elsewhere ({words})")


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or SIGINT into a request to stop at the next good moment; the second stops at once."""
    requested = False
    before = {}

    def request(number: int, frame: object) -> None:
        nonlocal requested
        requested = True
        # Not by print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping after this dispatch; once more stops at once and saves nothing\n")
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, request)
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
