"""Optimizers by the names that their users know."""

import jax
import optax

from charlm_jax.choices import OptimizerName, Schedule


def make_optimizer(
    name: OptimizerName,
    *,
    schedule: Schedule = "constant",
    warmup: int = 0,
    steps: int = 0,
    weight_decay: float = 0.0,
    clip: float | None = None,
) -> optax.GradientTransformation:
    """Return an optimizer for a learning rate of 1: its updates are yet to be multiplied by the learning rate.

    The two RMSprops (Tieleman and Hinton, 2012; decay 0.9, epsilon 1e-7) differ in where epsilon stands:
    `rmsprop-keras-2` divides by sqrt(v) + epsilon, as Keras 2 and tf.keras 2 do, `rmsprop-keras-3` by
    sqrt(v + epsilon), as Keras 3 does. On the notebooks' job that is worth 0.05 nats in the first epoch.

    Args:
        name: which rule; `adamw` is Adam with decoupled weight decay (Loshchilov and Hutter, 2019).
        schedule: `constant`, or `cosine`: down to what would be zero one step after the last (Loshchilov and Hutter,
            2017).
        warmup: steps over which the rate rises from zero, in a straight line; none at 0.
        steps: of the whole run, warm-up included; `cosine` needs it.
        weight_decay: of `adamw`: a step shrinks every matrix by this times the learning rate; biases are left.
        clip: bound on the gradient's global norm; None leaves it alone.

    Raises:
        ValueError: a weight decay without `adamw`, or a cosine over no more steps than those of warm-up.
    """
    if weight_decay and name != "adamw":
        raise ValueError(f"{name} has no weight decay; adamw has")
    rate: float | optax.Schedule = 1.0
    if schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)
    elif warmup:
        rate = optax.linear_schedule(0.0, 1.0, warmup)
    match name:
        case "adam":
            rule = optax.adam(rate)
        case "adamw":
            rule = optax.adamw(rate, weight_decay=weight_decay, mask=_matrices)
        case "rmsprop-keras-2":
            rule = optax.rmsprop(rate, decay=0.9, eps=1e-7, eps_in_sqrt=False)
        case "rmsprop-keras-3":
            rule = optax.rmsprop(rate, decay=0.9, eps=1e-7, eps_in_sqrt=True)
    return rule if clip is None else optax.chain(optax.clip_by_global_norm(clip), rule)


def _matrices(parameters: optax.Params) -> optax.Params:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, parameters)
