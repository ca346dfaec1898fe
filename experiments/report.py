"""Make one page of one run or of many: what was run, how the loss fell, what the models write and what surprises them.

    scripts/run report RUN... [--output FILE]

A RUN is the directory of a run, or one that holds runs. The page is a single HTML file that needs no network, for a
browser, a printer or a mail. It says in which choices the runs differ, draws their losses, shows the pictures in their
figures/ and that of a grid, and has a reader for the texts that they have written: every character shaded by how much
it surprises the run's best model, what that expected instead, and the words that the training text does not have.
Prints the page's path. A page has room for 100,000 characters of text and 600 kB of pictures; what is left out is said
on it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from charlm_jax.errors import require
from charlm_jax.runs.command_line import folded, run_command, tell

_CHARACTERS = 100_000  # of texts on a page: about 1.5 MB
_PICTURE_BYTES = 600_000  # on a page, where they take a third more


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs, or of runs' directories."""
    output: Path | None = None
    """Where to write the page; report.html in the one run, or in the directory that all of them are in."""

    def __post_init__(self) -> None:
        there = self.output is None or (self.output.parent.is_dir() and not self.output.is_dir())
        require("--output", str(self.output), there, "a file in a folder that is there")


def main(flags: Sequence[str]) -> None:
    """Gather, lay out and write."""
    arguments = tyro.cli(Arguments, prog="scripts/run report", description=folded(__doc__), args=flags)

    from charlm_jax.runs.directory import find_runs, open_run

    # Before JAX is loaded, so that a wrong name is answered at once.
    runs = [open_run(run.path.resolve()) for run in find_runs(*arguments.runs)]

    from charlm_jax.analysis.report import make_report
    from charlm_jax.runs.files import write_atomically
    from charlm_jax.runs.gathering import gather, pictures_of

    parent = Path(os.path.commonpath([run.path.parent for run in runs]))
    # A grid's own picture of all its runs lies beside them.
    notes: list[str] = []
    own = pictures_of(parent.glob("results.svg"), _PICTURE_BYTES, notes) if len(runs) > 1 else []
    for note in notes:
        tell(note)
    left = _PICTURE_BYTES - sum(len(picture.svg) for picture in own)
    room = {"characters": _CHARACTERS // len(runs), "picture_bytes": left // len(runs)}
    pages = [
        gather(run, str(run.path.relative_to(parent)), **room)
        for run in tqdm(runs, unit=" runs", leave=False, disable=None)
    ]
    output = arguments.output or (runs[0].path if len(runs) == 1 else parent) / "report.html"
    title = pages[0].name if len(pages) == 1 else parent.name
    write_atomically(output, make_report(title, pages, own).encode())
    print(output)


if __name__ == "__main__":
    run_command(main)
