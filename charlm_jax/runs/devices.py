"""Devices, cores and memory, and the record of what a result was computed with."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pooch
from jax.sharding import Mesh

import charlm_jax
from charlm_jax.choices import Precision
from charlm_jax.errors import InputError
from charlm_jax.mesh import data_mesh
from charlm_jax.runs.command_line import tell

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "safetensors", "numpy")
_PROCESSORS = Path("/proc/cpuinfo")
_KIND = "vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features"  # of x86, and of ARM
_CONTROL_GROUPS = Path("/sys/fs/cgroup")  # of a container or a job: what it may use (Linux control groups, version 2)
_OWN_CONTROL_GROUP = Path("/proc/self/cgroup")
_MIN_ROWS = 8  # per device; with fewer, a matrix product has too little to do


def keep_compiled_programs() -> None:
    """Keep the programs that this process compiles in the user's cache, unless JAX is configured otherwise."""
    if jax.config.values["jax_enable_compilation_cache"] and not jax.config.values["jax_compilation_cache_dir"]:
        folder = Path(pooch.os_cache("charlm_jax"), f"compiled-{processor().rpartition(' ')[2]}")
        if not _is_our_own(folder):
            tell(f"compiled programs are not kept: {str(folder)!r} cannot be written, or others can read or write it")
        else:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _is_our_own(folder: Path) -> bool:
    """Create a folder and return whether it is ours alone: whoever can write to it decides what we run."""
    try:
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        there = folder.stat()
    except OSError:
        return False
    return there.st_uid == os.getuid() and not there.st_mode & 0o077 and os.access(folder, os.W_OK)


def processor() -> str:
    """Return the processor's name and kind, which decides the vector instructions that XLA chooses.

    A program compiled for another kind may crash, and one that was compiled anew adds numbers up in another order.
    """
    try:
        lines = _PROCESSORS.read_text().partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    kind = [facts[name] for name in _KIND if name in facts] or [platform.node()]
    name = facts.get("model name") or platform.processor() or "processor"
    return f"{name} {platform.machine()}-{hashlib.sha256(' '.join(kind).encode()).hexdigest()[:8]}"


def open_mesh(devices: int | None, rows: int) -> Mesh:
    """Return the mesh that a job runs on; a CPU becomes one device per core, unless JAX is already in use.

    Args:
        devices: how many; None is all, but in a single process no more than get a few rows each.
        rows: of a batch, or streams, to split over the devices.

    Raises:
        InputError: `devices` is more than there are or than rows, or no multiple of the processes; or there are none.
    """
    use_every_core()
    require_devices()
    processes = jax.process_count()
    own = [[device for device in jax.devices() if device.process_index == process] for process in range(processes)]
    there = processes * min(map(len, own))
    if devices is None:
        # Several processes use all devices: a TPU pod runs no program on a part of itself.
        devices = there if processes > 1 else min(there, max(1, rows // _MIN_ROWS))
        rows = max(rows, devices)
    if devices % processes:
        raise InputError(f"--devices {devices} is not a multiple of this job's {processes} processes")
    if devices > there:
        raise InputError(f"--devices {devices} is more than there are: JAX sees {describe_devices(data_mesh())}")
    if devices > rows:
        raise InputError(f"--devices {devices} is more than the {rows} rows that would be split over them")
    return data_mesh([device for devices_of_one in own for device in devices_of_one[: devices // processes]])


def require_devices() -> None:
    """Raise an InputError if JAX was told to compute on a platform that is missing."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for cuda without a GPU
        if not (told := jax.config.values["jax_platforms"]):
            raise
        raise InputError(
            f"JAX was told to compute on {told} (JAX_PLATFORMS) but finds no such device; unset it, or name one that "
            "exists, such as cpu"
        ) from error


def use_every_core() -> None:
    """Make a CPU one device per core, unless JAX is configured otherwise or already in use."""
    told = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.values["jax_num_cpu_devices"] < 0 and not told:
        with contextlib.suppress(RuntimeError):  # JAX is already in use, and keeps the devices that it has
            jax.config.update("jax_num_cpu_devices", cores())


def device_memory(mesh: Mesh) -> int:
    """Return the memory of one of this process's devices, in bytes; CPU devices share what the process may use."""
    statistics = mesh.local_devices[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [there, *(limit for (limit,) in _limits("memory.max"))]
    told = os.environ.get("SLURM_MEM_PER_NODE", "")  # in MiB; enforced by control groups of version 1, if not of 2
    if told.isdecimal() and int(told):
        limits.append(int(told) << 20)
    return min(limits) // len(mesh.local_devices)


def describe_devices(mesh: Mesh) -> str:
    """Return the devices in words, such as "2 x cpu"."""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{processes}"


def describe_process(precision: Precision, mesh: Mesh, replicas: int) -> dict[str, Any]:
    """Return what decides a result's bits besides the configuration: code, versions, devices, precision.

    `replicas` is how many models are trained together.
    """
    return {
        "command": shlex.join(sys.argv),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "charlm_jax": charlm_jax.__version__,
            **{library: importlib.metadata.version(library) for library in _LIBRARIES},
        },
        "device_kind": mesh.devices.flat[0].device_kind,
        "processor": processor() if mesh.devices.flat[0].platform == "cpu" else None,
        "device_count": mesh.size,
        "processes": jax.process_count(),
        "replicas": replicas,
        "cpu_cores": cores(),
        "precision": precision,
    }


def cores() -> int:
    """Return how many cores this process may use, within its container's share of the machine if it has one."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [quota // period for quota, period in _limits("cpu.max")]
    return max(1, min([there, *shares]))


def _limits(name: str) -> Iterator[list[int]]:
    """Yield the limits that this process's control groups set, from the innermost outwards."""
    try:
        own = _OWN_CONTROL_GROUP.read_text().strip().rpartition("::")[2].strip("/")
    except OSError:
        return
    for group in (_CONTROL_GROUPS / own, *(_CONTROL_GROUPS / own).parents):
        with contextlib.suppress(OSError):
            words = (group / name).read_text().split()
            if words and all(map(str.isdecimal, words)):  # not "max"
                yield [int(word) for word in words]
        if group == _CONTROL_GROUPS:
            return


def code_digest() -> str:
    """Return the SHA-256 of this package's code, committed or not."""
    digest, package = hashlib.sha256(), Path(charlm_jax.__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _commit() -> str | None:
    """Return the checkout's commit, with "-dirty" if tracked files differ; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
