"""The TPU kernels, step by step on whatever is here, against the loops that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GATES

from charlm_jax.model import recurrence, tpu_kernel
from charlm_jax.model.cell import LayerCarry

TIME, BATCH, HIDDEN = 7, 5, 128


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_traces_and_gradients_equal_those_of_the_loops(gate, precision):
    keys = jax.random.split(jax.random.key(0), 4)
    kernel = jax.random.normal(keys[0], (HIDDEN, 4 * HIDDEN)) / HIDDEN**0.5
    projected = jax.random.normal(keys[1], (TIME, BATCH, 4 * HIDDEN))
    carry, by_carry = (LayerCarry(*states) for states in jax.random.normal(keys[2], (2, 2, BATCH, HIDDEN)))
    by_hidden = jax.random.normal(keys[3], (TIME, BATCH, HIDDEN))

    expected = recurrence._read_and_trace(kernel, projected, carry, gate, precision)
    read = tpu_kernel.read_and_trace(kernel, projected, carry, gate, precision, interpret=True)
    same(read, expected)
    trace = expected[1]
    expected = recurrence._go_back(kernel, trace, by_hidden, by_carry, precision)
    same(tpu_kernel.go_back(kernel, trace, by_hidden, by_carry, precision, interpret=True), expected)


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * float(jnp.abs(other).max()))


def test_elsewhere_the_loops_are_used_and_many_models_learn_at_once():
    """`vmap` gives a kernel an axis more; where there is no TPU the choice changes nothing."""
    keys = jax.random.split(jax.random.key(1), 3)
    kernels = jax.random.normal(keys[0], (2, HIDDEN, 4 * HIDDEN)) / HIDDEN**0.5
    projected = jax.random.normal(keys[1], (2, TIME, BATCH, 4 * HIDDEN))
    zeros = jnp.zeros((2, BATCH, HIDDEN))

    def read(kernel, projected, cell, hidden):
        carry = LayerCarry(cell, hidden)
        return tpu_kernel.read_and_trace(kernel, projected, carry, "sigmoid", "float32", interpret=True)

    together = jax.vmap(read)(kernels, projected, zeros, zeros)
    for model in range(2):
        alone = read(kernels[model], projected[model], zeros[model], zeros[model])
        same(jax.tree.map(lambda leaf, model=model: leaf[model], together), alone)

    def loss(kernel, way):
        carry = LayerCarry(zeros[0], zeros[0])
        hidden, _ = recurrence.lstm_sequence(kernel, projected[0], carry, "sigmoid", "float32", way)
        return jnp.sum(hidden**2)

    gradients = [jax.grad(loss)(kernels[0], way) for way in ("scan", "kernel")]
    np.testing.assert_array_equal(*gradients)
