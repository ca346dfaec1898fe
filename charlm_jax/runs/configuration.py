"""The configuration of a run, one frozen record of every choice, and the presets.

Nothing here imports JAX, so that command lines answer at once.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from charlm_jax.choices import (
    Continuation,
    GateActivation,
    Initializer,
    Objective,
    OnDivergence,
    OptimizerName,
    Precision,
    Recurrence,
    Sampler,
    Schedule,
    SegmentCarry,
)
from charlm_jax.errors import InputError, require, require_count, require_seed, require_temperatures


@dataclass(frozen=True)
class Configuration:
    """Every choice that affects a run's results. A field's flag is its name with hyphens."""

    corpus: str = "python-docs"
    """Text to learn: python-docs, nietzsche, tinyshakespeare, text8, enwik8, a file, a folder or an encoded corpus."""
    encoding: str | None = None
    """Encoding of the corpus's bytes; the corpus's own if not given, which is UTF-8 except for enwik8 (latin-1)."""
    lowercase: bool = False
    """Lower-case the text."""
    held_out_fraction: float = 0.1
    """Share of the text, taken from its end, to evaluate on and never train on; 0 holds out nothing."""

    objective: Objective = "last-character"
    """Learn to predict only the character after each window, or the next character at every place in it."""
    carry: SegmentCarry = "kept"
    """With every-character: read windows in order and carry the state over (kept), or start each from zero (fresh)."""
    window: int = 60
    """Characters per window: what a training step reads, and how far windowed sampling and evaluation look back."""
    stride: int = 3
    """Characters from one window's start to the next; where the state is kept, it applies to evaluation only."""
    batch_size: int = 128
    """Windows per update (an epoch's last batch may be smaller); where the state is kept, the number of streams."""

    hidden_size: int = 128
    """Units in each LSTM layer."""
    layers: int = 1
    """Number of LSTM layers."""
    embedding_size: int | None = None
    """Size of a learned character embedding before the first layer; one-hot characters if not given."""
    dropout: float = 0.0
    """Share of each layer's outputs to drop in training, the same units at every step of a window."""
    weight_dropout: float = 0.0
    """Share of each layer's recurrent weights to drop in training, drawn anew for each batch."""
    gate_activation: GateActivation = "sigmoid"
    """Activation of the gates; hard_sigmoid is Keras 2's, clip(0.2 x + 0.5, 0, 1)."""
    initializer: Initializer = "keras"
    """Draw the initial parameters as Keras does (Glorot, jointly orthogonal, forget bias 1) or as Flax does."""
    init_from: str | None = None
    """Start from the best model of this run, with its vocabulary and a fresh optimizer state."""

    min_probability: float = 0.0
    """Floor on probabilities in the training loss; a character below it has no gradient. Keras before 2.4 uses 1e-7."""
    optimizer: OptimizerName = "adam"
    """Update rule; the RMSprops add epsilon outside (Keras 2, tf.keras 2) or inside (Keras 3) the square root."""
    learning_rate: float = 0.01
    """Peak learning rate of the run."""
    schedule: Schedule = "constant"
    """Learning rate over the run: constant, or cosine decay to zero."""
    warmup: float = 0.0
    """Share of the run's steps, at its start, over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.0
    """Decoupled weight decay of adamw: each step shrinks every matrix by this times the learning rate."""
    clip: float | None = None
    """Bound on the gradient's global norm; no clipping if not given."""
    epochs: int = 1
    """Passes over the training text."""
    patience: int | None = None
    """Stop after this many epochs without a lower held-out loss; never stop early if not given."""

    on_divergence: OnDivergence = "warn"
    """When training loss rises 0.5 nats above the lowest or a uniform guess's: warn, or return to the best model at
    half the learning rate."""

    temperatures: tuple[float, ...] = (0.2, 0.5, 1.0, 1.2)
    """Softmax temperatures at which to generate text after an epoch."""
    sample_every: int = 1
    """Epochs from one set of texts to the next; the last epoch also has one."""
    sample_length: int = 400
    """Characters to generate at each temperature."""
    sampler: Sampler = "windowed"
    """Predict each character from the last window only (windowed), or carry the state throughout (stateful)."""
    prompt_start: int | None = None
    """Where in the training text the prompt (one window) starts; drawn anew after each epoch if not given."""
    continuation: Continuation = "restart"
    """Start each temperature from the prompt (restart), or from the end of the previous text (roll-on)."""

    precision: Precision = "float32"
    """Precision of the operands of matrix products; parameters, carry and accumulation are float32."""
    recurrence: Recurrence = "scan"
    """Recurrence in training: XLA's loop (scan), the same steps unrolled, or, on a TPU, one kernel per direction."""
    seed: int = 1
    """Seed of the initial parameters, window order, dropout, prompts and samples."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, words = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal:
                require(flag(field.name), value, value in words, f"one of {', '.join(words)}")
            elif field.type in (int, int | None) and field.name not in ("prompt_start", "seed"):
                require_count(flag(field.name), value)
        held_out = self.held_out_fraction
        require("--held-out-fraction", held_out, held_out == 0 or 1e-6 <= held_out < 1, "0, or from 1e-6 to below 1")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            require(flag(name), value, value is None or 0 < value < math.inf, "a positive number")
        for name in ("dropout", "weight_dropout", "warmup", "min_probability"):
            value = getattr(self, name)
            require(flag(name), value, 0 <= value < 1, "at least 0 and below 1")
        decays = self.optimizer == "adamw"
        require("--weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        require("--weight-decay", self.weight_decay, decays or not self.weight_decay, "0 without --optimizer adamw")
        require("--patience", self.patience, held_out > 0 or self.patience is None, "omitted where nothing is held out")
        goes_back = self.on_divergence == "rollback"
        require("--on-divergence", self.on_divergence, held_out > 0 or not goes_back, "warn where nothing is held out")
        possible = self.hidden_size % 128 == 0 and self.precision != "tf32"
        wanted = "scan or unrolled if --hidden-size is not a multiple of 128, or with --precision tf32"
        require("--recurrence", self.recurrence, possible or self.recurrence != "kernel", wanted)
        require("--prompt-start", self.prompt_start, 0 <= (self.prompt_start or 0) < 2**31, "from 0 to 2147483647")
        require_temperatures("--temperatures", self.temperatures)
        require_seed(self.seed)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Configuration":
        """Rebuild a configuration from its JSON object.

        Raises:
            InputError: its fields are not those of this version, or a value is of the wrong type.
        """
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        if odd := record.keys() ^ fields.keys():
            raise InputError(f"its fields are not those of this version: {', '.join(sorted(odd))}")
        chosen = {}
        for name, value in record.items():
            kind, several = fields[name], name == "temperatures"
            kinds, values = get_args(kind) or (kind,), tuple(value) if several else (value,)
            if float in kinds:
                values = tuple(map(_as_float, values))
            sound = get_origin(kind) is Literal or all(type(each) in kinds for each in values)
            require(flag(name), repr(value), sound, str(getattr(kind, "__name__", kind)))
            chosen[name] = values if several else values[0]
        return cls(**chosen)

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as a JSON object."""
        return {**dataclasses.asdict(self), "temperatures": list(self.temperatures)}

    def differences(self, other: "Configuration") -> list[str]:
        """Describe, field by field, where another configuration differs."""
        mine, theirs = self.to_json(), other.to_json()
        return [f"{flag(name)} {mine[name]} there, {theirs[name]} here" for name in mine if mine[name] != theirs[name]]


