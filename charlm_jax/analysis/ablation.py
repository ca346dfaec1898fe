"""Results of a grid of runs: means over replicas with confidence intervals, as a table and a figure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy.stats import t

from charlm_jax.analysis.figures import line_style, mark_logarithms, new_figure
from charlm_jax.choices import Objective
from charlm_jax.learning.objective import targets_of
from charlm_jax.model.network import CharacterLSTM

Choice = str | int | float | bool | None


@dataclass(frozen=True)
class Outcome:
    """The result of one run.

    Attributes:
        choices: the run's values of the fields in which the grid's runs differ, by name; the seed is not one of them.
        seed: the run's seed.
        held_out_loss: the lowest, in nats per character; nan if the run diverged or failed.
        training_loss: the same model's loss on training text, without dropout, in nats per character; nan likewise.
        parameters: number of the model's parameters; nan if the run failed.
        flops: per character read in training, see `training_flops`; nan if the run failed.
        together: number of models trained in one program, including this one.
        characters_per_second: read by this model in training; nan if unknown.
        failure: why training could not finish; empty if it could.
    """

    choices: Mapping[str, Choice]
    seed: int
    held_out_loss: float
    training_loss: float
    parameters: int | float
    flops: float
    together: int
    characters_per_second: float
    failure: str = ""

    @property
    def gap(self) -> float:
        """Held-out loss minus training loss, in nats per character."""
        return self.held_out_loss - self.training_loss


class Interval(NamedTuple):
    """A mean over replicas with its 95 % confidence interval, which is nan for one replica; for none, all is nan."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return the mean of the values that are not nan, with its interval by Student's t distribution."""
        there = [value for value in values if not math.isnan(value)]
        count, mean = len(there), float(np.mean(there)) if there else math.nan
        if count < 2:
            return cls(mean, math.nan, math.nan)
        half = float(t.ppf(0.975, count - 1) * np.std(there, ddof=1) / math.sqrt(count))
        return cls(mean, mean - half, mean + half)


