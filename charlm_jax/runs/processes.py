"""One job in several processes, on one machine or many: all take the same steps, and only the first writes.

Files, clocks and signals may differ between processes. What the job does with one goes through `agreed` or
`everyones`, after which all know and do the same; everything else is a function of what all were given.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from charlm_jax.errors import ABORTED, DivergedError, InputError, Preempted, require
from charlm_jax.runs.command_line import Watcher, exit_codes, tell
from charlm_jax.runs.devices import use_every_core

_AGREED = "all processes of the job know of this"  # a note on errors that all processes raise
_LAST = 3  # seconds that a failing first process stays: JAX ends the others with it, which may be failing alike
_START = 45  # seconds in which all processes of a job must be there: if one has died, the others end within a minute
_HEARTBEAT = 30  # seconds without a heartbeat from a machine after which the others end
_WAY_OUT = "check that all started with one address and numbers from 0, and that the first one's port can be reached"
_T = TypeVar("_T")
_Tree = TypeVar("_Tree")


@contextmanager
def joined(distributed: str | None) -> Iterator[None]:
    """Join the other processes of a job for the block, if it has several; enter it before JAX is used.

    All but the first are silent, unless they fail on their own. A process that fails exits at once with the code of its
    error. A process that finds another gone exits with 1, which is below every code that says why, or, if it waits for
    the other in vain, with 134, as JAX ends it. What is saved stays.

    Args:
        distributed: where the others are: HOST:PORT/NUMBER/COUNT, with the address of the first process, this one's
            number from 0, and how many there are; `auto`, as JAX finds out on a TPU pod or under MPI; None, as Slurm
            says if it has started several, and otherwise this process is alone.

    Raises:
        InputError: `distributed` is none of these, or the processes cannot form one job.
    """
    place = _place(distributed)
    if place is None:
        yield
        return
    use_every_core()
    # Its handler would take SIGTERM, which `stop_requests` handles.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _gathering():
            jax.distributed.initialize(
                **place,
                initialization_timeout=2 * _START,
                heartbeat_timeout_seconds=_HEARTBEAT,
                shutdown_timeout_seconds=_START,
            )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the processes of this job did not find one another ({str(error).splitlines()[0]}); {_WAY_OUT}"
        ) from error
    _give_stdout_to_python()
    Watcher.muted = not is_first()
    try:
        _require_equal_shares()
        require_alike({"the COUNT of --distributed": place.get("num_processes")})  # all meet here
        yield
    except BaseException as error:
        if isinstance(error, DivergedError | Preempted) or _AGREED in getattr(error, "__notes__", ()):
            _part()
            raise
        _leave(error)
    _part()


@contextmanager
def _gathering() -> Iterator[None]:
    """Exit with one sentence if the others are not all there in time; JAX would exit with a C++ stack trace."""

    def give_up() -> None:
        tell(
            f"error: the processes of this job did not all start within {_START} seconds. If one ended, start all "
            f"again to resume from the last saved state; else {_WAY_OUT}"
        )
        os._exit(ABORTED)

    timer = threading.Timer(_START, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _require_equal_shares() -> None:
    """Raise an InputError unless all processes have equally many devices."""
    shares = Counter(device.process_index for device in jax.devices())
    if len(set(shares.values())) > 1:
        raise InputError(
            f"the processes of this job have different numbers of devices ({', '.join(map(str, shares.values()))}); "
            "give each as many, on CPUs with JAX_NUM_CPU_DEVICES"
        )


def meet(mesh: Mesh) -> None:
    """Connect all groups of a mesh's devices that will exchange anything, while all processes are here.

    A group's first exchange fails if one process comes to it half a minute after another (Gloo's limit), as a process
    may that compiles or reads a file for longer; later exchanges wait.
    """
    if jax.distributed.is_initialized():
        for axes in [*mesh.axis_names, mesh.axis_names]:
            jax.block_until_ready(meeting(mesh, axes)())


def meeting(mesh: Mesh, axes: str | tuple[str, ...]) -> jax.stages.Wrapped:
    """Return a compiled exchange between the devices along some axes of a mesh."""

    def exchange() -> jax.Array:
        # Of what differs between devices: a sum of constants is computed without an exchange.
        return jax.lax.psum(jax.lax.axis_index(mesh.axis_names).astype(jnp.float32), axes)

    return jax.jit(jax.shard_map(exchange, mesh=mesh, in_specs=(), out_specs=PartitionSpec(), check_vma=False))


def _part() -> None:
    """Wait for the others, and leave the job."""
    try:
        jax.distributed.shutdown()
    except RuntimeError as error:
        tell(f"another process of this job did not finish: {str(error).splitlines()[0]}")


def _place(distributed: str | None) -> dict[str, Any] | None:
    """Return the arguments for `jax.distributed.initialize`; None for a process that is alone."""
    if distributed is None:
        return _slurm_gpus() if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 else None
    if distributed == "auto":
        return {}
    address, *numbers = distributed.split("/")
    host, _, port = address.rpartition(":")
    sound = len(numbers) == 2 and all(map(str.isdecimal, [port, *numbers])) and int(numbers[0]) < int(numbers[1])
    expected = "auto, or HOST:PORT/NUMBER/COUNT with numbers from 0"
    require("--distributed", distributed, sound and host != "" and 0 < int(port) < 2**16, expected)
    number, count = map(int, numbers)
    if count == 1:
        return None
    # The first process listens on all of its machine's addresses, unless its address is a local one.
    own = {"coordinator_bind_address": address} if address.startswith(("127.", "localhost:", "[::1]:")) else {}
    return {"coordinator_address": address, "process_id": number, "num_processes": count, **own}


def _slurm_gpus() -> dict[str, Any]:
    """Return arguments that claim the GPUs that only this process has; JAX would take just the one with its number."""
    visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0] == "1"
    return {"local_device_ids": list(range(len(visible)))} if len(visible) == 1 or (visible and alone) else {}


def _give_stdout_to_python() -> None:
    """Keep stdout for the first process's results; what libraries write there goes to stderr."""
    sys.stdout.flush()
    if is_first():
        sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="backslashreplace")
    else:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (for the rest of the process)
    os.dup2(2, 1)


