"""Batches that threads read from the disk, ahead of the training steps that use them."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

from charlm_jax.data.host_windows import HostBatches, read_batches
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.data.windows import Order
from charlm_jax.errors import optional
from charlm_jax.keys import Key
from charlm_jax.runs.encoding import require_known

_THREADS, _PIECES = 2, 4  # threads that read, and pieces that are kept ready


def read_ahead(
    ids: Integer[np.ndarray, " character"],
    order: Order,
    key: Key,
    rows: Int64[np.ndarray, " batch"],
    *,
    first: int,
    end: int,
    piece: int,
    vocabulary: Vocabulary,
) -> Iterator[tuple[int, HostBatches]]:
    """Yield the batches of a run's steps from `first` on, in pieces, each with the number of its first step.

    A step is all that says where reading stands, so a resumed run reads on from its state's step. The last piece may go
    beyond `end`, to be as long as the others. For the other arguments see `read_batches`.

    Raises:
        InputError: grain is not installed, or an id stands for no character of the vocabulary.
    """
    what = "a streamed text (--text streamed, or auto for a long one; else --text resident) needs grain"
    with optional(what, "streaming"):
        import grain  # takes half a second to load, and most runs have their text in memory

    def read(step: int) -> tuple[int, HostBatches]:
        batches = read_batches(ids, order, key, np.arange(step, step + piece), rows)
        require_known(batches.characters, vocabulary)
        _let_go(ids)
        return step, batches

    pieces = grain.MapDataset.range(first, end, piece).map(read)
    yield from pieces.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_PIECES))


def _let_go(ids: Integer[np.ndarray, " character"]) -> None:
    """Unmap the pages that reading has mapped, if any: they would count as this process's memory."""
    owner: Any = ids
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)  # they stay in the system's cache, and are mapped again when read
