"""Training states on disk: one file per state, written atomically and verified whenever it is read.

A state is a safetensors file (reading it runs no code) named for its step. Its arrays are named by their paths in a
`TrainingState`. Its metadata hold the SHA-256 of each array with its path, type and shape, and the identity of the run.
A file that disagrees with its metadata, or with what the run's configuration calls for, is not restored.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, PyTree
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from charlm_jax.errors import DamagedError, InputError
from charlm_jax.learning.training import TrainingState
from charlm_jax.model.network import Model, Parameters
from charlm_jax.runs.files import is_temporary, write_atomically


class Snapshot(NamedTuple):
    """The part of a `TrainingState` that inference needs, whatever the optimizer was.

    Attributes:
        step: updates so far.
        model: after them.
    """

    step: Int32[Array, ""]
    model: Model


_State = TypeVar("_State", TrainingState, Snapshot)
SUFFIX = ".safetensors"
"""The suffix of a state's file, which is named for its step."""
_PATIENCE = 60  # seconds to wait for files that are listed and gone
QUARANTINED = ".damaged"
"""Added to the name of a damaged file that is set aside."""
Spoiled = Callable[[Path, DamagedError], None]


def state_files(folder: Path) -> dict[int, Path]:
    """Return a folder's state files by step, the newest last; none if there is no such folder."""
    try:
        inside = [path.name for path in folder.iterdir()]  # `glob` takes a folder that cannot be read for an empty one
    except (FileNotFoundError, NotADirectoryError):
        return {}
    names = {name.removesuffix(SUFFIX): folder / name for name in inside if name.endswith(SUFFIX)}
    steps = sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == str(int(name)))
    return {step: names[str(step)] for step in steps}


def save_state(folder: Path, state: TrainingState | Snapshot, identity: str) -> None:
    """Write a state, replacing one of the same step; it is on disk on return.

    Args:
        folder: created if missing.
        state: complete on this process's devices; training cannot resume from a `Snapshot`.
        identity: the run's; see `RunDirectory.identity`.

    Raises:
        OSError: the disk is full or cannot be written; what was there is intact.
    """
    arrays = {name: np.require(leaf, requirements="C") for name, leaf in _named(state).items()}
    digests = {name: _digest(name, array) for name, array in arrays.items()}
    folder.mkdir(exist_ok=True)
    metadata = {"run": identity, "sha256": json.dumps(digests)}
    write_atomically(folder / f"{int(state.step)}{SUFFIX}", save(arrays, metadata))


def read_state(path: Path, like: _State, identity: str) -> _State:
    """Read a state, or a part of one, and check every array's digest, type, shape and path.

    Args:
        path: the file.
        like: the structure, shapes and types to return: a `TrainingState`, or a `Snapshot` of it.
        identity: the run's.

    Raises:
        DamagedError: the file is not what `save_state` wrote for this run; the message says where.
        OSError: it is gone or cannot be read now, which does not mean that it is damaged.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise DamagedError("it is a link, a folder or a device, not a regular file")
    with path.open("rb"):  # safetensors takes every file that it cannot open for a missing one
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        digests = dict(json.loads(metadata["sha256"]))
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"it cannot be read ({type(error).__name__}: {error})") from error
    if metadata.get("run") != identity:
        raise DamagedError("it is from another run, or the run's config.json or provenance.json has changed")
    wanted = _named(like)
    if not arrays.keys() == digests.keys() >= wanted.keys():
        odd = min(arrays.keys() ^ digests.keys() or wanted.keys() - digests.keys(), key=str)
        raise DamagedError(f"array {odd!r} is missing or unexpected")
    for name, array in arrays.items():
        if _digest(name, array) != digests[name]:
            raise DamagedError(f"array {name!r} does not have the SHA-256 that it was saved with")
    for name, leaf in wanted.items():
        there, here = (f"{array.dtype}{array.shape}" for array in (arrays[name], leaf))
        if there != here:
            raise DamagedError(f"array {name!r} is {there}, not {here}")
    # Copies: on a CPU a device array may be a view of NumPy's memory, and each state is overwritten by the next.
    state = jax.tree.unflatten(jax.tree.structure(like), [jnp.array(arrays[name]) for name in wanted])
    if path.name != f"{int(state.step)}{SUFFIX}":
        raise DamagedError(f"it holds step {int(state.step)}")
    return state


def newest_state(folders: Sequence[Path], like: _State, identity: str, spoiled: Spoiled) -> _State | None:
    """Return the newest intact state in some folders, on one device, or None if none was ever saved.

    Args:
        folders: where to look; of states of the same step, the first folder's is taken.
        like: see `read_state`.
        identity: the run's.
        spoiled: called with every newer file that is damaged, once an intact one is found.

    Raises:
        InputError: states were saved, but none is intact.
        OSError: one cannot be read now.
    """
    waited = 0
    while True:
        try:
            return _newest_state(folders, like, identity, spoiled)
        except FileNotFoundError:
            # The training process has removed it, and written a newer one; a network's file system may list removed
            # files for a while.
            if waited == _PATIENCE:
                raise
        time.sleep(1)
        waited += 1


def _newest_state(folders: Sequence[Path], like: _State, identity: str, spoiled: Spoiled) -> _State | None:
    damaged: list[tuple[Path, DamagedError]] = []
    files = [(step, path) for folder in folders for step, path in state_files(folder).items()]
    for _, path in sorted(files, key=lambda file: file[0], reverse=True):
        try:
            state = read_state(path, like, identity)
        except DamagedError as error:
            damaged.append((path, error))
        else:
            for spoiled_path, error in damaged:
                spoiled(spoiled_path, error)
            return state
    if any(not is_temporary(path) for folder in folders if folder.is_dir() for path in folder.iterdir()):
        why = f" ({damaged[0][0].name}: {damaged[0][1]})" if damaged else ""
        places = " or ".join(repr(str(folder)) for folder in folders)
        raise InputError(
            f"no intact state is left in {places}{why}; restore a copy, or start again in another directory"
        )
    return None


def quarantine(path: Path) -> Path:
    """Rename a damaged file so that it is neither used nor lost; return its new path."""
    new, number = path.with_name(path.name + QUARANTINED), 1
    while new.exists() or new.is_symlink():
        number += 1
        new = path.with_name(f"{path.name}{QUARANTINED}-{number}")
    return path.rename(new)


def remove_states(folder: Path, steps: Iterable[int]) -> None:
    """Remove the states of some steps, if present."""
    files = state_files(folder)
    for step in steps:
        if step in files and not files[step].is_dir():
            files[step].unlink(missing_ok=True)


def outdated(steps: Iterable[int], steps_per_epoch: int) -> list[int]:
    """Return the steps whose states need not be kept: all but the newest two and the ends of epochs 1, 2, 4, 8, ..."""

    def marks(step: int) -> bool:
        epoch, rest = divmod(step, steps_per_epoch)
        return rest == 0 and epoch.bit_count() == 1

    return [step for step in sorted(steps)[:-2] if not marks(step)]


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def fingerprint(parameters: Parameters) -> str:
    """Return the SHA-256 of a model's arrays with their paths, types and shapes, in hexadecimal."""
    digests = [_digest(name, np.asarray(leaf)) for name, leaf in _named(parameters).items()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest(name: str, array: np.ndarray) -> str:
    """Return the SHA-256 of an array's path, type, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(f"{name} {array.dtype} {array.shape}\n".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()
