"""The steps of an LSTM along a sequence, as pure functions of arrays.

The parameters are a `flax.linen.LSTMCell`'s; `fuse` lays its gates side by side so that a step is one product with U.
The inputs' contribution, x W + b, is not part of the recurrence: `project` and `project_ids` compute it for all steps
beforehand.

Reading a sequence has a custom derivative. The forward pass keeps the trace of every step; the gradient of U is then
one large product at the end, where automatic differentiation would add to it at every step. The slopes overwrite the
projected inputs and the gradients overwrite the slopes, so the largest array of a training step exists once, not three
times; unless the steps are unrolled.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Integer

from charlm_jax.choices import GateActivation, Precision, Recurrence
from charlm_jax.model.cell import LayerCarry, Step, Trace, lstm_step, once, step_back, traced_step
from charlm_jax.model.products import multiply

GATES = "ifgo"  # the order of the fused gates: input, forget, cell, output


class Weights(NamedTuple):
    """A layer's parameters with the four gates side by side, in the order of `GATES`.

    Attributes:
        input_kernel: W.
        recurrent_kernel: U.
        bias: b.
    """

    input_kernel: Float[Array, "input gates"]
    recurrent_kernel: Float[Array, "hidden gates"]
    bias: Float[Array, " gates"]


def fuse(cell: Mapping[str, Any]) -> Weights:
    """Lay the gates of a `flax.linen.LSTMCell`'s parameters side by side."""

    def side_by_side(layer: str, parameter: str) -> Array:
        return jnp.concatenate([cell[f"{layer}{gate}"][parameter] for gate in GATES], axis=-1)

    return Weights(side_by_side("i", "kernel"), side_by_side("h", "kernel"), side_by_side("h", "bias"))


def take_apart(weights: Weights) -> dict[str, dict[str, Array]]:
    """Split the gates into the parameters of a `flax.linen.LSTMCell`; the inverse of `fuse`."""
    parts = (jnp.split(array, len(GATES), axis=-1) for array in weights)
    cell = {}
    for gate, kernel, recurrent_kernel, bias in zip(GATES, *parts, strict=True):
        cell |= {f"i{gate}": {"kernel": kernel}, f"h{gate}": {"kernel": recurrent_kernel, "bias": bias}}
    return cell


def project_ids(weights: Weights, ids: Int32[Array, "*batch"]) -> Float[Array, "*batch gates"]:
    """Return x W + b for one-hot x: for each id a row of W, plus b."""
    table = once(weights.input_kernel + weights.bias[None, :])
    rows = jax.lax.platform_dependent(
        table, ids.ravel(), tpu=lambda table, ids: table[ids], cuda=_rows, default=_slices
    )
    return rows.reshape(*ids.shape, -1)


@jax.custom_vjp
def _rows(table: Float[Array, "input gates"], ids: Int32[Array, " id"]) -> Float[Array, "id gates"]:
    """Return `table[ids]`, with a gradient that is one product with one-hot ids.

    On a GPU the gradient of `table[ids]` is atomic additions in no fixed order, so the bits of the sums would vary.
    """
    return table[ids]


def _rows_forwards(table: Array, ids: Array) -> tuple[Array, tuple[Array, Array]]:
    return table[ids], (table, ids)


