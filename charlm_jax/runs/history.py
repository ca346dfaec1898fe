"""A run's epochs: what is recorded of each, and what the records say about the run so far."""

import math
from dataclasses import dataclass

from charlm_jax.errors import InputError
from charlm_jax.learning.evaluation import Evaluation
from charlm_jax.runs.directory import RunDirectory
from charlm_jax.runs.records import append_record, keep_records, read_records
from charlm_jax.runs.samples import Sample

FAR_ABOVE = 0.5
"""Nats above the lowest loss beyond which training counts as unstable: 1.6 times the perplexity."""


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch.

    Attributes:
        epoch: its number, from 1.
        step: updates since the start of the run, including skipped ones.
        training_loss: nats per character, the mean over the epoch's windows, each as it was learned from.
        windows: how many windows the model learned from.
        skipped: updates that were skipped because something in them was not finite.
        held_out: the loss on the held-out text after the epoch; None if nothing is held out.
        seconds: training time, in the first epoch including compilation; None for an epoch that was interrupted.
        samples: one text per temperature, after every `sample_every` epochs and after the last.
    """

    epoch: int
    step: int
    training_loss: float
    windows: int
    skipped: int
    held_out: Evaluation | None
    seconds: float | None
    samples: tuple[Sample, ...]


def held_out_losses(run: RunDirectory) -> list[float]:
    """Return the held-out loss of every epoch so far, in nats per character."""
    return [record["held_out_loss"] for record in read_records(run.metrics, "evaluation")]


def training_losses(run: RunDirectory) -> list[float]:
    """Return the training loss of every epoch so far, in nats per character."""
    return [record["training_loss"] for record in read_records(run.metrics, "epoch")]


def out_of_patience(patience: int | None, losses: list[float]) -> bool:
    """Return whether at least `patience` epochs have passed since the lowest held-out loss."""
    return patience is not None and bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


def unstable(losses: list[float], vocabulary_size: int) -> bool:
    """Return whether the last training loss is far above the lowest, or far above the loss of a uniform guess."""
    return bool(losses) and losses[-1] > min(*losses, math.log(vocabulary_size)) + FAR_ABOVE


def drop_unfinished_records(run: RunDirectory, step: int, steps_per_epoch: int) -> bool:
    """Drop the records that a restored step makes obsolete; return whether the epoch that ends at it lacks its own.

    Raises:
        InputError: an earlier epoch's record or held-out loss is missing or duplicated; nothing is dropped.
    """
    held_out = run.configuration().held_out_fraction > 0
    ends_epoch = step > 0 and step % steps_per_epoch == 0
    records = read_records(run.metrics, "epoch")
    unrecorded = ends_epoch and all(record["step"] != step for record in records)
    epochs = [record["epoch"] for record in records if record["step"] <= step]
    due = list(range(1, step // steps_per_epoch + 1 - unrecorded))
    evaluated = [record["epoch"] for record in read_records(run.metrics, "evaluation") if record["epoch"] in due]
    recorded = [epochs, evaluated] if held_out else [epochs]
    if any(each != due for each in recorded):
        # The lowest loss decides which model is the best: if one were missing, a worse model might replace it.
        missing = sorted(set(due).difference(set.intersection(*map(set, recorded)))) or "none"
        raise InputError(
            f"{str(run.metrics)!r} does not hold each epoch up to step {step} once (missing: {missing}); restore a "
            f"copy, or start another run from this one's model: --init-from {run.path} --run-dir OTHER"
        )
    for path in (run.metrics, run.samples):
        keep_records(path, step - 1 if unrecorded else step)
    return unrecorded


def record_epoch(run: RunDirectory, done: Epoch, *, window: int, sampler: str) -> None:
    """Append an epoch's records, its own last: if that is there, so are the others."""
    place = {"epoch": done.epoch, "step": done.step}
    for sample in done.samples:
        text = {"temperature": sample.temperature, "prompt": sample.prompt, "text": sample.text, "sampler": sampler}
        append_record(run.samples, {**place, **text})
    if done.held_out is not None:
        evaluation = {
            "held_out_loss": done.held_out.loss_nats,
            "bits_per_character": done.held_out.bits_per_character,
            "characters": done.held_out.characters,
        }
        append_record(run.metrics, {"event": "evaluation", **place, **evaluation})
    characters = done.windows * window
    epoch = {
        "training_loss": done.training_loss,
        "windows": done.windows,
        "skipped_steps": done.skipped,
        "seconds": None if done.seconds is None else round(done.seconds, 3),
        "characters_per_second": None if done.seconds is None else round(characters / done.seconds),
    }
    append_record(run.metrics, {"event": "epoch", **place, **epoch})
