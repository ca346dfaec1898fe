"""What happens to runs when machines fail: kills at random instants, damaged or full disks, two writers, odd input.

A sample of each runs with the other tests; `scripts/test --faults` runs all of it and reports figures.
"""

import dataclasses
import errno
import fcntl
import json
import math
import os
import re
import resource
import shutil
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from faults import Command, result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from charlm_jax.errors import DamagedError, InputError
from charlm_jax.runs import checkpoints
from charlm_jax.runs.assembly import prepare
from charlm_jax.runs.checkpoints import newest_state, read_state, state_files
from charlm_jax.runs.command_line import parse_training
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.directory import RunDirectory, open_run
from charlm_jax.runs.files import hold_folder, is_held
from charlm_jax.runs.records import read_records
from charlm_jax.runs.tracking import points_of
from charlm_jax.runs.train import train
from charlm_jax.runs.trained import load_run, read_run, snapshot_shapes
from charlm_jax.runs.verification import _judge, verify

TINY = [
    "--window", 10, "--batch-size", 4, "--hidden-size", 8, "--epochs", 8, "--sample-every", 2, "--temperatures", 0.5,
    "--sample-length", 20, "--prompt-start", 3,
]  # fmt: skip


@pytest.fixture(scope="session")
def unbroken(commands, corpus, tmp_path_factory):
    """An undisturbed run: its directory, and what other runs must reproduce."""
    folder = tmp_path_factory.mktemp("unbroken")
    ended = Command(["--corpus", corpus, *TINY, "--run-dir", folder / "run"], folder).wait()
    assert ended.code == 0, ended.errors
    return folder / "run", result(folder / "run")


@pytest.fixture(scope="session")
def another(commands, corpus, tmp_path_factory):
    """A state of another run, with the same shapes."""
    folder = tmp_path_factory.mktemp("another")
    ended = Command(["--corpus", corpus, *TINY, "--seed", 5, "--run-dir", folder / "run"], folder).wait()
    assert ended.code == 0, ended.errors
    return list(state_files(folder / "run" / "checkpoints").values())[-1]


@pytest.fixture
def begin(commands, corpus, tmp_path):
    """Return a function that starts the command on the run tmp_path/run."""
    return lambda *flags, **limits: Command(
        ["--corpus", corpus, *TINY, "--run-dir", tmp_path / "run", *flags], tmp_path, **limits
    )


def interrupted(begin, run, numbers, span, generator):
    """Train a run from the start, interrupting it at random instants until it is done.

    Returns, for each interruption, the outcome and the seconds from the signal to the end.
    """
    shutil.rmtree(run, ignore_errors=True)
    ends = []
    while True:
        command = begin()
        command.process.join(generator.uniform(*span))
        asked = time.monotonic()
        command.send(generator.choice(numbers))
        ended = command.wait()
        if ended.code == 0:
            return ends
        ends.append((ended, time.monotonic() - asked))


def test_kills_at_random_instants_lose_and_change_nothing(begin, unbroken, tmp_path, sized, report):
    """Each of many runs, killed again and again until it is done, ends like the unbroken run."""
    kills, runs, generator = 0, 0, np.random.default_rng(1)
    while kills < sized(6, 200):
        ends = interrupted(begin, tmp_path / "run", [signal.SIGKILL], (0.2, 3.5), generator)
        assert {ended.code for ended, _ in ends} <= {-signal.SIGKILL}, ends
        kills, runs = kills + len(ends), runs + 1
        assert result(tmp_path / "run") == unbroken[1]
        findings = verify(open_run(tmp_path / "run"))
        assert not [finding for finding in findings if finding.verdict != "ok"]
    report("killed at random instants", f"{kills} times in {runs} runs; all ended as the unbroken run, bit for bit")


