"""Experiments, run in the tests' own process, and what they leave."""

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
    """Return the table of a grid's results but for what the clock says."""
    rows = csv.DictReader((grid / "results.csv").read_text().splitlines()[1:])
    return [{name: value for name, value in row.items() if "per_second" not in name} for row in rows]
