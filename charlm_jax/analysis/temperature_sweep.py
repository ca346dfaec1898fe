"""What the softmax temperature does to generated text, beside human text: means, intervals, verdicts."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import bootstrap

from charlm_jax.analysis.text_statistics import STATISTICS, Statistic

MEASURES = {
    **STATISTICS,
    "model_nats": Statistic(
        "loss under the model (nats/character)",
        "Mean negative log-likelihood under the model, at temperature 1.",
    ),
    "ngram_nats": Statistic(
        "loss under a 7-gram (nats/character)", "Mean negative log-likelihood under a Kneser-Ney 7-gram of the corpus."
    ),
}
"""All that is measured of a text, by name."""

_RESAMPLES = 2000
_INTERVAL = 2.5, 97.5  # percentiles


class Estimate(NamedTuple):
    """A mean over prompts with its 95 % confidence interval."""

    mean: Float[np.ndarray, "*axes"]
    low: Float[np.ndarray, "*axes"]
    high: Float[np.ndarray, "*axes"]


def estimate(values: Float[np.ndarray, "*axes prompt"]) -> Estimate:
    """Return the mean over prompts, with a percentile bootstrap's interval (Efron and Tibshirani, 1993).

    All means are resampled alike: the interval of a difference between two texts from the same prompt, given as values,
    is paired. A text that lacks a statistic (nan) is left out; without any, all is nan.
    """
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # means of nothing are nan
        mean = np.nanmean(values, axis=-1)
        if values.shape[-1] < 2:
            return Estimate(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
        found = bootstrap(
            (values,),
            np.nanmean,
            axis=-1,
            n_resamples=_RESAMPLES,
            batch=100,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        # Not the interval that comes with it, which is nan if one of the resamples has nothing but nan.
        low, high = np.nanpercentile(found.bootstrap_distribution, _INTERVAL, axis=-1)
    return Estimate(mean, low, high)


@dataclass(frozen=True)
class Sweep:
    """Measures of texts that continue the same prompts: a model's at each temperature, and what people wrote.

    Attributes:
        temperatures: in increasing order.
        samples: `MEASURES` of the generated texts.
        human: of the human ones.
    """

    temperatures: Float[np.ndarray, " temperature"]
    samples: Mapping[str, Float[np.ndarray, "temperature prompt"]]
    human: Mapping[str, Float[np.ndarray, " prompt"]]

    def differences(self, name: str) -> Float[np.ndarray, "temperature prompt"]:
        """Return by how much each generated text's measure exceeds that of the human text after the same prompt."""
        return self.samples[name] - self.human[name]

    def nearest(self, name: str) -> int:
        """Return the place of the temperature whose texts are, in the mean, nearest to the human ones by a measure."""
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            distances = np.abs(np.nanmean(self.samples[name], axis=1) - np.nanmean(self.human[name]))
        return int(np.argmin(np.nan_to_num(distances, nan=np.inf)))

    def alike(self, name: str) -> Float[np.ndarray, " alike"]:
        """Return the temperatures whose texts a measure does not tell from human ones: 0 is in the interval."""
        difference = estimate(self.differences(name))
        return self.temperatures[(difference.low <= 0) & (difference.high >= 0)]

    def distances(self, prompts: Sequence[int] | np.ndarray | None = None) -> Float[np.ndarray, " temperature"]:
        """Return how far each temperature's texts are from the human ones, over all measures.

        The mean over the measures of the distance between the means, in standard deviations of the human texts; a
        measure in which the human texts do not differ is left out.

        Args:
            prompts: which to look at, some perhaps more than once; None is all.
        """
        chosen = np.arange(len(self.human["entropy"])) if prompts is None else np.asarray(prompts)
        rows = []
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            for name, values in self.samples.items():
                spread = np.nanstd(self.human[name])
                if spread > 0:
                    means = np.nanmean(values[:, chosen], axis=1) - np.nanmean(self.human[name][chosen])
                    rows.append(np.abs(means) / spread)
            return np.nanmean(rows, axis=0)


class Verdict(NamedTuple):
    """What the measures say of a claim.

    Attributes:
        claim: in words.
        answer: `holds`, `does not hold`, or `not decided` where the interval allows both.
        evidence: in numbers.
    """

    claim: str
    answer: str
    evidence: str


def verdicts(sweep: Sweep) -> list[Verdict]:
    """Judge what the notebooks say of temperature, from reading four samples (Chollet, 2018, section 8.1).

    A claim holds where the 95 % interval of a mean difference is wholly on its side, and does not where it is wholly on
    the other. Those about temperatures that were not tried are left out.
    """
    at = {round(float(temperature), 3): place for place, temperature in enumerate(sweep.temperatures)}
    found = []

    def judge(claim: str, words: str, differences: np.ndarray, sign: int) -> None:
        mean, low, high = (float(number) for number in estimate(differences))
        spread = float(np.nanstd(differences, ddof=1))
        inside = low <= 0 <= high
        answer = "not decided" if inside or np.isnan(low) else "holds" if sign * mean > 0 else "does not hold"
        effect = f", {mean / spread:+.1f} standard deviations" if spread > 0 else ""
        found.append(Verdict(claim, answer, f"{words}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]{effect}"))

    if 0.2 in at:
        low = at[0.2]
        beyond = [
            ("A low temperature makes text repetitive.", "distinct_4", "fewer distinct 4-grams at 0.2 than human", -1),
            ("A low temperature makes text predictable.", "model_nats", "loss at 0.2 against human text's, nats", -1),
            ("At a low temperature all words are real.", "known_words", "known words at 0.2 against human text's", 1),
        ]
        for claim, name, words, sign in beyond:
            judge(claim, words, sweep.differences(name)[low], sign)
    if 0.2 in at and 1.0 in at:
        words = sweep.samples["known_words"]
        claim = "A higher temperature invents words."
        judge(claim, "known words at 1.0 against 0.2", words[at[1.0]] - words[at[0.2]], -1)
    if 1.2 in at:
        claim = "At a high temperature most words are random strings."
        judge(claim, "known words at 1.2 against one half", sweep.samples["known_words"][at[1.2]] - 0.5, -1)
    if 0.5 in at:
        found.append(_most_human(sweep, at[0.5]))
    return found


def _most_human(sweep: Sweep, place: int) -> Verdict:
    """Judge whether a temperature's texts are the most like human ones, over all measures."""
    distances = sweep.distances()
    best = int(np.argmin(distances))
    temperature, prompts = sweep.temperatures[place], np.arange(len(sweep.human["entropy"]))

    def excess(chosen: np.ndarray) -> float:
        resampled = sweep.distances(chosen)
        return resampled[place] - resampled[best]

    claim = f"{temperature:g} is the most interesting temperature, if that means the most human."
    if best == place:
        return Verdict(claim, "holds", f"of all it is the nearest: {distances[place]:.2f} standard deviations away")
    found = bootstrap(
        (prompts,), excess, vectorized=False, n_resamples=500, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = found.confidence_interval
    evidence = (
        f"over all measures its texts are {distances[place]:.2f} standard deviations from human ones, those of "
        f"{sweep.temperatures[best]:g} {distances[best]:.2f}: {distances[place] - distances[best]:+.2f} "
        f"[{low:+.2f}, {high:+.2f}]"
    )
    return Verdict(claim, "does not hold" if low > 0 else "not decided", evidence)
