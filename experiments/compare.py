"""Compare runs side by side: how their configurations differ, how low their losses fell, and how soon.

    scripts/run compare RUN RUN... [--target LOSS] [--table FILE] [--figure FILE]

Prints a row per run: the choices in which the runs differ, the lowest held-out loss in nats per character, its epoch,
the seconds of training up to that epoch (not counting evaluations, texts and checkpoints), and the seconds up to the
first epoch whose loss is at or below the target, which is the first run's lowest loss if none is given. A run without a
held-out loss is left out. If a run was interrupted within an epoch, that epoch's seconds are unknown: its times end
there.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tyro

from charlm_jax.errors import InputError, require
from charlm_jax.runs.command_line import folded, make_each, print_table, require_file, run_command, tell

if TYPE_CHECKING:  # what --help can do without
    import numpy as np

    from charlm_jax.runs.directory import RunDirectory

# Choices that affect the generated texts but not the loss.
_OF_TEXTS = {"temperatures", "sample_every", "sample_length", "sampler", "prompt_start", "continuation"}
# Choices that decide which characters a loss is of, and in how much context.
_OF_LOSSES = "held_out_fraction", "window", "stride"


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs, or directories that hold runs and grids, in the order of the table."""
    target: float | None = None
    """Held-out loss to time each run to, in nats per character; the first run's lowest if not given."""
    table: Path | None = None
    """Where to write the table too, as comma-separated values."""
    figure: Path | None = None
    """Where to draw loss against seconds, as SVG or PNG by its ending."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("no run is named; give directories of runs: scripts/run compare RUN RUN...")
        require("--target", self.target, self.target is None or math.isfinite(self.target), "a number of nats")
        require_file("--figure", self.figure, ".svg", ".png")
        require_file("--table", self.table, ".csv")


class Course(NamedTuple):
    """How a run's held-out loss fell.

    Attributes:
        run: its directory.
        name: of the run, among those compared.
        seconds: of training up to the end of each epoch; nan from the first epoch whose own are unknown.
        epochs: their numbers.
        losses: held-out losses after each epoch, in nats per character.
    """

    run: "RunDirectory"
    name: str
    seconds: "np.ndarray"
    epochs: list[int]
    losses: "np.ndarray"

    def clock(self, places: Sequence[int]) -> str:
        """Return the seconds up to the first of some epochs as text; empty if there is none or they are unknown."""
        return "".join(f"{each:.1f}" for each in self.seconds[places[:1]] if not math.isnan(each))


def read_course(run: "RunDirectory", name: str) -> Course:
    """Read the course of the held-out loss of a run, which the table and the figure call `name`.

    Raises:
        InputError: it has no held-out loss.
    """
    import numpy as np

    from charlm_jax.runs.records import read_records

    losses = {record["step"]: record["held_out_loss"] for record in read_records(run.metrics, "evaluation")}
    epochs = [record for record in read_records(run.metrics, "epoch") if record["step"] in losses]
    if not epochs:
        held_out = run.configuration().held_out_fraction
        way = "let it finish an epoch" if held_out else "none is held out; train another with --held-out-fraction 0.1"
        raise InputError(f"the run {str(run.path)!r} has no held-out loss: {way}")
    seconds = np.cumsum(np.array([record["seconds"] for record in epochs], float))  # None becomes nan
    numbers = [record["epoch"] for record in epochs]
    return Course(run, name, seconds, numbers, np.array([losses[record["step"]] for record in epochs]))


def main(flags: Sequence[str]) -> None:
    """Read, print and draw."""
    arguments = tyro.cli(Arguments, prog="scripts/run compare", description=folded(__doc__), args=flags)

    import numpy as np

    from charlm_jax.runs.directory import choices_that_differ, find_runs, parent_of
    from charlm_jax.runs.files import write_table

    named = find_runs(*arguments.runs)
    parent = parent_of(named)
    courses = make_each(lambda run: read_course(run, str(run.path.resolve().relative_to(parent))), named)
    runs = [course.run for course in courses]
    target = courses[0].losses.min() if arguments.target is None else arguments.target
    differing = choices_that_differ(runs)
    texts = {run.provenance()["corpus"]["sha256"] for run in runs}
    for name in [*["text"] * (len(texts) > 1), *(name for name in _OF_LOSSES if name in differing)]:
        tell(f"note: the runs differ in {name}, so their losses cover different characters or contexts")
    for course in courses:
        if np.isnan(course.seconds).any():
            tell(f"note: {course.name} was stopped within an epoch; its seconds are unknown from there")
    choices = [name for name in differing if name not in _OF_TEXTS]
    header = ["run", *choices, "held_out_loss", "epoch", "seconds", f"seconds_to_{target:.4f}"]
    rows = []
    for course in courses:
        configuration, best = course.run.configuration().to_json(), int(course.losses.argmin())
        lowest = [f"{course.losses[best]:.4f}", str(course.epochs[best]), course.clock([best])]
        reached = course.clock(np.flatnonzero(course.losses <= target).tolist())
        rows.append([course.name, *(str(configuration[name]) for name in choices), *lowest, reached])
    print_table([header, *rows])
    if arguments.table is not None:
        command = shlex.join(["scripts/run", "compare", *map(str, arguments.runs), "--target", str(target)])
        write_table(
            arguments.table, header, rows, [f"held-out loss in nats per character, seconds of training; {command}"]
        )
        tell(f"table: {arguments.table}")
    if arguments.figure is not None:
        _draw(courses, target, arguments.figure)
        tell(f"figure: {arguments.figure}")


def _draw(courses: Sequence[Course], target: float, path: Path) -> None:
    """Draw held-out loss against seconds of training, on a logarithmic axis of time."""
    from matplotlib.ticker import FuncFormatter

    from charlm_jax.analysis.figures import line_style, mark_logarithms, new_figure
    from charlm_jax.runs.files import save_picture

    figure, axes = new_figure(8.0, 4.0)
    for number, course in enumerate(courses):
        label = f" {course.name}"  # matplotlib hides a label that begins with _
        axes.plot(course.seconds, course.losses, marker="o", ms=3, lw=1.5, label=label, **line_style(number).options)
    axes.axhline(target, color="0.6", lw=0.8, zorder=0)
    axes.annotate(
        f"{target:.3f}", (0.01, target), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color="0.35"
    )
    axes.set_xscale("log")
    mark_logarithms(axes.xaxis, FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("seconds of training (logarithmic)")
    axes.set_ylabel("held-out loss (nats per character)")
    for text in figure.legend(loc="outside right upper", frameon=False).get_texts():
        text.set_parse_math(False)
    save_picture(figure, path)


if __name__ == "__main__":
    run_command(main)
