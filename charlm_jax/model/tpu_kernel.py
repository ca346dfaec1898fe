"""The recurrence as one TPU kernel per direction, with the weights and the carry kept on the chip for all steps.

The grid of a kernel is time. While the chip computes, it fetches the next step's inputs and writes the last one's
results; what all steps share stays in the chip's memory
(https://docs.jax.dev/en/latest/pallas/tpu/pipelining.html). The steps themselves are those of `model/cell.py`. Gates
must be aligned to vector registers: the hidden size is a multiple of 128. At 1,024 units the weights do not fit.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from charlm_jax.choices import GateActivation, Precision
from charlm_jax.model.cell import LayerCarry, Trace, step_back, traced_step


def read_and_trace(
    recurrent_kernel: Float[Array, "hidden gates"],
    projected: Float[Array, "time batch gates"],
    carry: LayerCarry,
    gate: GateActivation,
    precision: Precision,
    *,
    interpret: bool = False,
) -> tuple[LayerCarry, Trace]:
    """Read a sequence of projected inputs, and keep what its derivative needs; the arguments are `lstm_sequence`'s.

    `interpret` runs the kernel step by step on any platform, slowly.
    """

    def body(kernel: Array, projected: Array, before: LayerCarry) -> tuple[LayerCarry, Trace]:
        return traced_step(kernel, projected, before, gate, precision)

    return _along(body, recurrent_kernel, projected, carry, reverse=False, interpret=interpret)


def go_back(
    recurrent_kernel: Float[Array, "hidden gates"],
    trace: Trace,
    by_hidden: Float[Array, "time batch hidden"],
    by_carry: LayerCarry,
    precision: Precision,
    *,
    interpret: bool = False,
) -> tuple[LayerCarry, Float[Array, "time batch gates"]]:
    """Return the gradients with respect to the carry before a sequence and to the pre-activations of all its steps.

    The arguments are `step_back`'s for all steps, but U is not transposed; for `interpret` see `read_and_trace`.
    """

    def body(transposed: Array, here: tuple[Trace, Array], after: LayerCarry) -> tuple[LayerCarry, Array]:
        return step_back(transposed, *here, after, precision)

    return _along(body, recurrent_kernel.T, (trace, by_hidden), by_carry, reverse=True, interpret=interpret)


def _along(
    body: Callable[..., Any], weights: Array, inputs: Any, carry: Any, *, reverse: bool, interpret: bool
) -> tuple[Any, Any]:
    """Return the last carry and all outputs of the steps `carry, output = body(weights, input, carry)`.

    This is `jax.lax.scan` as a kernel; `reverse` begins with the last step.
    """
    time = len(jax.tree.leaves(inputs)[0])

    def shared(array: Any) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda step: (0,) * len(array.shape))

    def of_step(array: Any) -> pl.BlockSpec:
        place = (lambda step: (time - 1 - step, 0, 0)) if reverse else (lambda step: (step, 0, 0))
        return pl.BlockSpec((pl.squeezed, *array.shape[1:]), place)

    def of_all_steps(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((time, *array.shape), array.dtype)

    def kernel(weights: Any, inputs: Any, first: Any, carry: Any, outputs: Any) -> None:
        # The carry's block is the same at every step, so that each step finds there what the previous one left.
        @pl.when(pl.program_id(0) == 0)
        def _() -> None:
            _write(carry, _read(first))

        after, output = body(*map(_read, (weights, inputs, carry)))
        _write(carry, after)
        _write(outputs, output)

    shapes, output = jax.eval_shape(body, weights, jax.tree.map(lambda steps: steps[0], inputs), carry)
    outputs, carries = jax.tree.map(of_all_steps, output), jax.tree.map(shared, shapes)
    return pl.pallas_call(
        kernel,
        grid=(time,),
        in_specs=[shared(weights), jax.tree.map(of_step, inputs), carries],
        out_specs=(carries, jax.tree.map(of_step, outputs)),
        out_shape=(shapes, outputs),
        input_output_aliases={1: 2},  # a step's (first) output overwrites its first input
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
    )(weights, inputs, carry)


def _read(references: Any) -> Any:
    return jax.tree.map(lambda reference: reference[...], references)


def _write(references: Any, values: Any) -> None:
    def write(reference: Any, value: Array) -> None:
        reference[...] = value

    jax.tree.map(write, references, values)
