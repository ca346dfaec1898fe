import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import numpy_logits

from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.learning.evaluation import Evaluation, evaluate, evaluate_stream, loss_by_position
from charlm_jax.mesh import data_mesh
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM

MESH = data_mesh()


def costs(parameters, ids):
    """The nats of every character of a text but the first, read from the zero state, by the textbook's equations."""
    logits = numpy_logits(parameters, ids[None, :-1])[0]
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(ids) - 1), ids[1:]]


def brute_force(parameters, ids, window, stride):
    losses = [costs(parameters, ids[start : start + window + 1]) for start in range(0, len(ids) - window, stride)]
    return np.mean(losses, axis=0)[-1], len(losses)


def small_model(text):
    vocabulary = Vocabulary.of(text)
    network = CharacterLSTM(len(vocabulary), 8)
    return vocabulary.encode(text), network, initial_parameters(network, "keras", jax.random.key(0))


@pytest.mark.parametrize(("window", "stride"), [(20, 1), (20, 7), (1, 3)])
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_the_loss_is_that_of_every_window_read_alone(small_text, window, stride, batch_size):
    text = small_text[:200]
    vocabulary = Vocabulary.of(text)
    ids, network = vocabulary.encode(text), CharacterLSTM(len(vocabulary), 8)
    parameters = initial_parameters(network, "keras", jax.random.key(0))
    result = evaluate(network, parameters, jnp.array(ids), MESH, window=window, stride=stride, batch_size=batch_size)
    loss, characters = brute_force(parameters, ids, window, stride)
    assert result.characters == characters
    assert result.loss_nats == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_every_window_is_scored_once_however_many_devices_share_them(small_text, devices):
    vocabulary = Vocabulary.of(small_text)
    ids, network = jnp.array(vocabulary.encode(small_text)), CharacterLSTM(len(vocabulary), 8)
    parameters = initial_parameters(network, "keras", jax.random.key(0))
    mesh = data_mesh(jax.devices()[:devices])
    result = evaluate(network, parameters, ids, mesh, window=20, stride=3, batch_size=7)
    assert result.characters == 327
    assert result.loss_nats == pytest.approx(brute_force(parameters, np.asarray(ids), 20, 3)[0], rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 128])
@pytest.mark.parametrize("devices", [1, 2])
def test_no_loss_depends_on_the_batch_or_the_devices(small_text, batch_size, devices):
    ids, network, parameters = small_model(small_text)
    options = {"window": 20, "stride": 3}
    mesh = data_mesh(jax.devices()[:devices])
    result = evaluate(network, parameters, jnp.array(ids), mesh, **options, batch_size=batch_size)
    along = loss_by_position(network, parameters, jnp.array(ids), mesh, **options, batch_size=batch_size)
    windows = range(0, len(ids) - 20, 3)
    expected = np.mean([costs(parameters, ids[start : start + 21]) for start in windows], axis=0)
    assert result.characters == len(windows)
    np.testing.assert_allclose(along, expected, rtol=1e-6)
    assert result.loss_nats == pytest.approx(expected[-1], rel=1e-6)


@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 16])
def test_a_stream_in_pieces_is_the_stream_whole(small_text, piece):
    ids, network, parameters = small_model(small_text[:300])
    result, carry = evaluate_stream(network, parameters, ids, piece=piece)
    assert result.characters == 299
    assert result.loss_nats == pytest.approx(costs(parameters, ids).mean(), rel=1e-6)

    first, between = evaluate_stream(network, parameters, ids[:101], piece=piece)
    second, after = evaluate_stream(network, parameters, ids[100:], between, piece=piece)
    assert first.characters + second.characters == 299
    whole = (first.loss_nats * first.characters + second.loss_nats * second.characters) / 299
    assert whole == pytest.approx(result.loss_nats, rel=1e-6)
    for one, another in zip(jax.tree.leaves(after), jax.tree.leaves(carry), strict=True):
        np.testing.assert_allclose(one, another, rtol=0, atol=1e-6)


def test_one_character_more_is_one_character_more(small_text):
    """A text with another character at its end: one more is scored in both contexts, and its nats are all that grew."""
    ids, network, parameters = small_model(small_text)
    longer, options = np.append(ids, ids[0]), {"window": 20, "stride": 1}

    def both(ids):
        return evaluate(network, parameters, jnp.array(ids), MESH, **options), evaluate_stream(
            network, parameters, ids
        )[0]

    last = [costs(parameters, longer[-21:])[-1], costs(parameters, longer)[-1]]
    for before, after, cost in zip(both(ids), both(longer), last, strict=True):
        assert after.characters == before.characters + 1
        grown = after.loss_nats * after.characters - before.loss_nats * before.characters
        assert grown == pytest.approx(cost, abs=2e-3)


def test_bits():
    assert Evaluation(loss_nats=float(np.log(8)), characters=1).bits_per_character == pytest.approx(3)
