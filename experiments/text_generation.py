"""Train a character-level LSTM on a text, and show now and then what it writes at several temperatures.

    scripts/run text_generation [PRESET] [flags]

A preset is a full configuration, and each of its fields has a flag that overrides it:

    quick               (default) every character learned, on the language reference that comes with Python: a minute
    strong              a larger, regularised model, for an idle evening: half an hour on two cores
    tf-keras-2.5        the published notebooks' job on Nietzsche: text rolls on from one temperature to the next
    keras-fixed-prompt  the same prompt after every epoch, each of five temperatures starting from it
    keras-2.4           the text read in a one-byte encoding
    keras-2.2           hard-sigmoid gates, three epochs
    tf-keras            as tf-keras-2.5

The same --run-dir again resumes the run where it stopped, and a larger --epochs extends it if its learning rate is
constant.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from charlm_jax.runs.command_line import TrainingArguments, parse_training, run_command, tell
from charlm_jax.runs.stop import StopRequested, stop_requests


def main(flags: Sequence[str]) -> None:
    """Train, and print each epoch as it ends."""
    with stop_requests() as stop_requested:
        arguments = parse_training("text_generation", __doc__, flags, preset="quick")
        # JAX is loaded only from here on, so that --help and mistakes in the flags are answered without it.
        from charlm_jax.runs.processes import joined

        with joined(arguments.distributed):
            _run(arguments, stop_requested)


def _run(arguments: TrainingArguments, stop_requested: StopRequested) -> None:
    from charlm_jax.analysis.baselines import LIMIT, baselines
    from charlm_jax.runs.assembly import prepare
    from charlm_jax.runs.directory import RunDirectory
    from charlm_jax.runs.history import Epoch, held_out_losses
    from charlm_jax.runs.processes import agreed
    from charlm_jax.runs.train import train

    def show(epoch: Epoch) -> None:
        seconds = "" if epoch.seconds is None else f" ({epoch.seconds:.0f} s)"
        print(f"epoch {epoch.epoch}{seconds}: training loss {epoch.training_loss:.4f} nats per character", end="")
        if epoch.held_out:
            bits = epoch.held_out.bits_per_character
            print(f", held-out loss {epoch.held_out.loss_nats:.4f} nats = {bits:.4f} bits", end="")
        print()
        if epoch.samples:
            print(f'--- prompt: "{epoch.samples[0].prompt}"')
        for sample in epoch.samples:
            print(f"------ temperature: {sample.temperature:g}")
            print(sample.prompt + sample.text)
        print(end="\n" if epoch.samples else "", flush=True)

    run_dir = Path(agreed(lambda: str(arguments.run_dir)))  # as its default name has the time in it
    job = prepare(arguments.configuration, arguments.devices, run_dir)
    for epoch in train(job, run_dir, stop_requested, text=arguments.text):
        show(epoch)
    if len(job.held_out_ids):
        if max(len(job.training_ids), len(job.held_out_ids)) > LIMIT:
            tell(f"baselines use the {LIMIT:,} characters before and after the point where the held-out text begins")
        size, decode = len(job.vocabulary), job.vocabulary.decode
        beside = agreed(lambda: baselines(job.training_ids, job.held_out_ids, size, decode))
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in beside.items())
        print(f"without a network, the held-out text costs, in nats per character: {losses}")
    losses = agreed(lambda: held_out_losses(RunDirectory(run_dir)))
    best = ""
    if losses:
        best = f"; best: epoch {losses.index(min(losses)) + 1}, {min(losses):.4f} nats per character of held-out text"
    there = shlex.quote(str(run_dir))
    tell(f"finished{best}; {there} holds the losses, the texts and the model. Next, for example:")
    tell(f"  scripts/run sample {there} --temperature 0.5 --length 1000")
    tell(f"  scripts/run evaluate {there}")
    tell(f"  scripts/run report {there}")


if __name__ == "__main__":
    run_command(main)
