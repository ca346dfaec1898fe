"""One step of an LSTM, forwards and backwards, as pure functions of arrays.

    i, f, g, o = split(x W + h U + b)
    c' = gate(f) c + gate(i) tanh(g)
    h' = gate(o) tanh(c')

(Hochreiter and Schmidhuber, 1997, with the forget gate of Gers, Schmidhuber and Cummins, 2000.) The input's
contribution, x W + b, is computed beforehand. A step that will be differentiated keeps its local slopes, so that its
backward pass is a few multiplications and one product with the transpose of U.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from charlm_jax.choices import GateActivation, Precision
from charlm_jax.model.products import multiply

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""A step of a scan, `step(weights, carry, input) -> carry, output`, on trees of arrays; all steps share the weights."""

_Arrays = TypeVar("_Arrays")


class LayerCarry(NamedTuple):
    """The carry of one layer, in Flax's order (Keras has hidden first).

    Attributes:
        cell: c.
        hidden: h, which is also the layer's output.
    """

    cell: Float[Array, "*batch hidden"]
    hidden: Float[Array, "*batch hidden"]


class Trace(NamedTuple):
    """What the forward pass keeps for the backward pass, for one step or for all.

    Attributes:
        slopes: derivatives of the new cell (i, f, g) and the new hidden state (o) with respect to the pre-activations.
        cell_by_cell: derivative of the new cell with respect to the old one, which is the forget gate.
        hidden_by_cell: derivative of the new hidden state with respect to the new cell.
        hidden_before: the hidden state before the step.
    """

    slopes: Float[Array, "*time batch gates"]
    cell_by_cell: Float[Array, "*time batch hidden"]
    hidden_by_cell: Float[Array, "*time batch hidden"]
    hidden_before: Float[Array, "*time batch hidden"]


def gate_function(name: GateActivation) -> Callable[[Array], Array]:
    """Return the gates' activation: the logistic function, or Keras 2's `hard_sigmoid`, clip(0.2 x + 0.5, 0, 1)."""
    return jax.nn.sigmoid if name == "sigmoid" else lambda x: jnp.clip(0.2 * x + 0.5, 0.0, 1.0)


def _gate_slope(name: GateActivation, value: Array) -> Array:
    """Return the derivative of the gates' activation at the point where it takes this value."""
    return value * (1 - value) if name == "sigmoid" else jnp.where((value > 0) & (value < 1), 0.2, 0.0)


def lstm_step(
    recurrent_kernel: Float[Array, "hidden gates"],
    carry: LayerCarry,
    projected: Float[Array, "*#batch gates"],
    gate: GateActivation,
    precision: Precision,
) -> LayerCarry:
    """Read one projected input per row."""
    i, f, g, o = _gates(recurrent_kernel, projected, carry, gate, precision)
    cell = f * carry.cell + i * g
    return LayerCarry(cell, o * jnp.tanh(cell))


def traced_step(
    recurrent_kernel: Float[Array, "hidden gates"],
    carry: LayerCarry,
    projected: Float[Array, "batch gates"],
    gate: GateActivation,
    precision: Precision,
) -> tuple[LayerCarry, Trace]:
    """Read one projected input per row, and keep what the derivative needs."""
    gates = _gates(recurrent_kernel, projected, carry, gate, precision)
    # One array: XLA would recompute cheap gates wherever they are used, from inputs that it would then have to copy.
    i, f, g, o = jnp.split(once(jnp.concatenate(gates, axis=-1)), 4, axis=-1)
    cell = f * carry.cell + i * g
    squashed = once(jnp.tanh(cell))
    slopes = (
        g * _gate_slope(gate, i),
        carry.cell * _gate_slope(gate, f),
        i * (1 - g * g),
        squashed * _gate_slope(gate, o),
    )
    trace = Trace(jnp.concatenate(slopes, axis=-1), f, o * (1 - squashed * squashed), carry.hidden)
    return LayerCarry(cell, o * squashed), trace


def step_back(
    transposed: Float[Array, "gates hidden"],
    by_carry: LayerCarry,
    here: tuple[Trace, Float[Array, "batch hidden"]],
    precision: Precision,
) -> tuple[LayerCarry, Float[Array, "batch gates"]]:
    """Return the gradients with respect to the carry before a step and to the step's pre-activations.

    Args:
        transposed: U's transpose.
        by_carry: gradients with respect to the carry after the step.
        here: the step's trace, and the gradient with respect to the new hidden state, as an output.
        precision: of the product.
    """
    trace, by_hidden = here
    hidden = by_carry.hidden + by_hidden
    cell = by_carry.cell + hidden * trace.hidden_by_cell
    by_gates = once(jnp.concatenate([cell, cell, cell, hidden], axis=-1) * trace.slopes)
    return LayerCarry(cell * trace.cell_by_cell, multiply(by_gates, transposed, precision)), by_gates


def _gates(
    recurrent_kernel: Array, projected: Array, carry: LayerCarry, gate: GateActivation, precision: Precision
) -> tuple[Array, Array, Array, Array]:
    """Return the activated gates of a step."""
    activate = gate_function(gate)
    i, f, g, o = jnp.split(projected + multiply(carry.hidden, recurrent_kernel, precision), 4, axis=-1)
    return once((activate(i), activate(f), jnp.tanh(g), activate(o)))


def once(values: _Arrays) -> _Arrays:
    """Keep XLA's CPU compiler from recomputing these values wherever they are used."""
    return jax.lax.platform_dependent(values, cpu=jax.lax.optimization_barrier, default=lambda values: values)
