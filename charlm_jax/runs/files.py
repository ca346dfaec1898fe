"""Atomic writes, folder locks, and the reading and writing of JSON, pictures and tables."""

import csv
import fcntl
import io
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charlm_jax.errors import InputError
from charlm_jax.runs.command_line import tell

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # slow to load, and most runs draw nothing

LOCK = "lock"
"""The name of a folder's lock file, which says who is writing there."""


def is_held(folder: Path) -> bool:
    """Return whether a process holds a folder, or may hold it where the file system has no locks; see `hold_folder`."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # held, or on a file system without locks, where nobody can tell
        return True
    return False


@contextmanager
def hold_folder(what: str, folder: Path, *inside: Path) -> Iterator[None]:
    """Lock a folder for this process, and remove what dead processes left unfinished there or in the folders `inside`.

    The lock ends with the process, however that ends, so it is never stale; its file names the process.

    Args:
        what: what a message calls the folder, such as its flag.
        folder: to lock.
        inside: folders in it.

    Raises:
        InputError: another process holds it; the message names that process.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{what} {str(folder)!r} is being written by {file.read() or 'another process'}; "
                "wait until it ends, stop it, or name another directory"
            ) from error
        except OSError as error:  # a file system without locks
            tell(f"{str(folder)!r} cannot be locked ({error.strerror}): ensure nobody else writes there")
        for path in (path for each in (folder, *inside) for path in each.glob(".*")):
            if is_temporary(path) and path.is_file() and not path.is_symlink() and not _is_being_written(path):
                path.unlink(missing_ok=True)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: it is there whole or not at all, whatever happens, and on disk on return."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_names(path.parent)


def sync_names(folder: Path) -> None:
    """Flush the names of a folder's files to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Return whether a name is that of an unfinished `write_atomically`."""
    return re.fullmatch(r"\..+\.\d+\.unfinished", path.name) is not None


def _is_being_written(temporary: Path) -> bool:
    """Return whether another process of this machine, with the number in the name, exists."""
    number = int(temporary.suffixes[-2].removeprefix("."))
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return number != os.getpid()


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error  # without the path, which the message names
        raise InputError(
            f"{str(path)!r} cannot be read: {why}; restore it from a copy, or make its folder again"
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"{str(path)!r} holds no JSON object; restore it from a copy, or make its folder again")
    return record


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON object as a file, replacing it if it exists."""
    write_atomically(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a picture in the format of its file's ending; the same picture gives the same bytes."""
    from charlm_jax.analysis.figures import as_picture

    write_atomically(path, as_picture(figure, path.suffix.removeprefix(".")))


def save_pictures(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Write a picture as SVG and PNG into a folder, created if missing; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
    for path in paths:
        save_picture(figure, path)
    return paths


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], remarks: Sequence[str] = ()) -> None:
    """Write comma-separated values, preceded by remarks, each on a line that starts with #."""
    text = io.StringIO("".join(f"# {remark}\n" for remark in remarks))
    text.seek(0, io.SEEK_END)
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())
