"""What a run is: one frozen record of every choice, and the presets.

Nothing here touches JAX, so that command lines answer at once.
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
    """Every choice that decides a run's results. A field's flag is its name with hyphens."""

    corpus: str = "python-docs"
    """Text to learn: python-docs, nietzsche, tinyshakespeare, text8, enwik8, a file, a folder, an encoded corpus."""
    encoding: str | None = None
    """Encoding of the corpus's bytes; the corpus's own if not given, which is UTF-8 but for enwik8."""
    lowercase: bool = False
    """Lower-case the text."""
    held_out_fraction: float = 0.1
    """Share of the text, taken from its end, that is evaluated on and never trained on; 0 holds out nothing."""

    objective: Objective = "last-character"
    """Learn from the character after each window alone, or from every character in it and after it."""
    carry: SegmentCarry = "kept"
    """With every-character: windows follow one another and the state is kept between them, or each starts fresh."""
    window: int = 60
    """Characters in a window: what a step reads, and what windowed texts and evaluations look back on."""
    stride: int = 3
    """Characters from one window's start to the next one's; while the state is kept, of evaluations only."""
    batch_size: int = 128
    """Windows in one update; an epoch's last batch may be smaller. Parts read side by side where the state is kept."""

    hidden_size: int = 128
    """Units of each LSTM layer."""
    layers: int = 1
    """LSTM layers."""
    embedding_size: int | None = None
    """Numbers, learned, that stand for each character before the first layer; one-hot if not given."""
    dropout: float = 0.0
    """Share of every layer's outputs that is dropped while training, the same ones along a window."""
    weight_dropout: float = 0.0
    """Share of every layer's recurrent weights that is dropped while training, others in each batch."""
    gate_activation: GateActivation = "sigmoid"
    """Activation of the gates; hard_sigmoid is Keras 2's, clip(0.2 x + 0.5, 0, 1)."""
    initializer: Initializer = "keras"
    """Initial parameters as Keras draws them (Glorot, jointly orthogonal, forget bias 1) or as Flax does."""
    init_from: str | None = None
    """Start from the best model of this run, with its vocabulary; the optimizer starts anew."""

    least_probability: float = 0.0
    """In training a character counts as at least this likely, and one less likely teaches nothing; in Keras 2, 1e-7."""
    optimizer: OptimizerName = "adam"
    """Update rule; the two RMSprops put epsilon outside (Keras 2, tf.keras 2) or inside (Keras 3) the root."""
    learning_rate: float = 0.01
    """Learning rate, the highest over the run."""
    schedule: Schedule = "constant"
    """Learning rate over the run: constant, or cosine down to zero."""
    warmup: float = 0.0
    """Share of the run's steps over which the learning rate first rises from zero."""
    weight_decay: float = 0.0
    """Share of each matrix, times the learning rate, that every step of adamw takes off."""
    clip: float | None = None
    """Bound on the gradient's global norm; none if not given."""
    epochs: int = 1
    """Passes over the training text."""
    patience: int | None = None
    """Stop after this many epochs without a lower held-out loss; go on to the end if not given."""

    on_divergence: OnDivergence = "warn"
    """When an epoch's training loss is 0.5 nats above the lowest: say so, or go back to the best model at half rate."""

    temperatures: tuple[float, ...] = (0.2, 0.5, 1.0, 1.2)
    """Softmax temperatures at which text is generated after an epoch."""
    sample_every: int = 1
    """Epochs from one set of texts to the next; the last epoch has one too."""
    sample_length: int = 400
    """Characters generated at each temperature."""
    sampler: Sampler = "windowed"
    """Predict each character from the last window alone (windowed), or carry the state on (stateful)."""
    prompt_start: int | None = None
    """Where in the training text the prompt, one window long, starts; drawn anew after each epoch if not given."""
    continuation: Continuation = "restart"
    """Each temperature starts from the prompt (restart), or from the end of the text before it (roll-on)."""

    precision: Precision = "float32"
    """Precision of the factors of matrix products; parameters, carry and sums are float32."""
    recurrence: Recurrence = "scan"
    """Learn by XLA's loop over the characters, by its steps unrolled, or on a TPU by one kernel a direction."""
    seed: int = 1
    """Seed of the initial parameters, the order of windows, dropout, prompts and samples."""

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
        for name in ("dropout", "weight_dropout", "warmup", "least_probability"):
            value = getattr(self, name)
            require(flag(name), value, 0 <= value < 1, "at least 0 and below 1")
        decays = self.optimizer == "adamw"
        require("--weight-decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        require("--weight-decay", self.weight_decay, decays or not self.weight_decay, "0 without --optimizer adamw")
        require(
            "--patience", self.patience, held_out > 0 or self.patience is None, "left out where nothing is held out"
        )
        goes_back = self.on_divergence == "rollback"
        require("--on-divergence", self.on_divergence, held_out > 0 or not goes_back, "warn where nothing is held out")
        possible = self.hidden_size % 128 == 0 and self.precision != "tf32"
        wanted = "scan or unrolled where --hidden-size is no multiple of 128, and with --precision tf32"
        require("--recurrence", self.recurrence, possible or self.recurrence != "kernel", wanted)
        require("--prompt-start", self.prompt_start, 0 <= (self.prompt_start or 0) < 2**31, "from 0 to 2147483647")
        require_temperatures("--temperatures", self.temperatures)
        require_seed(self.seed)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Configuration":
        """Rebuild a configuration from its JSON object.

        Raises:
            InputError: it has other fields, so it is of another version.
        """
        odd = record.keys() ^ {field.name for field in dataclasses.fields(cls)}
        if odd:
            raise InputError(f"its fields are not those of this version: {', '.join(sorted(odd))}")
        return cls(**{**record, "temperatures": tuple(record["temperatures"])})

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as a JSON object."""
        return {**dataclasses.asdict(self), "temperatures": list(self.temperatures)}

    def differences(self, other: "Configuration") -> list[str]:
        """Say, field by field, where another configuration differs."""
        mine, theirs = self.to_json(), other.to_json()
        return [f"{flag(name)} {mine[name]} there, {theirs[name]} here" for name in mine if mine[name] != theirs[name]]


def flag(name: str) -> str:
    """Return a field's flag on the command line."""
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
    "keras-2.2": dataclasses.replace(_NOTEBOOK, gate_activation="hard_sigmoid", least_probability=1e-7, epochs=3),
    "tf-keras": _NOTEBOOK,
}
"""Full configurations by name: two recipes of our own, and one for each published notebook."""
