"""The package as a library: what it exports, what importing it costs, and runs trained, loaded and used in Python."""

import ast
import importlib
import json
import math
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import call

import charlm_jax
from charlm_jax import PRESETS, Configuration, DivergedError, InputError, LoadedRun, load_run, train_run
from charlm_jax.runs import loop
from charlm_jax.runs.history import record_epoch
from charlm_jax.runs.records import read_records

ROOT = Path(__file__).parent.parent
TINY = replace(PRESETS["quick"], window=10, stride=2, batch_size=16, hidden_size=8, sample_length=20, epochs=3)


@pytest.fixture(scope="module")
def configuration(corpus):
    return replace(TINY, corpus=str(corpus), lowercase=True)


@pytest.fixture(scope="module")
def run(configuration, tmp_path_factory):
    return train_run(configuration, tmp_path_factory.mktemp("runs") / "run")


def printed(capsys, experiment, *flags):
    """Return a command's output."""
    capsys.readouterr()
    assert call(experiment, *flags) == 0
    return capsys.readouterr().out


def test_importing_the_package_loads_nothing_slow():
    watch = "import sys, charlm_jax; dir(charlm_jax); charlm_jax.InputError; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", watch], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "flax", "optax", "scipy", "matplotlib", "tyro"} & set(done.stdout.split())


def test_every_name_is_offered_once_documented_and_known_to_type_checkers():
    assert len(charlm_jax.__all__) == len(set(charlm_jax.__all__))
    (typed,) = (node for node in ast.parse(Path(charlm_jax.__file__).read_text()).body if isinstance(node, ast.If))
    imports = [node for node in typed.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: str(node.module) for node in imports for alias in node.names}
    assert sorted(seen) == sorted(charlm_jax.__all__)
    assert set(charlm_jax.__all__) <= set(dir(charlm_jax))
    for name, module in seen.items():
        offered = getattr(charlm_jax, name)
        assert offered is getattr(importlib.import_module(module), name)
        assert name == "PRESETS" or offered.__doc__
    with pytest.raises(AttributeError, match="no attribute 'wrote'"):
        charlm_jax.wrote  # noqa: B018
    with pytest.raises(ImportError, match="wrote"):
        exec("from charlm_jax import wrote")


def test_the_wheel_says_that_it_is_typed(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"charlm_jax/py.typed", "charlm_jax/__init__.py", "charlm_jax/analysis/report.css"} <= set(names)


def test_metrics_are_the_records_as_arrays(run):
    records = read_records(run.path / "metrics.jsonl")
    evaluations, epochs = records[::2], records[1::2]
    np.testing.assert_array_equal(run.metrics.epoch, [1, 2, 3])
    assert run.metrics.epoch.dtype == run.metrics.step.dtype == int
    for name, source in [("step", epochs), ("training_loss", epochs), ("held_out_loss", evaluations)]:
        np.testing.assert_array_equal(getattr(run.metrics, name), [record[name] for record in source])
    assert run.step == run.metrics.step[np.argmin(run.metrics.held_out_loss)]


def test_what_was_not_measured_is_nan(configuration, tmp_path):
    run = train_run(replace(configuration, held_out_fraction=0.0, epochs=1), tmp_path / "run")
    assert np.isnan(run.metrics.held_out_loss).all()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    record = {**json.loads(lines[-1]), "seconds": None}
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (seconds,) = load_run(tmp_path / "run").metrics.seconds
    assert math.isnan(seconds)


def test_generating_is_what_the_command_prints(run, capsys):
    flags = ["--prompt", "the will", "--temperature", 0.7, "--length", 30, "--seed", 5]
    expected = printed(capsys, "sample", run.path, *flags)
    text = run.generate("the will", temperature=0.7, length=30, seed=5)
    assert f"the will{text}\n" == expected
    assert text == run.generate("the will", temperature=0.7, length=30, seed=5)
    assert text != run.generate("the will", temperature=0.7, length=30, seed=6)
    assert len(run.generate(length=7)) == 7
    truncated = run.generate("the will", temperature=0.7, length=30, seed=5, top_k=3, top_p=0.5)
    assert f"the will{truncated}\n" == printed(capsys, "sample", run.path, *flags, "--top-k", 3, "--top-p", 0.5)
    assert truncated != text


