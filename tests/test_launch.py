"""Grids whose jobs are processes on this machine."""

import os
import re
import signal
import time

import pytest
from commands import call, results
from test_experiments import SMALL, command, run

from charlm_jax.errors import InputError
from charlm_jax.runs import launch
from charlm_jax.runs.directory import open_run
from charlm_jax.runs.files import hold_folder
from charlm_jax.runs.records import read_records

pytest.importorskip("submitit", reason="submitit is not installed")


def test_a_grid_in_jobs_is_the_grid_here_and_goes_on_when_it_was_stopped(corpus, tmp_path):
    flags = ["--corpus", corpus, *SMALL, "--vary", "hidden_size=4,5", "--replicas", 1, "--sample-every", 60]
    flags += ["--epochs", 60, "--devices", 1]
    code, _, errors = run("ablate", *flags, "--grid-dir", tmp_path / "here")
    assert code == 0, errors
    jobs = [*flags, "--grid-dir", tmp_path / "jobs", "--launcher", "local", "--jobs", 2]
    stopped = command("ablate", *jobs)
    first = tmp_path / "jobs" / "hidden_size=4,seed=1"
    while not (first / "metrics.jsonl").exists():
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 75, errors
    assert "the jobs; what they saved is kept, and the same command resumes" in errors
    assert 0 < len(read_records(open_run(first).metrics)) < 120
    code, _, errors = run("ablate", *jobs)
    assert code == 0, errors
    assert errors.count(": done") == 2
    assert results(tmp_path / "jobs") == results(tmp_path / "here")


def test_a_grid_in_jobs_takes_no_other_grids_runs_for_its_own(corpus, tmp_path, capsys):
    flags = ["--corpus", corpus, *SMALL, "--vary", "hidden_size=4", "--replicas", 1, "--epochs", 1, "--devices", 1]
    flags += ["--grid-dir", tmp_path]
    assert call("ablate", *flags) == 0
    before = results(tmp_path)
    capsys.readouterr()
    assert call("ablate", *flags, "--launcher", "local", "--dropout", 0.5) == 2
    assert re.search(r"holds another run: .*dropout 0\.2 there, 0\.5 here", capsys.readouterr().err)
    assert call("ablate", *flags, "--launcher", "local") == 0
    assert results(tmp_path) == before
    # An epoch whose own record is missing is not finished.
    metrics = tmp_path / "hidden_size=4,seed=1" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    assert call("ablate", *flags, "--launcher", "local") == 0
    assert [record["event"] for record in read_records(metrics)] == ["evaluation", "epoch"]


def test_jobs_end_with_who_launched_them(corpus, tmp_path):
    flags = ["--corpus", corpus, *SMALL, "--vary", "hidden_size=4,5", "--replicas", 1, "--sample-every", 500]
    flags += ["--epochs", 500, "--devices", 1, "--launcher", "local", "--grid-dir", tmp_path / "grid"]
    runs = [tmp_path / "grid" / f"hidden_size={size},seed=1" for size in (4, 5)]
    with command("ablate", *flags) as launcher:
        while not all((path / "metrics.jsonl").exists() for path in runs):
            assert launcher.poll() is None, launcher.communicate()
            time.sleep(0.05)
        jobs, grid = [int((path / "lock").read_text().split()[1]) for path in runs], tmp_path / "grid" / "jobs"
        for job in jobs:
            os.kill(job, signal.SIGSTOP)
        launcher.kill()
        # The launcher is not reaped yet: a container's first process may never do that.
        free(grid)
        with hold_folder("--grid-dir", grid):  # as does another launcher, before the jobs have looked
            for job in jobs:
                os.kill(job, signal.SIGCONT)
            for path in runs:
                free(path)
    assert 0 < len(read_records(open_run(runs[0]).metrics)) < 1000


def free(path, seconds=60.0):
    """Wait until no process holds the lock of a run."""
    end = time.monotonic() + seconds
    while True:
        try:
            with hold_folder("--run-dir", path):
                return
        except InputError:
            assert time.monotonic() < end, "a job is still at work"
            time.sleep(0.1)


def test_a_combination_that_cannot_be_trained_leaves_the_others_their_results(corpus, tmp_path):
    """In jobs or in the command's own process, in either order; flags that are only for jobs need a launcher."""
    flags = ["--corpus", corpus, *SMALL, "--replicas", 1, "--epochs", 1, "--vary"]
    for launcher, vary in [("here", "batch_size=5000,4"), ("local", "batch_size=4,5000")]:
        where = ["--launcher", launcher, "--grid-dir", tmp_path / launcher]
        code, output, errors = run("ablate", *flags, vary, *where)
        assert code == 2, errors
        assert len(output.splitlines()) == 3
        assert re.search(
            r"error: 1 of 2 programs failed \(batch_size=5000,seed=1: the .* characters of training", errors
        )
        assert "Traceback" not in errors
        good, bad = sorted(results(tmp_path / launcher), key=lambda row: int(row["batch_size"]))
        assert (float(good["held_out_loss"]) > 0, good["failure"]) == (True, "")
        assert "do not fill --batch-size 5000" in bad["failure"]
    for word in ("--jobs", "--slurm"):
        code, _, errors = run("ablate", *flags, "batch_size=4", word, "3" if word == "--jobs" else "time=3")
        assert code == 2
        assert re.search(rf"{word} .* must be omitted without --launcher", errors)


def test_a_slurm_that_does_not_answer_is_told_on_one_line_with_a_way_out(corpus, tmp_path, monkeypatch, capsys):
    for name, line in {"srun": "", "squeue": "printf 'no address\\nno contact\\n' >&2; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    flags = ["--corpus", corpus, *SMALL, "--vary", "hidden_size=4", "--launcher", "slurm"]
    assert call("ablate", *flags, "--grid-dir", tmp_path / "grid") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot submit: squeue does not answer (no address no contact); check the options" in error
    assert error.endswith("Slurm can be reached from here, or use --launcher local")


def test_jobs_share_the_gpus(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(launch, "_GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch._slots(None) == [None, None]
    assert launch._slots(3) == [None] * 3
    for gpu in ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0"):
        (tmp_path / gpu).mkdir()
    assert launch._slots(None) == ["0", "1", "2"]
    assert launch._slots(2) == ["0,2", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert launch._slots(None) == ["5", "7"]
    assert launch._slots(1) == ["5,7"]
    with pytest.raises(InputError, match="--jobs 3 cannot be used: it must be at most 2, the number of GPUs"):
        launch._slots(3)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert launch._slots(3) == ["5,7"] * 3
