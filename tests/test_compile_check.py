"""Reading compiled programs: ones whose exchanges are known, and this project's own for TPUs."""

import dataclasses
import importlib.util
import itertools
import json
import math
import os
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from jax.errors import JaxRuntimeError
from jax.sharding import NamedSharding, PartitionSpec
from test_experiments import SMALL, call, run

from charlm_jax.analysis.programs import CHIPS, Chip, Place, read_program
from charlm_jax.errors import InputError
from charlm_jax.mesh import data_mesh, replica_mesh
from charlm_jax.runs.assembly import prepare
from charlm_jax.runs.configuration import PRESETS
from experiments import compile_check

EVERYWHERE, SPLIT = PartitionSpec(), PartitionSpec("data")
ORDERS = {
    "last character": {"objective": "last-character"},
    "fresh windows": {"carry": "fresh"},
    "kept carry": {"carry": "kept"},
    "two layers": {"layers": 2},
}


@pytest.fixture(params=["cpu", "v5e:2x2", "v5e:16x16"])
def devices(request):
    return devices_of(request.param)


def devices_of(topology):
    if topology == "cpu":
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler is missing: .venv/bin/python -m pip install -e '.[tpu]'")
    os.environ.update(
        {name: value for name, value in compile_check._ENVIRONMENT.items() if not name.startswith("JAX_")}
    )
    return compile_check.topology_devices(topology)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Return a function that makes a small job from choices."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("the will to power is the will to truth; what is good? the feeling of power.\n" * 400)

    def job_of(**choices):
        small = {"corpus": str(path), "window": 10, "hidden_size": 8, "sample_length": 20, "batch_size": 20}
        return prepare(dataclasses.replace(PRESETS["quick"], **{**small, **choices}))

    return job_of


def compiled(function, devices, *arguments, out_specs: Any = EVERYWHERE):
    """Compile a function of arrays, the first one split over the devices, and read the program."""
    mesh = data_mesh(devices)
    specs = (SPLIT, *[EVERYWHERE] * (len(arguments) - 1))
    sharded = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for (shape, dtype), spec in zip(arguments, specs, strict=True)
    ]
    return read_program(jax.jit(sharded).lower(*shapes).compile().as_text() or "")


def test_exchanges_are_found_where_they_happen(devices):
    """All-reduce 6 x 4 numbers in each of `stop` steps and 5 in each of 7 iterations within; all-gather at the end."""
    count = len(devices)

    def function(rows, stop):
        def turn(number, small):
            return jnp.tanh(jax.lax.psum(small * number, "data"))

        def step(state):
            number, rows, small = state
            rows = jnp.tanh(jax.lax.psum(rows, "data")) + jnp.sum(small)
            return number + 1, rows, jax.lax.fori_loop(0, 7, turn, small + rows[0, 0])

        start = jnp.int32(0), rows, jnp.ones(5)
        _, rows, small = jax.lax.while_loop(lambda state: state[0] < stop, step, start)
        return jax.lax.all_gather(rows, "data"), small

    arguments = ((6 * count, 4), jnp.float32), ((), jnp.int32)
    program = compiled(function, devices, *arguments, out_specs=(EVERYWHERE, EVERYWHERE))
    found = sorted((one.place.each, one.place.times, one.bytes) for one in program.collectives)
    assert found == [("dispatch", 1, 4 * 6 * 4 * count), ("step", 1, 4 * 6 * 4), ("step", 7, 4 * 5)]
    assert {one.groups for one in program.collectives} == {(tuple(range(count)),)}
    assert program.host_transfers == ()
    if devices[0].platform == "tpu":
        assert program.step_cycles > 7 * min(program.cycles.values())


def test_what_goes_to_the_host_is_found(devices):
    def function(rows):
        jax.debug.callback(lambda total: None, jnp.sum(rows))
        return jax.lax.psum(rows, "data")

    assert compiled(function, devices, ((len(devices), 4), jnp.float32)).host_transfers


def test_text_of_other_compilers_is_read():
    """Replica groups in the iota notation, and an asynchronous exchange: its start and its end."""
    program = read_program(
        """
HloModule hand_made

ENTRY %main.1 (x.1: f32[8]) -> bf16[2,8] {
  %x.1 = f32[8]{0} parameter(0)
  %begin.1 = ((f32[8]{0}), (f32[16]{0})) all-gather-start(%x.1), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  %end.1 = f32[16]{0:T(8,128)S(1)} all-gather-done(%begin.1)
  ROOT %two.1 = (bf16[2,8]{1,0:T(8,128)(2,1)}, pred[3]{0}) all-reduce(%end.1), replica_groups=[2,2]<=[4], to_apply=%add
}

%add (a.1: f32[], b.1: f32[]) -> f32[] {
  %a.1 = f32[] parameter(0)
  ROOT %sum.1 = f32[] add(%a.1, %a.1)
}
"""
    )
    gather, reduce = program.collectives
    assert (gather.kind, gather.bytes, gather.groups) == ("all-gather", 64, ((0, 2), (1, 3)))
    assert (reduce.kind, reduce.bytes, reduce.groups) == ("all-reduce", 35, ((0, 1), (2, 3)))
    assert gather.place == Place("dispatch", 1, "")
    assert program.cycles == {}


