"""Check that a run, or an encoded corpus, is unchanged since it was written.

    scripts/run verify RUN
    scripts/run verify FOLDER

Reads the run's configuration, provenance, records and states, and compares each array of each saved state with the
SHA-256, shape and type that it was saved with. Prints a line per file: ok; BAD and why; set aside, for a damaged one
that training has renamed and done without; or unchecked, for a state that cannot be judged because config.json or
provenance.json is bad. Exits with 2 if a file is bad, else with 0. Nothing is changed.
For an encoded corpus, compares the text that its ids stand for with the SHA-256 of the text that it was made from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from charlm_jax.errors import InputError
from charlm_jax.runs.command_line import folded, run_command


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    run: tyro.conf.Positional[Path]
    """Directory of a run, or folder of an encoded corpus."""


def main(flags: Sequence[str]) -> None:
    """Check, and print."""
    arguments = tyro.cli(Arguments, prog="scripts/run verify", description=folded(__doc__), args=flags)

    from charlm_jax.data.corpus import IDS_FILE
    from charlm_jax.runs.directory import open_run
    from charlm_jax.runs.encoding import is_encoded, verify_encoded
    from charlm_jax.runs.verification import verify, ways_out

    if is_encoded(arguments.run):
        verify_encoded(arguments.run)
        print(f"ok        {IDS_FILE}")
        return
    if (arguments.run / IDS_FILE).exists():
        raise InputError(f"the encoded corpus {str(arguments.run)!r} is unfinished; run the same encode command again")
    run = open_run(arguments.run)
    findings = list(verify(run))
    for finding in findings:
        why = f": {finding.problem}" if finding.problem else ""
        print(f"{finding.verdict:<9} {finding.path.relative_to(run.path)}{why}")
    bad = sum(bool(finding.problem) for finding in findings)
    if bad:
        raise InputError(f"{bad} of {len(findings)} files of {str(run.path)!r} are bad; {ways_out(run, findings)}")


if __name__ == "__main__":
    run_command(main)
