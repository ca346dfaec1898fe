"""Grids of runs as evidence: means over replicas with their intervals, as a table and a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator
from scipy.stats import t

from charlm_jax.analysis.loss_curves import line_style
from charlm_jax.choices import Objective
from charlm_jax.learning.objective import targets_of
from charlm_jax.model.network import CharacterLSTM

Choice = str | int | float | bool | None


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        choices: in which the runs of the grid differ, by the names of their fields; the seed not among them.
        seed: of the run.
        held_out_loss: the lowest, in nats per character; nan of a run that diverged.
        training_loss: of the same model on training text, nothing dropped, in nats per character; nan likewise.
        parameters: of the model; nan of a run that never began.
        flops: per character read while training; see `training_flops`.
        together: models that were trained in one program, this one among them.
        characters_per_second: that this one read while training; nan if unknown.
        failure: why it could not be trained to its end; empty if it could.
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
        """By how much the held-out text costs more than the training text, in nats per character."""
        return self.held_out_loss - self.training_loss


class Interval(NamedTuple):
    """A mean over replicas with its 95 % confidence interval, which is nan for one replica; of none all is nan."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return the interval that Student's t distribution gives to the mean of what is not nan."""
        there = [value for value in values if not math.isnan(value)]
        count, mean = len(there), float(np.mean(there)) if there else math.nan
        if count < 2:
            return cls(mean, math.nan, math.nan)
        half = float(t.ppf(0.975, count - 1) * np.std(there, ddof=1) / math.sqrt(count))
        return cls(mean, mean - half, mean + half)


