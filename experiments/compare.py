"""Lay runs side by side: what differs in their configurations, how far they came, and how soon.

    scripts/run compare RUN RUN... [--target LOSS] [--table FILE] [--figure FILE]

Prints a row a run: the choices in which the runs differ, the lowest held-out loss in nats per character, its epoch, the
seconds of training up to there (evaluations, texts and checkpoints not counted), and the seconds up to the first epoch
whose loss is at or under the target, the first run's lowest if none is given. A run that was stopped amid an epoch does
not know that epoch's seconds: its times end there.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import tyro

from charlm_jax.errors import InputError, require
from charlm_jax.runs.command_line import folded, print_table, require_picture, run_command, tell

# What decides the generated texts and not the loss.
_OF_TEXTS = {"temperatures", "sample_every", "sample_length", "sampler", "prompt_start", "continuation"}
# What decides which characters a loss is of, and given how many.
_OF_LOSSES = "held_out_fraction", "window", "stride"


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs, in the order of the table."""
    target: float | None = None
    """Held-out loss, in nats per character, whose time is asked for; the first run's lowest if not given."""
    table: Path | None = None
    """Where to write the table too, as comma-separated values."""
    figure: Path | None = None
    """Where to draw loss against seconds, as SVG or PNG by its ending."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InputError("no run is named; give directories of runs: scripts/run compare RUN RUN...")
        require("--target", self.target, self.target is None or math.isfinite(self.target), "a number of nats")
        require_picture(self.figure)
        there = self.table is None or self.table.parent.is_dir()
        require("--table", str(self.table), there, "in a folder that is there")


@dataclass(frozen=True)
class Course:
    """How a run's held-out loss fell.

    Attributes:
        name: of its directory.
        configuration: every choice, as config.json has it.
        text: the SHA-256 of what it read.
        seconds: of training up to the end of each epoch; nan after an epoch whose own are unknown.
        losses: held-out, in nats per character, after each epoch.
    """

    name: str
    configuration: dict[str, Any]
    text: str
    seconds: Sequence[float]
    losses: Sequence[float]

    @property
    def best_index(self) -> int:
        """The place of the lowest loss."""
        return self.losses.index(min(self.losses))

    def clock(self, place: int | None) -> str:
        """Return the seconds up to an epoch in words; nothing where they are unknown, or for None."""
        return "" if place is None or math.isnan(self.seconds[place]) else f"{self.seconds[place]:.1f}"

    def reaches(self, target: float) -> int | None:
        """Return the place of the first epoch at or under a loss."""
        return next((place for place, loss in enumerate(self.losses) if loss <= target), None)


def read_course(path: Path) -> Course:
    """Read a run's course.

    Raises:
        InputError: there is no run, or it has no held-out loss yet.
    """
    from charlm_jax.runs.directory import open_run
    from charlm_jax.runs.records import read_records

    run = open_run(path)
    records = read_records(run.metrics)
    losses = {record["step"]: record["held_out_loss"] for record in records if record.get("event") == "evaluation"}
    epochs = [record for record in records if record.get("event") == "epoch" and record["step"] in losses]
    if not epochs:
        raise InputError(f"the run {str(path)!r} has no held-out loss yet; let it finish an epoch with one")
    seconds = accumulate(math.nan if record["seconds"] is None else record["seconds"] for record in epochs)
    return Course(
        path.resolve().name,
        run.configuration().to_json(),
        run.provenance()["corpus"]["sha256"],
        list(seconds),
        [losses[record["step"]] for record in epochs],
    )


def main(flags: Sequence[str]) -> None:
    """Read, print and draw."""
    arguments = tyro.cli(Arguments, prog="scripts/run compare", description=folded(__doc__), args=flags)

    from charlm_jax.runs.files import write_table

    courses = [read_course(path) for path in arguments.runs]
    target = min(courses[0].losses) if arguments.target is None else arguments.target
    first = courses[0].configuration
    decisive = {name: {course.configuration[name] for course in courses} for name in _OF_LOSSES}
    for name, values in {"text": {course.text for course in courses}, **decisive}.items():
        if len(values) > 1:
            tell(f"note: the runs differ in {name}, so their losses are of different characters or contexts")
    for course in courses:
        if any(map(math.isnan, course.seconds)):
            tell(f"note: {course.name} was stopped amid an epoch; from there on its seconds are unknown")
    differing = [
        name
        for name in first
        if name not in _OF_TEXTS and any(course.configuration[name] != first[name] for course in courses)
    ]
    header = ["run", *differing, "held_out_loss", "epoch", "seconds", f"seconds_to_{target:.4f}"]
    rows = [
        [
            course.name,
            *(str(course.configuration[name]) for name in differing),
            f"{course.losses[course.best_index]:.4f}",
            str(course.best_index + 1),
            course.clock(course.best_index),
            course.clock(course.reaches(target)),
        ]
        for course in courses
    ]
    print_table([header, *rows])
    if arguments.table is not None:
        command = shlex.join(["scripts/run", "compare", *map(str, arguments.runs), "--target", repr(target)])
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

    from charlm_jax.analysis.figures import mark_logarithms, new_figure
    from charlm_jax.runs.files import save_picture

    figure, axes = new_figure(7.0, 4.0)
    for course in courses:
        axes.plot(course.seconds, course.losses, "o-", ms=3, lw=1.5, label=course.name)
    axes.axhline(target, color="0.6", lw=0.8, zorder=0)
    axes.annotate(
        f"{target:.3f}", (0.01, target), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color="0.35"
    )
    axes.set_xscale("log")
    mark_logarithms(axes.xaxis, FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("seconds of training (logarithmic)")
    axes.set_ylabel("held-out loss (nats per character)")
    axes.legend(frameon=False)
    save_picture(figure, path)


if __name__ == "__main__":
    run_command(main)
