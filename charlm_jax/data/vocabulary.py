"""The characters a model knows, and their ids."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Integer

from charlm_jax.errors import InputError

_BLOCK = 1 << 22  # characters encoded at a time: UTF-32 takes four bytes each


@dataclass(frozen=True)
class Vocabulary:
    """The distinct characters (Unicode code points) of a text, sorted; a character's id is its rank.

    Attributes:
        characters: the distinct characters in code-point order, as one string.
    """

    characters: str

    def __post_init__(self) -> None:
        if list(self.characters) != sorted(set(self.characters)):
            raise InputError("a vocabulary's characters must be distinct and in code-point order")

    @classmethod
    def of(cls, text: str) -> "Vocabulary":
        """Return the vocabulary of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    @cached_property
    def _code_points(self) -> Integer[np.ndarray, " vocab"]:
        return _code_points(self.characters)

    @cached_property
    def _ranks(self) -> Integer[np.ndarray, " code_point"]:
        """The id of each code point up to the largest known one, -1 where there is none; a last -1 for all beyond."""
        ranks = np.full(int(self._code_points[-1]) + 2 if len(self) else 1, -1, np.int32)
        ranks[self._code_points] = np.arange(len(self))
        return ranks

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(max(len(self) - 1, 0))

    def encode(self, text: str, source: str = "text") -> Integer[np.ndarray, " character"]:
        """Return the ids of a text's characters.

        Args:
            text: any string.
            source: what the text is, for the error message ("prompt", a file's name).

        Raises:
            InputError: a character is outside the vocabulary; the message names it and its position.
        """
        ids = np.empty(len(text), self.dtype)
        for start in range(0, len(text), _BLOCK):
            ranks = np.take(self._ranks, _code_points(text[start : start + _BLOCK]), mode="clip")
            known = ranks >= 0
            if not known.all():
                place = start + int(np.argmin(known))
                raise InputError(
                    f"the {source} has {text[place]!r} (U+{ord(text[place]):04X}) at character {place}, which is not "
                    f"among the {len(self)} characters that the model knows: {_abridged(self.characters)}; "
                    "omit it, or train a model on text that contains it"
                )
            ids[start : start + _BLOCK] = ranks
        return ids

    def decode(self, ids: Integer[np.ndarray, " character"]) -> str:
        """Return the text of a sequence of ids.

        Raises:
            InputError: an id is outside the vocabulary.
        """
        ids = np.asarray(ids)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise InputError(f"ids must lie in 0..{len(self) - 1}, not {ids.min()}..{ids.max()}")
        return self._code_points[ids].tobytes().decode("utf-32-le", "surrogatepass")


def _code_points(text: str) -> Integer[np.ndarray, " character"]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def _abridged(characters: str, limit: int = 200) -> str:
    shown = repr(characters[:limit])
    return shown if len(characters) <= limit else f"{shown} and {len(characters) - limit} more"
