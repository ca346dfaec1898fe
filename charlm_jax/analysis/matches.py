"""Exact matches of any length: which passages of a text occur in another text, or again in the same one.

Every passage of 1, 2, 4, 8, ... characters is named by a number, so that equal passages have equal names, and names
sort as the passages do (Karp, Miller and Rosenberg, 1972). The names of long enough passages sort the suffixes of a
text, and a suffix shares its longest prefix with a neighbour in that order.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Integer

LOOP = 16  # characters of the shortest loop; shorter ones occur in any text ("mama", "...")


def matching_statistics(training: str, texts: Sequence[str]) -> list[Int64[np.ndarray, " _"]]:
    """Return, for each place of each text, the length of the longest passage from there in the training text.

    These are the matching statistics of Chang and Lawler (1994), in characters, from 0 to what is left of the text.
    The time is that of sorting all characters a few times, and once more whenever the longest passage of all doubles.

    Args:
        training: the text to search.
        texts: any number of texts of any lengths; they are not searched for one another.
    """
    # The training text ends in another symbol than the others, and neither is a character: no match crosses an end.
    borders = np.cumsum([len(training) + 1, *(len(text) + 1 for text in texts)])
    symbols = np.concatenate([_ended(training, 0), *(_ended(text, 1) for text in texts)])
    border = borders[0]
    rounds = [symbols]
    while np.isin(rounds[-1][border:], rounds[-1][:border]).any():
        rounds.append(_twice_as_long(rounds))
    names, wanted = np.split(rounds[-1], [border])
    order = np.argsort(names)
    after = np.searchsorted(names[order], wanted)
    places = np.arange(border, len(symbols))
    neighbours = (order[np.clip(rank, 0, border - 1)] for rank in (after - 1, after))
    matched = np.maximum(*(_common_prefixes(rounds, places, neighbour) for neighbour in neighbours))
    return [lengths[:-1] for lengths in np.split(matched, borders[1:] - border)[:-1]]


def longest_repeat(text: str) -> int:
    """Return the length in characters of the longest passage that occurs at two places of a text, which may overlap.

    Ranges from 0, if no character occurs twice, to one less than the text's length, if all are the same.
    """
    rounds = [_ended(text, 0)]
    while len(np.unique(rounds[-1])) < len(rounds[-1]):
        rounds.append(_twice_as_long(rounds))
    order = np.argsort(rounds[-1])
    return int(_common_prefixes(rounds, order[:-1], order[1:]).max(initial=0))


def looped(text: str) -> float:
    """Return the share of a text's characters that lie inside a loop, from 0 to 1; nan for the empty text.

    A loop is a stretch of at least `LOOP` characters that repeats a passage of at most half its length: every character
    after the first period equals the one a period before. These are the runs, or maximal repetitions (Kolpakov and
    Kucherov, 1999), that are not short. The last copy may be cut off. Time grows with the square of the text's length.
    """
    points = _code_points(text)
    inside = np.zeros(len(text), bool)
    for period in range(1, len(text) // 2 + 1):
        # Between two places that differ from the character a period ahead, the text repeats itself.
        differ = np.flatnonzero(points[period:] != points[:-period])
        edges = np.concatenate([[-1], differ, [len(text) - period]])
        for edge in np.flatnonzero(np.diff(edges) - 1 >= max(period, LOOP - period)):
            inside[edges[edge] + 1 : edges[edge + 1] + period] = True
    return float(inside.mean()) if text else math.nan


def _code_points(text: str) -> Integer[np.ndarray, " character"]:
    """Return a text's Unicode code points; lone surrogates are allowed."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _ended(text: str, end: int) -> Int64[np.ndarray, " symbol"]:
    """Return numbers for a text's characters, which leave 0 and 1 free, and then `end`, one of these."""
    return np.append(_code_points(text).astype(np.int64) + 2, end)


def _twice_as_long(rounds: list[np.ndarray]) -> Integer[np.ndarray, " symbol"]:
    """Return names for the passages twice as long as those that the last round named.

    Past the last symbol every name is 0: what follows an end is never asked for.
    """
    names, length = rounds[-1].astype(np.int64), 1 << (len(rounds) - 1)
    rest = np.zeros_like(names)
    rest[: max(len(names) - length, 0)] = names[length:]
    return np.unique(names * (names.max() + 1) + rest, return_inverse=True)[1].astype(np.int32)


def _common_prefixes(
    rounds: list[np.ndarray], first: Integer[np.ndarray, " pair"], second: Integer[np.ndarray, " pair"]
) -> Int64[np.ndarray, " pair"]:
    """Return how many symbols agree from two places on, which must be fewer than the last round's passages have."""
    lengths = np.zeros(len(first), np.int64)
    for exponent, names in reversed(list(enumerate(rounds))):
        lengths += (names[first + lengths] == names[second + lengths]).astype(np.int64) << exponent
    return lengths
