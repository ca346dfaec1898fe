"""The LSTM recurrence, as pure functions of arrays.

    i, f, g, o = split(x W + h U + b)
    c' = gate(f) c + gate(i) tanh(g)
    h' = gate(o) tanh(c')

(Hochreiter and Schmidhuber, 1997, with the forget gate of Gers, Schmidhuber and Cummins, 2000.) The parameters are a
`flax.linen.LSTMCell`'s; `fuse` lays its gates side by side so that a step is one product with U.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from charlm_jax.choices import GateActivation

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


def fuse(cell: Mapping) -> Weights:
    """Lay the gates of a `flax.linen.LSTMCell`'s parameters side by side."""

    def side_by_side(layer: str, parameter: str) -> Array:
        return jnp.concatenate([cell[f"{layer}{gate}"][parameter] for gate in GATES], axis=-1)

    return Weights(side_by_side("i", "kernel"), side_by_side("h", "kernel"), side_by_side("h", "bias"))


def project_ids(weights: Weights, ids: Int32[Array, "*batch"]) -> Float[Array, "*batch gates"]:
    """Return x W + b for one-hot x: a row of W for each id."""
    return (weights.input_kernel + weights.bias[None, :])[ids]


def project(weights: Weights, inputs: Float[Array, "*batch input"]) -> Float[Array, "*batch gates"]:
    """Return x W + b."""
    return inputs @ weights.input_kernel + jnp.expand_dims(weights.bias, range(inputs.ndim - 1))


def lstm_step(
    weights: Weights, projected: Float[Array, "*batch gates"], carry: LayerCarry, gate: GateActivation
) -> LayerCarry:
    """Read one projected input a row."""
    activate = gate_function(gate)
    i, f, g, o = jnp.split(projected + carry.hidden @ weights.recurrent_kernel, 4, axis=-1)
    cell = activate(f) * carry.cell + activate(i) * jnp.tanh(g)
    return LayerCarry(cell, activate(o) * jnp.tanh(cell))


def lstm_sequence(
    weights: Weights, projected: Float[Array, "batch time gates"], carry: LayerCarry, gate: GateActivation
) -> tuple[Float[Array, "batch time hidden"], LayerCarry]:
    """Read a sequence of projected inputs; return the hidden state after each, and the last carry."""

    def step(carry: LayerCarry, projected: Float[Array, "batch gates"]) -> tuple[LayerCarry, Array]:
        carry = lstm_step(weights, projected, carry, gate)
        return carry, carry.hidden

    carry, hidden = jax.lax.scan(step, carry, jnp.swapaxes(projected, 0, 1))
    return jnp.swapaxes(hidden, 0, 1), carry
