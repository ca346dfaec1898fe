"""From logits to one character: temperature, truncation, a draw."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def reweight(logits: Float[Array, " vocab"], temperature: Float[Array, ""]) -> Float[Array, " vocab"]:
    """Return logits, the largest being 0, whose softmax is proportional to softmax(logits) ** (1 / temperature).

    As the temperature approaches 0, all the mass goes to the likeliest characters; temperature 0 is that limit. As it
    approaches infinity, the distribution becomes uniform.
    """
    below = logits - jnp.max(logits)
    positive = temperature > 0
    divided = below / jnp.where(positive, temperature, 1.0)
    return jnp.where(positive, divided, jnp.where(below == 0, 0.0, -jnp.inf))


def keep_top_k(logits: Float[Array, " vocab"], k: int) -> Bool[Array, " vocab"]:
    """Mark the `k` likeliest characters (Fan et al., 2018); ties go to the smaller ids."""
    return _ranks(logits) < min(k, len(logits))  # in int32


def keep_top_p(logits: Float[Array, " vocab"], p: float) -> Bool[Array, " vocab"]:
    """Mark the smallest set of characters that holds at least `p` of the mass (Holtzman et al., 2020).

    Ties go to the smaller ids. At least one character is marked, and at p = 1 all are, however the sum is rounded.
    """
    if p >= 1:
        return jnp.ones_like(logits, bool)
    probabilities = jnp.sort(jax.nn.softmax(logits), descending=True)
    before = jnp.cumsum(probabilities) - probabilities
    return jnp.logical_or(before < p, jnp.arange(len(logits)) == 0)[_ranks(logits)]


def _ranks(logits: Float[Array, " vocab"]) -> Int32[Array, " vocab"]:
    """Return how many characters are likelier than each one, with ties ordered by id."""
    return jnp.argsort(jnp.argsort(logits, descending=True, stable=True)).astype(jnp.int32)


def draw_character(
    logits: Float[Array, " vocab"],
    temperature: Float[Array, ""],
    uniform: Float[Array, ""],
    *,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Int32[Array, ""]:
    """Draw the next character: reweight by the temperature, truncate, draw; temperature 0 takes the likeliest.

    The draw is by inversion: it takes the first character at which the cumulative probability exceeds the random
    number. That needs one number per character, which can be drawn beforehand and shared by all temperatures.

    Args:
        logits: of the next character.
        temperature: at least 0.
        uniform: the random number, in [0, 1).
        top_k: how many of the likeliest characters may be drawn; None means all.
        top_p: the share of the mass, after the temperature and `top_k`, from which to draw; None means all.
    """
    weighed = reweight(logits, temperature)
    if top_k is not None:
        # Ranked by the original logits: a large temperature would round their order away.
        weighed = jnp.where(keep_top_k(logits, top_k), weighed, -jnp.inf)
    if top_p is not None:
        weighed = jnp.where(keep_top_p(weighed, top_p), weighed, -jnp.inf)
    weights = jnp.exp(weighed)  # proportional to the probabilities; the largest is 1
    # A character of zero weight must never be drawn, however the sums around it are rounded.
    cumulative = jnp.where(weights > 0, jax.lax.associative_scan(jnp.add, weights), 0.0)
    share = jnp.where(temperature > 0, uniform, 0.0)  # at 0 the likeliest, the first of ties
    return jnp.argmax(cumulative > share * jnp.max(cumulative)).astype(jnp.int32)
