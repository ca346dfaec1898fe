"""Training in run directories: of one model, or of many in one program."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from charlm_jax.errors import DivergedError, Preempted
from charlm_jax.learning.training import TrainingState, make_train_steps
from charlm_jax.mesh import fetch, replicate
from charlm_jax.runs.assembly import Job
from charlm_jax.runs.command_line import tell
from charlm_jax.runs.history import Epoch
from charlm_jax.runs.loop import Advance, Answer, Run, go_on
from charlm_jax.runs.processes import everyones
from charlm_jax.runs.stop import StopRequested


def train(job: Job, path: Path, stop_requested: StopRequested = lambda: False) -> Iterator[Epoch]:
    """Train in a run directory, from its newest sound state if it has one; yield each epoch as it ends.

    See `go_on` for the arguments, what is written when, and what is raised.
    """
    chosen = job.configuration
    train_steps = make_train_steps(
        job.network, job.optimizer, job.order, chosen.objective, job.mesh, least_probability=chosen.least_probability
    )
    ids = _whole_text(job, job.mesh)

    def advance(asked: Sequence[Advance | None]) -> list[TrainingState]:
        return [train_steps(run.state, ids, job.key, run.stop) for run in asked if run is not None]

    for _, epoch in _serve([go_on(job, path, stop_requested)], advance):
        yield epoch


def train_together(
    jobs: Sequence[Job], paths: Sequence[Path], mesh: Mesh, stop_requested: StopRequested = lambda: False
) -> Iterator[tuple[int, Epoch]]:
    """Train jobs that differ in nothing but seed and learning rate, all in one program, each in a run directory.

    Each is what `train` makes of it but for the order of sums; where it was, it goes on, and what has ended stays.

    Args:
        jobs: what to train.
        paths: of their directories.
        mesh: a `replica_mesh` for as many.
        stop_requested: see `go_on`.

    Yields:
        The number of a job, and an epoch of it as it ends.

    Raises:
        Preempted: a stop was requested; all states are saved.
        DivergedError: one of them did, and the others have come to their ends.
        InputError: see `go_on`.
    """
    job, replicas, chosen = jobs[0], len(jobs), jobs[0].configuration
    train_steps = make_train_steps(
        job.network, job.optimizer, job.order, chosen.objective, mesh, least_probability=chosen.least_probability
    )
    ids, keys = _whole_text(job, mesh), jnp.stack([job.key for job in jobs])

    def advance(asked: Sequence[Advance | None]) -> list[TrainingState]:
        there = [run for run in asked if run is not None]
        count = min(run.stop - int(run.state.step) for run in there)
        states = [(run or there[0]).state for run in asked]
        # One that has ended stands where it stops at once, so that the program, and its bits, stay the same.
        stops = [0 if run is None else int(run.state.step) + count for run in asked]
        together = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *states)
        after = fetch(train_steps(together, ids, keys, jnp.array(stops, jnp.int32)))
        # Copies: on a CPU a device array may be a view of NumPy's memory.
        return [
            replicate(jax.tree.map(lambda leaf: jnp.array(leaf[number]), after), job.mesh)  # noqa: B023
            for number, run in enumerate(asked)
            if run is not None
        ]

    runs = [
        go_on(job, path, stop_requested, replicas=replicas, watched=number == 0)
        for number, (job, path) in enumerate(zip(jobs, paths, strict=True))
    ]
    yield from _serve(runs, advance)


def _whole_text(job: Job, mesh: Mesh) -> jax.Array:
    # A copy: on a CPU a device array may be a view of NumPy's memory.
    return replicate(jnp.array(job.training_ids), mesh)


def _serve(
    runs: Sequence[Run], advance: Callable[[Sequence[Advance | None]], list[TrainingState]]
) -> Iterator[tuple[int, Epoch]]:
    """Let runs go on side by side, all of them asking before any is answered; yield their epochs with their numbers.

    Args:
        runs: each ends by itself, by a stop, or by divergence, which is told, and raised when all have ended, a stop
            before a divergence; by any other error at once, with the others as they were last saved.
        advance: from what each run asks for, None for one that has ended, to the states of those that have not.
    """
    answers: dict[int, Answer | None] = dict.fromkeys(range(len(runs)))
    failures: list[DivergedError | Preempted] = []
    with ExitStack() as closing:
        for run in runs:
            closing.callback(run.close)
        while answers:
            asked: list[Advance | None] = [None] * len(runs)
            for number, answer in answers.items():
                try:
                    event = runs[number].send(answer)
                    while isinstance(event, Epoch):
                        yield number, event
                        event = next(runs[number])
                    asked[number] = event
                except StopIteration:
                    continue
                except (DivergedError, Preempted) as error:
                    failures.append(error)
            live = [number for number, run in enumerate(asked) if run is not None]
            started = time.perf_counter()
            states = jax.block_until_ready(advance(asked)) if live else []
            seconds = everyones(time.perf_counter() - started)[0]  # as the length of the next dispatch depends on it
            answers = {number: (state, seconds) for number, state in zip(live, states, strict=True)}
    failures.sort(key=lambda failure: isinstance(failure, DivergedError))
    for failure in failures[1:]:
        tell(str(failure))
    if failures:
        raise failures[0]
