"""Compile a run's programs for the chips of a TPU pod, on any machine, and say what each chip would do.

    scripts/run compile_check [PRESET] [--topology v5e:4x4] [--replicas N] [flags of text_generation]

The TPU compiler builds the program that takes training steps, over all chips of the topology, and the two that read
prompts and generate text, as a run would call them. Prints what each holds in a chip's memory, what chips exchange per
step and per dispatch, what the compiler expects everything to cost, and, for a v5e, how long a step may take on 1 to
256 chips. Nothing is run: all figures come from a compiler or a model. Exits with 2 if a program is refused, or differs
from what arithmetic predicts: per step one all-reduce of gradients and loss, the whole state on every chip, and nothing
to or from the host.

Needs the TPU compiler: .venv/bin/python -m pip install -e '.[tpu]' (Linux; 200 MB to download, 700 MB installed).
"""

import importlib.metadata
import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from charlm_jax.errors import InputError, require, require_count
from charlm_jax.runs.command_line import folded, named_preset, print_table, run_command, tell
from charlm_jax.runs.configuration import Configuration

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.stages import Compiled, Lowered

    from charlm_jax.analysis.programs import Program
    from charlm_jax.runs.assembly import Job

_PODS = ((1, 1), (2, 2), (4, 4), (8, 8), (16, 16))  # sides of the pods whose steps are predicted
_ENVIRONMENT = {
    # JAX itself runs on the CPU, and does not touch a TPU that may be here.
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    # The compiler does not ask which TPU it is on, does not complain about being on none, and may share the host.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}
_MODEL = (
    "a model, not a measurement: an LSTM reads its characters one after another, so latencies decide its time, of "
    "which it counts the compiler's guesses and a microsecond a hop, but not dispatch or waiting for slow chips"
)
_TITLES = {
    "memory": "memory per chip in bytes, and the seconds taken to compile",
    "costs": "the compiler's costs, counting the body of a loop once",
    "cycles": "the clock cycles that the compiler expects, loop by loop",
    "exchanges": "exchanges between chips, read from the programs and predicted",
    "scaling": "a step on more chips, which share a batch (strong efficiency) or have one each (weak)",
}


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    configuration: Annotated[Configuration, tyro.conf.arg(name="")]
    topology: str = "v5e:4x4"
    """Pod to compile for: generation (v5e, v5p or v6e) and sides, such as v5e:2x2 or v5e:16x16."""
    replicas: int = 1
    """Models that are trained together, as in a grid."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def __post_init__(self) -> None:
        there = re.fullmatch(r"(v5e|v5p|v6e):\d+(x\d+)+", self.topology)
        require(
            "--topology", self.topology, there is not None, "a pod of v5e, v5p or v6e, such as v5e:2x2 or v5e:16x16"
        )
        require_count("--replicas", self.replicas)


@dataclass(frozen=True)
class Built:
    """A compiled function, what the text of its program says, and the seconds that compiling took."""

    name: str
    compiled: "Compiled"
    program: "Program"
    seconds: float


def topology_devices(name: str) -> list[Any]:
    """Return the devices of a pod to compile for.

    Raises:
        InputError: the compiler is not installed, or does not know the pod.
    """
    from jax.errors import JaxRuntimeError
    from jax.experimental.topologies import get_topology_desc

    if importlib.util.find_spec("libtpu") is None:
        raise InputError("the TPU compiler is missing; install it with .venv/bin/python -m pip install -e '.[tpu]'")
    try:
        return get_topology_desc(platform="tpu", topology_name=name).devices
    except JaxRuntimeError as error:
        raise InputError(f"--topology {name} cannot be used: {error}; name one such as v5e:2x2 or v5e:16x16") from None


def build(name: str, lowered: "Lowered") -> Built:
    """Compile a program, and read the compiled program's text.

    Raises:
        InputError: the compiler refuses it.
    """
    from jax.errors import JaxRuntimeError

    from charlm_jax.analysis.programs import read_program

    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except JaxRuntimeError as error:
        raise InputError(f"{name} cannot be compiled: {error}; try a smaller model or batch") from error
    return Built(name, compiled, read_program(compiled.as_text() or ""), time.perf_counter() - started)


def build_training(job: "Job", mesh: "Mesh", replicas: int = 1) -> Built:
    """Compile the program that takes training steps on a mesh."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from charlm_jax.mesh import REPLICA
    from charlm_jax.runs.assembly import state_shapes, train_steps_of
    from charlm_jax.runs.devices import describe_devices

    tell(f"compiling the training steps for {describe_devices(mesh)}")
    models, each = ((replicas,), PartitionSpec(REPLICA)) if REPLICA in mesh.axis_names else ((), PartitionSpec())

    def of_each_model(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*models, *leaf.shape), leaf.dtype, sharding=NamedSharding(mesh, each))

    state = jax.tree.map(of_each_model, state_shapes(job.network, job.optimizer, job.order, mesh))
    whole, text = NamedSharding(mesh, PartitionSpec()), job.training_ids
    ids = jax.ShapeDtypeStruct(text.shape, text.dtype, sharding=whole)
    program = cast("jax.stages.Wrapped", train_steps_of(job, mesh))
    return build("train_steps", program.lower(state, ids, of_each_model(job.key), state.step))