@pytest.mark.parametrize(
    ("notation", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("mesh['replica'=2,'data'=3] {'data'}", ((0, 1, 2), (3, 4, 5))),
        ("mesh['replica'=2,'data'=3] {'replica'}", ((0, 3), (1, 4), (2, 5))),
        ("mesh['replica'=2,'data'=2] {'replica','data'}", ((0, 1, 2, 3),)),
        ("mesh['replica'=2,'data'=2] {'data','replica'}", ((0, 2, 1, 3),)),
        ("mesh['data'=4], device_ids=([2,2]T(1,0)) {'data'}", ()),
    ],
)
def test_groups_are_read_in_every_notation(notation, groups):
    """XLA's own has changed from version to version; jax 0.12 names the mesh and the axes along which is reduced."""
    one = f"%sum.1 = f32[8]{{0}} all-reduce(%x.1), channel_id=1, replica_groups={notation}"
    (reduce,) = read_program(f"ENTRY %main.1 (x.1: f32[8]) -> f32[8] {{\n  {one}\n}}\n").collectives
    assert reduce.groups == groups


@pytest.mark.parametrize(
    ("topology", "order"),
    [("cpu", "kept carry"), *itertools.product(["v5e:2x2", "v5e:16x16"], ORDERS)],  # compiling for a CPU takes seconds
)
def test_training_is_what_arithmetic_predicts(topology, order, job):
    devices, choices = devices_of(topology), ORDERS[order]
    there = job(**choices)
    built = compile_check.build_training(there, data_mesh(devices))
    predicted = compile_check.predicted_exchanges(there, data_mesh(devices))
    assert compile_check.contradictions([built], predicted) == []
    (step,) = [one for one in built.program.collectives if one.place.each == "step"]
    hidden, vocab, layers = 8, len(there.vocabulary), there.network.layers
    parameters = 4 * hidden * (vocab + hidden + 1) + (layers - 1) * 4 * hidden * (2 * hidden + 1) + vocab * (hidden + 1)
    assert (step.kind, step.bytes, step.place.times) == ("all-reduce", 4 * (parameters + 1), 1)
    rows = len(devices) * math.ceil(20 / len(devices))
    kept = 2 * layers * rows * hidden if order in ("kept carry", "two layers") else 0
    assert sum(one.bytes for one in built.program.collectives) == 4 * (parameters + 1 + kept)


def test_the_kernel_takes_the_place_of_the_loops_over_characters(job):
    devices, loops = devices_of("v5e:2x2"), {}
    for recurrence in ("scan", "kernel"):
        wide = job(hidden_size=128, recurrence=recurrence)
        built = compile_check.build_training(wide, data_mesh(devices))
        assert compile_check.contradictions([built], compile_check.predicted_exchanges(wide, data_mesh(devices))) == []
        text = built.compiled.as_text() or ""
        loops[recurrence] = text.count(" while("), text.count('custom_call_target="tpu_custom_call"')
    assert loops["kernel"] == (loops["scan"][0] - 2, loops["scan"][1] + 2), "one a direction"


@pytest.mark.parametrize("sampler", ["windowed", "stateful"])
def test_generation_exchanges_nothing(devices, job, sampler):
    there = job(sampler=sampler, temperatures=(0.5,))
    # Shapes stand in for a dataclass's arrays; beartype would refuse them.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        programs = compile_check.build_sampling(there, data_mesh(devices))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert [one.name for one in programs] == ["read_prompts", "generate_piece"]
    assert all(one.program.collectives == one.program.host_transfers == () for one in programs)


@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4", "v4:2x2x2"])
def test_any_number_of_chips_makes_a_mesh(topology):
    """Also those that form no block of the torus, and replicas that divide no axis of it."""
    chips = devices_of(topology)
    for count in range(1, len(chips) + 1):
        assert data_mesh(chips[:count]).shape == {"data": count}
    for replicas in range(1, 9):
        assert dict(replica_mesh(chips, replicas).shape)["data"] == len(chips) // math.gcd(len(chips), replicas)


def test_replicas_exchange_with_their_own_alone(job):
    there, mesh = job(carry="fresh"), replica_mesh(devices_of("v5e:4x4"), 6)
    built = compile_check.build_training(there, mesh, 6)
    assert compile_check.contradictions([built], compile_check.predicted_exchanges(there, mesh, 6)) == []
    (one,) = built.program.collectives
    assert one.groups == (tuple(range(8)), tuple(range(8, 16)))
    alone, _ = compile_check.predicted_exchanges(job(), data_mesh(jax.devices()))
    assert one.bytes == 3 * alone["bytes"]  # each half of the pod holds three of the six models


