"""Keras files, written and read without Keras.

.keras         Keras 3: a zip archive of config.json, metadata.json and model.weights.h5
.weights.h5    Keras 3: the weights alone
.h5            Keras 2 and tf.keras 2: a model or, only when reading, its weights alone

Files are untrusted: no code is run, no link is followed, and no more is read than the file has bytes. But the HDF5
library is known to crash on files that are broken on purpose, so read strangers' files in a process of their own.
"""

import io
import json
import re
import zipfile
from typing import Any, get_args

import h5py
import numpy as np

from charlm_jax.choices import GateActivation
from charlm_jax.errors import InputError
from charlm_jax.model.interop import Layers

# The layer classes that have arrays: what Keras 2 calls the arrays, and where in a layer Keras 3 keeps them.
_NAMES = {"Embedding": ["embeddings"], "LSTM": ["kernel", "recurrent_kernel", "bias"], "Dense": ["kernel", "bias"]}
_PLACES = {"Embedding": "vars", "LSTM": "cell/vars", "Dense": "vars"}


def write_keras(ending: str, layers: Layers, gate_activation: GateActivation, window: int | None) -> bytes:
    """Return a model as the content of a Keras file.

    The Keras model maps one-hot characters, or ids if it has an embedding, to the probabilities of the next character.

    Args:
        ending: of the file: .keras, .weights.h5 or .h5.
        layers: the model's arrays.
        gate_activation: the activation of its `LSTM`s' gates.
        window: characters that it reads; None is any number.
    """
    is_keras_3, described = ending != ".h5", _describe(layers, gate_activation)
    with h5py.File(weights := io.BytesIO(), "w") as file:
        if is_keras_3:
            file.create_group("vars").attrs["name"] = "charlm_jax"
        group = file.create_group("layers" if is_keras_3 else "model_weights")
        for (kind, configuration), arrays in zip(described, layers, strict=True):
            layer = group.create_group(configuration["name"])
            names = [f"{configuration['name']}/{name}:0" for name in _NAMES[kind]]
            if is_keras_3:
                names = [f"{_PLACES[kind]}/{number}" for number in range(len(arrays))]
            else:
                layer.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, arrays, strict=True):
                layer[name] = array
        if not is_keras_3:
            file.attrs["model_config"] = json.dumps(_model(described, layers, window, "")).encode()
            group.attrs["layer_names"] = [configuration["name"].encode() for _, configuration in described]
            group.attrs["keras_version"] = b"2.4.0"
    if ending != ".keras":
        return weights.getvalue()
    with zipfile.ZipFile(content := io.BytesIO(), "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))
        archive.writestr("config.json", json.dumps(_model(described, layers, window, "keras")))
        archive.writestr("model.weights.h5", weights.getvalue())
    return content.getvalue()


def _describe(layers: Layers, gate_activation: GateActivation) -> list[tuple[str, dict[str, Any]]]:
    """Return each layer's class and configuration."""
    described: list[tuple[str, dict[str, Any]]] = []
    for place, layer in enumerate(layers):
        match layer:
            case [table]:
                kind, configuration = "Embedding", {"input_dim": len(table), "output_dim": table.shape[1]}
            case [_, bias]:
                kind, configuration = "Dense", {"units": len(bias), "activation": "softmax"}
            case weights:
                kind, configuration = "LSTM", {"units": len(weights[1]), "activation": "tanh"}
                configuration |= {"recurrent_activation": gate_activation, "return_sequences": place < len(layers) - 2}
        number = [kind for kind, _ in described].count(kind)
        described.append((kind, {"name": f"{kind.lower()}_{number}" if number else kind.lower(), **configuration}))
    return described


def _model(
    described: list[tuple[str, dict[str, Any]]], layers: Layers, window: int | None, module: str
) -> dict[str, Any]:
    """Return the configuration that Keras builds a model from; Keras 3 wants the module of each class, Keras 2 none."""

    def named(kind: str, configuration: dict[str, Any], room: str) -> dict[str, Any]:
        origin = {"module": f"{module}{room}", "registered_name": None} if module else {}
        return {**origin, "class_name": kind, "config": configuration}

    shape = [None, window] if len(layers[0]) == 1 else [None, window, len(layers[0][0])]
    read = {"batch_shape" if module else "batch_input_shape": shape, "dtype": "float32" if shape[2:] else "int32"}
    whole = [("InputLayer", {"name": "characters", **read}), *described]
    below = [named(kind, configuration, ".layers") for kind, configuration in whole]
    return named("Sequential", {"name": "charlm_jax", "layers": below}, "")


def read_keras(content: bytes) -> tuple[Layers, GateActivation | None, int | None, bool | None]:
    """Read the model in a Keras file; the content tells which of the formats it is.

    Returns:
        The model's arrays, the activation of its gates, how many characters it reads, and whether its hard sigmoid is
        Keras 3's; None for what the file does not say.

    Raises:
        InputError: the file has none of the formats, is broken, or holds a model that no `CharacterLSTM` can be.
    """
    try:
        if not content.startswith(b"PK"):
            layers, version, model = _read_hdf5(content)
        else:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = "model.weights.h5", "metadata.json", "config.json"
                if sum(archive.getinfo(name).file_size for name in names) > len(content):
                    raise InputError("it holds more than its own size")
                weights, metadata, configuration = map(archive.read, names)
            layers, _, _ = _read_hdf5(weights)
            version, model = json.loads(metadata)["keras_version"], json.loads(configuration)
        gate_activation, window = (None, None) if model is None else _read_model(model)
        return layers, gate_activation, window, str(version).startswith("3") if version else None
    except InputError:
        raise
    except Exception as error:  # broken HDF5, zip archives and JSON each fail in their own ways
        raise InputError(f"it cannot be read ({type(error).__name__}: {error})") from error


def _read_hdf5(content: bytes) -> tuple[Layers, str, dict[str, Any] | None]:
    """Return a file's arrays, the version of Keras that wrote it, and the model's configuration if it has one."""
    with h5py.File(io.BytesIO(content)) as file:
        model = None
        if "layers" in file:
            # Late versions of tf.keras 2 and early versions of Keras 3 use the same layout.
            version = "3" if "vars" in file and "name" in _inside(file, "vars").attrs else ""
            layers = _layers_by_class(_inside(file, "layers"))
        elif "_layer_checkpoint_dependencies" in file:  # tf.keras 2.12 and 2.13
            version, layers = "2", _layers_by_class(_inside(file, "_layer_checkpoint_dependencies"))
        else:
            group = file
            if "model_weights" in file:
                group, model = _inside(file, "model_weights"), json.loads(_text(file.attrs["model_config"]))
            version, layers = _text(group.attrs["keras_version"]), _layers_by_name(group)
        if sum(array.nbytes for layer in layers for array in layer) > len(content):
            raise InputError("it holds more than its own size")
        return [[array[()] for array in layer] for layer in layers], version, model


def _layers_by_class(group: Any) -> list[list[h5py.Dataset]]:
    """Return the layers of a file that names them after their classes and numbers their arrays."""
    layers = []
    for kind, place in _PLACES.items():
        names = [name for name in group if re.fullmatch(rf"{kind.lower()}(_\d+)?", name)]
        for name in sorted(names, key=lambda name: (len(name), name)):
            arrays = _inside(group, f"{name}/{place}")
            layers.append([_array(arrays, str(number)) for number in range(len(arrays))])
    return layers


def _layers_by_name(group: Any) -> list[list[h5py.Dataset]]:
    """Return the layers of a file whose attributes name them and their arrays; layers without arrays are left out."""
    groups = [_inside(group, _text(name)) for name in group.attrs["layer_names"]]
    layers = [[_array(layer, _text(name)) for name in layer.attrs["weight_names"]] for layer in groups]
    return [layer for layer in layers if layer]


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _inside(group: Any, path: str) -> Any:
    for name in path.split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise InputError(f"its {path!r} is missing, or a link")
        group = group[name]
    return group


def _array(group: Any, path: str) -> h5py.Dataset:
    array = _inside(group, path)
    if not isinstance(array, h5py.Dataset) or array.is_virtual or array.external or array.dtype != np.float32:
        raise InputError(f"its {path!r} is not a float32 array, or lies in another file")
    return array


def _read_model(model: dict[str, Any]) -> tuple[GateActivation, int | None]:
    """Check a model's configuration, and return its gate activation and window."""
    described = model["config"] if isinstance(model["config"], list) else model["config"]["layers"]
    layers = [(layer["class_name"], layer["config"]) for layer in described]
    kinds = "".join(f"{kind} " for kind, _ in layers)
    if model["class_name"] != "Sequential" or not re.fullmatch(
        "(InputLayer )?(Embedding )?(LSTM (Dropout )?)+Dense (Activation )?", kinds
    ):
        raise InputError(f"it is a {model['class_name']} of {kinds.strip()}, not a Sequential of LSTMs and a Dense")
    lstm = [configuration for kind, configuration in layers if kind == "LSTM"]
    gates: list[Any] = [configuration["recurrent_activation"] for configuration in lstm]
    above = [configuration["activation"] for kind, configuration in layers if kind in ("Dense", "Activation")]
    if not (
        gates[0] in get_args(GateActivation)
        and gates == gates[:1] * len(gates)
        and all(configuration["activation"] == "tanh" for configuration in lstm)
        and sorted(above) in (["softmax"], ["linear"], ["linear", "softmax"])
        and not any(configuration.get(name) for _, configuration in layers for name in ("go_backwards", "mask_zero"))
    ):
        raise InputError(
            f"its activations ({gates + above}) are not those of this package, or it masks or reads backwards"
        )
    shapes = [configuration.get(f"batch{word}_shape") for _, configuration in layers for word in ("", "_input")]
    return gates[0], next((shape[1] for shape in shapes if shape and isinstance(shape[1], int)), None)
