import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.data.windows import (
    count_windows,
    draw_batch,
    gather_batch,
    shuffled,
    split_held_out,
)
from charlm_jax.errors import InputError


def brute_force_windows(text, window, stride):
    """The notebooks' own loop."""
    starts = range(0, len(text) - window, stride)
    return [(text[start : start + window], text[start + window]) for start in starts]


@pytest.mark.parametrize(("length", "window", "stride"), [(61, 60, 3), (64, 60, 3), (60, 60, 1), (1000, 7, 5)])
def test_windows_are_those_of_the_notebooks_loop(length, window, stride):
    text = np.arange(length)
    expected = brute_force_windows(text, window, stride)
    assert count_windows(length, window=window, stride=stride) == len(expected)
    if expected:
        batch = gather_batch(
            jnp.asarray(text), jnp.arange(len(expected)), window=window, stride=stride, count=len(expected)
        )
        np.testing.assert_array_equal(batch.inputs, [inputs for inputs, _ in expected])
        np.testing.assert_array_equal(batch.targets, [target for _, target in expected])


def test_nietzsche_has_the_notebooks_windows(nietzsche):
    assert count_windows(len(nietzsche.text), window=60, stride=3) == 200_278


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 64, 65, 1000])
def test_the_shuffle_is_a_bijection(count):
    order = shuffled(jax.random.key(0), jnp.arange(count), count)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


def test_the_shuffle_is_uniform_and_its_keys_are_independent():
    """Chi-squared over where each of 20 positions goes, under 4,000 keys: 361 degrees of freedom.

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
    """Successive windows lie far apart: their correlation is zero within five standard errors of 1/sqrt(n)."""
    count = 200_278
    order = np.asarray(shuffled(jax.random.key(2), jnp.arange(count), count))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / count**0.5
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 5 / count**0.5


def test_an_epoch_visits_every_window_once_and_pads_the_last_batch():
    ids = jnp.asarray(np.arange(101, dtype=np.uint8))
    count = count_windows(101, window=10, stride=3)
    assert count == 31
    batches = [
        draw_batch(ids, jax.random.key(3), jnp.int32(step), window=10, stride=3, batch_size=8) for step in range(4)
    ]
    assert [int(batch.weights.sum()) for batch in batches] == [8, 8, 8, 7]
    starts = np.concatenate([batch.inputs[:, 0][batch.weights > 0] for batch in batches])
    np.testing.assert_array_equal(np.sort(starts), 3 * np.arange(count))


def test_a_batch_depends_on_the_key_and_the_step_alone():
    ids = jnp.arange(1000)
    draw = lambda key, step: draw_batch(ids, key, jnp.int32(step), window=10, stride=1, batch_size=8).targets  # noqa: E731
    np.testing.assert_array_equal(draw(jax.random.key(0), 5), draw(jax.random.key(0), 5))
    assert not np.array_equal(draw(jax.random.key(0), 5), draw(jax.random.key(1), 5))
    assert not np.array_equal(draw(jax.random.key(0), 5), draw(jax.random.key(0), 6))


def test_no_training_window_touches_the_held_out_text():
    ids = np.arange(1000)
    training, held_out = split_held_out(ids, held_out_fraction=0.1, window=60)
    np.testing.assert_array_equal(np.concatenate([training, held_out]), ids)
    assert len(held_out) == 100
    count = count_windows(len(training), window=60, stride=1)
    last = gather_batch(jnp.asarray(training), jnp.array([count - 1]), window=60, stride=1, count=count)
    assert int(last.targets[0]) == 899


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
    assert fits(least) is None
    assert fits(least - 1) is not None


def test_thousands_of_characters():
    text = "".join(chr(0x4E00 + (7 * n) % 5000) for n in range(20_000))
    vocabulary = Vocabulary.of(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.uint16
    batch = draw_batch(jnp.asarray(ids), jax.random.key(0), jnp.int32(0), window=9, stride=1, batch_size=4)
    for row, target in zip(np.asarray(batch.inputs), np.asarray(batch.targets), strict=True):
        assert vocabulary.decode(np.append(row, target)) in text
