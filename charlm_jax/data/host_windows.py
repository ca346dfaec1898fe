"""Batches read on the host, from ids that need not fit into memory.

They are the batches that a device would gather by itself. The same functions compute where windows start, but on the
CPU and with 64-bit indices, so that a text may have more than 2^31 characters.
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
        characters: see `Batch`; of the dtype of the text's ids.
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
    """Read a run's batches for the given steps.

    Args:
        ids: the text, which may be memory-mapped: only the windows are read.
        order: in which an epoch reads the text; it must have fewer than 2^32 windows.
        key: the run's.
        steps: of the batches, counted from 0 over all epochs.
        rows: indices of the rows to read of each batch; rows from `batch_size` on are padding.

    Raises:
        InputError: `JAX_PLATFORMS` leaves out the CPU.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise InputError(
            "JAX_PLATFORMS omits the CPU, which reads a streamed text; add it, as in JAX_PLATFORMS=cuda,cpu"
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
