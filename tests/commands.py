"""Experiments, run in the tests' own process."""

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
