"""The network: ids to logits through LSTM layers and a dense head."""

from dataclasses import dataclass, field
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PyTree

from charlm_jax.choices import GateActivation, Precision, Recurrence
from charlm_jax.keys import Key, fold_text
from charlm_jax.model.cell import LayerCarry, gate_function, lstm_step
from charlm_jax.model.products import multiply
from charlm_jax.model.recurrence import Weights, fuse, lstm_sequence, project, project_ids

Carry = tuple[LayerCarry, ...]  # one per layer, the lowest first
Parameters = PyTree[Array]  # a dictionary by layer name, as `CharacterLSTM` describes it


class Dropout(NamedTuple):
    """Decides which outputs and which recurrent weights are dropped while a model learns from a batch.

    What is kept is divided by the share kept, so that sums keep their mean (Srivastava et al., 2014).

    Attributes:
        key: the batch's.
        rows: index of each sequence within the whole batch, so that what a sequence loses does not depend on those
            beside it or on the device that reads it.
    """

    key: Key
    rows: Int32[Array, " batch"]

    def of_outputs(
        self, hidden: Float[Array, "time batch hidden"], layer: int, share: float
    ) -> Float[Array, "time batch hidden"]:
        """Drop a share of a layer's units: different ones for each sequence, the same ones at each of its steps."""
        if not share:
            return hidden
        key = jax.random.fold_in(fold_text(self.key, "outputs"), layer)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, self.rows)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - share, hidden.shape[-1:]))(keys)
        return jnp.where(kept[None], hidden / (1 - share), 0.0)

    def of_weights(
        self, kernel: Float[Array, "hidden gates"], layer: int, share: float
    ) -> Float[Array, "hidden gates"]:
        """Drop a share of a layer's recurrent weights, the same ones for all sequences."""
        if not share:
            return kernel
        key = jax.random.fold_in(fold_text(self.key, "weights"), layer)
        return jnp.where(jax.random.bernoulli(key, 1 - share, kernel.shape), kernel / (1 - share), 0.0)


class CharacterLSTM(nn.Module):
    """A stack of LSTM layers over one-hot characters, with a dense head over the vocabulary.

    The parameters are exactly those of one `flax.linen.LSTMCell` per layer (`lstm_0`, `lstm_1`, ...) and one
    `flax.linen.Dense` (`head`). With V characters and H hidden units, one layer and the head have
    4 H (V + H + 1) + V (H + 1) parameters. An `embedding` adds E V before the first layer, which then has
    4 H (E + H + 1).

    Dropout is applied only where a `Dropout` is given: to every layer's outputs, dropping the same units at each step
    of a sequence (Gal and Ghahramani, 2016), and to the recurrent weights, dropping the same ones for all sequences
    (Merity, Keskar and Socher, 2018).

    Attributes:
        vocabulary_size: characters that the model knows.
        hidden_size: units of each layer.
        layers: number of LSTM layers.
        gate_activation: of the input, forget and output gates.
        dropout: share of each layer's outputs that is dropped while training.
        weight_dropout: share of each layer's recurrent weights that is dropped while training.
        embedding_size: size of the learned vector of each character; None means one-hot.
        precision: of the factors of all matrix products; sums and the carry are float32.
        recurrence: how sequences are read in training; see `lstm_sequence`.
    """

    vocabulary_size: int
    hidden_size: int = 128
    layers: int = 1
    gate_activation: GateActivation = "sigmoid"
    dropout: float = 0.0
    weight_dropout: float = 0.0
    embedding_size: int | None = None
    precision: Precision = "float32"
    recurrence: Recurrence = "scan"

    def setup(self) -> None:
        """Declare the layers (Linen calls this; users do not)."""
        gate = gate_function(self.gate_activation)
        self.lstm = [nn.LSTMCell(self.hidden_size, gate_fn=gate) for _ in range(self.layers)]
        self.head = nn.Dense(self.vocabulary_size, dot_general=self._head_product)
        if self.embedding_size:
            self.embedding = nn.Embed(self.vocabulary_size, self.embedding_size)

    def __call__(
        self, ids: Int32[Array, "batch time"], carry: Carry = (), dropout: Dropout | None = None
    ) -> tuple[Float[Array, "batch time vocab"], Carry]:
        """Return the logits of the character after each one read, and the carry after the last."""
        hidden, carry = self.read(ids, carry, dropout)
        return self.predict(hidden), carry

    def read(
        self, ids: Int32[Array, "batch time"], carry: Carry = (), dropout: Dropout | None = None
    ) -> tuple[Float[Array, "batch time hidden"], Carry]:
        """Read characters from a carry, empty for the zero state; return the top hidden states and the last carry."""
        carry = carry or self.zero_carry(ids.shape[:1])
        below, layers = ids.T, list[LayerCarry]()  # time first, as in `lstm_sequence`
        for number, (weights, before) in enumerate(zip(self._weights(), carry, strict=True)):
            projected = project(weights, below, self.precision) if number else project_ids(weights, below)
            kernel = weights.recurrent_kernel
            if dropout is not None:
                kernel = dropout.of_weights(kernel, number, self.weight_dropout)
            below, after = lstm_sequence(
                kernel, projected, before, self.gate_activation, self.precision, self.recurrence
            )
            if dropout is not None:
                below = dropout.of_outputs(below, number, self.dropout)
            layers.append(after)
        return jnp.swapaxes(below, 0, 1), tuple(layers)

    def step(self, ids: Int32[Array, "*#batch"], carry: Carry) -> Carry:
        """Read one character per row, or the same one for many rows where `ids` has an axis of size 1.

        The top hidden state, `carry[-1].hidden`, predicts the next character.
        """
        below, layers = ids, list[LayerCarry]()
        for weights, before in zip(self._weights(), carry, strict=True):
            projected = project(weights, below, self.precision) if layers else project_ids(weights, below)
            layers.append(lstm_step(weights.recurrent_kernel, before, projected, self.gate_activation, self.precision))
            below = layers[-1].hidden
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
            # Flax creates a module's parameters when it is first called.
            inputs = [self.embedding_size or self.vocabulary_size] + [self.hidden_size] * (self.layers - 1)
            for cell, carry, size in zip(self.lstm, self.zero_carry(()), inputs, strict=True):
                cell(tuple(carry), jnp.zeros(size))
        first, *others = [fuse(cell.variables["params"]) for cell in self.lstm]
        if self.embedding_size:
            # Project all characters at once: an id then selects a row, as it does without an embedding.
            products = multiply(self.embedding.embedding, first.input_kernel, self.precision)
            first = first._replace(input_kernel=products)
        return [first, *others]

    def _head_product(self, hidden: Array, kernel: Array, *_: object, **__: object) -> Array:
        return multiply(hidden, kernel, self.precision)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Model:
    """A network with its parameters: a pytree whose leaves are the parameters and whose structure is the network.

    Attributes:
        network: the architecture.
        parameters: the network's.
    """

    network: CharacterLSTM = field(metadata={"static": True})
    parameters: PyTree  # not `Parameters`: JAX rebuilds models with placeholders for leaves

    @property
    def bound(self) -> CharacterLSTM:
        """The network bound to the parameters, so that its methods need not be given them."""
        return self.network.bind({"params": self.parameters})
