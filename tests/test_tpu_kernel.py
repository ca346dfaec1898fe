"""The TPU kernels, interpreted on whatever device is here, against JAX's scan and the loops that they replace."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GATES

from charlm_jax.errors import InputError
from charlm_jax.model import recurrence, tpu_kernel
from charlm_jax.model.cell import LayerCarry, step_back, traced_step
from charlm_jax.runs.configuration import Configuration

TIME, BATCH, HIDDEN = 7, 5, 128


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_traces_and_gradients_equal_those_of_jax_scan(gate, precision):
    keys = jax.random.split(jax.random.key(0), 4)
    kernel = jax.random.normal(keys[0], (HIDDEN, 4 * HIDDEN)) / HIDDEN**0.5
    projected = jax.random.normal(keys[1], (TIME, BATCH, 4 * HIDDEN))
    carry, by_carry = (LayerCarry(*states) for states in jax.random.normal(keys[2], (2, 2, BATCH, HIDDEN)))
    by_hidden = jax.random.normal(keys[3], (TIME, BATCH, HIDDEN))

    step = functools.partial(traced_step, gate=gate, precision=precision)
    _, trace = held_to_jax_scan(step, kernel, carry, projected, reverse=False)
    step = functools.partial(step_back, precision=precision)
    held_to_jax_scan(step, kernel.T, by_carry, (trace, by_hidden), reverse=True)


def held_to_jax_scan(step, weights, carry, inputs, *, reverse):
    """Return what `jax.lax.scan` returns, which is how steps are unrolled, and hold the kernel and the loop to it."""
    expected = jax.lax.scan(functools.partial(step, weights), carry, inputs, reverse=reverse)
    same(tpu_kernel.scan(step, weights, carry, inputs, reverse=reverse, interpret=True), expected)
    same(recurrence._scan(step, weights, carry, inputs, "scan", reverse=reverse), expected)
    return expected


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("on_tpu", [True, False])
def test_the_choice_changes_no_gradient(on_tpu, monkeypatch):
    """Of one model, or of two trained at once; without a TPU, the loops are used."""
    runs, original = [], jax.lax.platform_dependent

    def interpreted(*arguments, **ways):
        kernel = ways.get("tpu")
        if on_tpu and isinstance(kernel, functools.partial) and kernel.func.__module__ == tpu_kernel.__name__:
            runs.append(kernel.keywords["reverse"])
            return kernel(*arguments, interpret=True)
        return original(*arguments, **ways)

    monkeypatch.setattr(jax.lax, "platform_dependent", interpreted)
    keys = jax.random.split(jax.random.key(1), 4)
    kernels = jax.random.normal(keys[0], (2, HIDDEN, 4 * HIDDEN)) / HIDDEN**0.5
    inputs = jax.random.normal(keys[1], (2, TIME, BATCH, 4 * HIDDEN))
    carries = LayerCarry(*jax.random.normal(keys[2], (2, 2, BATCH, HIDDEN)))
    weights = jax.random.normal(keys[3], (TIME, BATCH, HIDDEN))

    def gradients(way):
        def loss(kernel, projected, carry):
            hidden, after = recurrence.lstm_sequence(kernel, projected, carry, "sigmoid", "float32", way)
            return jnp.sum(weights * hidden) + jnp.sum(after.cell * after.hidden)

        of_one = jax.grad(loss, argnums=(0, 1, 2))
        first = jax.tree.map(lambda leaf: leaf[0], (kernels, inputs, carries))
        return of_one(*first), jax.vmap(of_one)(kernels, inputs, carries)

    same(gradients("kernel"), gradients("scan"))
    assert set(runs) == ({False, True} if on_tpu else set())  # forwards and backwards


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_tpu_can_be_asked_for_it(precision):
    """As far as JAX's own lowering, which needs no compiler for TPUs."""

    def loss(kernel, projected, carry):
        return jnp.sum(recurrence.lstm_sequence(kernel, projected, carry, "sigmoid", precision, "kernel")[0])

    state = jnp.zeros((BATCH, HIDDEN))
    arguments = jnp.zeros((HIDDEN, 4 * HIDDEN)), jnp.zeros((TIME, BATCH, 4 * HIDDEN)), LayerCarry(state, state)
    text = jax.jit(jax.grad(loss)).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 2


def test_what_the_kernel_cannot_do_is_refused():
    for wrong in (Configuration(hidden_size=64), Configuration(precision="tf32")):
        with pytest.raises(
            InputError, match=r"--recurrence kernel .* must be scan or unrolled if --hidden-size is not a multiple"
        ):
            dataclasses.replace(wrong, recurrence="kernel")
