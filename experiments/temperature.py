"""Measure how the softmax temperature changes a trained model's text, compared with human text.

    scripts/run temperature RUN... [--temperatures T...] [--prompts N] [--length N]

Takes prompts from the held-out text, at even distances, and lets the model continue each at every temperature, all with
the same random numbers. What really follows a prompt is the human text. Measures each text's words, what it copies, how
it repeats itself, and how rich and how likely it is, and prints a page: which of the notebooks' claims about
temperature hold; for each measure its human value, the temperature that comes nearest, and those that it does not tell
from human text; and the beginning of a text at each temperature. Intervals are 95 %, from a bootstrap over prompts. Of
a long training text, the last 4,000,000 characters are compared with.

The page (temperature.md), its figure (temperature.svg, .png), every mean with its interval (temperature.csv) and all
texts (temperature_samples.jsonl) go into the run's figures/, or into --output.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from charlm_jax.choices import MAX_EVALUATED, MIN_TEXTS, Checkpoint, Sampler
from charlm_jax.errors import InputError, require, require_count, require_seed, require_temperatures
from charlm_jax.runs.command_line import folded, make_each, run_command, tell

if TYPE_CHECKING:  # what --help can do without
    import numpy as np

    from charlm_jax.runs.directory import RunDirectory
    from charlm_jax.runs.trained import LoadedRun


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs, or directories that hold runs and grids; each run is measured by itself."""
    temperatures: tuple[float, ...] = tuple(round(0.1 * step, 1) for step in range(1, 21))
    """Softmax temperatures."""
    prompts: int = 32
    """Texts at each temperature."""
    length: int = 400
    """Characters of each text."""
    text: str | None = None
    """Human text for prompts and comparison: a file, a folder or a corpus's name; the held-out text if not given."""
    encoding: str | None = None
    """Encoding of the text's bytes; UTF-8, or a named corpus's own, if not given."""
    sampler: Sampler | None = None
    """Predict from the last window alone (windowed) or carry the state on (stateful); as in the run if not given."""
    checkpoint: Checkpoint = "best"
    """Which model: the best by held-out loss (the newest if nothing is held out), or the newest."""
    output: Path | None = None
    """Folder for the results of a single run; the run's figures/ if not given."""
    devices: int | None = None
    """Devices (on a CPU, cores) to split the texts over; if not given, as many as get at least eight texts each."""
    seed: int = 1
    """Seed of the texts."""

    def __post_init__(self) -> None:
        require("--temperatures", "none", bool(self.temperatures), "at least one number")
        require_temperatures("--temperatures", self.temperatures)
        require("--encoding", self.encoding, not self.encoding or self.text is not None, "given with --text")
        require_count("--prompts", self.prompts)
        least = f"at least {MIN_TEXTS}, since bootstrap intervals over fewer are too narrow"
        require("--prompts", self.prompts, self.prompts >= MIN_TEXTS, least)
        require_count("--length", self.length)
        require_count("--devices", self.devices)
        require_seed(self.seed)


def main(flags: Sequence[str]) -> None:
    """Measure each run, print and draw."""
    arguments = tyro.cli(Arguments, prog="scripts/run temperature", description=folded(__doc__), args=flags)
    from charlm_jax.runs.directory import find_runs

    runs = find_runs(*arguments.runs)
    require("--output", str(arguments.output), arguments.output is None or len(runs) == 1, "omitted with several runs")
    make_each(lambda run: _measure(run, arguments), runs)


