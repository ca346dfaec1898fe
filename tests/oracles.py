"""Slow, obvious or third-party implementations that the package is checked against."""

from contextlib import contextmanager

import jax
import numpy as np


@contextmanager
def lenient_jax():
    """Let a third-party library promote types and ranks, which our own code may not do."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x):
    return np.clip(0.2 * x + 0.5, 0, 1)


GATES = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}


def numpy_lstm(cell, inputs, gate=sigmoid):
    """Return the hidden states of one layer, gate by gate from the textbook's equations, in float64.

    Args:
        cell: a Flax LSTMCell's parameters.
        inputs: (batch, time, input).
        gate: the gates' activation.
    """
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), cell)
    batch, time, _ = inputs.shape
    c = h = np.zeros((batch, p["hi"]["kernel"].shape[0]))
    hidden = []
    for t in range(time):
        x = inputs[:, t].astype(np.float64)
        i, f, g, o = (
            x @ p[f"i{name}"]["kernel"] + h @ p[f"h{name}"]["kernel"] + p[f"h{name}"]["bias"] for name in "ifgo"
        )
        c = gate(f) * c + gate(i) * np.tanh(g)
        h = gate(o) * np.tanh(c)
        hidden.append(h)
    return np.stack(hidden, axis=1)


def numpy_logits(parameters, ids, gate=sigmoid):
    """Return the logits of a network of any depth after every character of `ids` (batch, time)."""
    vocabulary_size = parameters["head"]["bias"].shape[0]
    characters = parameters["embedding"]["embedding"] if "embedding" in parameters else np.eye(vocabulary_size)
    layer = np.asarray(characters, np.float64)[np.asarray(ids)]
    for number in range(sum(name.startswith("lstm_") for name in parameters)):
        layer = numpy_lstm(parameters[f"lstm_{number}"], layer, gate)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters["head"])
    return layer @ head["kernel"] + head["bias"]


def notebook_distribution(logits, temperature):
    """The notebooks' sampling function up to the draw: float64 softmax, log, divide, exponentiate, renormalise."""
    logits = np.asarray(logits).astype("float64")
    predictions = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    reweighted = np.exp(np.log(predictions) / temperature)
    return reweighted / reweighted.sum()


def keras_cell(cell):
    """Return a Flax cell's parameters as Keras's [kernel, recurrent kernel, bias], gates in the order i, f, c, o."""
    kernel = np.concatenate([cell[f"i{gate}"]["kernel"] for gate in "ifgo"], axis=1)
    recurrent = np.concatenate([cell[f"h{gate}"]["kernel"] for gate in "ifgo"], axis=1)
    return [kernel, recurrent, np.concatenate([cell[f"h{gate}"]["bias"] for gate in "ifgo"])]
