"""Where arrays live: one mesh of devices, over whose `data` axis batches and streams are split.

Where several models are trained together, a `replica` axis splits the models.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"
REPLICA = "replica"
_Tree = TypeVar("_Tree")


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return the mesh of these devices; None is all that JAX sees.

    On a CPU JAX sees one device, unless `jax_num_cpu_devices` is set before it first looks.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replica_mesh(devices: Sequence[Any], replicas: int) -> Mesh:
    """Return a mesh that splits models over as many devices as divide both, and each model's batches over the rest."""
    side = math.gcd(replicas, len(devices))
    shape = side, len(devices) // side
    return jax.make_mesh(shape, (REPLICA, DATA), axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def replicate(tree: _Tree, mesh: Mesh) -> _Tree:
    """Put a whole copy of every array on each device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split_rows(tree: _Tree, mesh: Mesh) -> _Tree:
    """Give each device an equal share of every array's rows, whose number the devices must divide."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(DATA)))


def own_rows(batch_size: int, mesh: Mesh) -> jax.Array:
    """Return, inside `jax.shard_map`, the numbers of a device's own rows of a batch.

    Each device has equally many; where they do not divide the batch, the last numbers are `batch_size` and more.
    """
    share = -(-batch_size // mesh.shape[DATA])
    return jax.lax.axis_index(DATA) * share + jnp.arange(share, dtype=jnp.int32)
