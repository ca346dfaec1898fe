"""The LSTM recurrence, as pure functions of arrays.

    i, f, g, o = split(x W + h U + b)
    c' = gate(f) c + gate(i) tanh(g)
    h' = gate(o) tanh(c')

(Hochreiter and Schmidhuber, 1997, with the forget gate of Gers, Schmidhuber and Cummins, 2000.) The parameters are a
`flax.linen.LSTMCell`'s; `fuse` lays its gates side by side so that a step is one product with U. What the inputs
contribute, x W + b, is no part of the recurrence: `project` and `project_ids` compute it for all steps beforehand.

A sequence has a derivative of its own. Reading, it keeps the local slopes of every step; backwards, a step is then a
few multiplications and one product with the transpose of U, and the gradient of U is one large product at the end,
where automatic differentiation would add into it at every step. The slopes are written over the projected inputs and
the gradients over the slopes, so the largest array of a training step is there once, not three times.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Integer

from charlm_jax.choices import GateActivation, Precision
from charlm_jax.model.products import multiply

_Arrays = TypeVar("_Arrays")
GATES = "ifgo"  # the order of the fused gates: input, forget, cell, output


class LayerCarry(NamedTuple):
    """What one layer remembers; the order is Flax's (Keras has hidden first).

    Attributes:
        cell: c.
        hidden: h, which is also the layer's output.
    """

    cell: Float[Array, "*batch hidden"]
    hidden: Float[Array, "*batch hidden"]


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


def gate_function(name: GateActivation) -> Callable[[Array], Array]:
    """Return the gates' activation: the logistic function, or Keras 2's `hard_sigmoid`, clip(0.2 x + 0.5, 0, 1)."""
    return jax.nn.sigmoid if name == "sigmoid" else lambda x: jnp.clip(0.2 * x + 0.5, 0.0, 1.0)


def _gate_slope(name: GateActivation, value: Array) -> Array:
    """Return the derivative of the gates' activation where it takes this value."""
    return value * (1 - value) if name == "sigmoid" else jnp.where((value > 0) & (value < 1), 0.2, 0.0)


def fuse(cell: Mapping) -> Weights:
    """Lay the gates of a `flax.linen.LSTMCell`'s parameters side by side."""

    def side_by_side(layer: str, parameter: str) -> Array:
        return jnp.concatenate([cell[f"{layer}{gate}"][parameter] for gate in GATES], axis=-1)

    return Weights(side_by_side("i", "kernel"), side_by_side("h", "kernel"), side_by_side("h", "bias"))


def project_ids(weights: Weights, ids: Int32[Array, "*batch"]) -> Float[Array, "*batch gates"]:
    """Return x W + b for one-hot x: a row of W for each id."""
    table = _once(weights.input_kernel + weights.bias[None, :])
    rows = jax.lax.platform_dependent(table, ids.ravel(), tpu=lambda table, ids: table[ids], default=_slices)
    return rows.reshape(*ids.shape, -1)


def _slices(table: Float[Array, "input gates"], ids: Int32[Array, " id"]) -> Float[Array, "id gates"]:
    """Return `table[ids]`, with a gradient for which XLA does not copy all terms before it adds them up.

    On a TPU that gradient is a loop over the ids, one after another, where `table[ids]` has none.
    """
    look_up = jax.vmap(lambda id: jax.lax.dynamic_slice_in_dim(table, id, 1))
    # Two at least: a single row XLA would look up anew for every element of what is computed from it.
    return look_up(jnp.resize(ids, (max(ids.size, 2),)))[: ids.size].reshape(ids.size, -1)


def project(
    weights: Weights, inputs: Float[Array, "*batch input"], precision: Precision
) -> Float[Array, "*batch gates"]:
    """Return x W + b."""
    return multiply(inputs, weights.input_kernel, precision) + jnp.expand_dims(weights.bias, range(inputs.ndim - 1))


def lstm_step(
    recurrent_kernel: Float[Array, "hidden gates"],
    projected: Float[Array, "*#batch gates"],
    carry: LayerCarry,
    gate: GateActivation,
    precision: Precision,
) -> LayerCarry:
    """Read one projected input a row."""
    i, f, g, o = _gates(recurrent_kernel, projected, carry, gate, precision)
    cell = f * carry.cell + i * g
    return LayerCarry(cell, o * jnp.tanh(cell))


