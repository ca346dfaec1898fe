"""What a text costs under simple models: the losses that an LSTM has to beat.

All are nats per character of a text, given a training text. The models are: every character equally likely; its
frequency (unigram); the few characters before it (n-gram); and general compressors, scored by what they need for both
texts beyond the training text alone. Compressors write whole bytes and blocks, so their scores mean little for a text
of a few hundred characters.
"""

import bz2
import lzma
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Integer

ORDER = 7  # of the n-gram baseline, which predicts a character from the six before it
LIMIT = 4_000_000  # characters of each text that the baselines use: half a minute's work


def baselines(
    training: Integer[np.ndarray, " training"],
    text: Integer[np.ndarray, " character"],
    vocabulary_size: int,
    decode: Callable[[np.ndarray], str],
) -> dict[str, float]:
    """Return the nats per character of `text` under each baseline, by its name.

    Args:
        training: ids of the text to learn from; only the last `LIMIT` are used.
        text: ids of the text to predict; only the first `LIMIT` are used.
        vocabulary_size: number of distinct characters.
        decode: turns ids into text, whose UTF-8 the compressors read.
    """
    training, text = training[-LIMIT:], text[:LIMIT]
    before, after = decode(training).encode(errors="surrogatepass"), decode(text).encode(errors="surrogatepass")
    return {
        "uniform": math.log(vocabulary_size),
        "unigram": float(KneserNey.fit(training, vocabulary_size, 1).losses(text).mean()),
        f"{ORDER}-gram": float(KneserNey.fit(training, vocabulary_size, ORDER).losses(text).mean()),
        "bz2": _compressed(bz2.compress, before, after) / len(text),
        "xz": _compressed(lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), before, after) / len(text),
    }


def _compressed(compress: Callable[[bytes], bytes], before: bytes, after: bytes) -> float:
    """Return the nats that a compressor needs for `after`, given `before`."""
    return (len(compress(before + after)) - len(compress(before))) * 8 * math.log(2)


@dataclass(frozen=True)
class _Level:
    """The statistics of all contexts of one length, whose ids count from 0.

    Attributes:
        contexts: sorted codes: the first character times the number of shorter contexts, plus the id of the rest.
        continuations: sorted codes: a context's id times the vocabulary size, plus a character seen after it.
        shares: each continuation's discounted share of its context.
        rest: the mass that the discounts free in each context, for the shorter context to distribute.
    """

    contexts: Int64[np.ndarray, " context"]
    continuations: Int64[np.ndarray, " continuation"]
    shares: Float[np.ndarray, " continuation"]
    rest: Float[np.ndarray, " context"]


@dataclass(frozen=True)
class KneserNey:
    """An n-gram model with interpolated, modified Kneser-Ney smoothing (Chen and Goodman, 1999).

    A character's frequency after the longest context is discounted, and the next shorter context distributes the mass
    that this frees. There a character counts not once per occurrence, but once per different character that precedes
    it and its context. Below the empty context all characters are equally likely.

    Attributes:
        vocabulary_size: number of distinct characters.
        levels: from the empty context to the longest.
    """

    vocabulary_size: int
    levels: tuple[_Level, ...]

    @classmethod
    def fit(cls, ids: Integer[np.ndarray, " character"], vocabulary_size: int, order: int) -> "KneserNey":
        """Learn a text's characters, each given up to `order` - 1 before it; a shorter text lowers the order."""
        ids = ids.astype(np.int64)
        order = min(order, len(ids))
        # The codes of the contexts of every length, and for the longest its id before each character.
        codes, places = [np.zeros(1, np.int64)], np.zeros(len(ids), np.int64)
        for length in range(1, order):
            coded = ids[: len(ids) - length] * len(codes[-1]) + places[1:]
            distinct, places = np.unique(coded, return_inverse=True)
            codes.append(distinct)
        levels: list[_Level] = []
        longer = None  # the distinct n-grams of the level above
        for length in reversed(range(order)):
            if longer is None:
                grams, counts = np.unique(places * vocabulary_size + ids[length:], return_counts=True)
            else:
                # Every distinct n-gram of the level above, without its first character.
                context, character = np.divmod(longer, vocabulary_size)
                shorter = codes[length + 1][context] % len(codes[length])
                grams, counts = np.unique(shorter * vocabulary_size + character, return_counts=True)
            contexts = len(codes[length])
            total = np.bincount(grams // vocabulary_size, counts, contexts)
            discounts = _discounts(counts)[np.minimum(counts, 3)]
            freed = np.bincount(grams // vocabulary_size, discounts, contexts)
            shares = (counts - discounts) / total[grams // vocabulary_size]
            # A context that occurs only at the beginning of the text has no character before it: its total is 0.
            rest = np.divide(freed, total, out=np.ones(contexts), where=total > 0)
            levels.append(_Level(codes[length], grams, shares, rest))
            longer = grams
        return cls(vocabulary_size, tuple(reversed(levels)))

    def probabilities(self, ids: Integer[np.ndarray, " character"]) -> Float[np.ndarray, " character"]:
        """Return the probability of each character of a text given those before it, as far as the order reaches."""
        ids = ids.astype(np.int64)
        probabilities = np.full(len(ids), 1 / self.vocabulary_size)
        place = np.zeros(len(ids), np.int64)  # the id of the context before each character
        known = np.ones(len(ids), bool)  # whether that context was seen
        for length, level in enumerate(self.levels[: len(ids)]):
            if length:
                coded = ids[: len(ids) - length] * len(self.levels[length - 1].contexts) + place[length:]
                found, there = _find(level.contexts, coded)
                place = np.concatenate([np.zeros(length, np.int64), found])
                known = known & np.concatenate([np.zeros(length, bool), there])
            gram, seen = _find(level.continuations, place * self.vocabulary_size + ids)
            here = np.where(seen, level.shares[gram], 0) + level.rest[place] * probabilities
            probabilities = np.where(known, here, probabilities)
        return probabilities

    def losses(self, ids: Integer[np.ndarray, " character"]) -> Float[np.ndarray, " character"]:
        """Return the nats that each character of a text costs."""
        return -np.log(self.probabilities(ids))


def _find(values: Int64[np.ndarray, " value"], wanted: Int64[np.ndarray, " wanted"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of wanted numbers among sorted values, and whether each is there."""
    places = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return places, values[places] == wanted


def _discounts(counts: Integer[np.ndarray, " continuation"]) -> Float[np.ndarray, "4"]:
    """Return the discounts of counts of 0, 1, 2, and 3 or more (Chen and Goodman's estimate)."""
    ones, twos, threes, fours = (int(np.sum(counts == count)) for count in (1, 2, 3, 4))
    if not (ones and twos and threes):
        return np.array([0, 0.5, 0.5, 0.5])  # too few rare characters to estimate from
    share = ones / (ones + 2 * twos)
    estimates = 1 - 2 * share * twos / ones, 2 - 3 * share * threes / twos, 3 - 4 * share * fours / threes
    return np.array([0, *np.clip(estimates, 0.1, None)])
