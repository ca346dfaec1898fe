"""The recurrence against NumPy in float64, Flax's own cell and Keras's layer, in value and gradient."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from oracles import GATES, keras_cell, lenient_jax, numpy_lstm

from charlm_jax.choices import GateActivation
from charlm_jax.model.recurrence import LayerCarry, fuse, gate_function, lstm_sequence, lstm_step, project, project_ids

BATCH, TIME, INPUTS, HIDDEN = 4, 30, 11, 16


@pytest.fixture
def cell():
    """A Flax cell's parameters, with biases that are not zero."""
    key = jax.random.key(0)
    cell = nn.LSTMCell(HIDDEN, bias_init=nn.initializers.normal(0.5))
    return cell.init(key, cell.initialize_carry(key, (INPUTS,)), jnp.zeros(INPUTS))["params"]


@pytest.fixture
def inputs():
    return jax.random.normal(jax.random.key(1), (BATCH, TIME, INPUTS))


def zero_carry():
    return LayerCarry(jnp.zeros((BATCH, HIDDEN)), jnp.zeros((BATCH, HIDDEN)))


def hidden_states(cell, inputs, gate: GateActivation = "sigmoid"):
    weights = fuse(cell)
    projected = project(weights, inputs.reshape(-1, INPUTS)).reshape(BATCH, TIME, -1)
    return lstm_sequence(weights, projected, zero_carry(), gate)[0]


def flax_hidden_states(cell, inputs, gate: GateActivation = "sigmoid"):
    rnn = nn.RNN(nn.LSTMCell(HIDDEN, gate_fn=gate_function(gate)))
    return cast(jax.Array, rnn.apply({"params": {"cell": cell}}, inputs))


@pytest.mark.parametrize("gate", GATES)
def test_forward_equals_numpy_and_flax(cell, inputs, gate):
    """Float32 against float64: 30 steps of numbers below 1 stay within ten times the rounding of one."""
    ours = hidden_states(cell, inputs, gate)
    np.testing.assert_allclose(ours, numpy_lstm(cell, np.asarray(inputs), GATES[gate]), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours, flax_hidden_states(cell, inputs, gate), rtol=0, atol=1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_gradients_equal_flax(cell, inputs, gate):
    target = jax.random.normal(jax.random.key(2), (BATCH, TIME, HIDDEN))

    def loss(states):
        return lambda cell, inputs: jnp.sum(target * states(cell, inputs, gate))

    ours = jax.grad(loss(hidden_states), argnums=(0, 1))(cell, inputs)
    theirs = jax.grad(loss(flax_hidden_states), argnums=(0, 1))(cell, inputs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * float(jnp.abs(other).max()))


def test_gradients_equal_finite_differences(cell, inputs):
    """Central differences of the float64 oracle in random directions; step 1e-5 leaves an error of about 1e-9."""
    target = np.asarray(jax.random.normal(jax.random.key(2), (BATCH, TIME, HIDDEN)), np.float64)
    gradient = jax.grad(lambda cell: jnp.sum(jnp.asarray(target, jnp.float32) * hidden_states(cell, inputs)))(cell)
    random = np.random.default_rng(0)
    for _ in range(3):
        direction = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), cell)
        losses = []
        for step in (1e-5, -1e-5):
            moved = jax.tree.map(
                lambda leaf, along, step=step: np.asarray(leaf, np.float64) + step * along, cell, direction
            )
            losses.append(np.sum(target * numpy_lstm(moved, np.asarray(inputs))))
        expected = (losses[0] - losses[1]) / 2e-5
        products = jax.tree.map(lambda slope, along: np.sum(np.asarray(slope, np.float64) * along), gradient, direction)
        assert sum(jax.tree.leaves(products)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_forward_equals_keras(cell, inputs, gate):
    """Keras 3 spells Keras 2's hard sigmoid as a function of our own: its `hard_sigmoid` is another one."""
    activation: Any = gate if gate == "sigmoid" else (lambda x: keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0))
    layer = keras.layers.LSTM(HIDDEN, return_sequences=True, recurrent_activation=activation)
    with lenient_jax():
        layer.build(inputs.shape)
        layer.set_weights(keras_cell(cell))
        theirs = layer(np.asarray(inputs))
    np.testing.assert_allclose(hidden_states(cell, inputs, gate), theirs, rtol=0, atol=1e-6)


def test_a_wrong_order_of_gates_is_seen(cell, inputs):
    swapped = {**cell, "ii": cell["if"], "if": cell["ii"], "hi": cell["hf"], "hf": cell["hi"]}
    assert np.abs(hidden_states(swapped, inputs) - numpy_lstm(cell, np.asarray(inputs))).max() > 0.1


def test_steps_equal_the_sequence(cell, inputs):
    weights, carry, hidden = fuse(cell), zero_carry(), hidden_states(cell, inputs)
    for time in range(TIME):
        carry = lstm_step(weights, project(weights, inputs[:, time]), carry, "sigmoid")
        np.testing.assert_allclose(carry.hidden, hidden[:, time], rtol=0, atol=1e-6)


def test_a_row_of_the_kernel_is_the_product_with_a_one_hot(cell):
    weights, ids = fuse(cell), jnp.arange(INPUTS)
    np.testing.assert_allclose(project_ids(weights, ids), project(weights, jnp.eye(INPUTS)), rtol=0, atol=1e-6)
