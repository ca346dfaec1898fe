"""Every text statistic against its definition, implemented to the letter, on texts full of repetitions."""

import math
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import charlm_jax.analysis.text_statistics as module
from charlm_jax.analysis.matches import longest_repeat, looped, matching_statistics
from charlm_jax.analysis.text_statistics import (
    STATISTICS,
    Reference,
    compression_ratio,
    distinct_ngrams,
    distinct_words,
    divergence,
    entropy,
    frequencies,
    known_share,
    novelty,
    text_statistics,
    words,
)

CASES = ["", "a", "aa", "ab" * 15, "a" * 40, "abaab" * 5, "a🜁\ud800" * 7, "\0\x01\0"]
TEXT = "the will to power is the will to truth; what is good? all that heightens the feeling of power in man. " * 2
TEXTS = st.one_of(
    st.sampled_from(CASES),
    st.text("ab", max_size=60),
    st.text("ab🜁\ud800\0", max_size=30),
    st.builds(lambda before, passage, after: before + passage * 5 + after, *[st.text("abc", max_size=12)] * 3),
)


def check(*strategies):
    """Run a test on many inputs, the same every time."""

    def bound(test):
        return settings(max_examples=200, derandomize=True, database=None, deadline=None)(given(*strategies)(test))

    return bound


def passages(text, length):
    return [text[start : start + length] for start in range(len(text) - length + 1)]


def match(training, rest):
    return max(length for length in range(len(rest) + 1) if rest[:length] in training)


@check(TEXTS, st.lists(TEXTS, max_size=4))
@example("", ["", "a"])
@example("abcabd", [])
@example("abcabd", ["bcab", "abcabd", "dabc", "abcabdabcabd", ""])  # inside, the whole, over its end, over both
@example("ab", ["a", "b", "ab"])  # joined, these have passages that none has alone
def test_a_match_is_the_longest_passage_that_the_training_text_has(training, texts):
    found = matching_statistics(training, texts)
    assert [list(lengths) for lengths in found] == [[match(training, t[i:]) for i in range(len(t))] for t in texts]


@check(TEXTS, TEXTS, st.integers(1, 20))
def test_novelty_is_the_share_of_passages_that_the_training_text_lacks(training, text, n):
    (matched,) = matching_statistics(training, [text])
    here = passages(text, n)
    expected = np.mean([passage not in training for passage in here]) if here else math.nan
    assert novelty(matched, n) == pytest.approx(expected, nan_ok=True)


@check(TEXTS)
def test_the_longest_repeat_is_the_longest_passage_at_two_places(text):
    repeated = [n for n in range(1, len(text)) if len(set(passages(text, n))) < len(passages(text, n))]
    assert longest_repeat(text) == max(repeated, default=0)


