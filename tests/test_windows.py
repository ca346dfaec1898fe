import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.data.windows import (
    ParallelStreams,
    ShuffledWindows,
    count_windows,
    draw_batch,
    gather_batch,
    shuffled,
    split_held_out,
)
from charlm_jax.errors import InputError


def batch_of(order, ids, key, step):
    """Return all rows of a batch."""
    return draw_batch(order, ids, key, jnp.int32(step), jnp.arange(order.batch_size))


def brute_force_windows(text, window, stride):
    """Return windows and targets by the notebooks' own loop."""
    starts = range(0, len(text) - window, stride)
    return [(text[start : start + window], text[start + window]) for start in starts]


@pytest.mark.parametrize(("length", "window", "stride"), [(61, 60, 3), (64, 60, 3), (60, 60, 1), (1000, 7, 5)])
def test_windows_are_those_of_the_notebooks_loop(length, window, stride):
    text = np.arange(length)
    expected = brute_force_windows(text, window, stride)
    assert count_windows(length, window=window, stride=stride) == len(expected)
    if expected:
        starts = stride * jnp.arange(len(expected))
        batch = gather_batch(jnp.asarray(text), starts, jnp.ones(len(expected), bool), window=window)
        np.testing.assert_array_equal(batch.characters, [[*inputs, target] for inputs, target in expected])


def test_nietzsche_has_the_notebooks_windows(nietzsche):
    assert count_windows(len(nietzsche.text), window=60, stride=3) == 200_278


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 64, 65, 1000])
def test_the_shuffle_is_a_bijection(count):
    order = shuffled(jax.random.key(0), jnp.arange(count), count)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_the_shuffle_is_uniform_and_its_keys_are_independent():
    """Chi-squared over where each of 20 positions goes under 4,000 keys: 361 degrees of freedom.

    A uniform shuffle exceeds 361 + 5 sqrt(2 * 361) = 495 with a probability below 1e-5.
    """
    count, keys = 20, 4000
    orders = jax.vmap(lambda key: shuffled(key, jnp.arange(count), count))(jax.random.split(jax.random.key(1), keys))
    seen = np.zeros((count, count))
    for position in range(count):
        seen[position] = np.bincount(np.asarray(orders[:, position]), minlength=count)
    expected = keys / count
    assert ((seen - expected) ** 2 / expected).sum() < 495


def test_the_shuffle_of_a_large_epoch_looks_random():
    """Successive windows, and windows and their places, are uncorrelated within five standard errors of 1/sqrt(n)."""
    count = 200_278
    order = np.asarray(shuffled(jax.random.key(2), jnp.arange(count), count))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / count**0.5
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 5 / count**0.5


def test_every_epoch_visits_every_window_once_in_an_order_of_its_own_and_pads_the_last_batch():
    ids = jnp.asarray(np.arange(101, dtype=np.uint8))
    count = count_windows(101, window=10, stride=3)
    assert count == 31
    order = ShuffledWindows(10, stride=3, batch_size=8)
    assert order.steps(101) == 4

    def starts(epoch, key):
        batches = [batch_of(order, ids, jax.random.key(key), 4 * epoch + step) for step in range(4)]
        assert [int(batch.weights.sum()) for batch in batches] == [8, 8, 8, 7]
        return np.concatenate([batch.characters[:, 0][batch.weights > 0] for batch in batches])

    first, second, of_another_key = starts(0, key=3), starts(1, key=3), starts(0, key=4)
    for found in (first, second, of_another_key):
        np.testing.assert_array_equal(np.sort(found), 3 * np.arange(count))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, of_another_key)
    np.testing.assert_array_equal(first, starts(0, key=3))


