"""How well a model predicts a text: in windows read from the zero state, or as one long stream."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int32, Integer, PyTree

from charlm_jax.data.windows import count_windows, gather_batch
from charlm_jax.learning.objective import last_losses, losses_along
from charlm_jax.mesh import DATA, fetch, own_rows, replicate
from charlm_jax.model.network import Model

BATCH_SIZE = 256  # windows read at once
NUMBERS = 1 << 22  # of the largest array in which one dispatch reads a stream

Score = Callable[[Model, Array], PyTree]
"""A function of windows: (model, characters (batch, time)) -> arrays with one row per window."""


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
        """The same loss in bits: nats divided by the natural logarithm of 2."""
        return self.loss_nats / math.log(2)


def evaluate(model: Model, ids: Integer[Array, " character"], mesh: Mesh, *, window: int, stride: int) -> Evaluation:
    """Score the character after every window of a text, each window read from the zero state.

    Stride 1 scores every character but the first `window`; a text needs at least one more than `window`.
    """
    total, count = sum_over_windows(last_losses, model, ids, mesh, window=window, stride=stride)
    return Evaluation(loss_nats=float(total) / count, characters=count)


def loss_by_position(
    model: Model, ids: Integer[Array, " character"], mesh: Mesh, *, window: int, stride: int
) -> Float[np.ndarray, " window"]:
    """Return the mean nats of a character given the 1, 2, ... `window` before it: how much the context helps.

    The windows are those of `evaluate`, whose loss is the last entry.
    """
    totals, count = sum_over_windows(_losses_along, model, ids, mesh, window=window, stride=stride)
    return totals / count


def _losses_along(model: Model, characters: Array) -> Array:
    return losses_along(model, characters)[0]


def evaluate_stream(model: Model, ids: Integer[Array | np.ndarray, " character"]) -> Evaluation:
    """Score every character of a text but the first, carrying the state from each character to the next.

    The text, of at least two characters, is read in order as one stream on one device: no batch layout matters.
    """
    network = model.network
    piece = max(NUMBERS // max(network.vocabulary_size, 4 * network.hidden_size), 256)  # logits, and gates
    text, total = np.asarray(ids), 0.0
    carry = network.zero_carry((1,))
    for start in range(0, len(text) - 1, piece):
        characters = jnp.array(text[None, start : start + piece + 1], jnp.int32)
        loss, carry = _stream_losses(model, characters, carry)
        total += float(np.sum(np.asarray(loss), dtype=np.float64))
    count = len(text) - 1
    return Evaluation(loss_nats=total / count, characters=count)


_stream_losses = jax.jit(losses_along)


def sum_over_windows(
    score: Score, model: Model, ids: Integer[Array, " character"], mesh: Mesh, *, window: int, stride: int
) -> tuple[PyTree, int]:
    """Sum a function's results over all windows of a text; return the sums and the number of windows.

    Each device of the mesh reads its share of a batch. A batch's sums are float32; the host adds them up in float64, so
    that the mean over millions of windows keeps its digits.

    Args:
        score: see `Score`; every new function object is compiled anew, so define it at module level.
        model: to score.
        ids: the text.
        mesh: the devices.
        window: characters in a window.
        stride: characters from one window's start to the next one's.
    """
    model, ids = replicate((model, ids), mesh)
    sums = _batch_sums(score, model, ids, mesh, window, stride, BATCH_SIZE)
    totals = jax.tree.map(lambda batches: np.asarray(batches, np.float64).sum(axis=0), fetch(sums))
    return totals, count_windows(len(ids), window=window, stride=stride)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def _batch_sums(
    score: Score, model: Model, ids: Integer[Array, " character"], mesh: Mesh, window: int, stride: int, batch_size: int
) -> PyTree:
    count = count_windows(len(ids), window=window, stride=stride)

    def own_sums(model: Model, ids: Integer[Array, " character"]) -> PyTree:
        rows = own_rows(batch_size, mesh)

        def batch_sum(number: Int32[Array, ""]) -> PyTree:
            windows = number * batch_size + rows
            batch = gather_batch(ids, stride * windows, (rows < batch_size) & (windows < count), window=window)
            scores = score(model, batch.characters)
            return jax.tree.map(
                lambda values: jnp.tensordot(batch.weights, values, axes=1, precision="highest"), scores
            )

        return jax.lax.map(batch_sum, jnp.arange(-(-count // batch_size)))

    sharded = jax.shard_map(
        own_sums, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(DATA), check_vma=False
    )
    return sharded(model, ids)
