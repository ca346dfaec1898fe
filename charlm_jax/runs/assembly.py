"""Builds a training job from a configuration: corpus, network, optimizer, mesh, batch order and first state."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Integer

from charlm_jax.choices import MAX_EVALUATED, counted
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.data.windows import Order, ParallelStreams, ShuffledWindows, split_held_out
from charlm_jax.errors import InputError
from charlm_jax.keys import Key, fold_text
from charlm_jax.learning.objective import targets_of
from charlm_jax.learning.optimizer import RateSchedule, make_optimizer, make_schedule
from charlm_jax.learning.training import TrainingState, TrainSteps, initial_state, make_train_steps
from charlm_jax.model.initializers import initial_parameters, parameter_count, parameter_shapes
from charlm_jax.model.network import CharacterLSTM, Model
from charlm_jax.runs.checkpoints import fingerprint, state_files
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.devices import describe_devices, keep_compiled_programs, open_mesh
from charlm_jax.runs.directory import RunDirectory, open_run
from charlm_jax.runs.encoding import EncodedCorpus, encoded, open_corpus, require_known
from charlm_jax.runs.processes import agreed
from charlm_jax.runs.trained import LoadedRun, make_network, read_run


@dataclass(frozen=True)
class Job:
    """Everything that training needs, ready to start.

    Attributes:
        configuration: every choice.
        corpus: the text.
        vocabulary: the characters that have ids.
        training_ids: the beginning of the text, to train on.
        held_out_ids: its end, to evaluate on; empty if nothing is held out.
        network: the architecture.
        optimizer: the update rule.
        schedule: the factor of the learning rate at each step.
        key: the run's root key.
        mesh: the devices to run on.
        order: how an epoch goes through the training text.
        source: the run to start from, with its best model; None to draw new parameters.
    """

    configuration: Configuration
    corpus: EncodedCorpus
    vocabulary: Vocabulary
    training_ids: Integer[np.ndarray, " training"]
    held_out_ids: Integer[np.ndarray, " held_out"]
    network: CharacterLSTM
    optimizer: optax.GradientTransformation
    schedule: RateSchedule
    key: Key
    mesh: Mesh
    order: Order
    source: LoadedRun | None

    @property
    def windows(self) -> int:
        """Training windows in an epoch."""
        return self.order.windows(len(self.training_ids))

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch."""
        return self.order.steps(len(self.training_ids))

    @property
    def steps(self) -> int:
        """Updates in the whole run."""
        return self.configuration.epochs * self.steps_per_epoch

    def describe_corpus(self) -> dict[str, Any]:
        """Return what provenance.json records about the text."""
        return {
            "name": self.corpus.name,
            "characters": len(self.corpus.ids),
            "vocabulary": self.vocabulary.characters,
            "sha256": self.corpus.sha256,
        }

    def describe_source(self) -> dict[str, Any] | None:
        """Return what provenance.json records about the trained model to start from; None if there is none."""
        if self.source is None:
            return None
        return {
            "run": self.configuration.init_from,
            "step": self.source.step,
            "sha256": fingerprint(self.source.model.parameters),
        }

    def describe(self, path: Path) -> str:
        """Return the opening summary of a run in `path`, one line per subject."""
        chosen = self.configuration
        parameters = parameter_count(parameter_shapes(self.network))
        held_out = f"{len(self.held_out_ids):,} characters" if len(self.held_out_ids) else "nothing"
        if len(self.held_out_ids) > MAX_EVALUATED:
            held_out += f", of which each epoch scores the first {MAX_EVALUATED:,}"
        layers = counted(chosen.layers, "layer")
        how = "one after another with the state kept" if self.order.consecutive else f"one every {chosen.stride}"
        embedded = f", characters as {chosen.embedding_size} numbers" if chosen.embedding_size else ""

        def named(*names: str) -> str:
            """Return the options that are in use, each with its value."""
            values = {name.replace("_", " "): getattr(chosen, name) for name in names}
            return "".join(f", {name} {value:g}" for name, value in values.items() if value)

        lines = {
            "corpus": f"{self.corpus.name}, {len(self.corpus.ids):,} characters, {len(self.vocabulary)} distinct",
            "training": f"{self.windows:,} windows of {chosen.window} characters, {how}, "
            f"{chosen.objective.replace('-', ' ')} learned; "
            f"{chosen.epochs} x {self.steps_per_epoch:,} steps of {chosen.batch_size} windows",
            "held out": held_out,
            "model": f"LSTM, {layers} of {chosen.hidden_size}, {chosen.gate_activation} gates{embedded}"
            f"{named('dropout', 'weight_dropout')}, {parameters:,} parameters",
            "optimizer": f"{chosen.optimizer}, learning rate {chosen.learning_rate:g}, {chosen.schedule}"
            f"{named('warmup', 'weight_decay', 'clip')}",
            "device": f"{describe_devices(self.mesh)}, {chosen.precision}, jax {jax.__version__}",
            "run": str(path),
        }
        return "\n".join(f"{subject:<10} {text}" for subject, text in lines.items())


