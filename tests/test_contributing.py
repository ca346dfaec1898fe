"""The worked examples of CONTRIBUTING.md work when applied, word for word, to a copy of the repository."""

import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)


def apply(change, folder):
    """Apply a diff to a folder's files; the `-` and context lines of each hunk must occur exactly once."""
    for of_file in re.split(r"^--- ", change, flags=re.M)[1:]:
        name, _, hunks = of_file.partition("\n")
        text = (folder / name).read_text()
        for hunk in re.split(r"^@@\n", hunks, flags=re.M):
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] or "\n" for line in lines if line[0] != sign) for sign in "+-")
            assert text.count(before) == 1, f"{name} has not once:\n{before}"
            text = text.replace(before, after)
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the repository with all examples applied."""
    folder = tmp_path_factory.mktemp("changed")
    for part in ("charlm_jax", "experiments", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for language, block in BLOCKS:
        if language == "diff":
            apply(block, folder)
    (experiment,) = [block for language, block in BLOCKS if language == "python"]
    (folder / "experiments" / "predictability.py").write_text(experiment)
    return folder


def run(folder, *words, **environment):
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=folder, env=environment)
    return done.returncode, done.stdout, done.stderr


def test_the_commands_are_there():
    commands = re.findall(r"^scripts/(\S+)", "".join(block for language, block in BLOCKS if language == "bash"), re.M)
    assert commands == ["test", "check", "docs"]
    assert all(os.access(ROOT / "scripts" / name, os.X_OK) for name in commands)


def test_what_is_added_passes_its_tests(changed):
    """The gate: forward against NumPy, Flax and Keras, and four gradients; the objective; the statistic, twice."""
    files = ["tests/test_recurrence.py", "tests/test_objective.py", "tests/test_text_statistics.py"]
    forward = "test_forward_equals or test_values_and_gradients"
    chosen = f"(({forward}) and hard_sigmoid_keras_3) or losses_equal_numpy or mean_length or every_text_gets"
    code, output, errors = run(changed, "-m", "pytest", "-q", *files, "-k", chosen)
    assert code == 0, output + errors
    assert "9 passed" in output


def test_what_is_added_looks_like_the_rest(changed):
    for check in (["check"], ["format", "--check"]):
        code, output, errors = run(changed, "-m", "ruff", *check, "charlm_jax", "experiments", "tests")
        assert code == 0, output + errors


def test_the_command_line_knows_the_new_words(changed):
    code, output, _ = run(changed, "experiments/text_generation.py", "--help", COLUMNS="200")
    assert code == 0
    assert "{sigmoid,hard_sigmoid,hard_sigmoid_keras_3}" in output
    assert "{last-character,every-character,later-half}" in output


def test_the_experiment_is_one_like_the_others(changed, tmp_path):
    (tmp_path / "jax.py").write_text("raise SystemExit('JAX was imported')")
    code, output, errors = run(
        changed, "experiments/predictability.py", "--help", PYTHONPATH=f"{tmp_path}{os.pathsep}{changed}", COLUMNS="80"
    )
    assert (code, errors) == (0, "")
    assert output.startswith("usage: scripts/run predictability")
    (tmp_path / "text.txt").write_text(text := "abracadabra, abracadabra")
    code, output, errors = run(changed, "experiments/predictability.py", tmp_path / "text.txt", "--context", "2")
    assert (code, errors) == (0, "")
    assert [line.split() for line in output.splitlines()[1:]] == [
        [str(before), f"{joint(text, before + 1) - joint(text, before):.4f}"] for before in range(3)
    ]
    code, output, errors = run(changed, "experiments/predictability.py", tmp_path / "text.txt", "--context", "24")
    assert (code, output) == (2, "")
    assert errors.count("\n") == 1
    assert "has 24 characters; name a longer one" in errors


def joint(text, n):
    """Return the entropy of a text's passages of n characters, in nats."""
    counts = Counter(zip(*(text[start:] for start in range(n)), strict=False))
    return -sum(count / counts.total() * math.log(count / counts.total()) for count in counts.values())
