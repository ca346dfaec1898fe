"""The errors that end a command with one sentence instead of a traceback."""


class InputError(Exception):
    """Something the user gave cannot be used; the message names it, its place and the way out."""


def require(flag: str, value: object, holds: bool, wanted: str) -> None:
    """Raise an InputError that names a flag, its value and what is wanted, unless `holds`."""
    if not holds:
        raise InputError(f"{flag} {value} cannot be used: it must be {wanted}")


def require_seed(seed: int) -> None:
    """Raise an InputError for a seed that JAX would silently cut to 32 bits."""
    require("--seed", seed, 0 <= seed < 2**32, "a whole number from 0 to 4294967295 (2^32 - 1)")


class DivergedError(ArithmeticError):
    """Training produced a non-finite number; the last finite state has been kept."""


class Preempted(Exception):
    """A signal asked the process to stop; the state has been saved and the same command goes on from it."""
