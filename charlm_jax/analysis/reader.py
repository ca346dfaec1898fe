"""Texts as the report's reader shows them: where a model was surprised, what it expected, which words are unknown."""

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
_NAT = 2**12  # levels of surprisal per nat; 16 bits reach to 16 nats


@dataclass(frozen=True)
class Reading:
    """What a model predicts along a text.

    Attributes:
        nats: the surprisal of each character.
        likeliest: the characters that the model thought likeliest, `top` for each character of the text, concatenated.
        probabilities: of those characters.
    """

    nats: Float[np.ndarray, " length"]
    likeliest: str
    probabilities: Float[np.ndarray, "length top"]


@dataclass(frozen=True)
class Text:
    """A generated text.

    Attributes:
        source: name of the file that it comes from.
        epoch: the epoch whose model wrote it.
        temperature: the softmax temperature at which it was drawn.
        prompt: what it continues.
        text: the continuation.
        sampler: whether each character was drawn given the last window alone, or with the state carried on.
        reading: None if the model is unavailable or lacks a character of the text, or if the text is empty.
        unknown: starts and ends of the words that the training text lacks; None if that text is unavailable.
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
    """Return where the unknown words of a continuation start and end, except a last word that may be cut off.

    Args:
        prompt: what the text continues, possibly from within a word.
        text: the continuation.
        known: the known words, case-folded.
    """
    whole = f" {prompt}{text}"  # the space keeps a first word from being taken for one that is cut off
    start = 1 + len(prompt)
    places = [match.span() for match in find_words(whole) if match.group().casefold() not in known]
    return [(max(first, start) - start, last - start) for first, last in places if last > start]


def as_json(value: object) -> str:
    """Return JSON that is safe in HTML: <, >, & and unprintable characters escaped, half surrogate pairs as U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, default=_record, separators=(",", ":"))
    text = re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    return "".join(mark if mark.isprintable() and mark not in "<>&" else _escape(mark) for mark in text)


def _record(text: Text) -> dict[str, object]:
    """Return what the page's script needs of a text, with packed numbers, as a page may hold 100,000 characters."""
    reading = text.reading and {
        "surprisal": _pack(text.reading.nats * _NAT),
        "likeliest": text.reading.likeliest,
        "probabilities": _pack(text.reading.probabilities * _SURE),
    }
    return {**vars(text), "reading": reading}


def _pack(levels: Float[np.ndarray, "..."]) -> str:
    """Return numbers, rounded and clipped to 0 to 65535, in base 64 with two bytes each."""
    whole = np.clip(np.rint(np.nan_to_num(levels)), 0, 2**16 - 1)
    return base64.b64encode(whole.astype("<u2").tobytes()).decode()


def _escape(mark: str) -> str:
    units = mark.encode("utf-16-be")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