def by_choices(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Return the outcomes with the same choices together, in the order in which they first come."""
    groups: dict[tuple[Any, ...], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(tuple(outcome.choices.items()), []).append(outcome)
    return list(groups.values())


def training_flops(network: CharacterLSTM, objective: Objective, window: int) -> float:
    """Return the floating-point operations that training spends on a character it reads.

    Two for each weight of a matrix that a character passes, and twice as many again for the backward pass (Kaplan et
    al., 2020). The first layer looks its characters up, which costs none: an embedding is multiplied out once a step.
    Only the characters that the objective learns pass the head.
    """
    gates = (2 * network.layers - 1) * 4 * network.hidden_size**2  # of each layer the recurrent kernel, and the input's
    head = network.hidden_size * network.vocabulary_size
    return 6.0 * (gates + head * targets_of(objective, window).learned / window)


def results_table(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of a grid's results, a row a combination; a last column says why some failed."""
    names = list(outcomes[0].choices)
    header = [
        *names,
        "replicas",
        "diverged",
        "held_out_loss",
        "low",
        "high",
        "bits_per_character",
        "gap",
        "gap_low",
        "gap_high",
    ]
    header += ["parameters", "flops_per_character", "trained_together", "characters_per_second_each"]
    failed = any(outcome.failure for outcome in outcomes)
    header += ["failure"] * failed
    rows = []

    def written(number: int | float, form: str) -> str:
        return "" if math.isnan(number) else format(number, form)

    for group in by_choices(outcomes):
        first, loss = group[0], Interval.of([outcome.held_out_loss for outcome in group])
        gap = Interval.of([outcome.gap for outcome in group])
        diverged = sum(math.isnan(outcome.held_out_loss) and not outcome.failure for outcome in group)
        shown = [*(str(choice) for choice in first.choices.values()), str(len(group)), str(diverged)]
        shown += [written(number, ".4f") for number in (*loss, loss.mean / math.log(2), *gap)]
        speed = float(np.median([outcome.characters_per_second for outcome in group]))
        shown += [written(first.parameters, ".0f"), written(first.flops, ".0f"), str(first.together)]
        failures = "; ".join(dict.fromkeys(outcome.failure for outcome in group if outcome.failure))
        rows.append([*shown, written(speed, ".0f"), *[failures] * failed])
    return header, rows


def plot_outcomes(outcomes: Sequence[Outcome], *, title: str) -> Figure:
    """Draw losses, their gap, the costs and the speed against the first choice, a line for each of the others'.

    Means with 95 % intervals, and beside each interval a dot for every run.
    """
    name = next(iter(outcomes[0].choices))
    across = list(dict.fromkeys(outcome.choices[name] for outcome in outcomes))
    numbers = [float(value) for value in across if isinstance(value, int | float) and not isinstance(value, bool)]
    numeric = len(numbers) == len(across)
    at = dict(zip(across, numbers if numeric else map(float, range(len(across))), strict=True))
    scaled = numeric and min(numbers) > 0 and max(numbers) >= 4 * min(numbers)
    width = (max(at.values()) - min(at.values())) or 1.0

    def moved(place: float, aside: float) -> float:
        """Return a place moved aside by a share of the axis."""
        return place * (max(numbers) / min(numbers)) ** aside if scaled else place + aside * width

    lines: dict[tuple[Any, ...], list[list[Outcome]]] = {}
    for group in by_choices(outcomes):
        lines.setdefault(tuple(list(group[0].choices.items())[1:]), []).append(group)
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    figure.suptitle(title, fontsize=11, parse_math=False)
    (loss, gap), (cost, speed) = figure.subplots(2, 2, sharex=True)
    for number, (others, groups) in enumerate(lines.items()):
        # Lines a little beside one another, so that no interval hides another.
        aside = (number - (len(lines) - 1) / 2) * 0.02
        places = [at[group[0].choices[name]] for group in groups]
        style = {
            "color": line_style(number).colour,
            "ls": (0, line_style(number).dashes) if line_style(number).dashes else "solid",
            "label": ", ".join(f"{other.replace('_', ' ')} {value}" for other, value in others),
        }
        for axes, measure in ((loss, "held_out_loss"), (gap, "gap")):
            values = [[getattr(outcome, measure) for outcome in group] for group in groups]
            _draw(axes, [moved(place, aside) for place in places], values, **style)
            for place, those in zip(places, values, strict=True):
                beside = [moved(place, aside + 0.008)] * len(those)
                axes.plot(beside, those, "o", color=style["color"], ms=3.5, alpha=0.5, mew=0)
        moved_places = [moved(place, aside) for place in places]
        speeds = [np.median([each.together * each.characters_per_second for each in group]) for group in groups]
        speed.plot(moved_places, speeds, "o", **style)
        cost.plot(moved_places, [group[0].parameters for group in groups], "o", **style)
        cost.plot(moved_places, [group[0].flops for group in groups], "s", **{**style, "mfc": "none"})
    places = list(at.values())
    for marker, fill, label in (("o", "0.4", "parameters"), ("s", "none", "FLOPs per character of training")):
        cost.plot([], [], marker, color="0.4", mfc=fill, label=label)
    loss.set_ylabel("held-out loss (nats per character)")
    gap.set_ylabel("held-out less training loss\n(nats per character)")
    cost.set_ylabel("parameters; FLOPs")
    speed.set_ylabel("characters read per second,\nall models trained together")
    speed.set_ylim(bottom=0)
    if not all(math.isnan(outcome.parameters) for outcome in outcomes):
        cost.set_yscale("log")
        cost.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    cost.legend(*(entries[-2:] for entries in cost.get_legend_handles_labels()), frameon=False, fontsize=9)
    for axes in (cost, speed):
        axes.set_xlabel(name.replace("_", " "))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.yaxis.set_minor_formatter(NullFormatter())
    for axes in (loss, gap, cost, speed):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", lw=0.6)
        axes.set_axisbelow(True)
        if scaled:
            axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(value) for value in across], parse_math=False)
        axes.xaxis.set_minor_locator(NullLocator())
    if len(lines) > 1:
        handles, labels = speed.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, places: Sequence[float], values: Sequence[Sequence[float]], **style: Any) -> None:
    """Draw the means of some values with their intervals, where there are any."""
    intervals = [Interval.of(those) for those in values]
    halves = [interval.high - interval.mean for interval in intervals]
    means = [interval.mean for interval in intervals]
    _, _, (bars,) = axes.errorbar(places, means, yerr=halves, lw=1.8, capsize=4, **style)
    bars.set_linestyle("solid")
