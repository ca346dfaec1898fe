"""The course of a run: epochs, evaluations, samples, checkpoints, clean stops, and rolling back from divergence.

A run is a generator that asks for its steps. It does not know who takes them, nor what is trained beside it.
"""

import math
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from charlm_jax.choices import MAX_EVALUATED, counted
from charlm_jax.errors import DamagedError, DivergedError, InputError, Preempted
from charlm_jax.learning.evaluation import evaluate
from charlm_jax.learning.training import MAX_SKIPPED, TrainingState
from charlm_jax.mesh import replicate
from charlm_jax.runs.assembly import Job, first_state, state_shapes
from charlm_jax.runs.checkpoints import newest_state, outdated, quarantine, remove_states, save_state, state_files
from charlm_jax.runs.command_line import progress_bar, tell
from charlm_jax.runs.devices import describe_process
from charlm_jax.runs.directory import RunDirectory, hold_run
from charlm_jax.runs.history import (
    FAR_ABOVE,
    Epoch,
    drop_unfinished_records,
    held_out_losses,
    out_of_patience,
    record_epoch,
    training_losses,
    unstable,
)
from charlm_jax.runs.processes import agreed, everyones, first_ones
from charlm_jax.runs.records import append_record, read_records
from charlm_jax.runs.samples import sample_texts
from charlm_jax.runs.stop import StopRequested

_DISPATCH_SECONDS = 0.5  # of work per dispatch: long enough to add no cost, short enough to show progress and to stop
_MIN_RATE = 2.0**-10  # of the chosen learning rate: once it is down to this, rolling back has not helped
_SAVE_SECONDS = 60.0  # of training between the states saved within a long epoch


class Advance(NamedTuple):
    """A run's request to be trained from a state up to a step.

    The answer is the state that was reached, at least one step further, and the seconds that it took.
    """

    state: TrainingState
    stop: int


Answer = tuple[TrainingState, float]
"""What is sent in reply to an `Advance`; an epoch gets no reply."""
Run = Generator[Epoch | Advance, Any]
"""A run in progress: it yields its requests, and each epoch as it ends."""


def go_on(job: Job, path: Path, stop_requested: StopRequested, *, replicas: int = 1, watched: bool = True) -> Run:
    """Train a run to its end, from its newest intact state if it has one.

    At the end of an epoch its state is saved first; then the model is evaluated and sampled, and the records are
    written, the epoch's own last. What an interrupt leaves unfinished is redone from the newest state, with the same
    result.

    Args:
        job: what to train.
        path: the run's directory, which no other process may be writing.
        stop_requested: asked after every dispatch; see `stop_requests`. At least one dispatch is made before a stop, so
            that a run that is interrupted again and again still finishes.
        replicas: how many models are trained together, this one included.
        watched: whether to show progress.

    Raises:
        InputError: the directory cannot be used, or holds states or records but no intact state.
        DivergedError: training diverged, or rolling back did not help; the last good state is saved.
        Preempted: a stop was requested; the state is saved.
    """
    chosen = job.configuration
    held_out_ids = replicate(jnp.array(job.held_out_ids[:MAX_EVALUATED]), job.mesh)
    described = {"corpus": job.describe_corpus(), "init_from": job.describe_source()}
    provenance = {**describe_process(chosen.precision, job.mesh, replicas), **described}

    with ExitStack() as held:
        run = RunDirectory(path)
        agreed(lambda: held.enter_context(hold_run(path, chosen, provenance)) and None)
        if watched:
            tell(job.describe(path))
        restored = _restore(run, run.states, job)
        state = first_state(job) if restored is None else restored

        def open_records() -> bool:
            _warn_if_not_bit_exact(run.provenance(), provenance)
            _tell_where(run, int(state.step), job)
            return drop_unfinished_records(run, int(state.step), job.steps_per_epoch)

        unrecorded = agreed(open_records)
        if restored is not None and agreed(lambda: int(state.step) not in state_files(run.checkpoints)):
            _save(run, job, state)  # it was only in best/
        if unrecorded:
            yield _finish_epoch(run, job, state, held_out_ids, None)
        while True:
            starts_epoch = int(state.step) % job.steps_per_epoch == 0
            losses, measured = agreed(lambda: (training_losses(run), held_out_losses(run)))
            is_unstable = starts_epoch and unstable(losses, len(job.vocabulary))
            if is_unstable:
                tell(_unstable(job, losses, path))
            if int(state.step) == job.steps:
                return
            if chosen.patience and out_of_patience(chosen.patience, measured):
                tell(
                    f"stopped early: no lower held-out loss for {counted(chosen.patience, 'epoch')}; "
                    f"the best model is kept in {run.best}"
                )
                return
            if is_unstable and chosen.on_divergence == "rollback":
                state = _roll_back(run, job, state)
            state, seconds = yield from _train_epoch(run, job, state, stop_requested, watched=watched)
            yield _finish_epoch(run, job, state, held_out_ids, seconds)


