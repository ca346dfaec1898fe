"""Allowed values and limits of options, apart from the code that uses them so that command lines need not load JAX."""

from typing import Literal

GateActivation = Literal["sigmoid", "hard_sigmoid"]
Initializer = Literal["keras", "flax"]
Objective = Literal["last-character", "every-character"]
SegmentCarry = Literal["kept", "fresh"]
OptimizerName = Literal["rmsprop-keras-2", "rmsprop-keras-3", "adam", "adamw"]
Schedule = Literal["constant", "cosine"]
Sampler = Literal["windowed", "stateful"]
Continuation = Literal["restart", "roll-on"]
Precision = Literal["float32", "tf32", "bfloat16"]
Recurrence = Literal["scan", "unrolled", "kernel"]
OnDivergence = Literal["warn", "rollback"]
Checkpoint = Literal["best", "newest"]
Launcher = Literal["here", "local", "slurm"]
TextPlace = Literal["auto", "resident", "streamed"]

MAX_EVALUATED = 10_000_000
"""How many characters of a long text are scored by default: its beginning, which every device holds."""
MIN_TEXTS = 8
"""Fewer texts give no interval: a bootstrap's would be too narrow."""
MODEL_FILES = ".keras", ".weights.h5", ".h5", ".safetensors", ".jax"
"""File endings that models can be converted to; all but the last can also be converted from."""


def counted(number: int, noun: str) -> str:
    """Return a number followed by its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}" + "s" * (number != 1)
