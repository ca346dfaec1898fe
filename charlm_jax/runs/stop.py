"""Clean stops: the first signal requests one; Ctrl-C after it, or the end of the grace period, exits at once."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

from charlm_jax.errors import INTERRUPTED, PREEMPTED

GRACE = 8.0  # seconds from the first signal to the exit, whatever is under way; schedulers kill after 10 or more
_SIGNALS = signal.SIGTERM, signal.SIGINT

StopRequested = Callable[[], bool]
_STAYS = (
    "what was saved is kept, and the same command resumes if it names the directory, as with --run-dir; if "
    "nothing was, it starts again"
)


@contextmanager
def stop_requests(grace: float = GRACE) -> Iterator[StopRequested]:
    """Turn the first SIGTERM or SIGINT within the block into a request to stop, which the yielded function reports.

    A separate thread reads the signals, so that a long compilation or evaluation cannot delay them. If the block has
    not ended `grace` seconds after the request, the process exits with 75; what is saved stays. A SIGINT after the
    first signal makes it exit with 130 at once; a SIGTERM does not, as schedulers send several. Call it on the main
    thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    requested = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reader, requested, grace), name="stop", daemon=True)
    wake_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # The handlers do nothing: Python writes a signal's number to the pipe whatever the main thread is doing.
    handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    watcher.start()
    try:
        yield requested.is_set
    finally:
        signal.set_wakeup_fd(wake_before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _watch(reader: int, requested: threading.Event, grace: float) -> None:
    if not _signalled(reader, _SIGNALS, None):
        return  # the block has ended
    requested.set()
    _say("\nstopping as soon as nothing would be lost; Ctrl-C (SIGINT) stops at once")
    again = _signalled(reader, (signal.SIGINT,), time.monotonic() + grace)
    if again is None:
        _say(f"not done {grace:g} seconds after the signal: {_STAYS}")
        os._exit(PREEMPTED)
    if again:
        _say(f"stopped at once: {_STAYS}")
        os._exit(INTERRUPTED)


def _signalled(reader: int, numbers: Collection[int], end: float | None) -> bool | None:
    """Wait for one of `numbers`, ignoring other signals; return False at the block's end, and None when time is up."""
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            return None
        number = os.read(reader, 1)
        if not number or number[0] in numbers:
            return bool(number)


def _say(line: str) -> None:
    """Write a line to stderr, not with print, which the main thread may be in the middle of."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
