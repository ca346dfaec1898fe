"""The baselines, against counting by hand."""

import bz2
import lzma
import math
from collections import defaultdict

import numpy as np
import pytest

import charlm_jax.analysis.baselines as module
from charlm_jax.analysis.baselines import KneserNey, baselines
from charlm_jax.data.vocabulary import Vocabulary

TEXT = "the will to power is the will to truth; what is good? the feeling of power. " * 2 + "abracadabra, thither! "
VOCABULARY = Vocabulary.of(TEXT)
IDS = VOCABULARY.encode(TEXT)
SIZE = len(VOCABULARY)


def brute_force(training, order):
    """Return p(character | history) by Chen and Goodman's equations, recursing over dictionaries of strings."""
    counts = [defaultdict(lambda: defaultdict(int)) for _ in range(order)]
    for end in range(order, len(training) + 1):
        gram = training[end - order : end]
        counts[order - 1][gram[:-1]][gram[-1]] += 1
    for length in reversed(range(order - 1)):
        followed = {
            (context[1:], character, context[0]) for context, row in counts[length + 1].items() for character in row
        }
        for context, character, _ in followed:
            counts[length][context][character] += 1
    discounts = []
    for level in counts:
        every = [count for row in level.values() for count in row.values()]
        n1, n2, n3, n4 = (every.count(count) for count in (1, 2, 3, 4))
        if n1 and n2 and n3:
            share = n1 / (n1 + 2 * n2)
            estimates = 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3
            discounts.append([max(estimate, 0.1) for estimate in estimates])
        else:
            discounts.append([0.5] * 3)

    def probability(character, history, length=None):
        length = min(order - 1, len(history)) if length is None else length
        if length < 0:
            return 1 / SIZE
        lower = probability(character, history, length - 1)
        row = counts[length].get(history[len(history) - length :])
        if not row:
            return lower
        total = sum(row.values())
        off = {key: discounts[length][min(count, 3) - 1] for key, count in row.items()}
        return (row.get(character, 0) - off.get(character, 0)) / total + sum(off.values()) / total * lower

    return probability


@pytest.mark.parametrize("order", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("text", ["the truth of thither power", TEXT[::-1], "a", "!" * 12])
def test_the_n_gram_equals_counting_by_hand(order, text):
    model, probability = KneserNey.fit(IDS, SIZE, order), brute_force(TEXT, order)
    expected = [probability(character, text[:place]) for place, character in enumerate(text)]
    np.testing.assert_allclose(model.probabilities(VOCABULARY.encode(text)), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 3, 6])
@pytest.mark.parametrize("history", ["", "t", "th", "the wil", "zzz".replace("z", "?"), TEXT[-9:], TEXT[:9]])
def test_probabilities_sum_to_one(order, history):
    model = KneserNey.fit(IDS, SIZE, order)
    texts = [VOCABULARY.encode(history + character) for character in VOCABULARY.characters]
    assert sum(model.probabilities(ids)[-1] for ids in texts) == pytest.approx(1, abs=1e-12)


def test_a_text_shorter_than_the_order_will_do():
    model = KneserNey.fit(VOCABULARY.encode("the"), SIZE, 7)
    assert np.isfinite(model.losses(IDS)).all()


def test_a_markov_source_is_learned_to_its_entropy_rate():
    """Fifty thousand characters from an alphabet of two, each repeated with probability 0.9: 0.325 nats."""
    random = np.random.default_rng(0)
    ids = np.cumsum(random.random(50_000) < 0.1) % 2
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert KneserNey.fit(ids[:40_000], 2, 3).losses(ids[40_000:]).mean() == pytest.approx(entropy, rel=0.03)


def test_every_baseline_is_what_its_name_says():
    training, text = IDS[:100], IDS[100:]
    result = baselines(training, text, SIZE, VOCABULARY.decode)
    assert result["uniform"] == pytest.approx(math.log(SIZE))
    probability = brute_force(TEXT[:100], 1)
    assert result["unigram"] == pytest.approx(np.mean([-math.log(probability(c, "")) for c in TEXT[100:]]))
    probability = brute_force(TEXT[:100], 7)
    losses = [-math.log(probability(c, TEXT[100 : 100 + place])) for place, c in enumerate(TEXT[100:])]
    assert result["7-gram"] == pytest.approx(np.mean(losses))
    bits = 8 * (len(bz2.compress(TEXT.encode())) - len(bz2.compress(TEXT[:100].encode())))
    assert result["bz2"] == pytest.approx(bits * math.log(2) / len(text))
    preset = 9 | lzma.PRESET_EXTREME
    bits = 8 * (
        len(lzma.compress(TEXT.encode(), preset=preset)) - len(lzma.compress(TEXT[:100].encode(), preset=preset))
    )
    assert result["xz"] == pytest.approx(bits * math.log(2) / len(text))


def test_of_long_texts_only_the_characters_about_their_border_count(monkeypatch):
    training, text = IDS[:100], IDS[100:]
    monkeypatch.setattr(module, "LIMIT", 40)
    cut = baselines(training, text, SIZE, VOCABULARY.decode)
    monkeypatch.undo()
    assert cut == baselines(training[-40:], text[:40], SIZE, VOCABULARY.decode)
