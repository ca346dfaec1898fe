"""Training under a real Slurm: one model on several nodes, and grids as arrays, stopped and requeued."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import clusters
import pytest
from commands import results
from faults import result
from test_readme import README, shell

from charlm_jax.runs.directory import open_run
from charlm_jax.runs.records import read_records

ROOT = Path(__file__).parent.parent
COMMANDS = "munged", "slurmctld", "slurmd", "sbatch", "unshare"
MISSING = [command for command in COMMANDS if shutil.which(command) is None]
needs_slurm = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0,
    reason=f"needs root and Slurm (apt-get install slurm-wlm munge); not here: {', '.join(MISSING) or 'root'}",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with clusters.cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as running:
        yield running


@pytest.fixture
def checkout(cluster, commands, tmp_path, small_text, monkeypatch):
    """A folder with the project's own batch script, a text, and a scripts/run that uses the tests' Python."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "slurm_train.sbatch", tmp_path / "scripts")
    run = tmp_path / "scripts" / "run"
    run.write_text(f'#!/bin/sh\nname=$1; shift\nexec "{sys.executable}" "{ROOT}/experiments/$name.py" "$@"\n')
    run.chmod(0o755)
    (tmp_path / "corpus.txt").write_text(small_text)
    monkeypatch.setitem(cluster.env, "PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    return tmp_path


SMALL = [
    "quick", "--corpus", "corpus.txt", "--window", "10", "--batch-size", "4", "--hidden-size", "4", "--epochs", "6",
    "--temperatures", "0.5", "--sample-length", "10", "--prompt-start", "3",
]  # fmt: skip


def wait_for(done, what, seconds=180.0):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.1)


def step(cluster, job):
    """Return the id of a job's srun step: a signal to an array task itself is repeated, even to what follows it."""
    return cluster.run("squeue", "--steps", "--noheader", f"--steps={job}.0", "--format=%i")


@needs_slurm
def test_a_job_of_two_nodes_is_stopped_saved_queued_again_and_finished(cluster, checkout):
    """The real script runs; the end is that of an undisturbed job."""
    submit = ["sbatch", "--parsable", "scripts/slurm_train.sbatch", *SMALL, "--devices", "2"]
    unbroken = cluster.run(*submit, "--run-dir", "unbroken")
    cluster.wait(unbroken, seconds=180)
    number = cluster.run(*submit)
    run, log = checkout / "runs" / f"slurm-{number}", checkout / f"slurm-{number}.out"
    wait_for((run / "metrics.jsonl").exists, lambda: log.read_text())
    cluster.run("scancel", "--signal=TERM", number)
    assert cluster.wait(number, seconds=180)["Restarts"] == "1", log.read_text()
    said = log.read_text()
    assert "stopped by a signal at step" in said
    assert "resuming from step" in said
    assert "2 x cpu in 2 processes" in said
    assert result(run) == result(checkout / "unbroken")


@needs_slurm
def test_a_process_that_is_killed_takes_the_job_back_into_the_queue(cluster, checkout):
    number = cluster.run("sbatch", "--parsable", "scripts/slurm_train.sbatch", *SMALL, "--devices", "2")
    run, log = checkout / "runs" / f"slurm-{number}", checkout / f"slurm-{number}.out"
    wait_for((run / "metrics.jsonl").exists, lambda: log.read_text())
    cluster.run("scancel", "--signal=KILL", step(cluster, number))
    assert cluster.wait(number, seconds=180)["Restarts"] == "1", log.read_text()
    epochs = [record["epoch"] for record in read_records(open_run(run).metrics) if record["event"] == "epoch"]
    assert epochs == [1, 2, 3, 4, 5, 6]


