"""From a configuration to the objects of the other rooms: before training, and from a run that has trained."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Integer

from charlm_jax.choices import Checkpoint
from charlm_jax.data.corpus import Corpus, load_corpus
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.data.windows import Order, ParallelStreams, ShuffledWindows, split_held_out
from charlm_jax.errors import InputError
from charlm_jax.keys import Key, fold_text
from charlm_jax.learning.optimizer import make_optimizer
from charlm_jax.learning.training import TrainingState, initial_state
from charlm_jax.mesh import data_mesh
from charlm_jax.model.initializers import Parameters, flax_parameters, initial_parameters
from charlm_jax.model.network import CharacterLSTM
from charlm_jax.runs.checkpoints import open_checkpoints, restore_state
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.devices import describe_devices, open_mesh, set_up
from charlm_jax.runs.directory import RunDirectory, open_run


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
        order: in which an epoch goes through the training text.
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
    order: Order

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
        how = f"one every {chosen.stride}, the character after each learned"
        if chosen.objective == "every-character":
            how = "one after another with the state kept" if self.order.consecutive else f"one every {chosen.stride}"
            how += ", every character learned"
        embedded = f", characters as {chosen.embedding_size} numbers" if chosen.embedding_size else ""

        def named(*names: str) -> str:
            """Name those ingredients that are in use."""
            values = {name.replace("_", " "): getattr(chosen, name) for name in names}
            return "".join(f", {name} {value:g}" for name, value in values.items() if value)

        lines = {
            "corpus": f"{self.corpus.name}, {len(self.corpus.text):,} characters, {len(self.vocabulary)} distinct",
            "training": f"{self.windows:,} windows of {chosen.window} characters, {how}; "
            f"{chosen.epochs} x {self.steps_per_epoch:,} steps of {chosen.batch_size} windows",
            "held out": held_out,
            "model": f"LSTM, {layers} of {chosen.hidden_size}, {chosen.gate_activation} gates{embedded}"
            f"{named('dropout', 'weight_dropout')}, {count:,} parameters",
            "optimizer": f"{chosen.optimizer}, learning rate {chosen.learning_rate:g}, {chosen.schedule}"
            f"{named('warmup', 'weight_decay', 'clip')}",
            "device": f"{describe_devices(self.mesh)}, {chosen.precision}, jax {jax.__version__}",
            "run": str(path),
        }
        return "\n".join(f"{subject:<10} {text}" for subject, text in lines.items())


def prepare(configuration: Configuration, devices: int | None = None, path: Path | None = None) -> Job:
    """Read the corpus and build what the configuration names; writes nothing.

    Args:
        configuration: every choice.
        devices: how many to split batches over; None is all that get a few windows each.
        path: the run's directory; if the run is there already, it need not look at the one that it started from.

    Raises:
        InputError: the corpus cannot be read, is too short, or has no place for the prompt; or there are not so many
            devices, or more than windows in a batch.
    """
    chosen = configuration
    mesh = open_mesh(devices, chosen.batch_size)
    set_up(chosen.precision)
    corpus = load_corpus(chosen.corpus, encoding=chosen.encoding, lowercase=chosen.lowercase)
    if chosen.init_from and path is not None and (path / "config.json").is_file():
        vocabulary = open_run(path).vocabulary()
    elif chosen.init_from:
        vocabulary = _trained_vocabulary(Path(chosen.init_from), chosen)
    else:
        vocabulary = Vocabulary.of(corpus.text)
    training_ids, held_out_ids = split_held_out(
        vocabulary.encode(corpus.text, f"corpus {corpus.name!r}"),
        held_out_fraction=chosen.held_out_fraction,
        window=chosen.window,
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
    order = make_order(chosen)
    steps = order.steps(len(training_ids))
    if not steps:
        most = (len(training_ids) - 1) // chosen.window
        raise InputError(
            f"the {len(training_ids):,} characters of training text do not fill --batch-size {chosen.batch_size} "
            f"windows of {chosen.window} side by side; give at most --batch-size {most}, or --carry fresh"
        )
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
        order=order,
    )


def make_order(configuration: Configuration) -> Order:
    """Return the order in which an epoch goes through the training text."""
    chosen = configuration
    if chosen.objective == "every-character" and chosen.carry == "kept":
        return ParallelStreams(chosen.window, chosen.batch_size)
    return ShuffledWindows(chosen.window, chosen.stride, chosen.batch_size)


def _trained_vocabulary(source: Path, configuration: Configuration) -> Vocabulary:
    """Return the vocabulary of the run to start from.

    Raises:
        InputError: there is no such run, or its model has another shape.
    """
    run = open_run(source)
    there = run.configuration()
    names = ("hidden_size", "layers", "gate_activation", "embedding_size")
    same = dataclasses.replace(there, **{name: getattr(configuration, name) for name in names})
    if differences := there.differences(same):
        raise InputError(f"--init-from {source}: its model differs: {'; '.join(differences)}; give the same flags here")
    return run.vocabulary()


def load_text(run: RunDirectory) -> tuple[Integer[np.ndarray, " training"], Integer[np.ndarray, " held_out"]]:
    """Return the text that a run learned from, and what it held out, which may be nothing.

    Raises:
        InputError: its corpus cannot be read, or is no longer what it was.
    """
    chosen, recorded = run.configuration(), run.provenance()["corpus"]
    corpus = load_corpus(chosen.corpus, encoding=chosen.encoding, lowercase=chosen.lowercase)
    if corpus.sha256 != recorded["sha256"]:
        raise InputError(
            f"the corpus {corpus.name!r} is not the text that the run {str(run.path)!r} learned from; "
            "put that one back, or name a text with --text FILE"
        )
    ids = run.vocabulary().encode(corpus.text)
    return split_held_out(ids, held_out_fraction=chosen.held_out_fraction, window=chosen.window)


def make_network(configuration: Configuration, vocabulary: Vocabulary) -> CharacterLSTM:
    """Return the model that a configuration describes."""
    return CharacterLSTM(
        vocabulary_size=len(vocabulary),
        hidden_size=configuration.hidden_size,
        layers=configuration.layers,
        gate_activation=configuration.gate_activation,
        dropout=configuration.dropout,
        weight_dropout=configuration.weight_dropout,
        embedding_size=configuration.embedding_size,
    )


def first_state(job: Job) -> TrainingState:
    """Return the state before the first step: of a model drawn anew, or of the trained one to start from."""
    chosen = job.configuration
    if chosen.init_from:
        parameters = load_model(open_run(Path(chosen.init_from))).parameters
    else:
        parameters = initial_parameters(job.network, chosen.initializer, fold_text(job.key, "parameters"))
    return initial_state(job.network, parameters, job.optimizer, job.order, job.mesh)


def state_shapes(
    network: CharacterLSTM, optimizer: optax.GradientTransformation, order: Order, mesh: Mesh
) -> TrainingState:
    """Return a training state's shapes and types in place of its arrays."""

    def state(key: Key) -> TrainingState:
        return initial_state(network, flax_parameters(network, key), optimizer, order, mesh)

    return jax.eval_shape(state, jax.random.key(0))


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


