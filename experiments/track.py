"""Show runs in TensorBoard: their losses, their texts, and what came of the choices in which they differ.

    scripts/run track RUN... [--follow]

A RUN is the directory of a run, or one that holds runs, as a grid's does. What its records hold is written into it as
an event file, anew each time; with --follow it grows after every epoch of runs that are being trained, until Ctrl-C.
Then `tensorboard --logdir RUN` shows the losses, in nats per character over updates, the texts at each temperature,
and, for the directory of a grid, the table of the choices in which its runs differ, with the last held-out loss and the
lowest. Training and all other commands know nothing of event files, which may be deleted.

Needs tensorboardX: .venv/bin/python -m pip install -e '.[tracking]'. TensorBoard itself is another package.
"""

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tyro

from charlm_jax.runs.command_line import folded, run_command, tell

_SECONDS = 2.0  # from one look at the records to the next


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs, or of runs' and grids' directories."""
    follow: bool = False
    """Go on with what is recorded from now on, of runs that begin later too."""


def main(flags: Sequence[str]) -> None:
    """Write, and follow."""
    arguments = tyro.cli(Arguments, prog="scripts/run track", description=folded(__doc__), args=flags)

    from charlm_jax.runs.directory import choices_that_differ, find_runs
    from charlm_jax.runs.tracking import EventFile, points_of

    files: dict[Path, EventFile] = {}

    def look() -> None:
        runs = find_runs(*arguments.runs)
        compared = choices_that_differ(runs)
        for run in runs:
            path = run.path.resolve()
            if path not in files:
                files[path] = EventFile(path)
                closing.callback(files[path].close)
            files[path].show(points_of(run, compared))

    with ExitStack() as closing:
        look()
        tell(f"runs: {len(files)}; to see them: tensorboard --logdir {shlex.quote(str(arguments.runs[0]))}")
        while arguments.follow:
            time.sleep(_SECONDS)
            look()


if __name__ == "__main__":
    run_command(main)
