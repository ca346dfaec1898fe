"""Command lines: training flags, messages and progress for the user, exit codes for errors."""

import dataclasses
import io
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Never, TypeVar

import tyro
from tqdm import tqdm

from charlm_jax.choices import TextPlace
from charlm_jax.data.corpus import NAMES
from charlm_jax.errors import (
    BAD_INPUT,
    BROKEN_PIPE,
    DIVERGED,
    INTERRUPTED,
    PREEMPTED,
    DivergedError,
    InputError,
    Preempted,
    meant,
    require,
    require_count,
)
from charlm_jax.runs.configuration import PRESETS, Configuration

if TYPE_CHECKING:
    ProgressBar = tqdm[Never]  # generic in tqdm's stubs only
else:
    ProgressBar = tqdm
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


class Watcher(io.TextIOBase):
    """A stream to the user at stderr. Once nobody reads it, messages are lost, but nothing fails.

    Attributes:
        muted: whether to stay silent, as another process of the same job does the reporting.
    """

    muted: ClassVar[bool] = False

    def write(self, text: str) -> int:
        """Write a text to stderr if possible."""
        if not self.muted:
            with suppress(OSError):
                sys.stderr.write(text)
                sys.stderr.flush()
        return len(text)

    def fileno(self) -> int:
        """Return stderr's file descriptor, from which a progress bar finds the terminal's width."""
        return sys.stderr.fileno()

    def isatty(self) -> bool:
        """Return whether stderr is a terminal."""
        return sys.stderr.isatty()


def tell(message: str) -> None:
    """Write a line for the user to stderr, where progress and warnings go."""
    print(message, file=Watcher())


def progress_bar(
    purpose: str, total: int, unit: str, *, initial: int = 0, watched: bool = True, scaled: bool = False
) -> ProgressBar:
    """Return a progress bar, live on a terminal or in a notebook; a log gets a line a minute.

    Args:
        purpose: what is being done.
        total: units in total.
        unit: what is counted.
        initial: units already done.
        watched: whether to show it.
        scaled: whether to show counts in thousands and millions.
    """
    on_terminal = sys.stderr.isatty()
    live = on_terminal or type(sys.stderr).__module__ == "ipykernel.iostream"  # a notebook, which is no terminal
    return tqdm(
        desc=purpose,
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=scaled,
        mininterval=0.1 if live else 60,
        delay=0 if live else 60,
        leave=not on_terminal,
        dynamic_ncols=True,
        disable=not watched,
        file=Watcher(),
    )


def require_file(flag: str, path: Path | None, *endings: str) -> None:
    """Raise an InputError unless a flag's file has one of these endings and its folder exists; None passes."""
    if path is not None:
        right = path.suffix in endings and not path.is_dir()
        require(flag, str(path), right, f"a file that ends in {' or '.join(endings)}")
        require(flag, str(path), path.parent.is_dir(), "in a folder that exists")


def make_each(make: Callable[[_Item], _Made], items: Iterable[_Item]) -> list[_Made]:
    """Return what `make` makes of each item; leave out those for which it raises an InputError, and tell the user why.

    Raises:
        InputError: every item failed; the first one's error.
    """
    made, failures = list[_Made](), list[InputError]()
    for item in items:
        try:
            made.append(make(item))
        except InputError as error:
            failures.append(error)
    if failures and not made:
        raise failures[0]
    for error in failures:
        tell(f"left out: {error}")
    return made


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows, the header first, with columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))


@dataclass(frozen=True)
class TrainingArguments:
    """The flags of a command that trains."""

    configuration: Annotated[Configuration, tyro.conf.arg(name="")]
    run_dir: Path = Path("runs", "PRESET-TIME")
    """Directory of the run: a new one by default, or that of a run to resume."""
    devices: int | None = None
    """Devices to split each batch over; if not given, all, or with a single process as many as get 8 windows each."""
    distributed: str | None = None
    """How to find this job's other processes: HOST:PORT/NUMBER/COUNT, or auto; if not given, as Slurm says."""
    text: TextPlace = "auto"
    """Hold the training text on each device (resident) or stream it (streamed), as auto does above 1/4 of memory."""

    def __post_init__(self) -> None:
        require_count("--devices", self.devices)


