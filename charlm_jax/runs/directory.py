"""A run directory: what was chosen, where it ran, what was measured, what was generated.

config.json       the configuration
provenance.json   command, commit, versions, devices, corpus, vocabulary
metrics.jsonl     one object a line: epochs and evaluations
samples.jsonl     one object a line: generated texts
checkpoints/      resumable states
best/             the state with the lowest held-out loss
figures/          pictures
"""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.errors import InputError
from charlm_jax.runs.configuration import Configuration

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # slow to load, and most runs draw nothing


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run, and the reading and writing of its records.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def metrics(self) -> Path:
        """The losses, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """The generated texts, one JSON object a line."""
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
    def figures(self) -> Path:
        """The folder of pictures."""
        return self.path / "figures"

    def configuration(self) -> Configuration:
        """Return the configuration that the run was started with."""
        record = _read_json(self.path / "config.json")
        try:
            return Configuration.from_json(record)
        except (InputError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{str(self.path / 'config.json')!r} is not the configuration of a run of this version ({error}); "
                "use the version that wrote it, or start again in another --run-dir"
            ) from error

    def provenance(self) -> dict:
        """Return what was recorded of where the run comes from."""
        record = _read_json(self.path / "provenance.json")
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

    def write_provenance(self, record: dict) -> None:
        """Replace provenance.json."""
        _write_json(self.path / "provenance.json", record)

    def write_configuration(self, configuration: Configuration) -> None:
        """Replace config.json."""
        _write_json(self.path / "config.json", configuration.to_json())


def open_run(path: Path) -> RunDirectory:
    """Open a run that exists.

    Raises:
        InputError: there is none.
    """
    if not (path / "config.json").is_file():
        raise InputError(
            f"{str(path)!r} is not a run directory (it has no config.json); name one that a run has written"
        )
    return RunDirectory(path)


def create_run(path: Path, configuration: Configuration, provenance: dict) -> RunDirectory:
    """Create a run's directory, or return the one that is there if it holds the same run.

    A larger number of epochs extends a run whose learning rate is constant from the start, and patience may change.

    Raises:
        InputError: the directory cannot be written, holds something else, or holds another run; nothing is changed.
    """
    run = RunDirectory(path)
    if (path / "config.json").is_file():
        _check_same(run, configuration, provenance)
        there = run.configuration()
        run.write_configuration(
            dataclasses.replace(there, epochs=configuration.epochs, patience=configuration.patience)
        )
        return run
    try:
        if path.exists() and any(map(_is_foreign, path.iterdir())):
            raise InputError(f"--run-dir {str(path)!r} holds files but no run; name an empty or a new directory")
        path.mkdir(parents=True, exist_ok=True)
        run.write_provenance(provenance)
        run.write_configuration(configuration)  # last: with it, the directory is a run's
    except OSError as error:
        raise InputError(
            f"--run-dir {str(path)!r} cannot be written ({error.strerror}); name a directory that can"
        ) from error
    return run


def _is_foreign(path: Path) -> bool:
    """Say whether a file is other than what an interrupted `create_run` leaves behind."""
    return path.name != "provenance.json" and not path.name.startswith((".provenance.json.", ".config.json."))


def _check_same(run: RunDirectory, configuration: Configuration, provenance: dict) -> None:
    there, recorded, here = run.configuration(), run.provenance()["corpus"], provenance["corpus"]
    compared = configuration
    if recorded.get("sha256") == here["sha256"]:
        compared = dataclasses.replace(compared, corpus=there.corpus)  # the same text from another place
    extends = configuration.epochs > there.epochs and there.schedule == "constant" and not there.warmup
    if extends:
        compared = dataclasses.replace(compared, epochs=there.epochs)
    compared = dataclasses.replace(compared, patience=there.patience)  # which decides how far to go, not how
    differences = there.differences(compared)
    if configuration.epochs > there.epochs and not extends:
        differences.append("(a warm-up and a cosine schedule span all epochs, so the run cannot be extended)")
    for name in ("characters", "sha256", "vocabulary"):
        if recorded.get(name) != here[name]:
            differences.append(f"the text's {name} {recorded.get(name)} there, {here[name]} here")
    if differences:
        raise InputError(
            f"--run-dir {str(run.path)!r} holds another run: {'; '.join(differences)}. "
            "Use its configuration to go on with it, or name another directory"
        )


def save_figure(run: RunDirectory, name: str, figure: "Figure") -> list[Path]:
    """Write a picture into a run's figures, as SVG and PNG; return the files."""
    run.figures.mkdir(exist_ok=True)
    paths = [run.figures / f"{name}.{suffix}" for suffix in ("svg", "png")]
    for path in paths:
        save_picture(figure, path)
    return paths


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a picture as its file's ending says; the same picture is the same file."""
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], remarks: Sequence[str] = ()) -> None:
    """Write comma-separated values, remarks first, each after a #."""
    text = io.StringIO("".join(f"# {remark}\n" for remark in remarks))
    text.seek(0, io.SEEK_END)
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    _write_atomically(path, text.getvalue())


def append_record(path: Path, record: dict) -> None:
    """Append one JSON object as one line, in one write that is on the disk when this returns."""
    line = json.dumps(record, allow_nan=False) + "\n"
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> list[dict]:
    """Return a file's JSON objects; a last line that was not written to its end is left out."""
    return list(_complete_records(path))


def keep_records(path: Path, step: int) -> None:
    """Drop a half-written last line and all records of later steps: they will be made again."""
    if path.exists():
        kept = [record for record in _complete_records(path) if record["step"] <= step]
        _write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


def _complete_records(path: Path) -> Iterator[dict]:
    if path.exists():
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            if line.endswith(b"\n"):
                try:
                    record = json.loads(line)
                    record["step"]  # every record has its place
                except (ValueError, TypeError, KeyError) as error:
                    raise InputError(
                        f"{str(path)!r} line {number} is not a record of a run; remove the line"
                    ) from error
                yield record


def _read_json(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}; restore it from a copy, or train again") from error
    if not isinstance(record, dict):
        raise InputError(f"{str(path)!r} holds no JSON object; restore it from a copy, or train again")
    return record


def _write_json(path: Path, record: dict) -> None:
    _write_atomically(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def _write_atomically(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
