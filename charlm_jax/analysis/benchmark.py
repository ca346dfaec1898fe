"""Results of a benchmark: numbers derived from its timings, their tables and their figure.

The contenders import this module too, and their start is timed, so it imports nothing large.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from charlm_jax.choices import Precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW, BATCH_SIZE, VOCABULARY, EPOCH_STEPS = 60, 128, 57, 1565  # the published notebooks' job
OURS, REREADER = "charlm_jax", "Flax"


class Title(StrEnum):
    """The timed tasks that the tables know by name; the first four are compared between contenders."""

    TRAINING = "training step"
    WINDOWED = "windowed character"
    STATEFUL = "stateful character"
    FIRST_STEP = "time to the first step"
    PRODUCT = "matrix product"
    DEPENDENT = "dependent product"
    CHECKPOINT = "state saved and verified"


_COMPARED = Title.TRAINING, Title.WINDOWED, Title.STATEFUL, Title.FIRST_STEP


@dataclass(frozen=True)
class Timing:
    """Seconds that a contender took per unit of work, such as a step or a character, over the rounds.

    The precision is that of its matrix products; the peak memory so far is the GPU's or, on a CPU, the process's.
    """

    title: str
    contender: str
    precision: Precision
    hidden_size: int
    median: float
    minimum: float
    maximum: float
    peak_bytes: int

    @property
    def speed(self) -> str:
        """Characters per second, in words; empty for a task that is not counted in characters."""
        characters = BATCH_SIZE * WINDOW if self.title.startswith(Title.TRAINING) else int("character" in self.title)
        return f"{characters / self.median:14,.0f} characters a second" if characters else ""


@dataclass(frozen=True)
class Benchmark:
    """All measurements of a benchmark.

    Attributes:
        timings: in the order of the tables, the first at the hidden size at which everything was timed.
        devices: number of devices that this project uses.
        product_side: side of the square matrices whose product is the yardstick.
    """

    timings: Sequence[Timing]
    devices: int
    product_side: int

    @property
    def hidden_size(self) -> int:
        """The hidden size at which everything was timed."""
        return self.timings[0].hidden_size

    @property
    def precisions(self) -> list[Precision]:
        """The precisions in which this project was timed."""
        return list(dict.fromkeys(timing.precision for timing in self.timings if timing.contender == OURS))

    @property
    def only_precision(self) -> Precision | None:
        """The precision of all timings; None if there are several."""
        first = self.timings[0].precision
        return first if all(timing.precision == first for timing in self.timings) else None

    def named(self, words: str, precision: Precision) -> str:
        """Return words, followed by the precision if there are several."""
        return words if self.only_precision else f"{words}, {precision}"

    def medians(self, precision: Precision, hidden_size: int, contender: str = OURS) -> dict[str, float]:
        """Return a contender's median seconds by title; nan for what it was not timed at."""
        chosen = contender, precision, hidden_size
        medians = {t.title: t.median for t in self.timings if (t.contender, t.precision, t.hidden_size) == chosen}
        return defaultdict(lambda: math.nan, medians)

    def roofline(self, precision: Precision) -> dict[str, float]:
        """Return the rate of large matrix products, and by title the shares of it that this project reaches.

        The shares are those of training, and of the number of windowed streams that does best.
        """
        ours = self.medians(precision, self.hidden_size)
        rate = self.devices * 2 * self.product_side**3 / ours[Title.PRODUCT]
        row = 2 * self.hidden_size * 4 * self.hidden_size / rate  # seconds that one row's product takes at best
        many = [title for title in ours if title.startswith(Title.WINDOWED) and title.endswith("streams")]
        best = min(many, key=ours.__getitem__, default=Title.WINDOWED)
        return {
            "floating_point_operations_per_second": rate,
            Title.TRAINING: 3 * BATCH_SIZE * WINDOW * row / ours[Title.TRAINING],
            best: WINDOW * row / ours[best],
        }


