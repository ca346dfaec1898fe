"""Convert a run's model for Keras, PyTorch, NumPy or a server, or a Keras or PyTorch model into a run.

    scripts/run convert RUN FILE [--checkpoint newest] [--length N]
    scripts/run convert FILE RUN [--corpus TEXT] [--gate-activation sigmoid] [--window N]

The ending of FILE says what it is:

    .keras         a model of Keras 3: from one-hot characters, or ids if there is an embedding, to probabilities
    .weights.h5    the weights of that model
    .h5            the same model for Keras 2 and tf.keras 2
    .safetensors   PyTorch's nn.LSTM `lstm` and nn.Linear `head`, to logits; scripts/sample_numpy.py reads it too
    .jax           the sampler as one program for CPUs, GPUs and TPUs (jax.export): from prompts, lengths, temperatures
                   and seeds to ids; it can only be written

FILE.json, next to FILE, holds the characters, the gates' activation, the sizes, the window, and how texts are sampled.
Converting back looks for it there; flags supply what neither file says. The resulting run is at step 0, has no
optimizer and no losses, and is meant for `sample`, `evaluate --text` and `text_generation --init-from`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from charlm_jax.choices import MODEL_FILES, Checkpoint, GateActivation
from charlm_jax.errors import require, require_count
from charlm_jax.runs.command_line import folded, run_command, tell
from charlm_jax.runs.configuration import flag


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    source: tyro.conf.Positional[Path]
    """Directory of a run, or a model's file."""
    target: tyro.conf.Positional[Path]
    """File to write, or directory of the run to make; it must not exist yet."""
    checkpoint: Checkpoint = "best"
    """For a run, which model: the best by held-out loss (the newest if nothing is held out), or the newest."""
    length: int = 400
    """Characters that a .jax file generates after each prompt."""
    corpus: str | None = None
    """For a file, the text whose distinct characters, sorted, the model knows: a file, a folder or a corpus's name."""
    encoding: str | None = None
    """Encoding of that text's bytes; UTF-8, or a named corpus's own, if not given."""
    lowercase: bool = False
    """Whether that text is lower-cased."""
    gate_activation: GateActivation | None = None
    """For a file, the activation of the gates, which weights do not say."""
    window: int | None = None
    """For a file, how many characters the model reads; 60 if nothing says."""

    def __post_init__(self) -> None:
        require_count("--length", self.length)
        require_count("--window", self.window)
        writes = self.source.is_dir()
        names = ("corpus", "encoding", "lowercase", "gate_activation", "window") if writes else ("checkpoint", "length")
        for name in names:
            value, direction = getattr(self, name), "a run becomes a file" if writes else "a file becomes a run"
            require(flag(name), value, value == getattr(Arguments, name), f"omitted where {direction}")
        for name in ("encoding", "lowercase"):
            value = getattr(self, name)
            require(flag(name), value, not value or self.corpus is not None, "given with --corpus")
        require("TARGET", self.target, self.target.name != "", "the name of a new file or directory")
        for place in (self.target, self.target.with_name(f"{self.target.name}.json")):
            require("TARGET", place, not place.exists(), "new, as nothing is overwritten")
        file, readable = self.target if writes else self.source, MODEL_FILES
        if not writes:
            require("SOURCE", self.source, self.source.is_file(), "the directory of a run, or a file")
            readable = MODEL_FILES[:-1]
        require("file", file, file.name.endswith(readable), f"one that ends in {', '.join(readable)}")


def main(flags: Sequence[str]) -> None:
    """Convert in either direction."""
    arguments = tyro.cli(Arguments, prog="scripts/run convert", description=folded(__doc__), args=flags)

    from charlm_jax.runs.conversion import make_run, write_model
    from charlm_jax.runs.directory import open_run
    from charlm_jax.runs.encoding import encoded, open_corpus
    from charlm_jax.runs.trained import read_run

    source, target = arguments.source, arguments.target
    if source.is_dir():
        ending = next(ending for ending in MODEL_FILES if target.name.endswith(ending))
        write_model(read_run(open_run(source), arguments.checkpoint), target, ending, arguments.length)
    else:
        said = {"gate_activation": arguments.gate_activation, "window": arguments.window}
        if arguments.corpus is not None:
            reading = {"encoding": arguments.encoding, "lowercase": arguments.lowercase}
            said |= {"lowercase": arguments.lowercase}
            said["vocabulary"] = encoded(open_corpus(arguments.corpus, **reading)).vocabulary.characters
        make_run(source, target, said)
    tell(f"written: {target}")


if __name__ == "__main__":
    run_command(main)
