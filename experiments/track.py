"""Show runs in TensorBoard: their losses, their texts, and the results of the choices in which they differ.

    scripts/run track RUN... [--follow]

A RUN is the directory of a run, or one that holds runs, as a grid's does. What a run has recorded is written into its
directory as an event file, anew each time. With --follow the file grows after every epoch of runs that are being
trained, until Ctrl-C. Then `tensorboard --logdir RUN` shows the losses, in nats per character over updates, the texts
at each temperature, and, for the directory of a grid, a table of the choices in which its runs differ, with the last
and the lowest held-out loss. Training and all other commands ignore event files, which may be deleted.

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

_SECONDS = 2.0  # between looks at the records


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs, or directories that hold runs and grids."""
    follow: bool = False
    """Keep adding what is recorded from now on, including runs that begin later."""


def main(flags: Sequence[str]) -> None:
    """Write event files, and follow the runs."""
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
