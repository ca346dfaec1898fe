"""Windows by arithmetic: where a batch's windows start is a function of the text's length, a key and a step.

No windows are stored: a batch is gathered from the one array of ids. An epoch reads a text in one of two orders.
`ShuffledWindows` visits every window once, through a keyed bijection that is evaluated only where it is needed.
`ParallelStreams` cuts the text into one stretch per row and reads each stretch in consecutive segments, so that a row's
carry after one segment is valid for the next. Neither needs memory that grows with the number of windows.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, Integer, UInt32
from numpy import ndarray

from charlm_jax.choices import counted
from charlm_jax.errors import InputError
from charlm_jax.keys import Key, fold_text

_ROUNDS = 8  # even, so that the two halves of the Feistel network end up where they began


class Batch(NamedTuple):
    """A batch of windows.

    Attributes:
        characters: ids of each window's characters and of the one after it.
        weights: 1 for a window, 0 for the padding of a last, smaller batch.
    """

    characters: Int32[Array, "batch length"]
    weights: Float[Array, " batch"]


def count_windows(length: int, *, window: int, stride: int) -> int:
    """Return the number of windows in a text of `length` characters, each followed by its target."""
    return len(range(0, length - window, stride))


def split_held_out(
    ids: Integer[ndarray, " character"], *, held_out_fraction: float, window: int, name: str = "the text"
) -> tuple[Integer[ndarray, " training"], Integer[ndarray, " held_out"]]:
    """Split a text into a beginning to train on and a held-out end, into which no training window reaches.

    Args:
        ids: the whole text.
        held_out_fraction: the share of the characters to hold out, rounded down; 0 holds out none.
        window: characters in a window.
        name: what error messages call the text.

    Raises:
        InputError: a part is too short for one window and its target; the message says how long the text must be.
    """

    def border(length: int) -> int:
        return length - int(length * held_out_fraction)

    def fits(length: int) -> bool:
        return border(length) > window and (length - border(length) > window or not held_out_fraction)

    if not fits(len(ids)):
        enough = bisect_left(range(2**62), True, key=fits)
        raise InputError(
            f"{name} has {counted(len(ids), 'character')}, but --window {window} with --held-out-fraction "
            f"{held_out_fraction:g} needs at least {enough}, whatever the batch; give a longer text or a smaller window"
        )
    return ids[: border(len(ids))], ids[border(len(ids)) :]


def gather_batch(
    ids: Integer[Array, " character"], starts: Int32[Array, " batch"], there: Bool[Array, " batch"], *, window: int
) -> Batch:
    """Gather the windows that start at these positions; rows where `there` is false become padding of weight 0."""
    starts = jnp.where(there, starts, 0)
    characters = ids[starts[:, None] + jnp.arange(window + 1, dtype=jnp.int32)[None, :]].astype(jnp.int32)
    return Batch(characters, there.astype(jnp.float32))


@dataclass(frozen=True)
class ShuffledWindows:
    """Every window of a text once per epoch, in an order drawn anew for each epoch.

    Window `w` starts at character `stride * w`.

    Attributes:
        window: characters in a window.
        stride: characters from one window's start to the next one's.
        batch_size: windows in a batch; an epoch's last batch may be smaller.
    """

    window: int
    stride: int
    batch_size: int
    consecutive: ClassVar[bool] = False
    """Whether each row of a batch continues where the same row of the previous batch ended."""

    def windows(self, length: int) -> int:
        """Return how many windows an epoch over a text of `length` characters has."""
        return count_windows(length, window=self.window, stride=self.stride)

    def steps(self, length: int) -> int:
        """Return how many batches an epoch has, the last, smaller one included."""
        return -(-self.windows(length) // self.batch_size)

    def starts(
        self, length: int, key: Key, step: Integer[Array, ""], rows: Integer[Array, " batch"]
    ) -> tuple[Integer[Array, " batch"], Bool[Array, " batch"]]:
        """Return where the windows of a batch within an epoch start, and which rows have one.

        Args:
            length: of the text, in characters.
            key: the epoch's.
            step: of the batch, counted from 0 within the epoch.
            rows: indices of rows within the batch; those from `batch_size` on are padding.

        `step` and `rows` must have the same integer dtype, one that can hold `length`; the starts have it too.
        """
        count = self.windows(length)
        positions = step * self.batch_size + rows
        starts = self.stride * shuffled(key, positions % count, count)
        return starts, (rows < self.batch_size) & (positions < count)


@dataclass(frozen=True)
class ParallelStreams:
    """A text cut into as many stretches as a batch has rows, read side by side a window at a time.

    Each epoch shifts the cuts by a phase of its own, so that segments do not always end at the same characters. The
    characters left over, at least `window` - 1 of them, are not read in that epoch.

    Attributes:
        window: characters in a segment.
        batch_size: number of stretches, one per row.
    """

    window: int
    batch_size: int
    consecutive: ClassVar[bool] = True
    """Whether each row of a batch continues where the same row of the previous batch ended."""

    def windows(self, length: int) -> int:
        """Return how many segments an epoch over a text of `length` characters has."""
        return self.steps(length) * self.batch_size

    def steps(self, length: int) -> int:
        """Return how many batches an epoch has: one for each segment of a stretch."""
        return (length - self.window) // (self.batch_size * self.window)

    def starts(
        self, length: int, key: Key, step: Integer[Array, ""], rows: Integer[Array, " batch"]
    ) -> tuple[Integer[Array, " batch"], Bool[Array, " batch"]]:
        """Return where the windows of a batch within an epoch start; see `ShuffledWindows.starts`."""
        stretch = self.steps(length) * self.window
        phase = jax.random.randint(key, (), 0, length - stretch * self.batch_size, jnp.int32)
        return phase.astype(rows.dtype) + rows * stretch + step * self.window, rows < self.batch_size


Order = ShuffledWindows | ParallelStreams


def batch_starts(
    order: Order, length: int, key: Key, step: Integer[Array, ""], rows: Integer[Array, " batch"]
) -> tuple[Integer[Array, " batch"], Bool[Array, " batch"]]:
    """Return where the windows of a batch within a run start, and which rows have one.

    Args:
        order: in which an epoch reads the text.
        length: of the text, in characters.
        key: the run's.
        step: counted from 0 over all epochs; of the dtype of `rows`.
        rows: see `ShuffledWindows.starts`.
    """
    steps = order.steps(length)
    epoch_key = jax.random.fold_in(fold_text(key, "windows"), step // steps)
    return order.starts(length, epoch_key, step % steps, rows)


def draw_batch(
    order: Order, ids: Integer[Array, " character"], key: Key, step: Int32[Array, ""], rows: Int32[Array, " batch"]
) -> Batch:
    """Draw one of a run's batches from its text, `ids`; see `batch_starts`."""
    starts, there = batch_starts(order, len(ids), key, step, rows)
    return gather_batch(ids, starts, there, window=order.window)