def build_sampling(job: "Job", mesh: "Mesh") -> list[Built]:
    """Compile the programs that read prompts and generate text, on as many chips as a run uses for its streams."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from charlm_jax.generation.generate import generate_piece, read_prompts
    from charlm_jax.mesh import DATA, as_many_as
    from charlm_jax.model.initializers import parameter_shapes
    from charlm_jax.model.network import Model
    from charlm_jax.runs.devices import describe_devices

    chosen = job.configuration
    streams = len(chosen.temperatures) if chosen.continuation == "restart" else 1
    mesh = as_many_as(streams, mesh)
    tell(f"compiling text generation for {describe_devices(mesh)}")
    rows = -(-streams // mesh.size) * mesh.size
    split, whole = NamedSharding(mesh, PartitionSpec(DATA)), NamedSharding(mesh, PartitionSpec())

    def placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    model = Model(job.network, jax.tree.map(lambda leaf: placed(leaf, whole), parameter_shapes(job.network)))
    prompts = jax.ShapeDtypeStruct((rows, chosen.window), jnp.int32, sharding=split)
    types = jnp.int32, jnp.float32, job.key.dtype
    lengths, temperatures, keys = (jax.ShapeDtypeStruct((rows,), dtype, sharding=split) for dtype in types)
    window = {"sampler": chosen.sampler, "window": chosen.window}
    reading = read_prompts.lower(model, prompts, lengths, **window)
    read = build("read_prompts", reading)
    state = jax.tree.map(placed, reading.out_info, read.compiled.output_shardings)
    length = chosen.sample_length
    generating = generate_piece.lower(model, state, temperatures, keys, first=0, length=length)
    return [read, build("generate_piece", generating)]


def predicted_exchanges(job: "Job", mesh: "Mesh", replicas: int = 1) -> list[dict[str, Any]]:
    """Predict by arithmetic what chips exchange: gradients and loss in each step, the carry in each dispatch."""
    import numpy as np

    from charlm_jax.mesh import DATA, REPLICA
    from charlm_jax.model.initializers import parameter_count, parameter_shapes

    chips, models = mesh.shape[DATA], replicas // mesh.shape.get(REPLICA, 1)
    parameters = parameter_count(parameter_shapes(job.network))
    carry = 2 * job.network.layers * job.network.hidden_size * chips * rows_a_chip(job, chips)
    numbers = {"step": 1 + parameters, "dispatch": carry if job.order.consecutive else 0}
    groups = tuple(map(tuple, np.arange(mesh.size).reshape(-1, chips).tolist()))
    return [
        {"program": "predicted", "each": each, "times": 1, "kind": "", "bytes": 4 * models * count, "groups": groups}
        for each, count in numbers.items()
        if count and chips > 1
    ]


def rows_a_chip(job: "Job", chips: int) -> int:
    """Return how many windows of a batch each chip reads; if the chips do not divide the batch, some are empty."""
    return -(-job.order.batch_size // chips)


def contradictions(programs: Sequence[Built], predicted: Sequence[dict[str, Any]]) -> list[str]:
    """Return where the programs, the training steps first, differ from what was predicted."""
    import jax

    from charlm_jax.mesh import DATA

    training, problems = programs[0], []
    for each in ("step", "dispatch"):
        found = [one for one in training.program.collectives if one.place.each == each]
        times, sent = sum(one.place.times for one in found), sum(one.place.times * one.bytes for one in found)
        expected = sum(one["bytes"] for one in predicted if one["each"] == each)
        if sent != expected or (each == "step" and times > 1):
            problems.append(f"chips exchange {sent:,} bytes each {each} in {times} parts, not {expected:,} in one")
        if unread := [one.kind for one in found if not one.groups]:
            problems.append(f"which chips exchange something each {each} cannot be read: {', '.join(unread)}")
        elif any(one.groups not in [row["groups"] for row in predicted] for one in found):
            problems.append(f"chips that do not share a batch exchange something each {each}")
    shardings = jax.tree.leaves((training.compiled.input_shardings, training.compiled.output_shardings))
    if any(DATA in sharding.spec for sharding in shardings):
        problems.append("the state is split over chips that share a batch, but each should hold all of it")
    for one in programs:
        if one.program.host_transfers:
            problems.append(f"{one.name} exchanges data with the host: {', '.join(one.program.host_transfers)}")
        if one is not training and one.program.collectives:
            problems.append(f"{one.name} exchanges data between chips, but each should have its own streams")
    return problems


def scaling(job: "Job", devices: Sequence[Any], built: Built) -> list[dict[str, Any]]:
    """Predict a step on 1 to 256 chips, which share the batch (strong scaling) or have one each (weak scaling)."""
    from charlm_jax.analysis.ablation import training_flops
    from charlm_jax.analysis.programs import CHIPS
    from charlm_jax.mesh import data_mesh

    # The program's text does not say how long a kernel of our own takes.
    if (chip := CHIPS.get(devices[0].device_kind)) is None or job.configuration.recurrence == "kernel":
        return []
    here = tuple(1 + max(places) for places in zip(*(device.coords for device in devices), strict=True))[:2]
    window, rows, alone = job.order.window, [], 0.0
    for sides in sorted({*_PODS, here}, key=math.prod):
        chips = math.prod(sides)
        mesh = data_mesh(devices[:1] if chips == 1 else topology_devices(f"v5e:{sides[0]}x{sides[1]}"))
        one = built if sides == here else build_training(job, mesh)
        a_chip = rows_a_chip(job, chips)
        flops = a_chip * window * training_flops(job.network, job.configuration.objective, window)
        memory_bytes = (one.compiled.cost_analysis() or {}).get("bytes accessed", 0.0)
        seconds = chip.seconds(flops=flops, memory_bytes=memory_bytes, cycles=one.program.step_cycles)
        reduced = sum(row["bytes"] for row in predicted_exchanges(job, mesh) if row["each"] == "step")
        exchange = chip.all_reduce_seconds(reduced, sides)
        alone = alone or seconds  # the first row is one chip's
        rows.append(
            {
                "chips": chips,
                "windows_a_chip": a_chip,
                "empty_share": 1 - job.order.batch_size / (a_chip * chips),
                "least_seconds": chip.seconds(flops=flops, memory_bytes=memory_bytes, cycles=0),
                "chip_seconds": seconds,
                "all_reduce_seconds": exchange,
                "strong_efficiency": alone / chips / (seconds + exchange),
                "weak_efficiency": alone / (alone + exchange),
            }
        )
    return rows


def tables(programs: Sequence[Built]) -> dict[str, list[dict[str, Any]]]:
    """Return the compiler's figures for the programs, per chip; None where it gives none."""
    memory, costs, cycles, exchanges = [], [], [], []
    sizes = {"arguments": "argument_size", "outputs": "output_size", "donated": "alias_size"}
    sizes |= {"temporaries": "temp_size", "code": "generated_code_size", "peak": "peak_memory"}
    for one in programs:
        used, cost = one.compiled.memory_analysis(), one.compiled.cost_analysis() or {}
        bytes_of = {name: getattr(used, f"{size}_in_bytes", None) for name, size in sizes.items()}
        memory.append({"program": one.name, **bytes_of, "compile_seconds": one.seconds})
        names = ("flops", "bytes accessed", "optimal_seconds")
        costs.append({"program": one.name, **{name: cost.get(name) for name in names}})
        for place, each in one.program.cycles.items():
            cycles.append({"program": one.name, **place._asdict(), "cycles": each, "all_cycles": place.times * each})
        for exchange in one.program.collectives:
            place = {"program": one.name, "each": exchange.place.each, "times": exchange.place.times}
            exchanges.append({**place, "kind": exchange.kind, "bytes": exchange.bytes, "groups": exchange.groups})
    return {"memory": memory, "costs": costs, "cycles": cycles, "exchanges": exchanges}


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} of {len(value[0])}" if value else "unknown"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return "absent" if value is None else str(value)[-60:]


