"""Initial parameters."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, orthogonal
from jaxtyping import PyTree

from charlm_jax.choices import Initializer
from charlm_jax.keys import Key, fold_text
from charlm_jax.model.network import CharacterLSTM, Parameters
from charlm_jax.model.recurrence import GATES, Weights, take_apart


def parameter_count(parameters: PyTree) -> int:
    """Return the number of parameters; the leaves may be arrays or their shapes (`jax.ShapeDtypeStruct`)."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))


@functools.partial(jax.jit, static_argnums=(0, 1))
def initial_parameters(network: CharacterLSTM, initializer: Initializer, key: Key) -> Parameters:
    """Return initial parameters, drawn as Keras or as Flax draws them."""
    return keras_parameters(network, key) if initializer == "keras" else flax_parameters(network, key)


def flax_parameters(network: CharacterLSTM, key: Key) -> Parameters:
    """Return Flax's defaults: per gate a LeCun-normal input kernel and an orthogonal recurrent kernel; zero biases."""
    return network.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def parameter_shapes(network: CharacterLSTM) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the parameters' shapes and dtypes instead of their arrays."""
    return jax.eval_shape(lambda key: flax_parameters(network, key), jax.random.key(0))


def keras_parameters(network: CharacterLSTM, key: Key) -> Parameters:
    """Return parameters from the distributions that Keras uses for `LSTM` and `Dense`.

    Input kernels are Glorot-uniform and recurrent kernels orthogonal over the four gates jointly, as (in, 4H) and
    (H, 4H) matrices; the head is Glorot-uniform; biases are zero except the forget gate's, which are one
    (`unit_forget_bias`; Jozefowicz, Zaremba and Sutskever, 2015). An embedding is uniform in -0.05..0.05.
    """
    shapes = parameter_shapes(network)
    makers = {"head": _dense, "embedding": _embedding}
    return {name: makers.get(name, _cell)(layer, fold_text(key, name)) for name, layer in shapes.items()}


def _cell(shapes: Mapping[str, Any], key: Key) -> Mapping[str, Any]:
    inputs, hidden = shapes["ii"]["kernel"].shape
    input_kernel = glorot_uniform()(fold_text(key, "input"), (inputs, 4 * hidden))
    recurrent_kernel = orthogonal()(fold_text(key, "recurrent"), (hidden, 4 * hidden))
    bias = jnp.repeat(jnp.array([float(gate == "f") for gate in GATES], jnp.float32), hidden)
    return take_apart(Weights(input_kernel, recurrent_kernel, bias))


def _dense(shapes: Mapping[str, Any], key: Key) -> Mapping[str, Any]:
    return {"kernel": glorot_uniform()(key, shapes["kernel"].shape), "bias": jnp.zeros(shapes["bias"].shape)}


def _embedding(shapes: Mapping[str, Any], key: Key) -> Mapping[str, Any]:
    return {"embedding": jax.random.uniform(key, shapes["embedding"].shape, minval=-0.05, maxval=0.05)}
