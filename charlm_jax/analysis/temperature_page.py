"""A temperature sweep as a page, a table and a picture."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from charlm_jax.analysis.calibration import Calibration
from charlm_jax.analysis.temperature_sweep import MEASURES, Sweep, estimate, verdicts

_MODEL, _HUMAN = "#D55E00", "#0072B2"  # of Okabe and Ito's colours, told apart by every kind of eye
_COLUMNS = 4
_SHOWN = 100  # characters of a text on the page


def plot_sweep(sweep: Sweep, calibration: Calibration, *, title: str) -> Figure:
    """Draw every measure with its 95 % interval over prompts, the human text's as a band, and the loss on human text.

    Args:
        sweep: what was measured.
        calibration: of the model on held-out text.
        title: of the whole.
    """
    panels = len(MEASURES) + 2
    figure = Figure(figsize=(3.4 * _COLUMNS, 2.5 * -(-panels // _COLUMNS)), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(-(-panels // _COLUMNS), _COLUMNS, sharex=True)
    places = list(axes.flat)
    for place, (name, measure) in zip(places, MEASURES.items(), strict=False):
        samples, human = estimate(sweep.samples[name]), estimate(sweep.human[name])
        place.axhspan(float(human.low), float(human.high), color=_HUMAN, alpha=0.25, lw=0)
        place.axhline(float(human.mean), color=_HUMAN, lw=1.5, label="human text")
        place.fill_between(sweep.temperatures, samples.low, samples.high, color=_MODEL, alpha=0.25, lw=0)
        place.plot(sweep.temperatures, samples.mean, color=_MODEL, lw=2, label="generated text")
        _mark(place, sweep.temperatures[sweep.nearest(name)])
        place.set_title(measure.label, fontsize=9)
    over_all, held_out = places[len(MEASURES) : panels]
    distances = sweep.distances()
    over_all.plot(sweep.temperatures, distances, color=_MODEL, lw=2)
    _mark(over_all, sweep.temperatures[np.argmin(distances)])
    over_all.set_title("distance from human text (standard deviations)", fontsize=9)
    over_all.set_ylim(bottom=0)
    shown = _within(calibration.temperatures, sweep.temperatures)
    held_out.plot(calibration.temperatures[shown], calibration.losses[shown], color=_MODEL, lw=2)
    _mark(held_out, calibration.temperatures[calibration.best])
    held_out.set_title("loss on human text, and where it is lowest", fontsize=9)
    for place in places[panels:]:
        place.set_axis_off()
    for place in axes[-1]:
        place.set_xlabel("softmax temperature")
    for place in places:
        place.spines[["top", "right"]].set_visible(False)
        place.tick_params(labelsize=8)
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _mark(place: Axes, temperature: float) -> None:
    place.axvline(temperature, color="0.4", lw=1, ls=":", label="nearest to human text")
    place.annotate(
        f"{temperature:g}", (temperature, 1), xycoords=("data", "axes fraction"), xytext=(2, -2),
        textcoords="offset points", va="top", fontsize=8, color="0.35",
    )  # fmt: skip


def _within(values: Float[np.ndarray, " value"], others: Float[np.ndarray, " other"]) -> np.ndarray:
    return (values >= others.min()) & (values <= others.max())


def sweep_page(sweep: Sweep, calibration: Calibration, texts: Sequence[str], *, title: str) -> str:
    """Return a sweep's results as Markdown.

    Args:
        sweep: what was measured.
        calibration: of the model on held-out text.
        texts: one at each temperature.
        title: of the page.
    """
    distances = sweep.distances()
    best, nearest = calibration.temperatures[calibration.best], sweep.temperatures[np.argmin(distances)]
    claims = [[verdict.claim, f"**{verdict.answer}**", verdict.evidence] for verdict in verdicts(sweep)]
    measures = []
    for name, measure in MEASURES.items():
        human, place, alike = estimate(sweep.human[name]), sweep.nearest(name), sweep.alike(name)
        there = [f"{temperature:g}" for temperature in alike]
        shown = ["none"] if not there else there if len(there) < 4 else [f"{there[0]} to {there[-1]}"]
        measures.append(
            [
                measure.label,
                f"{human.mean:.3f} [{human.low:.3f}, {human.high:.3f}]",
                f"{sweep.temperatures[place]:g}",
                f"{np.nanmean(sweep.samples[name][place]):.3f}",
                ", ".join(shown),
            ]
        )
    starts = [[f"{temperature:g}", _quoted(text)] for temperature, text in zip(sweep.temperatures, texts, strict=True)]
    return "\n".join(
        [
            f"# {title}",
            "",
            f"Over all measures the texts at **{nearest:g}** are the nearest to human ones "
            f"({distances.min():.2f} standard deviations away); the held-out text is the likeliest at {best:g} "
            f"({calibration.losses[calibration.best]:.4f} nats per character). Intervals: 95 %, over prompts.",
            "",
            *_markdown_table(["what the notebooks say", "", "evidence"], claims),
            "",
            *_markdown_table(["measure", "human text", "nearest at", "there", "not told from human at"], measures),
            "",
            *_markdown_table(["temperature", "how the first text begins"], starts),
            "",
        ]
    )


def sweep_table(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of all means with their 95 % intervals, and the differences from human text."""
    header = ["measure", "temperature", "mean", "low", "high", "difference", "difference_low", "difference_high"]
    rows = []
    for name in MEASURES:
        human, samples = estimate(sweep.human[name]), estimate(sweep.samples[name])
        differences = estimate(sweep.differences(name))
        rows.append([name, "human", *(f"{number:.6g}" for number in human), "", "", ""])
        for temperature, *numbers in zip(sweep.temperatures, *samples, *differences, strict=True):
            rows.append([name, *(f"{number:.6g}" for number in (temperature, *numbers))])
    return header, rows


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _quoted(text: str) -> str:
    """Return a text's beginning as Markdown code in a table: one line, in which nothing is mark-up."""
    line = "".join(character if character.isprintable() else " " for character in text[:_SHOWN])
    return f"`` {line.replace('`', chr(39)).replace('|', chr(92) + '|')} ``"
