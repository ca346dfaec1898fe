"""Measure what training costs per character, by hidden size, batch size and devices, and fit a model of the cost.

    scripts/run cost_model [PRESET] [--hidden-sizes N...] [--batch-sizes N...] [--device-counts N...] [--figure FILE]

Takes steps of the preset's job at every combination, in turns, and prints the medians, in nanoseconds per character,
beside the predictions of a model fitted to all the others; then the model itself: the seconds of each term of its sum.
--predict gives the time of a step at sizes that were not measured, and that need not fit here. The other flags are
those of `text_generation`, but for --hidden-size and --batch-size. Takes about four minutes on two idle cores.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import tyro

from charlm_jax.errors import InputError, require, require_count
from charlm_jax.runs.command_line import (
    folded,
    named_preset,
    print_table,
    progress_bar,
    require_file,
    run_command,
    tell,
)
from charlm_jax.runs.configuration import Configuration, flag

if TYPE_CHECKING:
    from charlm_jax.runs.assembly import Job

_SECONDS = 0.25  # of work in a measurement


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    configuration: Annotated[Configuration, tyro.conf.arg(name="")]
    hidden_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Hidden sizes to measure."""
    batch_sizes: tuple[int, ...] = (16, 64, 256)
    """Batch sizes to measure."""
    device_counts: tuple[int, ...] = ()
    """Numbers of devices to measure; 1, 2, 4, ... up to those available if not given."""
    predict: tuple[str, ...] = ()
    """Sizes to predict, each as HIDDEN_SIZExBATCH_SIZExDEVICES, such as 1024x256x8."""
    rounds: int = 5
    """Times that everything is measured."""
    figure: Path | None = None
    """Where to draw the figure, as SVG or PNG by its ending; the table goes beside it, as comma-separated values."""

    def __post_init__(self) -> None:
        for name in ("hidden_sizes", "batch_sizes", "device_counts"):
            values = getattr(self, name)
            require(flag(name), "without a number", values != () or name == "device_counts", "followed by one")
            for value in values:
                require_count(flag(name), value)
            words = " ".join(map(str, values))
            require(flag(name), words, len(set(values)) == len(values), "numbers that all differ")
        for sizes in self.predict:
            there = [part.isdecimal() and int(part) > 0 for part in sizes.split("x")]
            require("--predict", sizes, there == [True] * 3, "three numbers, such as 1024x256x8")
            _, batch_size, devices = map(int, sizes.split("x"))
            require("--predict", sizes, batch_size >= devices, "of at least as many windows as devices")
        require_count("--rounds", self.rounds)
        require_file("--figure", self.figure, ".svg", ".png")


