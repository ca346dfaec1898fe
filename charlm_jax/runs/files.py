"""Files that are there whole or not at all, and how they are read again."""

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
"""The file in a folder that says who writes there."""


def is_held(folder: Path) -> bool:
    """Say whether a process holds a folder; see `hold_folder`."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextmanager
def hold_folder(flag: str, folder: Path, *inside: Path) -> Iterator[None]:
    """Hold a folder for this process alone, and remove what one that died was writing there, or in those `inside`.

    The lock goes with the process, however it ends, so it is never stale; its file says whose it is.

    Raises:
        InputError: another process holds it; says which, and the flag that names it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with os.fdopen(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{flag} {str(folder)!r} is being written by {file.read() or 'another process'}; "
                "wait until it ends, stop it, or name another directory"
            ) from error
        except OSError as error:  # a file system without locks
            tell(f"{str(folder)!r} cannot be locked ({error.strerror}): see that nobody else writes there")
        for path in (path for each in (folder, *inside) for path in each.glob(".*")):
            if is_temporary(path) and path.is_file() and not path.is_symlink():
                path.unlink()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, whatever happens in between; on the disk when this returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
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
    """Put the names of a folder's files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Say whether a name is one that `write_atomically` gives to what is not whole yet."""
    return re.fullmatch(r"\..+\.\d+", path.name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error  # which does not say the path again
        raise InputError(
            f"{str(path)!r} cannot be read: {why}; restore it from a copy, or make all of it again"
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"{str(path)!r} holds no JSON object; restore it from a copy, or make all of it again")
    return record


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Replace a file by a JSON object."""
    write_atomically(path, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a picture as its file's ending says; the same picture is the same file."""
    from charlm_jax.analysis.figures import as_picture

    write_atomically(path, as_picture(figure, path.suffix.removeprefix(".")))


def save_pictures(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Write a picture into a folder, which is made, as SVG and PNG; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
    for path in paths:
        save_picture(figure, path)
    return paths


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]], remarks: Sequence[str] = ()) -> None:
    """Write comma-separated values, remarks first, each after a #."""
    text = io.StringIO("".join(f"# {remark}\n" for remark in remarks))
    text.seek(0, io.SEEK_END)
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_atomically(path, text.getvalue().encode())
