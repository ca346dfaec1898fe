"""Signals to separate processes: what a request to stop does, and what ends a process at once."""

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import hashlib, sys, time
from charlm_jax.runs.stop import stop_requests
with stop_requests(grace=float(sys.argv[1])) as stop_requested:
    print("ready", flush=True)
    if sys.argv[2] == "busy":  # in one long call, as a compilation is
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    while not stop_requested():
        time.sleep(0.001)
    print("noted", flush=True)
    time.sleep(float(sys.argv[3]))
print("done", flush=True)
"""


def stopped(number, grace, work, lasting, again=None):
    """Signal the script; return its output and errors, its exit code, and the seconds from the signal to its end."""
    command = [sys.executable, "-c", SCRIPT, str(grace), work, str(lasting)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        started = time.monotonic()
        process.send_signal(number)
        if again is not None:
            assert process.stdout.readline() == "noted\n"
            process.send_signal(again)
        out, errors = process.communicate(timeout=60)
        return out, errors, process.returncode, time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number):
    out, errors, code, _ = stopped(number, 60, "idle", 0)
    assert (out, code) == ("noted\ndone\n", 0)
    assert "Ctrl-C (SIGINT) stops at once" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_after_the_first_signal_leaves_at_once(number):
    out, errors, code, seconds = stopped(number, 600, "idle", 600, again=signal.SIGINT)
    assert (out, code) == ("", 130)
    assert "stopped at once: what was saved is kept, and the same command resumes if it names the dir" in errors
    assert seconds < 30


def test_schedulers_may_say_it_twice():
    """Slurm does so at a time limit, within milliseconds."""
    out, _, code, _ = stopped(signal.SIGTERM, 60, "idle", 0.2, again=signal.SIGTERM)
    assert (out, code) == ("done\n", 0)


@pytest.mark.parametrize("work", ["idle", "busy"])
def test_the_grace_has_an_end(work):
    """Whatever is under way, even if the main thread does not see the signal."""
    out, errors, code, seconds = stopped(signal.SIGTERM, 0.5, work, 600)
    assert code == 75
    assert ("noted" in out) == (work == "idle")
    assert "what was saved is kept" in errors
    assert "; if nothing was, it starts again" in errors
    assert 0.5 <= seconds < 30


def test_another_signal_is_no_stop_and_a_reader_that_has_left_keeps_none():
    """A signal with the user's own handler also wakes the thread, whose messages may have no reader."""
    script = SCRIPT.replace("with stop", "import signal; signal.signal(signal.SIGUSR1, lambda *_: None)\nwith stop")
    command = [sys.executable, "-c", script, "600", "idle", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.stderr.close()
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "noted\n"
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_what_was_there_before_is_there_again():
    def handler(number, frame):
        raise AssertionError

    from charlm_jax.runs.stop import stop_requests

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with stop_requests() as stop_requested:
            assert signal.getsignal(signal.SIGTERM) is not handler
            assert not stop_requested()
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, before)