def test_surprisal_is_the_loss_of_each_character(run, capsys, tmp_path):
    text = "what is good? the will to truth.\n"
    (tmp_path / "text.txt").write_text(text)
    stream = json.loads(printed(capsys, "evaluate", run.path, "--text", tmp_path / "text.txt"))["stateful"]
    found = run.surprisal(text[1:], prompt=text[0])
    assert found.nats.mean() == pytest.approx(stream["loss_nats"], rel=1e-5)  # float32, summed in another order
    # At temperature 0 the likeliest character is drawn, so its probability is the first of the two.
    greedy = run.generate("the w", temperature=0.0, length=12)
    found = run.surprisal(greedy, prompt="the w", top=2)
    assert found.likeliest[::2] == greedy
    np.testing.assert_allclose(np.exp(-found.nats), found.probabilities[:, 0], rtol=1e-5)
    assert found.probabilities.shape == (12, 2)


def test_the_same_call_goes_on_and_a_loaded_run_is_the_trained_one(configuration, run, capsys):
    records = (run.path / "metrics.jsonl").read_bytes()
    again, loaded = train_run(configuration, str(run.path)), load_run(str(run.path))
    assert (run.path / "metrics.jsonl").read_bytes() == records
    for other in (again, loaded):
        assert isinstance(other, LoadedRun)
        assert other.configuration == run.configuration
        assert other.generate("a", length=20) == run.generate("a", length=20)
    assert load_run(run.path, "newest").step == run.metrics.step[-1]


def test_an_interrupt_in_a_notebook_loses_nothing(configuration, run, tmp_path, monkeypatch):
    """Ctrl-C during the second epoch, with the traceback kept as in a notebook; then the same cell again."""
    with monkeypatch.context() as patch:

        def interrupted(directory, done, **options):
            if done.epoch == 2:
                raise KeyboardInterrupt
            record_epoch(directory, done, **options)

        patch.setattr(loop, "record_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            train_run(configuration, tmp_path / "run")
    assert load_run(tmp_path / "run").metrics.epoch.tolist() == [1]
    again = train_run(configuration, tmp_path / "run")
    assert kept.value is not None
    for name in ("epoch", "step", "training_loss", "held_out_loss"):
        np.testing.assert_array_equal(getattr(again.metrics, name), getattr(run.metrics, name))


def test_mistakes_raise_the_errors_that_the_package_names(run, configuration, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "exit", lambda code: pytest.fail(f"sys.exit({code})"))
    mistakes = {
        "not a run directory": lambda: load_run(tmp_path / "none"),
        "there is no corpus": lambda: train_run(Configuration(corpus="no-such-text"), tmp_path / "run"),
        "holds another run": lambda: train_run(replace(configuration, hidden_size=9), run.path),
        "the prompt has 'É'": lambda: run.generate("É"),
        "temperature -1.0": lambda: run.generate("a", temperature=-1.0),
        "length 0": lambda: run.generate("a", length=0),
        "top_k 0": lambda: run.generate("a", top_k=0),
        "top_p 2": lambda: run.generate("a", top_p=2.0),
        "the text has 'É'": lambda: run.surprisal("É"),
        "--hidden-size 0": lambda: Configuration(hidden_size=0),
    }
    for words, mistake in mistakes.items():
        with pytest.raises(InputError, match=words):
            mistake()
    with pytest.raises(DivergedError, match="diverged"):
        train_run(replace(configuration, learning_rate=1e30, clip=None, warmup=0.0), tmp_path / "diverged")
