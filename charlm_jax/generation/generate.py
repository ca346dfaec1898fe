"""Text from a model: many streams at once, windowed or stateful, a piece at a time.

*Stateful* generation carries the state on indefinitely. *Windowed* generation is that of the notebooks: every character
is predicted from the last `window` characters, read from the zero state. Re-reading them would take `window` sequential
steps per character. Instead, a ring holds the states of all `window` open windows, one for each start, and each new
character advances them together. A full window predicts and closes, and its slot goes to the window that opens. This
takes one batched step per character and gives exactly the same numbers.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, Integer

from charlm_jax.choices import Sampler
from charlm_jax.generation.temperature import draw_character
from charlm_jax.keys import Key, StreamKeys, fold_float, fold_text
from charlm_jax.mesh import as_many_as, fetch, replicate, split_rows
from charlm_jax.model.network import Carry, Model


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingState:
    """What generation carries from one character to the next.

    Attributes:
        carry: the network's state for each stream and slot of the ring; one slot when stateful.
        position: number of characters read, including the padding before short prompts.
        sampler: whether windows close (`windowed`) or the one state is carried on (`stateful`).
    """

    carry: Carry
    position: Int32[Array, ""]
    sampler: Sampler = field(metadata={"static": True})

    @property
    def oldest(self) -> Int32[Array, ""]:
        """The slot of the window that has been open the longest: it predicts, then closes."""
        return self.position % self.carry[0].hidden.shape[1]


def read_character(
    model: Model, state: SamplingState, ids: Int32[Array, " stream"], present: Bool[Array, " stream"] | None = None
) -> SamplingState:
    """Read one character per stream; streams where `present` is false stay in the zero state, as before a prompt."""
    carry = state.carry
    if state.sampler == "windowed":
        closed = model.network.zero_carry((len(ids), 1))
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=state.oldest, axis=1)
        carry = jax.tree.map(put, carry, closed)
    carry = model.bound.step(ids[:, None], carry)
    if present is not None:
        carry = jax.tree.map(lambda value: jnp.where(present[:, None, None], value, 0.0), carry)
    return SamplingState(carry, state.position + 1, state.sampler)


def next_logits(model: Model, state: SamplingState) -> Float[Array, "stream vocab"]:
    """Return the logits of each stream's next character."""
    hidden = jax.lax.dynamic_index_in_dim(state.carry[-1].hidden, state.oldest, axis=1, keepdims=False)
    return model.bound.predict(hidden)


@functools.partial(jax.jit, static_argnames=("sampler", "window"))
def read_prompts(
    model: Model,
    prompts: Int32[Array, "stream time"],
    lengths: Int32[Array, " stream"],
    *,
    sampler: Sampler,
    window: int,
) -> SamplingState:
    """Read the prompts, one per stream.

    Args:
        model: to sample from.
        prompts: ids, right-aligned; what is left of a prompt is padding. Windowed generation reads no more than the
            last `window` of them.
        lengths: characters in each prompt, from 0.
        sampler: windowed or stateful.
        window: characters in a window; unused in stateful generation.
    """
    streams, time = prompts.shape
    if sampler == "windowed":
        # Exactly `window` characters, so that the first prediction comes from slot 0, which has read them all.
        prompts = jnp.pad(prompts, ((0, 0), (max(window - time, 0), 0)))[:, -window:]
        time = window
    present = jnp.arange(time)[None, :] >= time - lengths[:, None]
    carry = model.network.zero_carry((streams, window if sampler == "windowed" else 1))
    start = SamplingState(carry, jnp.int32(0), sampler)

    def read(state: SamplingState, character: tuple[Array, Array]) -> tuple[SamplingState, None]:
        return read_character(model, state, *character), None

    state, _ = jax.lax.scan(read, start, (prompts.T, present.T))
    return state


