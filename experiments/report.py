"""Make a page about one or more runs: what was run, how the loss fell, what the models write and what surprises them.

    scripts/run report RUN... [--output FILE]

A RUN is the directory of a run, or one that holds runs and grids. The page is a single HTML file that needs no network,
to open in a browser, print or mail. It says in which choices the runs differ, draws their losses, shows the pictures in
their figures/ and that of a grid, and has a reader for the texts that they have written: every character shaded by how
much it surprises the run's best model, what that model expected instead, and the words that the training text lacks.
Prints the page's path. A page has room for 100,000 characters of text and 600 kB of pictures, and says what is left
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from charlm_jax.runs.command_line import folded, make_each, require_file, run_command, tell

_CHARACTERS = 100_000  # of texts on a page: about 1.5 MB
_PICTURE_BYTES = 600_000  # of pictures on a page, where they take a third more


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs, or directories that hold runs and grids."""
    output: Path | None = None
    """Where to write the page; if not given, report.html in the only run, or in the directory that holds all runs."""

    def __post_init__(self) -> None:
        require_file("--output", self.output, ".html")


def main(flags: Sequence[str]) -> None:
    """Gather, lay out and write."""
    arguments = tyro.cli(Arguments, prog="scripts/run report", description=folded(__doc__), args=flags)

    from charlm_jax.runs.directory import find_runs, open_run, parent_of

    # Before JAX is loaded, so that a wrong name fails at once.
    runs = [open_run(run.path.resolve()) for run in find_runs(*arguments.runs)]

    from charlm_jax.analysis.report import make_report
    from charlm_jax.runs.files import write_atomically
    from charlm_jax.runs.gathering import gather, pictures_of

    parent = parent_of(runs)
    # A grid's own picture of all its runs lies beside them.
    notes: list[str] = []
    own = pictures_of(parent.glob("results.svg"), _PICTURE_BYTES, notes) if len(runs) > 1 else []
    left = _PICTURE_BYTES - sum(len(picture.svg) for picture in own)
    room = {"characters": _CHARACTERS // len(runs), "picture_bytes": left // len(runs)}
    names = {run: str(run.path.relative_to(parent)) for run in runs}
    watched = tqdm(runs, unit=" runs", leave=False, disable=None)
    pages = make_each(lambda run: gather(run, names[run], **room), watched)
    unread = set(names.values()) - {page.name for page in pages}
    notes += [f"{name} is left out, because its records cannot be read." for name in sorted(unread)]
    notes += [f"{page.name} has no losses: its metrics.jsonl has no epoch." for page in pages if not page.epochs]
    for note in notes:
        tell(note)
    output = arguments.output or (runs[0].path if len(runs) == 1 else parent) / "report.html"
    title = pages[0].name if len(pages) == 1 else parent.name
    write_atomically(output, make_report(title, pages, own, notes).encode())
    print(output)


if __name__ == "__main__":
    run_command(main)
