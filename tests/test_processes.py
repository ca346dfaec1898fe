"""One job in several processes: the same run in any layout, and what happens when one of the processes fails."""

import itertools
import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from faults import Command, begin_together, free_address, result

from charlm_jax.errors import InputError
from charlm_jax.mesh import data_mesh, replica_mesh
from charlm_jax.runs import processes
from charlm_jax.runs.checkpoints import state_files
from charlm_jax.runs.directory import open_run
from charlm_jax.runs.processes import agreed, everyones, joined, meeting, require_alike
from charlm_jax.runs.records import read_records
from charlm_jax.runs.verification import verify

TINY = [
    "quick", "--window", 10, "--batch-size", 8, "--hidden-size", 8, "--epochs", 10, "--sample-every", 5,
    "--sample-length", 20, "--schedule", "constant", "--warmup", 0, "--prompt-start", 3,
]  # fmt: skip
LAYOUTS = [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (4, 4)]  # devices in all, processes


@pytest.fixture
def begin(commands, corpus, tmp_path):
    """Start a job of `count` processes, with `devices` in all, on the run tmp_path/NAME."""

    def start(count, *flags, devices=2, name="run", **limits):
        command = [*TINY, "--corpus", corpus, "--run-dir", tmp_path / name, "--devices", devices, *flags]
        if count == 1:
            return [Command(command, tmp_path, devices=devices, **limits)]
        return begin_together(command, tmp_path, count, devices=devices // count, **limits)

    return start


def finish(processes):
    ended = [process.wait() for process in processes]
    assert [end.code for end in ended] == [0] * len(ended), [end.errors for end in ended]
    return ended


def losses(path):
    records = read_records(open_run(path).metrics)
    return [record.get("training_loss", record.get("held_out_loss")) for record in records]


def test_a_process_that_is_alone_agrees_with_itself():
    with joined(None):
        assert everyones("all") == ["all"]
        assert agreed(lambda: 3) == 3
        require_alike({"seed": 1})
        with pytest.raises(OSError, match="no disk"):
            agreed(lambda: (_ for _ in ()).throw(OSError("no disk")))


@pytest.mark.parametrize(
    "where",
    [
        "host:1/2/2",
        "host/0/2",
        "host:1",
        "host:1/0",
        "host:x/0/2",
        "host:1/-1/2",
        "",
        "1/0/2",
        ":1/0/2",
        "host:65536/0/2",
        "host:0/0/2",
    ],
)
def test_an_address_that_is_none_is_refused(where):
    with pytest.raises(InputError, match=r"--distributed .* auto, or HOST:PORT/NUMBER/COUNT"), joined(where):
        pass


def test_the_losses_do_not_depend_on_the_layout_and_states_move_between_all(begin, tmp_path, sized, report):
    """A hundred steps in each layout, and a run that changes layout every epoch: all losses agree to 1e-4."""
    layouts = sized([(1, 1), (8, 1), (4, 2)], LAYOUTS)
    for devices, count in layouts:
        # With --text streamed each process reads only its own rows of the text, otherwise all of it.
        streamed = ["--text", "streamed"] if (devices, count) == (4, 2) else []
        finish(begin(count, *streamed, devices=devices, name=f"{devices}-{count}"))
    expected = losses(tmp_path / "1-1")
    assert len(expected) == 20
    assert int(list(state_files(tmp_path / "1-1" / "checkpoints"))[-1]) >= 100
    for devices, count in layouts[1:]:
        assert losses(tmp_path / f"{devices}-{count}") == pytest.approx(expected, abs=1e-4)
        first, other = (result(tmp_path / name)[0] for name in ("1-1", f"{devices}-{count}"))
        texts = [json.loads(texts)[1] for texts in (first, other)]
        assert texts[0] == texts[1]
    for epoch, (devices, count) in enumerate(itertools.islice(itertools.cycle(layouts), 5 if len(layouts) < 5 else 10)):
        ended = finish(begin(count, "--epochs", epoch + 1, devices=devices, name="moving"))
        assert ("not bit-exact" in ended[0].errors) == ((devices, count) != layouts[0])
    moved = losses(tmp_path / "moving")
    assert moved == pytest.approx(expected[: len(moved)], abs=1e-4)
    words = ", ".join(f"{devices} devices in {count}" for devices, count in layouts)
    report("layouts", f"losses of 100 steps agree to 1e-4 on {words} processes; states moved between all")


@pytest.fixture(scope="module")
def whole(commands, corpus, tmp_path_factory):
    """An undisturbed job of two processes: how they ended, and the run's directory."""
    folder = tmp_path_factory.mktemp("whole")
    flags = [*TINY, "--corpus", corpus, "--run-dir", folder / "run", "--devices", 2]
    return finish(begin_together(flags, folder, 2, devices=1)), folder / "run"


def test_the_first_process_alone_writes_and_speaks(whole):
    ended, path = whole
    assert "epoch 10" in ended[0].output
    assert "device     2 x cpu in 2 processes" in ended[0].errors
    assert ended[1].output == ""
    assert [line for line in ended[1].errors.splitlines() if not line.startswith("[Gloo]")] == []
    assert open_run(path).provenance()["processes"] == 2
    epochs = [record["epoch"] for record in read_records(open_run(path).metrics)]
    assert epochs == [epoch for epoch in range(1, 11) for _ in "ab"], "each once"


@pytest.fixture(scope="module")
def unbroken(whole):
    return result(whole[1])


def interrupted(begin, run, number, generator):
    """Train a run in two processes, sending one of them a signal at random instants, until it is done.

    One signal in four comes before training, while they start, connect and compile. The others come after an epoch.
    Returns, for each interruption, both outcomes (the signalled process first) and the seconds from signal to end.
    """
    shutil.rmtree(run, ignore_errors=True)
    ends = []
    while True:
        before = len(read_records(run / "metrics.jsonl"))
        processes = begin(2)
        victim = int(generator.integers(2))
        if generator.random() < 0.25:
            processes[victim].process.join(generator.uniform(0.1, 4))
        else:
            while processes[0].process.exitcode is None and len(read_records(run / "metrics.jsonl")) <= before:
                time.sleep(0.01)
            processes[victim].process.join(generator.uniform(0, 1))
        asked = time.monotonic()
        processes[victim].send(number)
        ended = [processes[place].wait() for place in (victim, 1 - victim)]
        if [end.code for end in ended] == [0, 0]:
            return ends
        if ended[1].code == 0:
            # Killed as it exited, after the last exchange: the other needed nothing more from it.
            assert ended[0].code == -signal.SIGKILL, ended[0].errors
            assert len(read_records(run / "metrics.jsonl")) == 20
            continue
        ends.append((ended, time.monotonic() - asked))


def is_lost(ended):
    """Return whether a process ended because another was gone; outside of a collective, JAX itself ends it."""
    return (
        (ended.code == 1 and "another process of this job is gone; run the same commands to resume" in ended.errors)
        or (ended.code == 134 and "error: the processes of this job did not all start within 45 s" in ended.errors)
        or (ended.code == -signal.SIGABRT and "another task died" in ended.errors)
    )


def test_a_signal_to_one_stops_all_at_the_same_step(begin, unbroken, tmp_path, sized, report):
    stops, slowest, generator = 0, 0.0, np.random.default_rng(1)
    while stops < sized(1, 20):
        ends = interrupted(begin, tmp_path / "run", signal.SIGTERM, generator)
        for (told, other), seconds in ends:
            assert told.code == 75, told.errors
            # A process that exits before it can agree on a stop is lost to the other.
            assert other.code == 75 or ("not done 8 seconds after" in told.errors and is_lost(other)), other.errors
            slowest = max(slowest, seconds)
        stops += len(ends)
        assert result(tmp_path / "run") == unbroken
    report(
        "one of two processes told to stop", f"{stops} times; both exited 75 within {slowest:.1f} s, ends bit for bit"
    )


def test_when_one_is_killed_the_others_stop_and_nothing_is_lost(begin, unbroken, tmp_path, sized, report):
    kills, slowest, generator = 0, 0.0, np.random.default_rng(2)
    while kills < sized(1, 20):
        ends = interrupted(begin, tmp_path / "run", signal.SIGKILL, generator)
        for (killed, other), seconds in ends:
            assert killed.code == -signal.SIGKILL
            assert is_lost(other), (other.code, other.errors)
            slowest = max(slowest, seconds)
        kills += len(ends)
        assert result(tmp_path / "run") == unbroken
        assert not [finding for finding in verify(open_run(tmp_path / "run")) if finding.verdict != "ok"]
    report("one of two processes killed", f"{kills} times; the other ended within {slowest:.1f} s, ends bit for bit")


def test_another_number_of_processes_in_one_of_them_is_refused(commands, corpus, tmp_path):
    flags = [*TINY, "--corpus", corpus, "--run-dir", tmp_path / "run", "--distributed"]
    address = free_address()
    started = [Command([*flags, f"{address}/{place}"], tmp_path, name=place[0], devices=1) for place in ("0/2", "1/3")]
    ended = [process.wait() for process in started]
    assert [end.code for end in ended] == [2, 2], [end.errors for end in ended]
    assert "the processes of this job differ: the COUNT of --distributed 2 in process 0, 3 in 1" in ended[0].errors


@pytest.mark.parametrize("missing", [0, 1])
def test_one_that_never_comes_is_not_waited_for_for_ever(begin, missing):
    killed, other = (processes := begin(2, patience=1))[missing], processes[1 - missing]
    killed.send(signal.SIGKILL)
    ended = other.wait()
    assert ended.code == 134
    assert "error: the processes of this job did not all start within 1 seconds. If one ended, start" in ended.errors
    assert "Traceback" not in ended.errors


def test_a_kill_in_the_middle_of_a_save(begin, unbroken, tmp_path, sized):
    """Kill the process that writes, before one of its changes to the run's files."""
    for changes in range(5, sized(20, 100), 14 if sized(True, False) else 5):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        killed, other = (process.wait() for process in begin(2, changes={0: changes}))
        assert killed.code == -signal.SIGKILL
        assert is_lost(other), (other.code, other.errors)
        finish(begin(2))
        assert result(tmp_path / "run") == unbroken


@pytest.mark.parametrize(
    ("flag", "value", "difference"),
    [
        ("--seed", 7, "seed 1 in process 0, 7 in 1"),
        ("--corpus", "other.txt", "the text's sha256 .* in process 0"),
        ("--text", "streamed", "--text auto in process 0, streamed in 1"),
        ("--init-from", "source", r"the model to start from \{'step': None, .* in process 0, \{'step': 1"),
    ],
)
def test_processes_that_differ_are_refused_with_the_difference(corpus, commands, tmp_path, flag, value, difference):
    (tmp_path / "other.txt").write_text(corpus.read_text().replace("will", "wish"))
    flags = [*TINY, "--corpus", corpus, "--run-dir", tmp_path / "run", "--devices", 2]
    if flag in ("--corpus", "--init-from"):
        value = tmp_path / value
    if flag == "--init-from":
        assert Command([*flags, "--run-dir", value, "--epochs", 1], tmp_path).wait().code == 0
    ended = [process.wait() for process in begin_together(flags, tmp_path, 2, flag, value, devices=1)]
    assert [end.code for end in ended] == [2, 2], [end.errors for end in ended]
    assert re.search(f"the processes of this job differ: .*{difference}", ended[0].errors)
    assert not (tmp_path / "run").exists()


def test_processes_of_a_grid_that_differ_are_refused_with_the_difference(corpus, commands, tmp_path):
    flags = [*TINY, "--corpus", corpus, "--vary", "dropout=0.1", "--grid-dir", tmp_path / "grid", "--replicas", 2]
    started = begin_together(flags, tmp_path, 2, "--replicas", 3, devices=1, experiment="ablate")
    ended = [process.wait() for process in started]
    assert [end.code for end in ended] == [2, 2], [end.errors for end in ended]
    assert re.search(r"differ: the grid's runs .*seed=2'\] in process 0, .*seed=3'\] in 1", ended[0].errors)
    assert not (tmp_path / "grid").exists()


def test_all_devices_of_a_mesh_meet():
    """The compiler must not compute by itself what they exchange."""
    two = jax.devices()[:2]
    for mesh, axes in (
        (data_mesh(two), "data"),
        (replica_mesh(two, 2), "replica"),
        (replica_mesh(two, 2), ("replica", "data")),
        (replica_mesh(two, 1), ("replica", "data")),
    ):
        assert "all-reduce" in str(meeting(mesh, axes).lower().compile().as_text())


def test_the_devices_along_every_axis_meet(monkeypatch):
    met, mesh = list[object](), replica_mesh(jax.devices()[:2], 2)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes, "meeting", lambda _, axes: lambda: met.append(axes))
    processes.meet(mesh)
    assert met == ["replica", "data", ("replica", "data")]


