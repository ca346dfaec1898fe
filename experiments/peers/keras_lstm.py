"""Keras 3 as the published notebooks use it, on the backend that KERAS_BACKEND names."""

import functools
from typing import Any, cast

import keras
import numpy as np

from charlm_jax.analysis.benchmark import BATCH_SIZE, VOCABULARY, WINDOW

_RANDOM = np.random.default_rng(0)


class Contender:
    """`LSTM` and `Dense`, trained batch by batch and sampled by `predict`."""

    def __init__(self, hidden_size: int, *_: str) -> None:
        self.hidden_size = hidden_size
        ids = _RANDOM.integers(0, VOCABULARY, (BATCH_SIZE, WINDOW))
        self.inputs = np.eye(VOCABULARY, dtype=np.float32)[ids]
        self.targets = np.eye(VOCABULARY, dtype=np.float32)[_RANDOM.integers(0, VOCABULARY, BATCH_SIZE)]

    @functools.cached_property
    def model(self) -> keras.Sequential:
        """The notebooks' network."""
        model = keras.Sequential(
            [
                keras.layers.Input((WINDOW, VOCABULARY)),
                keras.layers.LSTM(self.hidden_size),
                keras.layers.Dense(VOCABULARY, activation="softmax"),
            ]
        )
        model.compile(loss="categorical_crossentropy", optimizer=keras.optimizers.RMSprop(learning_rate=0.01))
        return model

    def train(self, count: int) -> None:
        """Take training steps on one batch that is already an array."""
        for _ in range(count):
            self.model.train_on_batch(self.inputs, self.targets)

    def windowed(self, count: int) -> None:
        """Generate characters by the notebooks' loop: encode the window, predict, draw."""
        text = list(_RANDOM.integers(0, VOCABULARY, WINDOW))
        for _ in range(count):
            sampled = np.zeros((1, WINDOW, VOCABULARY))
            sampled[0, np.arange(WINDOW), text[-WINDOW:]] = 1.0
            predictions = self.model.predict(sampled, verbose=cast(Any, 0))[0].astype("float64")
            text.append(int(np.argmax(_RANDOM.multinomial(1, predictions / predictions.sum()))))
