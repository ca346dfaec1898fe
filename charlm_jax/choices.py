"""The words and limits of choices, apart from the code that acts on them, so that command lines need not load JAX."""

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

MOST_EVALUATED = 10_000_000
"""Characters of a long text that are scored unless more are asked for: its beginning, which every device holds."""
MODEL_FILES = ".keras", ".weights.h5", ".h5", ".safetensors", ".jax"
"""The endings of the files that models are converted into, and, the last aside, out of."""


def counted(number: int, noun: str) -> str:
    """Return a number and what it counts, in the plural unless it is one."""
    return f"{number:,} {noun}" + "s" * (number != 1)
