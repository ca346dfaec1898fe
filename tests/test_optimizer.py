from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from oracles import lenient_jax

from charlm_jax.learning.optimizer import make_optimizer, make_schedule

# Gradients from 1e-9 to 1: those near epsilon show where it is added.
GRADIENTS = np.random.default_rng(0).normal(size=(20, 50)) * np.logspace(-9, 0, 50)


def descend(optimizer):
    """Return where the gradients lead from a start at ones."""
    parameters = jnp.ones(50)
    state = optimizer.init(parameters)
    with lenient_jax():
        for gradient in GRADIENTS:
            updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, parameters)
            parameters = optax.apply_updates(parameters, updates)
    return np.asarray(parameters)


def make(name, **options):
    return optax.chain(make_optimizer(name, **options), optax.scale(0.01))


def numpy_rmsprop(root):
    parameters, v = np.ones(50), np.zeros(50)
    for gradient in GRADIENTS:
        v = 0.9 * v + 0.1 * gradient**2
        parameters = parameters - 0.01 * gradient / root(v)
    return parameters


def numpy_adam():
    """Algorithm 1 of Kingma and Ba (2015)."""
    parameters, m, v = np.ones(50), np.zeros(50), np.zeros(50)
    for t, gradient in enumerate(GRADIENTS, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        parameters = parameters - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return parameters


ROOTS = {
    "rmsprop-keras-2": lambda v: np.sqrt(v) + 1e-7,
    "rmsprop-keras-3": lambda v: np.sqrt(v + 1e-7),
}


@pytest.mark.parametrize("name", ROOTS)
def test_rmsprop_puts_epsilon_where_its_keras_does(name):
    """Float32 equals float64 to 2e-6 over 20 updates of 0.01 to 0.03; misplacing epsilon moves some by 0.09."""
    np.testing.assert_allclose(descend(make(name)), numpy_rmsprop(ROOTS[name]), rtol=0, atol=2e-6)
    (other,) = (root for key, root in ROOTS.items() if key != name)
    assert np.abs(descend(make(name)) - numpy_rmsprop(other)).max() > 0.05


def test_adam_is_its_papers():
    np.testing.assert_allclose(descend(make("adam")), numpy_adam(), rtol=0, atol=2e-6)


def test_rmsprop_keras_3_equals_keras_3():
    with lenient_jax():
        variable, optimizer = keras.Variable(np.ones(50, np.float32)), keras.optimizers.RMSprop(0.01)
        for gradient in GRADIENTS:
            optimizer.apply([gradient.astype(np.float32)], [variable])
        expected = np.asarray(variable.value)
    np.testing.assert_allclose(descend(make("rmsprop-keras-3")), expected, rtol=0, atol=2e-6)


def test_clipping_bounds_the_global_norm():
    clipped = make("adam", clip=0.5)
    unclipped = make("adam")
    assert np.abs(descend(clipped) - descend(unclipped)).max() > 1e-4

    def first_moment(optimizer, gradient):
        with lenient_jax():
            state = optimizer.update(gradient, optimizer.init(gradient), gradient)[1]
        return optax.tree.get(state, "mu") / 0.1

    gradient = jnp.full(16, 2.0)  # of norm 8
    np.testing.assert_allclose(first_moment(clipped, gradient), gradient / 16, rtol=1e-6)
    np.testing.assert_allclose(first_moment(clipped, gradient / 100), gradient / 100, rtol=1e-6)


def test_adamw_shrinks_matrices_and_leaves_biases():
    """Without a gradient, only the decay is left: a factor of 1 - 0.01 * 0.5 a step."""
    optimizer = make("adamw", weight_decay=0.5)
    parameters: Any = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state = optimizer.init(parameters)
    for _ in range(3):
        with lenient_jax():
            updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, parameters), state, parameters)
            parameters = optax.apply_updates(parameters, updates)
    np.testing.assert_allclose(parameters["kernel"], 0.995**3, rtol=1e-6)
    np.testing.assert_array_equal(parameters["bias"], 1)
    np.testing.assert_allclose(descend(make("adamw", weight_decay=0.5)), numpy_adam(), rtol=0, atol=2e-6)


def factors(schedule, steps):
    return [float(schedule(jnp.int32(step))) for step in range(steps)]


def test_cosine_goes_from_the_rate_to_zero():
    expected = (1 + np.cos(np.pi * np.arange(11) / 10)) / 2
    np.testing.assert_allclose(factors(make_schedule("cosine", steps=10), 11), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_a_warm_up_rises_in_a_straight_line_and_the_schedule_follows(name):
    after = np.ones(7) if name == "constant" else (1 + np.cos(np.pi * np.arange(7) / 6)) / 2
    expected = np.concatenate([np.arange(4) / 4, after])
    np.testing.assert_allclose(factors(make_schedule(name, warmup=4, steps=10), 11), expected, rtol=1e-4, atol=1e-7)


def test_what_a_rule_would_ignore_is_refused():
    with pytest.raises(ValueError, match="adam has no weight decay"):
        make("adam", weight_decay=0.1)
    for options in ({}, {"steps": 4, "warmup": 4}):
        with pytest.raises(ValueError, match="requires positive decay_steps"):
            make_schedule("cosine", **options)
