"""Where arrays live: on a mesh of devices, whose `data` axis splits batches and streams.

When several models are trained together, a `replica` axis splits the models.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int32, Integer, Shaped

DATA = "data"
REPLICA = "replica"
_Tree = TypeVar("_Tree")


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of these devices; None means all that JAX sees.

    On a CPU, JAX sees one device unless `jax_num_cpu_devices` is set before JAX first looks for devices.
    """
    devices = jax.devices() if devices is None else devices
    return _mesh({DATA: len(devices)}, devices)


def replica_mesh(devices: Sequence[Any], replicas: int) -> Mesh:
    """Return a mesh that splits models over gcd(replicas, devices) devices, and each model's batches over the rest."""
    side = math.gcd(replicas, len(devices))
    return _mesh({REPLICA: side, DATA: len(devices) // side}, devices)


def _mesh(shape: dict[str, int], devices: Sequence[Any]) -> Mesh:
    # Not `jax.make_mesh`, which on a TPU refuses devices that form no block, such as the first three of four, and
    # replicas that divide no axis of its torus.
    return Mesh(np.reshape(devices, [*shape.values()]), [*shape], axis_types=(AxisType.Auto,) * len(shape))


def replicate(tree: _Tree, mesh: Mesh) -> _Tree:
    """Put a full copy of every array on each device; all processes of a job must pass the same values."""
    return _put(tree, NamedSharding(mesh, PartitionSpec()))


def split_rows(tree: _Tree, mesh: Mesh) -> _Tree:
    """Give each device an equal share of every array's rows; the number of devices must divide that of the rows."""
    return _put(tree, NamedSharding(mesh, PartitionSpec(DATA)))


def _put(tree: _Tree, sharding: NamedSharding) -> _Tree:
    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, Tracer) or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
            return jax.device_put(leaf, sharding)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        whole = np.asarray(leaf)
        # Not `device_put`, which compares the processes' arrays on every device. Copies: devices may share memory.
        return jax.make_array_from_callback(whole.shape, sharding, lambda place: whole[place].copy())

    return jax.device_put(tree, sharding) if sharding.is_fully_addressable else jax.tree.map(put, tree)


def fetch(tree: _Tree) -> _Tree:
    """Return every array whole, as a NumPy array, wherever its shards are; all processes of a job must call this."""

    def whole(leaf: jax.Array) -> np.ndarray:
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = replicate(leaf, leaf.sharding.mesh)  # pyright: ignore[reportAttributeAccessIssue]
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def as_many_as(rows: int, mesh: Mesh) -> Mesh:
    """Return a mesh of at most `rows` of these devices, or the whole mesh if it spans several processes."""
    devices = list(mesh.devices.flat)
    alone = all(device.process_index == devices[0].process_index for device in devices)
    return data_mesh(devices[:rows]) if alone else mesh


def own_rows(batch_size: int, mesh: Mesh) -> Int32[Array, " row"]:
    """Return the indices of this device's rows of a batch, for use inside `jax.shard_map`.

    All devices have equally many rows; if they do not divide the batch, the last indices are `batch_size` and above.
    """
    share = -(-batch_size // mesh.shape[DATA])
    return jax.lax.axis_index(DATA) * share + jnp.arange(share, dtype=jnp.int32)


def local_rows(batch_size: int, mesh: Mesh) -> Integer[np.ndarray, " row"]:
    """Return the indices of the rows of a batch that this process's devices hold; see `own_rows`."""
    devices = mesh.shape[DATA]
    total = devices * -(-batch_size // devices)
    places = NamedSharding(mesh, PartitionSpec(DATA)).addressable_devices_indices_map((total,)).values()
    return np.unique(np.concatenate([np.arange(total)[place] for place in places]))


def split_columns(array: Shaped[np.ndarray, "steps own *rest"], mesh: Mesh) -> Shaped[Array, "steps batch *rest"]:
    """Assemble one array, split over the devices along its second axis, from the parts that the processes hold."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(None, DATA)), array)
