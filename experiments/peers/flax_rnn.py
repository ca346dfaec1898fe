"""Flax with optax under `jax.jit`: `nn.RNN` over `nn.OptimizedLSTMCell`, or cuDNN's LSTM by `jax.experimental.rnn`.

float32 products have JAX's default precision, which `JAX_DEFAULT_MATMUL_PRECISION` sets.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import rnn

from charlm_jax.analysis.benchmark import BATCH_SIZE, VOCABULARY, WINDOW


class _CuDNN(nn.Module):
    hidden_size: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        sizes = inputs.shape[-1], self.hidden_size, 1  # one layer
        weights = self.param("weights", rnn.init_lstm_weight, *sizes, False)  # in one direction
        zeros = jnp.zeros((1, len(inputs), self.hidden_size))
        lengths = jnp.full(len(inputs), inputs.shape[1], jnp.int32)
        outputs: Any = rnn.lstm(inputs, zeros, zeros, weights, lengths, *sizes, 0.0, False)
        return outputs[0]


class _Network(nn.Module):
    hidden_size: int
    precision: str
    way: str

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        kind = jnp.bfloat16 if self.precision == "bfloat16" else None  # of products and activations, not of parameters
        layer = (
            _CuDNN(self.hidden_size)
            if self.way == "cudnn"
            else nn.RNN(nn.OptimizedLSTMCell(self.hidden_size, dtype=kind))
        )
        states: Any = layer(jax.nn.one_hot(ids, VOCABULARY))
        return nn.Dense(VOCABULARY, dtype=kind)(states[:, -1]).astype(jnp.float32)


class Contender:
    """A jitted training step, and a jitted scan that re-reads the window for every character."""

    def __init__(self, hidden_size: int, precision: str, way: str, *_: str) -> None:
        random, self.network = np.random.default_rng(0), _Network(hidden_size, precision, way)
        network = self.network
        self.ids = jnp.array(random.integers(0, VOCABULARY, (BATCH_SIZE, WINDOW)), jnp.int32)
        self.targets = jnp.array(random.integers(0, VOCABULARY, BATCH_SIZE), jnp.int32)
        rule = optax.rmsprop(0.01, decay=0.9, eps=1e-7)
        self.parameters = network.init(jax.random.key(0), self.ids)
        self.optimizer_state = rule.init(self.parameters)

        @jax.jit
        def train_step(parameters: Any, state: Any, ids: jax.Array, targets: jax.Array) -> tuple[Any, Any]:
            def loss(parameters: Any) -> jax.Array:
                logits: Any = network.apply(parameters, ids)
                return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

            updates, state = rule.update(jax.grad(loss)(parameters), state, parameters)
            return optax.apply_updates(parameters, updates), state

        def generate(parameters: Any, keys: jax.Array) -> jax.Array:
            def step(window: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
                logits: Any = network.apply(parameters, window[None])
                character = jax.random.categorical(key, logits[0]).astype(jnp.int32)
                return jnp.append(window[1:], character), character

            return jax.lax.scan(step, jnp.zeros(WINDOW, jnp.int32), keys)[1]

        self.train_step, self.generate = train_step, jax.jit(generate)

    def train(self, count: int) -> None:
        """Take training steps on one batch that is already an array."""
        for _ in range(count):
            self.parameters, self.optimizer_state = self.train_step(
                self.parameters, self.optimizer_state, self.ids, self.targets
            )
        jax.block_until_ready(self.parameters)

    def windowed(self, count: int) -> None:
        """Generate characters, re-reading the last window for each."""
        self.generate(self.parameters, jax.random.split(jax.random.key(0), count)).block_until_ready()