def test_each_contradiction_is_told(job):
    there, mesh = job(), data_mesh(jax.devices())
    predicted = compile_check.predicted_exchanges(there, mesh)
    built = compile_check.build_training(there, mesh)
    (step, *others) = built.program.collectives
    assert step.place.each == "step"
    half = dataclasses.replace(step, bytes=step.bytes // 2)

    def told(expected=predicted, **changes):
        spoilt = dataclasses.replace(built, program=dataclasses.replace(built.program, **changes))
        return compile_check.contradictions([built, spoilt] if not expected else [spoilt], expected or predicted)

    assert told() == []
    (size,) = told([{**predicted[0], "bytes": step.bytes + 4}, *predicted[1:]])
    assert size == f"chips exchange {step.bytes:,} bytes each step in 1 parts, not {step.bytes + 4:,} in one"
    (parts,) = told(collectives=(half, half, *others))
    assert parts == f"chips exchange {step.bytes:,} bytes each step in 2 parts, not {step.bytes:,} in one"
    (groups,) = told(collectives=(dataclasses.replace(step, groups=((0, 1), (2,))), *others))
    assert "chips that do not share a batch exchange something each step" in groups
    (unread,) = told(collectives=(dataclasses.replace(step, groups=()), *others))
    assert unread == "which chips exchange something each step cannot be read: all-reduce"
    (host,) = told(host_transfers=("send.1",))
    assert "exchanges data with the host: send.1" in host
    (streams,) = told([])
    assert "but each should have its own streams" in streams


def test_a_chip_takes_what_its_slowest_part_takes():
    chip = Chip(flops=1e12, memory=1e9, interconnect=2e11, clock=1e9)
    assert chip.seconds(flops=3e12, memory_bytes=1e9, cycles=2e9) == 3
    assert chip.seconds(flops=1e12, memory_bytes=1e9, cycles=2e9) == 2
    assert chip.all_reduce_seconds(1, (1, 1)) == 0
    assert chip.all_reduce_seconds(2 * 10**11, (2, 2)) == pytest.approx(1.5 + 4e-6)
    assert CHIPS["TPU v5 lite"].clock == pytest.approx(1.5e9, rel=0.01)  # the figure in "How to Scale Your Model"


def test_an_unknown_pod_is_refused_in_one_sentence(capsys):
    for topology in ("nonsense", "v5e", "v5e:2", "v4:2x2x1"):
        assert call("compile_check", "--topology", topology) == 2
        sentence = f"error: --topology {topology} cannot be used: it must be a pod of v5e, v5p or v6e, such as v5e:2x2"
        assert capsys.readouterr().err.startswith(sentence)
    devices_of("v5e:2x2")
    with pytest.raises(InputError, match=r"--topology v5e:3x3 cannot be used: .*; name one such as v5e:2x2"):
        compile_check.topology_devices("v5e:3x3")


def test_a_program_that_the_compiler_refuses_is_named():
    refused = Mock(**{"compile.side_effect": JaxRuntimeError("RESOURCE_EXHAUSTED: of memory")})
    with pytest.raises(
        InputError, match="train_steps cannot be compiled: RESOURCE_EXHAUSTED: of memory; try a smaller"
    ):
        compile_check.build("train_steps", refused)


def test_without_the_compiler_there_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(compile_check, "_ENVIRONMENT", {})
    assert call("compile_check") == 2
    assert capsys.readouterr().err == (
        "error: the TPU compiler is missing; install it with .venv/bin/python -m pip install -e '.[tpu]'\n"
    )


def test_the_command_prints_all_of_it(job):
    devices_of("v5e:2x2")
    corpus = job().configuration.corpus
    flags = ["--topology", "v5e:2x2", "--corpus", corpus, *SMALL, "--temperatures", 1, "--batch-size", 6]
    code, output, errors = run("compile_check", *flags, "--json")
    assert code == 0, errors
    record = json.loads(output)
    assert record["problems"] == []
    assert [row["program"] for row in record["memory"]] == ["train_steps", "read_prompts", "generate_piece"]
    assert all(row["peak"] > 0 for row in record["memory"])
    assert [row["chips"] for row in record["scaling"]] == [1, 4, 16, 64, 256]
    assert [row["windows_a_chip"] for row in record["scaling"]] == [6, 2, 1, 1, 1]
    assert [row["empty_share"] for row in record["scaling"]] == [0, 0.25, 1 - 6 / 16, 1 - 6 / 64, 1 - 6 / 256]
    assert record["scaling"][0]["strong_efficiency"] == record["scaling"][0]["weak_efficiency"] == 1
    assert "not a measurement" in record["scaling_model"]
    code, output, errors = run("compile_check", *flags, "--replicas", 2)
    assert code == 0, errors
    assert "3 a chip, 0% of those places empty" in output
    assert "2 of 2" in output
    assert "libtpu" not in errors