@functools.partial(jax.jit, static_argnames=("length", "top_k", "top_p"))
def generate_piece(
    model: Model,
    state: SamplingState,
    temperatures: Float[Array, " stream"],
    keys: StreamKeys,
    *,
    first: int | Int32[Array, ""] = 0,
    length: int,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[SamplingState, Int32[Array, "stream length"]]:
    """Generate the next `length` characters of each stream.

    The random number that draws character n of a stream depends only on the stream's key and n, not on how the text is
    cut into pieces, nor on the streams beside it. (Their number may change the order of the sums in the logits, and
    with it a draw that was all but undecided.)

    Args:
        model: to sample from.
        state: after the prompts or the previous piece.
        temperatures: one per stream, at least 0.
        keys: one per stream.
        first: characters generated before this piece.
        length: characters to generate.
        top_k: see `draw_character`.
        top_p: see `draw_character`.
    """
    draw = jax.vmap(functools.partial(draw_character, top_k=top_k, top_p=top_p))

    def step(state: SamplingState, uniforms: Float[Array, " stream"]) -> tuple[SamplingState, Int32[Array, " stream"]]:
        ids = draw(next_logits(model, state), temperatures, uniforms)
        return read_character(model, state, ids), ids

    def uniform(key: Key, number: Int32[Array, ""]) -> Float[Array, ""]:
        return jax.random.uniform(jax.random.fold_in(key, number))

    uniforms = jax.vmap(jax.vmap(uniform, (0, None)), (None, 0))(keys, first + jnp.arange(length))
    state, ids = jax.lax.scan(step, state, uniforms)
    return state, ids.T


def generate_pieces(
    model: Model,
    prompts: Sequence[Integer[np.ndarray, " _"]],
    temperatures: Sequence[float],
    keys: StreamKeys,
    mesh: Mesh,
    *,
    sampler: Sampler,
    window: int,
    length: int,
    piece: int,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Iterator[Integer[np.ndarray, "stream piece"]]:
    """Generate texts `piece` characters at a time, all streams at once, each on one device of the mesh.

    Args:
        model: to sample from.
        prompts: encoded prompts, one per stream, at least one, of any lengths; they may be empty.
        temperatures: one per stream, at least 0.
        keys: an array of keys, one per stream; see `stream_keys`.
        mesh: the devices to split the streams over.
        sampler: windowed or stateful.
        window: characters that windowed generation predicts from.
        length: characters to generate after each prompt, at least 1.
        piece: characters in each array but the last.
        top_k: see `draw_character`.
        top_p: see `draw_character`.
    """
    streams = len(prompts)
    mesh = as_many_as(streams, mesh)
    rows = np.minimum(np.arange(-(-streams // mesh.size) * mesh.size), streams - 1)  # padded with the last stream
    model = replicate(model, mesh)
    whole = *pad_left(prompts), np.asarray(temperatures, np.float32), keys
    *prompt_rows, temperature_rows, key_rows = split_rows([array[rows] for array in whole], mesh)
    state = read_prompts(model, *prompt_rows, sampler=sampler, window=window)
    options = {"length": piece, "top_k": top_k, "top_p": top_p}
    for first in range(0, length, piece):
        state, ids = generate_piece(model, state, temperature_rows, key_rows, first=first, **options)
        yield fetch(ids)[:streams, : length - first]


def generate(
    model: Model,
    prompts: Sequence[Integer[np.ndarray, " _"]],
    temperatures: Sequence[float],
    keys: StreamKeys,
    mesh: Mesh,
    *,
    sampler: Sampler,
    window: int,
    length: int,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Integer[np.ndarray, "stream length"]:
    """Generate texts in one piece; see `generate_pieces`."""
    options = {"sampler": sampler, "window": window, "top_k": top_k, "top_p": top_p}
    (ids,) = generate_pieces(model, prompts, temperatures, keys, mesh, length=length, piece=length, **options)
    return ids


def pad_left(
    prompts: Sequence[Integer[np.ndarray, " _"]],
) -> tuple[Int32[np.ndarray, "stream time"], Int32[np.ndarray, " stream"]]:
    """Right-align encoded prompts in one array; return it and their lengths."""
    lengths = [len(prompt) for prompt in prompts]
    padded = np.zeros((len(prompts), max(lengths)), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[len(row) - len(prompt) :] = prompt
    return padded, np.array(lengths, np.int32)


def stream_keys(
    key: Key, prompts: Sequence[str], temperatures: Sequence[float], seen: Counter[tuple[str, float]] | None = None
) -> StreamKeys:
    """Return a key for each stream, which depends on its prompt and temperature but not on the streams beside it.

    A prompt repeated at the same temperature gets the second key for that pair, then the third, and so on; pass `seen`
    to continue the count across calls.
    """
    seen = Counter() if seen is None else seen
    keys = []
    for prompt, temperature in zip(prompts, np.abs(np.asarray(temperatures, np.float32)).tolist(), strict=True):
        keys.append(jax.random.fold_in(fold_float(fold_text(key, prompt), temperature), seen[prompt, temperature]))
        seen[prompt, temperature] += 1
    return jnp.stack(keys)
