"""What training minimises, in nats per character."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from charlm_jax.choices import Objective
from charlm_jax.data.windows import Batch
from charlm_jax.model.network import Carry, Dropout, Model


class Targets(NamedTuple):
    """Which characters of a window an objective learns to predict.

    Attributes:
        learned: how many of a window's targets it learns, counted from the end.
        consecutive: whether the carry may be kept from window to window; if not, each starts from the zero state.
    """

    learned: int
    consecutive: bool


def targets_of(objective: Objective, window: int) -> Targets:
    """Return which characters of a window of `window` characters an objective learns to predict."""
    match objective:
        case "last-character":
            return Targets(1, consecutive=False)
        case "every-character":
            return Targets(window, consecutive=True)


def cross_entropy(logits: Float[Array, "*batch vocab"], targets: Int32[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the loss of each target in nats, -log softmax(logits)[target].

    A target outside the vocabulary would silently get some other character's loss: ids are checked where text is
    encoded.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def losses_along(
    model: Model,
    characters: Int32[Array, "batch length"],
    carry: Carry = (),
    dropout: Dropout | None = None,
    *,
    count: int | None = None,
) -> tuple[Float[Array, "batch target"], Carry]:
    """Return the loss in nats of every character but the first, given those before it, and the final carry.

    Args:
        model: that predicts.
        characters: ids; the last of each row is a target only, and the returned carry has not read it.
        carry: after the preceding text; an empty one is the zero state.
        dropout: if given, dropout is on.
        count: how many losses to return, counted from the end; None means all.
    """
    network = model.bound
    hidden, carry = network.read(characters[:, :-1], carry, dropout)
    first = 0 if count is None else hidden.shape[1] - count
    return cross_entropy(network.predict(hidden[:, first:]), characters[:, 1 + first :]), carry


def last_losses(model: Model, characters: Int32[Array, "batch length"]) -> Float[Array, " batch"]:
    """Return the loss in nats of the last character, given those before it, read from the zero state."""
    return losses_along(model, characters, count=1)[0][:, 0]


def window_losses(
    model: Model,
    batch: Batch,
    objective: Objective,
    carry: Carry = (),
    dropout: Dropout | None = None,
    min_probability: float = 0.0,
) -> tuple[Float[Array, " batch"], Carry]:
    """Return the loss of each window of a batch, in nats per character, and the carry after it.

    The loss is the mean over the characters that the objective learns to predict; see `targets_of`, which also says
    whether windows are read from the carry or from the zero state. Padding has a loss, which its weight of 0 removes.

    A target less likely than `min_probability` gets the loss of one that likely, and no gradient, as in Keras before
    2.4, which clips softmax probabilities to 1e-7. Unclipped, one such target can make training diverge.
    """
    max_loss = -math.log(min_probability) if min_probability else math.inf
    targets = targets_of(objective, batch.characters.shape[1] - 1)
    start = carry if targets.consecutive else ()
    losses, carry = losses_along(model, batch.characters, start, dropout, count=targets.learned)
    return jnp.mean(jnp.minimum(losses, max_loss), axis=1), carry