def load_model(run: RunDirectory, checkpoint: Checkpoint = "best") -> TrainedModel:
    """Return a run's model, on one device.

    Args:
        run: the run.
        checkpoint: `best` by held-out loss, which is the newest where none was measured yet, or the `newest`.

    Raises:
        InputError: the run has no checkpoint yet.
    """
    configuration = run.configuration()
    vocabulary = run.vocabulary()
    network = make_network(configuration, vocabulary)
    mesh = data_mesh(jax.devices()[:1])
    like = state_shapes(network, _optimizer(configuration, 2**31), make_order(configuration), mesh)
    folders = [run.best, run.checkpoints] if checkpoint == "best" else [run.checkpoints]
    for folder in folders:
        if folder.is_dir():
            with open_checkpoints(folder) as checkpoints:
                state = restore_state(checkpoints, like, mesh)
            if state is not None:
                return TrainedModel(configuration, network, state.parameters, vocabulary, int(state.step))
    raise InputError(f"the run {str(run.path)!r} has no checkpoint yet; let it finish an epoch first")


def _optimizer(configuration: Configuration, steps: int) -> optax.GradientTransformation:
    return make_optimizer(
        configuration.optimizer,
        learning_rate=configuration.learning_rate,
        schedule=configuration.schedule,
        warmup=int(configuration.warmup * steps),
        steps=steps,
        weight_decay=configuration.weight_decay,
        clip=configuration.clip,
    )