def main(flags: Sequence[str]) -> None:
    """Compile, compare and print."""
    preset, base, flags = named_preset(flags, "quick")
    program = f"scripts/run compile_check {preset}"
    arguments = tyro.cli(Arguments, prog=program, description=folded(__doc__), args=flags, default=Arguments(base))
    os.environ.update(_ENVIRONMENT)

    from charlm_jax.mesh import DATA, data_mesh, replica_mesh
    from charlm_jax.runs.assembly import prepare
    from charlm_jax.runs.devices import describe_devices

    devices, replicas = topology_devices(arguments.topology), arguments.replicas
    job = prepare(arguments.configuration)
    mesh = data_mesh(devices) if replicas == 1 else replica_mesh(devices, replicas)
    predicted = predicted_exchanges(job, mesh, replicas)
    programs, refusals = [build_training(job, mesh, replicas)], []
    if job.configuration.temperatures:
        try:
            programs += build_sampling(job, data_mesh(devices))
        except InputError as error:
            refusals = [str(error)]
    problems = contradictions(programs, predicted) + refusals
    shape = {"topology": arguments.topology, "devices": describe_devices(mesh), "mesh": dict(mesh.shape)}
    versions = {library: importlib.metadata.version(library) for library in ("jax", "libtpu")}
    record = tables(programs)
    record["exchanges"] += predicted
    record["scaling"] = scaling(job, devices, programs[0]) if replicas == 1 else []
    if arguments.json:
        print(json.dumps({**shape, **versions, **record, "scaling_model": _MODEL, "problems": problems}))
    else:
        print(", ".join(f"{name} {value}" for name, value in {**shape, **versions}.items()))
        windows, chips = job.order.batch_size, mesh.shape[DATA]
        places = chips * rows_a_chip(job, chips)
        print(f"{windows} windows a batch: {places // chips} a chip, {1 - windows / places:.0%} of those places empty")
        for subject, rows in record.items():
            print(f"--- {_TITLES[subject]}")
            header = [name.replace("_", " ") for name in rows[0]] if rows else ["absent"]
            print_table([header, *([_words(value) for value in row.values()] for row in rows)])
        if record["scaling"]:
            print(f"the last table is {_MODEL}")
    if problems:
        raise InputError(f"{arguments.topology}: {'; '.join(problems)}")
    tell("as predicted: one all-reduce a step, the whole state on every chip, nothing to or from the host")


if __name__ == "__main__":
    run_command(main)
