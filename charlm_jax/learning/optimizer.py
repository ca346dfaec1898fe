"""Optimizers by the names that their users know."""

import optax

from charlm_jax.choices import OptimizerName, Schedule


def make_optimizer(
    name: OptimizerName, *, learning_rate: float, schedule: Schedule, steps: int, clip: float | None
) -> optax.GradientTransformation:
    """Return an optimizer.

    The two RMSprops (Tieleman and Hinton, 2012; decay 0.9, epsilon 1e-7) differ in where epsilon stands:
    `rmsprop-keras-2` divides by sqrt(v) + epsilon, as Keras 2 and tf.keras 2 do, `rmsprop-keras-3` by
    sqrt(v + epsilon), as Keras 3 does. On the notebooks' job that is worth 0.05 nats in the first epoch.

    Args:
        name: which rule.
        learning_rate: at the first step.
        schedule: `constant`, or `cosine`: down to zero over all steps (Loshchilov and Hutter, 2017).
        steps: of the whole run; only `cosine` looks at it.
        clip: bound on the gradient's global norm; None leaves it alone.
    """
    rate = learning_rate if schedule == "constant" else optax.cosine_decay_schedule(learning_rate, steps)
    match name:
        case "adam":
            rule = optax.adam(rate)
        case "rmsprop-keras-2":
            rule = optax.rmsprop(rate, decay=0.9, eps=1e-7, eps_in_sqrt=False)
        case "rmsprop-keras-3":
            rule = optax.rmsprop(rate, decay=0.9, eps=1e-7, eps_in_sqrt=True)
    return rule if clip is None else optax.chain(optax.clip_by_global_norm(clip), rule)
