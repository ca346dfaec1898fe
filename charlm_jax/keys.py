"""Random keys that depend on values, never on positions.

Folding in what a thing *is* (a purpose, a temperature, a prompt) rather than its position in a list keeps random
numbers common across comparisons: adding a temperature does not change those that the others are given.
"""

import zlib

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from jaxtyping import Key as KeyArray

Key = PRNGKeyArray
StreamKeys = KeyArray[Array, " stream"]
ReplicaKeys = KeyArray[Array, " replica"]


def fold_text(key: Key, text: str) -> Key:
    """Fold a string (a purpose, a prompt) into a key, by the CRC-32 of its UTF-8 bytes."""
    return jax.random.fold_in(key, zlib.crc32(text.encode("utf-8", "surrogatepass")))


def fold_float(key: Key, value: float) -> Key:
    """Fold a number (a temperature) into a key, by the bits of its float32 value."""
    return jax.random.fold_in(key, np.float32(value).view(np.uint32))
