"""The texts that a run generates after its epochs."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from charlm_jax.generation.generate import generate, stream_keys
from charlm_jax.keys import StreamKeys, fold_text
from charlm_jax.model.network import Model
from charlm_jax.runs.assembly import Job


@dataclass(frozen=True)
class Sample:
    """A generated text.

    Attributes:
        temperature: the softmax temperature of its draws.
        prompt: the text that it continues.
        text: the continuation.
    """

    temperature: float
    prompt: str
    text: str


def sample_texts(job: Job, model: Model, epoch: int) -> tuple[Sample, ...]:
    """Generate one text for each of the configured temperatures, starting from the epoch's prompt."""
    chosen = job.configuration
    if not chosen.temperatures:
        return ()
    prompt = _prompt(job, epoch)
    prompts = [prompt] * len(chosen.temperatures)
    keys = stream_keys(jax.random.fold_in(fold_text(job.key, "samples"), epoch), prompts, chosen.temperatures)

    def texts(prompts: Sequence[str], temperatures: Sequence[float], keys: StreamKeys) -> list[str]:
        ids = generate(
            model,
            [job.vocabulary.encode(prompt) for prompt in prompts],
            temperatures,
            keys,
            job.mesh,
            sampler=chosen.sampler,
            window=chosen.window,
            length=chosen.sample_length,
        )
        return [job.vocabulary.decode(row) for row in ids]

    if chosen.continuation == "restart":
        return tuple(map(Sample, chosen.temperatures, prompts, texts(prompts, chosen.temperatures, keys)))
    samples = []
    for number, temperature in enumerate(chosen.temperatures):
        (text,) = texts([prompt], [temperature], keys[number : number + 1])
        samples.append(Sample(temperature, prompt, text))
        prompt = (prompt + text)[-chosen.window :]
    return tuple(samples)


def _prompt(job: Job, epoch: int) -> str:
    """Return one window of the training text: the configured one, or else one drawn for the epoch."""
    window, start = job.configuration.window, job.configuration.prompt_start
    if start is None:
        key = jax.random.fold_in(fold_text(job.key, "prompts"), epoch)
        starts = min(len(job.training_ids) - window + 1, 2**31 - 1)  # of a longer text, only the beginning
        start = int(jax.random.randint(key, (), 0, starts))
    return job.vocabulary.decode(job.training_ids[start : start + window])
