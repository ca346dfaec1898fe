"""Runs that can be killed: the real command, in processes forked from one that has already loaded everything."""

import contextlib
import ctypes
import dataclasses
import importlib
import io
import itertools
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from unittest import mock

from safetensors.numpy import load

from charlm_jax.runs.checkpoints import state_files
from charlm_jax.runs.directory import RunDirectory
from charlm_jax.runs.records import read_records

PRELOADED = ["charlm_jax.runs.train", "charlm_jax.analysis.baselines", "experiments.text_generation", "faults"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, or minus the number of the signal that killed it, and what it wrote."""

    code: int
    output: str
    errors: str


class Command:
    """text_generation, or another command, in its own process; its output goes to files whose names end in `name`."""

    def __init__(self, flags, folder, *, name="", **limits):
        self.out, self.errors = folder / f"stdout{name}", folder / f"stderr{name}"
        words = [str(flag) for flag in flags]
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=_run, args=(words, str(self.out), str(self.errors)), kwargs=limits)
        self.process.start()

    @property
    def pid(self):
        return self.process.pid

    def send(self, number):
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def wait(self, seconds=120.0):
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s: {self.errors.read_text()}")
        return Outcome(self.process.exitcode, self.out.read_text(), self.errors.read_text())

    def wait_for(self, path, seconds=60.0):
        """Wait until a path exists."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end, self.errors.read_text()
            assert self.process.exitcode is None, self.errors.read_text()
            time.sleep(0.005)


def free_address():
    """Return an address on this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def begin_together(flags, folder, count, *others, **limits):
    """Start one job in several processes; `others` are additional flags of all but the first.

    `limits` are those of a `Command`: a value for all processes, or a dictionary from a process's number to its value.
    """
    address = free_address()
    return [
        Command(
            [*flags, *(others if number else ()), "--distributed", f"{address}/{number}/{count}"],
            folder,
            name=str(number),
            **{name: value.get(number) if isinstance(value, dict) else value for name, value in limits.items()},
        )
        for number in range(count)
    ]


def _run(
    flags,
    out,
    errors,
    *,
    experiment="text_generation",
    file_size=None,
    privileged=True,
    changes=None,
    devices=None,
    patience=None,
):
    """Become the command, with its output redirected to files.

    Args:
        flags: the command line.
        out: file for stdout.
        errors: file for stderr.
        experiment: the command's name.
        file_size: the most bytes that a file may have.
        privileged: False takes from root the capabilities that let it write where the owner may not.
        changes: how many changes to a run's files it may make; it is killed before the next one.
        devices: number of CPU devices; None is one per core.
        patience: seconds within which the job's other processes must start; None is the usual number.
    """
    for stream, path in ((1, out), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), stream)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w"), write_through=True) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if changes is not None:
        _die_after(changes)
    if not privileged and os.geteuid() == 0:
        # capset(2), version 3: no effective, permitted or inherited capability.
        assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()) == 0
    import jax

    from charlm_jax.runs import processes
    from charlm_jax.runs.command_line import exit_codes

    main = importlib.import_module(f"experiments.{experiment}").main
    _keep_what_is_compiled()
    if patience is not None:
        processes._START = patience
    if devices is not None:
        jax.config.update("jax_num_cpu_devices", devices)

    with exit_codes():
        main(flags)


def _keep_what_is_compiled():
    """Make every process of a job cache its programs: JAX caches only the first's, which on CPUs fit no other."""
    from jax._src import compiler, distributed

    if not hasattr(compiler, "_cache_write"):
        return  # a different version of JAX: the tests just take longer

    keep = compiler._cache_write

    def keep_as_the_first(*arguments):
        with mock.patch.object(distributed.global_state, "process_id", 0):
            keep(*arguments)

    compiler._cache_write = keep_as_the_first


def _die_after(changes):
    """Kill this process after `changes` changes to a run: files opened to write, renamed or removed, folders made."""
    made = itertools.count()

    def before(event, arguments):
        if event not in ("open", "os.mkdir", "os.rename", "os.remove") or "/run/" not in f"{arguments[0]}/":
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if next(made) == changes:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before)


def result(path: Path):
    """Return everything a run must reproduce: its newest and best states, its records without timings, its texts."""
    run = RunDirectory(path)
    states = [load(list(state_files(folder).values())[-1].read_bytes()) for folder in (run.checkpoints, run.best)]
    metrics = read_records(run.metrics)
    for record in metrics:
        record.pop("seconds", None)
        record.pop("characters_per_second", None)
    texts = json.dumps([metrics, read_records(run.samples)])
    return texts, [{name: array.tobytes() for name, array in sorted(state.items())} for state in states]