ABLATE = """
import runpy, sys
from charlm_jax.runs import launch
launch._ASK = {ask}
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def grid(*flags, ask=10.0):
    """Submit a grid that polls the cluster every `ask` seconds; a requeued job is missing there for a few seconds."""
    program = [sys.executable, "-c", ABLATE.format(ask=ask), ROOT / "experiments" / "ablate.py"]
    command = [*program, *SMALL, "--launcher", "slurm", "--grid-dir", "grid"]
    return subprocess.Popen([*map(str, command), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@needs_slurm
def test_a_grid_is_an_array_whose_jobs_are_queued_again(cluster, checkout):
    # Enough epochs for the signal to arrive during them.
    longer = "--epochs", "40", "--sample-every", "40"
    vary = "--vary", "hidden_size=4,5,6", "dropout=0,0.2", "--replicas", "1", "--jobs", "2", *longer
    with grid(*vary, "--slurm", "time=5", "cpus-per-task=1") as submitted:
        first = checkout / "grid" / "hidden_size=4,dropout=0.0,seed=1" / "metrics.jsonl"
        wait_for(first.exists, "the first run does not begin")
        number = cluster.run("squeue", "--noheader", "--format=%F").split()[0]
        cluster.run("scancel", "--signal=TERM", step(cluster, f"{number}_0"))
        out, errors = submitted.communicate(timeout=300)
    assert submitted.returncode == 0, errors
    assert len(out.splitlines()) == 7
    assert cluster.job(f"{number}_0")["Restarts"] == "1"
    assert [cluster.job(f"{number}_{task}")["JobState"] for task in range(6)] == ["COMPLETED"] * 6
    before = results(checkout / "grid")
    assert [(row["hidden_size"], row["dropout"]) for row in before] == [(h, d) for h in "456" for d in ("0.0", "0.2")]
    assert all(float(row["held_out_loss"]) < 4 for row in before)
    # The same command submits nothing that is done; a lost run is trained again.
    shutil.rmtree(checkout / "grid" / "hidden_size=5,dropout=0.0,seed=1")
    with grid(*vary) as submitted:
        _, errors = submitted.communicate(timeout=300)
    assert (submitted.returncode, errors.count(": done")) == (0, 1), errors
    assert results(checkout / "grid") == before


@needs_slurm
def test_why_a_job_failed_stands_in_the_table(cluster, checkout):
    """One was given a missing text; another was cancelled in the queue, on a cluster without accounting."""
    corpora = ",".join(str(checkout / name) for name in ("corpus.txt", "missing.txt", "third.txt"))
    shutil.copy(checkout / "corpus.txt", checkout / "third.txt")
    with grid("--vary", f"corpus={corpora}", "--replicas", "1", "--jobs", "1", ask=1.0) as submitted:
        wait_for(lambda: cluster.run("squeue", "--noheader"), "nothing is submitted")
        number = cluster.run("squeue", "--noheader", "--format=%F").split()[0]
        cluster.run("scancel", f"{number}_2")
        _, errors = submitted.communicate(timeout=300)
    assert submitted.returncode == 2, errors
    assert "error: 2 of 3 programs failed (" in errors
    done, refused, cancelled = results(checkout / "grid")
    assert (done["failure"], refused["held_out_loss"]) == ("", "")
    assert "there is no corpus, file or folder" in refused["failure"]
    assert cancelled["failure"] == "it was cancelled or killed before it left a result", "nor a log: it never began"
    assert "slurm      " in errors


@needs_slurm
def test_the_grid_of_the_readme(cluster, checkout):
    (command,) = [command for command in shell(README) if "--launcher slurm" in command]
    (checkout / "runs").mkdir()
    (checkout / "corpus.txt").rename("runs/code.txt")
    cluster.run("bash", "-c", f"{command} --window 10 --batch-size 4 --epochs 1")
    assert [row["hidden_size"] for row in results(checkout / "runs" / "sizes")] == ["32", "64", "128"]


@needs_slurm
def test_without_slurm_a_grid_says_so(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with grid("--vary", "hidden_size=4,5") as submitted:
        _, errors = submitted.communicate(timeout=300)
    assert submitted.returncode == 2, errors
    assert errors.splitlines()[-1].startswith("error: --launcher slurm")


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(75, 0, True), (75, 99, True), (137, 0, True), (134, 19, True), (143, 20, False), (0, 0, False), (2, 0, False)],
)
def test_the_batch_script_queues_a_job_again_that_was_stopped_or_for_some_time_killed(tmp_path, code, restarts, again):
    """Slurm's commands are stand-ins: what matters is the exit code of srun and the arguments of scontrol."""
    commands = {"srun": f"exit {code}", "scontrol": "echo scontrol $*", "run": "exit 0"}
    (tmp_path / "scripts").mkdir()
    for name, line in commands.items():
        path = tmp_path / ("scripts" if name == "run" else "") / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "SLURM_SUBMIT_DIR": str(tmp_path)}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = ROOT / "scripts" / "slurm_train.sbatch"
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "scontrol requeue 7\n" if again else "")


def test_the_batch_script_says_where_it_must_be_submitted(tmp_path):
    script = ROOT / "scripts" / "slurm_train.sbatch"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    elsewhere = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path)}
    for slurm, words in [({}, "submit it: sbatch scripts"), (elsewhere, "submit this from the checkout: sbatch")]:
        done = subprocess.run(["bash", script], env={**plain, **slurm}, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.startswith("error: "), words in done.stderr) == (2, True, True)
