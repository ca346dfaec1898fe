"""Grids of runs: which runs a command line defines, and that they finish however often they are stopped."""

import shutil

import jax.numpy as jnp
import pytest
from commands import call, results

from charlm_jax.errors import InputError, Preempted
from charlm_jax.learning.objective import last_losses
from charlm_jax.runs import grid, train
from charlm_jax.runs.directory import open_run
from charlm_jax.runs.grid import parse_grid, run_grid
from charlm_jax.runs.history import held_out_losses
from charlm_jax.runs.trained import load_text, read_run

SMALL = ["--window", "10", "--batch-size", "4", "--epochs", "2", "--temperatures", "0.5", "--sample-length", "10"]


@pytest.fixture
def corpus(tmp_path, small_text):
    path = tmp_path / "corpus.txt"
    path.write_text(small_text)
    return ["--corpus", str(path), *SMALL]


def parse(*flags, vary=("hidden_size=4,8",)):
    return parse_grid("ablate", "", list(map(str, flags)), preset="quick", vary=vary)


def test_every_combination_and_seed_is_a_run(corpus, tmp_path):
    varied = ["--vary", "hidden-size=4,8", "learning_rate=0.01,0.03"]
    arguments, runs = parse(*corpus, *varied, "--replicas", 2, "--seed", 5, "--dropout", 0.3, "--grid-dir", tmp_path)
    combinations = [(size, rate, seed) for size in (4, 8) for rate in (0.01, 0.03) for seed in (5, 6)]
    names = [f"hidden_size={size},learning_rate={rate},seed={seed}" for size, rate, seed in combinations]
    assert [run.path.name for run in runs] == names
    assert {run.path.parent for run in runs} == {tmp_path} == {arguments.grid_dir}
    third = runs[2].configuration
    assert (third.hidden_size, third.learning_rate, third.seed, third.dropout) == (4, 0.03, 5, 0.3)
    assert parse(*corpus, "--grid-dir", tmp_path)[1][0].varied == ("hidden_size", "seed")


def test_truths_and_nothing_can_be_varied(corpus, tmp_path):
    _, runs = parse(*corpus, "--vary", "lowercase=true,False", "clip=none,2", "--replicas", 1, "--grid-dir", tmp_path)
    chosen = [(run.configuration.lowercase, run.configuration.clip) for run in runs]
    assert chosen == [(True, None), (True, 2.0), (False, None), (False, 2.0)]
    assert runs[0].path.name == "lowercase=True,clip=None,seed=1"


def test_the_gap_is_to_windows_from_all_over_the_training_text(corpus, tmp_path):
    arguments, runs = parse(*corpus, "--vary", "hidden_size=4", "--replicas", 1, "--grid-dir", tmp_path / "grid")
    run_grid(arguments, runs, lambda: False)
    loaded = read_run(open_run(runs[0].path))
    training, held_out = load_text(open_run(runs[0].path))
    starts = range(0, len(training) - 10, 3 * (len(training) // len(held_out)))
    windows = jnp.array([training[start : start + 11] for start in starts], jnp.int32)
    expected = float(last_losses(loaded.model, windows).mean())
    assert grid.outcome_of(runs[0], None).training_loss == pytest.approx(expected, rel=1e-5)
    assert starts[-1] > 0.9 * len(training)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--vary", "hidden=4"],
            r"--vary hidden=4 .* FIELD=VALUE,VALUE,... with one of corpus, .*; did you mean 'hidden_size'\?$",
        ),
        (["--vary", "hidden_size"], "--vary hidden_size .*separated by commas"),
        (["--vary", "hidden_size=4,,8"], "--vary.*separated by commas"),
        (["--vary", "hidden_size=4,4"], "--vary.*a list of different values"),
        (["--vary", "hidden_size=4", "hidden-size=8"], "--vary.*named once"),
        (["--vary", "seed=4,5"], "--vary.*--replicas and --seed"),
        (["--vary", "dropout=0,1"], "--dropout 1.0.*below 1"),
        (["--vary", "hidden_size=8,08"], "names a run twice: 'hidden_size=8,seed=1'"),
        (["--replicas", "0"], "--replicas 0"),
        (["--held-out-fraction", "0"], "--held-out-fraction 0.0.*compares held-out losses"),
        (["nonsense"], "there is no preset 'nonsense'"),
    ],
)
def test_what_is_no_grid_is_refused(flags, message):
    with pytest.raises(InputError, match=message):
        parse(*flags)


def test_a_run_is_no_place_for_a_grid(corpus, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"--grid-dir .* cannot be used: .* this one is a run's own"):
        parse(*corpus, "--grid-dir", tmp_path)


