"""A run's training losses beside published ones: numbers and a picture."""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from charlm_jax.choices import GateActivation

Curve = Mapping[int, float]  # nats per character by epoch, from 1

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # Okabe and Ito's, told apart by every kind of eye
_OURS = "#D55E00"


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
    distances.set_ylim(-1000 * widest, 1000 * widest)
    distances.set_ylabel("distance from the\npublished band\n(0.001 nats)")
    distances.set_xlabel("epoch")
    distances.legend(frameon=False, loc="upper right", borderpad=0)
    distances.xaxis.get_major_locator().set_params(integer=True)
    for axes in (curves, distances):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
