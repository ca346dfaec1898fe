"""Whether a run is what it was when it was written."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from charlm_jax.errors import InputError
from charlm_jax.runs.checkpoints import read_state, state_files
from charlm_jax.runs.directory import RunDirectory
from charlm_jax.runs.history import scores
from charlm_jax.runs.records import read_records
from charlm_jax.runs.trained import model_shapes


@dataclass(frozen=True)
class Finding:
    """What became of one file of a run.

    Attributes:
        path: of the file.
        problem: what is wrong with it; None if nothing is.
    """

    path: Path
    problem: str | None


def verify(run: RunDirectory) -> list[Finding]:
    """Check every file of a run, each array of each state by its SHA-256, and that what the records tell of is there.

    Of states only the newest one and the best have to be there; others are checked if they are.
    """
    return list(_findings(run))


def _findings(run: RunDirectory) -> Iterator[Finding]:
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
            yield Finding(path, _problem(lambda path=path: read_state(path, model_shapes(run), run.identity())))
        others = sorted(set(folder.iterdir()) - set(states.values())) if folder.is_dir() else []
        yield from (Finding(path, "it is no state of this run, and is not used") for path in others)
    if findings[2].problem is None:
        yield from _missing(run)


def _missing(run: RunDirectory) -> Iterator[Finding]:
    steps = [record["step"] for record in read_records(run.metrics) if record.get("event") == "epoch"]
    if steps:
        best = scores(run).index(min(scores(run)))
        for folder, step in ((run.checkpoints, steps[-1]), (run.best, steps[best])):
            if step not in state_files(folder) and max(state_files(folder), default=-1) < step:
                yield Finding(folder, f"the state of step {step} is recorded, and is not there")


def _problem(check: Callable[[], object]) -> str | None:
    try:
        check()
    except InputError as error:
        return str(error)
    return None
