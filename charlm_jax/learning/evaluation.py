"""How well a model predicts a text that it may not have seen."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int32, Integer

from charlm_jax.data.windows import count_windows, gather_batch
from charlm_jax.learning.objective import last_character_losses
from charlm_jax.mesh import DATA, own_rows, replicate
from charlm_jax.model.initializers import Parameters
from charlm_jax.model.network import CharacterLSTM

BATCH_SIZE = 256  # windows read at once


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
    mesh: Mesh,
    *,
    window: int,
    stride: int,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """Score the character after every window of a text, each window read from the zero state.

    Stride 1 scores every character but the first `window`. Each device of the mesh reads its share of a batch.
    """
    count = count_windows(len(ids), window=window, stride=stride)
    parameters, ids = replicate((parameters, ids), mesh)
    losses = _window_losses(network, parameters, ids, mesh, window, stride, batch_size)
    # One float32 sum a batch and device, added in float64 on the host: the mean of millions keeps its digits.
    return Evaluation(loss_nats=math.fsum(losses.tolist()) / count, characters=count)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def _window_losses(
    network: CharacterLSTM,
    parameters: Parameters,
    ids: Integer[Array, " character"],
    mesh: Mesh,
    window: int,
    stride: int,
    batch_size: int,
) -> Float[Array, " batches"]:
    count = count_windows(len(ids), window=window, stride=stride)

    def own_losses(parameters: Parameters, ids: Integer[Array, " character"]) -> Float[Array, " batches"]:
        rows = own_rows(batch_size, mesh)

        def batch_loss(number: Int32[Array, ""]) -> Float[Array, ""]:
            indices = jnp.where(rows < batch_size, number * batch_size + rows, count)
            batch = gather_batch(ids, indices, window=window, stride=stride, count=count)
            return jnp.sum(batch.weights * last_character_losses(network, parameters, batch))

        return jax.lax.map(batch_loss, jnp.arange(-(-count // batch_size)))

    sharded = jax.shard_map(
        own_losses, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(DATA), check_vma=False
    )
    return sharded(parameters, ids)