def by_choices(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Group outcomes by their choices, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(tuple(outcome.choices.items()), []).append(outcome)
    return list(groups.values())


def training_flops(network: CharacterLSTM, objective: Objective, window: int) -> float:
    """Return the floating-point operations that training spends per character read.

    Two per weight of every matrix that a character passes through, and twice as many again for the backward pass
    (Kaplan et al., 2020). The first layer looks its characters up, which costs none: an embedding is multiplied out
    once per step. Only the characters that the objective learns pass through the head.
    """
    gates = (2 * network.layers - 1) * 4 * network.hidden_size**2  # all recurrent kernels, all input kernels but one
    head = network.hidden_size * network.vocabulary_size
    return 6.0 * (gates + head * targets_of(objective, window).learned / window)


def _median(numbers: Sequence[float]) -> float:
    """Return the median of the numbers that are known, or nan; a run that diverges at once has no speed."""
    known = [number for number in numbers if not math.isnan(number)]
    return statistics.median(known) if known else math.nan


def results_table(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of a grid's results, one row per combination; a last column says why runs failed."""
    rows: list[dict[str, str]] = []

    def written(number: int | float, form: str) -> str:
        return "" if math.isnan(number) else format(number, form)

    for group in by_choices(outcomes):
        first = group[0]
        loss, gap = (Interval.of([getattr(each, measure) for each in group]) for measure in ("held_out_loss", "gap"))
        losses = {"held_out_loss": loss.mean, "low": loss.low, "high": loss.high}
        losses |= {"bits_per_character": loss.mean / math.log(2)}
        losses |= {"gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high}
        diverged = sum(math.isnan(outcome.held_out_loss) and not outcome.failure for outcome in group)
        speed = _median([outcome.characters_per_second for outcome in group])
        row = {name: str(choice) for name, choice in first.choices.items()}
        row |= {"replicas": str(len(group)), "diverged": str(diverged)}
        row |= {name: written(number, ".4f") for name, number in losses.items()}
        row |= {"parameters": written(first.parameters, ".0f"), "flops_per_character": written(first.flops, ".0f")}
        row |= {"trained_together": str(first.together), "characters_per_second_each": written(speed, ".0f")}
        if any(outcome.failure for outcome in outcomes):
            row["failure"] = "; ".join(dict.fromkeys(outcome.failure for outcome in group if outcome.failure))
        rows.append(row)
    return list(rows[0]), [list(row.values()) for row in rows]


def plot_outcomes(outcomes: Sequence[Outcome], *, title: str) -> Figure:
    """Draw losses, their gap, costs and speed against the first choice, one line per combination of the others.

    Losses and gaps are means with 95 % intervals; beside each interval there is a dot for every run.
    """
    name = next(iter(outcomes[0].choices))
    across = list(dict.fromkeys(outcome.choices[name] for outcome in outcomes))
    numeric = all(type(value) in (int, float) for value in across)
    at = {value: value if numeric and isinstance(value, int | float) else place for place, value in enumerate(across)}
    lowest, highest = min(at.values()), max(at.values())
    scaled = numeric and lowest > 0 and highest >= 4 * lowest

    def place_of(outcome: Outcome, aside: float) -> float:
        """Return a run's position on the axis, shifted by a share of the axis."""
        place = at[outcome.choices[name]]
        return place * (highest / lowest) ** aside if scaled else place + aside * (highest - lowest or 1)

    lines: dict[tuple[Any, ...], list[list[Outcome]]] = {}
    for group in by_choices(outcomes):
        lines.setdefault(tuple(list(group[0].choices.items())[1:]), []).append(group)
    figure, ((loss, gap), (cost, speed)) = new_figure(10.0, 6.4, 2, 2, title=title, grid="y", sharex=True)
    for number, (others, groups) in enumerate(lines.items()):
        aside = (number - (len(lines) - 1) / 2) * 0.02  # so that no interval hides another
        places = [place_of(group[0], aside) for group in groups]
        label = ", ".join(f"{other.replace('_', ' ')} {value}" for other, value in others)
        style = {**line_style(number).options, "label": label}
        for axes, measure in ((loss, "held_out_loss"), (gap, "gap")):
            intervals = [Interval.of([getattr(outcome, measure) for outcome in group]) for group in groups]
            means, _, highs = np.transpose(intervals)
            axes.errorbar(places, means, yerr=highs - means, lw=1.8, capsize=4, **style)
            dots = [(place_of(run, aside + 0.008), getattr(run, measure)) for group in groups for run in group]
            axes.plot(*np.transpose(dots), "o", color=style["color"], ms=3.5, alpha=0.5, mew=0)
        speeds = [_median([each.together * each.characters_per_second for each in group]) for group in groups]
        speed.plot(places, speeds, "o", **style)
        cost.plot(places, [group[0].parameters for group in groups], "o", **style)
        cost.plot(places, [group[0].flops for group in groups], "s", **{**style, "mfc": "none"})
    for marker, fill, label in (("o", "0.4", "parameters"), ("s", "none", "FLOPs per character of training")):
        cost.plot([], [], marker, color="0.4", mfc=fill, label=label)
    loss.set_ylabel("held-out loss (nats per character)")
    gap.set_ylabel("held-out minus training loss\n(nats per character)")
    cost.set_ylabel("parameters; FLOPs")
    speed.set_ylabel("characters read per second,\nall models trained together")
    speed.axhline(0, lw=0)  # with the room that a figure leaves above what it shows
    speed.set_ylim(bottom=0)
    speed.yaxis.set_major_formatter(EngFormatter(sep=""))
    if not all(math.isnan(outcome.parameters) for outcome in outcomes):
        cost.set_yscale("log")
        mark_logarithms(cost.yaxis, EngFormatter(sep=""))
    cost.legend(*(entries[-2:] for entries in cost.get_legend_handles_labels()), frameon=False, fontsize=9)
    for axes in figure.axes:
        if scaled:
            axes.set_xscale("log", base=2)
        axes.set_xticks(list(at.values()), [str(value) for value in across], parse_math=False)
        axes.xaxis.minorticks_off()
    for axes in (cost, speed):
        axes.set_xlabel(name.replace("_", " "))
    if len(lines) > 1:
        handles, labels = speed.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure
