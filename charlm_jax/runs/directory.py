"""Run directories: the configuration, provenance, metrics, texts and states of a run.

`docs/operation.md` lists the files.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charlm_jax.data.corpus import NAMES
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.errors import InputError
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.files import LOCK, hold_folder, read_json, write_json

_FILES = "config.json", "provenance.json", "metrics.jsonl", "samples.jsonl", LOCK
_FOLDERS = "checkpoints", "best", "figures"
_FREE = "epochs", "patience", "on_divergence"  # what may change when a run is resumed


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run, and the reading and writing of its configuration and provenance.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def metrics(self) -> Path:
        """The losses, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """The generated texts, one JSON object per line."""
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of resumable states."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The folder of the state with the lowest held-out loss."""
        return self.path / "best"

    @property
    def states(self) -> tuple[Path, Path]:
        """The folders of states, from any of which training can resume."""
        return self.checkpoints, self.best

    @property
    def figures(self) -> Path:
        """The folder of pictures."""
        return self.path / "figures"

    def configuration(self) -> Configuration:
        """Return the run's configuration."""
        record = read_json(self.path / "config.json")
        try:
            return Configuration.from_json(record)
        except (InputError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{str(self.path / 'config.json')!r} is not the configuration of a run of this version ({error}); "
                "use the version that wrote it, or start again in another directory"
            ) from error

    def provenance(self) -> dict[str, Any]:
        """Return the record of where the run comes from."""
        record = read_json(self.path / "provenance.json")
        corpus = record.get("corpus")
        known = isinstance(corpus, dict) and isinstance(corpus.get("vocabulary"), str) and "sha256" in corpus
        if not (known and isinstance(record.get("versions"), dict)):
            raise InputError(
                f"{str(self.path / 'provenance.json')!r} does not say where the run comes from; "
                "restore it from a copy, or train again"
            )
        return record

    def vocabulary(self) -> Vocabulary:
        """Return the characters that the run's model knows."""
        return Vocabulary(self.provenance()["corpus"]["vocabulary"])

    def identity(self) -> str:
        """Return a digest of what the run's states depend on: its configuration, its text, its vocabulary.

        The text's location, and the choices that may change when a run is resumed, are left out.
        """
        chosen = self.configuration().to_json()
        for name in ("corpus", *_FREE):
            del chosen[name]
        corpus = self.provenance()["corpus"]
        facts = [chosen, corpus["sha256"], corpus["vocabulary"]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def refuse_links(self) -> None:
        """Raise an InputError if a part of the run is a link, or is not the file or folder that belongs there."""
        for names, is_right in ((_FILES, Path.is_file), (_FOLDERS, Path.is_dir)):
            for path in (self.path / name for name in names):
                if path.is_symlink() or (path.exists() and not is_right(path)):
                    raise InputError(
                        f"{str(path)!r} is a link, which may lead anywhere, or of the wrong kind; replace it with the "
                        "real file or folder"
                    )

    def write_provenance(self, record: dict[str, Any]) -> None:
        """Replace provenance.json."""
        write_json(self.path / "provenance.json", record)

    def write_configuration(self, configuration: Configuration) -> None:
        """Replace config.json."""
        write_json(self.path / "config.json", configuration.to_json())


def open_run(path: Path) -> RunDirectory:
    """Open an existing run.

    Raises:
        InputError: there is none, or a part of it is a link.
    """
    if not _is_run(path):
        raise InputError(f"{str(path)!r} is not a run directory{_why_no_run(path)}")
    run = RunDirectory(path)
    run.refuse_links()
    return run


def find_runs(*paths: Path) -> list[RunDirectory]:
    """Open the runs at some paths, each of which is a run or a directory of runs and grids.

    The runs of a directory are in natural order (2 before 10). A run that is found twice is returned once. Links and
    hidden folders in a directory, such as an unfinished conversion's, are not followed.

    Raises:
        InputError: no path is given, or there is no run at one.
    """
    if not paths:
        raise InputError("no run is named; give directories of runs, or one that holds them")
    found = {run.path.resolve(): run for path in paths for run in _runs_at(path)}
    return list(found.values())


def parent_of(runs: Sequence[RunDirectory]) -> Path:
    """Return the deepest folder that holds all of some runs, as an absolute path."""
    return Path(os.path.commonpath([run.path.resolve().parent for run in runs]))


def _runs_at(path: Path) -> list[RunDirectory]:
    def natural(run: Path) -> list[tuple[float, str]]:
        return [(float(part), "") if part.isdecimal() else (0.0, part) for part in re.split(r"(\d+)", str(run))]

    return [open_run(run) for run in sorted(_runs_in(path), key=natural) or [path]]


def _runs_in(path: Path) -> list[Path]:
    """Return the runs in a directory, and in the grids there, unless it is a run itself."""
    inside = [] if _is_run(path) or not path.is_dir() else _folders(path)
    return [run for each in inside for run in ([each] if _is_run(each) else filter(_is_run, _folders(each)))]


def _folders(path: Path) -> list[Path]:
    inside = [each for each in path.iterdir() if each.is_dir() and not each.is_symlink()]
    return [each for each in inside if not each.name.startswith(".")]


@contextmanager
def hold_run(path: Path, configuration: Configuration, provenance: dict[str, Any]) -> Iterator[RunDirectory]:
    """Create a run's directory, or open an existing one of the same run, and hold it for this process alone.

    More epochs extend a run whose learning rate is constant from the start; patience and what to do on divergence may
    change. The same text may come from another place, which is recorded if it has left its own, or in another encoding.

    Raises:
        InputError: the directory cannot be written, or holds something else or another run, which is left unchanged; or
            another process holds it.
    """
    run = RunDirectory(path)
    with ExitStack() as held:
        try:
            if path.exists() and not _is_run(path) and any(map(_is_foreign, path.iterdir())):
                why = _why_no_run(path) if _was_run(path) else "; name an empty or a new directory"
                raise InputError(f"the directory {str(path)!r} holds files but no run{why}")
            path.mkdir(parents=True, exist_ok=True)
            run.refuse_links()
            held.enter_context(hold_folder("the directory", path, *run.states))
            if _is_run(path):
                _check_same(run, configuration, provenance)
                there = run.configuration()
                gone = there.corpus not in NAMES and not Path(there.corpus).exists()
                # The encoding stays, as it is part of the run's identity.
                changed = (*_FREE, "corpus") if gone and configuration.encoding == there.encoding else _FREE
                further = dataclasses.replace(there, **{name: getattr(configuration, name) for name in changed})
                if further != there:
                    run.write_configuration(further)
            else:
                run.write_provenance(provenance)
                run.write_configuration(configuration)  # last, as it makes the directory a run's
        except OSError as error:
            raise InputError(
                f"the directory {str(path)!r} cannot be written ({error.strerror or error}); name one that can"
            ) from error
        yield run


def _is_run(path: Path) -> bool:
    return (path / "config.json").is_file()


def _was_run(path: Path) -> bool:
    return any(map(Path.is_dir, RunDirectory(path).states))


def _why_no_run(path: Path) -> str:
    """Return the end of a message that a path is not, or does not hold, a run: the reason and the way out."""
    if not path.exists():
        return ": it does not exist; name one that a run has written"
    if _was_run(path):
        return ": it was one, but its config.json is missing; restore a copy"
    if _runs_in(path):
        return ", but holds runs; name one of them"
    return ", and holds none; name one that a run has written"


def _is_foreign(path: Path) -> bool:
    """Return whether a file is anything but what an interrupted start of a run leaves behind."""
    left = (".provenance.json.", ".config.json.")
    return path.name not in ("provenance.json", LOCK) and not path.name.startswith(left)


def _check_same(run: RunDirectory, configuration: Configuration, provenance: dict[str, Any]) -> None:
    there, recorded = run.configuration(), run.provenance()
    text, text_here = recorded["corpus"], provenance["corpus"]
    if text["sha256"] == text_here["sha256"]:
        # The same text, from elsewhere or in other bytes.
        configuration = dataclasses.replace(configuration, corpus=there.corpus, encoding=there.encoding)
    differences = _differences(run, configuration)
    read, read_here = ((chosen.corpus, chosen.encoding, chosen.lowercase) for chosen in (there, configuration))
    if text["sha256"] != text_here["sha256"] and read == read_here:  # otherwise these differences explain it
        differences.append(f"the text of --corpus {there.corpus} has changed since")
    if (source := provenance["init_from"]) is not None and source != recorded.get("init_from"):
        differences.append(f"the model to start from has changed: {source['run']} is at step {source['step']} now")
    if recorded.get("converted_from") is not None:
        differences.append(f"a model from another library, to start a run from: --init-from {run.path}")
    _refuse(run, differences)


def require_same_choices(path: Path, configuration: Configuration) -> None:
    """Raise an InputError if a directory holds a run that cannot be resumed with these choices, whatever their text."""
    if _is_run(path):
        run = open_run(path)
        there = run.configuration()
        # The text itself is compared once it is read.
        here = dataclasses.replace(configuration, corpus=there.corpus, encoding=there.encoding)
        _refuse(run, _differences(run, here))


def _differences(run: RunDirectory, here: Configuration) -> list[str]:
    """Return the differences that keep a run from being resumed with other choices."""
    there = run.configuration()
    extends = here.epochs > there.epochs and there.schedule == "constant" and not there.warmup
    compared = dataclasses.replace(here, epochs=there.epochs) if extends else here
    free = {name: getattr(there, name) for name in _FREE if name != "epochs"}
    differences = there.differences(dataclasses.replace(compared, **free))
    if here.epochs > there.epochs and not extends:
        differences.append(
            "a warm-up and a cosine schedule span all epochs, so the run cannot be extended, but another can start "
            f"from its model: --init-from {run.path} --run-dir OTHER"
        )
    return differences


def _refuse(run: RunDirectory, differences: list[str]) -> None:
    if differences:
        raise InputError(
            f"the directory {str(run.path)!r} holds another run: {'; '.join(differences)}. "
            "Use its configuration to resume it, or name another directory"
        )


def choices_that_differ(runs: Sequence[RunDirectory]) -> list[str]:
    """Return the configuration fields in which runs differ."""
    first, *others = [run.configuration().to_json() for run in runs]
    return [name for name in first if any(other[name] != first[name] for other in others)]
