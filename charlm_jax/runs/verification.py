"""Whether a run is what it was when it was written."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from charlm_jax.errors import InputError
from charlm_jax.runs.checkpoints import QUARANTINED, read_state, state_files
from charlm_jax.runs.directory import RunDirectory
from charlm_jax.runs.files import is_temporary
from charlm_jax.runs.history import held_out_losses
from charlm_jax.runs.records import read_records
from charlm_jax.runs.trained import model_shapes


@dataclass(frozen=True)
class Finding:
    """What became of one file of a run.

    Attributes:
        path: of the file.
        problem: what is wrong with it; None if nothing is.
        aside: whether it was damaged, and training has set it aside.
    """

    path: Path
    problem: str | None
    aside: bool = False


def verify(run: RunDirectory) -> Iterator[Finding]:
    """Check every file of a run, each array of each state by its SHA-256, and that what the records tell of is there.

    Of states only the newest one and the best have to be there; others are checked if they are.
    """
    files: list[tuple[Path, Callable[[], object]]] = [
        (run.path / "config.json", run.configuration),
        (run.path / "provenance.json", run.provenance),
        (run.metrics, lambda: read_records(run.metrics)),
        (run.samples, lambda: read_records(run.samples)),
    ]
    findings = [Finding(path, _problem(check)) for path, check in files]
    yield from findings
    if any(finding.problem for finding in findings[:2]):
        return  # states are judged by these two
    for folder in (run.checkpoints, run.best):
        states = state_files(folder)
        for path in states.values():
            with suppress(FileNotFoundError):  # removed since, by the process that trains
                yield Finding(path, _problem(lambda path=path: read_state(path, model_shapes(run), run.identity())))
        others = set(folder.iterdir()) - set(state_files(folder).values()) if folder.is_dir() else set()
        for path in sorted(path for path in others if not is_temporary(path)):
            aside = QUARANTINED in path.name
            yield Finding(path, None if aside else "it is no state of this run, and is not used", aside)
    if findings[2].problem is None:
        yield from _missing(run)


def _missing(run: RunDirectory) -> Iterator[Finding]:
    records = read_records(run.metrics, "epoch")
    steps, losses = [record["step"] for record in records], held_out_losses(run)
    if [record["epoch"] for record in records] != list(range(1, len(records) + 1)) or (
        state_files(run.best) and not losses
    ):
        yield Finding(run.metrics, "it does not hold every epoch once")
    elif steps:
        wanted = [(run.checkpoints, steps[-1])] + [(run.best, steps[losses.index(min(losses))])] * bool(losses)
        for folder, step in wanted:
            if max(state_files(folder), default=-1) < step:
                yield Finding(folder, f"the state of step {step} is recorded, and is not there")


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except InputError as error:
        return str(error)
    return None
