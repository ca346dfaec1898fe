"""Grids: every combination of the varied choices, with several seeds each; every run is an ordinary run directory.

Runs that differ only in seed and learning rate are trained together, in one program. The programs run in turn, or as
the jobs of a launcher. An interrupted grid resumes where it was, because each of its runs does.
"""

import dataclasses
import functools
import itertools
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from charlm_jax.choices import Launcher, counted
from charlm_jax.errors import DivergedError, InputError, Preempted, meant, require, require_count
from charlm_jax.runs.command_line import absolute_places, folded, named_preset, print_table, tell
from charlm_jax.runs.configuration import Configuration, flag
from charlm_jax.runs.files import hold_folder, save_pictures, write_table
from charlm_jax.runs.launch import Ending, attempt, launch
from charlm_jax.runs.stop import StopRequested

if TYPE_CHECKING:
    from charlm_jax.analysis.ablation import Outcome  # needs JAX, which --help must not load

# Columns that would not fit on a screen; only the file has them.
_FILED = {"gap_low", "gap_high", "flops_per_character", "trained_together", "failure"}
_FIELDS = [field.name for field in dataclasses.fields(Configuration)]


@dataclass(frozen=True)
class GridArguments:
    """The flags of a command that trains a grid of runs."""

    configuration: Annotated[Configuration, tyro.conf.arg(name="")]
    vary: tuple[str, ...] = ()
    """Choices to vary, each given as field=value,value,...; every combination is trained."""
    replicas: int = 4
    """Runs of each combination, with consecutive seeds from --seed on."""
    grid_dir: Path = Path("runs", "EXPERIMENT-TIME")
    """Directory of the grid, which holds one directory per run: a new one by default, or an existing one to resume."""
    devices: int | None = None
    """Devices to split the runs and their batches over; all if not given (on a CPU, one per core)."""
    distributed: str | None = None
    """Where the other processes of this job are: HOST:PORT/NUMBER/COUNT, or auto; Slurm's are found if not given."""
    launcher: Launcher = "here"
    """Where to train: in this process in turn (here), in separate processes on this machine (local), or under Slurm."""
    jobs: int | None = None
    """How many of a launcher's jobs may run at once; if not given, all (slurm), one per GPU, or two on CPUs (local)."""
    slurm: tuple[str, ...] = ()
    """Options of sbatch for each Slurm job, without dashes: partition=NAME gpus-per-node=1 exclusive time=60 ..."""

    def __post_init__(self) -> None:
        free = not (self.grid_dir / "config.json").exists()
        require("--grid-dir", self.grid_dir, free, "a directory of runs, and this one is a run's own")
        require_count("--replicas", self.replicas)
        require_count("--devices", self.devices)
        require_count("--jobs", self.jobs)
        launched, words = self.launcher != "here", " ".join(self.slurm)
        require("--jobs", self.jobs, launched or self.jobs is None, "omitted without --launcher local or slurm")
        require("--slurm", words, self.launcher == "slurm" or not words, "omitted without --launcher slurm")
        named = all(option[:1].isalpha() for option in self.slurm)
        require("--slurm", words, named, "options by name, with =value where they have one")
        one = not any(option.startswith("clusters") for option in self.slurm)
        require("--slurm", words, one, "without clusters: the jobs of a grid are looked for on this one")
        alone = not launched or self.distributed is None
        require("--distributed", self.distributed, alone, "omitted with a --launcher, whose jobs are one process each")


@dataclass(frozen=True)
class GridRun:
    """A run of a grid.

    Attributes:
        configuration: every choice.
        varied: the names of the fields in which the grid's runs differ; the seed comes last.
        path: the run's directory.
    """

    configuration: Configuration
    varied: tuple[str, ...]
    path: Path


