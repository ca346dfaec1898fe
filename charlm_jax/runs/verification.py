"""Checks that a run's files are complete and as they were written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from charlm_jax.errors import InputError
from charlm_jax.runs.checkpoints import QUARANTINED, SUFFIX, read_state, state_files
from charlm_jax.runs.directory import RunDirectory
from charlm_jax.runs.files import is_temporary
from charlm_jax.runs.history import held_out_losses
from charlm_jax.runs.records import read_records
from charlm_jax.runs.trained import snapshot_shapes


@dataclass(frozen=True)
class Finding:
    """The verdict on one file of a run.

    Attributes:
        path: the file.
        verdict: `BAD` is a damaged, missing or foreign file; `set aside` is a damaged one that training has renamed;
            `unchecked` is a state that cannot be judged, as the run's configuration or provenance is bad.
        problem: what is wrong with the file; empty if nothing is, as far as is known.
    """

    path: Path
    verdict: Literal["ok", "BAD", "set aside", "unchecked"]
    problem: str = ""


def verify(run: RunDirectory) -> Iterator[Finding]:
    """Check a run's configuration, provenance, records and states, each array of a state by its SHA-256.

    States and texts that are recorded but missing are found, too. Only the newest and the best state have to exist;
    others are checked if they do.
    """
    configuration = _judge(run.path / "config.json", run.configuration)
    provenance = _judge(run.path / "provenance.json", run.provenance)
    held_out = not configuration.problem and run.configuration().held_out_fraction > 0
    metrics = _judge(run.metrics, lambda: _require_epochs(run, held_out=held_out))
    recorded = not (configuration.problem or metrics.problem)
    samples = _judge(run.samples, lambda: _require_texts(run) if recorded else read_records(run.samples))
    for finding in (configuration, provenance, metrics, samples):
        if finding.problem or finding.path.exists():
            yield finding
    known = not (configuration.problem or provenance.problem)
    for folder in run.states:
        if (there := _judge(folder, lambda folder=folder: state_files(folder))).problem:
            yield there
            continue
        for path in state_files(folder).values():
            with suppress(FileNotFoundError):  # removed in the meantime by the process that trains
                if known:
                    yield _judge(path, lambda path=path: read_state(path, snapshot_shapes(run), run.identity()))
                else:
                    yield Finding(path, "unchecked")
        others = set(folder.iterdir()) - set(state_files(folder).values()) if folder.is_dir() else set()
        for path in sorted(path for path in others if not is_temporary(path)):
            if QUARANTINED in path.name:
                yield Finding(path, "set aside")
            else:
                yield Finding(path, "BAD", "it is not a state of this run, and is unused")
    if not metrics.problem:
        yield from _missing_states(run)


def ways_out(run: RunDirectory, findings: Sequence[Finding]) -> str:
    """Return advice on what to do about bad files."""
    has_model = any(finding.verdict == "ok" and finding.path.parent != run.path for finding in findings)
    goes_on = not any(finding.problem and finding.path.parent == run.path for finding in findings)
    way = "restore copies of them"
    if has_model and goes_on:
        return f"{way}, or resume training from the newest intact state"
    return (
        f"{way}, or start from its model in another run: --init-from {run.path} --run-dir OTHER" if has_model else way
    )


def _judge(path: Path, check: Callable[[], object]) -> Finding:
    try:
        check()
    except FileNotFoundError:
        raise  # it has been removed since it was listed
    except OSError as error:
        return Finding(path, "BAD", f"it cannot be read ({error.strerror})")
    except InputError as error:
        return Finding(path, "BAD", str(error) if path.exists() or path.is_symlink() else "it is missing")
    return Finding(path, "ok")


def _require_epochs(run: RunDirectory, *, held_out: bool) -> None:
    """Raise an InputError unless every epoch is recorded once; one that ends at the newest state may be missing.

    If text is held out, each must have been evaluated, too.
    """
    newest = max(_listed(run.checkpoints) or {}, default=0)
    records = read_records(run.metrics, "epoch")
    due = (newest - 1) // max(1, records[0]["step"]) if records else bool(_listed(run.best)) or run.samples.exists()
    if len(records) < due or [record["epoch"] for record in records] != list(range(1, len(records) + 1)):
        raise InputError("it does not hold every epoch once")
    evaluated = [record["epoch"] for record in read_records(run.metrics, "evaluation")][: len(records)]
    if held_out and evaluated != [record["epoch"] for record in records]:
        raise InputError("it does not hold the held-out loss of every epoch once")


def _listed(folder: Path) -> dict[int, Path] | None:
    """Return a folder's state files, or None if it cannot be read, which is a finding by itself."""
    try:
        return state_files(folder)
    except OSError:
        return None


def _require_texts(run: RunDirectory) -> None:
    """Raise an InputError if a recorded epoch lacks its texts, which are written before the epoch is recorded."""
    chosen = run.configuration()
    epochs = [record["epoch"] for record in read_records(run.metrics, "epoch")] if chosen.temperatures else []
    due = {epoch for epoch in epochs if epoch % chosen.sample_every == 0 or epoch == chosen.epochs}
    if lacking := due - {record["epoch"] for record in read_records(run.samples)}:
        raise InputError(f"it does not hold the texts of epoch {min(lacking)}")


def _missing_states(run: RunDirectory) -> Iterator[Finding]:
    steps = [record["step"] for record in read_records(run.metrics, "epoch")]
    losses = held_out_losses(run)[: len(steps)]  # an epoch whose own record is missing is done again
    wanted = [(run.checkpoints, steps[-1])] if steps else []
    if losses:
        wanted.append((run.best, steps[losses.index(min(losses))]))
    for folder, step in wanted:
        listed = _listed(folder)
        if listed is not None and max(listed, default=-1) < step:
            yield Finding(folder / f"{step}{SUFFIX}", "BAD", "it is recorded but missing")
