"""Train models of several hidden sizes, several seeds of each, and compare their results.

    scripts/run hidden_size [PRESET] [--vary hidden_size=SIZE,SIZE,... [learning_rate=...]] [--replicas N] [--flags]

This is `scripts/run ablate` with --vary hidden_size=32,64,128,256 as the default; see there for what is printed and
written. Each value of a further choice in --vary, such as learning_rate=0.01,0.03, is a line of its own in the figure;
runs of one size that differ only in seed and learning rate are trained together.
"""

from collections.abc import Sequence

from charlm_jax.runs.command_line import run_command
from charlm_jax.runs.grid import parse_grid, run_grid
from charlm_jax.runs.stop import stop_requests


def main(flags: Sequence[str]) -> None:
    """Train, compare, print and draw."""
    with stop_requests() as stop_requested:
        arguments, runs = parse_grid("hidden_size", __doc__, flags, preset="quick", vary=("hidden_size=32,64,128,256",))
        run_grid(arguments, runs, stop_requested)


if __name__ == "__main__":
    run_command(main)
