"""Losses by epoch: a run's compared with published ones in numbers and a figure, and plots of any runs' curves."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from charlm_jax.analysis.figures import VERMILION, line_style, marker, new_figure
from charlm_jax.choices import GateActivation

Curve = Mapping[int, float]  # nats per character by epoch, from 1


@dataclass(frozen=True)
class Comparison:
    """A run's loss in one epoch, in nats per character, and the band that the published runs' losses span."""

    epoch: int
    loss: float
    lowest: float
    highest: float

    @property
    def distance(self) -> float:
        """Nats from the band: 0 inside it, negative below, positive above."""
        return max(self.loss - self.highest, 0.0) + min(self.loss - self.lowest, 0.0)


def read_published(text: str, gate_activation: GateActivation) -> dict[str, Curve]:
    """Read the published curves of the runs with given gates.

    Args:
        text: CSV with a row per epoch and a column per run, headed by its name and gates; remarks begin with `#`.
        gate_activation: the gates of the runs to read.
    """
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    columns = [column for column in rows[0] if column.endswith(f" {gate_activation}")]
    return {
        column.split()[0]: {int(row["epoch"]): float(row[column]) for row in rows if row[column]} for column in columns
    }


def compare(ours: Curve, published: Mapping[str, Curve]) -> list[Comparison]:
    """Compare a curve with the published ones, at every epoch that any of them shares with it."""
    comparisons = []
    for epoch, loss in sorted(ours.items()):
        losses = [curve[epoch] for curve in published.values() if epoch in curve]
        if losses:
            comparisons.append(Comparison(epoch, loss, min(losses), max(losses)))
    return comparisons


def plot_comparison(
    ours: Curve, published: Mapping[str, Curve], comparisons: Sequence[Comparison], *, title: str, tolerance: float
) -> Figure:
    """Draw the curves, and below them the distance from the published band in thousandths of a nat."""
    figure, (curves, distances) = new_figure(7.0, 6.0, 2, title=title, sharex=True, height_ratios=(3, 1))
    last = max(ours)
    numbers = (number for number in count() if line_style(number).colour != VERMILION)  # the colour of this run
    for number, (run, curve) in zip(numbers, published.items(), strict=False):
        epochs = [epoch for epoch in sorted(curve) if epoch <= last]
        losses = [curve[epoch] for epoch in epochs]
        style = {"marker": marker(len(epochs)), "lw": 1.5, **line_style(number).options}
        curves.plot(epochs, losses, label=f"published run {run}", **style)
    curves.plot(list(ours), list(ours.values()), "o", color=VERMILION, label="this run", ms=4, zorder=3)
    top = max(loss for curve in (ours, *published.values()) for epoch, loss in curve.items() if epoch <= min(last, 3))
    bottom = min(comparison.lowest for comparison in comparisons)
    curves.set_ylim(min(bottom, *ours.values()) - 0.02, top + 0.02)  # cuts off a published run that diverged
    curves.set_ylabel("training loss (nats per character)")
    curves.legend(frameon=False)

    distances.axhspan(-1000 * tolerance, 1000 * tolerance, color="0.92", zorder=0, label=f"within {tolerance:g} nats")
    distances.axhline(0, color="0.6", lw=0.8)
    epochs = [comparison.epoch for comparison in comparisons]
    distances.plot(epochs, [1000 * each.distance for each in comparisons], "o-", color=VERMILION, ms=4, lw=1)
    widest = max(2 * tolerance, *(1.2 * abs(comparison.distance) for comparison in comparisons))
    if len(comparisons) > 1:
        widest = min(widest, 4 * tolerance)  # cuts off this run too, if it diverged
    distances.set_ylim(-1000 * widest, 1000 * widest)
    distances.set_ylabel("distance from the\npublished band\n(0.001 nats)")
    distances.set_xlabel("epoch")
    distances.legend(frameon=False, loc="lower left", borderpad=0)
    distances.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


def loss_limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Return the nats per character between which to show curves; one that diverges is cut off."""
    lowest = min(min(curve.values()) for curve in curves)
    top = max(loss for curve in curves for loss in list(curve.values())[:3])
    return lowest - 0.05 * (top - lowest) - 0.01, top + 0.05 * (top - lowest) + 0.01


def plot_losses(curves: Mapping[int, Curve], *, limits: tuple[float, float], label: str, ink: str) -> Figure:
    """Draw curves without a background or a legend, with a dot on the lowest loss of each.

    Args:
        curves: by the numbers of their line styles.
        limits: of the loss axis, in nats per character.
        label: of the loss axis.
        ink: the colour of the axes and their text.
    """
    paper: dict[Any, Any] = {"figure.facecolor": "none", "axes.facecolor": "none", "font.size": 11}
    paper |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    with mpl.rc_context(paper):
        figure, axes = new_figure(6.0, 3.4)
    for number, curve in curves.items():
        style = line_style(number)
        axes.plot(list(curve), list(curve.values()), lw=1.8, **style.options)
        best = min(curve, key=curve.__getitem__)
        axes.plot(best, curve[best], "o", color=style.colour, ms=5)
    axes.set_ylim(limits)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(axis="y", color=ink, alpha=0.15, lw=0.6)
    return figure
