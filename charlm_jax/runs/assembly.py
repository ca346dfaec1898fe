"""From a configuration to the objects of the other rooms: before training, and from a run that has trained."""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Integer

from charlm_jax.data.corpus import Corpus, load_corpus
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.data.windows import count_windows, split_held_out
from charlm_jax.errors import InputError
from charlm_jax.keys import Key, fold_text
from charlm_jax.learning.optimizer import make_optimizer
from charlm_jax.learning.training import TrainingState, initial_state, steps_per_epoch
from charlm_jax.mesh import data_mesh
from charlm_jax.model.initializers import Parameters, flax_parameters, initial_parameters
from charlm_jax.model.network import CharacterLSTM
from charlm_jax.runs.checkpoints import open_checkpoints, restore_state
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.devices import describe_devices, open_mesh, set_up
from charlm_jax.runs.directory import RunDirectory


@dataclass(frozen=True)
class Job:
    """What training needs, ready to start.

    Attributes:
        configuration: every choice.
        corpus: the text.
        vocabulary: its characters.
        training_ids: the beginning of the text, to train on.
        held_out_ids: its end, to evaluate on; empty if nothing is held out.
        network: the model.
        optimizer: the update rule.
        key: the run's root key.
        mesh: the devices that it runs on.
        steps_per_epoch: updates in an epoch.
    """

    configuration: Configuration
    corpus: Corpus
    vocabulary: Vocabulary
    training_ids: Integer[np.ndarray, " training"]
    held_out_ids: Integer[np.ndarray, " held_out"]
    network: CharacterLSTM
    optimizer: optax.GradientTransformation
    key: Key
    mesh: Mesh
    steps_per_epoch: int

    @property
    def windows(self) -> int:
        """Training windows in an epoch."""
        chosen = self.configuration
        return count_windows(len(self.training_ids), window=chosen.window, stride=chosen.stride)

    @property
    def steps(self) -> int:
        """Updates in the whole run."""
        return self.configuration.epochs * self.steps_per_epoch

    def describe_corpus(self) -> dict:
        """Return what provenance.json says of the text."""
        return {
            "name": self.corpus.name,
            "characters": len(self.corpus.text),
            "vocabulary": self.vocabulary.characters,
            "sha256": self.corpus.sha256,
        }

    def describe(self, path: Path) -> str:
        """Return the opening summary of a run in `path`, a line a subject."""
        chosen = self.configuration
        parameters = jax.eval_shape(lambda key: flax_parameters(self.network, key), self.key)
        count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
        held_out = f"{len(self.held_out_ids):,} characters" if len(self.held_out_ids) else "nothing"
        layers = "1 layer" if chosen.layers == 1 else f"{chosen.layers} layers"
        lines = {
            "corpus": f"{self.corpus.name}, {len(self.corpus.text):,} characters, {len(self.vocabulary)} distinct",
            "training": f"{self.windows:,} windows of {chosen.window} characters, one every {chosen.stride}; "
            f"{chosen.epochs} x {self.steps_per_epoch:,} steps of {chosen.batch_size} windows",
            "held out": held_out,
            "model": f"LSTM, {layers} of {chosen.hidden_size}, {chosen.gate_activation} gates, {count:,} parameters",
            "optimizer": f"{chosen.optimizer}, learning rate {chosen.learning_rate:g}, {chosen.schedule}",
            "device": f"{describe_devices(self.mesh)}, {chosen.precision}, jax {jax.__version__}",
            "run": str(path),
        }
        return "\n".join(f"{subject:<10} {text}" for subject, text in lines.items())


