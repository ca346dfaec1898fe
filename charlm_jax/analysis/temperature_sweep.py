"""How the softmax temperature changes generated text, compared with human text: means, intervals, verdicts."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import bootstrap

from charlm_jax.analysis.baselines import ORDER
from charlm_jax.analysis.text_statistics import STATISTICS, Statistic
from charlm_jax.choices import MIN_TEXTS

MEASURES = {
    **STATISTICS,
    "model_nats": Statistic(
        "loss under the model (nats/character)", "Mean negative log-likelihood under the model, at temperature 1."
    ),
    "ngram_nats": Statistic(
        f"loss under a {ORDER}-gram (nats/character)",
        f"Mean negative log-likelihood under a Kneser-Ney {ORDER}-gram of the training text.",
    ),
}
"""Everything that is measured of a text, by name."""

_RESAMPLES = 2000
_INTERVAL = 2.5, 97.5  # percentiles


class Estimate(NamedTuple):
    """A mean over prompts with its 95 % confidence interval."""

    mean: Float[np.ndarray, "*axes"]
    low: Float[np.ndarray, "*axes"]
    high: Float[np.ndarray, "*axes"]


def estimate(values: Float[np.ndarray, "*axes prompt"]) -> Estimate:
    """Return the mean over prompts, with a percentile bootstrap's interval (Efron and Tibshirani, 1993).

    All rows share the same resamples of prompts. If the values are differences between two texts after the same prompt,
    the interval is paired. Texts that lack a statistic (nan) are left out; if fewer than `MIN_TEXTS` have it, there is
    no interval (nan), and if none has, no mean either.
    """
    few = np.sum(~np.isnan(values), axis=-1) < MIN_TEXTS
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # means of nothing are nan
        mean = np.nanmean(values, axis=-1)
        if np.all(few):
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
        # Not the interval that `found` has, which is nan if any resample has nothing but nan.
        low, high = np.nanpercentile(found.bootstrap_distribution, _INTERVAL, axis=-1)
    return Estimate(mean, *(np.where(few, np.nan, bound) for bound in (low, high)))


@dataclass(frozen=True)
class Sweep:
    """Measures of texts that continue the same prompts: generated ones at each temperature, and human ones.

    Attributes:
        temperatures: in increasing order.
        samples: `MEASURES` of the generated texts.
        human: `MEASURES` of the human texts.
    """

    temperatures: Float[np.ndarray, " temperature"]
    samples: Mapping[str, Float[np.ndarray, "temperature prompt"]]
    human: Mapping[str, Float[np.ndarray, " prompt"]]

    def differences(self, name: str) -> Float[np.ndarray, "temperature prompt"]:
        """Return each generated text's measure minus that of the human text after the same prompt."""
        return self.samples[name] - self.human[name]

    def nearest(self, name: str) -> Float[np.ndarray, " nearest"]:
        """Return the temperature at which the mean of a measure is nearest to human text's; all of a tie.

        Only those count at which at least `MIN_TEXTS` texts have the measure.
        """
        enough = np.sum(~np.isnan(self.differences(name)), axis=1) >= MIN_TEXTS
        if not enough.any():
            return self.temperatures[enough]
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # means of nothing are nan
            apart = np.abs(np.nanmean(self.samples[name], axis=1) - np.nanmean(self.human[name]))
            apart = np.where(enough, apart, np.nan)
            return self.temperatures[np.isclose(apart, np.nanmin(apart), rtol=0, atol=1e-9)]

    def alike(self, name: str) -> Float[np.ndarray, " alike"]:
        """Return the temperatures at which a measure does not tell texts from human ones: 0 is in the interval."""
        difference = estimate(self.differences(name))
        return self.temperatures[(difference.low <= 0) & (difference.high >= 0)]

    def distances(
        self, weights: Float[np.ndarray, "*axes prompt"] | None = None
    ) -> Float[np.ndarray, "*axes temperature"]:
        """Return how far each temperature's texts are from the human ones, over all measures, from 0 to 1.

        This is the mean over measures of the absolute value of Cliff's delta (1993): the probability that a generated
        text exceeds a human one, minus that of the reverse. At 0 neither is more likely, at 1 the texts are wholly
        apart. The units and spreads of the measures do not matter. A text without a measure, as of its words if it has
        none, is below all that have it.

        Args:
            weights: how often each prompt counts; None means once.
        """
        prompts = len(next(iter(self.human.values())))
        weights = np.ones(prompts) if weights is None else weights
        shares = weights / weights.sum(axis=-1, keepdims=True)
        deltas = []
        for name, samples in self.samples.items():
            ours, human = (np.where(np.isnan(each), -np.inf, each) for each in (samples[:, :, None], self.human[name]))
            exceeds = np.where(ours > human, 1.0, 0.0) - (ours < human)
            deltas.append(np.abs(np.einsum("tij,...i,...j->...t", exceeds, shares, shares, optimize=True)))
        return np.mean(deltas, axis=0)


