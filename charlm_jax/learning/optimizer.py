"""Optimizers and learning-rate schedules by their familiar names."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from charlm_jax.choices import OptimizerName, Schedule

RateSchedule = Callable[[Int32[Array, ""]], Float[Array, ""]]
"""Maps a step of a run, counted from 0, to the factor of the learning rate there."""


def make_optimizer(
    name: OptimizerName,
    *,
    weight_decay: float = 0.0,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Return an optimizer with a learning rate of 1: the caller multiplies its updates by the learning rate.

    The two RMSprops (Tieleman and Hinton, 2012; decay 0.9, epsilon 1e-7) differ in where epsilon is added:
    `rmsprop-keras-2` divides by sqrt(v) + epsilon, as Keras 2 and tf.keras 2 do, `rmsprop-keras-3` by
    sqrt(v + epsilon), as Keras 3 does. On the notebooks' job that makes a difference of 0.04 nats in the first epoch.

    Args:
        name: which rule; `adamw` is Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
        weight_decay: of `adamw`: a step shrinks every matrix by this times the learning rate; biases do not decay.
        clip: bound on the gradient's global norm; None means no clipping.

    Raises:
        ValueError: a weight decay without `adamw`.
    """
    if weight_decay and name != "adamw":
        raise ValueError(f"{name} has no weight decay; use adamw")
    match name:
        case "adam":
            rule = optax.adam(1.0)
        case "adamw":
            rule = optax.adamw(1.0, weight_decay=weight_decay, mask=_matrices)
        case "rmsprop-keras-2":
            rule = optax.rmsprop(1.0, decay=0.9, eps=1e-7, eps_in_sqrt=False)
        case "rmsprop-keras-3":
            rule = optax.rmsprop(1.0, decay=0.9, eps=1e-7, eps_in_sqrt=True)
    return rule if clip is None else optax.chain(optax.clip_by_global_norm(clip), rule)


def make_schedule(name: Schedule, *, warmup: int = 0, steps: int = 0) -> RateSchedule:
    """Return a schedule of the learning rate by its familiar name.

    Args:
        name: `constant`, or `cosine`, a decay that would reach zero one step after the last (Loshchilov and Hutter,
            2017).
        warmup: steps over which the factor rises linearly from zero; 0 means no warm-up.
        steps: of the whole run, including warm-up; `cosine` needs it.

    Raises:
        ValueError: a `cosine` with no steps left after the warm-up.
    """
    if name == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)
    else:
        schedule = optax.linear_schedule(0.0, 1.0, warmup) if warmup else optax.constant_schedule(1.0)

    def factor(step: Int32[Array, ""]) -> Float[Array, ""]:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types, which the tests forbid our own code
            return jnp.asarray(schedule(step), jnp.float32)

    return factor


def _matrices(parameters: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, parameters)
