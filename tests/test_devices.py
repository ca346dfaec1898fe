"""Devices: how many there are, and what decides their number."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import charlm_jax
from charlm_jax.errors import InputError
from charlm_jax.mesh import data_mesh
from charlm_jax.runs import devices
from charlm_jax.runs.devices import describe_devices, open_mesh


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (8, 1), (16, 2), (128, 3)])
def test_each_device_gets_a_few_rows_unless_a_number_is_asked_for(rows, expected):
    assert open_mesh(None, rows).size == expected
    assert open_mesh(1, rows).size == 1


def test_too_many_devices_are_refused():
    with pytest.raises(InputError, match="--devices 4 is more than there are: JAX sees 3 x cpu"):
        open_mesh(4, 128)
    with pytest.raises(InputError, match="--devices 2 is more than the 1 rows"):
        open_mesh(2, 1)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "{cores} x cpu"),
        ("import jax; jax.devices()", "1 x cpu"),
        ("import jax; jax.config.update('jax_num_cpu_devices', 5)", "5 x cpu"),
        ("import os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=4'", "4 x cpu"),
    ],
)
def test_a_cpu_is_one_device_a_core_unless_that_was_decided_before(before, expected):
    program = f"{before}\nfrom charlm_jax.runs.devices import *\nprint(describe_devices(open_mesh(None, 10_000)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == expected.format(cores=devices.cores()), result.stderr


def test_a_processor_is_known_by_its_kind(tmp_path, monkeypatch):
    """Its current speed and microcode do not matter; the first of several cores stands for all."""
    monkeypatch.setattr(devices, "_PROCESSORS", tmp_path / "cpuinfo")

    def named(**facts):
        facts = {"vendor_id": "Maker", "cpu family": 6, "model": 1, "model name": "Chip 9", "flags": "sse avx", **facts}
        lines = "".join(f"{name}\t: {value}\n" for name, value in facts.items())
        (tmp_path / "cpuinfo").write_text(f"{lines}\nprocessor\t: 1\n{lines}")
        return devices.processor()

    assert named().startswith(f"Chip 9 {platform.machine()}-")
    assert named() == named(**{"cpu MHz": 2600}) == named(microcode="0x1")
    assert len({named(), named(model=2), named(flags="sse avx avx512f"), named(**{"cpu family": 7})}) == 4
    arm = [{"Features": "fp asimd", "CPU implementer": "0x41", "CPU part": part} for part in ("0xd0c", "0xd40")]
    assert named(**arm[0]) not in (named(), named(**arm[1]), named(**{**arm[0], "Features": "fp asimd sve"}))
    (tmp_path / "cpuinfo").unlink()
    assert devices.processor().rpartition(" ")[0] not in ("", "Chip 9")


@pytest.mark.parametrize("platforms", ["cuda", "nonsense"])
def test_a_platform_that_is_not_here_is_one_sentence(platforms):
    program = "from charlm_jax.runs.devices import *; open_mesh(None, 8)"
    environment = {**os.environ, "JAX_PLATFORMS": platforms, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.stderr.splitlines()[-1] == (
        f"charlm_jax.errors.InputError: JAX was told to compute on {platforms} (JAX_PLATFORMS) but finds no such "
        "device; unset it, or name one that exists, such as cpu"
    )


@pytest.mark.parametrize(
    ("share", "of_eight"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), ("", 8), (None, 8)],
)
def test_a_containers_share_of_the_cores_counts(share, of_eight, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    group = within_groups(monkeypatch, tmp_path)
    if share is not None:
        (group / "cpu.max").write_text(share + "\n")
    assert devices.cores() == of_eight


def within_groups(monkeypatch, folder):
    """Put this process into a nested control group; return the group's folder."""
    monkeypatch.setattr(devices, "_CONTROL_GROUPS", folder / "groups")
    monkeypatch.setattr(devices, "_OWN_CONTROL_GROUP", folder / "cgroup")
    (folder / "cgroup").write_text("0::/job_7/step_0\n")
    (folder / "groups" / "job_7" / "step_0").mkdir(parents=True)
    return folder / "groups" / "job_7" / "step_0"


def test_the_least_memory_of_all_groups_counts(monkeypatch, tmp_path):
    mesh, group = data_mesh(), within_groups(monkeypatch, tmp_path)
    alone = devices.device_memory(mesh)
    (group / "memory.max").write_text("max\n")
    assert devices.device_memory(mesh) == alone
    (group.parent / "memory.max").write_text(f"{3 * 10**6 * mesh.size}\n")
    (group.parent.parent / "memory.max").write_text(f"{4 * 10**6 * mesh.size}\n")
    assert devices.device_memory(mesh) == 3 * 10**6
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2")  # in units of 2**20 bytes
    assert devices.device_memory(mesh) == 2 * 2**20 // mesh.size
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all of the node's
    assert devices.device_memory(mesh) == 3 * 10**6


def test_code_that_differs_has_another_digest(monkeypatch, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(Path(charlm_jax.__file__).parent, tmp_path / name)
    (tmp_path / "two" / "keys.py").write_text("# another\n")
    digests = [devices.code_digest()]
    for name in ("one", "two"):
        monkeypatch.setattr(charlm_jax, "__file__", str(tmp_path / name / "__init__.py"))
        digests.append(devices.code_digest())
    assert digests[0] == digests[1] != digests[2]


def compile_something(cache):
    """Compile a program that is cached however fast it compiles, in its own process; return its result and warnings."""
    program = """
import jax, jax.numpy as jnp
from charlm_jax.runs.devices import keep_compiled_programs
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.eye(8)))
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    return done.stdout, done.stderr


def test_compiled_programs_are_kept_where_nobody_else_can_write(tmp_path):
    result, _ = compile_something(tmp_path)
    (folder,) = (tmp_path / "charlm_jax").glob("compiled-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    kept = {path.name for path in folder.iterdir()}
    assert kept
    assert compile_something(tmp_path) == (result, "")
    assert {path.name for path in folder.iterdir() if path.name.endswith("-cache")} <= kept

    for path in folder.iterdir():
        path.write_text("damaged")
    after, warnings = compile_something(tmp_path)
    assert after == result
    assert "Error reading persistent compilation cache" in warnings

    for path in folder.iterdir():
        path.unlink()
    folder.chmod(0o777)
    after, warnings = compile_something(tmp_path)
    assert after == result
    assert "compiled programs are not kept" in warnings
    assert str(folder) in warnings
    assert not list(folder.iterdir()), "others could have put a program there"


def test_devices_in_words():
    assert describe_devices(open_mesh(2, 16)) == "2 x cpu"