def test_no_training_window_touches_the_held_out_text():
    ids = np.arange(1000)
    training, held_out = split_held_out(ids, held_out_fraction=0.1, window=60)
    np.testing.assert_array_equal(np.concatenate([training, held_out]), ids)
    assert len(held_out) == 100
    count = count_windows(len(training), window=60, stride=1)
    last = gather_batch(jnp.asarray(training), jnp.array([count - 1]), jnp.array([True]), window=60)
    assert int(last.characters[0, -1]) == 899


@pytest.mark.parametrize("fraction", [0.0, 1e-6, 0.001, 0.1, 0.3, 1 / 3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("window", [1, 7, 60])
def test_a_short_text_is_refused_with_the_least_length_that_would_do(fraction, window):
    def fits(length):
        try:
            split_held_out(np.zeros(length, np.uint8), held_out_fraction=fraction, window=window)
        except InputError as error:
            return str(error)
        return None

    message = fits(window // 2)
    assert message is not None
    least = int(message.split("at least ")[1].split(",")[0])
    for length, enough in ((least - 1, False), (least, True)):
        held_out = int(length * fraction)
        shortest = min(length - held_out, held_out) if fraction else length
        assert (shortest > window) == (fits(length) is None) == enough


def test_thousands_of_characters():
    text = "".join(chr(0x4E00 + (7 * n) % 5000) for n in range(20_000))
    vocabulary = Vocabulary.of(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.uint16
    batch = batch_of(ShuffledWindows(9, stride=1, batch_size=4), jnp.asarray(ids), jax.random.key(0), 0)
    for row in np.asarray(batch.characters):
        assert vocabulary.decode(row) in text


@pytest.mark.parametrize(("length", "steps"), [(80 * 3 + 10, 3), (80 * 4 + 9, 3), (80 * 4 + 10, 4), (89, 0)])
def test_streams_read_stretches_of_the_text_side_by_side(length, steps):
    """Each row continues where it ended, and the rows' stretches are consecutive: together they are one passage."""
    order = ParallelStreams(10, batch_size=8)
    assert order.steps(length) == steps
    assert order.windows(length) == 8 * steps
    for seed in range(5 if steps else 0):
        batches = [batch_of(order, jnp.arange(length), jax.random.key(seed), step).characters for step in range(steps)]
        inputs = np.concatenate([characters[:, :-1] for characters in batches], axis=1)
        targets = np.concatenate([characters[:, 1:] for characters in batches], axis=1)
        phase = int(inputs[0, 0])
        np.testing.assert_array_equal(inputs.ravel(), phase + np.arange(80 * steps))
        np.testing.assert_array_equal(targets, inputs + 1)
        assert targets.max() < length


def test_the_phase_of_streams_reaches_both_ends_of_the_text():
    """With nine characters left over, the phases are exactly 0 to 9; there are never fewer than `window`."""
    order = ParallelStreams(4, batch_size=5)
    for length, count in [(30, 10), (24, 4)]:
        text = jnp.arange(length)
        phases = [int(batch_of(order, text, jax.random.key(n), 0).characters[0, 0]) for n in range(200)]
        assert set(phases) == set(range(count))


def test_rows_beyond_the_streams_are_padding():
    order = ParallelStreams(4, batch_size=5)
    batch = draw_batch(order, jnp.arange(30), jax.random.key(0), jnp.int32(0), jnp.arange(4, 8))
    np.testing.assert_array_equal(batch.weights, [1, 0, 0, 0])


@pytest.mark.parametrize(("step", "starts"), [(0, [87, 0, 72, 69, 60, 63]), (17, [87, 45, 57, 30, 66, 78])])
def test_a_run_s_windows_are_those_that_they_have_always_been(step, starts):
    """In epochs of five steps; the starts come from the first version that promised exact resumption."""
    order = ShuffledWindows(window=10, stride=3, batch_size=6)
    batch = draw_batch(order, jnp.arange(100), jax.random.key(7), jnp.int32(step), jnp.arange(6))
    assert batch.characters[:, 0].tolist() == starts, "states saved before go on with other batches: they are lost"
