"""What the numbers are computed on, and where they come from."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import jax

import charlm_jax
from charlm_jax.choices import Precision

_MATMUL_PRECISION = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def set_precision(precision: Precision) -> None:
    """Set the precision of matrix products for the whole process; a CPU computes in float32 whatever is asked."""
    jax.config.update("jax_default_matmul_precision", _MATMUL_PRECISION[precision])


def describe_devices() -> str:
    """Return the devices in words, such as "1 x cpu"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def describe_process(precision: Precision) -> dict:
    """Return what decides the bits of a result beside the configuration: code, versions, devices, precision."""
    return {
        "command": shlex.join(sys.argv),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "charlm_jax": charlm_jax.__version__,
            **{library: importlib.metadata.version(library) for library in _LIBRARIES},
        },
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "precision": precision,
    }


def _commit() -> str | None:
    """Return the commit of the checkout, with "-dirty" where tracked files differ; None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
