"""What a compiled program does on each device, read from its XLA text, and how long its steps may take on a pod.

A program is a set of computations, one of which is the entry; its loops, fusions and reductions call the others
(https://openxla.org/xla/terminology). Collectives are the instructions in which devices exchange arrays. The TPU
compiler annotates instructions with the clock cycles that it expects them to take.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

_COLLECTIVES = (
    *("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute"),
    *("ragged-all-to-all", "reduce-scatter"),
)
_TRANSFERS = ("infeed", "outfeed", "send", "recv")
# A Python callback, a move to host memory, or an array that lies there (memory space 5).
_HOST = re.compile(r'custom_call_target="[^"]*(callback|host)|S\(5\)', re.IGNORECASE)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ?\b([a-z][\w-]*)\(%?([\w.-]*)")
_CALLED = re.compile(r"\b(?:calls|to_apply|condition|body|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")

_Computations = Mapping[str, Sequence[re.Match[str]]]


class Place(NamedTuple):
    """Where in a program something happens.

    Attributes:
        each: `step` inside an outermost loop whose trip count is only known at run time, such as that over training
            steps; otherwise `dispatch`.
        times: how often it happens in each of these; an inner loop whose trip count is unknown counts once.
        loop: JAX's name for what the innermost loop was made from; empty outside loops.
    """

    each: Literal["step", "dispatch"]
    times: int
    loop: str


@dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
        kind: XLA's name for it.
        bytes: size of its result on one device.
        groups: the devices that exchange with one another, by their numbers in the mesh; empty if XLA names them in a
            notation that is not read.
        place: where it happens.
    """

    kind: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    place: Place


@dataclass(frozen=True)
class Program:
    """What a program does on each device.

    Attributes:
        collectives: its exchanges between devices.
        host_transfers: the names of the instructions that exchange data with the host.
        cycles: clock cycles that the compiler expects of a place each time it is run; empty if it expects none.
    """

    collectives: tuple[Collective, ...]
    host_transfers: tuple[str, ...]
    cycles: Mapping[Place, int]

    @property
    def step_cycles(self) -> int:
        """Clock cycles that the compiler expects of a training step."""
        return sum(place.times * cycles for place, cycles in self.cycles.items() if place.each == "step")


def read_program(text: str) -> Program:
    """Read the XLA text of an optimised program, as `jax.stages.Compiled.as_text` returns it."""
    computations: dict[str, list[re.Match[str]]] = {}
    instructions: list[re.Match[str]] = []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            instructions = computations.setdefault("ENTRY" if header[1] else header[2], [])
        elif instruction := _INSTRUCTION.match(line):
            instructions.append(instruction)
    by_name = {found[1]: found for those in computations.values() for found in those}
    collectives, transfers, cycles = [], [], Counter()
    for place, found in _walk(computations, "ENTRY", None):
        name, result, operation, operand = found.groups()
        kind = operation.removesuffix("-done")
        if kind in _COLLECTIVES:
            # In an asynchronous exchange the `-done` instruction has the result, and the start has the groups.
            begun = found if kind == operation else by_name[operand]
            collectives.append(Collective(kind, _bytes(result), _groups(begun.string), place))
        if kind in _TRANSFERS or _HOST.search(found.string):
            transfers.append(name)
        if expected := re.search(r'"estimated_cycles":"(\d+)"', found.string):
            cycles[place] += int(expected[1])
    return Program(tuple(collectives), tuple(transfers), cycles)


def _walk(computations: _Computations, name: str, around: Place | None) -> Iterator[tuple[Place, re.Match[str]]]:
    """Yield every instruction that a computation reaches, and its place; `around` is that of the enclosing loop."""
    for found in computations[name]:
        yield around or Place("dispatch", 1, ""), found
        called = [one.strip(" %{}") for those in _CALLED.findall(found.string) for one in those.split(",")]
        inside = around
        if found[3] == "while":
            operation = re.search(r'op_name="([^"]*)"', found.string)
            turns = _turns(found.string, [one for computation in called for one in computations[computation]])
            each = around.each if around else "dispatch" if turns else "step"
            times = (around.times if around else 1) * (turns or 1)
            inside = Place(each, times, operation[1] if operation else found[1])
        for computation in called:
            yield from _walk(computations, computation, inside)


