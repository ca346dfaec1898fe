"""Losses by epoch: a run's beside published ones in numbers and a picture, and pictures of any runs' curves."""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from charlm_jax.choices import GateActivation

Curve = Mapping[int, float]  # nats per character by epoch, from 1

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # Okabe and Ito's, told apart by every kind of eye
_OURS = "#D55E00"
# Told apart by every kind of eye, and from a light page as from a dark one (3 to 1 at least); then by their dashes.
_STYLE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B0609A", "#7F7F7F")
_STYLE_DASHES = ((), (4.0, 2.0), (1.0, 1.5), (6.0, 2.0, 1.0, 2.0))


@dataclass(frozen=True)
class Comparison:
    """One epoch of a run beside the band that the published runs span.

    Attributes:
        epoch: its number.
        loss: the run's, in nats per character.
        lowest: of the published losses.
        highest: of the published losses.
    """

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
        text: comma-separated; a row an epoch, a column a run, headed by its name and its gates; `#` before remarks.
        gate_activation: the gates.
    """
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    columns = [column for column in rows[0] if column.endswith(f" {gate_activation}")]
    return {
        column.split()[0]: {int(row["epoch"]): float(row[column]) for row in rows if row[column]} for column in columns
    }


def compare(ours: Curve, published: Mapping[str, Curve]) -> list[Comparison]:
    """Lay a curve beside the published ones, at every epoch that both have."""
    comparisons = []
    for epoch, loss in sorted(ours.items()):
        losses = [curve[epoch] for curve in published.values() if epoch in curve]
        if losses:
            comparisons.append(Comparison(epoch, loss, min(losses), max(losses)))
    return comparisons


def plot_comparison(
    ours: Curve, published: Mapping[str, Curve], comparisons: Sequence[Comparison], *, title: str, tolerance: float
) -> Figure:
    """Draw the curves, and under them the distance from the published band in thousandths of a nat."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    curves, distances = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    last = max(ours)
    for colour, (run, curve) in zip(itertools.cycle(_COLOURS), published.items(), strict=False):
        epochs = [epoch for epoch in sorted(curve) if epoch <= last]
        curves.plot(epochs, [curve[epoch] for epoch in epochs], color=colour, label=f"published run {run}", lw=1.5)
    curves.plot(list(ours), list(ours.values()), "o", color=_OURS, label="this run", ms=4, zorder=3)
    top = max(loss for curve in (ours, *published.values()) for epoch, loss in curve.items() if epoch <= min(last, 3))
    bottom = min(comparison.lowest for comparison in comparisons)
    curves.set_ylim(min(bottom, *ours.values()) - 0.02, top + 0.02)  # a published run that diverged leaves the picture
    curves.set_ylabel("training loss (nats per character)")
    curves.set_title(title)
    curves.legend(frameon=False)

    distances.axhspan(-1000 * tolerance, 1000 * tolerance, color="0.92", zorder=0, label=f"within {tolerance:g} nats")
    distances.axhline(0, color="0.6", lw=0.8)
    distances.plot(
        [comparison.epoch for comparison in comparisons],
        [1000 * comparison.distance for comparison in comparisons],
        "o-",
        color=_OURS,
        ms=4,
        lw=1,
    )
    widest = max(2 * tolerance, *(1.2 * abs(comparison.distance) for comparison in comparisons))
    widest = min(widest, 4 * tolerance)  # a run that diverged leaves this picture too
    distances.set_ylim(-1000 * widest, 1000 * widest)
    distances.set_ylabel("distance from the\npublished band\n(0.001 nats)")
    distances.set_xlabel("epoch")
    distances.legend(frameon=False, loc="lower left", borderpad=0)
    distances.xaxis.get_major_locator().set_params(integer=True)
    for axes in (curves, distances):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@dataclass(frozen=True)
class LineStyle:
    """How a curve is drawn, here and in a legend elsewhere.

    Attributes:
        colour: as #RRGGBB.
        dashes: lengths of ink and gap in turn, in widths of the line; none for a solid one.
    """

    colour: str
    dashes: tuple[float, ...]


def line_style(number: int) -> LineStyle:
    """Return the style of the curve with this number, from 0: twenty differ."""
    turn, place = divmod(number, len(_STYLE_COLOURS))
    return LineStyle(_STYLE_COLOURS[place], _STYLE_DASHES[turn % len(_STYLE_DASHES)])


def loss_limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Return the nats per character between which curves are shown: one that diverges leaves the picture."""
    lowest = min(min(curve.values()) for curve in curves)
    top = max(loss for curve in curves for loss in list(curve.values())[:3])
    return lowest - 0.05 * (top - lowest) - 0.01, top + 0.05 * (top - lowest) + 0.01


def plot_losses(curves: Mapping[int, Curve], *, limits: tuple[float, float], label: str, ink: str) -> Figure:
    """Draw curves without a background or a legend, a dot on the lowest loss of each.

    Args:
        curves: by the numbers of their line styles.
        limits: of the losses shown, in nats per character.
        label: of the axis of losses.
        ink: the colour of axes and words.
    """
    figure = Figure(figsize=(6, 3.4), layout="constrained", facecolor="none")
    axes = figure.subplots()
    for number, curve in curves.items():
        style = line_style(number)
        dashes = (0, style.dashes) if style.dashes else "solid"
        axes.plot(list(curve), list(curve.values()), color=style.colour, ls=dashes, lw=1.8)
        best = min(curve, key=curve.__getitem__)
        axes.plot(best, curve[best], "o", color=style.colour, ms=5)
    axes.set_ylim(limits)
    axes.set_xlabel("epoch", color=ink, fontsize=11)
    axes.set_ylabel(label, color=ink, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=ink, labelsize=11)
    axes.set_facecolor("none")
    axes.grid(axis="y", color=ink, alpha=0.15, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(ink)
    return figure