def test_a_kill_before_any_change_to_a_file_loses_and_changes_nothing(begin, unbroken, tmp_path, sized, report):
    """Kill between any two changes to the run on the disk: each file begun, renamed or removed."""
    number = 0
    while True:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        if begin(changes=number * sized(17, 1)).wait().code == 0:
            break  # it ended before making that many changes
        ended = begin().wait()
        assert ended.code == 0, ended.errors
        assert result(tmp_path / "run") == unbroken[1], number
        assert not [finding for finding in verify(open_run(tmp_path / "run")) if finding.verdict != "ok"]
        number += 1
    assert number > 4
    report("killed before a change to a file", f"{number} times; all ended as the unbroken run, bit for bit")


def test_signals_at_random_instants_stop_cleanly(begin, unbroken, tmp_path, sized, report):
    seconds, generator = [], np.random.default_rng(2)
    while len(seconds) < sized(4, 50):
        ends = interrupted(begin, tmp_path / "run", [signal.SIGTERM, signal.SIGINT], (0.3, 3.0), generator)
        assert {ended.code for ended, _ in ends} <= {75}, ends
        seconds += [taken for _, taken in ends]
        assert result(tmp_path / "run") == unbroken[1]
    assert max(seconds) < 10, "the grace that schedulers give"
    report("stopped at random instants", f"{len(seconds)} times, exit 75 at most {max(seconds):.1f} s after the signal")


def test_a_run_that_is_stopped_every_two_seconds_comes_to_its_end(begin, tmp_path, report):
    """Stopped before training starts or after, each attempt gets at least one dispatch further."""
    steps, code = [0], 75
    while code == 75:
        command = begin()
        command.process.join(2.0 if len(steps) > 2 else 0.3)
        command.send(signal.SIGTERM)
        code = command.wait().code
        steps.append(max(state_files(tmp_path / "run" / "checkpoints")))
        assert code == 0 or steps[-1] > steps[-2]
    assert code == 0
    report("stopped every two seconds", f"done after {len(steps) - 1} starts")


def gone(path):
    path.unlink()
    return path