def _measure(run: "RunDirectory", arguments: Arguments) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from charlm_jax.analysis.baselines import LIMIT
    from charlm_jax.analysis.calibration import calibrate
    from charlm_jax.analysis.temperature_page import plot_sweep, sweep_page, sweep_table
    from charlm_jax.analysis.temperature_sweep import Sweep
    from charlm_jax.generation.generate import generate, stream_keys
    from charlm_jax.runs.devices import keep_compiled_programs, open_mesh
    from charlm_jax.runs.encoding import encoded, open_corpus, require_known
    from charlm_jax.runs.files import save_pictures, write_atomically, write_table
    from charlm_jax.runs.trained import load_text, read_run, require_held_out, require_prediction

    mesh = open_mesh(arguments.devices, rows=arguments.prompts * len(arguments.temperatures))
    loaded = read_run(run, arguments.checkpoint)
    chosen, vocabulary = loaded.configuration, loaded.vocabulary
    keep_compiled_programs()
    training, human = load_text(run)
    if arguments.text is None:
        require_held_out(run, human)
    else:
        human = encoded(
            open_corpus(arguments.text, encoding=arguments.encoding, lowercase=chosen.lowercase), vocabulary
        ).ids
    require_known(human, vocabulary)
    window, length, count = chosen.window, arguments.length, arguments.prompts
    starts, note = _places(len(human), window, length, count)
    if len(training) > LIMIT:
        training = training[-LIMIT:]
        note += f" Texts are compared with the last {LIMIT:,} characters of the training text."
    scored = jnp.array(human[:MAX_EVALUATED])
    calibration = calibrate(loaded.model, scored, mesh, window=window, stride=1)
    loss, uniform = calibration.losses[calibration.at_one], np.log(len(vocabulary))
    require_prediction(loaded, float(loss))
    if loss > uniform:
        tell(
            f"warning: in {run.path} the human text costs {loss:.4g} nats per character, more than uniform guessing "
            f"({uniform:.4f}); the model has not learned, or has learned another kind of text"
        )
    prompts = [human[start : start + window] for start in starts]
    continued = np.stack([human[start + window : start + window + length] for start in starts])

    temperatures = np.unique(np.array(arguments.temperatures, np.float32))
    sampler = arguments.sampler or chosen.sampler
    names = [vocabulary.decode(prompt) for prompt in prompts]
    # A text's random numbers depend on its prompt, not on its temperature.
    keys = stream_keys(jax.random.key(arguments.seed), names, [1.0] * count)
    generated = generate(
        loaded.model,
        prompts * len(temperatures),
        np.repeat(temperatures, count).tolist(),
        jnp.tile(keys, len(temperatures)),
        mesh,
        length=length,
        sampler=sampler,
        window=window,
    )
    ids = np.concatenate([continued, generated])
    measured = _measures(loaded, training, prompts * (1 + len(temperatures)), ids, sampler)
    tables = {name: values.reshape(1 + len(temperatures), count) for name, values in measured.items()}
    sweep = Sweep(
        temperatures.astype(float).round(6),
        {name: table[1:] for name, table in tables.items()},
        {name: table[0] for name, table in tables.items()},
    )

    texts = [vocabulary.decode(row) for row in generated]
    title = f"{run.path.resolve().name}, step {loaded.step:,}, {sampler}: {count} texts of {length} characters"
    page = sweep_page(sweep, calibration, texts[::count], title=title, note=note)
    print(page, flush=True)
    folder = arguments.output or run.figures
    save_pictures(plot_sweep(sweep, calibration, title=title), folder, "temperature")
    write_atomically(folder / "temperature.md", f"{page}\n![Measures against temperature](temperature.svg)\n".encode())
    header, rows = sweep_table(sweep)
    write_table(folder / "temperature.csv", header, rows, [f"{title}. Intervals: 95 %, over prompts.{note}"])
    drawn = {"epoch": _epoch(run, loaded.step), "step": loaded.step, "sampler": sampler}
    places = [(float(temperature), name) for temperature in sweep.temperatures for name in names]
    lines = [
        json.dumps({**drawn, "temperature": temperature, "prompt": prompt, "text": text}) + "\n"
        for (temperature, prompt), text in zip(places, texts, strict=True)
    ]
    write_atomically(folder / "temperature_samples.jsonl", "".join(lines).encode())
    tell(f"results: {folder / 'temperature.md'}")


def _places(characters: int, window: int, length: int, count: int) -> tuple["np.ndarray", str]:
    """Return where the prompts start in the human text, and a caveat if the human texts overlap."""
    import numpy as np

    last = characters - window - length
    if last < count:
        raise InputError(
            f"the human text has {characters:,} characters, too few for {count} prompts of {window} with {length} "
            "after each; name a longer one with --text FILE, or give a smaller --length"
        )
    note = ""
    if last < (count - 1) * (window + length):
        fewer = "fewer --prompts, or " if count > MIN_TEXTS else ""
        note = f" They are too narrow, because the human texts overlap: give {fewer}a longer --text."
    return np.linspace(0, last, count).astype(int), note


def _measures(
    loaded: "LoadedRun", training: "np.ndarray", prompts: list["np.ndarray"], ids: "np.ndarray", sampler: Sampler
) -> dict[str, "np.ndarray"]:
    """Return every measure of the texts, a number each: their statistics, and how likely they are."""
    import numpy as np

    from charlm_jax.analysis.baselines import ORDER, KneserNey
    from charlm_jax.analysis.text_statistics import Reference, text_statistics
    from charlm_jax.generation.surprisal import surprisal

    vocabulary, window = loaded.vocabulary, loaded.configuration.window
    measured = text_statistics(Reference.of(vocabulary.decode(training)), [vocabulary.decode(row) for row in ids])
    likely = surprisal(loaded.model, prompts, ids, top=1, sampler=sampler, window=window)
    measured["model_nats"] = likely.nats.mean(axis=1, dtype=float)
    ngram = KneserNey.fit(training, len(vocabulary), ORDER)
    measured["ngram_nats"] = np.array(
        [ngram.losses(np.concatenate([prompt, row]))[window:].mean() for prompt, row in zip(prompts, ids, strict=True)]
    )
    return measured


def _epoch(run: "RunDirectory", step: int) -> int:
    """Return the epoch whose last step this is; 0 if none ended there."""
    from charlm_jax.runs.records import read_records

    return next((record["epoch"] for record in read_records(run.metrics) if record["step"] == step), 0)


if __name__ == "__main__":
    run_command(main)
