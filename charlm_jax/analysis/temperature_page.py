"""A temperature sweep as a page, a table and a figure."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from charlm_jax.analysis.calibration import Calibration
from charlm_jax.analysis.figures import BLUE, VERMILION, marker, new_figure
from charlm_jax.analysis.temperature_sweep import MEASURES, Sweep, estimate, verdicts

_COLUMNS = 4
_SHOWN = 100  # characters of a text that the page shows


def plot_sweep(sweep: Sweep, calibration: Calibration, *, title: str) -> Figure:
    """Draw every measure with its 95 % interval over prompts, the distance over all measures, and the loss.

    Human text's measures are bands. The loss is that of the model on human text, from its calibration.
    """
    panels = len(MEASURES) + 2
    rows = -(-panels // _COLUMNS)
    figure, axes = new_figure(3.4 * _COLUMNS, 2.5 * rows, rows, _COLUMNS, title=title, sharex=True)
    places, several = list(axes.flat), len(sweep.temperatures) > 1
    line = {"color": VERMILION, "lw": 2, "marker": marker(len(sweep.temperatures))}
    for place, (name, measure) in zip(places, MEASURES.items(), strict=False):
        samples, human = estimate(sweep.samples[name]), estimate(sweep.human[name])
        place.axhspan(float(human.low), float(human.high), color=BLUE, alpha=0.25, lw=0)
        place.axhline(float(human.mean), color=BLUE, lw=1.5, label="human text")
        if not several:
            place.vlines(sweep.temperatures, samples.low, samples.high, color=VERMILION, lw=2)
        place.fill_between(sweep.temperatures, samples.low, samples.high, color=VERMILION, alpha=0.25, lw=0)
        place.plot(sweep.temperatures, samples.mean, label="generated text", **line)
        nearest = sweep.nearest(name)
        if several and len(nearest):
            _mark(place, nearest[0], "nearest to human text")  # the lowest of a tie
        place.set_title(measure.label, fontsize=9)
    over_all, held_out = places[len(MEASURES) : panels]
    distances = sweep.distances()
    over_all.plot(sweep.temperatures, distances, **line)
    if several:
        _mark(over_all, sweep.temperatures[np.argmin(distances)], "nearest to human text")
    over_all.set_title("distance from human text, all measures", fontsize=9)
    over_all.set_ylim(0, 1.02)
    tried = calibration.temperatures
    # Those tried are 3 % apart: one is near any temperature between them.
    shown = (sweep.temperatures[0] <= 1.02 * tried) & (tried <= 1.02 * sweep.temperatures[-1])
    held_out.plot(tried[shown], calibration.losses[shown], **line | {"marker": marker(int(shown.sum()))})
    if shown[calibration.best]:
        _mark(held_out, tried[calibration.best], "lowest")
    held_out.set_title("loss on human text (nats/character)", fontsize=9)
    for place in places[panels:]:
        place.set_axis_off()
    held_out.set_visible(bool(shown.any()))
    for place in axes[-1]:
        place.set_xlabel("softmax temperature")
    for place in places:
        place.tick_params(labelsize=8)
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _mark(place: Axes, temperature: float, meaning: str) -> None:
    place.axvline(temperature, color="0.4", lw=1, ls=":", label=meaning)
    words = f"{temperature:g}" if meaning.startswith("nearest") else f"{temperature:.2f}, {meaning}"
    place.annotate(
        words, (temperature, 1), xycoords=("data", "axes fraction"), xytext=(2, -2),
        textcoords="offset points", va="top", fontsize=8, color="0.35",
    )  # fmt: skip


def sweep_page(sweep: Sweep, calibration: Calibration, texts: Sequence[str], *, title: str, note: str = "") -> str:
    """Return a sweep's results as Markdown.

    Args:
        sweep: the measurements.
        calibration: of the model on human text.
        texts: one for each temperature.
        title: of the page.
        note: a caveat about the intervals.
    """
    distances = sweep.distances()
    best, closest = calibration.temperatures[calibration.best], sweep.temperatures[np.argmin(distances)]
    edge = ", the edge of those tried" if calibration.best_at_edge else ""
    summary = (
        f"human text is likeliest at temperature {best:.2f}{edge} ({calibration.losses[calibration.best]:.4f} nats per "
        f"character). Intervals: 95 %, over prompts.{note}"
    )
    if len(distances) > 1:
        summary = (
            f"over all measures, texts at **{closest:g}** are the nearest to human ones (mean absolute Cliff's "
            f"delta {distances.min():.2f}; 0: alike, 1: no overlap); {summary}"
        )
    claims = [[verdict.claim, f"**{verdict.answer}**", verdict.evidence] for verdict in verdicts(sweep)]
    measures = []
    for name, measure in MEASURES.items():
        human, nearest = estimate(sweep.human[name]), sweep.nearest(name)
        there = sweep.samples[name][np.isin(sweep.temperatures, nearest[:1])]
        measures.append(
            [
                measure.label,
                f"{human.mean:.3f} [{human.low:.3f}, {human.high:.3f}]",
                _ranges(sweep, nearest),
                f"{estimate(there[0]).mean:.3f}" if len(there) else "",
                _ranges(sweep, sweep.alike(name)),
            ]
        )
    starts = [[f"{temperature:g}", _quoted(text)] for temperature, text in zip(sweep.temperatures, texts, strict=True)]
    return "\n".join(
        [
            f"# {title}",
            "",
            summary[0].upper() + summary[1:],
            "",
            *([*_markdown_table(["what the notebooks say", "", "evidence"], claims), ""] if claims else []),
            *_markdown_table(["measure", "human text", "nearest at", "there", "not told from human at"], measures),
            "",
            *(f"- {measure.label}: {measure.definition}" for measure in MEASURES.values()),
            "",
            *_markdown_table(["temperature", "how the first text begins"], starts),
            "",
        ]
    )


def sweep_table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of all means and differences from human text, with their 95 % intervals."""
    header = ["measure", "temperature", "mean", "low", "high", "difference", "difference_low", "difference_high"]
    rows = []
    for name in MEASURES:
        human, samples = estimate(sweep.human[name]), estimate(sweep.samples[name])
        differences = estimate(sweep.differences(name))
        rows.append([name, "human", *(f"{number:.6g}" for number in human), "", "", ""])
        for temperature, *numbers in zip(sweep.temperatures, *samples, *differences, strict=True):
            rows.append([name, *(f"{number:.6g}" for number in (temperature, *numbers))])
    return header, rows


def _ranges(sweep: Sweep, temperatures: Float[np.ndarray, " some"]) -> str:
    """Name some of a sweep's temperatures, with three or more neighbours as a range."""
    places = np.flatnonzero(np.isin(sweep.temperatures, temperatures))
    named = []
    for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
        names = [f"{temperature:g}" for temperature in sweep.temperatures[run]]
        named += names if len(names) < 3 else [f"{names[0]} to {names[-1]}"]
    return ", ".join(named) or "none"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _quoted(text: str) -> str:
    """Return a text's beginning as inline Markdown code for a table: one line, in which nothing is mark-up."""
    line = "".join(character if character.isprintable() else " " for character in text[:_SHOWN])
    return f"`` {line.replace('`', chr(39)).replace('|', chr(92) + '|')} ``"
