"""A sampler exported as one program that needs neither this package nor the model's files."""

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int32, UInt32

from charlm_jax.choices import Sampler
from charlm_jax.generation.generate import generate_piece, read_prompts
from charlm_jax.model.network import Model

PLATFORMS = "cpu", "cuda", "tpu"


def export_sampler(model: Model, *, sampler: Sampler, window: int, length: int) -> export.Exported:
    """Return `sample(prompts, lengths, temperatures, seeds) -> ids`, for CPUs, GPUs and TPUs.

    It generates what `generate` does with the keys `jax.random.key(seed)`. The parameters are part of the program. The
    numbers of texts and places are free, but windowed generation allows at most `window` places.

        prompts       int32, texts x places: ids, right-aligned; what is left of a prompt is padding
        lengths       int32, texts: characters in each prompt, from 0
        temperatures  float32, texts: at least 0
        seeds         uint32, texts: one per text; its draws do not depend on other texts
        ids           int32, texts x `length`: the characters that follow

    Args:
        model: to sample from.
        sampler: windowed or stateful.
        window: characters that windowed generation predicts from.
        length: characters to generate after each prompt.
    """

    def sample(
        prompt: Int32[Array, " time"],
        prompt_length: Int32[Array, ""],
        temperature: Float[Array, ""],
        seed: UInt32[Array, ""],
    ) -> Int32[Array, " length"]:
        prompts, lengths, temperatures, keys = (
            one[None] for one in (prompt, prompt_length, temperature, jax.random.key(seed))
        )
        state = read_prompts(model, prompts, lengths, sampler=sampler, window=window)
        return generate_piece(model, state, temperatures, keys, length=length)[1][0]

    # `sample` takes one text, because what it calls must know the number of texts, which is unknown here.
    bound = [f"time <= {window}"] if sampler == "windowed" else []
    texts, time = export.symbolic_shape("texts, time", constraints=bound)
    shapes = ((texts, time), jnp.int32), ((texts,), jnp.int32), ((texts,), jnp.float32), ((texts,), jnp.uint32)
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return export.export(jax.jit(jax.vmap(sample)), platforms=PLATFORMS)(*arguments)
