"""Surprisal, against NumPy re-reading everything before each character, or the last window."""

import jax
import numpy as np
import pytest
from oracles import numpy_logits

from charlm_jax.generation.surprisal import surprisal
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM, Model

NETWORK = CharacterLSTM(vocabulary_size=7, hidden_size=5, layers=2)
WINDOW = 6


@pytest.mark.parametrize("sampler", ["stateful", "windowed"])
def test_surprisal_is_what_reading_again_from_the_start_gives(sampler):
    parameters = jax.tree.map(lambda leaf: 3 * leaf, initial_parameters(NETWORK, "keras", jax.random.key(0)))
    bias, generator = np.asarray(parameters["head"]["bias"], float), np.random.default_rng(0)
    prompts = [generator.integers(0, 7, length) for length in (0, 1, 6, 11)]
    texts = generator.integers(0, 7, (4, 9))
    found = surprisal(Model(NETWORK, parameters), prompts, texts, sampler=sampler, window=WINDOW, top=3)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        for place, target in enumerate(text):
            read = np.concatenate([prompt, text[:place]]).astype(np.int32)
            if sampler == "windowed":
                read = read[-WINDOW:]
            logits = numpy_logits(parameters, read[None])[0, -1] if len(read) else bias
            expected = np.exp(logits) / np.exp(logits).sum()
            assert found.nats[row, place] == pytest.approx(-np.log(expected[target]), abs=2e-6)
            likeliest = np.argsort(-expected)[:3]
            np.testing.assert_array_equal(found.likeliest[row, place], likeliest)
            np.testing.assert_allclose(found.probabilities[row, place], expected[likeliest], atol=1e-6)


def test_no_more_characters_are_named_than_there_are():
    parameters = initial_parameters(NETWORK, "keras", jax.random.key(0))
    texts = np.zeros((1, 2), np.int32)
    found = surprisal(Model(NETWORK, parameters), [np.zeros(1, np.int32)], texts, sampler="stateful", window=3, top=99)
    assert found.likeliest.shape == (1, 2, 7)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=1e-6)
