"""Train models of several hidden sizes, several seeds of each, and compare what they come to.

    scripts/run hidden_size [PRESET] [--vary hidden_size=SIZE,SIZE,... [learning_rate=...]] [--replicas N] [--flags]

`scripts/run ablate` with hidden_size=32,64,128,256 to begin with; see there for what is printed and written. Another
choice in --vary, such as learning_rate=0.01,0.03, is a line of its own in the picture; all its runs of one size are
trained together.
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
