"""Write text with a trained model.

    scripts/run sample RUN [flags]

Every combination of prompt, temperature and number gives one text; up to 256 are generated at once. Standard output
holds only the prompts with their continuations or, with --json, one JSON object per line.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import tyro
from tqdm import tqdm

from charlm_jax.choices import Checkpoint, Sampler
from charlm_jax.errors import InputError, require, require_count, require_seed, require_temperatures
from charlm_jax.runs.command_line import folded, run_command, tell

# Characters generated at a time: few enough to flow on a terminal, and elsewhere to show a long text's progress.
_LIVE_PIECE, _PIECE = 25, 2000
_PORTION = 256  # texts generated at a time, and then printed


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    run: tyro.conf.Positional[Path]
    """Directory of a run."""
    checkpoint: Checkpoint = "best"
    """Which model: the best by held-out loss (the newest if nothing is held out), or the newest."""
    prompt: tuple[str, ...] | None = None
    """Texts to continue, of any length, "" included; the run's last prompt if not given."""
    temperature: tuple[float, ...] = (0.5,)
    """Softmax temperatures: 0 always takes the likeliest character, 1 draws from the model as it is."""
    length: int = 400
    """Characters to generate."""
    count: int = 1
    """Texts for each prompt and temperature."""
    sampler: Sampler | None = None
    """Predict from the last window alone (windowed) or carry the state on (stateful); as in the run if not given."""
    greedy: bool = False
    """Always take the likeliest character; the same as --temperature 0."""
    top_k: int | None = None
    """Draw from the K likeliest characters only."""
    top_p: float | None = None
    """Draw from the smallest set of characters that holds this share of the probability mass."""
    seed: int = 0
    """Seed of the draws."""
    devices: int | None = None
    """Devices to split the texts over; if not given, as many as get at least eight texts each."""
    json: bool = False
    """Print JSON objects with prompt, temperature, number and text."""

    def __post_init__(self) -> None:
        for flag, value in (("--length", self.length), ("--count", self.count), ("--top-k", self.top_k)):
            require_count(flag, value)
        require_count("--devices", self.devices)
        require("--top-p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        require_seed(self.seed)
        require("--prompt", "without a text", self.prompt != (), 'followed by one, which may be ""')
        require("--temperature", "without a number", self.temperature != (), "followed by one")
        require_temperatures("--temperature", self.temperature)


def main(flags: Sequence[str]) -> None:
    """Generate, and print."""
    arguments = tyro.cli(Arguments, prog="scripts/run sample", description=folded(__doc__), args=flags)

    from charlm_jax.runs.directory import open_run

    run = open_run(arguments.run)  # before JAX is loaded, so that a wrong name fails at once

    import jax
    import numpy as np

    from charlm_jax.generation.generate import generate_pieces, stream_keys
    from charlm_jax.runs.devices import keep_compiled_programs, open_mesh
    from charlm_jax.runs.records import read_records
    from charlm_jax.runs.trained import read_run

    prompts = arguments.prompt
    if prompts is None:
        samples = read_records(run.samples)
        if not samples:
            raise InputError(
                f"the run {str(run.path)!r} has no text to take a prompt from; give one with --prompt TEXT"
            )
        prompts = (samples[-1]["prompt"],)
    temperatures = (0.0,) if arguments.greedy else arguments.temperature
    streams = product(prompts, temperatures, range(arguments.count))
    total = len(prompts) * len(temperatures) * arguments.count
    portion = _share(total, _PORTION)
    mesh = open_mesh(arguments.devices, rows=portion)
    loaded = read_run(run, arguments.checkpoint)
    keep_compiled_programs()
    encoded = {prompt: loaded.vocabulary.encode(prompt, "prompt") for prompt in prompts}
    key, seen = jax.random.key(arguments.seed), Counter[tuple[str, float]]()
    live = sys.stdout.isatty() and not arguments.json

    def head(stream: tuple[str, float, int]) -> None:
        prompt, temperature, number = stream
        if total > 1:
            tell(f"------ temperature {temperature:g}, number {number}, prompt {prompt!r}")
        print(prompt, end="", flush=True)

    bar = tqdm(total=total * arguments.length, unit=" characters", unit_scale=True, leave=False, disable=live or None)
    while together := list(islice(streams, portion)):
        prompt_of_stream, temperature_of_stream, _ = zip(*together, strict=True)
        pieces = generate_pieces(
            loaded.model,
            [encoded[prompt] for prompt in prompt_of_stream],
            temperature_of_stream,
            stream_keys(key, prompt_of_stream, temperature_of_stream, seen),
            mesh,
            sampler=arguments.sampler or loaded.configuration.sampler,
            window=loaded.configuration.window,
            length=arguments.length,
            piece=_share(arguments.length, _LIVE_PIECE if live else _PIECE),
            top_k=arguments.top_k,
            top_p=arguments.top_p,
        )
        # On a terminal the first text appears as it is generated; the others, generated beside it, follow.
        done = []
        for ids in pieces:
            bar.update(ids.size)
            if live:
                if not done:
                    head(together[0])
                print(loaded.vocabulary.decode(ids[0]), end="", flush=True)
            done.append(ids)
        bar.clear()
        texts = [loaded.vocabulary.decode(row) for row in np.concatenate(done, axis=1)]
        for place, (stream, text) in enumerate(zip(together, texts, strict=True)):
            prompt, temperature, number = stream
            if arguments.json:
                print(json.dumps({"prompt": prompt, "temperature": temperature, "number": number, "text": text}))
            elif live and place == 0:
                print()
            else:
                head(stream)
                print(text)
    bar.close()


def _share(total: int, most: int) -> int:
    """Return how many to take at a time, at most `most`, so that all shares are about equal."""
    return -(-total // -(-total // most))


if __name__ == "__main__":
    run_command(main)