def describe(benchmark: Benchmark) -> Iterator[str]:
    """Yield the lines of the tables."""
    compared: dict[tuple[str, int], list[Timing]] = {}
    for timing in benchmark.timings:
        if timing.title in _COMPARED:
            compared.setdefault((timing.title, timing.hidden_size), []).append(timing)
    for (title, size), rows in compared.items():
        yield f"{title}, hidden size {size}"
        for row in rows:
            ratio = row.median / benchmark.medians(row.precision, size)[title]
            more = {
                Title.TRAINING: f"{EPOCH_STEPS * row.median:8.3g} s an epoch",
                Title.FIRST_STEP: f"{row.peak_bytes / 2**20:8.0f} MiB",
            }.get(Title(title), "")
            spread = "" if row.minimum == row.maximum else f"({in_words(row.minimum)} to {in_words(row.maximum)})"
            ours = "" if row.contender == OURS else f"{ratio:8.1f} x ours"
            label = benchmark.named(row.contender, row.precision)
            yield f"  {label:<30} {in_words(row.median):>8}  {spread:<22}{more}{ours}".rstrip()
    for precision in benchmark.precisions:
        yield from _describe_own(benchmark, precision)


def _describe_own(benchmark: Benchmark, precision: Precision) -> Iterator[str]:
    """Yield the lines about what only this project is timed at, in one precision."""
    size, side = benchmark.hidden_size, benchmark.product_side
    ours = benchmark.medians(precision, size)
    here = partial(benchmark.named, precision=precision)
    rate, *shares = benchmark.roofline(precision).items()
    yield f"{here('roofline')}: matrix products of {side} x {side} run at {rate[1] / 1e9:.0f} GFLOP/s"
    for title, share in shares:
        yield f"  {title:<38} {share:4.0%}"
    floor, training = 2 * WINDOW * ours[Title.DEPENDENT], ours[Title.TRAINING]
    yield (
        f"{here('latency floor')}: the {2 * WINDOW} products of a training step that wait for one another take "
        f"{in_words(floor)} by themselves, {floor / training:.0%} of it"
    )
    ratio = benchmark.medians(precision, size, REREADER)[Title.WINDOWED] / ours[Title.WINDOWED]
    yield f"{here('the ring')}: {ratio:.1f} times as fast as a window re-read for each character ({REREADER})"
    yield f"{here(f'scaling of {OURS}')}, hidden size {size}"
    for timing in benchmark.timings:
        if (timing.contender, timing.precision) == (OURS, precision) and timing.title not in (
            *_COMPARED,
            Title.PRODUCT,
        ):
            yield f"  {timing.title:<38} {in_words(timing.median):>8}{timing.speed}"
    share = ours[Title.CHECKPOINT] / (EPOCH_STEPS * training)
    saved = here(f"a state saved and verified after each epoch of {EPOCH_STEPS:,} steps")
    yield f"{saved} costs {share:.2%} of training"


def in_words(seconds: float) -> str:
    """Return seconds as three significant digits and a unit."""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def plot_benchmark(benchmark: Benchmark) -> "Figure":
    """Draw the contenders' medians and ranges, one panel per task, on logarithmic scales."""
    from matplotlib.ticker import FuncFormatter

    from charlm_jax.analysis.figures import BLUE, new_figure

    first, titles = benchmark.hidden_size, _COMPARED[:3]
    panels = [[t for t in benchmark.timings if (t.title, t.hidden_size) == (title, first)] for title in titles]
    rows = max(map(len, panels))
    words = ", ".join(filter(None, [f"Hidden size {first}", benchmark.only_precision])) + ": median and range"
    figure, places = new_figure(12.0, 1.2 + 0.36 * rows, columns=3, title=words, grid="x")
    for axes, title, shown in zip(places, titles, panels, strict=True):
        for place, timing in enumerate(shown):
            colour = BLUE if timing.contender.startswith(OURS) else "0.4"
            axes.plot([timing.minimum, timing.maximum], [place, place], color=colour, lw=2, solid_capstyle="butt")
            axes.plot(timing.median, place, "o", color=colour, ms=7)
            beside = (timing.maximum, place), (8, 0)
            axes.annotate(in_words(timing.median), *beside, textcoords="offset points", va="center")
        axes.set_xscale("log")
        low, high = min(timing.minimum for timing in shown) / 1.5, max(timing.maximum for timing in shown)
        axes.set_xlim(low, low * (high / low) ** 1.6)  # three eighths of the axis are for words
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: in_words(seconds)))
        axes.set_yticks(range(len(shown)), [benchmark.named(timing.contender, timing.precision) for timing in shown])
        axes.set_ylim(rows - 0.4, -0.6)  # equally far apart in every panel, the first on top
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("time (logarithmic)")
    return figure