def main(flags: Sequence[str]) -> None:
    """Measure, fit, print and draw."""
    preset, base, flags = named_preset(flags, "quick")
    program = f"scripts/run cost_model {preset}"
    arguments = tyro.cli(Arguments, prog=program, description=folded(__doc__), args=flags, default=Arguments(base))
    for name in ("hidden_size", "batch_size"):
        value = getattr(arguments.configuration, name)
        require(flag(name), value, value == getattr(base, name), f"given as {flag(name)}s")

    from charlm_jax.analysis.cost_model import TERMS, Step, fit_costs, left_out, plot_costs, predict
    from charlm_jax.runs.assembly import prepare
    from charlm_jax.runs.devices import describe_process, open_mesh
    from charlm_jax.runs.files import save_picture, write_table
    from charlm_jax.runs.trained import make_network

    there = open_mesh(None, rows=2**30).size
    counts = arguments.device_counts or tuple(2**power for power in range(there.bit_length()))
    for count in counts:
        require("--device-counts", count, count <= there, f"at most {there}, the devices there are")
    combinations = itertools.product(arguments.hidden_sizes, arguments.batch_sizes, counts)
    measurable = [sizes for sizes in combinations if sizes[1] >= sizes[2]]

    def with_sizes(hidden_size: int, batch_size: int) -> Configuration:
        return dataclasses.replace(arguments.configuration, hidden_size=hidden_size, batch_size=batch_size)

    jobs = [prepare(with_sizes(*sizes), devices) for *sizes, devices in measurable]

    def step_of(hidden_size: int, batch_size: int, devices: int) -> Step:
        chosen = with_sizes(hidden_size, batch_size)
        network, sizes = make_network(chosen, jobs[0].vocabulary), {"batch_size": batch_size, "devices": devices}
        return Step.of(network, chosen.objective, window=chosen.window, **sizes)

    steps = [step_of(*sizes) for sizes in measurable]
    for sizes in arguments.predict if len(counts) == 1 else ():
        told = int(sizes.split("x")[2]) == counts[0]
        require("--predict", sizes, told, f"for the only number of devices measured, {counts[0]}; see --device-counts")
    if len(steps) <= len(TERMS):
        raise InputError(f"{len(steps)} combinations are too few to fit {len(TERMS)} terms; give more sizes")
    to_predict = [step_of(*map(int, sizes.split("x"))) for sizes in arguments.predict]
    measured = measure(jobs, arguments.rounds)
    costs = fit_costs(steps, measured)
    header = ["hidden_size", "batch_size", "devices", "ns_per_character", "from_the_others", "error"]
    rows, errors = [], []
    for step, seconds, predicted in zip(steps, measured, left_out(steps, measured), strict=True):
        errors.append(abs(predicted / seconds - 1))
        nanoseconds = [f"{1e9 * each / step.characters:.0f}" for each in (seconds, predicted)]
        rows.append([*map(str, step[:3]), *nanoseconds, f"{predicted / seconds - 1:+.1%}"])
    print_table([header, *rows])
    error = f"{median(errors):.1%} in the median, {max(errors):.1%} at most"
    print(f"a combination is predicted from the others with an error of {error}")
    for name, each in zip(TERMS.values(), costs, strict=True):
        print(f"{each:8.2e} s  {name}")
    for step in to_predict:
        seconds = predict(costs, step)
        shown = f"{1e3 * seconds:.3g} ms a step, {1e9 * seconds / step.characters:.3g} ns a character"
        print(f"predicted for {step.hidden_size} units, {step.batch_size} windows, {step.devices} devices: {shown}")
    if arguments.figure is not None:
        made = describe_process(arguments.configuration.precision, jobs[-1].mesh, 1)
        where = f"{made['device_kind']}, {made['precision']}, jax {made['versions']['jax']}"
        by_default, chosen = base.to_json(), arguments.configuration.to_json()
        changed = [f"{flag(name)} {value}" for name, value in chosen.items() if value != by_default[name]]
        job = " ".join([preset, *changed])
        title = f"{job}, {where}: dots measured, lines fitted\nerror of a prediction from the others: {error}"
        save_picture(plot_costs(steps, measured, costs, title=title), arguments.figure)
        table = arguments.figure.with_suffix(".csv")
        write_table(table, header, rows, [f"{job}, {where}, {made['cpu_cores']} cores, commit {made['commit']}"])
        tell(f"figure: {arguments.figure}; table: {table}")


def measure(jobs: Sequence["Job"], rounds: int) -> list[float]:
    """Return the median seconds of a training step of each job, measured in turns."""
    timed = []
    with progress_bar("compiling", len(jobs), " programs") as bar:
        for job in jobs:
            timed.append(_steps_of(job))
            bar.update()
    counts = [max(1, round(_SECONDS / take(1))) for take in timed]
    seconds = [[] for _ in jobs]
    with progress_bar("measuring", rounds, " rounds") as bar:
        for _ in range(rounds):
            for take, count, those in zip(timed, counts, seconds, strict=True):
                those.append(take(count) / count)
            bar.update()
    return [median(those) for those in seconds]


def _steps_of(job: "Job") -> Callable[[int], float]:
    """Return a compiled function that takes a number of a job's training steps and returns the seconds."""
    import jax
    import jax.numpy as jnp

    from charlm_jax.mesh import replicate
    from charlm_jax.runs.assembly import first_state, train_steps_of

    train_steps, state = train_steps_of(job, job.mesh), replicate(first_state(job), job.mesh)
    ids, key = replicate((jnp.array(job.training_ids), job.key), job.mesh)

    def take(count: int) -> float:
        nonlocal state
        started = time.perf_counter()
        state = jax.block_until_ready(train_steps(state, ids, key, int(state.step) + count))
        return time.perf_counter() - started

    take(1)
    return take


if __name__ == "__main__":
    run_command(main)
