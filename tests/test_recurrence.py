"""The recurrence, against NumPy in float64, Flax's own cell and Keras's layer, in value and gradient."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from oracles import GATES, keras_cell, lenient_jax, numpy_lstm

from charlm_jax.choices import GateActivation
from charlm_jax.model import recurrence
from charlm_jax.model.cell import LayerCarry, gate_function, lstm_step
from charlm_jax.model.recurrence import Weights, fuse, lstm_sequence, project, project_ids

BATCH, TIME, INPUTS, HIDDEN = 4, 30, 11, 16


@pytest.fixture
def cell():
    """A Flax cell's parameters, with non-zero biases."""
    key = jax.random.key(0)
    cell = nn.LSTMCell(HIDDEN, bias_init=nn.initializers.normal(0.5))
    return cell.init(key, cell.initialize_carry(key, (INPUTS,)), jnp.zeros(INPUTS))["params"]


@pytest.fixture
def inputs():
    return jax.random.normal(jax.random.key(1), (BATCH, TIME, INPUTS))


@pytest.fixture
def carry():
    """A carry as in the middle of a text."""
    cell, hidden = jax.random.normal(jax.random.key(3), (2, BATCH, HIDDEN))
    return LayerCarry(cell, jnp.tanh(hidden))


def zero_carry():
    return LayerCarry(jnp.zeros((BATCH, HIDDEN)), jnp.zeros((BATCH, HIDDEN)))


def read(cell, inputs, carry, gate: GateActivation = "sigmoid"):
    """Return the hidden states of our recurrence, batch first, and its last carry."""
    weights = fuse(cell)
    projected = project(weights, jnp.swapaxes(inputs, 0, 1), "float32")
    hidden, carry = lstm_sequence(weights.recurrent_kernel, projected, carry, gate, "float32")
    return jnp.swapaxes(hidden, 0, 1), carry


def flax_read(cell, inputs, carry, gate: GateActivation = "sigmoid"):
    rnn = nn.RNN(nn.LSTMCell(HIDDEN, gate_fn=gate_function(gate)), return_carry=True)
    after, hidden = cast(Any, rnn.apply({"params": {"cell": cell}}, inputs, initial_carry=tuple(carry)))
    return hidden, LayerCarry(*after)


def hidden_states(cell, inputs, gate: GateActivation = "sigmoid"):
    return read(cell, inputs, zero_carry(), gate)[0]


@pytest.mark.parametrize("gate", GATES)
def test_forward_equals_numpy_and_flax(cell, inputs, gate):
    """Float32 against float64: over 30 steps, numbers below 1 stay within ten times float32's epsilon."""
    ours = hidden_states(cell, inputs, gate)
    np.testing.assert_allclose(ours, numpy_lstm(cell, np.asarray(inputs), GATES[gate]), rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours, flax_read(cell, inputs, zero_carry(), gate)[0], rtol=0, atol=1e-6)


OF_EVERY_STATE = jax.random.normal(jax.random.key(2), (BATCH, TIME, HIDDEN))
LOSSES = {
    "every character": lambda hidden, after: jnp.sum(OF_EVERY_STATE * hidden),
    "last character": lambda hidden, after: jnp.sum(OF_EVERY_STATE[:, -1] * after.hidden),
    "last of the states": lambda hidden, after: jnp.sum(OF_EVERY_STATE[:, -1] * hidden[:, -1]),
    "states and carry": lambda hidden, after: jnp.sum(OF_EVERY_STATE * hidden) + jnp.sum(after.cell * after.hidden),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_equal_flax(cell, inputs, carry, gate, loss):
    """With respect to the parameters, the inputs and the carry, whatever states the loss depends on."""

    def value_and_gradient(states):
        def value(cell, inputs, carry):
            return LOSSES[loss](*states(cell, inputs, carry, gate))

        return jax.value_and_grad(value, argnums=(0, 1, 2))(cell, inputs, carry)

    (ours, mine), (theirs, other) = value_and_gradient(read), value_and_gradient(flax_read)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5, abs=1e-5)
    for one, another in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, another, rtol=0, atol=1e-5 * float(jnp.abs(another).max()))


def test_second_derivatives_equal_flax(cell, inputs, carry):
    """The gradient of a gradient's squared norm, by reverse mode applied twice."""

    def curvature(states):
        def norm(cell):
            gradient = jax.grad(lambda cell: LOSSES["every character"](*states(cell, inputs, carry)))(cell)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

        return jax.tree.leaves(jax.grad(norm)(cell))

    for one, another in zip(curvature(read), curvature(flax_read), strict=True):
        np.testing.assert_allclose(one, another, rtol=0, atol=1e-4 * float(jnp.abs(another).max()))


