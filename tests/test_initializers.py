import math

import jax
import keras
import numpy as np
import pytest
from oracles import keras_cell, lenient_jax

from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM

VOCABULARY, HIDDEN = 57, 128


@pytest.fixture(scope="module")
def parameters():
    return initial_parameters(CharacterLSTM(VOCABULARY, HIDDEN, layers=2), "keras", jax.random.key(0))


@pytest.fixture(scope="module")
def keras_weights():
    """Keras's initial weights of LSTM(128) on one-hot characters, and of Dense(57)."""
    layer, head = keras.layers.LSTM(HIDDEN), keras.layers.Dense(VOCABULARY)
    with lenient_jax():
        layer.build((None, 60, VOCABULARY))
        head.build((None, HIDDEN))
    return [np.asarray(weight) for weight in layer.get_weights() + head.get_weights()]


def test_kernels_are_distributed_as_keras_draws_them(parameters, keras_weights):
    """Largest entry and standard deviation agree within 2 %, in uniform samples of 7,000 and more."""
    ours = [*keras_cell(parameters["lstm_0"]), parameters["head"]["kernel"], parameters["head"]["bias"]]
    for mine, theirs in zip(ours, keras_weights, strict=True):
        assert mine.shape == theirs.shape
        assert np.std(mine) == pytest.approx(np.std(theirs), rel=0.02)
    for mine, theirs in ((ours[0], keras_weights[0]), (ours[3], keras_weights[3])):
        assert np.abs(mine).max() == pytest.approx(np.abs(theirs).max(), rel=0.02)


def test_input_kernel_is_glorot_uniform_over_the_joined_gates(parameters):
    kernel = keras_cell(parameters["lstm_0"])[0]
    limit = math.sqrt(6 / (VOCABULARY + 4 * HIDDEN))
    assert 0.99 * limit < np.abs(kernel).max() <= limit
    assert limit < 0.8 * math.sqrt(6 / (VOCABULARY + HIDDEN)), "a limit for each gate on its own would be wider"


@pytest.mark.parametrize("layer", ["lstm_0", "lstm_1"])
def test_recurrent_kernel_is_orthogonal_over_the_joined_gates(parameters, layer):
    kernel = np.asarray(keras_cell(parameters[layer])[1], np.float64)
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(HIDDEN), atol=1e-5)
    gate = kernel[:, :HIDDEN]
    assert np.abs(gate @ gate.T - np.eye(HIDDEN)).max() > 0.1, "orthogonal gate by gate is Flax's choice, not Keras's"


def test_biases_are_zero_but_for_the_forget_gate(parameters, keras_weights):
    np.testing.assert_array_equal(keras_cell(parameters["lstm_1"])[2], keras_weights[2])
    np.testing.assert_array_equal(parameters["head"]["bias"], 0)
    np.testing.assert_array_equal(parameters["lstm_0"]["hf"]["bias"], 1)


def test_flax_parameters_are_flaxs():
    parameters = initial_parameters(CharacterLSTM(VOCABULARY, HIDDEN), "flax", jax.random.key(0))
    kernel = np.asarray(parameters["lstm_0"]["hi"]["kernel"], np.float64)
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(HIDDEN), atol=1e-5)
    np.testing.assert_array_equal(parameters["lstm_0"]["hf"]["bias"], 0)


def test_the_key_decides(parameters):
    network = CharacterLSTM(VOCABULARY, HIDDEN, layers=2)
    again = initial_parameters(network, "keras", jax.random.key(0))
    other = initial_parameters(network, "keras", jax.random.key(1))
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(parameters)))
    assert not np.array_equal(other["head"]["kernel"], parameters["head"]["kernel"])
    assert not np.array_equal(parameters["lstm_0"]["hi"]["kernel"], parameters["lstm_1"]["hi"]["kernel"])


def test_an_embedding_is_distributed_as_keras_draws_it():
    layer = keras.layers.Embedding(500, 64)
    with lenient_jax():
        layer.build()
    theirs = np.asarray(layer.get_weights()[0])
    network = CharacterLSTM(500, 8, embedding_size=64)
    ours = initial_parameters(network, "keras", jax.random.key(0))["embedding"]["embedding"]
    assert ours.shape == theirs.shape
    assert np.std(ours) == pytest.approx(np.std(theirs), rel=0.02)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.02)
