"""Run a published notebook's job and compare its loss curve with the published ones.

    scripts/run reproduce [PRESET] [flags]

Trains as `text_generation PRESET` does (tf-keras-2.5 if none is named), then prints a row per epoch: the training loss,
the published losses with the same gates, the distance from the band that they span, and whether that is within 0.01
nats, about as much as another seed changes the first epoch's loss. The figure and the table go into the run's folder.
The same flags again, including --epochs and --run-dir, only compare; a larger --epochs trains on. All 59 epochs take
about half an hour on two cores.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from charlm_jax.choices import counted
from charlm_jax.errors import InputError
from charlm_jax.runs.command_line import TrainingArguments, parse_training, print_table, run_command, tell
from charlm_jax.runs.configuration import PRESETS, Configuration
from charlm_jax.runs.stop import StopRequested, stop_requests

_WINDOWS = 200_278, 200_281  # of Nietzsche, decoded as UTF-8 and with one byte per character
_PUBLISHED = Path(__file__).with_name("published_loss_curves.csv")
_TOLERANCE = 0.01  # nats; the first epoch's loss has a standard deviation of 0.009 over seeds 0 to 3


def _differences(configuration: Configuration, windows: int) -> list[str]:
    """Return where a configuration differs from what the published runs share, in the choices that affect the loss."""
    notebook = PRESETS["keras-2.2" if configuration.gate_activation == "hard_sigmoid" else "tf-keras-2.5"]
    free = ("corpus", "encoding", "epochs", "seed", "recurrence")
    free += ("temperatures", "sample_every", "sample_length", "carry", "sampler", "prompt_start", "continuation")
    compared = dataclasses.replace(notebook, **{name: getattr(configuration, name) for name in free})
    differences = compared.differences(configuration)
    if windows not in _WINDOWS:
        differences.append(f"{windows:,} training windows here, not Nietzsche's {_WINDOWS[0]:,}")
    return differences


def main(flags: Sequence[str]) -> None:
    """Train, compare, print and draw."""
    with stop_requests() as stop_requested:
        arguments = parse_training("reproduce", __doc__, flags, preset="tf-keras-2.5")
        from charlm_jax.runs.processes import joined

        with joined(arguments.distributed):
            _run(arguments, stop_requested)


def _run(arguments: TrainingArguments, stop_requested: StopRequested) -> None:
    from charlm_jax.runs.assembly import prepare
    from charlm_jax.runs.processes import agreed
    from charlm_jax.runs.train import train

    run_dir = Path(agreed(lambda: str(arguments.run_dir)))  # as its default name has the time in it
    job = prepare(arguments.configuration, arguments.devices, run_dir)
    differences = _differences(arguments.configuration, job.windows)
    if differences:
        tell(f"note: this is not the published job that it is compared with: {'; '.join(differences)}")
    for epoch in train(job, run_dir, stop_requested, text=arguments.text):
        tell(f"epoch {epoch.epoch}: training loss {epoch.training_loss:.4f} nats")
    agreed(lambda: _compare(run_dir, job.corpus.name, differences))


def _compare(run_dir: Path, corpus: str, differences: Sequence[str]) -> None:
    """Compare a run's losses with the published ones, print and draw; `differences` are from the published job."""
    from charlm_jax.analysis.loss_curves import compare, plot_comparison, read_published
    from charlm_jax.runs.directory import open_run
    from charlm_jax.runs.files import save_pictures, write_table
    from charlm_jax.runs.records import read_records

    run = open_run(run_dir)
    configuration = run.configuration()
    epochs = read_records(run.metrics, "epoch")
    ours = {record["epoch"]: record["training_loss"] for record in epochs}
    published = read_published(_PUBLISHED.read_text(), configuration.gate_activation)
    comparisons = compare(ours, published)
    if not comparisons:
        raise InputError(f"the run {str(run_dir)!r} shares no epoch with a published run; train one with --epochs 1")

    header = ["epoch", "ours", *published, "distance", "verdict"]
    rows = []
    for comparison in comparisons:
        losses = [curve.get(comparison.epoch) for curve in published.values()]
        shown = ["" if loss is None else f"{loss:.4f}" for loss in losses]
        verdict = "reproduced" if abs(comparison.distance) <= _TOLERANCE else "differs"
        rows.append([str(comparison.epoch), f"{comparison.loss:.4f}", *shown, f"{comparison.distance:+.4f}", verdict])
    print_table([header, *rows])
    reproduced = sum(abs(comparison.distance) <= _TOLERANCE for comparison in comparisons)
    print(f"{reproduced} of {counted(len(comparisons), 'epoch')} within {_TOLERANCE} nats of the published band")

    title = f"{Path(corpus).name}, {configuration.gate_activation} gates, {configuration.optimizer}"
    title += "\n(not the published job)" if differences else ""
    figure = plot_comparison(ours, published, comparisons, title=title, tolerance=_TOLERANCE)
    for path in save_pictures(figure, run.figures, "loss_curves"):
        tell(f"figure: {path}")
    made, table = run.provenance(), run.figures / "loss_curves.csv"
    where = f"{made['device_count']} x {made['device_kind']}, jax {made['versions']['jax']}, commit {made['commit']}"
    remarks = [
        f"Training loss in nats per character, the mean over an epoch's windows. {where}, seed {configuration.seed}"
    ]
    write_table(table, header, rows, [*remarks, *title.splitlines()])
    tell(f"table: {table}")


if __name__ == "__main__":
    run_command(main)
