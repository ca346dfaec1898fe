"""Statistics of a generated text, compared with the text that its model has learned from.

They say whether its words are words, how much of it is copied, how much it repeats itself, and how rich it is. Most of
them change with a text's length, so compare only texts of the same length, and take human text of that length as the
reference.
"""

import math
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from charlm_jax.analysis.baselines import LIMIT
from charlm_jax.analysis.matches import LOOP, longest_repeat, looped, matching_statistics

NOVELTIES = (4, 8, 16)  # lengths in characters of the n-grams whose novelty is a statistic

_NO_LETTER = re.compile(r"[\W\d_]")
_WORD = re.compile(r"(?<=[\W\d_])[^\W\d_]+(?=[\W\d_])")


@dataclass(frozen=True)
class Statistic:
    """A statistic's name in figures and tables, with its unit, and its definition in a sentence."""

    label: str
    definition: str


STATISTICS = {
    "known_words": Statistic("known words (share)", "Share of a text's words that occur in the training text."),
    "known_word_types": Statistic(
        "known distinct words (share)", "Share of a text's distinct words that occur in the training text."
    ),
    **{
        f"novelty_{n}": Statistic(
            f"novel {n}-grams (share)", f"Share of a text's passages of {n} characters that the training text lacks."
        )
        for n in NOVELTIES
    },
    "longest_copy": Statistic(
        "longest copied passage (characters)", "Length of the longest passage that occurs in the training text."
    ),
    "distinct_4": Statistic(
        "distinct 4-grams (share)", "Number of different passages of 4 characters over the number of all."
    ),
    "looped": Statistic(
        "characters in loops (share)",
        f"Share of the characters inside a stretch of {LOOP} or more that is one passage two or more times in a row.",
    ),
    "longest_repeat": Statistic(
        "longest repeated passage (characters)", "Length of the longest passage that occurs twice in a text."
    ),
    "entropy": Statistic(
        "entropy of characters (nats/character)", "Entropy of the frequencies of a text's single characters."
    ),
    "compression_ratio": Statistic(
        "compression ratio (bytes/byte)", "Bytes of a text in UTF-8 over its bytes after zlib."
    ),
    "divergence": Statistic(
        "divergence of trigrams (nats)",
        "Jensen-Shannon divergence between the frequencies of three characters in a text and in the training text.",
    ),
}


@dataclass(frozen=True)
class Reference:
    """What texts are compared with: a training text, and what is computed from it once.

    Attributes:
        text: the training text.
        words: its distinct words.
        trigrams: each passage of three characters, with its share of all of them.
    """

    text: str
    words: frozenset[str]
    trigrams: Mapping[str, float]

    @classmethod
    def of(cls, training: str) -> "Reference":
        """Prepare the last `LIMIT` characters of a training text for comparison."""
        training = training[-LIMIT:]
        return cls(training, frozenset(words(training)), frequencies(training, 3))


def text_statistics(reference: Reference, texts: Sequence[str]) -> dict[str, Float[np.ndarray, " text"]]:
    """Return each of `STATISTICS` for every text; nan where a text is too short for it."""
    rows = [
        _statistics(reference, text, matched)
        for text, matched in zip(texts, matching_statistics(reference.text, texts), strict=True)
    ]
    return {name: np.array([row[name] for row in rows], float) for name in STATISTICS}


def _statistics(reference: Reference, text: str, matched: Integer[np.ndarray, " character"]) -> dict[str, float]:
    tokens = words(text)
    return {
        "known_words": known_share(tokens, reference.words),
        "known_word_types": known_share(set(tokens), reference.words),
        **{f"novelty_{n}": novelty(matched, n) for n in NOVELTIES},
        "longest_copy": float(matched.max(initial=0)),
        "distinct_4": distinct_ngrams(text, 4),
        "looped": looped(text),
        "longest_repeat": float(longest_repeat(text)),
        "entropy": entropy(frequencies(text, 1)),
        "compression_ratio": compression_ratio(text),
        "divergence": divergence(frequencies(text, 3), reference.trigrams),
    }


