"""Resumable training states on disk, through Orbax."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charlm_jax.errors import InputError
from charlm_jax.learning.training import TrainingState


@contextmanager
def open_checkpoints(path: Path, kept: int = 2) -> Iterator[ocp.CheckpointManager]:
    """Open a run's folder of checkpoints; a state that was saved is on the disk when `save_state` returns.

    Args:
        path: the folder.
        kept: the newest so many stay: one, and one to go back to by hand should it be damaged.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every save
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(kept), enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(path.absolute(), options=options) as manager:
        yield manager


def save_state(manager: ocp.CheckpointManager, state: TrainingState) -> None:
    """Save a state under its step, unless that step is there already."""
    step = int(state.step)
    if manager.latest_step() != step and not manager.save(step, args=ocp.args.StandardSave(state)):
        raise RuntimeError(f"step {step} was not saved: {manager.directory} holds step {manager.latest_step()}")


def drop_later_states(manager: ocp.CheckpointManager, step: int) -> None:
    """Remove states of later steps: training goes on from `step`, and will come to its own."""
    for later in [saved for saved in manager.all_steps() if saved > step]:
        manager.delete(later)


def restore_state(manager: ocp.CheckpointManager, like: TrainingState, mesh: Mesh) -> TrainingState | None:
    """Return the newest state, whole on every device of the mesh, or None where there is none.

    Args:
        manager: of the run's folder.
        like: a state of the same structure and shapes.
        mesh: the devices, which need not be those that it was saved from.

    Raises:
        InputError: the newest state cannot be read.
    """
    step = manager.latest_step()
    if step is None:
        return None
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), like)
    try:
        return cast(TrainingState, manager.restore(step, args=ocp.args.StandardRestore(shapes)))
    except Exception as error:  # Orbax, TensorStore and the disk each fail in their own way, over pages
        folder = str(Path(manager.directory) / str(step))
        raise InputError(
            f"the checkpoint {folder!r} cannot be read ({type(error).__name__}); "
            "remove that folder to go on from what else was kept"
        ) from error
