"""Which passages of a text occur elsewhere, in another text or again in itself: exact, of any length, for all places.

Every passage of 1, 2, 4, 8, ... characters gets a number for a name, such that equal passages have equal names and
names are in the passages' order (Karp, Miller and Rosenberg, 1972). Names of long enough passages sort the suffixes of
a text, and a suffix shares its longest beginning with a neighbour in that order.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Integer

LOOP = 16  # characters of the shortest loop; shorter ones come in any text ("mama", "...")


def matching_statistics(training: str, texts: Sequence[str]) -> list[Int64[np.ndarray, " _"]]:
    """Return, for each place of each text, how long a passage from there on occurs in the training text.

    These are the matching statistics of Chang and Lawler (1994), in characters: the longest such passage's length, from
    0 to what is left of the text. Time is that of sorting all characters a few times, once more whenever the longest
    passage of all doubles.

    Args:
        training: the text to look in.
        texts: any number of texts of any lengths; they do not look into one another.
    """
    # What ends the training text is not what ends the others, and neither is a character: no match reaches over them.
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
    """Return the characters of the longest passage that a text has at two places, which may overlap.

    From 0, where no character comes twice, to one less than the text has, where all are the same.
    """
    rounds = [_ended(text, 0)]
    while len(np.unique(rounds[-1])) < len(rounds[-1]):
        rounds.append(_twice_as_long(rounds))
    order = np.argsort(rounds[-1])
    return int(_common_prefixes(rounds, order[:-1], order[1:]).max(initial=0))


def looped(text: str) -> float:
    """Return the share of a text's characters that lie inside a loop, from 0 to 1; nan for the empty text.

    A loop is a stretch of at least `LOOP` characters in which, from some period on, of at most half the stretch, every
    character is the one a period before: a run, or maximal repetition (Kolpakov and Kucherov, 1999), but no short one.
    The last of its copies may be cut. Time grows with the square of the text's length.
    """
    points = _code_points(text)
    inside = np.zeros(len(text), bool)
    for period in range(1, len(text) // 2 + 1):
        # Between two places where another character stands a period ahead, the text repeats itself.
        differ = np.flatnonzero(points[period:] != points[:-period])
        edges = np.concatenate([[-1], differ, [len(text) - period]])
        for edge in np.flatnonzero(np.diff(edges) - 1 >= max(period, LOOP - period)):
            inside[edges[edge] + 1 : edges[edge + 1] + period] = True
    return float(inside.mean()) if text else math.nan


def _code_points(text: str) -> Integer[np.ndarray, " character"]:
    """Return a text's Unicode code points; lone surrogates are allowed."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _ended(text: str, end: int) -> Int64[np.ndarray, " symbol"]:
    """Return numbers for a text's characters that leave 0 and 1 free, and one of these for its end."""
    return np.append(_code_points(text).astype(np.int64) + 2, end)


def _twice_as_long(rounds: list[np.ndarray]) -> Integer[np.ndarray, " symbol"]:
    """Return names for the passages twice as long as those that the last round has named.

    Past the last symbol every name is 0: what follows an end is never asked for.
    """
    names, length = rounds[-1].astype(np.int64), 1 << (len(rounds) - 1)
    rest = np.zeros_like(names)
    rest[: max(len(names) - length, 0)] = names[length:]
    return np.unique(names * (names.max() + 1) + rest, return_inverse=True)[1].astype(np.int32)


def _common_prefixes(
    rounds: list[np.ndarray], first: Integer[np.ndarray, " pair"], second: Integer[np.ndarray, " pair"]
) -> Int64[np.ndarray, " pair"]:
    """Return how many symbols from two places on are the same; fewer than the last round's passages have."""
    lengths = np.zeros(len(first), np.int64)
    for exponent, names in reversed(list(enumerate(rounds))):
        lengths += (names[first + lengths] == names[second + lengths]).astype(np.int64) << exponent
    return lengths
