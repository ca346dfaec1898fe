"""Training in run directories, of one model or of many in one program."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from charlm_jax.choices import TextPlace
from charlm_jax.errors import DivergedError, InputError, Preempted, require_count
from charlm_jax.learning.training import Batches, TrainingState, TrainSteps
from charlm_jax.mesh import fetch, local_rows, replicate, split_columns
from charlm_jax.runs.assembly import Job, prepare, train_steps_of
from charlm_jax.runs.command_line import absolute_places, tell
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.devices import code_digest, describe_process, device_memory
from charlm_jax.runs.encoding import require_known
from charlm_jax.runs.history import Epoch
from charlm_jax.runs.loop import Advance, Answer, Run, go_on
from charlm_jax.runs.processes import everyones, meet, require_alike
from charlm_jax.runs.read_ahead import read_ahead
from charlm_jax.runs.stop import StopRequested
from charlm_jax.runs.trained import LoadedRun, load_run

_PIECE = 64  # most steps whose batches are read and sent to the devices at once
_PIECE_BYTES = 1 << 23  # most bytes of these batches, unless a single one has more


def train_run(configuration: Configuration, path: str | Path, *, devices: int | None = None) -> LoadedRun:
    """Train in a run directory, with a progress bar per epoch, and return the run with its best model.

    If the directory already holds this run, it is resumed, or returned at once if it is finished: the same call again
    resumes an interrupted run. Batches are split over `devices`; None is all that get a few windows each.

    Raises:
        InputError: the text, the directory or a number cannot be used, or the directory holds another run.
        DivergedError: training diverged; the last good state is saved.
    """
    require_count("devices", devices)
    job = prepare(absolute_places(configuration), devices, Path(path))
    for _ in train(job, Path(path)):
        pass
    return load_run(path)


def train(
    job: Job, path: Path, stop_requested: StopRequested = lambda: False, *, text: TextPlace = "auto"
) -> Iterator[Epoch]:
    """Train in a run directory, from its newest intact state if it has one; yield each epoch as it ends.

    See `go_on` for what is written when, and what is raised.

    Args:
        job: what to train.
        path: the run's directory.
        stop_requested: see `go_on`.
        text: where the training text is, which changes no result: `resident` on each device, `streamed` from where it
            lies, or `auto`, on the devices unless it would take more than a quarter of the memory of one.
    """
    _require_alike([job], job.mesh, text)
    if text == "auto":
        smallest = min(everyones(device_memory(job.mesh)))
        text = "streamed" if job.training_ids.nbytes > smallest // 4 else "resident"
    train_steps = train_steps_of(job, job.mesh)
    if text == "streamed":
        take = _streamed(job, train_steps)
    else:
        ids = _whole_text(job, job.mesh)
        take = lambda request: train_steps(request.state, ids, job.key, request.stop)  # noqa: E731

    def advance(requests: Sequence[Advance | None]) -> list[TrainingState]:
        return [take(request) for request in requests if request is not None]

    for _, epoch in _serve([go_on(job, path, stop_requested)], advance):
        yield epoch


def train_together(
    jobs: Sequence[Job], paths: Sequence[Path], mesh: Mesh, stop_requested: StopRequested = lambda: False
) -> Iterator[tuple[int, Epoch]]:
    """Train jobs that differ only in seed and learning rate, all in one program, each in a run directory.

    The results are those of `train`, except for the order of sums. Each run resumes where it was; one that has ended
    stays as it is.

    Args:
        jobs: what to train.
        paths: their run directories.
        mesh: a `replica_mesh` for as many models.
        stop_requested: see `go_on`.

    Yields:
        A job's number, and an epoch of it as it ends.

    Raises:
        Preempted: a stop was requested; all states are saved.
        DivergedError: at least one job diverged; the others have ended.
        InputError: see `go_on`.
    """
    _require_alike(jobs, mesh)
    job, replicas, train_steps = jobs[0], len(jobs), train_steps_of(jobs[0], mesh)
    ids, keys = _whole_text(job, mesh), jnp.stack([job.key for job in jobs])

    def advance(requests: Sequence[Advance | None]) -> list[TrainingState]:
        live = [request for request in requests if request is not None]
        count = min(request.stop - int(request.state.step) for request in live)
        states = [(request or live[0]).state for request in requests]
        # For a run that has ended, a copy of another stops at once, so that the program, and its bits, stay the same.
        stops = [0 if request is None else int(request.state.step) + count for request in requests]
        together = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *states)
        after = fetch(train_steps(together, ids, keys, jnp.array(stops, jnp.int32)))
        # Copies: on a CPU a device array may be a view of NumPy's memory.
        return [
            replicate(jax.tree.map(lambda leaf: jnp.array(leaf[number]), after), job.mesh)  # noqa: B023
            for number, request in enumerate(requests)
            if request is not None
        ]

    runs = [
        go_on(job, path, stop_requested, replicas=replicas, watched=number == 0)
        for number, (job, path) in enumerate(zip(jobs, paths, strict=True))
    ]
    yield from _serve(runs, advance)


def _require_alike(jobs: Sequence[Job], mesh: Mesh, text: TextPlace = "resident") -> None:
    """Raise an InputError unless all processes have the same code and jobs, before any computes; then connect them."""
    for job in jobs:
        chosen, corpus, source = job.configuration.to_json(), job.describe_corpus(), job.describe_source() or {}
        for name in ("corpus", "init_from"):
            del chosen[name]  # the same may have another path elsewhere
        made = describe_process(job.configuration.precision, mesh, len(jobs))
        require_alike(
            {
                **chosen,
                "the code's sha256": code_digest(),
                **made["versions"],
                "devices": mesh.size,
                "--text": text,
                "the text's sha256": corpus["sha256"],
                "vocabulary": corpus["vocabulary"],
                "the model to start from": {name: source.get(name) for name in ("step", "sha256")},
            }
        )
    meet(mesh)


def _streamed(job: Job, train_steps: TrainSteps) -> Callable[[Advance], TrainingState]:
    """Return a function that takes a run's steps, each call from where the last ended, on batches read ahead."""
    rows = local_rows(job.order.batch_size, job.mesh)
    batch_bytes = len(rows) * (job.order.window + 1) * job.training_ids.itemsize
    length = max(1, min(_PIECE, _PIECE_BYTES // batch_bytes))
    ids, vocabulary = job.training_ids, job.vocabulary

    def pieces(first: int) -> Iterator[tuple[int, Batches]]:
        options = {"first": first, "end": job.steps, "piece": length}
        for step, read in read_ahead(ids, job.order, job.key, rows, vocabulary=vocabulary, **options):
            characters, weights = (split_columns(array, job.mesh) for array in read)
            yield step + length, Batches(characters, weights, replicate(jnp.int32(step), job.mesh), len(ids))

    reading: Iterator[tuple[int, Batches]] | None = None
    end, piece = 0, None

    def take(request: Advance) -> TrainingState:
        nonlocal reading, end, piece
        state, step = request.state, int(request.state.step)
        reading = reading or pieces(step)
        while step < request.stop:
            if piece is None or step == end:
                end, piece = next(reading)
            step = min(request.stop, end)
            state = train_steps(state, piece, job.key, step)
        return state

    return take


def _whole_text(job: Job, mesh: Mesh) -> jax.Array:
    if len(job.training_ids) >= 2**31:
        raise InputError(
            f"{job.corpus.name!r} has {len(job.corpus.ids):,} characters, but places in a text on a device are 32-bit "
            "numbers; give --text streamed if training one model"
        )
    require_known(job.training_ids, job.vocabulary)
    # A copy: on a CPU a device array may be a view of NumPy's memory.
    return replicate(jnp.array(job.training_ids), mesh)


def _serve(
    runs: Sequence[Run], advance: Callable[[Sequence[Advance | None]], list[TrainingState]]
) -> Iterator[tuple[int, Epoch]]:
    """Drive runs side by side, collecting all requests before answering any; yield epochs with their runs' numbers.

    Args:
        runs: each finishes, stops or diverges. When all have ended, a stop or else a divergence is raised, and the
            others are printed. Any other error is raised at once, with the other runs as they were last saved.
        advance: maps the request of each run, None for one that has ended, to the states of those that have not.
    """
    answers: dict[int, Answer | None] = dict.fromkeys(range(len(runs)))
    failures: list[DivergedError | Preempted] = []
    with ExitStack() as closing:
        for run in runs:
            closing.callback(run.close)
        while answers:
            requests: list[Advance | None] = [None] * len(runs)
            for number, answer in answers.items():
                try:
                    event = runs[number].send(answer)
                    while isinstance(event, Epoch):
                        yield number, event
                        event = next(runs[number])
                    requests[number] = event
                except StopIteration:
                    continue
                except (DivergedError, Preempted) as error:
                    failures.append(error)
            live = [number for number, request in enumerate(requests) if request is not None]
            started = time.perf_counter()
            states = jax.block_until_ready(advance(requests)) if live else []
            seconds = everyones(time.perf_counter() - started)[0]  # as the length of the next dispatch depends on it
            answers = {number: (state, seconds) for number, state in zip(live, states, strict=True)}
    failures.sort(key=lambda failure: isinstance(failure, DivergedError))
    for failure in failures[1:]:
        tell(str(failure))
    if failures:
        raise failures[0]
