"""What a compiled program does on each device, read from XLA's text of it, and how long its steps may take on a pod.

A program is a set of computations, one of which is the entry; its loops, fusions and reductions call the others
(https://openxla.org/xla/terminology). Collectives are the instructions in which devices exchange arrays. Beside an
instruction the TPU compiler writes how many clock cycles it expects of it.
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
# A callback of Python's, a move to the host's memory, or an array that lies there (memory space 5).
_HOST = re.compile(r'custom_call_target="[^"]*(callback|host)|S\(5\)', re.IGNORECASE)
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ?\b([a-z][\w-]*)\(%?([\w.-]*)")
_CALLED = re.compile(r"\b(?:calls|to_apply|condition|body|\w+_computations?)=(\{[^}]*\}|%?[\w.-]+)")

_Computations = Mapping[str, Sequence[re.Match[str]]]


class Place(NamedTuple):
    """Where in a program something happens.

    Attributes:
        each: `step`, where the outermost loop goes round as often as it is told when it runs, as that over training
            steps does; else `dispatch`.
        times: how often it happens in each; other loops of which only running tells count once.
        loop: what the innermost loop was made from, in JAX's words; empty outside of loops.
    """

    each: Literal["step", "dispatch"]
    times: int
    loop: str


@dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
        kind: XLA's word for it.
        bytes: of its result on one device.
        groups: the devices that exchange with one another, by their numbers in the mesh.
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
        host_transfers: the names of the instructions that exchange something with the host.
        cycles: clock cycles that the compiler expects in a place, each time; empty where it says nothing.
    """

    collectives: tuple[Collective, ...]
    host_transfers: tuple[str, ...]
    cycles: Mapping[Place, int]

    @property
    def step_cycles(self) -> int:
        """Clock cycles of a training step."""
        return sum(place.times * cycles for place, cycles in self.cycles.items() if place.each == "step")


def read_program(text: str) -> Program:
    """Read XLA's text of an optimised program, as `jax.stages.Compiled.as_text` returns it."""
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
            # Of an exchange that is begun and waited for, the end has the result, and the beginning the groups.
            begun = found if kind == operation else by_name[operand]
            collectives.append(Collective(kind, _bytes(result), _groups(begun.string), place))
        if kind in _TRANSFERS or _HOST.search(found.string):
            transfers.append(name)
        if expected := re.search(r'"estimated_cycles":"(\d+)"', found.string):
            cycles[place] += int(expected[1])
    return Program(tuple(collectives), tuple(transfers), cycles)


def _walk(computations: _Computations, name: str, around: Place | None) -> Iterator[tuple[Place, re.Match[str]]]:
    """Yield every instruction that a computation reaches, and its place; `around` is that of the loop it is in."""
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
    """Return how often a loop goes round, where XLA says so, or where its condition is a comparison with a constant."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(known[1])
    constants = {found[1]: re.search(r" constant\((\d+)\)", found.string) for found in instructions}
    for found in instructions:
        compared = re.search(r"ROOT .* compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT", found.string)
        if compared and (constant := constants.get(compared[1])):
            return int(constant[1])
    return None


def _bytes(result: str) -> int:
    """Return the size of an array, or of a tuple of them, in bytes, without the padding of its layout."""
    arrays = re.findall(r"\b(?:pred|[a-z]+(\d+))\w*\[([\d,]*)\]", result)
    return sum(int(bits or 8) * math.prod(map(int, filter(None, sides.split(",")))) // 8 for bits, sides in arrays)


def _groups(collective: str) -> tuple[tuple[int, ...], ...]:
    """Return who exchanges with whom: as listed, or as the rows of counted numbers, reshaped and transposed."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", collective):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d, ]+)\}", listed[1]))
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", collective):
        shape, sides = ([int(side) for side in part.split(",")] for part in counted.groups()[:2])
        axes = [int(axis) for axis in counted[3].split(",")] if counted[3] else None
        return tuple(map(tuple, np.arange(math.prod(sides)).reshape(sides).transpose(axes).reshape(shape).tolist()))
    return ()


class Chip(NamedTuple):
    """A chip's published peaks, a second each.

    Attributes:
        flops: floating-point operations on bfloat16.
        memory: bytes to and from its memory.
        interconnect: bytes that it sends to its neighbours, all together.
        clock: cycles.
    """

    flops: float
    memory: float
    interconnect: float
    clock: float

    def seconds(self, *, flops: float, memory_bytes: float, cycles: float) -> float:
        """Return what a computation takes at least: by its operations, its memory, or its instructions in turn."""
        return max(flops / self.flops, memory_bytes / self.memory, cycles / self.clock)

    def all_reduce_seconds(self, reduced_bytes: int, sides: Sequence[int]) -> float:
        """Return what an all-reduce over a torus with these sides takes, in rings along one side after the other.

        Each of n chips sends 2 (n - 1) / n of the bytes (Patarasuk and Yuan, Bandwidth Optimal All-reduce Algorithms,
        2009). A ring of k chips has 2 (k - 1) hops in a row, of about a microsecond each
        (https://jax-ml.github.io/scaling-book/tpus).
        """
        chips = math.prod(sides)
        return 2 * (chips - 1) / chips * reduced_bytes / self.interconnect + sum(2 * (k - 1) for k in sides) * 1e-6


CHIPS = {"TPU v5 lite": Chip(197e12, 819e9, 1600e9 / 8, 197e12 / (4 * 2 * 128**2))}
"""By JAX's name of the device: TPU v5e (https://cloud.google.com/tpu/docs/v5e). The clock is that at which its four
matrix units of 128 x 128 reach the peak."""
