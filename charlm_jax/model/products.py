"""Matrix products in a chosen precision: the factors are rounded to it, the sums are float32.

Between products everything is float32, so that a recurrence's carry is never rounded to less.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from charlm_jax.choices import Precision

# Bits of a factor's mantissa after its leading 1; float32 keeps all.
_MANTISSA_BITS: dict[Precision, int] = {"tf32": 10, "bfloat16": 7}
# The precision that is requested of an accelerator's matrix units.
_UNITS: dict[Precision, str] = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}


def multiply(
    left: Float[Array, "*rows inner"], right: Float[Array, "inner columns"], precision: Precision
) -> Float[Array, "*rows columns"]:
    """Return the matrix product; the products in its derivatives have the same precision.

    A CPU has no units for less than float32: it rounds the factors to nearest and multiplies in float32. Its bfloat16
    results equal an accelerator's except for the order of sums, but take several times as long. A TPU has no tf32 and
    uses something more precise: three products of bfloat16 parts.
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
