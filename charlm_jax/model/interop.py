"""Parameters converted to the arrays of Keras and PyTorch, and back.

Keras and PyTorch lay out a layer differently from Flax: one kernel holds the four gates side by side, in the order i,
f, c (our g), o. PyTorch's kernels are transposed, and it adds two biases.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from charlm_jax.errors import InputError
from charlm_jax.model.network import Parameters
from charlm_jax.model.recurrence import Weights, fuse, take_apart

Layers = Sequence[Sequence[np.ndarray]]
"""A model's weights in Keras's layout, layer by layer: the table of an `Embedding`, if there is one; the kernel, the
recurrent kernel and the bias of each `LSTM`; the kernel and the bias of a `Dense`."""
KERAS_3_SLOPE = 1.2
"""Keras 2's hard sigmoid of x, clip(0.2 x + 0.5, 0, 1), is Keras 3's, clip(x / 6 + 0.5, 0, 1), of 1.2 x."""
_TORCH_LSTM = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


def to_keras(parameters: Parameters) -> Layers:
    """Return a model's parameters in Keras's layout."""
    embedding = [[parameters["embedding"]["embedding"]]] if "embedding" in parameters else []
    cells = [fuse(parameters[f"lstm_{number}"]) for number in range(len(parameters) - len(embedding) - 1)]
    head = [parameters["head"][name] for name in ("kernel", "bias")]
    return [[np.asarray(array) for array in layer] for layer in (*embedding, *cells, head)]


def from_keras(layers: Layers) -> Parameters:
    """Convert layers in Keras's layout into parameters; the inverse of `to_keras`.

    Raises:
        InputError: the layers are of other kinds, or their arrays do not fit together or are not finite float32.
    """
    found = [[array.shape for array in layer] for layer in layers]
    try:
        (hidden, vocabulary), _ = found[-1]
        embedding = found[0][0][1:] if len(found[0]) == 1 else ()
    except (IndexError, ValueError) as error:
        raise InputError(f"its arrays, {found}, are not those of LSTM layers and a dense layer") from error
    inputs = [*(embedding or (vocabulary,)), *[hidden] * (len(found) - len(embedding) - 2)]
    cells = [[(size, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)] for size in inputs]
    wanted = [*([(vocabulary, size)] for size in embedding), *cells, [(hidden, vocabulary), (vocabulary,)]]
    if found != wanted:
        raise InputError(f"its arrays, {found}, are not those of LSTM layers and a dense layer, {wanted}")
    if not all(array.dtype == np.float32 and np.isfinite(array).all() for layer in layers for array in layer):
        raise InputError("its numbers are not all finite and float32")
    parameters: dict[str, Any] = {}
    for layer in ([jnp.array(array) for array in layer] for layer in layers):
        match layer:
            case [table]:
                parameters["embedding"] = {"embedding": table}
            case [kernel, bias]:
                parameters["head"] = {"kernel": kernel, "bias": bias}
            case weights:
                parameters[f"lstm_{len(parameters) - len(embedding)}"] = take_apart(Weights(*weights))
    return parameters


def scale_gates(parameters: Parameters, factor: float) -> Parameters:
    """Scale the pre-activations of the gates i, f and o of all layers by a factor."""

    def scaled(path: tuple[Any, ...], array: Array) -> Array:
        layer, part, *_ = (key.key for key in path)
        return array * factor if layer.startswith("lstm") and part[1] in "ifo" else array

    return jax.tree_util.tree_map_with_path(scaled, parameters)


def to_torch(layers: Layers) -> dict[str, np.ndarray]:
    """Return the state of a PyTorch module of `nn.LSTM` lstm, `nn.Linear` head and perhaps `nn.Embedding` embedding."""
    state, depth = dict[str, np.ndarray](), 0
    for layer in layers:
        match layer:
            case [table]:
                state["embedding.weight"] = table
            case [kernel, bias]:
                state |= {"head.weight": kernel.T, "head.bias": bias}
            case weights:
                kernel, recurrent_kernel, bias = weights
                arrays = kernel.T, recurrent_kernel.T, bias, np.zeros_like(bias)
                state |= zip(_torch_names(depth), arrays, strict=True)
                depth += 1
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def from_torch(state: Mapping[str, np.ndarray]) -> Layers:
    """Return a PyTorch module's weights in Keras's layout; the inverse of `to_torch`.

    Raises:
        InputError: the state has other names, or an LSTM's two biases differ in shape.
    """
    names = [_torch_names(layer) for layer in range(sum("weight_ih" in name for name in state))]
    if odd := state.keys() - {"embedding.weight"} ^ {"head.weight", "head.bias"}.union(*names):
        raise InputError(f"it is not exactly an nn.LSTM lstm and an nn.Linear head: see {min(odd)!r}")
    layers = [[state["embedding.weight"]]] if "embedding.weight" in state else []
    for kernel, recurrent_kernel, bias, other in ([state[name] for name in layer] for layer in names):
        if bias.shape != other.shape:
            raise InputError(f"an LSTM's biases differ: {bias.shape}, {other.shape}")
        layers.append([kernel.T, recurrent_kernel.T, bias + other])
    return [*layers, [state["head.weight"].T, state["head.bias"]]]


def _torch_names(layer: int) -> list[str]:
    return [f"lstm.{name}_l{layer}" for name in _TORCH_LSTM]
