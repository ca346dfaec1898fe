"""Texts as a page's reader takes them: where a model was surprised, what it expected, which words are new."""

import base64
import json
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from charlm_jax.analysis.text_statistics import find_words
from charlm_jax.choices import Sampler

_SURE = 2**16 - 1  # the level of probability 1
_NAT = 2**12  # levels of surprise in a nat, which reach to 16 nats


@dataclass(frozen=True)
class Reading:
    """What a model thinks of a text.

    Attributes:
        nats: the surprise at each character.
        likeliest: for each character, as many that the model thought the likeliest, one after another.
        probabilities: of those.
    """

    nats: Float[np.ndarray, " length"]
    likeliest: str
    probabilities: Float[np.ndarray, "length top"]


@dataclass(frozen=True)
class Text:
    """A generated text.

    Attributes:
        source: the file that it is from.
        epoch: whose model wrote it.
        temperature: at which it was drawn.
        prompt: what it continues.
        text: the continuation.
        sampler: whether each character was drawn given the last window alone, or with the state carried on.
        reading: None if the model cannot be had, or does not know all of its characters.
        unknown: where words begin and end that the training text does not have; None if that cannot be had.
    """

    source: str
    epoch: int
    temperature: float
    prompt: str
    text: str
    sampler: Sampler
    reading: Reading | None
    unknown: Sequence[tuple[int, int]] | None


def unknown_words(prompt: str, text: str, known: Set[str]) -> list[tuple[int, int]]:
    """Return where in a continuation words stand that are unknown, a last one that its end may have cut left out.

    Args:
        prompt: what the text continues, perhaps amid a word.
        text: the continuation.
        known: words, case-folded.
    """
    whole = f" {prompt}{text}"  # at whose beginning no word is taken for one that is cut
    start = 1 + len(prompt)
    places = [match.span() for match in find_words(whole) if match.group().casefold() not in known]
    return [(max(first, start) - start, last - start) for first, last in places if last > start]


def as_json(value: object) -> str:
    """Return JSON that ends no HTML element and steers no editor; half a surrogate pair becomes U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, default=_record, separators=(",", ":"))
    text = re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    return "".join(mark if mark.isprintable() and mark not in "<>&" else _escape(mark) for mark in text)


def _record(text: Text) -> dict[str, object]:
    """Return what the page's script shows of a text, its numbers short: a page may hold 100,000 characters."""
    reading = text.reading and {
        "surprise": _pack(text.reading.nats * _NAT),
        "likeliest": text.reading.likeliest,
        "probabilities": _pack(text.reading.probabilities * _SURE),
    }
    return {**vars(text), "reading": reading}


def _pack(levels: Float[np.ndarray, "..."]) -> str:
    """Return numbers from 0 to 65535, rounded and bounded, in base 64 with two bytes each."""
    whole = np.clip(np.rint(np.nan_to_num(levels)), 0, 2**16 - 1)
    return base64.b64encode(whole.astype("<u2").tobytes()).decode()


def _escape(mark: str) -> str:
    units = mark.encode("utf-16-be")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
