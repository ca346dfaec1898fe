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
    """Which characters an objective learns of a window.

    Attributes:
        learned: so many of those that it predicts, the last ones.
        consecutive: whether windows may follow one another with the state kept; else each starts from the zero state.
    """

    learned: int
    consecutive: bool


def targets_of(objective: Objective, window: int) -> Targets:
    """Return what an objective is: which characters it learns of a window of `window` characters."""
    match objective:
        case "last-character":
            return Targets(1, consecutive=False)
        case "every-character":
            return Targets(window, consecutive=True)


def cross_entropy(logits: Float[Array, "*batch vocab"], targets: Int32[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the nats that each target costs, -log softmax(logits)[target].

    A target outside the vocabulary would silently cost some other character's nats: ids are checked where text is
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
    """Return the nats that every character but the first costs, given those before it, and the carry after them.

    Args:
        model: that reads them.
        characters: ids; the last of each row is a target only.
        carry: of the text before; an empty one is the zero state.
        dropout: switches dropout on.
        count: so many of them, the last ones; None is all.
    """
    hidden, carry = model.bound.read(characters[:, :-1], carry, dropout)
    first = 0 if count is None else hidden.shape[1] - count
    return cross_entropy(model.bound.predict(hidden[:, first:]), characters[:, 1 + first :]), carry


def last_losses(model: Model, characters: Int32[Array, "batch length"]) -> Float[Array, " batch"]:
    """Return the nats that the last character costs, given those before it, read from the zero state."""
    return losses_along(model, characters, count=1)[0][:, 0]


def window_losses(
    model: Model,
    batch: Batch,
    objective: Objective,
    carry: Carry = (),
    dropout: Dropout | None = None,
    least_probability: float = 0.0,
) -> tuple[Float[Array, " batch"], Carry]:
    """Return what each window of a batch costs, in nats per character, and the carry after it.

    That is the mean over the characters that the objective learns of a window; see `targets_of`, which says too whether
    it reads from the carry or from the zero state. Padding has some loss, which its weight of 0 is there to remove.

    A target less likely than `least_probability` costs what one as likely would, and has no gradient: what Keras makes
    of softmax probabilities, which it clips to 1e-7. One such target can throw the notebooks' optimizer off for good.
    """
    most = -math.log(least_probability) if least_probability else math.inf
    targets = targets_of(objective, batch.characters.shape[1] - 1)
    start = carry if targets.consecutive else ()
    losses, carry = losses_along(model, batch.characters, start, dropout, count=targets.learned)
    return jnp.mean(jnp.minimum(losses, most), axis=1), carry