def lstm_sequence(
    recurrent_kernel: Float[Array, "hidden gates"],
    projected: Float[Array, "time batch gates"],
    carry: LayerCarry,
    gate: GateActivation,
    precision: Precision,
) -> tuple[Float[Array, "time batch hidden"], LayerCarry]:
    """Read a sequence of projected inputs; return the hidden state after each, and the last carry.

    It has reverse-mode derivatives of every order; forward mode (`jax.jvp`) JAX refuses.
    """
    return _read(recurrent_kernel, projected, carry, gate, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _read(
    recurrent_kernel: Array, projected: Array, carry: LayerCarry, gate: GateActivation, precision: Precision
) -> tuple[Array, LayerCarry]:
    def step(carry: LayerCarry, projected: Float[Array, "batch gates"]) -> tuple[LayerCarry, Array]:
        carry = lstm_step(recurrent_kernel, projected, carry, gate, precision)
        return carry, carry.hidden

    carry, hidden = jax.lax.scan(step, carry, projected)
    return hidden, carry


class _Trace(NamedTuple):
    """What reading a sequence leaves for its derivative, step by step.

    Attributes:
        slopes: of the new cell along the pre-activations of i, f and g, and of the new hidden state along that of o.
        cell_by_cell: of the new cell along the old one, which is the forget gate.
        hidden_by_cell: of the new hidden state along the new cell.
        hidden_before: the hidden state before the step.
    """

    slopes: Float[Array, "time batch gates"]
    cell_by_cell: Float[Array, "time batch hidden"]
    hidden_by_cell: Float[Array, "time batch hidden"]
    hidden_before: Float[Array, "time batch hidden"]

    def at(self, time: Integer[Array, ""]) -> "_Trace":
        """Return one step's."""
        return jax.tree.map(lambda whole: jax.lax.dynamic_index_in_dim(whole, time, keepdims=False), self)

    def put(self, time: Integer[Array, ""], **values: Array) -> "_Trace":
        """Replace some of one step's, in place where XLA can."""
        put = jax.lax.dynamic_update_index_in_dim
        return self._replace(**{name: put(getattr(self, name), value, time, 0) for name, value in values.items()})


def _read_and_trace(
    recurrent_kernel: Array, projected: Array, carry: LayerCarry, gate: GateActivation, precision: Precision
) -> tuple[tuple[Array, LayerCarry], tuple[Array, _Trace]]:
    """Read a sequence, and keep what its derivative needs."""

    def step(time: Integer[Array, ""], state: tuple[LayerCarry, _Trace]) -> tuple[LayerCarry, _Trace]:
        carry, trace = state
        gates = _gates(recurrent_kernel, trace.at(time).slopes, carry, gate, precision)
        # One array, for XLA computes cheap gates anew where they are used, from inputs that must then be copied.
        i, f, g, o = jnp.split(_once(jnp.concatenate(gates, axis=-1)), 4, axis=-1)
        cell = f * carry.cell + i * g
        squashed = _once(jnp.tanh(cell))
        hidden = o * squashed
        slopes = (
            g * _gate_slope(gate, i),
            carry.cell * _gate_slope(gate, f),
            i * (1 - g * g),
            squashed * _gate_slope(gate, o),
        )
        trace = trace.put(
            time,
            slopes=jnp.concatenate(slopes, axis=-1),
            cell_by_cell=f,
            hidden_by_cell=o * (1 - squashed * squashed),
            hidden_before=carry.hidden,
        )
        return LayerCarry(cell, hidden), trace

    unknown = jnp.zeros((*projected.shape[:2], len(recurrent_kernel)), projected.dtype)
    trace = _Trace(projected, unknown, unknown, unknown)
    carry, trace = jax.lax.fori_loop(0, len(projected), step, (carry, trace))
    hidden = jnp.concatenate([trace.hidden_before[1:], carry.hidden[None]])
    return (hidden, carry), (recurrent_kernel, trace)


def _read_back(
    gate: GateActivation, precision: Precision, kept: tuple[Array, _Trace], gradient: tuple[Array, LayerCarry]
) -> tuple[Array, Array, LayerCarry]:
    """Return the gradients of `recurrent_kernel`, `projected` and `carry`, given those of what `_read` returns."""
    recurrent_kernel, trace = kept
    by_hidden, by_carry = gradient
    last = len(by_hidden) - 1
    transposed = _once(recurrent_kernel.T)

    def step(number: Integer[Array, ""], state: tuple[LayerCarry, _Trace]) -> tuple[LayerCarry, _Trace]:
        by_carry, trace = state
        time = last - number
        here = trace.at(time)
        hidden = by_carry.hidden + jax.lax.dynamic_index_in_dim(by_hidden, time, keepdims=False)
        cell = by_carry.cell + hidden * here.hidden_by_cell
        by_gates = _once(jnp.concatenate([cell, cell, cell, hidden], axis=-1) * here.slopes)
        by_carry = LayerCarry(cell * here.cell_by_cell, multiply(by_gates, transposed, precision))
        return by_carry, trace.put(time, slopes=by_gates)

    by_carry, trace = jax.lax.fori_loop(0, last + 1, step, (by_carry, trace))
    by_gates = trace.slopes
    before, after = (steps.reshape(-1, steps.shape[-1]) for steps in (trace.hidden_before, by_gates))
    return multiply(before.T, after, precision), by_gates, by_carry


_read.defvjp(_read_and_trace, _read_back)


def _gates(
    recurrent_kernel: Array, projected: Array, carry: LayerCarry, gate: GateActivation, precision: Precision
) -> tuple[Array, Array, Array, Array]:
    """Return the activated gates of a step."""
    activate = gate_function(gate)
    i, f, g, o = jnp.split(projected + multiply(carry.hidden, recurrent_kernel, precision), 4, axis=-1)
    return _once((activate(i), activate(f), jnp.tanh(g), activate(o)))


def _once(values: _Arrays) -> _Arrays:
    """Keep XLA's CPU compiler from computing these values anew wherever they are used."""
    return jax.lax.platform_dependent(values, cpu=jax.lax.optimization_barrier, default=lambda values: values)
