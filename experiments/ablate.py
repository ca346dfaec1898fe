"""Train a grid of runs over any choices, several seeds of each, and compare what they come to.

    scripts/run ablate [PRESET] --vary FIELD=VALUE,VALUE,... [FIELD=...] [--replicas N] [--grid-dir DIR] [--flags]

FIELD is any of the flags below, such as dropout=0,0.2 or objective=last-character,every-character; every combination is
a run, and every run an ordinary run directory in --grid-dir. Runs that differ in seed and learning rate alone are
trained together in one program. The same command again goes on with a grid that was stopped, and leaves what is done.

Prints a row a combination, with means and 95 % intervals over the replicas (Student's t): the lowest held-out loss, its
gap to the same model's loss on as much training text, parameters, and the characters that each model read per second.
results.csv has the gap's interval, too, floating-point operations per character of training, and how many models were
trained together; a picture, with the speed of all models together, goes to results.svg and .png.
Then `scripts/run report GRID` makes a page of it, and `scripts/run temperature GRID/*` measures the texts of each run.
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
