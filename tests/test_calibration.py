"""Calibration, against counting by hand and against a model that is right by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import notebook_distribution, numpy_logits

from charlm_jax.analysis.calibration import BINS, calibrate
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.mesh import data_mesh
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM, Model

MESH = data_mesh()


def test_losses_and_bins_equal_counting_by_hand(small_text):
    text = small_text[:250]
    vocabulary = Vocabulary.of(text)
    ids, network = vocabulary.encode(text), CharacterLSTM(len(vocabulary), 8)
    # Far from uniform, so that the predictions fall into many bins.
    parameters = jax.tree.map(lambda leaf: 4 * leaf, initial_parameters(network, "keras", jax.random.key(0)))
    result = calibrate(
        Model(network, parameters), jnp.array(ids), MESH, window=9, stride=2, temperatures=(0.5, 1.0, 2.0)
    )
    starts = range(0, len(ids) - 9, 2)
    logits = np.stack([numpy_logits(parameters, ids[None, start : start + 9])[0, -1] for start in starts])
    targets = np.array([ids[start + 9] for start in starts])
    for number, temperature in enumerate((0.5, 1.0, 2.0)):
        probabilities = np.stack([notebook_distribution(row, temperature) for row in logits])
        chosen = probabilities[np.arange(len(targets)), targets]
        assert result.losses[number] == pytest.approx(-np.log(chosen).mean(), rel=1e-5)
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
        place = np.minimum((confidence * BINS).astype(int), BINS - 1)
        error = 0
        for bin_ in range(BINS):
            inside = place == bin_
            assert result.counts[number, bin_] == inside.sum()
            if inside.any():
                assert result.confidences[number, bin_] == pytest.approx(confidence[inside].mean(), rel=1e-5)
                assert result.accuracies[number, bin_] == pytest.approx(right[inside].mean(), rel=1e-5)
                error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
        assert result.expected_errors[number] == pytest.approx(error, rel=1e-4)
        assert len(np.flatnonzero(result.counts[number])) > 2


def test_a_model_whose_logits_are_scaled_is_best_at_that_temperature():
    """Characters are drawn from the distribution in the head's bias, whose logarithms are then scaled."""
    random, probabilities = np.random.default_rng(0), np.array([0.4, 0.3, 0.2, 0.1])
    ids = jnp.array(random.choice(4, p=probabilities, size=20_000), jnp.uint8)
    network = CharacterLSTM(4, 2)
    parameters = jax.tree.map(jnp.zeros_like, initial_parameters(network, "keras", jax.random.key(0)))
    for factor, best in ((1.0, 1.0), (1.3, 1.3), (0.7, 0.7)):
        head = {**parameters["head"], "bias": factor * jnp.log(jnp.array(probabilities, jnp.float32))}
        result = calibrate(Model(network, {**parameters, "head": head}), ids, MESH, window=3, stride=1)
        assert result.temperatures[result.best] == pytest.approx(best, abs=0.05)
        assert result.losses.min() == pytest.approx(-(probabilities * np.log(probabilities)).sum(), rel=0.01)
        assert result.expected_errors[result.best] < 0.02
        wrong = np.argmin(np.abs(result.temperatures - (0.6 if best > 0.8 else 1.4)))
        assert result.expected_errors[wrong] > 0.05
