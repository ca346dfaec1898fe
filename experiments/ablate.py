"""Train a grid of runs over any choices, several seeds of each, and compare their results.

    scripts/run ablate [PRESET] --vary FIELD=VALUE,VALUE,... [FIELD=...] [--replicas N] [--grid-dir DIR] [--flags]

FIELD is any of the flags below, such as dropout=0,0.2 or objective=last-character,every-character. Every combination is
a run, and every run is an ordinary run directory in --grid-dir. Runs that differ only in seed and learning rate are
trained together in one program. Repeating the command resumes an interrupted grid and skips the runs that are done.

Prints a row per combination, with means and 95 % intervals over the replicas (Student's t): the lowest held-out loss,
its gap to the same model's loss on as much training text, parameters, and the characters that each model read per
second. results.csv also has the gap's interval, floating-point operations per character of training, and how many
models were trained together; a figure, with the speed of all models together, goes to results.svg and .png. After that,
`scripts/run report GRID` makes a page of it, and `scripts/run temperature GRID` measures the texts of each run.
"""

from collections.abc import Sequence

from charlm_jax.runs.command_line import run_command
from charlm_jax.runs.grid import parse_grid, run_grid
from charlm_jax.runs.stop import stop_requests


def main(flags: Sequence[str]) -> None:
    """Train, compare, print and draw."""
    with stop_requests() as stop_requested:
        arguments, runs = parse_grid("ablate", __doc__, flags, preset="quick", vary=())
        run_grid(arguments, runs, stop_requested)


if __name__ == "__main__":
    run_command(main)
