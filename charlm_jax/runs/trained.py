"""What a run has left behind: its model, and the text that it learned from."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer

from charlm_jax.choices import Checkpoint
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.data.windows import split_held_out
from charlm_jax.errors import DamagedError, InputError
from charlm_jax.model.initializers import Parameters, flax_parameters
from charlm_jax.model.network import CharacterLSTM
from charlm_jax.runs.checkpoints import Model, newest_state
from charlm_jax.runs.command_line import tell
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.directory import RunDirectory
from charlm_jax.runs.encoding import encoded, open_corpus


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
        checkpoint: `best` by held-out loss, which is the newest where nothing is held out; or the `newest`. Where it
            is damaged, that is said, and the newest sound one taken.

    Raises:
        InputError: the run has no checkpoint yet, or no sound one.
    """
    configuration = run.configuration()
    vocabulary = run.vocabulary()
    network = make_network(configuration, vocabulary)
    like, identity = model_shapes(run), run.identity()

    def spoiled(path: Path, error: DamagedError) -> None:
        tell(f"the state {str(path)!r} is damaged: {error}; an older one is used")

    model = None
    if checkpoint == "best" and configuration.held_out_fraction:
        try:
            model = newest_state(run.best, like, identity, spoiled)
            if model is None:
                tell(f"{str(run.best)!r} holds no model; the newest is used")
        except InputError as error:
            tell(f"{error}; the newest model is used")
    model = model or newest_state(run.checkpoints, like, identity, spoiled)
    if model is None:
        raise InputError(f"the run {str(run.path)!r} has no checkpoint yet; let it finish an epoch first")
    return TrainedModel(configuration, network, model.parameters, vocabulary, int(model.step))


def model_shapes(run: RunDirectory) -> Model:
    """Return the shapes and types of a run's model in place of its arrays."""
    network = make_network(run.configuration(), run.vocabulary())
    return jax.eval_shape(lambda key: Model(jnp.int32(0), flax_parameters(network, key)), jax.random.key(0))


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
        precision=configuration.precision,
        recurrence=configuration.recurrence,
    )


def load_text(run: RunDirectory) -> tuple[Integer[np.ndarray, " training"], Integer[np.ndarray, " held_out"]]:
    """Return the text that a run learned from, and what it held out, which may be nothing.

    Raises:
        InputError: its corpus is not known, cannot be read, or is no longer what it was.
    """
    chosen, recorded = run.configuration(), run.provenance()["corpus"]
    if recorded["sha256"] is None:
        raise InputError(
            f"the text that the model of {str(run.path)!r} learned from is not known, as it is from another library; "
            "name a text with --text FILE"
        )
    corpus = open_corpus(chosen.corpus, encoding=chosen.encoding, lowercase=chosen.lowercase)
    if corpus.sha256 != recorded["sha256"]:
        raise InputError(
            f"the corpus {corpus.name!r} is not the text that the run {str(run.path)!r} learned from; "
            "put that one back, or name a text with --text FILE"
        )
    ids = encoded(corpus, run.vocabulary()).ids
    return split_held_out(ids, held_out_fraction=chosen.held_out_fraction, window=chosen.window)
