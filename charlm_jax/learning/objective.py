"""What training minimises, in nats per character."""

import optax
from jaxtyping import Array, Float, Int32

from charlm_jax.data.windows import Batch
from charlm_jax.keys import Key
from charlm_jax.model.initializers import Parameters
from charlm_jax.model.network import CharacterLSTM


def cross_entropy(logits: Float[Array, "*batch vocab"], targets: Int32[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the nats that each target costs, -log softmax(logits)[target].

    A target outside the vocabulary would silently cost some other character's nats: ids are checked where text is
    encoded.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def last_character_losses(
    network: CharacterLSTM, parameters: Parameters, batch: Batch, dropout_key: Key | None = None
) -> Float[Array, " batch"]:
    """Return the nats that the character after each window costs, given the window read from the zero state.

    Args:
        network: the model.
        parameters: its parameters.
        batch: the windows; padding has some loss too, which its weight of 0 is there to remove.
        dropout_key: switches dropout on.
    """
    model = network.bind({"params": parameters}, rngs=None if dropout_key is None else {"dropout": dropout_key})
    _, carry = model.read(batch.inputs)
    return cross_entropy(model.predict(carry[-1].hidden), batch.targets)
