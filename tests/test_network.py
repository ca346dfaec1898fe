import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GATES, numpy_logits

from charlm_jax.choices import GateActivation
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM, Dropout
from charlm_jax.model.recurrence import GATES as ORDER
from charlm_jax.model.recurrence import fuse

IDS = jax.random.randint(jax.random.key(1), (3, 20), 0, 13)


def network_and_parameters(layers=1, gate: GateActivation = "sigmoid"):
    network = CharacterLSTM(13, hidden_size=8, layers=layers, gate_activation=gate)
    parameters = initial_parameters(network, "keras", jax.random.key(0))
    # Keras starts the biases at 0 and 1, which would hide a missing or misplaced bias.
    return network, jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(2), leaf.shape), parameters)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("gate", GATES)
def test_logits_equal_numpy(layers, gate):
    network, parameters = network_and_parameters(layers, gate)
    logits, _ = network.apply({"params": parameters}, IDS)
    np.testing.assert_allclose(logits, numpy_logits(parameters, IDS, GATES[gate]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_single_steps_with_a_carry_equal_the_whole_window(layers):
    network, parameters = network_and_parameters(layers)
    model = network.bind({"params": parameters})
    logits, last = model(IDS)
    carry = model.zero_carry(IDS.shape[:1])
    for time in range(IDS.shape[1]):
        carry = model.step(IDS[:, time], carry)
        np.testing.assert_allclose(model.predict(carry[-1].hidden), logits[:, time], rtol=0, atol=1e-6)
    for stepped, whole in zip(jax.tree.leaves(carry), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(stepped, whole, rtol=0, atol=1e-6)


def test_two_halves_with_a_carry_equal_the_whole_window():
    network, parameters = network_and_parameters(2)
    model = network.bind({"params": parameters})
    whole, _ = model(IDS)
    first, carry = model(IDS[:, :7])
    second, _ = model(IDS[:, 7:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, rtol=0, atol=1e-6)


def test_no_logit_depends_on_a_later_character():
    """Change one character: the logits before it stay the same to the bit; those from there on move."""
    network, parameters = network_and_parameters()
    changed = IDS.at[:, 10].set((IDS[:, 10] + 1) % 13)
    before, after = (network.apply({"params": parameters}, ids)[0] for ids in (IDS, changed))
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    assert np.abs(before[:, 10:] - after[:, 10:]).min(axis=-1).max() > 0


def test_the_notebooks_model_has_102_585_parameters():
    parameters = initial_parameters(CharacterLSTM(57), "keras", jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters)) == 102_585


def test_an_embedding_equals_numpy_and_adds_its_rows():
    network = CharacterLSTM(13, hidden_size=8, layers=2, embedding_size=5)
    parameters = initial_parameters(network, "keras", jax.random.key(0))
    logits, last = network.apply({"params": parameters}, IDS)
    np.testing.assert_allclose(logits, numpy_logits(parameters, IDS), rtol=0, atol=2e-6)
    carry = network.zero_carry(IDS.shape[:1])
    for time in range(IDS.shape[1]):
        carry = network.bind({"params": parameters}).step(IDS[:, time], carry)
    for stepped, whole in zip(jax.tree.leaves(carry), jax.tree.leaves(last), strict=True):
        np.testing.assert_allclose(stepped, whole, rtol=0, atol=1e-6)
    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert count == 13 * 5 + 4 * 8 * (5 + 8 + 1) + 4 * 8 * (8 + 8 + 1) + 13 * (8 + 1)


def test_dropout_falls_under_a_key_only():
    network, parameters = network_and_parameters(2)
    dropping = dataclasses.replace(network, dropout=0.5)

    def logits(network, key=None):
        dropout = None if key is None else Dropout(key, jnp.arange(len(IDS)))
        return network.bind({"params": parameters})(IDS, (), dropout)[0]

    np.testing.assert_array_equal(logits(network), logits(dropping))
    key = jax.random.key(3)
    assert not np.array_equal(logits(dropping, key), logits(dropping))
    np.testing.assert_array_equal(logits(dropping, key), logits(dropping, key))
    assert not np.array_equal(logits(dropping, key), logits(dropping, jax.random.key(4)))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_window_loses_the_same_units_at_every_step_and_the_carry_none(layers):
    """A unit of the top layer's output is 0 at every step or 4/3 of itself; a lower layer's dropout changes the top."""
    network, parameters = network_and_parameters(layers)
    dropping = dataclasses.replace(network, dropout=0.25)
    dropout = Dropout(jax.random.key(0), jnp.arange(len(IDS)))
    hidden, carry = dropping.bind({"params": parameters}).read(IDS, dropout=dropout)
    whole, whole_carry = network.bind({"params": parameters}).read(IDS)
    dropped = np.asarray(hidden == 0)
    np.testing.assert_array_equal(dropped.all(axis=1), dropped.any(axis=1))
    assert 0 < dropped.mean() < 0.6
    if layers == 1:
        np.testing.assert_allclose(hidden, np.where(dropped, 0, whole / 0.75), rtol=1e-6)
        assert all(map(np.array_equal, carry[0], whole_carry[0]))
    else:
        assert np.abs(carry[1].hidden - whole_carry[1].hidden).max() > 1e-3


def test_all_sequences_and_steps_lose_the_same_recurrent_weights():
    """A recurrent weight is 0, or 4/3 of itself; reading with that matrix gives the same hidden states."""
    network, parameters = network_and_parameters(1)
    dropping = dataclasses.replace(network, weight_dropout=0.25)

    dropout = Dropout(jax.random.key(0), jnp.arange(len(IDS)))
    kernel = np.asarray(fuse(parameters["lstm_0"]).recurrent_kernel)
    dropped = np.asarray(dropout.of_weights(jnp.array(kernel), 0, 0.25))
    np.testing.assert_allclose(dropped, np.where(dropped == 0, 0, kernel / 0.75), rtol=1e-6)
    assert 0.1 < (dropped == 0).mean() < 0.4
    cell = parameters["lstm_0"] | {
        f"h{gate}": {**parameters["lstm_0"][f"h{gate}"], "kernel": columns}
        for gate, columns in zip(ORDER, np.split(dropped, 4, axis=1), strict=True)
    }
    hidden, _ = dropping.bind({"params": parameters}).read(IDS, dropout=dropout)
    np.testing.assert_allclose(hidden, network.bind({"params": {**parameters, "lstm_0": cell}}).read(IDS)[0], atol=1e-6)