def _turns(loop: str, instructions: Sequence[re.Match[str]]) -> int | None:
    """Return a loop's trip count if XLA states it or its condition compares with a constant; None if unknown."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(known[1])
    constants = {found[1]: re.search(r" constant\((\d+)\)", found.string) for found in instructions}
    for found in instructions:
        compared = re.search(r"ROOT .* compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT", found.string)
        if compared and (constant := constants.get(compared[1])):
            return int(constant[1])
    return None


def _bytes(result: str) -> int:
    """Return the size in bytes of an array, or of a tuple of arrays, without the padding of its layout."""
    arrays = re.findall(r"\b(?:pred|[a-z]+(\d+))\w*\[([\d,]*)\]", result)
    return sum(int(bits or 8) * math.prod(map(int, filter(None, sides.split(",")))) // 8 for bits, sides in arrays)


def _groups(collective: str) -> tuple[tuple[int, ...], ...]:
    """Return which devices exchange: from a list, a reshaped and transposed range, or a mesh and some of its axes."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", collective):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d, ]+)\}", listed[1]))
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", collective):
        shape, sides = ([int(side) for side in part.split(",")] for part in counted.groups()[:2])
        axes = [int(axis) for axis in counted[3].split(",")] if counted[3] else None
        return _rows(np.arange(math.prod(sides)).reshape(sides).transpose(axes).reshape(shape))
    if meshed := re.search(r"replica_groups=mesh\[('\w+'=\d+(?:,'\w+'=\d+)*)\] \{('\w+'(?:,'\w+')*)\}", collective):
        sides = {name: int(side) for name, side in re.findall(r"'(\w+)'=(\d+)", meshed[1])}
        along = re.findall(r"\w+", meshed[2])
        axes = [list(sides).index(name) for name in (*(name for name in sides if name not in along), *along)]
        grid = np.arange(math.prod(sides.values())).reshape(*sides.values()).transpose(axes)
        return _rows(grid.reshape(-1, math.prod(sides[name] for name in along)))
    return ()


def _rows(grid: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, grid.tolist()))


class Chip(NamedTuple):
    """A chip's published peak rates, per second.

    Attributes:
        flops: floating-point operations in bfloat16.
        memory: bytes to and from its memory.
        interconnect: bytes that it sends to all its neighbours together.
        clock: cycles.
    """

    flops: float
    memory: float
    interconnect: float
    clock: float

    def seconds(self, *, flops: float, memory_bytes: float, cycles: float) -> float:
        """Return the least time of a computation, whether operations, memory or sequential instructions limit it."""
        return max(flops / self.flops, memory_bytes / self.memory, cycles / self.clock)

    def all_reduce_seconds(self, reduced_bytes: int, sides: Sequence[int]) -> float:
        """Return the time of an all-reduce over a torus with these sides, in rings along one side after another.

        Each of n chips sends 2 (n - 1) / n of the bytes (Patarasuk and Yuan, Bandwidth Optimal All-reduce Algorithms,
        2009). A ring of k chips has 2 (k - 1) hops in a row, of about a microsecond each
        (https://jax-ml.github.io/scaling-book/tpus).
        """
        chips = math.prod(sides)
        return 2 * (chips - 1) / chips * reduced_bytes / self.interconnect + sum(2 * (k - 1) for k in sides) * 1e-6


CHIPS = {"TPU v5 lite": Chip(197e12, 819e9, 1600e9 / 8, 197e12 / (4 * 2 * 128**2))}
"""Chips by JAX's name for the device: TPU v5e (https://cloud.google.com/tpu/docs/v5e). The clock is the one at which
its four matrix units of 128 x 128 reach the peak."""
