"""What all figures have in common: their paper, their colours and lines, and how they become files."""

import io
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator

BLUE, VERMILION = "#0072B2", "#D55E00"  # of Okabe and Ito's colours
# Told apart by every kind of eye, and from a light page as from a dark one (3 to 1 at least); then by their dashes.
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
        dashes: lengths of ink and gap in turn, in widths of the line; none for a solid one.
    """

    colour: str
    dashes: tuple[float, ...]

    @property
    def options(self) -> dict[str, Any]:
        """In matplotlib's words."""
        return {"color": self.colour, "ls": (0, self.dashes) if self.dashes else "solid"}


def line_style(number: int) -> LineStyle:
    """Return the style of the curve with this number, from 0: twenty differ."""
    turn, place = divmod(number, len(_COLOURS))
    return LineStyle(_COLOURS[place], _DASHES[turn % len(_DASHES)])


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, *, title: str = "", grid: str = "", **options: Any
) -> tuple[Figure, Any]:
    """Return a figure of some inches, and its axes as `Figure.subplots` returns them, with whose other options.

    In the title nothing is mark-up; `grid` is the axis, x or y, whose marks have lines across.
    """
    with mpl.rc_context({**_STYLE, "axes.grid": bool(grid), "axes.grid.axis": grid or "both"}):
        figure = Figure(figsize=(width, height))
        if title:
            figure.suptitle(title, parse_math=False)
        return figure, figure.subplots(rows, columns, **options)


def mark_logarithms(axis: Axis, formatter: Formatter) -> None:
    """Mark 1, 2 and 5 times each power of ten on a logarithmic axis, and nothing between."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(formatter)
    axis.minorticks_off()


def as_picture(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file of a kind, svg or png; the same figure is the same bytes."""
    picture = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "charlm_jax"}):
        figure.savefig(picture, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return picture.getvalue()
