"""The recurrence as one TPU kernel per direction, with the weights and the carry kept on the chip for all steps.

The grid of a kernel is time. While the chip computes, it fetches the next step's inputs and writes the last one's
results; what all steps share stays in the chip's memory
(https://docs.jax.dev/en/latest/pallas/tpu/pipelining.html). The steps themselves are those of `model/cell.py`. Gates
must be aligned to vector registers: the hidden size is a multiple of 128. At 1,024 units the weights do not fit.
"""

from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from charlm_jax.model.cell import Step


def scan(
    step: Step, weights: Any, carry: Any, inputs: Any, *, reverse: bool, interpret: bool = False
) -> tuple[Any, Any]:
    """Return the last carry and the outputs of all steps; `jax.lax.scan` as a kernel.

    Args:
        step: on trees of arrays of two axes.
        weights: an array that all steps share.
        carry: before the first step.
        inputs: of all steps, along an additional first axis. The first output overwrites the first of them, and has its
            shape and type.
        reverse: whether to begin with the last step.
        interpret: whether to run the kernel step by step on any platform, slowly.
    """
    time = len(jax.tree.leaves(inputs)[0])

    def shared(array: Any) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda number: (0,) * len(array.shape))

    def of_step(array: Any) -> pl.BlockSpec:
        place = (lambda number: (time - 1 - number, 0, 0)) if reverse else (lambda number: (number, 0, 0))
        return pl.BlockSpec((pl.squeezed, *array.shape[1:]), place)

    def of_all_steps(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((time, *array.shape), array.dtype)

    def kernel(weights: Any, inputs: Any, first: Any, carry: Any, outputs: Any) -> None:
        # The carry's block is the same at every step, so that each step finds there what the previous one left.
        @pl.when(pl.program_id(0) == 0)
        def _() -> None:
            _write(carry, _read(first))

        after, output = step(*map(_read, (weights, carry, inputs)))
        _write(carry, after)
        _write(outputs, output)

    shapes, output = jax.eval_shape(step, weights, carry, jax.tree.map(lambda steps: steps[0], inputs))
    outputs, carries = jax.tree.map(of_all_steps, output), jax.tree.map(shared, shapes)
    return pl.pallas_call(
        kernel,
        grid=(time,),
        in_specs=[shared(weights), jax.tree.map(of_step, inputs), carries],
        out_specs=(carries, jax.tree.map(of_step, outputs)),
        out_shape=(shapes, outputs),
        input_output_aliases={1: len(jax.tree.leaves(carry))},  # the first output overwrites the first input
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
    )(weights, inputs, carry)


def _read(references: Any) -> Any:
    return jax.tree.map(lambda reference: reference[...], references)


def _write(references: Any, values: Any) -> None:
    def write(reference: Any, value: Array) -> None:
        reference[...] = value

    jax.tree.map(write, references, values)
