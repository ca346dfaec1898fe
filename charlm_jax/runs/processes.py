"""One job in several processes, on one machine or many: all take the same steps, and the first alone writes.

A file, a clock or a signal is not the same to all of them. What the job does with one goes through `agreed` or
`everyones`, after which all know the same and do the same; everything else is a function of what they were given.
"""

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from charlm_jax.errors import DivergedError, InputError, Preempted, require
from charlm_jax.runs.command_line import Watcher, exit_codes
from charlm_jax.runs.devices import use_every_core

_AGREED = "all processes of the job know of this"  # noted on an error
_START = 60  # seconds in which all processes of a job must be there
_HEARTBEAT = 30  # seconds without a sign of life from a machine, after which the others end
_T = TypeVar("_T")


@contextmanager
def joined(distributed: str | None) -> Iterator[None]:
    """Be one of a job's processes within the block, if it has several; to be entered before JAX is used.

    All but the first are silent, unless they fail on their own. A process that does ends at once with its exit code,
    and so do, with `PREEMPTED`, those that find another gone: what is saved stays, and all may be started again.

    Args:
        distributed: where the others are: HOST:PORT/NUMBER/COUNT, with the address of the first process, this one's
            number from 0, and how many there are; `auto`, as JAX finds out on a TPU pod or under MPI; None, as Slurm
            says where it has started several, and else this process is alone.

    Raises:
        InputError: `distributed` is none of these, or the others do not come.
    """
    place = _place(distributed)
    if place is None:
        yield
        return
    use_every_core()
    # Its handler would take SIGTERM, for which there is `stop_requests`.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=_START,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_START,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the processes of this job did not find one another ({str(error).splitlines()[0]}); see that all are "
            "started, with one address and numbers from 0, and that the first one's port can be reached"
        ) from error
    _give_stdout_to_python()
    Watcher.muted = not is_first()
    try:
        yield
        jax.distributed.shutdown()
    except BaseException as error:
        if isinstance(error, DivergedError | Preempted) or _AGREED in getattr(error, "__notes__", ()):
            jax.distributed.shutdown()
            raise
        _leave(error)


def _place(distributed: str | None) -> dict | None:
    """Return what `jax.distributed.initialize` is to be told; None for a process that is alone."""
    if distributed is None:
        return {} if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 else None
    if distributed == "auto":
        return {}
    address, *numbers = distributed.split("/")
    sound = len(numbers) == 2 and all(map(str.isdecimal, numbers)) and int(numbers[0]) < int(numbers[1])
    expected = "auto, or HOST:PORT/NUMBER/COUNT with numbers from 0"
    require("--distributed", distributed, sound and address.rpartition(":")[2].isdecimal(), expected)
    number, count = map(int, numbers)
    if count == 1:
        return None
    # The first one listens on all of its machine's addresses, unless nobody is to come from outside.
    own = {"coordinator_bind_address": address} if address.startswith(("127.", "localhost:", "[::1]:")) else {}
    return {"coordinator_address": address, "process_id": number, "num_processes": count, **own}


def _give_stdout_to_python() -> None:
    """Leave stdout to the first process's results: what libraries write there goes to stderr."""
    sys.stdout.flush()
    if is_first():
        sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="backslashreplace")
    else:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (for the rest of the process)
    os.dup2(2, 1)


def _leave(error: BaseException) -> NoReturn:
    """End at once: the others wait for this process, and see that it is gone."""
    Watcher.muted = False
    print(f"process {jax.process_index()} of {jax.process_count()}: ", end="", file=Watcher())
    code = 1
    try:
        with exit_codes():
            if _is_loss(error):
                raise Preempted(
                    "another process of this job is gone; the last saved state stays, run the same commands to go on"
                ) from error
            raise error
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def _is_loss(error: BaseException) -> bool:
    """Say whether an error is that of a collective in which another process was missing."""
    words = "gloo", "connection closed", "connection reset", "unavailable"
    return not isinstance(error, InputError) and any(word in str(error).lower() for word in words)


def is_first() -> bool:
    """Say whether this process is the one that writes."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def everyones(value: _T) -> list[_T]:
    """Return the values of all processes, the first one's first; all processes must ask."""
    if not jax.distributed.is_initialized():
        return [value]
    # Pickled, but only between processes that run the same command.
    message = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.int64(len(message))).tolist()
    room = 1 << (max(lengths) - 1).bit_length()  # a power of two, as each length would be a program of its own
    rows = multihost_utils.process_allgather(np.pad(message, (0, room - len(message))))
    return [pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def agreed(find: Callable[[], _T]) -> _T:
    """Return what the first process finds, or raise what it raises, in all; the others do not look."""
    if not jax.distributed.is_initialized():
        return find()
    found, error = None, None
    if is_first():
        try:
            found = find()
        except Exception as problem:
            error = problem
    found, told = everyones((found, error))[0]
    if told is not None:
        failure = error or told  # in the first process as it happened, with its traceback
        failure.add_note(_AGREED)
        raise failure
    return cast(_T, found)


def require_alike(facts: Mapping[str, object]) -> None:
    """Raise an InputError, in all processes, where facts are not the same in all; says which, and where."""
    first, *others = everyones(dict(facts))
    for number, other in enumerate(others, start=1):
        differing = [name for name in first if first[name] != other.get(name)]
        if differing:
            what = "; ".join(f"{name} {first[name]} in process 0, {other.get(name)} in {number}" for name in differing)
            error = InputError(f"the processes of this job differ: {what}. Start the same command and code on all")
            error.add_note(_AGREED)
            raise error