def _as_float(value: Any) -> Any:
    """Return a whole number, which may stand for a float in JSON, as one; anything else as it is."""
    return float(value) if type(value) is int and abs(value) < 2**53 else value


def flag(name: str) -> str:
    """Return a field's command-line flag."""
    return f"--{name.replace('_', '-')}"


_NOTEBOOK = Configuration(
    corpus="nietzsche",
    lowercase=True,
    held_out_fraction=0.0,
    optimizer="rmsprop-keras-2",
    epochs=59,
    continuation="roll-on",
)

# Both chosen on Nietzsche's held-out text: see experiments/results/recipe_search.csv. The prompt is python-docs' first
# sentence.
_QUICK = Configuration(
    objective="every-character",
    batch_size=32,
    dropout=0.2,
    optimizer="adamw",
    learning_rate=0.03,
    schedule="cosine",
    warmup=0.03,
    weight_decay=0.01,
    clip=1.0,
    epochs=24,
    sample_every=8,
    sampler="stateful",
    prompt_start=47,
)
_STRONG = dataclasses.replace(
    _QUICK, hidden_size=512, dropout=0.4, weight_dropout=0.5, learning_rate=0.01, epochs=50, sample_every=10
)

PRESETS = {
    "quick": _QUICK,
    "strong": _STRONG,
    "tf-keras-2.5": _NOTEBOOK,
    "keras-fixed-prompt": dataclasses.replace(
        _NOTEBOOK,
        encoding="cp1252",
        prompt_start=116739,
        temperatures=(0.2, 0.5, 1.0, 1.0, 2.0),
        continuation="restart",
    ),
    "keras-2.4": dataclasses.replace(_NOTEBOOK, encoding="cp1252"),
    "keras-2.2": dataclasses.replace(_NOTEBOOK, gate_activation="hard_sigmoid", min_probability=1e-7, epochs=3),
    "tf-keras": _NOTEBOOK,
}
"""Complete configurations by name: two recipes of our own, and one for each published notebook."""
