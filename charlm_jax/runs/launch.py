"""Work as jobs of their own, on this machine or under Slurm, through submitit: it submits, Slurm schedules."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from charlm_jax.choices import Launcher
from charlm_jax.errors import PREEMPTED, InputError, Preempted
from charlm_jax.runs.command_line import tell
from charlm_jax.runs.stop import StopRequested, stop_requests

_NOTICE = 120  # seconds before its time limit at which Slurm tells a job to stop
# What follows a job's command in its script: one that was stopped, and has saved, goes back into the queue.
# By its array's number and its own: the number of an array's last job is also that of the whole.
_REQUEUE = (
    f'code=$?; if [ "$code" = {PREEMPTED} ]; then scontrol requeue "${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}'
    '${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"; fi; exit "$code"'
)
_POLL = 1.0  # seconds between two looks at the jobs
_Item = TypeVar("_Item")


def launch(
    task: Callable[[_Item, StopRequested], None],
    items: Mapping[str, _Item],
    folder: Path,
    launcher: Launcher,
    *,
    at_once: int,
    options: Sequence[str] = (),
    stop_requested: StopRequested = lambda: False,
) -> dict[str, Path]:
    """Do a task with each of some items, each in a job of its own, and wait for all.

    A job that is told to stop, by Slurm before its time limit or by anybody, saves; under Slurm it is queued again.

    Args:
        task: a function of a module, of an item and a question whether to stop; it raises `Preempted` when it has.
        items: by names to be told.
        folder: of the jobs' scripts and logs.
        launcher: `local`, processes of this machine, or `slurm`, one array.
        at_once: how many jobs may run at the same time.
        options: of `sbatch`, as name=value, such as partition=gpu and time=60 (minutes).
        stop_requested: whether to stop waiting: then jobs of this machine are stopped, and Slurm's go on.

    Returns:
        The log of each item whose job failed.

    Raises:
        InputError: submitit is not there, or Slurm, or it refuses the options.
        Preempted: a stop was requested.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            f"--launcher {launcher} needs submitit; add it: {shlex.quote(sys.executable)} -m pip install submitit"
        ) from error
    waiting, running, failed = dict(items), {}, {}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=launcher)
        if launcher == "slurm":
            chosen = dict(option.split("=", 1) for option in options)
            executor.update_parameters(
                name=folder.parent.name,
                slurm_array_parallelism=at_once,
                slurm_teardown=[_REQUEUE],
                slurm_srun_args=["--kill-on-bad-exit=0"],
                slurm_additional_parameters={"time": 60, "requeue": True, "signal": f"TERM@{_NOTICE}", **chosen},
            )
            jobs = executor.map_array(_job, [task] * len(items), items.values()) if items else []
            running, waiting = dict(zip(items, jobs, strict=True)), {}
            tell(f"jobs       {', '.join(job.job_id for job in jobs)}; logs in {folder}")
        else:
            executor.update_parameters(timeout_min=60 * 24 * 365)  # there must be one
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"--launcher {launcher} cannot submit: {error}; see that the options are right") from error
    while waiting or running:
        while waiting and len(running) < at_once:
            name = next(iter(waiting))
            # submitit hides the GPUs from its own processes.
            running[name] = executor.submit(_job, task, waiting.pop(name), os.environ.get("CUDA_VISIBLE_DEVICES"))
            tell(f"--- {name}: process {running[name].job_id}, log {running[name].paths.stderr}")
        if stop_requested():
            _stop(list(running.values()), launcher)
        for name in [name for name, job in running.items() if job.done()]:
            job = running.pop(name)
            problem = job.exception()
            tell(f"--- {name}: {'done' if problem is None else f'failed, see {job.paths.stderr}'}")
            if problem is not None:
                failed[name] = job.paths.stderr
        time.sleep(_POLL)
    return failed


def _job(task: Callable[[_Item, StopRequested], None], item: _Item, gpus: str | None = None) -> None:
    """Be a job: do the task with an item, and with those GPUs, or all, on this machine."""
    if "SLURM_JOB_ID" not in os.environ:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ.update({} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus})
    try:
        with stop_requests() as stop_requested:
            task(item, stop_requested)
    except Preempted as stop:
        tell(str(stop))
        sys.exit(PREEMPTED)


def _stop(jobs: Sequence, launcher: str) -> None:
    if launcher == "slurm":
        raise Preempted("stopped waiting; Slurm's jobs go on (scancel ends them), and the same command looks again")
    for job in jobs:
        os.kill(int(job.job_id), signal.SIGTERM)
    while not all(job.done() for job in jobs):
        time.sleep(0.1)
    raise Preempted("stopped by a signal; all states are saved, and the same command goes on")