def test_a_process_that_fails_by_itself_says_so_and_the_others_stop(begin, corpus, commands, tmp_path):
    flags = [*TINY, "--corpus", corpus, "--run-dir", tmp_path / "run", "--devices", 2]
    first, second = (
        process.wait() for process in begin_together(flags, tmp_path, 2, "--corpus", tmp_path / "nowhere", devices=1)
    )
    assert second.code == 2
    assert "process 1 of 2: error: there is no corpus, file or folder" in second.errors
    assert is_lost(first), (first.code, first.errors)


def test_two_jobs_on_one_directory_and_devices_that_do_not_divide(begin, tmp_path):
    running = begin(2, "--epochs", 10000)
    running[0].wait_for(tmp_path / "run" / "metrics.jsonl")
    ended = [process.wait() for process in begin(2, "--epochs", 10000)]
    assert [end.code for end in ended] == [2, 2], [end.errors for end in ended]
    assert "is being written by process" in ended[0].errors
    assert "is being written" not in ended[1].errors, "it is said once"
    for process in running:
        process.send(signal.SIGTERM)
    assert [process.process.join() or process.process.exitcode for process in running] == [75, 75]
    ended = [process.wait() for process in begin(2, devices=3)]
    assert [end.code for end in ended] == [2, 2]
    assert "--devices 3 is not a multiple of this job's 2 processes" in ended[0].errors
