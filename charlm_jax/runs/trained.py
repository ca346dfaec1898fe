"""What a run leaves behind: a model that writes and scores text, its measurements, and the text it learned from."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Integer

from charlm_jax.analysis.reader import Reading
from charlm_jax.choices import Checkpoint
from charlm_jax.data.corpus import NAMES
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.data.windows import split_held_out
from charlm_jax.errors import DamagedError, InputError, require, require_count, require_seed, require_temperatures
from charlm_jax.generation.generate import generate, stream_keys
from charlm_jax.generation.surprisal import surprisal
from charlm_jax.model.initializers import parameter_shapes
from charlm_jax.model.network import CharacterLSTM, Model
from charlm_jax.runs.checkpoints import Snapshot, newest_state
from charlm_jax.runs.command_line import tell
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.devices import open_mesh, require_devices, use_every_core
from charlm_jax.runs.directory import RunDirectory, open_run
from charlm_jax.runs.encoding import encoded, open_corpus
from charlm_jax.runs.records import read_records


class Metrics(NamedTuple):
    """A run's measurements, one entry per epoch.

    Attributes:
        epoch: its number, from 1.
        step: updates since the start of the run.
        training_loss: nats per character, the mean over the epoch's windows, each as it was learned from.
        held_out_loss: nats per character of the held-out text after the epoch; nan if nothing is held out.
        seconds: training time; nan for an epoch that was interrupted.
    """

    epoch: Int[np.ndarray, " epoch"]
    step: Int[np.ndarray, " epoch"]
    training_loss: Float[np.ndarray, " epoch"]
    held_out_loss: Float[np.ndarray, " epoch"]
    seconds: Float[np.ndarray, " epoch"]


@dataclass(frozen=True)
class LoadedRun:
    """A run's model and measurements.

    Attributes:
        path: the run's directory.
        configuration: the run's.
        model: the model as of `step`.
        vocabulary: the characters that it knows.
        step: updates that the model has had since the start of the run.
    """

    path: Path
    configuration: Configuration
    model: Model
    vocabulary: Vocabulary
    step: int

    @cached_property
    def metrics(self) -> Metrics:
        """The measurements of all epochs, including those after `step`, as of loading."""
        records = read_records(RunDirectory(self.path).metrics)
        epochs = [record for record in records if record["event"] == "epoch"]
        held_out = {record["epoch"]: record["held_out_loss"] for record in records if record["event"] == "evaluation"}
        return Metrics(
            epoch=np.array([record["epoch"] for record in epochs], int),
            step=np.array([record["step"] for record in epochs], int),
            training_loss=np.array([record["training_loss"] for record in epochs], float),
            held_out_loss=np.array([held_out.get(record["epoch"]) for record in epochs], float),  # None becomes nan
            seconds=np.array([record["seconds"] for record in epochs], float),
        )

    def generate(
        self,
        prompt: str = "",
        *,
        temperature: float = 0.5,
        length: int = 400,
        seed: int = 0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> str:
        """Return a continuation of a prompt, as `scripts/run sample` writes it.

        Args:
            prompt: any text; "" starts from nothing.
            temperature: 0 always takes the likeliest character, 1 draws from the model's own distribution.
            length: characters to generate.
            seed: of the draws; the same call returns the same text.
            top_k: how many of the likeliest characters may be drawn; None means all.
            top_p: the share of the mass from which to draw, above 0; None means all.

        Raises:
            InputError: the model does not know a character of the prompt, or a number cannot be used.
        """
        require_temperatures("temperature", [temperature])
        require_count("length", length)
        require_seed(seed)
        require_count("top_k", top_k)
        require("top_p", top_p, top_p is None or 0 < top_p <= 1, "above 0 and at most 1")
        (ids,) = generate(
            self.model,
            [self.vocabulary.encode(prompt, "prompt")],
            [temperature],
            stream_keys(jax.random.key(seed), [prompt], [temperature]),
            open_mesh(None, rows=1),
            sampler=self.configuration.sampler,
            window=self.configuration.window,
            length=length,
            top_k=top_k,
            top_p=top_p,
        )
        return self.vocabulary.decode(ids)

    def surprisal(self, text: str, *, prompt: str = "", top: int = 1) -> Reading:
        """Return the surprisal of each character of a text, in nats, and the likeliest characters in its place.

        The text is read as the run's sampler would have written it after the prompt. The mean of the nats is its loss.
        At each place the `top` likeliest characters are named.

        Raises:
            InputError: the model does not know a character, or `top` cannot be used.
        """
        require_count("top", top)
        nats, likeliest, probabilities = surprisal(
            self.model,
            [self.vocabulary.encode(prompt, "prompt")],
            self.vocabulary.encode(text)[None],
            sampler=self.configuration.sampler,
            window=self.configuration.window,
            top=top,
        )
        return Reading(nats[0], self.vocabulary.decode(likeliest.ravel()), probabilities[0])


def load_run(path: str | Path, checkpoint: Checkpoint = "best") -> LoadedRun:
    """Load the run in a directory, with its model as `read_run` returns it.

    Raises:
        InputError: there is no such run, it has no model yet, or a file of it cannot be read.
    """
    use_every_core()  # before JAX is used, for whatever comes after
    run = read_run(open_run(Path(path)), checkpoint)
    _ = run.metrics  # read now, so that later changes to the directory do not matter
    return run


def read_run(run: RunDirectory, checkpoint: Checkpoint = "best") -> LoadedRun:
    """Return a run with its model, the `best` by held-out loss or the `newest`, on one device.

    If nothing is held out, the best is the newest. If the best is missing or damaged, a warning says so, and the newest
    intact one is used.

    Raises:
        InputError: the run has no checkpoint yet, or no intact one.
    """
    configuration = run.configuration()
    vocabulary = run.vocabulary()
    like, identity = snapshot_shapes(run), run.identity()

    def spoiled(path: Path, error: DamagedError) -> None:
        tell(f"the state {str(path)!r} is damaged: {error}; another is used")

    saved = None
    if checkpoint == "best" and configuration.held_out_fraction:
        try:
            saved = newest_state([run.best], like, identity, spoiled)
            if saved is None:
                tell(f"{str(run.best)!r} holds no model; the newest is used")
        except InputError as error:
            tell(f"{error}; the newest model is used")
    saved = saved or newest_state(run.states, like, identity, spoiled)
    if saved is None:
        raise InputError(f"the run {str(run.path)!r} has no checkpoint yet; let it finish an epoch first")
    return LoadedRun(run.path, configuration, saved.model, vocabulary, int(saved.step))


def require_held_out(run: RunDirectory, text: Integer[np.ndarray, " held_out"]) -> None:
    """Raise an InputError if a run held out no text."""
    if not len(text):
        raise InputError(f"the run {str(run.path)!r} held out no text; name one with --text FILE")


def require_prediction(run: LoadedRun, loss: float) -> None:
    """Raise an InputError unless a model's loss on a text, in nats per character, is finite."""
    if not math.isfinite(loss):
        raise InputError(
            f"the model of {str(run.path)!r}, at step {run.step:,}, predicts no text (its loss is {loss:g} nats per "
            "character), as training diverged; train again with a smaller --learning-rate or with --clip 1"
        )


