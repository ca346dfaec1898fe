"""How well a model predicts a text that it may not have seen."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Integer

from charlm_jax.data.windows import count_windows, gather_batch
from charlm_jax.learning.objective import last_character_losses
from charlm_jax.model.initializers import Parameters
from charlm_jax.model.network import CharacterLSTM


@dataclass(frozen=True)
class Evaluation:
    """A model's loss on a text.

    Attributes:
        loss_nats: mean negative log-likelihood of the scored characters.
        characters: how many were scored.
    """

    loss_nats: float
    characters: int

    @property
    def bits_per_character(self) -> float:
        """The same loss in bits: nats over the natural logarithm of 2."""
        return self.loss_nats / math.log(2)


def evaluate(
    network: CharacterLSTM,
    parameters: Parameters,
    ids: Integer[Array, " character"],
    *,
    window: int,
    stride: int,
    batch_size: int = 256,
) -> Evaluation:
    """Score the character after every window of a text, each window read from the zero state.

    Stride 1 scores every character but the first `window`.
    """
    count = count_windows(len(ids), window=window, stride=stride)
    losses = _window_losses(network, parameters, ids, window, stride, batch_size)
    # One float32 sum a batch, added in float64 on the host: the mean of millions keeps its digits.
    return Evaluation(loss_nats=math.fsum(losses.tolist()) / count, characters=count)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _window_losses(
    network: CharacterLSTM,
    parameters: Parameters,
    ids: Integer[Array, " character"],
    window: int,
    stride: int,
    batch_size: int,
) -> Float[Array, " batches"]:
    count = count_windows(len(ids), window=window, stride=stride)

    def batch_loss(number: Int32[Array, ""]) -> Float[Array, ""]:
        indices = number * batch_size + jnp.arange(batch_size)
        batch = gather_batch(ids, indices, window=window, stride=stride, count=count)
        return jnp.sum(batch.weights * last_character_losses(network, parameters, batch))

    return jax.lax.map(batch_loss, jnp.arange(-(-count // batch_size)))
