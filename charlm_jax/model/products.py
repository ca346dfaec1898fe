"""Matrix products in a chosen precision: factors rounded to it, terms added up in float32.

Between products everything is float32, so that what a recurrence carries on is never rounded to less.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from charlm_jax.choices import Precision

# Bits of a factor's mantissa behind its leading 1; float32 keeps all.
_MANTISSA_BITS: dict[Precision, int] = {"tf32": 10, "bfloat16": 7}
# What the matrix units of an accelerator are asked for.
_UNITS: dict[Precision, str] = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}


def multiply(
    left: Float[Array, "*rows inner"], right: Float[Array, "inner columns"], precision: Precision
) -> Float[Array, "*rows columns"]:
    """Return the matrix product; those of its derivatives have the same precision.

    A CPU has no units of less than float32: it rounds the factors, to the nearest, and multiplies in float32, so that
    in bfloat16 its numbers are an accelerator's but for the order of sums; it takes several times as long for it. A
    TPU has no tf32, and takes what is more precise: three products of bfloat16 parts.
    """
    return _multiply(left, right, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(left: Array, right: Array, precision: Precision) -> Array:
    if precision == "float32":
        return _in_units(left, right, precision)
    rounded, in_units = (functools.partial(way, precision=precision) for way in (_rounded, _in_units))
    return jax.lax.platform_dependent(left, right, cpu=rounded, default=in_units)


def _in_units(left: Array, right: Array, precision: Precision) -> Array:
    sums = left.dtype
    if precision == "bfloat16":
        left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return jnp.matmul(left, right, precision=_UNITS[precision], preferred_element_type=sums)


def _rounded(left: Array, right: Array, precision: Precision) -> Array:
    bits = _MANTISSA_BITS[precision]
    left, right = (jax.lax.reduce_precision(factor, exponent_bits=8, mantissa_bits=bits) for factor in (left, right))
    return jnp.matmul(left, right, precision="highest")


def _forward(left: Array, right: Array, precision: Precision) -> tuple[Array, tuple[Array, Array]]:
    return _multiply(left, right, precision), (left, right)


def _backward(precision: Precision, factors: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    left, right = factors
    rows, terms = left.reshape(-1, left.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return multiply(gradient, right.T, precision), multiply(rows.T, terms, precision)


_multiply.defvjp(_forward, _backward)