def snapshot_shapes(run: RunDirectory) -> Snapshot:
    """Return a run's `Snapshot` with shapes and types in place of arrays."""
    require_devices()
    network = make_network(run.configuration(), run.vocabulary())
    return jax.eval_shape(lambda model: Snapshot(jnp.int32(0), model), Model(network, parameter_shapes(network)))


def make_network(configuration: Configuration, vocabulary: Vocabulary) -> CharacterLSTM:
    """Return the network that a configuration describes."""
    return CharacterLSTM(
        vocabulary_size=len(vocabulary),
        hidden_size=configuration.hidden_size,
        layers=configuration.layers,
        gate_activation=configuration.gate_activation,
        dropout=configuration.dropout,
        weight_dropout=configuration.weight_dropout,
        embedding_size=configuration.embedding_size,
        precision=configuration.precision,
        recurrence=configuration.recurrence,
    )


def load_text(run: RunDirectory) -> tuple[Integer[np.ndarray, " training"], Integer[np.ndarray, " held_out"]]:
    """Return the ids of the text that a run learned from, and of what it held out, which may be nothing.

    Raises:
        InputError: the run's corpus is not known, cannot be read, or has changed.
    """
    chosen, recorded = run.configuration(), run.provenance()["corpus"]
    if recorded["sha256"] is None:
        raise InputError(
            f"the text that the model of {str(run.path)!r} learned from is unknown, as it is from another library; "
            "`sample` and `evaluate --text FILE` do without it"
        )
    if chosen.corpus not in NAMES and not Path(chosen.corpus).exists():
        raise InputError(
            f"the text that the run {str(run.path)!r} learned from is missing from {chosen.corpus!r}; restore it; "
            "`sample` and `evaluate --text FILE` do without it"
        )
    corpus = open_corpus(chosen.corpus, encoding=chosen.encoding, lowercase=chosen.lowercase)
    if corpus.sha256 != recorded["sha256"]:
        raise InputError(
            f"the corpus {corpus.name!r} is not the text that the run {str(run.path)!r} learned from; "
            "restore that text; `sample` and `evaluate --text FILE` do without it"
        )
    ids = encoded(corpus, run.vocabulary()).ids
    return split_held_out(ids, held_out_fraction=chosen.held_out_fraction, window=chosen.window)
