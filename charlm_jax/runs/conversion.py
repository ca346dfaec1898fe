"""Converts a run's model into a file of another library, and such a file into a run.

Beside a file NAME lies a record of what the file does not say, NAME.json: the characters, and how the model is to be
used. It is written with the file, and looked for when a file is read.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, get_args

import jax.numpy as jnp
from safetensors import SafetensorError
from safetensors.numpy import load, save

from charlm_jax.choices import GateActivation, Sampler
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.errors import InputError, optional, require
from charlm_jax.generation.serving import export_sampler
from charlm_jax.model.interop import KERAS_3_SLOPE, Layers, from_keras, from_torch, scale_gates, to_keras, to_torch
from charlm_jax.model.network import Model
from charlm_jax.runs.checkpoints import Snapshot, save_state
from charlm_jax.runs.command_line import tell
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.devices import describe_process, open_mesh
from charlm_jax.runs.directory import hold_run
from charlm_jax.runs.files import read_json, sync_names, write_atomically, write_json
from charlm_jax.runs.trained import LoadedRun, make_network

# The fields of a record, with their types or possible values.
_SAID = {
    "vocabulary": str,
    "gate_activation": get_args(GateActivation),
    "layers": int,
    "hidden_size": int,
    "embedding_size": int,
    "window": int,
    "sampler": get_args(Sampler),
    "lowercase": bool,
}
_HARD = "its gates' hard_sigmoid is clip(0.2 x + 0.5, 0, 1)"


def write_model(run: LoadedRun, path: Path, ending: str, length: int) -> None:
    """Write a run's model to a file, with its record.

    Args:
        run: the run.
        path: the file.
        ending: of its name; one of `MODEL_FILES`.
        length: characters in each text that a .jax file, a program, generates.

    Raises:
        InputError: a library that the format needs is not installed.
    """
    chosen, parameters = run.configuration, run.model.parameters
    hard = chosen.gate_activation == "hard_sigmoid"
    record = {"vocabulary": run.vocabulary.characters, **{name: getattr(chosen, name) for name in [*_SAID][1:]}}
    if ending == ".jax":
        record["length"] = length
        options = {"sampler": chosen.sampler, "window": chosen.window, "length": length}
        program = export_sampler(run.model, **options)
        with optional("a .jax file needs flatbuffers", "interop"):
            content = bytes(program.serialize())
    elif ending == ".safetensors":
        content = save(to_torch(to_keras(parameters)))
        if hard:
            tell(f"{_HARD}, which PyTorch's nn.LSTM lacks; scripts/sample_numpy.py, which reads the record, has it")
    else:
        if hard and ending == ".h5":
            tell(f"{_HARD}, Keras 2's; Keras 3's differs, so give Keras 3 a file that ends in .keras")
        elif hard:
            parameters = scale_gates(parameters, KERAS_3_SLOPE)
        fixed = chosen.window if chosen.sampler == "windowed" else None
        content = _keras_files().write_keras(ending, to_keras(parameters), chosen.gate_activation, fixed)
    write_atomically(path, content)
    try:
        write_json(_beside(path), record)
    except BaseException:
        path.unlink()  # it could be neither read nor written again
        raise


def make_run(source: Path, target: Path, flags: Mapping[str, Any]) -> None:
    """Make a run of a file: its model, as step 0 of an unknown training that cannot be resumed.

    Args:
        source: the file.
        target: the run's directory.
        flags: the user's values for fields of the record, by name.

    Raises:
        InputError: the file or its record is broken or says too little, or they and the flags disagree; or the
            directory cannot be written, and nothing is left there.
    """
    content = source.read_bytes()
    read = _read_torch if source.suffix == ".safetensors" else _read_keras
    try:
        layers, gate, window, is_keras_3 = read(content)
        parameters = from_keras(layers)
    except InputError as error:
        raise InputError(f"{str(source)!r} cannot be converted: {error}; save it again") from error
    hidden, characters = layers[-1][0].shape
    embedding = layers[0][0].shape[1] if len(layers[0]) == 1 else 0
    sizes = {"layers": len(layers) - 1 - bool(embedding), "hidden_size": hidden, "embedding_size": embedding}
    said = _agreed(
        {
            "the flags": flags,
            repr(str(_beside(source))): _read_record(_beside(source)),
            repr(str(source)): {"gate_activation": gate, "window": window, **sizes},
        }
    )
    ways = {"gate_activation": "--gate-activation sigmoid or hard_sigmoid", "vocabulary": "--corpus TEXT"}
    if missing := {name.replace("_", " "): way for name, way in ways.items() if name not in said}:
        raise InputError(
            f"{str(source)!r} lacks the {' and the '.join(missing)} of its model; give {' and '.join(missing.values())}"
        )
    vocabulary = Vocabulary(said["vocabulary"])
    if len(vocabulary) != characters:
        raise InputError(
            f"the model of {str(source)!r} knows {characters} characters, not the {len(vocabulary)} of its vocabulary; "
            "give the text that it learned from, read in the same way: --corpus TEXT, --lowercase, --encoding"
        )
    if said["gate_activation"] == "hard_sigmoid" and is_keras_3 is not False:
        if is_keras_3 is None:
            raise InputError(
                f"{str(source)!r} does not say whether its hard_sigmoid is Keras 2's or Keras 3's, which differ; "
                "convert the whole model, from .keras or .h5"
            )
        parameters = scale_gates(parameters, 1 / KERAS_3_SLOPE)
    if "window" not in said:
        tell(f"{str(source)!r} does not say how many characters the model reads; assuming 60 (--window)")
    chosen = Configuration(
        corpus="",
        lowercase=said.get("lowercase", False),
        held_out_fraction=0.0,
        window=said.get("window", 60),
        **{**sizes, "embedding_size": embedding or None},
        gate_activation=said["gate_activation"],
        sampler=said.get("sampler", "windowed"),
    )
    provenance = {
        **describe_process(chosen.precision, open_mesh(1, 1), 1),
        "corpus": {"name": None, "characters": None, "vocabulary": vocabulary.characters, "sha256": None},
        "init_from": None,
        "converted_from": {"file": str(source.resolve()), "sha256": hashlib.sha256(content).hexdigest()},
    }
    model = Model(make_network(chosen, vocabulary), parameters)
    # Made beside its place and renamed: it is there whole or not at all.
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            whole = Path(folder, target.name)
            with hold_run(whole, chosen, provenance) as run:
                save_state(run.checkpoints, Snapshot(jnp.int32(0), model), run.identity())
            whole.rename(target)
        sync_names(target.parent)
    except (OSError, InputError) as error:
        why = getattr(error.__cause__ or error, "strerror", error)
        raise InputError(f"{str(target)!r} cannot be written ({why}); name another place") from error


def _read_keras(content: bytes) -> tuple[Layers, GateActivation | None, int | None, bool | None]:
    """Return what a Keras file holds, read in a process of its own, as HDF5 may crash on a broken file."""
    read = _keras_files().read_keras
    with ProcessPoolExecutor(1, get_context("spawn")) as reader:
        try:
            return reader.submit(read, content).result()
        except BrokenProcessPool as error:
            raise InputError("it crashes the HDF5 library") from error


def _read_torch(content: bytes) -> tuple[Layers, None, None, bool]:
    """Return what a safetensors file holds, as `read_keras` does."""
    try:
        return from_torch(load(content)), None, None, False
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"it cannot be read ({type(error).__name__}: {error})") from error


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_record(path: Path) -> dict[str, Any]:
    record = read_json(path) if path.exists() else {}
    for name, wanted in _SAID.items():
        value, one_of = record.get(name), isinstance(wanted, tuple)
        sound = value is None or (value in wanted if one_of else type(value) is wanted)
        words = f"one of {', '.join(wanted)}" if one_of else f"of type {wanted.__name__}"
        require(f"{name} in {str(path)!r},", value, sound, words)
    return {name: record.get(name) for name in _SAID}


def _agreed(said: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Merge what several sources say; raise an InputError if they contradict one another."""
    facts: dict[str, tuple[Any, str]] = {}
    for source, values in said.items():
        for name, value in values.items():
            if value is None:
                continue
            known, by = facts.setdefault(name, (value, source))
            if value != known:
                raise InputError(
                    f"the {name.replace('_', ' ')} is {known!r} in {by}, but {value!r} in {source}; "
                    "omit or correct the wrong one"
                )
    return {name: value for name, (value, _) in facts.items()}


def _keras_files() -> ModuleType:
    with optional("Keras's files need h5py", "interop"):
        from charlm_jax.runs import keras_files
    return keras_files