# What happens to a saved state; `another` is another run's.
DAMAGE = {
    "deleted": lambda path, another: gone(path),
    "emptied": lambda path, another: path.write_bytes(b""),
    "truncated": lambda path, another: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path, another: path.write_bytes(path.read_bytes() + b"\0"),
    "of another run": lambda path, another: shutil.copy(another, path),
    "of another step": lambda path, another: shutil.copy(next(iter(state_files(path.parent).values())), path),
    "a link": lambda path, another: gone(path).symlink_to(another),
    "a broken link": lambda path, another: gone(path).symlink_to(path.parent / "nothing"),
    "a folder": lambda path, another: gone(path).mkdir(),
    "a pipe": lambda path, another: os.mkfifo(gone(path)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_state_that_is_not_what_was_saved_is_named_and_the_one_before_used(
    how, begin, unbroken, another, tmp_path, capsys, report
):
    path = tmp_path / "run"
    shutil.copytree(unbroken[0], path)
    newest = list(state_files(path / "checkpoints").values())[-1]
    DAMAGE[how](newest, another)
    best = path / "best" / newest.name  # training could resume from it
    best.unlink()
    assert [finding.path for finding in verify(open_run(path)) if finding.problem] == [newest, best]
    capsys.readouterr()
    assert read_run(open_run(path), "newest").step < int(newest.stem)
    said = capsys.readouterr().err
    assert how == "deleted" or (str(newest) in said and "is damaged" in said)
    ended = begin().wait()
    assert ended.code == 0, ended
    if how == "deleted":
        assert f"the records reach step {newest.stem}, but the state of that step is missing" in ended.errors
    else:
        assert f"the state {str(newest)!r} is damaged" in ended.errors
        assert f"It is now {newest.name}.damaged" in ended.errors
        assert os.path.lexists(f"{newest}.damaged")
        assert [finding.path.name for finding in verify(open_run(path)) if finding.verdict == "set aside"] == [
            f"{newest.name}.damaged"
        ]
    assert not [finding for finding in verify(open_run(path)) if finding.problem]
    assert result(path) == unbroken[1]
    report(f"a state that is {how}", "named, the state before used, the end as unbroken")


def test_a_flipped_bit_anywhere_is_found(unbroken, tmp_path, sized, report):
    """Flip a bit in every byte of every state's file (without --faults, in a sample): none is restored as intact."""
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(unbroken[0], run.path)
    like, identity, flipped = snapshot_shapes(run), run.identity(), 0
    for folder in (run.checkpoints, run.best):
        for path in state_files(folder).values():
            content = bytearray(path.read_bytes())
            header = 8 + int.from_bytes(content[:8], "little")
            places = range(0, len(content), sized(max(1, len(content) // 40), 1))
            for place in [*places, *range(0, header, sized(97, 1))]:
                bit = 1 << place % 8
                content[place] ^= bit
                path.write_bytes(content)
                with pytest.raises(DamagedError):
                    read_state(path, like, identity)
                content[place] ^= bit
                flipped += 1
            path.write_bytes(content)
            read_state(path, like, identity)
    report("flipped bits", f"{flipped} in {len(state_files(run.checkpoints)) + 1} files, all found")


def test_metadata_of_any_kind_is_damage_and_an_error_of_the_disk_is_not(unbroken, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(unbroken[0], run.path)
    path = list(state_files(run.checkpoints).values())[-1]
    arrays, like, identity = load(path.read_bytes()), snapshot_shapes(run), run.identity()
    for digests in ("[]", "{}", "7", "null", "[" * 100_000, '{"step": 7}', "[[1, 2]]", ""):
        path.write_bytes(save(arrays, {"run": identity, "sha256": digests}))
        with pytest.raises(DamagedError):
            read_state(path, like, identity)
    for metadata in (None, {"sha256": "{}"}):
        path.write_bytes(save(arrays, metadata))
        with pytest.raises(DamagedError):
            read_state(path, like, identity)

    def broken(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(checkpoints, "safe_open", broken)
    before = untouched(run.path)
    with pytest.raises(OSError, match="Too many open files"):
        list(train(prepare(run.configuration()), run.path))
    assert untouched(run.checkpoints) == [entry for entry in before if "/checkpoints/" in entry[0]]


def test_a_state_that_cannot_be_opened_now_is_not_a_missing_one(unbroken, tmp_path):
    """safetensors takes every file that it cannot open for a missing one, such as here for want of a descriptor."""
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(unbroken[0], run.path)
    path, like, identity = max(state_files(run.checkpoints).values()), snapshot_shapes(run), run.identity()
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            read_state(path, like, identity)
        finding = _judge(path, lambda: read_state(path, like, identity))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (finding.verdict, "Too many open files" in finding.problem) == ("BAD", True)
    assert _judge(path, lambda: read_state(path, like, identity)).verdict == "ok"


def test_files_that_are_listed_and_gone_are_waited_for(unbroken, tmp_path, monkeypatch):
    """As a network's file system lists those that the training process has just removed."""
    run, waited = RunDirectory(tmp_path / "run"), list[float]()
    shutil.copytree(unbroken[0], run.path)
    real, ghost = state_files, {10**6: run.checkpoints / "1000000.safetensors"}
    listed = lambda folder: real(folder) | (ghost if folder == run.checkpoints and len(waited) < gone else {})  # noqa: E731
    monkeypatch.setattr(checkpoints, "state_files", listed)
    monkeypatch.setattr(checkpoints.time, "sleep", waited.append)
    restore = lambda: newest_state(run.states, snapshot_shapes(run), run.identity(), lambda *_: None)  # noqa: E731
    gone = 3
    restored = restore()
    assert restored is not None
    assert (int(restored.step), len(waited)) == (max(real(run.checkpoints)), 3)
    gone = math.inf
    with pytest.raises(FileNotFoundError):
        restore()


def test_a_run_without_its_records_does_not_lose_its_best_model(begin, unbroken, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(unbroken[0], path)
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    best = untouched(path / "best")
    for kept in ([], lines[:2] + lines[4:], lines + lines[-2:]):
        (path / "metrics.jsonl").write_text("".join(kept))
        assert "metrics.jsonl" in [finding.path.name for finding in verify(open_run(path)) if finding.problem]
        ended = begin().wait()
        assert ended.code == 2
        assert "does not hold each epoch up to step" in ended.errors
        assert (path / "metrics.jsonl").read_text() == "".join(kept)
        assert untouched(path / "best") == best


def test_where_no_state_is_sound_the_run_stops(begin, unbroken, tmp_path):
    """It never starts over a run that may yet be saved; with the best state restored, it resumes from that."""
    path = tmp_path / "run"
    shutil.copytree(unbroken[0], path)
    for state in path.glob("*/*.safetensors"):
        state.write_bytes(b"rot")
    before = untouched(path / "checkpoints"), untouched(path / "best")
    for _ in range(2):
        ended = begin().wait()
        assert ended.code == 2
        assert re.search(r"no intact state is left in .* restore a copy, or start again in another", ended.errors)
        assert (untouched(path / "checkpoints"), untouched(path / "best")) == before
    shutil.rmtree(path / "best")
    shutil.copytree(unbroken[0] / "best", path / "best")
    assert read_run(open_run(path), "newest").step == read_run(open_run(path), "best").step > 0
    assert begin().wait().code == 0
    assert result(path) == unbroken[1], "it is a checkpoint again"


def test_a_changed_configuration_is_not_a_damaged_state(begin, unbroken, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(unbroken[0], path)
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text.replace('"dropout": 0.2', '"dropout": 0.3'))
    with pytest.raises(InputError, match=r"config.json or provenance.json has changed"):
        read_run(open_run(path), "newest")
    ended = begin("--dropout", 0.3).wait()
    assert ended.code == 2
    assert "config.json or provenance.json has changed" in ended.errors
    (path / "config.json").write_text(text)
    assert read_run(open_run(path), "newest").step == max(state_files(path / "checkpoints"))


@pytest.mark.parametrize("full", ["at the states", "at the records"])
def test_a_full_disk_costs_no_state(begin, unbroken, tmp_path, full, report):
    """Simulated by a limit on file size: one too small for any state, or one that the records outgrow."""
    flags = [] if full == "at the states" else ["--hidden-size", 1, "--sample-every", 1, "--sample-length", 2000]
    size = list(state_files(unbroken[0] / "checkpoints").values())[-1].stat().st_size
    ended = begin(*flags, file_size=size // 2 if full == "at the states" else 9000).wait()
    assert ended.code == 2, ended
    assert "Traceback" not in ended.errors
    assert "File too large" in ended.errors
    assert not list((tmp_path / "run").glob("**/.*"))
    ended = begin(*flags).wait()
    assert ended.code == 0, ended.errors
    assert full == "at the records" or result(tmp_path / "run") == unbroken[1]
    assert not [finding for finding in verify(open_run(tmp_path / "run")) if finding.problem]
    report(f"full disk {full}", "a sentence and exit 2; the next run goes on")


def test_a_directory_that_vanishes_or_cannot_be_written(begin, unbroken, tmp_path):
    command = begin("--epochs", 5000)
    command.wait_for(tmp_path / "run" / "best")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    ended = command.wait()
    assert (ended.code, "Traceback" in ended.errors) == (2, False), ended
    assert "No such file or directory" in ended.errors
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert begin().wait().code == 0
    assert result(tmp_path / "run") == unbroken[1]
    (tmp_path / "run" / "lock").chmod(0o444)
    ended = begin(privileged=False).wait()
    assert (ended.code, "Traceback" in ended.errors) == (2, False), ended
    assert f"the directory {str(tmp_path / 'run')!r} cannot be written (Permission denied)" in ended.errors


def test_folders_that_cannot_be_read_are_not_empty_ones(begin, unbroken, tmp_path, monkeypatch):
    """Neither a text's, part of which would be left out, nor one of states, the newest of which would be missed."""
    text = tmp_path / "text"
    (text / "part").mkdir(parents=True)
    (text / "whole.txt").write_text("words of a text " * 100)
    (text / "part").chmod(0)
    ended = begin("--corpus", text, privileged=False).wait()
    assert (ended.code, f"error: {str(text / 'part')!r} cannot be read: Permission denied" in ended.errors) == (2, True)
    run = tmp_path / "run"
    shutil.copytree(unbroken[0], run)
    (run / "checkpoints").chmod(0)
    ended = begin(privileged=False).wait()
    assert (ended.code, "Permission denied" in ended.errors) == (2, True), ended
    (run / "checkpoints").chmod(0o755)
    listed = Path.iterdir

    def forbidden(self):
        if self == run / "best":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", forbidden)
    verdicts = {finding.path: (finding.verdict, finding.problem) for finding in verify(RunDirectory(run))}
    assert verdicts.pop(run / "best") == ("BAD", "it cannot be read (Permission denied)")
    assert {verdict for verdict, _ in verdicts.values()} == {"ok"}


def test_a_rotten_compilation_cache_is_survived(begin, commands, unbroken, tmp_path):
    kept = {path: path.read_bytes() for path in commands.iterdir() if path.is_file()}
    assert kept
    for number, path in enumerate(kept):
        path.write_bytes(b"" if number % 2 else os.urandom(1000))
    try:
        ended = begin().wait()
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert ended.code == 0, ended.errors
    assert result(tmp_path / "run") == unbroken[1]


def test_a_second_writer_is_refused_and_told_who_the_first_is(begin, corpus, unbroken, tmp_path):
    first = begin("--epochs", 5000)
    first.wait_for(tmp_path / "run" / "best")
    elsewhere = tmp_path / "second"
    elsewhere.mkdir()
    ended = Command(["--corpus", corpus, *TINY, "--epochs", 5000, "--run-dir", tmp_path / "run"], elsewhere).wait()
    assert ended.code == 2
    assert f"is being written by process {first.pid} on {socket.gethostname()}; wait" in ended.errors
    first.send(signal.SIGKILL)
    assert first.wait().code == -signal.SIGKILL
    ended = begin("--epochs", 5001)
    ended.send(signal.SIGTERM)
    ended.wait()
    assert "is being written" not in (tmp_path / "stderr").read_text(), "the lock went with its process"


def test_a_kill_between_an_epochs_two_records_is_no_damage(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    run = open_run(tmp_path / "run")
    *lines, last = map(json.loads, run.metrics.read_text().splitlines())
    assert last["event"] == "epoch"
    lowest = {**lines[-1], "held_out_loss": 0.001}
    assert lowest["event"] == "evaluation"
    run.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in [*lines[:-1], lowest]))
    assert not [finding for finding in verify(run) if finding.problem]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 1.5),
        ("embedding_size", True),
        ("corpus", 5),
        ("encoding", 5),
        ("seed", "1"),
        ("init_from", [1]),
        ("clip", "1"),
        ("clip", 10**400),
        ("temperatures", ["1"]),
        ("lowercase", 1),
    ],
)
def test_a_choice_of_the_wrong_type_is_refused(name, value):
    record = {**Configuration().to_json(), name: value}
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} .* cannot be used: it must be [a-z]"):
        Configuration.from_json(record)


def test_a_whole_number_may_stand_for_a_float():
    assert Configuration.from_json({**Configuration().to_json(), "clip": 2, "temperatures": [1]}) == Configuration(
        clip=2.0, temperatures=(1.0,)
    )


def test_only_the_unfinished_files_of_dead_processes_are_removed(tmp_path):
    """Not a user's, nor those that another process, such as a report's, is about to rename."""
    dead, alive, foreign = f".a.{2**22 + 1}.unfinished", f".b.{os.getppid()}.unfinished", ".notes.2024"
    for name in (dead, alive, foreign):
        (tmp_path / name).touch()
    with hold_folder("--run-dir", tmp_path):
        assert {path.name for path in tmp_path.glob(".*")} == {alive, foreign}


def test_a_folder_that_cannot_be_locked_may_be_held(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    assert not is_held(tmp_path)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with hold_folder("--grid-dir", tmp_path):
        assert is_held(tmp_path)


def test_links_out_of_a_run_are_not_followed(begin, unbroken, tmp_path):
    for name in ("config.json", "metrics.jsonl", "checkpoints", "best"):
        path = tmp_path / name
        shutil.copytree(unbroken[0], path)
        (path / name).rename(tmp_path / f"moved-{name}")
        (path / name).symlink_to(tmp_path / f"moved-{name}")
        with pytest.raises(InputError, match=f"{name}' is a link"):
            open_run(path)
    victim, outside = tmp_path / "victim", tmp_path / "outside"
    victim.write_text("not ours")
    outside.mkdir()
    (outside / ".notes.2024.unfinished").write_text("not ours")
    path = tmp_path / "run"
    shutil.copytree(unbroken[0], path)
    for name, target in (("lock", victim), ("checkpoints", outside), ("best", outside)):
        (path / name).rename(tmp_path / "kept")
        (path / name).symlink_to(target)
        ended = begin().wait()
        assert (ended.code, f"{name}' is a link" in ended.errors) == (2, True), ended
        assert (victim.read_text(), (outside / ".notes.2024.unfinished").read_text()) == ("not ours", "not ours")
        (path / name).unlink()
        (tmp_path / "kept").rename(path / name)
    (path / "samples.jsonl").rename(tmp_path / "kept")
    os.mkfifo(path / "samples.jsonl")
    with pytest.raises(InputError, match=r"samples.jsonl' is a link, which may lead anywhere"):
        open_run(path)
    (path / "samples.jsonl").unlink()
    (tmp_path / "kept").rename(path / "samples.jsonl")
    oldest = min(state_files(path / "checkpoints"))
    (path / "checkpoints" / f"{oldest + 1}.safetensors").symlink_to(victim)
    assert begin().wait().code == 0
    assert victim.read_text() == "not ours"


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_devices_goes_on_with_the_same_parameters(unbroken, tmp_path, before, after, capsys):
    chosen = dataclasses.replace(open_run(unbroken[0]).configuration(), batch_size=16, epochs=3)
    path = tmp_path / "run"
    next(train(prepare(chosen, devices=before), path))
    saved = read_run(open_run(path), "newest")
    capsys.readouterr()
    job = prepare(chosen, devices=after)
    run = RunDirectory(path)
    restored = newest_state(run.states, snapshot_shapes(run), run.identity(), lambda *_: None)
    assert restored is not None
    assert all(map(np.array_equal, jax.tree.leaves(restored.model), jax.tree.leaves(saved.model)))
    assert [epoch.epoch for epoch in train(job, path)] == [2, 3]
    assert f"not bit-exact: this run was started elsewhere (device_count {before} then and {after} now" in (
        capsys.readouterr().err
    )


# Odd input: the only errors that may reach a user are those that `exit_codes` turns into a sentence.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


def fuzz(count, check, *strategies):
    """Run a check on many inputs, the same every time."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    bound = settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=checks)
    bound(given(*strategies)(check))()


def untouched(folder):
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*"))


def test_odd_texts(tmp_path, sized, report):
    """Any bytes in any encoding either become a job or are refused in one sentence."""
    count, refusals = sized(60, 2000), []

    def check(content, encoding, lowercase, objective):
        path = tmp_path / "text"
        path.write_bytes(content)
        options = {"corpus": str(path), "encoding": encoding, "lowercase": lowercase, "objective": objective}
        try:
            job = prepare(Configuration(**options, window=2, batch_size=2))
        except InputError as error:
            refusals.append(str(error))
        else:
            parts = job.training_ids, job.held_out_ids
            assert "".join(map(job.vocabulary.decode, parts)) == job.vocabulary.decode(job.corpus.ids)

    odd = st.sampled_from(["\udc80", "\u202e\u05d0", "\0", "🜁", "\r\n", "\ufeff", "İ", "a" * 3000])
    parts = st.lists(odd | st.text(max_size=8), max_size=12)
    texts = st.binary(max_size=60) | parts.map(lambda parts: "".join(parts).encode(errors="surrogatepass"))
    encodings = [
        "utf-8",
        "utf-16",
        "cp1252",
        "latin-1",
        "utf-7",
        "idna",
        "base64",
        "rot13",
        "no such",
        "",
        "\0",
        "mbcs",
    ]
    objectives = st.sampled_from(["last-character", "every-character"])
    fuzz(count, check, texts, st.none() | st.sampled_from(encodings), st.booleans(), objectives)
    assert not any("\n" in refusal for refusal in refusals)
    report("odd texts", f"{count}: {count - len(refusals)} jobs, {len(refusals)} refused in one sentence")


def test_hostile_files_of_a_run(unbroken, tmp_path, sized, report):
    """Random bytes, random JSON, and the real content with one value replaced, in each file that others may send."""
    count, refusals, path = sized(60, 2000), [], tmp_path / "run"
    shutil.copytree(unbroken[0], path)
    names = ["config.json", "provenance.json", "metrics.jsonl", "samples.jsonl"]
    whole = {name: (path / name).read_bytes() for name in names}

    def changed(name, value, place):
        records = (
            [json.loads(line) for line in whole[name].splitlines()] if name.endswith("l") else [json.loads(whole[name])]
        )
        record = records[place % len(records)]
        if place % 3 == 0 and isinstance(record.get("corpus"), dict):
            record = record["corpus"]
        record[sorted(record)[place % len(record)]] = value
        return "\n".join(map(json.dumps, records)).encode() + b"\n"

    def check(name, content, value, place):
        (path / name).write_bytes(changed(name, value, place) if content is None else content)
        before = untouched(tmp_path)
        try:
            run = open_run(path)
            read_records(run.metrics)
            read_records(run.samples)
            points_of(run, list(run.configuration().to_json()))
            load_run(path)
        except InputError as error:
            refusals.append(str(error))
        finally:
            assert untouched(tmp_path) == before
            (path / name).write_bytes(whole[name])

    contents = st.none() | st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode() + b"\n")
    values = JSON | st.sampled_from([10**400, -1, 2**31, 1e308, "../../etc/passwd", "x" * 10**5, [[]], {"a": {}}])
    fuzz(count, check, st.sampled_from(names), contents, values, st.integers(0, 100))
    assert not any("\n" in refusal for refusal in refusals)
    report("hostile files of a run", f"{count}: {len(refusals)} refused in one sentence, the others read, none written")


def test_odd_command_lines(tmp_path, sized, report, capfd, monkeypatch):
    """Any flag with any kind of value gives a configuration, or an error with exit code 2."""
    monkeypatch.chdir(tmp_path)
    count, codes = sized(60, 1500), set()
    flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Configuration)]
    flags += ["--run-dir", "--devices", "--nothing", "quick", "strong", "-h"]
    values = ["", "-1", "0", "1e999", "nan", "9" * 40, "../..", "\u202e", "\udc80", "--", "None", "[1]"]

    def check(words):
        try:
            arguments = parse_training("text_generation", "About.", words, preset="quick")
            assert Configuration.from_json(arguments.configuration.to_json()) == arguments.configuration
        except InputError:
            pass
        except SystemExit as stop:
            codes.add(stop.code)
        capfd.readouterr()

    fuzz(count, check, st.lists(st.sampled_from(flags + values) | st.text(max_size=5), max_size=5))
    assert codes <= {0, 2}
    assert list(tmp_path.iterdir()) == []
    report("odd command lines", f"{count}: each a configuration or exit code 2, nothing written")
