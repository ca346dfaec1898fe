"""From logits to one character: temperature, truncation, a draw."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def reweight(logits: Float[Array, " vocab"], temperature: Float[Array, ""]) -> Float[Array, " vocab"]:
    """Return logits, 0 the largest, whose softmax is proportional to softmax(logits) ** (1 / temperature).

    Towards 0 all the mass goes to the likeliest characters, and 0 itself is that limit; towards infinity the
    distribution becomes uniform.
    """
    below = logits - jnp.max(logits)
    positive = temperature > 0
    divided = below / jnp.where(positive, temperature, 1.0)
    return jnp.where(positive, divided, jnp.where(below == 0, 0.0, -jnp.inf))


def keep_top_k(logits: Float[Array, " vocab"], k: int) -> Bool[Array, " vocab"]:
    """Mark the `k` likeliest characters (Fan et al., 2018); of equals, those with the smaller ids."""
    return _ranks(logits) < k


def keep_top_p(logits: Float[Array, " vocab"], p: float) -> Bool[Array, " vocab"]:
    """Mark the smallest set of characters that holds at least `p` of the mass (Holtzman et al., 2020).

    Of equals, those with the smaller ids; always one, and at p = 1 all, whatever rounding makes of the sum.
    """
    if p >= 1:
        return jnp.ones_like(logits, bool)
    probabilities = jnp.sort(jax.nn.softmax(logits), descending=True)
    before = jnp.cumsum(probabilities) - probabilities
    return jnp.logical_or(before < p, jnp.arange(len(logits)) == 0)[_ranks(logits)]


def _ranks(logits: Float[Array, " vocab"]) -> Int32[Array, " vocab"]:
    """Return how many characters are likelier than each one, equals in the order of their ids."""
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

    The draw is by inversion: the first character up to which the probabilities add up to more than the random number.
    One number a character, that all temperatures can share, and it can be drawn beforehand.

    Args:
        logits: of the next character.
        temperature: at least 0.
        uniform: the random number, from 0 to below 1.
        top_k: how many characters may be drawn; None is all.
        top_p: the share of the mass, after the temperature, from which to draw; None is all.
    """
    weighed = reweight(logits, temperature)
    if top_k is not None:
        # By the logits, whose order a large temperature would round away.
        weighed = jnp.where(keep_top_k(logits, top_k), weighed, -jnp.inf)
    if top_p is not None:
        weighed = jnp.where(keep_top_p(weighed, top_p), weighed, -jnp.inf)
    weights = jnp.exp(weighed)  # in proportion to the probabilities; the largest is 1
    # Of what rounding leaves between two sums, no character without weight may have a share.
    cumulative = jnp.where(weights > 0, jax.lax.associative_scan(jnp.add, weights), 0.0)
    share = jnp.where(temperature > 0, uniform, 0.0)  # at 0 the likeliest, of equals the first, whatever the number
    return jnp.argmax(cumulative > share * jnp.max(cumulative)).astype(jnp.int32)