def _leave(error: BaseException) -> NoReturn:
    """Report an error and exit at once: the others wait for this process, and see that it is gone."""
    Watcher.muted = False
    print(f"process {jax.process_index()} of {jax.process_count()}: ", end="", file=Watcher())
    code = 1
    try:
        with exit_codes():
            if not _is_loss(error):
                raise error
            tell("another process of this job is gone; run the same commands to resume from the last saved state")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    if is_first():
        time.sleep(_LAST)
    os._exit(code)


def _is_loss(error: BaseException) -> bool:
    """Return whether an error is that of a collective in which another process was missing."""
    words = "gloo", "nccl", "connection closed", "connection reset"
    return isinstance(error, RuntimeError | ValueError) and any(word in str(error).lower() for word in words)


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def everyones(value: _T) -> list[_T]:
    """Return the values of all processes, in their order; all must call this. A value must be one that JSON holds."""
    if not jax.distributed.is_initialized():
        return [value]
    message = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int64(len(message))).tolist()
    room = 1 << (max(lengths) - 1).bit_length()  # a power of two, as each length compiles a program of its own
    rows = multihost_utils.process_allgather(np.pad(message, (0, room - len(message))))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def agreed(find: Callable[[], _T]) -> _T:
    """Call `find` in the first process alone; return its result, or raise its error, in all processes.

    The result must be one that JSON holds. In the others, an error that a user can fix is an `InputError`, and any
    other a `RuntimeError`.
    """
    if not jax.distributed.is_initialized():
        return find()
    error, told = None, dict[str, Any]()
    if is_first():
        try:
            told = {"found": find()}
        except Exception as problem:
            error, told = problem, {"mendable": isinstance(problem, InputError | OSError), "words": f"{problem}"}
    told = everyones(told)[0]
    if "found" not in told:
        # The first process raises the error itself, with its traceback.
        known = error or (InputError if told["mendable"] else RuntimeError)(told["words"])
        known.add_note(_AGREED)
        raise known
    return told["found"]


def first_ones(tree: _Tree | None, like: _Tree) -> _Tree:
    """Return the first process's arrays in all processes, on one device; `like` has their shapes and types."""
    if not jax.distributed.is_initialized():
        return cast(_Tree, tree)
    own = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like) if tree is None else tree
    told = multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, own))
    return jax.tree.map(lambda leaf, wanted: jnp.array(leaf, wanted.dtype), told, like)


def require_alike(facts: Mapping[str, object]) -> None:
    """Raise an InputError in all processes if facts differ between them; it says which differ, and where."""
    first, *others = everyones(dict(facts))
    for number, other in enumerate(others, start=1):
        differing = [name for name in first if first[name] != other.get(name)]
        if differing:
            what = "; ".join(f"{name} {first[name]} in process 0, {other.get(name)} in {number}" for name in differing)
            error = InputError(f"the processes of this job differ: {what}. Start the same command and code on all")
            error.add_note(_AGREED)
            raise error
