import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import numpy_logits

from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.learning.evaluation import Evaluation, evaluate
from charlm_jax.mesh import data_mesh
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM

MESH = data_mesh()


def brute_force(parameters, ids, window, stride):
    losses = []
    for start in range(0, len(ids) - window, stride):
        logits = numpy_logits(parameters, ids[None, start : start + window])[0, -1]
        losses.append(np.log(np.exp(logits).sum()) - logits[ids[start + window]])
    return np.mean(losses), len(losses)


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


def test_bits():
    assert Evaluation(loss_nats=float(np.log(8)), characters=1).bits_per_character == pytest.approx(3)
