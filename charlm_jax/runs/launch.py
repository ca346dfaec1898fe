"""Tasks as jobs of their own, on this machine or under Slurm, through submitit: it submits, Slurm schedules."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from charlm_jax.choices import Launcher
from charlm_jax.errors import PREEMPTED, DivergedError, InputError, Preempted, optional, require
from charlm_jax.runs.command_line import mendable, tell
from charlm_jax.runs.files import hold_folder, is_held
from charlm_jax.runs.stop import GRACE, StopRequested, stop_requests

_NOTICE = 120  # seconds before its time limit that Slurm tells a job to stop
# Follows a job's command in its script: a job that was stopped, and has saved, goes back into the queue.
# It is named by its array's ID and its index, as the ID of an array's last job is also that of the whole array.
_REQUEUE = (
    f'code=$?; if [ "$code" = {PREEMPTED} ]; then scontrol requeue "${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}'
    '${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"; fi; exit "$code"'
)
_GPUS = Path("/proc/driver/nvidia/gpus")  # one folder per GPU that the driver knows
_CORES = 'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"'  # srun no longer inherits it from its job
_POLL = 1.0  # seconds between checks of the jobs
_ASK = 10.0  # seconds between queries to Slurm, whose users are asked not to query it more often
_ASKED = 7  # queries that find neither a job nor its result before it counts as lost: files lag a minute
_Item = TypeVar("_Item")
Ending = tuple[Literal["done", "diverged", "failed"], str]
"""How a task ended, and why."""


def attempt(task: Callable[[_Item, StopRequested], None], item: _Item, stop_requested: StopRequested) -> Ending:
    """Run a task on an item and return how it ended; preemption and bugs of ours propagate."""
    import jax

    try:
        task(item, stop_requested)
    except DivergedError as error:
        return "diverged", str(error)
    except Exception as error:
        sentence = mendable(error)
        if sentence is None or jax.distributed.is_initialized():  # the other processes may not know of it
            raise
        return "failed", sentence
    return "done", ""


def launch(
    task: Callable[[_Item, StopRequested], None],
    items: Mapping[str, _Item],
    folder: Path,
    launcher: Launcher,
    *,
    at_once: int | None,
    options: Sequence[str],
    stop_requested: StopRequested,
) -> dict[str, Ending]:
    """Run a task on each of some items, each in a job of its own, and wait for all.

    A job that is told to stop, by Slurm before its time limit or by anyone else, saves; under Slurm it is requeued.

    Args:
        task: a module's function of an item and `stop_requested`; it raises `Preempted` when it has stopped.
        items: the items, by the names to print.
        folder: for the jobs' scripts and logs. Jobs on this machine stop when this process, which holds a folder of its
            own in it (see `hold_folder`), ends.
        launcher: `local`, processes on this machine, or `slurm`, one array.
        at_once: how many jobs may run at once; None is all under Slurm, and locally one per GPU, or two on CPUs.
        options: of `sbatch`, as name=value, such as partition=gpu and time=60 (minutes).
        stop_requested: whether to stop waiting: jobs on this machine are then stopped, and Slurm's keep running.

    Returns:
        How each task ended, by its item's name.

    Raises:
        InputError: submitit or Slurm is missing, Slurm refuses the options or still has jobs of this folder, or more
            local jobs are to run at once than there are GPUs.
        Preempted: a stop was requested.
    """
    with optional(f"--launcher {launcher} needs submitit", "cluster"):
        import submitit
    if not items:
        return {}
    own = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"  # with the time, as process IDs are reused
    waiting, running, endings = dict(items), {}, dict[str, Ending]()
    slots: list[str | None] = _slots(at_once) if launcher == "local" else []
    queue, holding = None, nullcontext()
    taken: dict[str, str | None] = {}
    try:
        executor = submitit.AutoExecutor(folder=own, cluster=launcher)
        if launcher == "slurm":
            chosen = {name: value or True for name, _, value in (option.partition("=") for option in options)}
            name = re.sub(r"[^\w.+-]", "_", folder.parent.name)  # a comma would end the name
            array = f"{name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
            queue = _Queue(array)
            queue.require_empty()
            executor.update_parameters(
                name=array,
                slurm_array_parallelism=at_once or len(items),
                slurm_setup=[_CORES],
                slurm_teardown=[_REQUEUE],
                slurm_srun_args=["--kill-on-bad-exit=0"],
                slurm_additional_parameters={"time": 60, "requeue": True, "signal": f"TERM@{_NOTICE}", **chosen},
            )
            jobs = executor.map_array(_job, [task] * len(items), items.values())
            running, waiting = dict(zip(items, jobs, strict=True)), {}
            tell(f"jobs       {', '.join(job.job_id for job in jobs)}; logs in {own}")
        else:
            executor.update_parameters(timeout_min=60 * 24 * 365)  # a limit is required
            own.mkdir(parents=True, exist_ok=True)
            holding = hold_folder("--grid-dir", own)
    except (RuntimeError, OSError, ValueError) as error:
        ways = "check the options, and that Slurm can be reached from here, or use --launcher local"
        raise InputError(f"--launcher {launcher} cannot submit: {' '.join(str(error).split())}; {ways}") from error
    with holding:
        while waiting or running:
            while waiting and slots:
                name = next(iter(waiting))
                taken[name] = slots.pop(0)
                with _deaf_to_interrupts():
                    running[name] = executor.submit(_job, task, waiting.pop(name), taken[name], own)
                tell(f"--- {name}: process {running[name].job_id}, log {running[name].paths.stderr}")
            if stop_requested():
                _stop(list(running.values()), launcher)
            over = queue.over(running) if queue else [name for name, job in running.items() if job.done()]
            for name in over:
                job = running.pop(name)
                slots += [taken.pop(name)] if name in taken else []
                endings[name] = _ending(job)
                tell(f"--- {name}: {', '.join(filter(None, endings[name]))}")
            time.sleep(_POLL)
    return endings


def _ending(job: Any) -> Ending:
    """Return how a finished job ended."""
    log = job.paths.stderr
    if not job.paths.result_pickle.exists():
        words = "it was cancelled or killed before it left a result"
        return "failed", f"{words}, see {log}" if log.exists() else words
    return ("failed", f"see {log}") if job.exception() else job.result()


class _Queue:
    """What Slurm's queue says of an array's jobs; submitit would ask its accounting, which not every cluster has."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._unknown: Counter[str] = Counter()
        self._next, self._told = 0.0, ""

    def require_empty(self) -> None:
        """Raise an InputError if jobs of the array are in the queue."""
        if queued := self._states():
            raise InputError(
                f"Slurm still has jobs of this grid ({', '.join(queued)}); run the same command when they are done, or "
                f"scancel --name={self.name} first"
            )

    def over(self, jobs: Mapping[str, Any]) -> list[str]:
        """Return the names of the jobs that have left a result, or have left the queue without one."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _ASK
            try:
                states = self._states()
                said = ", ".join(f"{number} {state}" for state, number in sorted(Counter(states.values()).items()))
                for name, job in jobs.items():
                    self._unknown[name] = 0 if job.job_id in states else self._unknown[name] + 1
            except (OSError, RuntimeError) as error:  # Slurm may answer the next time
                said = f"{error}; waiting"
            if said not in ("", self._told):
                tell(f"slurm      {said}")
                self._told = said
        return [name for name, job in jobs.items() if job.paths.result_pickle.exists() or self._unknown[name] >= _ASKED]

    def _states(self) -> dict[str, str]:
        """Return the state of each job in the queue, in words, by job ID.

        Raises:
            RuntimeError: Slurm does not answer.
        """
        command = ["squeue", "--noheader", "--array", f"--name={self.name}", "--format=%i|%T|%r"]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
        try:
            listed = subprocess.run(command, capture_output=True, text=True, env=plain, timeout=60)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError("squeue does not answer") from error
        if listed.returncode:
            raise RuntimeError(f"squeue does not answer ({listed.stderr.strip()})")
        jobs = [line.split("|", 2) for line in listed.stdout.splitlines()]
        return {job: state.lower() + (f" ({why})" if state == "PENDING" else "") for job, state, why in jobs}


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Keep processes that are started within the block from hearing the terminal's Ctrl-C: this process stops them."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _slots(at_once: int | None) -> list[str | None]:
    """Return CUDA_VISIBLE_DEVICES for each of the jobs that may run at once on this machine; None leaves it unset.

    A process takes most of a GPU's memory for itself, so no two jobs share a GPU.
    """
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (
        [str(number) for number, _ in enumerate(_GPUS.glob("*"))]
        if told is None
        else list(filter(None, told.split(",")))
    )
    if not gpus or os.environ.get("JAX_PLATFORMS") == "cpu":
        return [told] * (at_once or 2)
    at_once = at_once or len(gpus)
    require("--jobs", at_once, at_once <= len(gpus), f"at most {len(gpus)}, the number of GPUs here")
    return [",".join(gpus[number::at_once]) for number in range(at_once)]


def _job(
    task: Callable[[_Item, StopRequested], None], item: _Item, gpus: str | None = None, held: Path | None = None
) -> Ending:
    """Run a task on an item as a job, and return how it ended.

    A local job has `gpus` of its own, and stops when the process that launched it no longer holds the folder `held`.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # with which submitit hides the GPUs
        os.environ.update({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})
    try:
        with stop_requests(GRACE - 2 * _POLL) as stop_requested:  # the launcher waits no longer than GRACE
            ending = attempt(task, item, lambda: stop_requested() or not (held is None or is_held(held)))
    except Preempted as stop:
        tell(str(stop))
        sys.exit(PREEMPTED)
    tell(": ".join(filter(None, ending)))
    return ending


def _stop(jobs: Sequence[Any], launcher: str) -> None:
    if launcher == "slurm":
        raise Preempted("stopped waiting; Slurm's jobs keep running, and the same command shows results once they end")
    while alive := [job for job in jobs if not job.done()]:
        for job in alive:  # repeatedly, as a job that has just started does not listen yet
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        time.sleep(_POLL)
    raise Preempted("stopped by a signal, as are the jobs; what they saved is kept, and the same command resumes")
