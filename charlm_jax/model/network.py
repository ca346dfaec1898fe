"""The network: ids to logits by layers of LSTM and one dense head."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from charlm_jax.choices import GateActivation
from charlm_jax.model.recurrence import (
    LayerCarry,
    Weights,
    fuse,
    gate_function,
    lstm_sequence,
    lstm_step,
    project,
    project_ids,
)

Carry = tuple[LayerCarry, ...]  # one a layer, the lowest first


class CharacterLSTM(nn.Module):
    """A stack of LSTM layers over one-hot characters, with a dense head over the vocabulary.

    The parameters are exactly those of one `flax.linen.LSTMCell` a layer (`lstm_0`, `lstm_1`, ...) and one
    `flax.linen.Dense` (`head`); with V characters and H hidden units one layer and the head hold
    4 H (V + H + 1) + V (H + 1) of them. Dropout falls on each layer's output but the last one's, and only where a
    `dropout` key is given to `apply`.

    Attributes:
        vocabulary_size: characters that the model knows.
        hidden_size: units of each layer.
        layers: how many.
        gate_activation: of the input, forget and output gates.
        dropout: share of the outputs between layers that is dropped while training.
    """

    vocabulary_size: int
    hidden_size: int = 128
    layers: int = 1
    gate_activation: GateActivation = "sigmoid"
    dropout: float = 0.0

    def setup(self) -> None:
        """Declare the layers (Linen calls this; users do not)."""
        gate = gate_function(self.gate_activation)
        self.lstm = [nn.LSTMCell(self.hidden_size, gate_fn=gate) for _ in range(self.layers)]
        self.drop = nn.Dropout(self.dropout)
        self.head = nn.Dense(self.vocabulary_size)

    def __call__(
        self, ids: Int32[Array, "batch time"], carry: Carry | None = None
    ) -> tuple[Float[Array, "batch time vocab"], Carry]:
        """Return the logits of the character after each one read, and the carry after the last."""
        hidden, carry = self.read(ids, carry)
        return self.predict(hidden), carry

    def read(
        self, ids: Int32[Array, "batch time"], carry: Carry | None = None
    ) -> tuple[Float[Array, "batch time hidden"], Carry]:
        """Read characters from a carry (None is the zero state); return the top hidden state after each."""
        carry = self.zero_carry(ids.shape[:1]) if carry is None else carry
        weights = self._weights()
        projected = project_ids(weights[0], ids.T)  # time first, as the recurrence goes
        hidden, after = lstm_sequence(weights[0].recurrent_kernel, projected, carry[0], self.gate_activation)
        layers = [after]
        for layer, before in zip(weights[1:], carry[1:], strict=True):
            projected = project(layer, self.drop(hidden, deterministic=not self.has_rng("dropout")))
            hidden, after = lstm_sequence(layer.recurrent_kernel, projected, before, self.gate_activation)
            layers.append(after)
        return jnp.swapaxes(hidden, 0, 1), tuple(layers)

    def step(self, ids: Int32[Array, "*#batch"], carry: Carry) -> Carry:
        """Read one character a row, or the same one for many rows where `ids` has an axis of 1.

        The top hidden state, `carry[-1].hidden`, predicts the next character.
        """
        weights = self._weights()
        projected = project_ids(weights[0], ids)
        layers = [lstm_step(weights[0].recurrent_kernel, projected, carry[0], self.gate_activation)]
        for layer, before in zip(weights[1:], carry[1:], strict=True):
            projected = project(layer, layers[-1].hidden)
            layers.append(lstm_step(layer.recurrent_kernel, projected, before, self.gate_activation))
        return tuple(layers)

    def predict(self, hidden: Float[Array, "*batch hidden"]) -> Float[Array, "*batch vocab"]:
        """Return the logits of the next character, given the top hidden state."""
        return self.head(hidden)

    def zero_carry(self, batch: tuple[int, ...]) -> Carry:
        """Return the state before any character is read."""
        zeros = jnp.zeros((*batch, self.hidden_size))
        return (LayerCarry(zeros, zeros),) * self.layers

    def _weights(self) -> list[Weights]:
        if self.is_initializing():
            # Flax creates a module's parameters where it is first called.
            inputs = [self.vocabulary_size] + [self.hidden_size] * (self.layers - 1)
            for cell, carry, size in zip(self.lstm, self.zero_carry(()), inputs, strict=True):
                cell(tuple(carry), jnp.zeros(size))
        return [fuse(cell.variables["params"]) for cell in self.lstm]
