import jax
import numpy as np
import pytest

from charlm_jax.data.host_windows import read_batches
from charlm_jax.data.windows import ShuffledWindows
from charlm_jax.errors import DamagedError
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
