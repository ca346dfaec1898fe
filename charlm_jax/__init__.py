"""Character-level LSTM language models in JAX: train one, sample from it at any temperature, ablate.

This namespace has what most scripts and notebooks need. Each name is loaded on first use, so importing the package does
not load JAX. Everything else is in the subpackages, which the README maps.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charlm_jax.analysis.reader import Reading
    from charlm_jax.data.corpus import Corpus, load_corpus
    from charlm_jax.data.vocabulary import Vocabulary
    from charlm_jax.data.windows import ParallelStreams, ShuffledWindows, split_held_out
    from charlm_jax.errors import DamagedError, DivergedError, InputError
    from charlm_jax.generation.generate import generate, stream_keys
    from charlm_jax.generation.surprisal import Surprisal, surprisal
    from charlm_jax.learning.evaluation import Evaluation, evaluate, evaluate_stream
    from charlm_jax.learning.optimizer import make_optimizer, make_schedule
    from charlm_jax.learning.training import TrainingState, initial_state, make_train_steps
    from charlm_jax.mesh import data_mesh, replica_mesh, replicate
    from charlm_jax.model.initializers import initial_parameters, parameter_count
    from charlm_jax.model.network import CharacterLSTM, Model
    from charlm_jax.runs.configuration import PRESETS, Configuration
    from charlm_jax.runs.train import train_run
    from charlm_jax.runs.trained import LoadedRun, Metrics, load_run

__version__ = "0.1.0"
# Grouped by topic; `_PLACES` says which module each comes from.
__all__ = [  # noqa: RUF022
    "Corpus", "load_corpus", "Vocabulary", "split_held_out", "ParallelStreams", "ShuffledWindows",
    "CharacterLSTM", "Model", "initial_parameters", "parameter_count", "data_mesh", "replica_mesh", "replicate",
    "make_optimizer", "make_schedule", "TrainingState", "initial_state", "make_train_steps",
    "Evaluation", "evaluate", "evaluate_stream", "generate", "stream_keys", "Surprisal", "surprisal", "Reading",
    "PRESETS", "Configuration", "LoadedRun", "Metrics", "load_run", "train_run",
    "InputError", "DamagedError", "DivergedError",
]  # fmt: skip
_PLACES = {
    "analysis.reader": ["Reading"],
    "data.corpus": ["Corpus", "load_corpus"],
    "data.vocabulary": ["Vocabulary"],
    "data.windows": ["ParallelStreams", "ShuffledWindows", "split_held_out"],
    "errors": ["DamagedError", "DivergedError", "InputError"],
    "generation.generate": ["generate", "stream_keys"],
    "generation.surprisal": ["Surprisal", "surprisal"],
    "learning.evaluation": ["Evaluation", "evaluate", "evaluate_stream"],
    "learning.optimizer": ["make_optimizer", "make_schedule"],
    "learning.training": ["TrainingState", "initial_state", "make_train_steps"],
    "mesh": ["data_mesh", "replica_mesh", "replicate"],
    "model.initializers": ["initial_parameters", "parameter_count"],
    "model.network": ["CharacterLSTM", "Model"],
    "runs.configuration": ["PRESETS", "Configuration"],
    "runs.train": ["train_run"],
    "runs.trained": ["LoadedRun", "Metrics", "load_run"],
}


def __getattr__(name: str) -> Any:
    """Load an exported name on first use (PEP 562)."""
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{place}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List all names, loaded or not."""
    return [*globals(), *__all__]
