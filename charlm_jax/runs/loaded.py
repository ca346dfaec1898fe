"""Runs in Python: train one, or load one; read what it measured, write with its model, and score text."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from charlm_jax.analysis.reader import Reading
from charlm_jax.choices import Checkpoint
from charlm_jax.errors import require_count, require_seed, require_temperatures
from charlm_jax.generation.generate import generate, stream_keys
from charlm_jax.generation.surprise import surprise
from charlm_jax.runs.assembly import prepare
from charlm_jax.runs.command_line import absolute_places
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.devices import open_mesh, use_every_core
from charlm_jax.runs.directory import RunDirectory, open_run
from charlm_jax.runs.records import read_records
from charlm_jax.runs.train import train
from charlm_jax.runs.trained import TrainedModel, load_model


class Metrics(NamedTuple):
    """What a run measured, an entry an epoch.

    Attributes:
        epoch: its number, from 1.
        step: updates since the start of the run.
        training_loss: nats per character, the mean over the windows while the model learned.
        held_out_loss: nats per character of the held-out text after the epoch; nan where none is held out.
        seconds: of training; nan for an epoch that a stop divided.
    """

    epoch: Int[np.ndarray, " epoch"]
    step: Int[np.ndarray, " epoch"]
    training_loss: Float[np.ndarray, " epoch"]
    held_out_loss: Float[np.ndarray, " epoch"]
    seconds: Float[np.ndarray, " epoch"]


@dataclass(frozen=True)
class LoadedRun(TrainedModel):
    """A run's model, and what the run measured.

    Attributes:
        path: of its directory.
        metrics: of all its epochs, those after the model's `step` among them.
    """

    path: Path
    metrics: Metrics

    def generate(self, prompt: str = "", *, temperature: float = 0.5, length: int = 400, seed: int = 0) -> str:
        """Return what follows a prompt, as `scripts/run sample` writes it.

        Args:
            prompt: any text; "" starts from nothing.
            temperature: 0 always takes the likeliest character, 1 draws from the model as it is.
            length: characters to generate.
            seed: of the draws; the same call returns the same text.

        Raises:
            InputError: the model does not know a character of the prompt, or a number cannot be used.
        """
        require_temperatures("temperature", [temperature])
        require_count("length", length)
        require_seed(seed)
        (ids,) = generate(
            self.network,
            self.parameters,
            [self.vocabulary.encode(prompt, "prompt")],
            [temperature],
            stream_keys(jax.random.key(seed), [prompt], [temperature]),
            open_mesh(None, rows=1),
            sampler=self.configuration.sampler,
            window=self.configuration.window,
            length=length,
        )
        return self.vocabulary.decode(ids)

    def surprise(self, text: str, *, prompt: str = "", top: int = 1) -> Reading:
        """Return the nats that each character of a text costs, and which characters were the likeliest in its place.

        The mean of the nats is the text's loss; it is read as the run's sampler would have written it after the prompt,
        and `top` characters are named at each place.

        Raises:
            InputError: the model does not know a character.
        """
        require_count("top", top)
        nats, likeliest, probabilities = surprise(
            self.network,
            self.parameters,
            [self.vocabulary.encode(prompt, "prompt")],
            self.vocabulary.encode(text)[None],
            sampler=self.configuration.sampler,
            window=self.configuration.window,
            top=top,
        )
        return Reading(nats[0], self.vocabulary.decode(likeliest.ravel()), probabilities[0])


def load_run(path: str | Path, checkpoint: Checkpoint = "best") -> LoadedRun:
    """Return a run's model, `best` by held-out loss or `newest`, and what the run measured.

    Raises:
        InputError: there is no such run, it has no model yet, or a file of it cannot be read.
    """
    use_every_core()  # before JAX is used, for whatever comes after
    run = open_run(Path(path))
    return LoadedRun(**vars(load_model(run, checkpoint)), path=run.path, metrics=_metrics(run))


def train_run(configuration: Configuration, path: str | Path, *, devices: int | None = None) -> LoadedRun:
    """Train in a run directory, with a progress bar an epoch, and return the run with its best model.

    If the directory holds this run already, it goes on, or is returned at once if it is finished: the same call again
    resumes what an interrupt stopped. Batches are split over `devices`, or all that get a few windows each.

    Raises:
        InputError: the text, the directory or a number cannot be used, or the directory holds another run.
        DivergedError: training went astray; the last good state is saved.
    """
    require_count("devices", devices)
    job = prepare(absolute_places(configuration), devices, Path(path))
    for _ in train(job, Path(path)):
        pass
    return load_run(path)


def _metrics(run: RunDirectory) -> Metrics:
    records = read_records(run.metrics)
    held_out = {record["epoch"]: record["held_out_loss"] for record in records if record.get("event") == "evaluation"}
    epochs = [record for record in records if record.get("event") == "epoch"]
    epoch, step, training_loss, seconds = (
        np.array([record[name] for record in epochs], kind)  # where None is nan
        for name, kind in (("epoch", int), ("step", int), ("training_loss", float), ("seconds", float))
    )
    held_out_loss = np.array([held_out.get(number) for number in epoch], float)
    return Metrics(epoch, step, training_loss, held_out_loss, seconds)
