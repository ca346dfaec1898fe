"""From logits to one character: temperature, truncation, a draw."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from charlm_jax.keys import Key


def reweight(logits: Float[Array, " vocab"], temperature: Float[Array, ""]) -> Float[Array, " vocab"]:
    """Return logits whose softmax is proportional to softmax(logits) ** (1 / temperature).

    Towards 0 all the mass goes to the likeliest characters, and 0 itself is that limit; towards infinity the
    distribution becomes uniform.
    """
    below = logits - jnp.max(logits)
    positive = temperature > 0
    divided = below / jnp.where(positive, temperature, 1.0)
    return jnp.where(positive, divided, jnp.where(below == 0, 0.0, -jnp.inf))


def truncate_top_k(logits: Float[Array, " vocab"], k: int) -> Float[Array, " vocab"]:
    """Forbid all but the `k` likeliest characters, and those as likely as the last of them (Fan et al., 2018)."""
    last = jax.lax.top_k(logits, min(k, len(logits)))[0][-1]
    return jnp.where(logits >= last, logits, -jnp.inf)


def truncate_top_p(logits: Float[Array, " vocab"], p: float) -> Float[Array, " vocab"]:
    """Forbid all but the smallest set of characters that holds at least `p` of the mass (Holtzman et al., 2020)."""
    descending = jnp.sort(logits, descending=True)
    probabilities = jax.nn.softmax(descending)
    before = jnp.cumsum(probabilities) - probabilities
    kept = jnp.sum(before < p)
    return jnp.where(logits >= descending[kept - 1], logits, -jnp.inf)


def draw_character(
    logits: Float[Array, " vocab"],
    temperature: Float[Array, ""],
    *,
    key: Key,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int32[Array, ""]:
    """Draw the next character: reweight by the temperature, truncate, draw; temperature 0 takes the likeliest.

    Args:
        logits: of the next character.
        temperature: at least 0.
        key: for the draw.
        top_k: how many characters may be drawn; None is all.
        top_p: the share of the mass, after the temperature, from which to draw; None is all.
    """
    weighed = reweight(logits, temperature)
    if top_k is not None:
        weighed = truncate_top_k(weighed, top_k)
    if top_p is not None:
        weighed = truncate_top_p(weighed, top_p)
    return jnp.where(temperature > 0, jax.random.categorical(key, weighed), jnp.argmax(logits)).astype(jnp.int32)