def novelty(matched: Integer[np.ndarray, " character"], n: int) -> float:
    """Return the share of a text's n-grams, passages of n characters, that never occur in the training text.

    Ranges from 0, all copied, to 1, all new (McCoy et al., 2023, for words); nan if the text is shorter than n.

    Args:
        matched: the text's matching statistics.
        n: number of characters.
    """
    ngrams = len(matched) + 1 - n
    known = int(np.sum(matched >= n))  # no match reaches beyond the text, so each is of a whole n-gram
    return 1 - known / ngrams if ngrams > 0 else math.nan


def words(text: str) -> list[str]:
    """Return the words of an excerpt from a longer text, case-folded and in order; see `find_words`."""
    return [match.group().casefold() for match in find_words(text)]


def distinct_words(pieces: Iterable[str]) -> frozenset[str]:
    """Return the distinct words of a text given in pieces, only one of which need be in memory; see `words`."""
    found, rest = set[str](), ""
    for piece in pieces:
        text = rest + piece
        # What follows the last character that is not a letter may continue in the next piece.
        last = _NO_LETTER.search(text[::-1])
        end = len(text) - 1 - last.start() if last else 0
        found.update(words(text[: end + 1]))
        rest = text[end:]
    return frozenset(found)


def find_words(text: str) -> Iterator[re.Match[str]]:
    """Return a match for each word of an excerpt from a longer text.

    A word is a run of letters with other characters on both sides ("don't" is two words). A run at the beginning or the
    end of the text may be cut off, so it does not count.
    """
    return _WORD.finditer(text)


def known_share(words: Collection[str], known: frozenset[str]) -> float:
    """Return the share of words that are known, from 0 to 1; nan if there are no words.

    For a list this is the share of word tokens; for a set, of word types.
    """
    return sum(word in known for word in words) / len(words) if words else math.nan


def frequencies(text: str, n: int) -> dict[str, float]:
    """Return the share of each n-gram, a passage of n characters, among all n-grams of a text."""
    counts = Counter(_ngrams(text, n))
    return {ngram: count / counts.total() for ngram, count in counts.items()}


def distinct_ngrams(text: str, n: int) -> float:
    """Return the number of different n-grams over the number of all n-grams: distinct-n (Li et al., 2016).

    The n-grams are of characters, where they counted words. Ranges from just above 0 (one n-gram over and over) to 1
    (none twice), and falls as a text grows; nan if the text is shorter than n.
    """
    ngrams = _ngrams(text, n)
    return len(set(ngrams)) / len(ngrams) if ngrams else math.nan


def _ngrams(text: str, n: int) -> list[str]:
    return [text[start : start + n] for start in range(len(text) - n + 1)]


def entropy(frequencies: Mapping[str, float]) -> float:
    """Return the entropy of a distribution in nats (Shannon, 1948); nan if it is empty.

    Ranges from 0 (all the same) to the logarithm of the number of outcomes. For a text's own frequencies it is the
    plug-in estimate of its source's entropy, which is too low for a short text (Miller, 1955).
    """
    return sum(-share * math.log(share) for share in frequencies.values()) if frequencies else math.nan


def compression_ratio(text: str) -> float:
    """Return a text's bytes in UTF-8 over those of zlib at its best (Shaib et al., 2024); nan for the empty text.

    The more a text repeats itself, the higher the ratio; it is above 0. zlib adds eight bytes and starts out knowing
    nothing, so the ratio of a few characters is below 1, and of two texts of one kind the longer has the higher ratio.
    """
    data = text.encode(errors="surrogatepass")
    return len(data) / len(zlib.compress(data, level=9)) if text else math.nan


def divergence(text: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Return the Jensen-Shannon divergence between two distributions in nats (Lin, 1991); nan if either is empty.

    Ranges from 0 (the same) to log 2 (nothing in common). A short text has few n-grams and is far even from its own
    source.

    Args:
        text: n-gram frequencies of one text; the time grows with their number alone.
        reference: n-gram frequencies of another.
    """
    if not (text and reference):
        return math.nan
    shared, apart = 0.0, 1.0  # `apart`: the reference's share of n-grams that the text lacks
    for ngram, p in text.items():
        q = reference.get(ngram, 0.0)
        shared += p * math.log(2 * p / (p + q)) + (q * math.log(2 * q / (p + q)) if q else 0)
        apart -= q
    return max(0.0, (shared + apart * math.log(2)) / 2)  # only rounding takes it below 0