def _rows_backwards(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    table, ids = kept
    # In float32 whatever the model's precision: it replaces sums, which are never rounded to less.
    return multiply(jax.nn.one_hot(ids, len(table), dtype=gradient.dtype).T, gradient, "float32"), None


_rows.defvjp(_rows_forwards, _rows_backwards)


def _slices(table: Float[Array, "input gates"], ids: Int32[Array, " id"]) -> Float[Array, "id gates"]:
    """Return `table[ids]`, with a gradient that XLA sums without first copying all terms.

    On a TPU that gradient would be a sequential loop over the ids, which the gradient of `table[ids]` is not.
    """
    look_up = jax.vmap(lambda id: jax.lax.dynamic_slice_in_dim(table, id, 1))
    # At least two: XLA would look up a single row again for every element that is computed from it.
    return look_up(jnp.resize(ids, (max(ids.size, 2),)))[: ids.size].reshape(ids.size, -1)


def project(
    weights: Weights, inputs: Float[Array, "*batch input"], precision: Precision
) -> Float[Array, "*batch gates"]:
    """Return x W + b."""
    return multiply(inputs, weights.input_kernel, precision) + jnp.expand_dims(weights.bias, range(inputs.ndim - 1))


def lstm_sequence(
    recurrent_kernel: Float[Array, "hidden gates"],
    projected: Float[Array, "time batch gates"],
    carry: LayerCarry,
    gate: GateActivation,
    precision: Precision,
    recurrence: Recurrence = "scan",
) -> tuple[Float[Array, "time batch hidden"], LayerCarry]:
    """Read a sequence of projected inputs; return the hidden state after each, and the last carry.

    Reverse-mode derivatives of every order are supported; JAX refuses forward mode (`jax.jvp`).

    Args:
        recurrent_kernel: U.
        projected: the projected inputs.
        carry: the carry before them.
        gate: the gates' activation.
        precision: of the products.
        recurrence: how a sequence is read and differentiated in training: by XLA's loops (`scan`); by the same
            steps laid out one after another (`unrolled`), which become fewer, larger kernels on a GPU but take more
            memory, and longer to compile; or on a TPU by the kernels of `model/tpu_kernel.py` (`kernel`), which
            themselves have no derivative.
    """
    return _read(recurrent_kernel, projected, carry, gate, precision, recurrence)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _read(
    recurrent_kernel: Array,
    projected: Array,
    carry: LayerCarry,
    gate: GateActivation,
    precision: Precision,
    recurrence: Recurrence,
) -> tuple[Array, LayerCarry]:
    def step(carry: LayerCarry, projected: Float[Array, "batch gates"]) -> tuple[LayerCarry, Array]:
        carry = lstm_step(recurrent_kernel, carry, projected, gate, precision)
        return carry, carry.hidden

    carry, hidden = jax.lax.scan(step, carry, projected)
    return hidden, carry


def _read_forwards(
    recurrent_kernel: Array,
    projected: Array,
    carry: LayerCarry,
    gate: GateActivation,
    precision: Precision,
    recurrence: Recurrence,
) -> tuple[tuple[Array, LayerCarry], tuple[Array, Trace]]:
    """Read a sequence, and keep what its derivative needs."""
    step = functools.partial(traced_step, gate=gate, precision=precision)
    carry, trace = _scan(step, recurrent_kernel, carry, projected, recurrence, reverse=False)
    hidden = jnp.concatenate([trace.hidden_before[1:], carry.hidden[None]])
    return (hidden, carry), (recurrent_kernel, trace)


def _read_backwards(
    gate: GateActivation,
    precision: Precision,
    recurrence: Recurrence,
    kept: tuple[Array, Trace],
    gradient: tuple[Array, LayerCarry],
) -> tuple[Array, Array, LayerCarry]:
    """Return the gradients of `recurrent_kernel`, `projected` and `carry`, given those of the outputs of `_read`."""
    recurrent_kernel, trace = kept
    by_hidden, by_carry = gradient
    step = functools.partial(step_back, precision=precision)
    inputs = trace, by_hidden
    by_carry, by_gates = _scan(step, once(recurrent_kernel.T), by_carry, inputs, recurrence, reverse=True)
    before, after = (steps.reshape(-1, steps.shape[-1]) for steps in (trace.hidden_before, by_gates))
    return multiply(before.T, after, precision), by_gates, by_carry


_read.defvjp(_read_forwards, _read_backwards)


def _scan(
    step: Step, weights: Any, carry: Any, inputs: Any, recurrence: Recurrence, *, reverse: bool
) -> tuple[Any, Any]:
    """Return the last carry and the outputs of all steps, taken in the chosen way; see `jax.lax.scan`.

    The first output has the shape and type of the first input.
    """
    if recurrence == "unrolled":
        # Not in place: on a GPU, XLA would make another kernel of each step's write into the array of all steps.
        return jax.lax.scan(functools.partial(step, weights), carry, inputs, reverse=reverse, unroll=True)
    in_place = functools.partial(_scan_in_place, step, reverse=reverse)
    if recurrence == "scan":
        return in_place(weights, carry, inputs)
    from charlm_jax.model import tpu_kernel

    on_tpu = functools.partial(tpu_kernel.scan, step, reverse=reverse)
    return jax.lax.platform_dependent(weights, carry, inputs, tpu=on_tpu, default=in_place)


def _scan_in_place(step: Step, weights: Any, carry: Any, inputs: Any, *, reverse: bool) -> tuple[Any, Any]:
    """Take the steps in a loop in which the first output overwrites the first input."""
    (first, *others), structure = jax.tree.flatten(inputs)
    shapes = jax.eval_shape(step, weights, carry, jax.tree.map(lambda steps: steps[0], inputs))[1]
    _, *shapes_of_others = jax.tree.leaves(shapes)
    empty = [jnp.zeros((len(first), *shape.shape), shape.dtype) for shape in shapes_of_others]

    def body(number: Integer[Array, ""], state: tuple[Any, list[Array]]) -> tuple[Any, list[Array]]:
        carry, outputs = state
        time = len(first) - 1 - number if reverse else number
        here = [_at(steps, time) for steps in (outputs[0], *others)]
        carry, output = step(weights, carry, jax.tree.unflatten(structure, here))
        return carry, [_put(*each, time) for each in zip(outputs, jax.tree.leaves(output), strict=True)]

    carry, outputs = jax.lax.fori_loop(0, len(first), body, (carry, [first, *empty]))
    return carry, jax.tree.unflatten(jax.tree.structure(shapes), outputs)


def _at(steps: Float[Array, "time *rest"], time: Integer[Array, ""]) -> Float[Array, "*rest"]:
    return jax.lax.dynamic_index_in_dim(steps, time, keepdims=False)


def _put(steps: Float[Array, "time *rest"], step: Float[Array, "*rest"], time: Integer[Array, ""]) -> Array:
    """Replace a step's values, in place where XLA can."""
    return jax.lax.dynamic_update_index_in_dim(steps, step, time, 0)