def _restore(run: RunDirectory, folders: Sequence[Path], job: Job) -> TrainingState | None:
    """Return the newest intact state in some folders, and rename newer ones that are damaged."""

    def spoiled(path: Path, error: DamagedError) -> None:
        tell(f"the state {str(path)!r} is damaged: {error}. It is now {quarantine(path).name}; another is used")

    like = state_shapes(job.network, job.optimizer, job.order, job.mesh)
    states: list[TrainingState | None] = [None]  # only the first process reads one

    def read() -> bool:
        states[0] = newest_state(folders, like, run.identity(), spoiled)
        return states[0] is not None

    return replicate(first_ones(states[0], like), job.mesh) if agreed(read) else None


def _save(run: RunDirectory, job: Job, state: TrainingState) -> None:
    def write() -> None:
        save_state(run.checkpoints, state, run.identity())
        remove_states(run.checkpoints, outdated(state_files(run.checkpoints), job.steps_per_epoch))

    agreed(write)


def _tell_where(run: RunDirectory, step: int, job: Job) -> None:
    """Print where a run resumes, or raise an InputError if it would start again although steps are recorded."""
    recorded = max((record["step"] for record in read_records(run.metrics)), default=0)
    if recorded and not step:
        raise InputError(
            f"{str(run.path)!r} has records up to step {recorded:,}, but its states are missing; restore checkpoints/ "
            "or best/ from a copy, or start again in another directory"
        )
    if recorded > step:
        tell(f"the records reach step {recorded:,}, but the state of that step is missing")
    if recorded or step:
        tell(f"resuming from step {step:,} of {job.steps:,} in {run.path}")


