"""What a run is: one frozen record of every choice, and the presets.

Nothing here touches JAX, so that command lines answer at once.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from charlm_jax.choices import Continuation, GateActivation, Initializer, OptimizerName, Precision, Sampler, Schedule
from charlm_jax.errors import require, require_count, require_seed, require_temperatures


@dataclass(frozen=True)
class Configuration:
    """Every choice that decides a run's results. A field's flag is its name with hyphens."""

    corpus: str = "python-docs"
    """Text to learn: python-docs, nietzsche, tinyshakespeare, text8, enwik8, a text file, or a folder of them."""
    encoding: str | None = None
    """Encoding of the corpus's bytes; the corpus's own if not given, which is UTF-8 but for enwik8."""
    lowercase: bool = False
    """Lower-case the text."""
    held_out_fraction: float = 0.1
    """Share of the text, taken from its end, that is evaluated on and never trained on; 0 holds out nothing."""

    window: int = 60
    """Characters that the model reads before the one it predicts."""
    stride: int = 3
    """Characters from the start of one window to the start of the next."""
    batch_size: int = 128
    """Windows in one update; an epoch's last batch may be smaller."""

    hidden_size: int = 128
    """Units of each LSTM layer."""
    layers: int = 1
    """LSTM layers."""
    dropout: float = 0.0
    """Share of the outputs between layers that is dropped while training."""
    gate_activation: GateActivation = "sigmoid"
    """Activation of the gates; hard_sigmoid is Keras 2's, clip(0.2 x + 0.5, 0, 1)."""
    initializer: Initializer = "keras"
    """Initial parameters as Keras draws them (Glorot, jointly orthogonal, forget bias 1) or as Flax does."""

    optimizer: OptimizerName = "adam"
    """Update rule; the two RMSprops put epsilon outside (Keras 2, tf.keras 2) or inside (Keras 3) the root."""
    learning_rate: float = 0.01
    """Learning rate at the first step."""
    schedule: Schedule = "constant"
    """Learning rate over the run: constant, or cosine down to zero."""
    clip: float | None = None
    """Bound on the gradient's global norm; none if not given."""
    epochs: int = 1
    """Passes over the training windows."""

    temperatures: tuple[float, ...] = (0.2, 0.5, 1.0, 1.2)
    """Softmax temperatures at which text is generated after each epoch."""
    sample_length: int = 400
    """Characters generated at each temperature."""
    sampler: Sampler = "windowed"
    """Predict each character from the last window alone (windowed), or carry the state on (stateful)."""
    prompt_start: int | None = None
    """Where in the training text the prompt, one window long, starts; drawn anew after each epoch if not given."""
    continuation: Continuation = "restart"
    """Each temperature starts from the prompt (restart), or from the end of the text before it (roll-on)."""

    precision: Precision = "float32"
    """Precision of matrix products on accelerators; parameters, carry and sums are float32."""
    seed: int = 1
    """Seed of the initial parameters, the order of windows, dropout, prompts and samples."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            words = get_args(field.type) if get_origin(field.type) is Literal else None
            value = getattr(self, field.name)
            require(flag(field.name), value, words is None or value in words, f"one of {', '.join(words or ())}")
        for name in ("window", "stride", "batch_size", "hidden_size", "layers", "epochs", "sample_length"):
            require_count(flag(name), getattr(self, name))
        held_out, dropout = self.held_out_fraction, self.dropout
        require("--held-out-fraction", held_out, held_out == 0 or 1e-6 <= held_out < 1, "0, or from 1e-6 to below 1")
        require("--dropout", dropout, 0 <= dropout < 1, "at least 0 and below 1")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            require(flag(name), value, value is None or 0 < value < math.inf, "a positive number")
        require("--prompt-start", self.prompt_start, 0 <= (self.prompt_start or 0) < 2**31, "from 0 to 2147483647")
        require_temperatures("--temperatures", self.temperatures)
        require_seed(self.seed)

    @classmethod
    def from_json(cls, record: dict) -> "Configuration":
        """Rebuild a configuration from its JSON object."""
        return cls(**{**record, "temperatures": tuple(record["temperatures"])})

    def to_json(self) -> dict:
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

PRESETS = {
    # Measured on python-docs: in about a minute, windows of 32 reached a lower held-out loss than windows of 40 or 60.
    # Its prompt is the first sentence of that text.
    "quick": Configuration(window=32, stride=4, batch_size=64, schedule="cosine", clip=1.0, epochs=3, prompt_start=47),
    "tf-keras-2.5": _NOTEBOOK,
    "keras-fixed-prompt": dataclasses.replace(
        _NOTEBOOK,
        encoding="cp1252",
        prompt_start=116739,
        temperatures=(0.2, 0.5, 1.0, 1.0, 2.0),
        continuation="restart",
    ),
    "keras-2.4": dataclasses.replace(_NOTEBOOK, encoding="cp1252"),
    "keras-2.2": dataclasses.replace(_NOTEBOOK, gate_activation="hard_sigmoid", epochs=3),
    "tf-keras": _NOTEBOOK,
}
"""Full configurations by name: `quick`, and one for each published notebook."""
