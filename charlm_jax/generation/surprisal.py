"""The surprisal of each character of a text, -log p, when the text is read as the model would have generated it.

The name is from Tribus, Thermostatics and Thermodynamics, 1961.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Integer

from charlm_jax.choices import Sampler
from charlm_jax.generation.generate import SamplingState, next_logits, pad_left, read_character, read_prompts
from charlm_jax.model.network import Model


class Surprisal(NamedTuple):
    """What a model predicted for each character of some texts before reading it, at temperature 1.

    Attributes:
        nats: -log p of the character in the text; finite, even where float32 has no number for p but 0.
        likeliest: ids of the likeliest characters, likeliest first.
        probabilities: of the likeliest characters.
    """

    nats: Float[np.ndarray, "stream length"]
    likeliest: Int32[np.ndarray, "stream length top"]
    probabilities: Float[np.ndarray, "stream length top"]


def surprisal(
    model: Model,
    prompts: Sequence[Integer[np.ndarray, " _"]],
    texts: Integer[np.ndarray, "stream length"],
    *,
    sampler: Sampler,
    window: int,
    top: int,
) -> Surprisal:
    """Read texts after their prompts as generation would, and return what was predicted for each character.

    Args:
        model: whose predictions are compared.
        prompts: encoded prompts, one per text, of any lengths.
        texts: the encoded texts.
        sampler: whether each character is predicted from the last window alone, or with the state carried on.
        window: characters that `windowed` predicts from.
        top: how many of the likeliest characters to return, at most the whole vocabulary.
    """
    state = read_prompts(model, *pad_left(prompts), sampler=sampler, window=window)
    top = min(top, model.network.vocabulary_size)
    columns = _follow(model, state, jnp.asarray(texts, jnp.int32), top=top)
    return Surprisal(*(np.asarray(jnp.moveaxis(column, 0, 1)) for column in columns))


@functools.partial(jax.jit, static_argnames="top")
def _follow(
    model: Model, state: SamplingState, texts: Int32[Array, "stream length"], *, top: int
) -> tuple[Array, Array, Array]:
    def step(state: SamplingState, ids: Int32[Array, " stream"]) -> tuple[SamplingState, tuple[Array, Array, Array]]:
        logs = jax.nn.log_softmax(next_logits(model, state))
        nats = -jnp.take_along_axis(logs, ids[:, None], axis=1)[:, 0]
        best, likeliest = jax.lax.top_k(logs, top)
        return read_character(model, state, ids), (nats, likeliest, jnp.exp(best))

    return jax.lax.scan(step, state, texts.T)[1]
