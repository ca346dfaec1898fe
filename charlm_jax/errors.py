"""The errors that end a command with one sentence instead of a traceback."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

# What a command exits with: what the user gave cannot be used; training diverged; stopped by a signal with the state
# saved; stopped at once; waited in vain for another process, as where JAX aborts; the reader of the output has left.
BAD_INPUT, DIVERGED, PREEMPTED, INTERRUPTED, ABORTED, BROKEN_PIPE = 2, 3, 75, 130, 134, 141
_LONGEST = 2000  # characters of a message


class InputError(Exception):
    """Something the user gave cannot be used; the message names it, its place and the way out, on one line."""

    def __str__(self) -> str:
        """Return the message, shortened if need be, with what would steer a terminal written out."""
        message = super().__str__()
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} [...] {message[-_LONGEST // 2 :]}"
        return "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode()
            for character in message
        )


class DamagedError(InputError):
    """A saved state is not what was saved; the message says in what."""


def require(flag: str, value: object, holds: bool, wanted: str) -> None:
    """Raise an InputError that names a flag, its value and what is wanted, unless `holds`."""
    if not holds:
        raise InputError(f"{flag} {value} cannot be used: it must be {wanted}")


def meant(word: str, words: Iterable[str]) -> str:
    """Return how a message ends that lists words of which a user misspelt one: which may be meant, if any."""
    return "".join(f"; did you mean {near!r}?" for near in get_close_matches(word, words, n=1))


@contextmanager
def optional(what: str, extra: str) -> Iterator[None]:
    """Turn the lack of a library within the block into an InputError: what needs it, and the extra that brings it."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("charlm_jax"):  # a defect of ours
            raise
        way = f".venv/bin/python -m pip install -e '.[{extra}]'"
        raise InputError(f"{what} ({error}); install it with {way}") from error


def require_count(flag: str, value: int | None) -> None:
    """Raise an InputError unless a number counts something, in 32 bits; None passes."""
    require(flag, value, value is None or 1 <= value < 2**31, "a whole number from 1 to 2147483647 (2^31 - 1)")


def require_seed(value: int) -> None:
    """Raise an InputError for a seed that JAX would silently cut to 32 bits."""
    require("--seed", value, 0 <= value < 2**32, "a whole number from 0 to 4294967295 (2^32 - 1)")


def require_temperatures(flag: str, values: Iterable[float]) -> None:
    """Raise an InputError unless each value is a temperature that float32 holds."""
    for value in values:
        require(flag, value, 0 <= value <= 1e30, "from 0 (always the likeliest character) to 1e30 (all equally likely)")


class DivergedError(ArithmeticError):
    """Training went astray; the last good state has been kept."""


class Preempted(Exception):
    """A signal asked the process to stop; the state has been saved and the same command goes on from it."""
