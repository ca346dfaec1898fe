from typing import get_args

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from oracles import lenient_jax, numpy_logits

from charlm_jax.choices import Objective
from charlm_jax.data.windows import Batch
from charlm_jax.learning.objective import cross_entropy, last_losses, losses_along, window_losses
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM, Model

NETWORK = CharacterLSTM(13, hidden_size=8)
PARAMETERS = initial_parameters(NETWORK, "keras", jax.random.key(0))
MODEL = Model(NETWORK, PARAMETERS)
CHARACTERS = jax.random.randint(jax.random.key(1), (5, 13), 0, 13)


def numpy_losses(characters):
    """Return the cost of every character but the first, from the textbook's equations."""
    logits = numpy_logits(PARAMETERS, characters[:, :-1])
    chosen = np.take_along_axis(logits, np.asarray(characters)[:, 1:, None], axis=2)[..., 0]
    return np.log(np.exp(logits).sum(axis=2)) - chosen


def test_uniform_logits_cost_log_v_nats():
    np.testing.assert_allclose(cross_entropy(jnp.zeros((13, 13)), jnp.arange(13)), np.log(13), rtol=1e-6)


def test_losses_equal_numpy():
    expected, ones = numpy_losses(CHARACTERS), jnp.ones(5)
    np.testing.assert_allclose(last_losses(MODEL, CHARACTERS), expected[:, -1], rtol=1e-6)
    np.testing.assert_allclose(losses_along(MODEL, CHARACTERS)[0], expected, rtol=2e-6)
    batch = Batch(CHARACTERS, ones)
    last, _ = window_losses(MODEL, batch, "last-character")
    every, _ = window_losses(MODEL, batch, "every-character")
    np.testing.assert_allclose(last, expected[:, -1], rtol=1e-6)
    np.testing.assert_allclose(every, expected.mean(axis=1), rtol=1e-6)


def test_a_carry_goes_on_where_the_text_before_ended():
    """Twelve characters in two halves cost what they cost in one piece."""
    first, carry = losses_along(MODEL, CHARACTERS[:, :7])
    second, _ = losses_along(MODEL, CHARACTERS[:, 6:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), numpy_losses(CHARACTERS), rtol=2e-6)


@pytest.mark.parametrize("objective", get_args(Objective))
def test_padding_changes_neither_loss_nor_gradient(objective):
    """Padded rows add exact zeros; the tolerance is for the order of a sum of five."""
    whole = Batch(CHARACTERS, jnp.ones(5))
    padded = Batch(jnp.pad(CHARACTERS, ((0, 3), (0, 0))), jnp.pad(jnp.ones(5), (0, 3)))

    @jax.jit
    @jax.value_and_grad
    def evaluate(parameters, batch):
        return jnp.sum(batch.weights * window_losses(Model(NETWORK, parameters), batch, objective)[0])

    loss, gradient = evaluate(PARAMETERS, whole)
    padded_loss, padded_gradient = evaluate(PARAMETERS, padded)
    assert float(padded_loss) == pytest.approx(float(loss), rel=1e-6)
    for mine, other in zip(jax.tree.leaves(padded_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("objective", "learned"), [("last-character", 1), ("every-character", 6)])
def test_improbable_targets_cost_and_teach_what_keras_makes_of_them(objective, learned):
    """Keras clips softmax probabilities to 1e-7: the loss stops there, with no gradient beyond.

    The model is so confident that the targets of 9 windows of 6 characters fall on both sides of the limit.
    """
    network = CharacterLSTM(vocabulary_size=5, hidden_size=4)
    parameters = jax.tree.map(lambda leaf: 20 * leaf, initial_parameters(network, "keras", jax.random.key(2)))
    characters = jnp.array(np.random.default_rng(0).integers(0, 5, (9, 7)), jnp.int32)
    batch = Batch(characters, jnp.ones(9))

    def ours(parameters, least):
        return window_losses(Model(network, parameters), batch, objective, min_probability=least)[0].mean()

    def theirs(parameters):
        logits = network.apply({"params": parameters}, characters[:, :-1])[0]
        probabilities = jax.nn.softmax(logits[:, -learned:])
        with lenient_jax():
            losses = keras.ops.sparse_categorical_crossentropy(characters[:, -learned:], probabilities)
            return keras.ops.mean(losses)

    expected, gradient = jax.jit(jax.value_and_grad(theirs))(parameters)
    found, own_gradient = jax.jit(jax.value_and_grad(ours), static_argnums=1)(parameters, 1e-7)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(jax.tree.leaves(own_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert float(ours(parameters, 0.0)) > float(found) + 0.1