def prepare(configuration: Configuration, devices: int | None = None) -> Job:
    """Read the corpus and build what the configuration names; writes nothing.

    Args:
        configuration: every choice.
        devices: how many to split batches over; None is all that get a few windows each.

    Raises:
        InputError: the corpus cannot be read, is too short, or has no place for the prompt; or there are not so many
            devices, or more than windows in a batch.
    """
    chosen = configuration
    mesh = open_mesh(devices, chosen.batch_size)
    set_up(chosen.precision)
    corpus = load_corpus(chosen.corpus, encoding=chosen.encoding, lowercase=chosen.lowercase)
    vocabulary = Vocabulary.of(corpus.text)
    training_ids, held_out_ids = split_held_out(
        vocabulary.encode(corpus.text), held_out_fraction=chosen.held_out_fraction, window=chosen.window
    )
    if len(vocabulary) == 1:
        raise InputError(
            f"{corpus.name!r} has only one distinct character, {vocabulary.characters!r}: there is nothing to learn"
        )
    last_start = len(training_ids) - chosen.window
    if chosen.prompt_start is not None and chosen.prompt_start > last_start:
        raise InputError(
            f"--prompt-start {chosen.prompt_start} leaves no {chosen.window} characters of the training text; "
            f"its last possible start is {last_start}"
        )
    if len(corpus.text) >= 2**31:
        raise InputError(f"{corpus.name!r} has {len(corpus.text):,} characters; places in a text are 32-bit numbers")
    steps = steps_per_epoch(len(training_ids), window=chosen.window, stride=chosen.stride, batch_size=chosen.batch_size)
    if chosen.epochs * steps >= 2**31:
        raise InputError(
            f"--epochs {chosen.epochs} makes {chosen.epochs * steps:,} steps, which a 32-bit counter does not hold; "
            f"give at most {(2**31 - 1) // steps}"
        )
    return Job(
        configuration=chosen,
        corpus=corpus,
        vocabulary=vocabulary,
        training_ids=training_ids,
        held_out_ids=held_out_ids,
        network=make_network(chosen, vocabulary),
        optimizer=_optimizer(chosen, chosen.epochs * steps),
        key=jax.random.key(chosen.seed),
        mesh=mesh,
        steps_per_epoch=steps,
    )


def load_held_out(run: RunDirectory) -> Integer[np.ndarray, " held_out"]:
    """Return the text that a run holds out.

    Raises:
        InputError: it holds out nothing, or its corpus is no longer what it was.
    """
    configuration = run.configuration()
    if not configuration.held_out_fraction:
        raise InputError(f"the run {str(run.path)!r} held out no text; name one with --text FILE")
    job = prepare(configuration)
    if job.corpus.sha256 != run.provenance()["corpus"]["sha256"]:
        raise InputError(
            f"the corpus {job.corpus.name!r} is not the text that the run {str(run.path)!r} learned from; "
            "put that one back, or name a text with --text FILE"
        )
    return job.held_out_ids


def make_network(configuration: Configuration, vocabulary: Vocabulary) -> CharacterLSTM:
    """Return the model that a configuration describes."""
    return CharacterLSTM(
        vocabulary_size=len(vocabulary),
        hidden_size=configuration.hidden_size,
        layers=configuration.layers,
        gate_activation=configuration.gate_activation,
        dropout=configuration.dropout,
    )


def first_state(
    configuration: Configuration, network: CharacterLSTM, optimizer: optax.GradientTransformation, key: Key, mesh: Mesh
) -> TrainingState:
    """Return the state before the first step."""
    parameters = initial_parameters(network, configuration.initializer, fold_text(key, "parameters"))
    return initial_state(parameters, optimizer, mesh)


@dataclass(frozen=True)
class TrainedModel:
    """A model from a run.

    Attributes:
        configuration: of the run.
        network: the model.
        parameters: as of `step`.
        vocabulary: the characters that it knows.
        step: updates that it has seen.
    """

    configuration: Configuration
    network: CharacterLSTM
    parameters: Parameters
    vocabulary: Vocabulary
    step: int


def load_model(run: RunDirectory) -> TrainedModel:
    """Return the model of a run's newest checkpoint, on one device.

    Raises:
        InputError: the run has no checkpoint yet.
    """
    configuration = run.configuration()
    set_up(configuration.precision)
    vocabulary = Vocabulary(run.provenance()["corpus"]["vocabulary"])
    network = make_network(configuration, vocabulary)
    optimizer = _optimizer(configuration, 1)
    mesh = data_mesh(jax.devices()[:1])
    like = jax.eval_shape(lambda key: first_state(configuration, network, optimizer, key, mesh), jax.random.key(0))
    state = None
    if run.checkpoints.is_dir():
        with open_checkpoints(run.checkpoints) as checkpoints:
            state = restore_state(checkpoints, like, mesh)
    if state is None:
        raise InputError(f"the run {str(run.path)!r} has no checkpoint yet; let it finish an epoch first")
    return TrainedModel(configuration, network, state.parameters, vocabulary, int(state.step))


def _optimizer(configuration: Configuration, steps: int) -> optax.GradientTransformation:
    return make_optimizer(
        configuration.optimizer,
        learning_rate=configuration.learning_rate,
        schedule=configuration.schedule,
        steps=steps,
        clip=configuration.clip,
    )
