import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from faults import result

from charlm_jax.data.host_windows import read_batches
from charlm_jax.data.vocabulary import Vocabulary
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


def pieces(first, end, characters=50):
    vocabulary = Vocabulary("".join(map(chr, range(65, 65 + characters))))
    return list(read_ahead(IDS, ORDER, KEY, ROWS, first=first, end=end, piece=4, vocabulary=vocabulary))


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
        pieces(0, 40, characters=49)


def test_what_was_read_of_a_file_does_not_stay_in_memory(tmp_path):
    """By the kernel's own count of the file's pages that are mapped into this process."""
    path, size = tmp_path / "ids.npy", 1 << 26
    np.save(path, np.zeros(size, np.uint8))
    ids, order, rows = np.load(path, mmap_mode="r"), ShuffledWindows(60, 64, 256), np.arange(256)

    def mapped():
        rest = Path("/proc/self/smaps").read_text().partition(str(path))[2]
        return 1024 * int(re.findall(r"Rss: +(\d+) kB", rest)[0])

    for _ in range(order.steps(size) // 64):
        read_batches(ids, order, KEY, np.arange(64), rows)
    assert mapped() > size / 16  # so it would show if they stayed
    steps = {"first": 0, "end": order.steps(size), "piece": 64}
    assert all(step >= 0 for step, _ in read_ahead(ids, order, KEY, rows, **steps, vocabulary=Vocabulary("a")))
    assert mapped() < size / 16


@pytest.mark.parametrize("carry", ["kept", "fresh"])
def test_a_run_on_a_streamed_text_is_the_run_on_a_resident_one(tmp_path, monkeypatch, small_text, carry):
    """Stopped and resumed repeatedly, on pieces of three steps, from an encoded folder: the same states and records."""
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
