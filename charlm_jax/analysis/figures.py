"""What all figures share: their page style, colours and lines, and how they are rendered to files."""

import io
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator

BLUE, VERMILION = "#0072B2", "#D55E00"  # from Okabe and Ito's palette
# Distinct under every kind of colour vision, with a contrast of at least 3 to 1 on light and dark pages alike. Curves
# of the same colour differ in their dashes.
_COLOURS = (BLUE, VERMILION, "#009E73", "#B0609A", "#7F7F7F")
_DASHES = ((), (4.0, 2.0), (1.0, 1.5), (6.0, 2.0, 1.0, 2.0))
_STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
}


class LineStyle(NamedTuple):
    """How a curve is drawn, by matplotlib or in a legend elsewhere.

    Attributes:
        colour: as #RRGGBB.
        dashes: alternating lengths of ink and gap, in line widths; empty for a solid line.
    """

    colour: str
    dashes: tuple[float, ...]

    @property
    def options(self) -> dict[str, Any]:
        """The style as matplotlib's keyword arguments."""
        return {"color": self.colour, "ls": (0, self.dashes) if self.dashes else "solid"}


def line_style(number: int) -> LineStyle:
    """Return the style of the curve with this number, from 0; the first twenty differ."""
    turn, place = divmod(number, len(_COLOURS))
    return LineStyle(_COLOURS[place], _DASHES[turn % len(_DASHES)])


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, *, title: str = "", grid: str = "", **options: Any
) -> tuple[Figure, Any]:
    """Return a figure of `width` by `height` inches, and its axes as `Figure.subplots` returns them.

    The title is not read as mark-up; `grid` names the axis, x or y, whose ticks get grid lines; `options` are those of
    `Figure.subplots`.
    """
    with mpl.rc_context({**_STYLE, "axes.grid": bool(grid), "axes.grid.axis": grid or "both"}):
        figure = Figure(figsize=(width, height))
        if title:
            figure.suptitle(title, parse_math=False)
        return figure, figure.subplots(rows, columns, **options)


def marker(points: int) -> str:
    """Return the marker of a curve, as matplotlib names it: none, but for a single point, which would be invisible."""
    return "o" if points == 1 else "none"


def mark_logarithms(axis: Axis, formatter: Formatter) -> None:
    """Label 1, 2 and 5 times each power of ten on a logarithmic axis, and nothing in between."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(formatter)
    axis.minorticks_off()


def as_picture(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a file, svg or png; the same figure gives the same bytes."""
    picture = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "charlm_jax"}):
        figure.savefig(picture, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return picture.getvalue()
