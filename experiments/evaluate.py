"""Score a text with a trained model: its own held-out text, or any other.

    scripts/run evaluate RUN [--text FILE]

Prints one JSON object: `loss_nats`, the mean negative log-likelihood of the scored characters; the same in
`bits_per_character`; and `characters`, how many were scored. A character is scored after every window of the text, each
window read from the zero state, so the first window's characters are not.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from charlm_jax.errors import InputError, require, require_count
from charlm_jax.runs.command_line import exit_codes


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    run: tyro.conf.Positional[Path]
    """Directory of a run."""
    text: str | None = None
    """Text to score: a file, a folder or a corpus's name; the run's held-out text if not given."""
    encoding: str | None = None
    """Encoding of the text's bytes; UTF-8, or a named corpus's own, if not given."""
    stride: int | None = None
    """Characters from one window's start to the next one's: 1 scores every character; the run's if not given."""
    devices: int | None = None
    """Devices to split the windows over; all if not given (on a CPU one a core)."""

    def __post_init__(self) -> None:
        require_count("--stride", self.stride)
        require_count("--devices", self.devices)
        require("--encoding", self.encoding, not self.encoding or self.text is not None, "with a --text to decode")


def main(flags: Sequence[str]) -> None:
    """Evaluate, and print."""
    arguments = tyro.cli(Arguments, prog="scripts/run evaluate", description=__doc__, args=flags)

    import jax.numpy as jnp

    from charlm_jax.data.corpus import load_corpus
    from charlm_jax.learning.evaluation import BATCH_SIZE, evaluate
    from charlm_jax.runs.assembly import load_held_out, load_model
    from charlm_jax.runs.devices import open_mesh
    from charlm_jax.runs.directory import open_run

    run = open_run(arguments.run)
    mesh = open_mesh(arguments.devices, rows=BATCH_SIZE)
    model = load_model(run)
    window = model.configuration.window
    if arguments.text is None:
        ids = load_held_out(run)
    else:
        lowercase = model.configuration.lowercase
        corpus = load_corpus(arguments.text, encoding=arguments.encoding, lowercase=lowercase)
        ids = model.vocabulary.encode(corpus.text, f"text {corpus.name!r}")
        if len(ids) <= window:
            raise InputError(
                f"the text {corpus.name!r} has {len(ids)} characters, but a window and its target need {window + 1}"
            )
    result = evaluate(
        model.network,
        model.parameters,
        jnp.array(ids),
        mesh,
        window=window,
        stride=arguments.stride or model.configuration.stride,
    )
    record = {"loss_nats": result.loss_nats, "bits_per_character": result.bits_per_character}
    print(json.dumps({**record, "characters": result.characters}))


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