def test_unrolled_steps_are_the_loops(cell, inputs, carry):
    """The same results, up to the rounding of what a compiler fuses, and no loop left."""
    weights = fuse(cell)
    projected = project(weights, jnp.swapaxes(inputs, 0, 1), "float32")

    def loss(states, after):
        return jnp.sum(jnp.swapaxes(OF_EVERY_STATE, 0, 1) * states) + jnp.sum(after.cell * after.hidden)

    def gradient_by(way):
        def value(kernel, projected, carry):
            return loss(*lstm_sequence(kernel, projected, carry, "sigmoid", "float32", way))

        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))

    arguments = weights.recurrent_kernel, projected, carry
    loops, unrolled = (jax.tree.leaves(gradient_by(way)(*arguments)) for way in ("scan", "unrolled"))
    for one, another in zip(unrolled, loops, strict=True):
        np.testing.assert_allclose(one, another, rtol=0, atol=1e-6 * float(jnp.abs(another).max()))
    looped, laid_out = (gradient_by(way).lower(*arguments).as_text() for way in ("scan", "unrolled"))
    assert (looped.count("stablehlo.while"), laid_out.count("stablehlo.while")) == (2, 0)
    assert "dynamic_update_slice" not in laid_out, "each would be a kernel on a GPU"


def test_replicas_side_by_side_equal_each_alone(cell, inputs, carry):
    cells = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), cell)
    gradient = jax.grad(lambda cell: LOSSES["every character"](*read(cell, inputs, carry)))
    together = jax.vmap(gradient)(cells)
    for number, scale in enumerate((1, 2)):
        alone = gradient(jax.tree.map(lambda leaf, scale=scale: scale * leaf, cell))
        for one, another in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one[number], another, rtol=0, atol=1e-5 * float(jnp.abs(another).max()))


@pytest.mark.parametrize("gate", GATES)
def test_training_holds_one_array_of_all_gates(gate):
    """Slopes and gradients reuse the projected inputs' array; the rest of the bound is for what else a step saves."""
    hidden, batch, time = 64, 32, 100
    projected = jax.ShapeDtypeStruct((time, batch, 4 * hidden), np.float32)
    kernel = jax.ShapeDtypeStruct((hidden, 4 * hidden), np.float32)

    def loss(kernel, ids):
        carry = LayerCarry(jnp.zeros((batch, hidden)), jnp.zeros((batch, hidden)))
        projected = project_ids(Weights(kernel, kernel, kernel[0]), ids)
        return jnp.sum(lstm_sequence(kernel, projected, carry, gate, "float32")[1].hidden)

    ids = jax.ShapeDtypeStruct((time, batch), np.int32)
    memory: Any = jax.jit(jax.grad(loss)).lower(kernel, ids).compile().memory_analysis()
    gates = projected.size * 4
    assert gates < memory.temp_size_in_bytes < 2.1 * gates


def test_gradients_equal_finite_differences(cell, inputs):
    """Central differences of the float64 oracle in random directions; a step of 1e-5 leaves an error of about 1e-9."""
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


KERAS_GATES: dict[str, Any] = {
    "sigmoid": "sigmoid",
    "hard_sigmoid": lambda x: keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0),  # Keras 2's; Keras 3's differs
}


@pytest.mark.parametrize("gate", GATES)
def test_forward_equals_keras(cell, inputs, gate):
    layer = keras.layers.LSTM(HIDDEN, return_sequences=True, recurrent_activation=KERAS_GATES[gate])
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
        carry = lstm_step(
            weights.recurrent_kernel, carry, project(weights, inputs[:, time], "float32"), "sigmoid", "float32"
        )
        np.testing.assert_allclose(carry.hidden, hidden[:, time], rtol=0, atol=1e-6)


def test_a_row_of_the_kernel_is_the_product_with_a_one_hot(cell):
    weights, ids = fuse(cell), jnp.arange(INPUTS)
    np.testing.assert_allclose(
        project_ids(weights, ids), project(weights, jnp.eye(INPUTS), "float32"), rtol=0, atol=1e-6
    )


def test_on_a_gpu_the_gradient_of_the_rows_is_one_product(cell):
    """Additions in no fixed order would give different bits each time; the oracle is NumPy, adding in float64."""
    weights, ids = fuse(cell), jnp.array([3, 0, 3, 3, 7])
    by_rows = jax.random.normal(jax.random.key(0), (len(ids), 4 * HIDDEN))
    rows, derivative = jax.vjp(recurrence._rows, weights.input_kernel, ids)
    np.testing.assert_array_equal(rows, np.asarray(weights.input_kernel)[ids])
    expected = np.zeros(weights.input_kernel.shape)
    np.add.at(expected, np.asarray(ids), np.asarray(by_rows, np.float64))
    np.testing.assert_allclose(derivative(by_rows)[0], expected, rtol=0, atol=1e-6)

    def lowered(platform):
        gradient = jax.jit(jax.grad(lambda kernel: jnp.sum(project_ids(weights._replace(input_kernel=kernel), ids))))
        return gradient.trace(weights.input_kernel).lower(lowering_platforms=(platform,)).as_text()

    assert ["scatter" in lowered(platform) for platform in ("cuda", "cpu")] == [False, True]
