"""Encode a text once, in constant memory, to train on texts larger than memory.

    scripts/run encode TEXT --output FOLDER [--encoding E] [--lowercase]

TEXT is a file, or a folder of files, read as --corpus reads them. FOLDER will hold ids.npy, a NumPy array with the id
of every character, and corpus.json, with the characters and the text's SHA-256. `--corpus FOLDER` is then the same
text. A text that fits in memory need not be encoded.

The text is read twice, and its ids once more to check that they stand for it. If the command is interrupted, the same
command resumes; corpus.json appears once everything is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from charlm_jax.runs.command_line import folded, run_command, tell
from charlm_jax.runs.stop import stop_requests


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    text: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE|FOLDER")]
    """File, or folder of files."""
    output: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder to make: a new or empty one, or one that the same command has begun."""
    encoding: str | None = None
    """Encoding of the text's bytes; UTF-8 if not given."""
    lowercase: bool = False
    """Lower-case the text."""


def main(flags: Sequence[str]) -> None:
    """Encode the text."""
    arguments = tyro.cli(Arguments, prog="scripts/run encode", description=folded(__doc__), args=flags)

    from charlm_jax.runs.encoding import encode, open_encoded

    options = {"encoding": arguments.encoding, "lowercase": arguments.lowercase}
    with stop_requests() as stop_requested:
        begun = encode(arguments.text, arguments.output, **options, stop_requested=stop_requested)
    corpus = open_encoded(arguments.output, **options)
    what = f"{len(corpus.ids):,} characters, {len(corpus.vocabulary)} distinct"
    tell(f"{'encoded' if begun else 'already done'}: {what}, in {arguments.output}")


if __name__ == "__main__":
    run_command(main)
