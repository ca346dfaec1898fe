import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import numpy_logits

from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.learning import evaluation
from charlm_jax.learning.evaluation import Evaluation, evaluate, evaluate_stream, loss_by_position
from charlm_jax.mesh import data_mesh
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM, Model


def costs(parameters, ids):
    """Return the nats of every character but the first, read from the zero state, by the textbook's equations."""
    logits = numpy_logits(parameters, ids[None, :-1])[0]
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(ids) - 1), ids[1:]]


def small_model(text):
    vocabulary = Vocabulary.of(text)
    network = CharacterLSTM(len(vocabulary), 8)
    return vocabulary.encode(text), Model(network, initial_parameters(network, "keras", jax.random.key(0)))


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize(("window", "stride", "batch_size"), [(20, 1, 7), (20, 7, 1), (1, 3, 256)])
def test_every_window_is_read_alone_and_scored_once(small_text, monkeypatch, devices, window, stride, batch_size):
    """Whatever the number of windows read at once, and of the devices that share them."""
    monkeypatch.setattr(evaluation, "BATCH_SIZE", batch_size)
    ids, model = small_model(small_text[:200])
    arguments = model, jnp.array(ids), data_mesh(jax.devices()[:devices])
    result = evaluate(*arguments, window=window, stride=stride)
    along = loss_by_position(*arguments, window=window, stride=stride)
    starts = range(0, len(ids) - window, stride)
    expected = np.mean([costs(model.parameters, ids[start : start + window + 1]) for start in starts], axis=0)
    assert result.characters == len(starts)
    np.testing.assert_allclose(along, expected, rtol=1e-6)
    assert result.loss_nats == pytest.approx(expected[-1], rel=1e-6)


@pytest.mark.parametrize("numbers", [1, evaluation.NUMBERS])
def test_a_stream_is_scored_to_its_end(small_text, monkeypatch, numbers):
    """In pieces of 256 characters, the shortest possible, and in one piece."""
    monkeypatch.setattr(evaluation, "NUMBERS", numbers)
    ids, model = small_model(small_text)
    result = evaluate_stream(model, ids)
    assert result.characters == 999
    assert result.loss_nats == pytest.approx(costs(model.parameters, ids).mean(), rel=1e-6)


@pytest.mark.parametrize(("characters", "units"), [(2, 64), (900, 2)])
def test_a_stream_takes_little_memory_however_few_characters_there_are(monkeypatch, characters, units):
    network = CharacterLSTM(characters, units)
    model, largest = Model(network, initial_parameters(network, "keras", jax.random.key(1))), []

    def note(model, text, carry):
        largest.append((text.shape[1] - 1) * max(characters, 4 * units))
        return jnp.zeros(text.shape[1] - 1), carry

    monkeypatch.setattr(evaluation, "_stream_losses", note)
    assert evaluate_stream(model, np.zeros(100_000, np.int32)).characters == 99_999
    assert len(largest) > 1
    assert max(largest) <= evaluation.NUMBERS


def test_bits():
    assert Evaluation(loss_nats=float(np.log(8)), characters=1).bits_per_character == pytest.approx(3)
