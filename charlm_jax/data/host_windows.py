"""The batches of an order read on the host, from ids that need not fit into any memory.

They are the batches that a device gathers by itself: where windows start is computed by the same functions, on the
host's own device and with 64-bit places, so that a text may have more than 2^31 characters.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int64, Integer

from charlm_jax.data.windows import Order, batch_starts
from charlm_jax.errors import InputError
from charlm_jax.keys import Key


class HostBatches(NamedTuple):
    """Batches of successive steps.

    Attributes:
        characters: see `Batch`; of the type of the text's ids.
        weights: see `Batch`.
    """

    characters: Integer[np.ndarray, "steps batch length"]
    weights: Float[np.ndarray, "steps batch"]


def read_batches(
    ids: Integer[np.ndarray, " character"],
    order: Order,
    key: Key,
    steps: Int64[np.ndarray, " steps"],
    rows: Int64[np.ndarray, " batch"],
) -> HostBatches:
    """Read batches of a run.

    Args:
        ids: the text, for example memory-mapped: only the windows are read.
        order: in which an epoch goes through the text; with fewer than 2^32 windows.
        key: the run's.
        steps: of the batches, from 0, over all epochs.
        rows: which of each batch's rows; from `batch_size` on there is only padding.

    Raises:
        InputError: JAX has been told to leave out the CPU.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise InputError(
            "JAX_PLATFORMS leaves out the CPU, which reads a streamed text; add it, as in JAX_PLATFORMS=cuda,cpu"
        ) from error
    with jax.enable_x64(True), jax.default_device(host):
        starts, there = map(np.asarray, _starts(order, len(ids), jax.device_put(key, host), steps, rows))
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(ids), order.window + 1)
    return HostBatches(windows[np.where(there, starts, 0)], there.astype(np.float32))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _starts(
    order: Order, length: int, key: Key, steps: Int64[Array, " steps"], rows: Int64[Array, " batch"]
) -> tuple[Int64[Array, "steps batch"], Bool[Array, "steps batch"]]:
    def starts(step: Int64[Array, ""]) -> tuple[Int64[Array, " batch"], Bool[Array, " batch"]]:
        return batch_starts(order, length, key, step, rows)

    return jax.vmap(starts)(jnp.asarray(steps))