def prepare(configuration: Configuration, devices: int | None = None, path: Path | None = None) -> Job:
    """Read the corpus and build the job that a configuration describes; write nothing to the run's directory.

    Args:
        configuration: every choice.
        devices: how many to split batches over; None leaves it to `open_mesh`.
        path: the run's directory; if it already holds states, the run that it started from is not read.

    Raises:
        InputError: the corpus or the run to start from cannot be read, or does not suit the configuration; or `devices`
            is more than there are, or than windows in a batch.
    """
    chosen = configuration
    mesh = open_mesh(devices, chosen.batch_size)
    keep_compiled_programs()
    text = open_corpus(chosen.corpus, encoding=chosen.encoding, lowercase=chosen.lowercase)
    source = vocabulary = None

    def resumed() -> str | None:
        """Return the characters of a run that started from another and has states of its own."""
        there = chosen.init_from and path and any(map(state_files, RunDirectory(path).states))
        return open_run(path).vocabulary().characters if there and path else None

    if (characters := agreed(resumed)) is not None:
        vocabulary = Vocabulary(characters)
    elif chosen.init_from:
        source = _source(Path(chosen.init_from), chosen)
        vocabulary = source.vocabulary
    corpus = encoded(text, vocabulary)
    vocabulary = corpus.vocabulary
    training_ids, held_out_ids = split_held_out(
        corpus.ids, held_out_fraction=chosen.held_out_fraction, window=chosen.window, name=repr(corpus.name)
    )
    require_known(held_out_ids[:MAX_EVALUATED], vocabulary)
    if len(vocabulary) == 1:
        raise InputError(
            f"{corpus.name!r} has only one distinct character, {vocabulary.characters!r}: there is nothing to learn"
        )
    last_start = len(training_ids) - chosen.window
    if chosen.prompt_start is not None and chosen.prompt_start > last_start:
        raise InputError(
            f"--prompt-start {chosen.prompt_start} leaves fewer than {chosen.window} characters of training text; "
            f"the latest possible start is {last_start}"
        )
    order = make_order(chosen)
    steps = order.steps(len(training_ids))
    if not steps:
        largest = len(training_ids) // chosen.window - 1
        raise InputError(
            f"the {len(training_ids):,} characters of training text do not fill --batch-size {chosen.batch_size} "
            f"windows of {chosen.window} side by side; give "
            f"{f'at most --batch-size {largest}' if largest else 'a smaller --window'}, or --carry fresh"
        )
    if (windows := order.windows(len(training_ids))) >= 2**31:
        raise InputError(
            f"an epoch has {windows:,} windows, too many for a 32-bit counter; "
            f"give --stride {-(-len(training_ids) // (2**31 - 1))} or more"
        )
    if (all_steps := chosen.epochs * steps) >= 2**31:
        raise InputError(
            f"--epochs {chosen.epochs} makes {all_steps:,} steps, too many for a 32-bit counter; "
            f"give at most {(2**31 - 1) // steps}"
        )
    return Job(
        configuration=chosen,
        corpus=corpus,
        vocabulary=vocabulary,
        training_ids=training_ids,
        held_out_ids=held_out_ids,
        network=make_network(chosen, vocabulary),
        optimizer=make_optimizer(chosen.optimizer, weight_decay=chosen.weight_decay, clip=chosen.clip),
        schedule=make_schedule(chosen.schedule, warmup=int(chosen.warmup * all_steps), steps=all_steps),
        key=jax.random.key(chosen.seed),
        mesh=mesh,
        order=order,
        source=source,
    )


def make_order(configuration: Configuration) -> Order:
    """Return the order in which an epoch goes through the training text."""
    chosen = configuration
    if chosen.carry == "kept" and targets_of(chosen.objective, chosen.window).consecutive:
        return ParallelStreams(chosen.window, chosen.batch_size)
    return ShuffledWindows(chosen.window, chosen.stride, chosen.batch_size)


def _source(path: Path, configuration: Configuration) -> LoadedRun:
    """Return the run to start from, with its best model.

    Raises:
        InputError: there is no such run, it has no model yet, or its model has another shape.
    """
    run = open_run(path)
    there = run.configuration()
    names = ("hidden_size", "layers", "gate_activation", "embedding_size")
    same = dataclasses.replace(there, **{name: getattr(configuration, name) for name in names})
    if differences := there.differences(same):
        raise InputError(f"--init-from {path}: its model differs: {'; '.join(differences)}; give the same flags here")
    return read_run(run)


def train_steps_of(job: Job, mesh: Mesh) -> TrainSteps:
    """Return a job's compiled training steps on a mesh, which take its text or `Batches` of it."""
    return make_train_steps(
        job.optimizer,
        job.order,
        job.configuration.objective,
        mesh,
        schedule=job.schedule,
        min_probability=job.configuration.min_probability,
    )


def first_state(job: Job) -> TrainingState:
    """Return the state before the first step, with new parameters or those of the model to start from."""
    if job.source is not None:
        parameters = job.source.model.parameters
    else:
        parameters = initial_parameters(job.network, job.configuration.initializer, fold_text(job.key, "parameters"))
    model, learning_rate = Model(job.network, parameters), job.configuration.learning_rate
    return initial_state(model, job.optimizer, job.order, job.mesh, learning_rate=learning_rate)


def state_shapes(
    network: CharacterLSTM, optimizer: optax.GradientTransformation, order: Order, mesh: Mesh
) -> TrainingState:
    """Return a training state with shapes and types in place of its arrays."""

    def state(model: Model) -> TrainingState:
        return initial_state(model, optimizer, order, mesh, learning_rate=1.0)

    return jax.eval_shape(state, Model(network, parameter_shapes(network)))