def shuffled(key: Key, positions: Integer[Array, " batch"], count: int) -> Integer[Array, " batch"]:
    """Map positions in 0..count-1 to indices in 0..count-1 by a pseudo-random bijection that the key chooses.

    `count` must be below 2^32; the indices have the positions' dtype.

    A Feistel network permutes the range of the next power of two, and an index beyond `count` is permuted again until
    it falls inside ("cycle walking"; Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """
    bits = max((count - 1).bit_length(), 2)
    widths = bits // 2, bits - bits // 2
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def permute(index: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
        left_width, right_width = widths
        left, right = index >> right_width, index & (2**right_width - 1)
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & (2**left_width - 1))
            left_width, right_width = right_width, left_width
        return left << right_width | right

    def walk(index: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
        return jnp.where(index < count, index, permute(index))

    first = permute(positions.astype(jnp.uint32))
    return jax.lax.while_loop(lambda index: jnp.any(index >= count), walk, first).astype(positions.dtype)


def _mix(word: UInt32[Array, " batch"]) -> UInt32[Array, " batch"]:
    """Scramble 32 bits (the finaliser of MurmurHash3; Appleby, 2011)."""
    word = (word ^ word >> 16) * jnp.uint32(0x85EBCA6B)
    word = (word ^ word >> 13) * jnp.uint32(0xC2B2AE35)
    return word ^ word >> 16
