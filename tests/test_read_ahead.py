import dataclasses

import jax
import numpy as np
import pytest
from faults import result

from charlm_jax.data.host_windows import read_batches
from charlm_jax.data.windows import ShuffledWindows
from charlm_jax.errors import DamagedError, Preempted
from charlm_jax.runs import train as train_module
from charlm_jax.runs.assembly import prepare
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.encoding import encode
from charlm_jax.runs.read_ahead import read_ahead

pytest.importorskip("grain", reason="grain is not installed")

IDS = np.random.default_rng(0).integers(0, 50, 2000, np.uint8)
ORDER, KEY, ROWS = ShuffledWindows(10, stride=3, batch_size=8), jax.random.key(3), np.arange(8)


def pieces(first, end, vocabulary_size=50):
    sizes = {"piece": 4, "vocabulary_size": vocabulary_size}
    return list(read_ahead(IDS, ORDER, KEY, ROWS, first=first, end=end, **sizes))


def test_every_step_comes_once_and_in_order_wherever_reading_begins():
    for first in (0, 81, 99):
        found = pieces(first, 103)
        assert [step for step, _ in found] == list(range(first, 103, 4))
        for step, batches in found:
            expected = read_batches(IDS, ORDER, KEY, np.arange(step, step + 4), ROWS)
            np.testing.assert_array_equal(batches.characters, expected.characters)
            np.testing.assert_array_equal(batches.weights, expected.weights)


def test_an_id_that_stands_for_no_character_is_refused():
    with pytest.raises(DamagedError, match="ids that stand for no character"):
        pieces(0, 40, vocabulary_size=49)


@pytest.mark.parametrize("carry", ["kept", "fresh"])
def test_a_run_on_a_streamed_text_is_the_run_on_a_resident_one(tmp_path, monkeypatch, small_text, carry):
    """Stopped and resumed again and again, on pieces of three steps, from a folder: the same states and records."""
    monkeypatch.setattr(train_module, "_PIECE", 3)
    (tmp_path / "text.txt").write_text(small_text)
    encode(tmp_path / "text.txt", tmp_path / "ids", encoding=None, lowercase=False)
    configuration = Configuration(
        corpus=str(tmp_path / "text.txt"),
        objective="every-character",
        carry=carry,
        window=10,
        batch_size=4,
        hidden_size=8,
        dropout=0.2,
        epochs=3,
        sample_length=5,
    )
    streamed = dataclasses.replace(configuration, corpus=str(tmp_path / "ids"))
    paths = [tmp_path / name / "run" for name in ("resident", "streamed")]
    list(train_module.train(prepare(configuration), paths[0], text="resident"))
    stops = 0
    while True:
        asked = iter([False] * 4)
        try:
            list(train_module.train(prepare(streamed), paths[1], lambda: next(asked, True), text="streamed"))  # noqa: B023
        except Preempted:
            stops += 1
        else:
            break
    assert stops > 1
    assert result(paths[0]) == result(paths[1])
