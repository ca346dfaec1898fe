"""The texts that a run generates after each epoch."""

from collections import Counter
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from charlm_jax.generation.generate import generate, stream_key
from charlm_jax.keys import Key, fold_text
from charlm_jax.model.initializers import Parameters
from charlm_jax.runs.assembly import Job


@dataclass(frozen=True)
class Sample:
    """A generated text.

    Attributes:
        temperature: at which it was drawn.
        prompt: what it continues.
        text: the continuation.
    """

    temperature: float
    prompt: str
    text: str


def sample_texts(job: Job, parameters: Parameters, epoch: int) -> tuple[Sample, ...]:
    """Generate one text a temperature, as the configuration says, from the epoch's prompt."""
    chosen = job.configuration
    prompt = _prompt(job, epoch)
    key = jax.random.fold_in(fold_text(job.key, "samples"), epoch)
    seen: Counter[float] = Counter()  # a temperature that is listed twice gives two different texts
    keys = []
    for temperature in chosen.temperatures:
        keys.append(stream_key(key, prompt=prompt, temperature=temperature, number=seen[temperature]))
        seen[temperature] += 1

    def texts(prompts: list[str], temperatures: list[float], keys: list[Key]) -> list[str]:
        ids = generate(
            job.network,
            parameters,
            [job.vocabulary.encode(prompt) for prompt in prompts],
            temperatures,
            jnp.stack(keys),
            sampler=chosen.sampler,
            window=chosen.window,
            length=chosen.sample_length,
        )
        return [job.vocabulary.decode(row) for row in ids]

    if chosen.continuation == "restart":
        prompts = [prompt] * len(keys)
        generated = texts(prompts, list(chosen.temperatures), keys) if keys else []
        return tuple(map(Sample, chosen.temperatures, prompts, generated))
    samples = []
    for temperature, sample_key in zip(chosen.temperatures, keys, strict=True):
        (text,) = texts([prompt], [temperature], [sample_key])
        samples.append(Sample(temperature, prompt, text))
        prompt = (prompt + text)[-chosen.window :]
    return tuple(samples)


def _prompt(job: Job, epoch: int) -> str:
    """Return one window of the training text: the configured one, or one drawn for the epoch."""
    window, start = job.configuration.window, job.configuration.prompt_start
    if start is None:
        key = jax.random.fold_in(fold_text(job.key, "prompts"), epoch)
        start = int(jax.random.randint(key, (), 0, len(job.training_ids) - window + 1))
    return job.vocabulary.decode(job.training_ids[start : start + window])
