"""What training minimises, in nats per character."""

import math

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from charlm_jax.choices import Objective
from charlm_jax.data.windows import Batch
from charlm_jax.model.initializers import Parameters
from charlm_jax.model.network import Carry, CharacterLSTM, Dropout


def cross_entropy(logits: Float[Array, "*batch vocab"], targets: Int32[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the nats that each target costs, -log softmax(logits)[target].

    A target outside the vocabulary would silently cost some other character's nats: ids are checked where text is
    encoded.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def losses_along(
    network: CharacterLSTM,
    parameters: Parameters,
    characters: Int32[Array, "batch length"],
    carry: Carry = (),
    dropout: Dropout | None = None,
) -> tuple[Float[Array, "batch length-1"], Carry]:
    """Return the nats that every character but the first costs, given those before it, and the carry after them.

    Args:
        network: the model.
        parameters: its parameters.
        characters: ids; the last of each row is a target only.
        carry: of the text before; an empty one is the zero state.
        dropout: switches dropout on.
    """
    logits, carry = network.bind({"params": parameters})(characters[:, :-1], carry, dropout)
    return cross_entropy(logits, characters[:, 1:]), carry


def last_losses(
    network: CharacterLSTM,
    parameters: Parameters,
    characters: Int32[Array, "batch length"],
    dropout: Dropout | None = None,
) -> Float[Array, " batch"]:
    """Return the nats that the last character costs, given those before it, read from the zero state.

    Args:
        network: the model.
        parameters: its parameters.
        characters: ids of windows, each with the character after it.
        dropout: switches dropout on.
    """
    model = network.bind({"params": parameters})
    hidden, _ = model.read(characters[:, :-1], dropout=dropout)
    return cross_entropy(model.predict(hidden[:, -1]), characters[:, -1])


def window_losses(
    network: CharacterLSTM,
    parameters: Parameters,
    batch: Batch,
    objective: Objective,
    carry: Carry = (),
    dropout: Dropout | None = None,
    least_probability: float = 0.0,
) -> tuple[Float[Array, " batch"], Carry]:
    """Return what an objective makes of each window of a batch, in nats per character, and the carry after it.

    `last-character` scores the character after the window, read from the zero state. `every-character` is the mean over
    all of the window's targets. Padding has some loss too, which its weight of 0 is there to remove.

    A target less likely than `least_probability` costs what one as likely would, and has no gradient: what Keras makes
    of softmax probabilities, which it clips to 1e-7. One such target can throw the notebooks' optimizer off for good.
    """
    most = -math.log(least_probability) if least_probability else math.inf
    if objective == "last-character":
        return jnp.minimum(last_losses(network, parameters, batch.characters, dropout), most), carry
    losses, carry = losses_along(network, parameters, batch.characters, carry, dropout)
    return jnp.mean(jnp.minimum(losses, most), axis=1), carry