def _roll_back(run: RunDirectory, job: Job, state: TrainingState) -> TrainingState:
    """Replace the model and optimizer state of an unstable run by the best ones, and halve its learning rate."""
    best = _restore(run, [run.best], job)
    if best is None or float(state.learning_rate) <= _MIN_RATE * job.configuration.learning_rate:
        raise DivergedError(
            f"training became unstable in epoch {int(state.step) // job.steps_per_epoch}, and rolling back did not "
            f"help; try {_calmer(job)}, in another directory"
        )
    halved = state.learning_rate / 2
    back = state._replace(model=best.model, optimizer_state=best.optimizer_state, learning_rate=halved)
    step, rate = int(state.step), float(halved)
    where = f"to the model of step {int(best.step):,}; the learning rate is now {rate:g} at most"
    tell(f"{run.path.name}: rolled back {where}")

    def record() -> None:
        if all(record["step"] != step for record in read_records(run.metrics, "rollback")):
            event = {"event": "rollback", "epoch": step // job.steps_per_epoch, "step": step}
            append_record(run.metrics, {**event, "to_step": int(best.step), "rate": rate})

    agreed(record)
    return back


def _finish_epoch(
    run: RunDirectory, job: Job, state: TrainingState, held_out_ids: jax.Array, seconds: float | None
) -> Epoch:
    """Evaluate and sample the model at an epoch's end, save it if it is the best so far, and write the records."""
    chosen, step = job.configuration, int(state.step)
    epoch = step // job.steps_per_epoch
    if not int(state.epoch.windows):
        raise DivergedError(_diverged(job, step, run.path, "no step was finite"))
    if int(state.epoch.skipped):
        tell(f"{run.path.name} epoch {epoch}: {int(state.epoch.skipped)} steps were not finite, and were skipped")
    held_out = None
    if len(held_out_ids):
        held_out = evaluate(state.model, held_out_ids, job.mesh, window=chosen.window, stride=chosen.stride)
        if not math.isfinite(held_out.loss_nats):
            raise DivergedError(_diverged(job, step, run.path, "the evaluation after it was not finite"))
    before = agreed(lambda: held_out_losses(run))
    if held_out is not None and len(before) != epoch - 1:  # a worse model might replace the best
        raise InputError(
            f"{str(run.metrics)!r} has the held-out losses of {len(before)} epochs, not of the {epoch - 1} before this "
            "one: it was changed during training. The state is saved; restore a copy, and resume"
        )
    losses = [] if held_out is None else [*before, held_out.loss_nats]
    last = epoch == chosen.epochs or out_of_patience(chosen.patience, losses)
    done = Epoch(
        epoch=epoch,
        step=step,
        training_loss=float(state.epoch.loss),
        windows=int(state.epoch.windows),
        skipped=int(state.epoch.skipped),
        held_out=held_out,
        seconds=seconds,
        samples=sample_texts(job, state.model, epoch) if last or epoch % chosen.sample_every == 0 else (),
    )

    def write() -> None:
        if losses and losses[-1] < min(before, default=math.inf):
            # Saved before the older one is removed, so that there always is one.
            save_state(run.best, state, run.identity())
            remove_states(run.best, [saved for saved in state_files(run.best) if saved != step])
        record_epoch(run, done, window=chosen.window, sampler=chosen.sampler)

    agreed(write)
    return done


def _train_epoch(
    run: RunDirectory, job: Job, state: TrainingState, stop_requested: StopRequested, *, watched: bool
) -> Generator[Advance, Any, tuple[TrainingState, float | None]]:
    """Train to the end of an epoch, or to a stop, and save the state; show a progress bar if `watched`.

    Returns:
        The state, and the seconds of training; None if it began within the epoch, as a part would pass for the whole.
    """
    step, steps, unsaved, total = int(state.step), 1, 0.0, 0.0
    epoch = step // job.steps_per_epoch + 1
    end = epoch * job.steps_per_epoch
    purpose, done = f"epoch {epoch}/{job.configuration.epochs}", step % job.steps_per_epoch
    with progress_bar(purpose, job.steps_per_epoch, " steps", initial=done, watched=watched) as bar:
        while step < end:
            state, seconds = yield Advance(state, min(step + steps, end))
            taken = int(state.step) - step
            step, unsaved, total = step + taken, unsaved + seconds, total + seconds
            if state.diverged:
                _save(run, job, state)
                raise DivergedError(_diverged(job, step, run.path, f"{MAX_SKIPPED} steps in a row were not finite"))
            bar.set_postfix(loss=f"{float(state.epoch.loss):.4f}", refresh=False)
            bar.update(taken)
            stopped = any(everyones(stop_requested()))
            if stopped or step == end or unsaved > _SAVE_SECONDS:
                _save(run, job, state)
                unsaved = 0.0
            if stopped:
                raise Preempted(
                    f"{run.path} was stopped by a signal at step {step:,} of {job.steps:,}; the state is saved, and "
                    "the same command resumes if it names the directory (--run-dir, or --grid-dir)"
                )
            # The same program runs any number of steps, so the dispatch grows to a good length as we go.
            steps = max(1, min(4 * steps, int(taken * _DISPATCH_SECONDS / seconds)))
    return state, total if done == 0 else None


def _diverged(job: Job, step: int, path: Path, what: str) -> str:
    epoch = -(-step // job.steps_per_epoch)
    return (
        f"training diverged in {path}: in epoch {epoch}, up to step {step:,}, {what}; the last good state is "
        f"saved. Try {_calmer(job)}, in another directory"
    )


def _unstable(job: Job, losses: list[float], path: Path) -> str:
    uniform = math.log(len(job.vocabulary))
    can_roll_back = job.configuration.on_divergence == "warn" and len(job.held_out_ids) > 0
    rollback = ", or --on-divergence rollback" if can_roll_back else ""
    reference = f"the lowest, {min(losses):.4f}" if min(losses) < uniform else f"a uniform guess's, {uniform:.4f}"
    return (
        f"warning: in {path} the training loss of epoch {len(losses)}, {losses[-1]:.4f} nats, is more than {FAR_ABOVE} "
        f"above {reference}; training has become unstable. Try {_calmer(job)}{rollback}"
    )


def _calmer(job: Job) -> str:
    """Return the flags that keep training stable, except those already in use."""
    clip = job.configuration.clip
    return "a smaller --learning-rate" + (", or --clip 1" if clip is None or clip > 1 else "")


def _warn_if_not_bit_exact(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Print what decides the bits of a result and has changed since the run was started."""
    then, now = ({**record, **record["versions"]} for record in (there, here))
    facts = "commit", "device_kind", "processor", "cpu_cores", "device_count", "processes", "replicas"
    decisive = [name for name in (*here["versions"], *facts) if name in then]
    changed = [f"{name} {then.get(name)} then and {now[name]} now" for name in decisive if then.get(name) != now[name]]
    if changed:
        tell(f"not bit-exact: this run was started elsewhere ({', '.join(changed)})")