def parse_grid(
    experiment: str, description: str | None, flags: Sequence[str], *, preset: str, vary: tuple[str, ...]
) -> tuple[GridArguments, list[GridRun]]:
    """Parse the command line of a command that trains a grid; return its flags and its runs.

    Args:
        experiment: the command's name.
        description: its help text.
        flags: the command line.
        preset: the default preset.
        vary: the default of --vary.

    Raises:
        InputError: --vary is missing or cannot be used, two runs would get the same name, or nothing is held out; or as
            in `parse_training`.
    """
    preset, base, flags = named_preset(flags, preset)
    defaults = GridArguments(base, vary)
    program = f"scripts/run {experiment} {preset}"
    arguments = tyro.cli(GridArguments, prog=program, description=folded(description), args=flags, default=defaults)
    if arguments.grid_dir == defaults.grid_dir:
        # The process ID tells apart commands that are started in the same second.
        grid_dir = defaults.grid_dir.with_name(f"{experiment}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        arguments = dataclasses.replace(arguments, grid_dir=grid_dir)
    choices = _choices(arguments)
    runs = []
    for values in itertools.product(*choices.values()):
        # Parsed as flags after the others, so that varied values are checked like any flag, and override them.
        chosen = [word for name, value in zip(choices, values, strict=True) for word in _words(name, value)]
        combined = tyro.cli(GridArguments, prog=program, args=[*flags, *chosen], default=defaults).configuration
        for seed in range(combined.seed, combined.seed + arguments.replicas):
            configuration = absolute_places(dataclasses.replace(combined, seed=seed))
            held_out = configuration.held_out_fraction
            require("--held-out-fraction", held_out, held_out > 0, "above 0, as a grid compares held-out losses")
            named = {name: str(getattr(configuration, name)) for name in (*choices, "seed")}
            # Only the last part of a path, and no more of any value than the file system accepts in a name.
            name = ",".join(f"{name}={Path(value).name[-40:]}" for name, value in named.items())
            path = arguments.grid_dir / re.sub(r"[^\w.,=+-]+", "_", name)
            runs.append(GridRun(configuration, tuple(named), path))
    names = [run.path.name for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--vary {' '.join(arguments.vary)} names a run twice: {twice[0]!r}; give different values")
    return arguments, runs


def _words(name: str, value: str) -> list[str]:
    """Return a varied choice as words of a command line, on which a boolean is a flag without a value."""
    truth = {"true": flag(name), "false": f"--no-{flag(name).removeprefix('--')}"}.get(value.lower())
    return [truth] if truth else [flag(name), "None" if value.lower() == "none" else value]


def _choices(arguments: GridArguments) -> dict[str, list[str]]:
    if not arguments.vary:
        raise InputError("nothing is varied; give --vary FIELD=VALUE,VALUE,..., such as --vary dropout=0,0.2")
    choices: dict[str, list[str]] = {}
    for varied in arguments.vary:
        name, _, values = varied.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        wanted = f"FIELD=VALUE,VALUE,... with one of {', '.join(_FIELDS)}{meant(name, _FIELDS)}"
        require("--vary", varied, name in _FIELDS, wanted)
        require("--vary", varied, name not in choices, "named once")
        require("--vary", varied, name != "seed", "left to --replicas and --seed")
        choices[name] = values.split(",")
        require("--vary", varied, all(choices[name]), "a field, =, and values separated by commas")
        require("--vary", varied, len(set(choices[name])) == len(choices[name]), "a list of different values")
    return choices


def run_grid(arguments: GridArguments, runs: Sequence[GridRun], stop_requested: StopRequested) -> None:
    """Train the runs of a grid and report their results, even if some diverge or fail.

    Raises:
        DivergedError: at least one run diverged; the others have finished, and the results are written.
        Preempted: a stop was requested; what trained on this machine is saved, and jobs under Slurm keep running.
        InputError: the directory holds other runs, or some runs cannot be trained; in a single process, the results of
            the others are written.
    """
    from charlm_jax.runs.directory import require_same_choices
    from charlm_jax.runs.processes import agreed, joined, require_alike

    groups = _groups(runs)
    with joined(arguments.distributed):
        require_alike({"the grid's runs": [run.path.name for run in runs]})
        tell(f"grid       {arguments.grid_dir}: {counted(len(runs), 'run')} in {counted(len(groups), 'program')}")
        agreed(lambda: [require_same_choices(run.path, run.configuration) for run in runs])
        train = _train_in_turn if arguments.launcher == "here" else _train_in_jobs
        endings = train(arguments, groups, stop_requested)
        failed = {name: why for name, (ending, why) in endings.items() if ending == "failed"}
        if len(failed) < len(groups):
            agreed(lambda: _report(arguments, groups, failed))
    if failed:
        why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise InputError(
            f"{len(failed)} of {len(groups)} programs failed ({why}); once that is fixed, the same command with "
            f"--grid-dir {arguments.grid_dir} resumes"
        )
    for ending, why in endings.values():
        if ending == "diverged":
            raise DivergedError(why)


def _groups(runs: Sequence[GridRun]) -> dict[str, list[GridRun]]:
    """Group the runs that are trained together; return each group by the name of its first run."""
    groups: dict[Configuration, list[GridRun]] = {}
    for run in runs:
        alike = dataclasses.replace(run.configuration, seed=0, learning_rate=1.0)
        groups.setdefault(alike, []).append(run)
    return {group[0].path.name: group for group in groups.values()}


def _train_in_turn(
    arguments: GridArguments, groups: Mapping[str, Sequence[GridRun]], stop_requested: StopRequested
) -> dict[str, Ending]:
    """Train the groups in this process, one after another."""
    train, endings = functools.partial(_train, devices=arguments.devices), dict[str, Ending]()
    for number, (name, group) in enumerate(groups.items(), start=1):
        beside = f" and {len(group) - 1} more" if len(group) > 1 else ""
        tell(f"--- {number} of {len(groups)}: {name}{beside}")
        try:
            endings[name] = attempt(train, group, stop_requested)
        except Preempted as stop:
            raise Preempted(
                f"stopped by a signal; all states are saved, and the same command with --grid-dir {arguments.grid_dir} "
                "resumes"
            ) from stop
        tell(f"--- {name}: {', '.join(filter(None, endings[name]))}")
    return endings


def _train_in_jobs(
    arguments: GridArguments, groups: Mapping[str, Sequence[GridRun]], stop_requested: StopRequested
) -> dict[str, Ending]:
    """Train each unfinished group in a job of its own."""
    missing = {name: group for name, group in groups.items() if not all(map(_is_finished, group))}
    folder = arguments.grid_dir / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    with hold_folder("--grid-dir", folder):
        return launch(
            functools.partial(_train, devices=arguments.devices),
            missing,
            folder,
            arguments.launcher,
            at_once=arguments.jobs,
            options=arguments.slurm,
            stop_requested=stop_requested,
        )


def _train(group: Sequence[GridRun], stop_requested: StopRequested, devices: int | None) -> None:
    """Train a group, runs that differ only in seed and learning rate, together."""
    from charlm_jax.mesh import replica_mesh
    from charlm_jax.runs.assembly import prepare
    from charlm_jax.runs.devices import open_mesh
    from charlm_jax.runs.train import train_together

    rows = len(group) * group[0].configuration.batch_size
    mesh = replica_mesh(list(open_mesh(devices, rows).devices.flat), len(group))
    own = None if devices is None else min(devices, group[0].configuration.batch_size)
    jobs = [prepare(run.configuration, own, run.path) for run in group]
    for replica, epoch in train_together(jobs, [run.path for run in group], mesh, stop_requested):
        held_out = "" if epoch.held_out is None else f", held-out {epoch.held_out.loss_nats:.4f}"
        tell(f"{group[replica].path.name} epoch {epoch.epoch}: training {epoch.training_loss:.4f}{held_out}")


def _is_finished(run: GridRun) -> bool:
    """Return whether a run is finished: all its epochs are done, or its patience is exhausted."""
    from charlm_jax.runs.directory import RunDirectory
    from charlm_jax.runs.history import held_out_losses, out_of_patience, training_losses

    there = RunDirectory(run.path)
    losses, epochs = held_out_losses(there), len(training_losses(there))  # an epoch's own record is written last
    return epochs == len(losses) and (
        epochs == run.configuration.epochs or out_of_patience(run.configuration.patience, losses)
    )


def outcome_of(run: GridRun, devices: int | None, failure: str = "") -> "Outcome":
    """Return the outcome of a run; its best model is evaluated on training text as well.

    Args:
        run: the run.
        devices: how many evaluate; None is all.
        failure: why training failed; empty if it did not.

    Raises:
        InputError: the run's text or its records have changed, or cannot be read.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from charlm_jax.analysis.ablation import Outcome, training_flops
    from charlm_jax.learning.evaluation import evaluate
    from charlm_jax.mesh import data_mesh
    from charlm_jax.model.initializers import parameter_count
    from charlm_jax.runs.directory import open_run
    from charlm_jax.runs.history import held_out_losses
    from charlm_jax.runs.records import read_records
    from charlm_jax.runs.trained import load_text, make_network, read_run, snapshot_shapes

    chosen = run.configuration
    varied = {name: getattr(chosen, name) for name in run.varied if name != "seed"}
    if failure:
        return Outcome(varied, chosen.seed, np.nan, np.nan, np.nan, np.nan, 1, np.nan, failure)
    there, finished = open_run(run.path), _is_finished(run)
    training_loss = np.nan
    if finished:
        loaded, (training, held_out) = read_run(there), load_text(there)
        # About as many windows as the held-out text has, from all over the training text.
        stride = chosen.stride * max(1, len(training) // len(held_out))
        mesh, windows = data_mesh(jax.local_devices()[:devices]), {"window": chosen.window, "stride": stride}
        again = evaluate(loaded.model, jnp.array(training), mesh, **windows)
        training_loss = again.loss_nats
    network = make_network(chosen, there.vocabulary())
    epochs = read_records(there.metrics, "epoch")
    speeds = [speed for record in epochs if (speed := record.get("characters_per_second"))]
    warm = speeds[1:] or speeds  # the first epoch includes compilation
    return Outcome(
        choices=varied,
        seed=chosen.seed,
        held_out_loss=min(held_out_losses(there)) if finished else np.nan,
        training_loss=training_loss,
        parameters=parameter_count(snapshot_shapes(there).model),
        flops=training_flops(network, chosen.objective, chosen.window),
        together=there.provenance().get("replicas", 1),
        characters_per_second=float(np.median(warm)) if warm else np.nan,
    )


def _report(arguments: GridArguments, groups: Mapping[str, Sequence[GridRun]], failed: Mapping[str, str]) -> None:
    """Print the results of a grid's runs, and write them to its directory as results.csv, .svg and .png.

    `failed` says why groups could not be trained, by the name of a group's first run.
    """
    from charlm_jax.analysis.ablation import plot_outcomes, results_table

    runs = [(run, failed.get(name, "")) for name, group in groups.items() for run in group]
    outcomes = [outcome_of(run, arguments.devices, failure) for run, failure in runs]
    chosen, varied = arguments.configuration, runs[0][0].varied
    words = {"corpus": Path(chosen.corpus).name, "epochs": counted(chosen.epochs, "epoch")}
    title = ", ".join(
        [word for name, word in words.items() if name not in varied] + [counted(arguments.replicas, "replica")]
    )
    header, rows = results_table(outcomes)
    columns = zip(header, *rows, strict=True)
    shown = [column for column in columns if column[0] not in _FILED and column != ("diverged", *"0" * len(rows))]
    print_table(list(zip(*shown, strict=True)))
    write_table(arguments.grid_dir / "results.csv", header, rows, [title])
    save_pictures(plot_outcomes(outcomes, title=title), arguments.grid_dir, "results")
    tell(f"results: {arguments.grid_dir / 'results.csv'}, .svg, .png")
