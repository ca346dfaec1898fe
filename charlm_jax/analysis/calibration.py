"""Whether a model's probabilities mean what they say, at every temperature."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Integer

from charlm_jax.generation.temperature import reweight
from charlm_jax.learning.evaluation import Score, sum_over_windows
from charlm_jax.learning.objective import cross_entropy
from charlm_jax.model.network import Model

TEMPERATURES = tuple(round(1.03**step, 4) for step in range(-30, 31))  # 0.41 to 2.43, each 3 % above the last
BINS = 15


@dataclass(frozen=True)
class Calibration:
    """A text's loss and the model's confidence when its logits are divided by each of several temperatures.

    The confidence is the probability of the likeliest character, the accuracy how often that character came. Both are
    given for `BINS` equally wide bins of confidence from 0 to 1 (Guo, Pleiss, Sun and Weinberger, 2017).

    Attributes:
        temperatures: softmax temperatures.
        losses: nats per character at each temperature.
        counts: number of predictions in each bin.
        confidences: mean confidence in each bin; nan for an empty bin.
        accuracies: share of each bin's predictions that were right; nan for an empty bin.
    """

    temperatures: Float[np.ndarray, " temperature"]
    losses: Float[np.ndarray, " temperature"]
    counts: Float[np.ndarray, "temperature bin"]
    confidences: Float[np.ndarray, "temperature bin"]
    accuracies: Float[np.ndarray, "temperature bin"]

    @property
    def best(self) -> int:
        """The index of the temperature with the lowest loss."""
        return int(np.argmin(self.losses))

    @property
    def best_at_edge(self) -> bool:
        """Whether the best temperature is the first or last tried, so that one beyond it may be better."""
        return self.best in (0, len(self.temperatures) - 1)

    @property
    def at_one(self) -> int:
        """The index of the temperature nearest to 1."""
        return int(np.argmin(np.abs(self.temperatures - 1)))

    @property
    def expected_errors(self) -> Float[np.ndarray, " temperature"]:
        """Expected calibration error at each temperature: the mean of |accuracy - confidence|, weighted by count."""
        distances = np.abs(np.nan_to_num(self.accuracies) - np.nan_to_num(self.confidences))
        return np.sum(self.counts * distances, axis=1) / np.sum(self.counts, axis=1)


def calibrate(
    model: Model,
    ids: Integer[Array, " character"],
    mesh: Mesh,
    *,
    window: int,
    stride: int,
    temperatures: tuple[float, ...] = TEMPERATURES,
) -> Calibration:
    """Compare predictions with the character that came, after every window of a text, each read from the zero state."""
    score = _score_at(temperatures)
    (losses, bins), count = sum_over_windows(score, model, ids, mesh, window=window, stride=stride)
    counts, confidences, accuracies = np.moveaxis(bins, -1, 0)
    with np.errstate(invalid="ignore"):
        return Calibration(np.array(temperatures), losses / count, counts, confidences / counts, accuracies / counts)


@functools.cache  # the same function each time, so that it is compiled once
def _score_at(temperatures: tuple[float, ...]) -> Score:
    return functools.partial(_score, temperatures=temperatures)


def _score(
    model: Model, characters: Int32[Array, "batch length"], temperatures: tuple[float, ...]
) -> tuple[Float[Array, "batch temperature"], Float[Array, "batch temperature bin 3"]]:
    """Return each window's loss at each temperature, and (1, confidence, accuracy) in the bin of its prediction."""
    network = model.bound
    hidden, _ = network.read(characters[:, :-1])
    targets = characters[:, -1]

    def one(
        logits: Float[Array, " vocab"], target: Int32[Array, ""], temperature: Float[Array, ""]
    ) -> tuple[Array, Array]:
        weighed = reweight(logits, temperature)
        confidence = jnp.max(jax.nn.softmax(weighed))
        right = (jnp.argmax(weighed) == target).astype(jnp.float32)
        place = jnp.minimum((confidence * BINS).astype(jnp.int32), BINS - 1)
        facts = jnp.stack([jnp.ones_like(right), confidence, right])
        return cross_entropy(weighed, target), jax.nn.one_hot(place, BINS)[:, None] * facts[None, :]

    every = jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None))
    return every(network.predict(hidden[:, -1]), targets, jnp.array(temperatures))