class Verdict(NamedTuple):
    """What the measures say about a claim.

    Attributes:
        claim: in words.
        answer: `holds`, `does not hold`, or `not decided` if the interval allows both or texts lack the measure.
        evidence: in numbers.
    """

    claim: str
    answer: str
    evidence: str


def verdicts(sweep: Sweep) -> list[Verdict]:
    """Judge what the notebooks claim about temperature from reading four samples (Chollet, 2018, section 8.1).

    A claim holds if the 95 % interval of a mean difference lies wholly on its side, and does not hold if it lies wholly
    on the other. Claims about temperatures that were not tried are left out.
    """
    human, found = sweep.human, list[Verdict]()

    def at(temperature: float, measure: str) -> Float[np.ndarray, "tried prompt"]:
        """Return a measure of the texts at a temperature as one row, or no row if it was not tried."""
        return sweep.samples[measure][np.isclose(sweep.temperatures, temperature, rtol=0, atol=5e-4)]

    def judge(claim: str, words: str, differences: np.ndarray, sign: int, margin: float = 0.0) -> None:
        if not differences.size:
            return
        if (known := np.sum(~np.isnan(differences))) < MIN_TEXTS:
            found.append(Verdict(claim, "not decided", f"{words}: only {known} of {differences.size} texts have both"))
            return
        mean, low, high = (float(numbers[0]) for numbers in estimate(differences))
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            spread = float(np.nanstd(differences, ddof=1))
        low_side, high_side = sorted((sign * low + margin, sign * high + margin))
        answer = "holds" if low_side > 0 else "does not hold" if high_side < 0 else "not decided"
        effect = f", {mean / spread:+.1f} standard deviations" if spread > 0 else ""
        found.append(Verdict(claim, answer, f"{words}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]{effect}"))

    claim = "A low temperature makes text repetitive."
    judge(claim, "distinct 4-grams at 0.2 minus human text's", at(0.2, "distinct_4") - human["distinct_4"], -1)
    claim = "A low temperature makes text predictable."
    judge(claim, "loss under the model at 0.2 minus human text's", at(0.2, "model_nats") - human["model_nats"], -1)
    claim = "At a low temperature words are real: known at most one in a hundred less often than in human text."
    judge(claim, "known words at 0.2 minus human text's", at(0.2, "known_words") - human["known_words"], 1, margin=0.01)
    claim = "A higher temperature invents words."
    judge(claim, "known words at 1.0 minus those at 0.2", at(1.0, "known_words") - at(0.2, "known_words"), -1)
    claim = "At a high temperature most words are random strings."
    judge(claim, "known words at 1.2 minus one half", at(1.2, "known_words") - 0.5, -1)
    places = np.flatnonzero(np.isclose(sweep.temperatures, 0.5, rtol=0, atol=5e-4))
    if len(places) and len(sweep.temperatures) > 1:
        found.append(_most_human(sweep, int(places[0])))
    return found


def _most_human(sweep: Sweep, place: int) -> Verdict:
    """Judge whether a temperature's texts are nearest to human ones over all measures.

    That holds if they are in at least 97.5 % of resamples. It does not hold if those at the nearest temperature are
    nearer in as many, or more if it is the nearest of many: in 1 - 0.025/n, by Bonferroni's correction for n rivals.
    """
    prompts, distances = len(sweep.human["entropy"]), sweep.distances()
    drawn = np.random.default_rng(0).integers(0, prompts, (_RESAMPLES, prompts))
    weights = np.stack([np.bincount(those, minlength=prompts) for those in drawn]).astype(float)
    best, temperature, resampled = int(np.argmin(distances)), sweep.temperatures[place], sweep.distances(weights)
    wins = float(np.mean(np.argmin(resampled, axis=1) == place))
    rivals = len(distances) - 1
    loses = float(np.mean(resampled[:, place] > resampled[:, best]))
    nearest = f"{sweep.temperatures[best]:g} is the nearest, at {distances[best]:.2f} (0: alike, 1: no overlap)"
    own = f"{temperature:g} is at {distances[place]:.2f}; " if best != place else ""
    own += f"of resamples, {temperature:g} is nearest in {wins:.0%}"
    own += f", and further than {sweep.temperatures[best]:g} in {loses:.0%}" if best != place else ""
    return Verdict(
        f"{temperature:g} is the most interesting temperature, if that means the most human.",
        "holds" if wins >= 0.975 else "does not hold" if loses >= 1 - 0.025 / rivals else "not decided",
        f"over all measures {nearest}; {own}",
    )
