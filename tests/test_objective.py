import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import numpy_logits

from charlm_jax.data.windows import Batch
from charlm_jax.learning.objective import cross_entropy, last_character_losses
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM

NETWORK = CharacterLSTM(13, hidden_size=8)
PARAMETERS = initial_parameters(NETWORK, "keras", jax.random.key(0))
INPUTS = jax.random.randint(jax.random.key(1), (5, 12), 0, 13)
TARGETS = jnp.array([0, 12, 3, 3, 7])


def test_uniform_logits_cost_log_v_nats():
    np.testing.assert_allclose(cross_entropy(jnp.zeros((13, 13)), jnp.arange(13)), np.log(13), rtol=1e-6)


def test_losses_equal_numpy():
    losses = last_character_losses(NETWORK, PARAMETERS, Batch(INPUTS, TARGETS, jnp.ones(5)))
    logits = numpy_logits(PARAMETERS, INPUTS)[:, -1]
    expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(5), TARGETS]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_padding_changes_neither_loss_nor_gradient():
    """The padded rows add exact zeros: what is left is the order of a sum of five."""
    whole = Batch(INPUTS, TARGETS, jnp.ones(5))
    padded = Batch(jnp.pad(INPUTS, ((0, 3), (0, 0))), jnp.pad(TARGETS, (0, 3)), jnp.pad(jnp.ones(5), (0, 3)))

    @jax.value_and_grad
    def evaluate(parameters, batch):
        return jnp.sum(batch.weights * last_character_losses(NETWORK, parameters, batch))

    loss, gradient = evaluate(PARAMETERS, whole)
    padded_loss, padded_gradient = evaluate(PARAMETERS, padded)
    assert float(padded_loss) == pytest.approx(float(loss), rel=1e-6)
    for mine, other in zip(jax.tree.leaves(padded_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)
