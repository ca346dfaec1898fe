"""The errors that end a command with one sentence instead of a traceback."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

# Exit statuses of commands, in order: unusable input; training diverged; stopped by a signal, to be run again; stopped
# at once; another process did not answer (the status with which JAX aborts); the reader of the output is gone.
BAD_INPUT, DIVERGED, PREEMPTED, INTERRUPTED, ABORTED, BROKEN_PIPE = 2, 3, 75, 130, 134, 141
_LONGEST = 2000  # characters of a message


class InputError(Exception):
    """Unusable input from the user; the message says on one line what it is, where it is and how to fix it."""

    def __str__(self) -> str:
        """Return the message, shortened if too long, with characters that could control a terminal escaped."""
        message = super().__str__()
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} [...] {message[-_LONGEST // 2 :]}"
        return "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode()
            for character in message
        )


class DamagedError(InputError):
    """A file does not hold what was written to it; the message says how it differs."""


def require(flag: str, value: object, holds: bool, wanted: str) -> None:
    """Raise an InputError that names a flag, its value and what is wanted, unless `holds`."""
    if not holds:
        raise InputError(f"{flag} {value} cannot be used: it must be {wanted}")


def meant(word: str, words: Iterable[str]) -> str:
    """Return the "did you mean" that ends a message about a misspelt word, or an empty string if no word is close."""
    return "".join(f"; did you mean {near!r}?" for near in get_close_matches(word, words, n=1))


@contextmanager
def optional(what: str, extra: str) -> Iterator[None]:
    """Turn an ImportError in the block into an InputError that says what needs the library and how to install it."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("charlm_jax"):  # a bug of ours
            raise
        way = f".venv/bin/python -m pip install -e '.[{extra}]'"
        raise InputError(f"{what} ({error}); install it with {way}") from error


def require_count(flag: str, value: int | None) -> None:
    """Raise an InputError unless the value is a positive integer that fits in int32, or None."""
    require(flag, value, value is None or 1 <= value < 2**31, "a whole number from 1 to 2147483647 (2^31 - 1)")


def require_seed(value: int) -> None:
    """Raise an InputError for a seed that JAX would silently truncate to 32 bits."""
    require("--seed", value, 0 <= value < 2**32, "a whole number from 0 to 4294967295 (2^32 - 1)")


def require_temperatures(flag: str, values: Iterable[float]) -> None:
    """Raise an InputError unless every value is a temperature that float32 can hold."""
    for value in values:
        require(flag, value, 0 <= value <= 1e30, "from 0 (always the likeliest character) to 1e30 (all equally likely)")


class DivergedError(ArithmeticError):
    """Training diverged; the last good state is saved."""


class Preempted(Exception):
    """A signal asked the process to stop; the state is saved, and the same command resumes from it."""
