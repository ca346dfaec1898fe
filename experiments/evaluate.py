"""Score a text with a trained model: its own held-out text, or any other.

    scripts/run evaluate RUN [--text FILE] [--figure FILE]

Prints one JSON object. `loss_nats` is the mean negative log-likelihood of the scored characters, `bits_per_character`
is the same in bits, and `characters` is how many were scored: the one after every window of the text, each window read
from the zero state. `stateful` holds the same for the whole text read as one stream, where every character but the
first is scored. `loss_by_position` is the mean loss given the 1, 2, ... characters before: how much the context helps.
A run's own evaluations, in its metrics.jsonl, score the windows at its own --stride.
`calibration` gives the temperature with the lowest loss, and how far confidence and accuracy are apart on average there
and at temperature 1. `baselines` are the nats per character of the same text under models that need next to no
training, given the run's training text; of long texts they use the last 4,000,000 characters of the training text and
the first 4,000,000 of this one. --figure draws it all. A text may also be an encoded one (see `encode`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from charlm_jax.choices import MAX_EVALUATED, Checkpoint
from charlm_jax.errors import InputError, require, require_count
from charlm_jax.runs.command_line import folded, require_file, run_command, tell


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    run: tyro.conf.Positional[Path]
    """Directory of a run."""
    text: str | None = None
    """Text to score: a file, a folder or a corpus's name; the run's held-out text if not given."""
    encoding: str | None = None
    """Encoding of the text's bytes; UTF-8, or a named corpus's own, if not given."""
    checkpoint: Checkpoint = "best"
    """Which model: the best by held-out loss (the newest if nothing is held out), or the newest."""
    stride: int = 1
    """Characters from one window's start to the next; 1 scores every character that has a window before it."""
    characters: int = MAX_EVALUATED
    """Characters of a long text to score, from its beginning."""
    figure: Path | None = None
    """Where to draw the figure, as SVG or PNG by its ending."""
    devices: int | None = None
    """Devices to split the windows over; if not given, all (on a CPU, one per core), but at most 32."""

    def __post_init__(self) -> None:
        require_count("--stride", self.stride)
        require_count("--characters", self.characters)
        require_count("--devices", self.devices)
        require_file("--figure", self.figure, ".svg", ".png")
        require("--encoding", self.encoding, not self.encoding or self.text is not None, "given with --text")


def main(flags: Sequence[str]) -> None:
    """Evaluate, print and draw."""
    arguments = tyro.cli(Arguments, prog="scripts/run evaluate", description=folded(__doc__), args=flags)

    from charlm_jax.runs.directory import open_run

    run = open_run(arguments.run)  # before JAX is loaded, so that a wrong name fails at once

    import jax.numpy as jnp

    from charlm_jax.analysis.baselines import baselines
    from charlm_jax.analysis.calibration import calibrate
    from charlm_jax.analysis.evaluation_figure import plot_evaluation
    from charlm_jax.learning.evaluation import BATCH_SIZE, Evaluation, evaluate, evaluate_stream, loss_by_position
    from charlm_jax.runs.devices import keep_compiled_programs, open_mesh
    from charlm_jax.runs.encoding import encoded, open_corpus, require_known
    from charlm_jax.runs.files import save_picture
    from charlm_jax.runs.trained import load_text, read_run, require_held_out, require_prediction

    mesh = open_mesh(arguments.devices, rows=BATCH_SIZE)
    loaded = read_run(run, arguments.checkpoint)
    keep_compiled_programs()
    window, stride = loaded.configuration.window, arguments.stride
    training = None
    if arguments.text is None:
        training, text = load_text(run)
        require_held_out(run, text)
    else:
        lowercase = loaded.configuration.lowercase
        text = open_corpus(arguments.text, encoding=arguments.encoding, lowercase=lowercase)
        text = encoded(text, loaded.vocabulary).ids
        try:
            training, _ = load_text(run)
        except InputError as error:
            tell(f"without baselines: {error}")
    if len(text) > arguments.characters:
        tell(f"the first {arguments.characters:,} of the text's {len(text):,} characters are scored (--characters)")
        text = text[: arguments.characters]
    if len(text) <= window:
        raise InputError(
            f"the text has {len(text)} characters to score, but a window and its target need {window + 1}; "
            "name a longer one with --text FILE, or raise --characters"
        )
    require_known(text, loaded.vocabulary)
    ids, windows = jnp.array(text), {"window": window, "stride": stride}
    windowed = evaluate(loaded.model, ids, mesh, **windows)
    require_prediction(loaded, windowed.loss_nats)
    stream = evaluate_stream(loaded.model, text)
    positions = loss_by_position(loaded.model, ids, mesh, **windows)
    calibration = calibrate(loaded.model, ids, mesh, window=window, stride=stride)
    others = {} if training is None else baselines(training, text, len(loaded.vocabulary), loaded.vocabulary.decode)

    def record(evaluation: Evaluation) -> dict[str, Any]:
        return {name: getattr(evaluation, name) for name in ("loss_nats", "bits_per_character", "characters")}

    best, at_one = calibration.best, calibration.at_one
    if calibration.best_at_edge:
        tell(f"the loss is lowest at temperature {calibration.temperatures[best]:g}, the edge of those tried")
    result = {
        **record(windowed),
        **windows,
        "step": loaded.step,
        "stateful": record(stream),
        "baselines": others,
        "calibration": {
            "best_temperature": float(calibration.temperatures[best]),
            "loss_nats_at_best": float(calibration.losses[best]),
            "expected_calibration_error": float(calibration.expected_errors[at_one]),
            "expected_calibration_error_at_best": float(calibration.expected_errors[best]),
            "temperatures": calibration.temperatures.tolist(),
            "loss_nats": calibration.losses.tolist(),
        },
        "loss_by_position": positions.tolist(),
    }
    print(json.dumps(result, allow_nan=False), flush=True)
    if arguments.figure is not None:
        subject = "held-out text" if arguments.text is None else Path(arguments.text).name
        title = f"{run.path.resolve().name}, step {loaded.step:,}: {subject}"
        save_picture(plot_evaluation(positions, stream.loss_nats, others, calibration, title=title), arguments.figure)
        tell(f"figure: {arguments.figure}")


if __name__ == "__main__":
    run_command(main)