@check(TEXTS)
@example("abcdefgh" * 2)  # the shortest loop of its period
@example("abcdefghabcdefg")  # one character too short
@example("0123456789" * 2 + "01234")
@example("x" + "abcde" * 4 + "y" + "fghijklmno" * 2 + "z")
def test_a_loop_is_a_stretch_of_copies(text):
    """The oracle looks at every stretch and every period by itself."""
    inside = set()
    for start in range(len(text)):
        for stop in range(start + 16, len(text) + 1):
            stretch = text[start:stop]
            periods = range(1, len(stretch) // 2 + 1)
            if any((stretch[:period] * len(stretch))[: len(stretch)] == stretch for period in periods):
                inside |= set(range(start, stop))
    assert looped(text) == pytest.approx(len(inside) / len(text) if text else math.nan, nan_ok=True)


@check(TEXTS, st.integers(1, 5))
def test_distinct_n_grams_and_their_frequencies_are_counted(text, n):
    here = passages(text, n)
    expected = len(set(here)) / len(here) if here else math.nan
    assert distinct_ngrams(text, n) == pytest.approx(expected, nan_ok=True)
    assert frequencies(text, n) == pytest.approx({passage: here.count(passage) / len(here) for passage in here})


def test_words_are_letters_that_something_else_encloses():
    assert words("Cut, The ΣΊΣΥΦΟΣ don't re-do 2b_or Straße1; cut") == [
        *("the", "σίσυφοσ", "don", "t", "re", "do", "b", "or", "strasse")
    ]
    assert words(" the ") == ["the"]
    assert words("the") == words("the ") == words(" the") == words("") == words("\ud800 \ud800") == []


@check(st.text("aZé1_' ", max_size=30))
def test_words_are_found_one_letter_at_a_time(text):
    runs = [""]
    for character in text:
        runs = [*runs, ""] if not character.isalpha() else [*runs[:-1], runs[-1] + character]
    assert words(text) == [run.casefold() for run in runs[1:-1] if run]


@given(st.lists(st.text(alphabet="aB é.1", max_size=8), max_size=8))
def test_a_text_in_pieces_has_its_words(pieces):
    assert distinct_words(pieces) == frozenset(words("".join(pieces)))


def test_known_words_are_counted_as_tokens_and_as_types():
    known = frozenset(["the", "will"])
    tokens = words("- the will, the wil; the -")
    assert known_share(tokens, known) == pytest.approx(4 / 5)
    assert known_share(set(tokens), known) == pytest.approx(2 / 3)
    assert math.isnan(known_share([], known))
    assert known_share(tokens, frozenset()) == 0


@check(TEXTS)
def test_entropy_is_that_of_the_characters(text):
    shares = [text.count(character) / len(text) for character in set(text)]
    expected = -sum(share * math.log(share) for share in shares) if text else math.nan
    assert entropy(frequencies(text, 1)) == pytest.approx(expected, nan_ok=True)


def test_as_many_characters_as_differ_have_the_logarithm_of_their_number():
    assert entropy(frequencies("abcd" * 3, 1)) == pytest.approx(math.log(4))
    assert str(entropy(frequencies("aaaa", 1))) == "0.0"


def test_the_compression_ratio_is_of_bytes():
    data = ("ü" * 500).encode()
    assert len(data) == 1000
    assert compression_ratio("ü" * 500) == 1000 / len(zlib.compress(data, 9))
    assert compression_ratio("a") == 1 / 9
    assert compression_ratio("\ud800") < 1
    assert math.isnan(compression_ratio(""))
    assert compression_ratio("the will" * 50) > compression_ratio(TEXT)


@check(TEXTS, TEXTS)
def test_divergence_is_of_both_from_their_mean(text, other):
    first, second = frequencies(text, 3), frequencies(other, 3)
    found = divergence(first, second)
    if not (first and second):
        assert math.isnan(found)
        return
    every = sorted({*first, *second})
    p, q = (np.array([shares.get(passage, 0) for passage in every]) for shares in (first, second))
    relative = [np.sum(x[x > 0] * np.log(x[x > 0] / ((p + q)[x > 0] / 2))) for x in (p, q)]
    assert found == pytest.approx(np.mean(relative), abs=1e-12)  # rounding of sums of at most a hundred shares
    assert found == pytest.approx(divergence(second, first), abs=1e-12)
    assert 0 <= found <= math.log(2) + 1e-12


def test_divergence_runs_from_zero_to_log_two():
    assert divergence(frequencies("abcabc", 3), frequencies("abcabc", 3)) == pytest.approx(0, abs=1e-15)
    assert divergence(frequencies("abc", 3), frequencies("xyz", 3)) == pytest.approx(math.log(2))


def test_every_text_gets_every_statistic():
    texts = ["", "a", TEXT[3:90], "he will be what is good, he will be what is good"]
    found = text_statistics(Reference.of(TEXT), texts)
    assert found.keys() == STATISTICS.keys()
    for place, text in enumerate(texts):
        matched = np.array([match(TEXT, text[start:]) for start in range(len(text))], int)
        tokens = words(text)
        expected = {
            "known_words": known_share(tokens, frozenset(words(TEXT))),
            "known_word_types": known_share(set(tokens), frozenset(words(TEXT))),
            "novelty_4": novelty(matched, 4),
            "novelty_8": novelty(matched, 8),
            "novelty_16": novelty(matched, 16),
            "longest_copy": matched.max(initial=0),
            "distinct_4": distinct_ngrams(text, 4),
            "looped": looped(text),
            "longest_repeat": longest_repeat(text),
            "entropy": entropy(frequencies(text, 1)),
            "compression_ratio": compression_ratio(text),
            "divergence": divergence(frequencies(text, 3), frequencies(TEXT, 3)),
        }
        assert {name: values[place] for name, values in found.items()} == pytest.approx(expected, nan_ok=True)
    assert all(values.shape == (0,) for values in text_statistics(Reference.of(TEXT), []).values())


def test_a_copy_of_the_training_text_is_nothing_new():
    found = text_statistics(Reference.of(TEXT), [TEXT[5:75]])
    assert found["longest_copy"] == 70
    assert found["novelty_16"] == found["novelty_4"] == 0
    assert found["known_words"] == found["known_word_types"] == 1


def test_of_a_long_training_text_only_the_end_counts(monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 40)
    cut = Reference.of(TEXT)
    monkeypatch.undo()
    assert cut == Reference.of(TEXT[-40:])
