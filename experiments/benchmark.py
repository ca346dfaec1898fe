"""Time this project beside Keras, PyTorch and Flax on the published notebooks' job, on the CPU.

    scripts/run benchmark [flags]

Each contender works in a process of its own, one after another in every round; medians over the rounds are compared,
with the smallest and largest beside them. Training counts a step of 128 windows of 60 characters; ours draws and
gathers its batches from the text, the others get one that is ready. Sampling counts a character. The roofline is what
a step's or a character's matrix products would take at the rate that JAX reaches on large square ones.

The others come with `.venv/bin/python -m pip install '.[benchmark]'`; those that are absent are named. All of it takes
about four minutes on two cores, which should have nothing else to do.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro
from tqdm import tqdm

from charlm_jax.errors import InputError, require, require_count
from charlm_jax.runs.command_line import exit_codes, folded, require_picture, tell

_PEERS = Path(__file__).with_name("peers")
_WINDOW, _BATCH_SIZE, _PRODUCT_SIDE = 60, 128, 512  # as in peers/worker.py

TRAINING, WINDOWED, STATEFUL = "training step", "windowed character", "stateful character"
FIRST_STEP, PRODUCT, BLOCK = "time to the first step", "matrix product", "windowed character, block of 4 x 400"
CHECKPOINT, EPOCH_STEPS = "state saved and verified", 1565  # steps of the notebooks' epoch


@dataclass(frozen=True)
class Contender:
    """One row's worth of competition.

    Attributes:
        name: in the table.
        module: in `peers`.
        package: which must be there.
        backend: for Keras.
        tasks: what it can do.
        most_characters: to ask for at a time, where each takes long.
    """

    name: str
    module: str
    package: str
    backend: str = ""
    tasks: tuple[str, ...] = ("train", "windowed")
    most_characters: int = 2000


OURS = Contender("charlm_jax", "charlm", "jax", tasks=("train", "windowed", "stateful"))
CONTENDERS = (
    OURS,
    Contender("Keras on TensorFlow", "keras_lstm", "tensorflow", "tensorflow", most_characters=20),
    Contender("Keras on JAX", "keras_lstm", "keras", "jax", most_characters=200),
    Contender("PyTorch", "pytorch_lstm", "torch", tasks=("train", "windowed", "stateful")),
    Contender("Flax", "flax_rnn", "flax"),
)


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    hidden_sizes: tuple[int, ...] = (128, 32, 256, 512)
    """Hidden sizes to train at; sampling and scaling are timed at the first."""
    rounds: int = 7
    """Times that every figure is taken, but for the time to the first step, which is taken once."""
    json: bool = False
    """Print the figures as one JSON object instead of tables."""
    figure: Path | None = None
    """Where to draw the figure, as SVG or PNG by its ending."""

    def __post_init__(self) -> None:
        require("--hidden-sizes", "without a number", self.hidden_sizes != (), "followed by one")
        for size in self.hidden_sizes:
            require_count("--hidden-sizes", size)
        require_count("--rounds", self.rounds)
        require_picture(self.figure)


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        environment = {**os.environ, "KERAS_BACKEND": contender.backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a first step is timed with its compilation
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe that nobody reads would fill up)
        command = [sys.executable, str(_PEERS / "worker.py"), contender.module]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        self.devices = 1  # that it works on, known from its first answer on

    def run(self, task: str, count: int, **options: int) -> tuple[float, int]:
        """Return the seconds that `count` units of a task took, and the process's peak memory in bytes.

        Raises:
            InputError: the process could not do it and ended; the last line that it wrote says why.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # a process that has ended gives no answer either
            self.process.stdin.write(json.dumps({"task": task, "count": count, **options}) + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:]
            raise InputError(f"{self.contender.name} cannot do {task!r} here: {' '.join(last) or 'it was ended'}")
        record = json.loads(answer)
        self.devices = record["devices"]
        return record["seconds"], record["peak_bytes"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            if file is not None:
                with contextlib.suppress(BrokenPipeError):
                    file.close()


@dataclass(frozen=True)
class Order:
    """What to time.

    Attributes:
        title: of the row.
        worker: who does it.
        task: what, in the words of `peers/worker.py`.
        count: training steps, or characters of each stream, at a time.
        options: what else the task takes.
    """

    title: str
    worker: Worker
    task: str
    count: int
    options: dict[str, int]

    @property
    def units(self) -> int:
        """Steps of all models, or characters of all streams."""
        return self.count * self.options.get("streams", 1) * self.options.get("models", 1)


@dataclass(frozen=True)
class Timing:
    """Seconds a step or a character, over the rounds.

    Attributes:
        title: what was timed.
        contender: who did it.
        hidden_size: of the network.
        median: of the rounds.
        least: of the rounds.
        most: of the rounds.
    """

    title: str
    contender: str
    hidden_size: int
    median: float
    least: float
    most: float


def _first_steps(
    contenders: Sequence[Contender], hidden_size: int, stack: contextlib.ExitStack
) -> tuple[list[Worker], list[Timing], dict[str, int]]:
    """Start the processes, one after another, each timed until its first training step is done."""
    workers, timings, peaks = [], [], {}
    for contender in contenders:
        started = time.perf_counter()
        worker = stack.enter_context(Worker(contender))
        _, peaks[contender.name] = worker.run("train", 1, hidden_size=hidden_size)
        seconds = time.perf_counter() - started
        timings.append(Timing(FIRST_STEP, contender.name, hidden_size, seconds, seconds, seconds))
        workers.append(worker)
    return workers, timings, peaks


def _comparisons(workers: Sequence[Worker], hidden_sizes: Sequence[int]) -> Iterator[Order]:
    for size in hidden_sizes:
        # As many steps as take about half a second.
        steps = min(40, max(2, round(20 * (128 / size) ** 1.5)))
        for worker in workers:
            yield Order(TRAINING, worker, "train", steps, {"hidden_size": size})
    for title, task, characters in ((WINDOWED, "windowed", 400), (STATEFUL, "stateful", 2000)):
        for worker in workers:
            if task in worker.contender.tasks:
                count = min(characters, worker.contender.most_characters)
                yield Order(title, worker, task, count, {"hidden_size": hidden_sizes[0]})


def _own(ours: Worker, hidden_size: int) -> Iterator[Order]:
    """What only this project is asked for: the yardstick, many streams, and how time grows."""
    size = {"hidden_size": hidden_size}
    yield Order(PRODUCT, ours, "multiply", 100, size)
    yield Order(BLOCK, ours, "windowed", 400, {**size, "streams": 4})
    yield Order(CHECKPOINT, ours, "checkpoint", 10, size)
    for models in (2, 4, 8):
        title = f"training step of each of {models} together"
        yield Order(title, ours, "train_together", max(20 // models, 2), {**size, "models": models})
    for steps in (1, 10, 100):
        yield Order(f"training step, {steps} in a dispatch", ours, "train", steps, size)
    for characters in (100_000, 1_000_000, 10_000_000):
        options = {**size, "characters": characters}
        yield Order(f"training step, text of {characters:,}", ours, "train", 20, options)
    for length in (100, 1000, 10_000):
        yield Order(f"stateful character, {length:,} in a row", ours, "stateful", length, size)
    for length in (100, 1000, 10_000):
        yield Order(f"windowed character, {length:,} in a row", ours, "windowed", length, size)
    for task, characters in (("stateful", 64_000), ("windowed", 1600)):
        for streams in (1, 4, 16, 64, 256):
            options = {**size, "streams": streams}
            title = f"{task} character, {streams} streams"
            yield Order(title, ours, task, max(characters // streams, 10), options)


def _time(orders: Sequence[Order], rounds: int) -> list[Timing]:
    """Carry out all orders, one after another, in every round; the round before the first compiles and warms up."""
    seconds: list[list[float]] = [[] for _ in orders]
    with tqdm(total=(rounds + 1) * len(orders), unit=" timings", leave=False, disable=None) as bar:
        for number in range(rounds + 1):
            for taken, order in zip(seconds, orders, strict=True):
                bar.set_postfix_str(f"{order.worker.contender.name}: {order.title}", refresh=False)
                total, _ = order.worker.run(order.task, order.count, **order.options)
                bar.update()
                if number:
                    taken.append(total / order.units)
    return [
        Timing(
            order.title,
            order.worker.contender.name,
            order.options["hidden_size"],
            median(taken),
            min(taken),
            max(taken),
        )
        for taken, order in zip(seconds, orders, strict=True)
    ]


def _roofline(timings: Sequence[Timing], hidden_size: int, devices: int) -> dict[str, float]:
    """Return the rate of matrix products, and the shares of it that training and many windowed streams reach."""
    ours = {t.title: t.median for t in timings if (t.contender, t.hidden_size) == (OURS.name, hidden_size)}
    rate = devices * 2 * _PRODUCT_SIDE**3 / ours[PRODUCT]
    row = 2 * hidden_size * 4 * hidden_size / rate  # seconds that one row's product takes at best
    many = "windowed character, 64 streams"
    return {
        "floating_point_operations_per_second": rate,
        TRAINING: 3 * _BATCH_SIZE * _WINDOW * row / ours[TRAINING],
        many: _WINDOW * row / ours[many],
    }


def _print_tables(timings: Sequence[Timing], peaks: dict[str, int], roofline: dict[str, float], first: int) -> None:
    compared: dict[tuple[str, int], list[Timing]] = {}
    for timing in timings:
        if timing.title in (TRAINING, WINDOWED, STATEFUL, FIRST_STEP):
            compared.setdefault((timing.title, timing.hidden_size), []).append(timing)
    for (title, size), rows in compared.items():
        print(f"{title}, hidden size {size}")
        for row in rows:
            ratio = "" if row is rows[0] else f"{row.median / rows[0].median:8.1f} x ours"
            spread = "" if row.least == row.most else f"({_words(row.least)} to {_words(row.most)})"
            print(f"  {row.contender:<20} {_words(row.median):>8}  {spread:<22}{ratio}".rstrip())
    print(f"peak memory of the process after its first step, hidden size {first}")
    for name, peak in peaks.items():
        print(f"  {name:<20} {peak / 2**20:5.0f} MiB")
    rate, *shares = roofline.items()
    print(f"roofline: matrix products of {_PRODUCT_SIDE} x {_PRODUCT_SIDE} run at {rate[1] / 1e9:.0f} GFLOP/s")
    for title, share in shares:
        print(f"  {title:<38} {share:4.0%}")
    print(f"scaling of {OURS.name}, hidden size {first}")
    for timing in timings:
        if (timing.title, timing.hidden_size) not in compared and timing.title != PRODUCT:
            print(f"  {timing.title:<38} {_words(timing.median):>8}")
    ours = {t.title: t.median for t in timings if (t.contender, t.hidden_size) == (OURS.name, first)}
    share = ours[CHECKPOINT] / (EPOCH_STEPS * ours[TRAINING])
    print(f"a state saved and verified after each epoch of {EPOCH_STEPS:,} steps costs {share:.2%} of training")


def _words(seconds: float) -> str:
    """Return seconds in three digits and a unit."""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _draw(timings: Sequence[Timing], path: Path, first: int) -> None:
    """Draw the contenders' medians and ranges, a panel a task, on logarithmic scales."""
    from matplotlib.figure import Figure

    from charlm_jax.runs.files import save_picture

    figure = Figure(figsize=(11, 3), layout="constrained")
    figure.suptitle(f"Hidden size {first}: median and range", fontsize=11)
    for axes, title in zip(figure.subplots(1, 3), (TRAINING, WINDOWED, STATEFUL), strict=True):
        shown = [timing for timing in timings if (timing.title, timing.hidden_size) == (title, first)]
        for place, timing in enumerate(shown):
            colour = "tab:blue" if timing.contender == OURS.name else "0.4"
            axes.plot([timing.least, timing.most], [place, place], color=colour, lw=2, solid_capstyle="butt")
            axes.plot(timing.median, place, "o", color=colour, ms=7)
            axes.annotate(_words(timing.median), (timing.most, place), (8, 0), textcoords="offset points", va="center")
        axes.set_xscale("log")
        axes.set_xlim(min(timing.least for timing in shown) / 2, max(timing.most for timing in shown) * 12)
        axes.set_yticks(range(len(shown)), [timing.contender for timing in shown])
        axes.set_ylim(len(CONTENDERS) - 0.4, -0.6)  # as far apart in every panel, the first on top
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("seconds (logarithmic)")
        axes.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main(flags: Sequence[str]) -> None:
    """Time, and print."""
    arguments = tyro.cli(Arguments, prog="scripts/run benchmark", description=folded(__doc__), args=flags)
    here = [contender for contender in CONTENDERS if importlib.util.find_spec(contender.package)]
    absent = [contender for contender in CONTENDERS if contender not in here]
    for contender in absent:
        tell(f"absent: {contender.name} ({contender.package} is not installed)")

    from charlm_jax.runs.devices import cores

    first = arguments.hidden_sizes[0]
    with contextlib.ExitStack() as stack:
        workers, timings, peaks = _first_steps(here, first, stack)
        orders = [*_comparisons(workers, arguments.hidden_sizes), *_own(workers[0], first)]
        timings = [*_time(orders, arguments.rounds), *timings]
    roofline = _roofline(timings, first, workers[0].devices)
    packages = ("jax", "flax", "keras", "tensorflow", "torch")
    machine = {
        "processor": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)},
        "absent": [contender.name for contender in absent],
    }
    if arguments.json:
        seconds = [dataclasses.asdict(timing) for timing in timings]
        print(json.dumps({"machine": machine, "seconds": seconds, "roofline": roofline, "peak_bytes": peaks}))
    else:
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        print(f"{machine['processor']}, {cores()} cores, Python {machine['python']}, {versions}")
        _print_tables(timings, peaks, roofline, first)
    if arguments.figure is not None:
        _draw(timings, arguments.figure, first)
        tell(f"figure: {arguments.figure}")


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