def test_a_grid_that_is_stopped_twice_ends_with_the_same_table(corpus, tmp_path, capsys):
    flags = [*corpus, "--replicas", 2, "--grid-dir"]
    run_grid(*parse(*flags, tmp_path / "unbroken"), lambda: False)
    printed = capsys.readouterr().out
    stops = 0
    while True:
        asked = iter([False] * 3)
        try:
            run_grid(*parse(*flags, tmp_path / "broken"), lambda: next(asked, True))  # noqa: B023
        except Preempted:
            stops += 1
        else:
            break
    assert stops >= 2
    assert results(tmp_path / "broken") == results(tmp_path / "unbroken")
    table = [line.split() for line in printed.splitlines()]
    assert table[0][:3] == ["hidden_size", "replicas", "held_out_loss"], "where none diverged, none is counted"
    assert table[0][3:] == ["low", "high", "bits_per_character", "gap", "parameters", "characters_per_second_each"]
    assert {path.suffix for path in (tmp_path / "broken").iterdir()} >= {".csv", ".svg", ".png"}
    row = results(tmp_path / "unbroken")[1]
    assert table[2][:-1] == [row[name] for name in table[0][:-1]]
    runs = [open_run(tmp_path / "unbroken" / f"hidden_size=8,seed={seed}") for seed in (1, 2)]
    losses = [min(held_out_losses(run)) for run in runs]
    assert float(row["held_out_loss"]) == pytest.approx(sum(losses) / 2, abs=1e-4)

    # Finished runs are kept, and a lost one is trained again.
    shutil.rmtree(tmp_path / "unbroken" / "hidden_size=4,seed=2")
    run_grid(*parse(*flags, tmp_path / "unbroken"), lambda: False)
    assert results(tmp_path / "unbroken") == results(tmp_path / "broken")


def test_one_that_diverges_ends_with_exit_code_3_and_the_others_results(corpus, tmp_path, capsys):
    flags = [*corpus, "--clip", "None", "--schedule", "constant", "--warmup", 0, "--replicas", 1]
    assert call("ablate", *flags, "--vary", "learning_rate=0.01,1e38", "--grid-dir", tmp_path / "grid") == 3
    captured = capsys.readouterr()
    assert "training diverged" in captured.err
    assert captured.out.split()[:3] == ["learning_rate", "replicas", "diverged"]
    assert "learning_rate=1e+38,seed=1" in captured.err
    rows = results(tmp_path / "grid")
    assert [(row["learning_rate"], row["diverged"], bool(row["held_out_loss"])) for row in rows] == [
        ("0.01", "0", True),
        ("1e+38", "1", False),
    ]


@pytest.mark.parametrize(("experiment", "flags"), [("ablate", []), ("hidden_size", ["--vary"])])
def test_a_grid_needs_something_to_vary(experiment, flags, corpus, capsys):
    assert call(experiment, *corpus, *flags) == 2
    assert "nothing is varied; give --vary FIELD=VALUE,VALUE,..., such as" in capsys.readouterr().err


def test_runs_with_one_program_are_trained_together(corpus, tmp_path, monkeypatch):
    """Runs that differ only in seed and learning rate share a group; each hidden size has its own."""
    groups = []
    monkeypatch.setattr(train, "train_together", lambda jobs, *_: groups.append(len(jobs)) or iter(()))
    monkeypatch.setattr(grid, "_report", lambda *_: None)
    flags = [*corpus, "--vary", "learning_rate=0.01,0.03", "hidden_size=4,8", "--replicas", 3]
    run_grid(*parse(*flags, "--grid-dir", tmp_path / "grid"), lambda: False)
    assert groups == [6, 6]


def test_a_grid_goes_on_where_its_text_has_moved(corpus, tmp_path, capsys):
    flags = ["--vary", "hidden_size=4", "--replicas", 1, "--grid-dir", tmp_path / "grid"]
    assert call("ablate", *corpus, *flags) == 0
    before = results(tmp_path / "grid")
    moved = (tmp_path / "corpus.txt").rename(tmp_path / "moved.txt")
    assert call("ablate", "--corpus", moved, *SMALL, *flags) == 0, capsys.readouterr().err
    assert results(tmp_path / "grid") == before
    moved.write_text(moved.read_text().replace("e", "a"))
    assert call("ablate", "--corpus", moved, *SMALL, *flags) == 2
    assert "the text" in capsys.readouterr().err


def test_more_devices_than_a_models_rows_split_the_models(corpus, tmp_path):
    flags = ["--vary", "hidden_size=4", "--replicas", 2, "--grid-dir", tmp_path / "grid", "--batch-size", 1]
    assert call("ablate", *corpus, *flags, "--devices", 2) == 0
    run = open_run(tmp_path / "grid" / "hidden_size=4,seed=2")
    assert (run.provenance()["device_count"], run.provenance()["replicas"]) == (1, 2)
