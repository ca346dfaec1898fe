"""Run experiments in the tests' own process, and read the results they leave."""

import csv
import importlib

from charlm_jax.runs.command_line import exit_codes


def call(experiment, *flags):
    """Run an experiment in this process; return its exit code."""
    try:
        with exit_codes():
            importlib.import_module(f"experiments.{experiment}").main(list(map(str, flags)))
    except SystemExit as end:
        return end.code
    return 0


def results(grid):
    """Return the rows of a grid's results without the columns that depend on the clock."""
    rows = csv.DictReader((grid / "results.csv").read_text().splitlines()[1:])
    return [{name: value for name, value in row.items() if "per_second" not in name} for row in rows]