class _AsItIs(str):
    """A text that tyro prints as it is; it would otherwise join the lines of a paragraph, and fold none."""

    def split(self, *_: Any, **__: Any) -> list[str]:
        return [str(self)]


def folded(description: str | None) -> str:
    """Return a command's help text, folded to the terminal's width.

    Args:
        description: paragraphs. In an indented one each line is folded by itself, and continues under its last column.
    """
    width = max(20, shutil.get_terminal_size().columns)

    def fold(line: str) -> str:
        begin = re.match(r" *(\S+ {2,})?", line)
        indent = " " * (begin.end() if begin else 0)
        return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

    def fold_paragraph(paragraph: str) -> str:
        lines = paragraph.splitlines() if paragraph.startswith(" ") else [" ".join(paragraph.split())]
        return "\n".join(map(fold, lines))

    return _AsItIs("\n\n".join(map(fold_paragraph, (description or "").strip().split("\n\n"))))


def parse_training(experiment: str, description: str | None, flags: Sequence[str], *, preset: str) -> TrainingArguments:
    """Parse the command line of a command that trains: an optional preset, then flags that override it.

    Args:
        experiment: the command's name.
        description: its help text.
        flags: the command line.
        preset: the default.

    Raises:
        InputError: the command line begins with a word that is not a preset, or a flag's value cannot be used.
    """
    preset, base, flags = named_preset(flags, preset)
    defaults = TrainingArguments(base)
    program = f"scripts/run {experiment} {preset}"
    arguments = tyro.cli(TrainingArguments, prog=program, description=folded(description), args=flags, default=defaults)
    if arguments.run_dir == defaults.run_dir:
        # The process number tells apart commands that start in the same second.
        run_dir = defaults.run_dir.with_name(f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        arguments = dataclasses.replace(arguments, run_dir=run_dir)
    return dataclasses.replace(arguments, configuration=absolute_places(arguments.configuration))


def named_preset(flags: Sequence[str], preset: str) -> tuple[str, Configuration, Sequence[str]]:
    """Return a command line's preset, the given one if it names none, with its configuration, and the flags after it.

    Raises:
        InputError: it begins with a word that is not a preset.
    """
    if flags and not flags[0].startswith("-"):
        preset, *flags = flags
    if preset not in PRESETS:
        text = f"; a text is given with --corpus {preset}" if Path(preset).is_file() else meant(preset, PRESETS)
        raise InputError(f"there is no preset {preset!r}; name one of {', '.join(PRESETS)}{text}")
    return preset, PRESETS[preset], flags


def absolute_places(configuration: Configuration) -> Configuration:
    """Return a configuration with absolute paths to its text and source, so that it is valid in any directory."""
    places = {}
    if configuration.corpus and configuration.corpus not in NAMES and Path(configuration.corpus).exists():
        places["corpus"] = str(Path(configuration.corpus).resolve())
    if configuration.init_from is not None:
        places["init_from"] = str(Path(configuration.init_from).resolve())
    return dataclasses.replace(configuration, **places)


def mendable(error: Exception) -> str | None:
    """Return the message for an error that users can fix; None for a bug of ours."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        place = "standard output, or a file" if error.filename is None else repr(str(error.filename))
        return f"{place}: {error.strerror or error}; name another place, or fix this one"
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        return "the device's memory is too small for this; try a smaller batch, model or window, or fewer texts"
    return None


def _open_standard_streams() -> None:
    """Open those that this process was started without; otherwise its files would take their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors that users can fix into one sentence and an exit code; a bug of ours keeps its traceback."""
    _open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # characters that the terminal lacks are escaped
    try:
        try:
            yield
        except SystemExit:  # after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has left; without this, Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except DivergedError as error:
        tell(f"error: {error}")
        sys.exit(DIVERGED)
    except Preempted as stop:
        tell(str(stop))
        sys.exit(PREEMPTED)
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if (sentence := mendable(error)) is None:
            raise
        tell(f"error: {sentence}")
        sys.exit(BAD_INPUT)


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run a command with this process's flags; see `exit_codes`."""
    with exit_codes():
        main(sys.argv[1:])
