"""Time this project against Keras, PyTorch and Flax on the published notebooks' job, on the CPU or on a GPU.

    scripts/run benchmark [--device gpu] [flags]

Each contender runs in its own process, one after another in every round. The tables compare medians over the rounds,
with the smallest and largest beside them. Training is timed per step of 128 windows of 60 characters; ours draws and
gathers its batches from the text, while the others get one that is ready. Sampling is timed per character. The roofline
is what the matrix products of a step or a character would take at the rate that JAX reaches on large square ones. The
latency floor is what the products of a step that wait for one another take by themselves.

On a GPU (the first if there are several) all are timed in float32, TF32 and bfloat16, as far as they support these (for
products; parameters are float32). Ours is timed with its loops and unrolled; cuDNN's LSTM through PyTorch, also with a
CUDA graph of the whole step, and through JAX. What a contender cannot do is named and left out.

Install the others with `.venv/bin/python -m pip install -e '.[benchmark]'`; those that are missing are named. All of it
takes about four minutes on two otherwise idle cores.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import itertools
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
from typing import Literal, get_args

import tyro
from tqdm import tqdm

from charlm_jax.analysis.benchmark import BATCH_SIZE, OURS, REREADER, Benchmark, Timing, Title, describe, plot_benchmark
from charlm_jax.choices import Precision
from charlm_jax.errors import InputError, require, require_count
from charlm_jax.runs.command_line import folded, require_file, run_command, tell

_PEERS = Path(__file__).with_name("peers")
_MATMUL: dict[Precision, str] = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}  # JAX's words


@dataclass(frozen=True)
class Contender:
    """An implementation to time, as a row of the tables.

    Attributes:
        name: in the tables.
        module: in `peers`.
        package: that must be installed.
        backend: for Keras.
        tasks: what it can do.
        max_characters: the most to generate at a time, for a contender that is slow at it.
        way: the variant to use, if its module has several.
        precision: of its matrix products.
    """

    name: str
    module: str
    package: str
    backend: str = ""
    tasks: tuple[str, ...] = ("train", "windowed")
    max_characters: int = 2000
    way: str = ""
    precision: Precision = "float32"

    def in_each(self, *precisions: Precision) -> list["Contender"]:
        """Return a copy of this contender in each precision."""
        return [dataclasses.replace(self, precision=precision) for precision in precisions]


@dataclass(frozen=True)
class Place:
    """A platform to compare on, and how much work suits it.

    Attributes:
        platform: the device's name in JAX and PyTorch.
        contenders: ours first.
        steps: training steps to take at a time at hidden size 128.
        product_side: side of the square matrices that count as large.
        streams: numbers of texts to generate at once.
    """

    platform: str
    contenders: Sequence[Contender]
    steps: int
    product_side: int
    streams: Sequence[int]


_ALL: tuple[Precision, ...] = get_args(Precision)
_CHARLM = Contender(OURS, "charlm", "jax", tasks=("train", "windowed", "stateful"))
_TENSORFLOW = Contender("Keras on TensorFlow", "keras_lstm", "tensorflow", "tensorflow", max_characters=20)
_KERAS = Contender("Keras on JAX", "keras_lstm", "keras", "jax", max_characters=200)
_PYTORCH = Contender("PyTorch", "pytorch_lstm", "torch", tasks=("train", "windowed", "stateful"))
_FLAX = Contender(REREADER, "flax_rnn", "flax")
_ON_GPU = [
    *_CHARLM.in_each(*_ALL),
    *dataclasses.replace(_CHARLM, name=f"{OURS}, unrolled", tasks=("train",), way="unrolled").in_each(*_ALL),
    *_PYTORCH.in_each(*_ALL),
    *dataclasses.replace(_PYTORCH, name="PyTorch, CUDA graph", tasks=("train",), way="graph").in_each(*_ALL),
    *dataclasses.replace(_FLAX, name="cuDNN by JAX", way="cudnn").in_each("float32", "tf32"),
    *_FLAX.in_each(*_ALL),
    *_KERAS.in_each("float32", "tf32"),
]
PLACES = {
    "cpu": Place("cpu", [_CHARLM, _TENSORFLOW, _KERAS, _PYTORCH, _FLAX], 20, 512, (1, 4, 16, 64, 256)),
    "gpu": Place("cuda", _ON_GPU, 200, 8192, (1, 16, 256, 1024, 4096)),
}


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    device: Literal["cpu", "gpu"] = "cpu"
    """What to time on: the cores of the CPU, or a CUDA GPU."""
    hidden_sizes: tuple[int, ...] = (128, 32, 256, 512)
    """Hidden sizes to train at; sampling and scaling are timed at the first."""
    rounds: int = 7
    """Times that everything is measured, except the time to the first step, which is measured once."""
    json: bool = False
    """Print the figures as one JSON object instead of tables."""
    figure: Path | None = None
    """Where to draw the figure, as SVG or PNG by its ending."""

    def __post_init__(self) -> None:
        require("--hidden-sizes", "without a number", self.hidden_sizes != (), "followed by one")
        for size in self.hidden_sizes:
            require_count("--hidden-sizes", size)
        require_count("--rounds", self.rounds)
        require_file("--figure", self.figure, ".svg", ".png")


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender, place: Place) -> None:
        self.contender, self.place = contender, place
        environment = {**os.environ, "KERAS_BACKEND": contender.backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment["JAX_PLATFORMS"] = f"{place.platform},cpu"  # the CPU for what a GPU is not meant to do
        environment["JAX_DEFAULT_MATMUL_PRECISION"] = _MATMUL[contender.precision]
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a first step is timed with its compilation
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the contenders share a GPU's memory
        one = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        environment["CUDA_VISIBLE_DEVICES"] = "" if place.platform == "cpu" else one
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe that nobody reads would fill up)
        command = [sys.executable, str(_PEERS / "worker.py"), contender.module]
        command += [contender.precision, contender.way, place.platform]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        self.devices, self.kind = 1, ""  # what it runs on, known from its first answer on

    def run(self, order: "Order") -> tuple[float, int]:
        """Return the seconds that an order took, and the peak memory of the process or the GPU in bytes.

        Raises:
            InputError: it failed; the message says why.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # a process that has ended gives no answer either
            self.process.stdin.write(json.dumps({"task": order.task, "count": order.count, **order.options}) + "\n")
            self.process.stdin.flush()
        record = json.loads(self.process.stdout.readline() or "{}")
        if "seconds" not in record:
            self.errors.seek(0)
            last = self.errors.read().strip().splitlines()[-1:]
            why = record.get("error") or " ".join(last) or "it crashed"
            who = f"{self.contender.name} in {self.contender.precision}"
            raise InputError(f"{who} cannot do '{order.title}' here: {why}")
        self.devices, self.kind = record["devices"], record["kind"]
        return record["seconds"], record["peak_bytes"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


@dataclass(frozen=True)
class Order:
    """What to time as a row of the tables: `count` training steps, or characters of each stream, at a time.

    The task and its options are those of `peers/worker.py`.
    """

    title: str
    worker: Worker
    task: str
    count: int
    options: dict[str, int]

    def timing(self, seconds: Sequence[float], peak_bytes: int) -> Timing:
        """Return what it took over all rounds, per step of a model or per character of a stream."""
        units = self.count * self.options.get("streams", 1) * self.options.get("models", 1)
        contender, size = self.worker.contender, self.options["hidden_size"]
        middle, minimum, maximum = (figure(seconds) / units for figure in (median, min, max))
        return Timing(self.title, contender.name, contender.precision, size, middle, minimum, maximum, peak_bytes)


def _first_steps(
    place: Place, contenders: Sequence[Contender], hidden_size: int, stack: contextlib.ExitStack
) -> tuple[list[Worker], list[Timing]]:
    """Start the processes, one after another, each timed until its first training step is done."""
    workers, timings = [], []
    for contender in contenders:
        started = time.perf_counter()
        worker = Worker(contender, place)
        stack.callback(worker.close)
        order = Order(Title.FIRST_STEP, worker, "train", 1, {"hidden_size": hidden_size})
        try:
            _, peak_bytes = worker.run(order)
        except InputError as error:
            if not workers:  # ours, to which all others are compared
                raise
            tell(f"left out: {error}")
            continue
        timings.append(order.timing([time.perf_counter() - started], peak_bytes))
        workers.append(worker)
    return workers, timings


def _comparisons(workers: Sequence[Worker], hidden_sizes: Sequence[int]) -> Iterator[Order]:
    for size in hidden_sizes:
        for worker in workers:
            # As many steps as take about the same time at every size.
            steps = worker.place.steps
            count = min(2 * steps, max(2, round(steps * (128 / size) ** 1.5)))
            yield Order(Title.TRAINING, worker, "train", count, {"hidden_size": size})
    for title, task, characters in ((Title.WINDOWED, "windowed", 400), (Title.STATEFUL, "stateful", 2000)):
        for worker in workers:
            if task in worker.contender.tasks:
                count = min(characters, worker.contender.max_characters)
                yield Order(title, worker, task, count, {"hidden_size": hidden_sizes[0]})


def _own(ours: Worker, hidden_size: int) -> Iterator[Order]:
    """Yield what only this project is timed at: the yardsticks, many models and streams, and how time grows."""
    size, place, side = {"hidden_size": hidden_size}, ours.place, ours.place.product_side
    step = {"rows": -(-BATCH_SIZE // ours.devices), "inner": hidden_size, "columns": 4 * hidden_size}
    yield Order(Title.PRODUCT, ours, "multiply", 100, {**size, "rows": side, "inner": side, "columns": side})
    yield Order(Title.DEPENDENT, ours, "multiply", 1000, size | step)
    yield Order("windowed character, block of 4 x 400", ours, "windowed", 400, {**size, "streams": 4})
    yield Order(Title.CHECKPOINT, ours, "checkpoint", 10, size)
    for models in (1, 2, 4, 8, 16):
        title = f"training step of each of {models} together"
        yield Order(title, ours, "train_together", max(place.steps // models, 2), {**size, "models": models})
    for steps in (1, 10, 100):
        yield Order(f"training step, {steps} in a dispatch", ours, "train", steps, size)
    for length in (100_000, 1_000_000, 10_000_000):
        yield Order(f"training step, text of {length:,}", ours, "train", 20, {**size, "characters": length})
    for task, length in itertools.product(("stateful", "windowed"), (100, 1000, 10_000)):
        yield Order(f"{task} character, {length:,} in a row", ours, task, length, size)
    for (task, characters), streams in itertools.product({"stateful": 64_000, "windowed": 1600}.items(), place.streams):
        count = max(characters // streams, place.steps // 2)
        yield Order(f"{task} character, {streams} streams", ours, task, count, {**size, "streams": streams})


def _time(orders: Sequence[Order], rounds: int) -> list[Timing]:
    """Run all orders, one after another, in every round; a round before the first compiles and warms up.

    An order that fails is reported once and left out.
    """
    seconds: dict[int, list[float]] = {place: [] for place in range(len(orders))}
    peaks: dict[int, int] = {}
    with tqdm(total=(rounds + 1) * len(orders), unit=" timings", leave=False, disable=None) as bar:
        for number in range(rounds + 1):
            for place, order in enumerate(orders):
                bar.set_postfix_str(f"{order.worker.contender.name}: {order.title}", refresh=False)
                if place in seconds:
                    try:
                        total, peaks[place] = order.worker.run(order)
                        seconds[place] += [total] * (number > 0)
                    except InputError as error:
                        del seconds[place]
                        tell(f"left out: {error}")
                bar.update()
    return [orders[place].timing(those, peaks[place]) for place, those in seconds.items()]


def main(flags: Sequence[str]) -> None:
    """Time, and print."""
    arguments = tyro.cli(Arguments, prog="scripts/run benchmark", description=folded(__doc__), args=flags)
    place, first = PLACES[arguments.device], arguments.hidden_sizes[0]
    here = [contender for contender in place.contenders if importlib.util.find_spec(contender.package)]
    absent = {contender.name: contender.package for contender in place.contenders if contender not in here}
    for name, package in absent.items():
        tell(f"absent: {name} ({package} is not installed)")

    from charlm_jax.runs.devices import cores, processor

    with contextlib.ExitStack() as stack:
        try:
            workers, first_steps = _first_steps(place, here, first, stack)
        except InputError as error:
            if arguments.device == "cpu":
                raise
            needed = "it needs an NVIDIA GPU, its driver, and .venv/bin/python -m pip install -e '.[gpu]'"
            raise InputError(f"--device gpu cannot be used: {error}; {needed}") from error
        orders = [*_comparisons(workers, arguments.hidden_sizes)]
        orders += [order for worker in workers if worker.contender.name == OURS for order in _own(worker, first)]
        timings = [*_time(orders, arguments.rounds), *first_steps]
    benchmark = Benchmark(timings, workers[0].devices, place.product_side)
    packages = ("jax", "flax", "keras", "tensorflow", "torch")
    machine = {
        "device": workers[0].kind,
        "processor": processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)},
        "absent": list(absent),
    }
    if arguments.json:
        seconds = [dataclasses.asdict(timing) for timing in timings]
        roofline = {precision: benchmark.roofline(precision) for precision in benchmark.precisions}
        print(json.dumps({"machine": machine, "seconds": seconds, "roofline": roofline}))
    else:
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        where = f"{machine['device']}, {machine['processor']}, {cores()} cores, Python {machine['python']}, {versions}"
        print(", all in ".join(filter(None, [where, benchmark.only_precision])))
        for line in describe(benchmark):
            print(line)
    if arguments.figure is not None:
        from charlm_jax.runs.files import save_picture

        save_picture(plot_benchmark(benchmark), arguments.figure)
        tell(f"figure: {arguments.figure}")


if __name__ == "__main__":
    run_command(main)
