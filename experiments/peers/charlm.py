"""This project as a contender of the benchmark."""

import functools
import tempfile
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from charlm_jax.analysis.benchmark import BATCH_SIZE, VOCABULARY, WINDOW
from charlm_jax.choices import Precision, Recurrence, Sampler
from charlm_jax.data.windows import ShuffledWindows
from charlm_jax.generation.generate import SamplingState, generate_piece, read_prompts
from charlm_jax.learning.optimizer import make_optimizer
from charlm_jax.learning.training import TrainingState, TrainSteps, initial_state, make_train_steps
from charlm_jax.mesh import DATA, REPLICA, data_mesh, replica_mesh, replicate, split_rows
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM, Model
from charlm_jax.model.products import multiply
from charlm_jax.runs.checkpoints import read_state, save_state, state_files
from charlm_jax.runs.devices import describe_devices, keep_compiled_programs, open_mesh


class Contender:
    """The package as its experiments use it: all devices, any number of steps in a dispatch."""

    def __init__(self, hidden_size: int, precision: Precision, way: str, platform: str) -> None:
        self.mesh = open_mesh(None, BATCH_SIZE)
        if platform == "cuda" and jax.default_backend() != "gpu":
            raise RuntimeError("JAX sees no CUDA device")
        keep_compiled_programs()
        recurrence = cast(Recurrence, way or "scan")
        self.network = CharacterLSTM(VOCABULARY, hidden_size, precision=precision, recurrence=recurrence)
        parameters = initial_parameters(self.network, "keras", jax.random.key(0))
        self.model = replicate(Model(self.network, parameters), self.mesh)
        self.key = replicate(jax.random.key(1), self.mesh)

    @property
    def devices(self) -> int:
        """How many devices work at once."""
        return self.mesh.size

    @property
    def kind(self) -> str:
        """How many devices there are, and of what kind."""
        return describe_devices(self.mesh)

    def _job(self, mesh: Mesh, characters: int = 600_893) -> tuple[TrainSteps, jax.Array, TrainingState]:
        rule, order = make_optimizer("rmsprop-keras-3"), ShuffledWindows(WINDOW, stride=3, batch_size=BATCH_SIZE)
        train_steps = make_train_steps(rule, order, "last-character", mesh)
        ids = np.random.default_rng(0).integers(0, VOCABULARY, characters, np.uint8)
        state = initial_state(self.model, rule, order, self.mesh, learning_rate=0.01)
        return train_steps, replicate(jnp.array(ids), mesh), state

    @functools.cache  # noqa: B019 (a process keeps one contender per size for good)
    def _training(self, characters: int) -> tuple[TrainSteps, jax.Array, list[TrainingState]]:
        train_steps, ids, state = self._job(self.mesh, characters)
        return train_steps, ids, [state]

    def train(self, count: int, characters: int = 600_893) -> None:
        """Take training steps, which includes drawing and gathering batches from the text."""
        train_steps, ids, states = self._training(characters)
        states[0] = train_steps(states[0], ids, self.key, int(states[0].step) + count)
        if int(states[0].epoch.skipped):
            raise FloatingPointError("training diverged")

    @functools.cache  # noqa: B019
    def _joint_training(self, models: int) -> tuple[TrainSteps, jax.Array, jax.Array, list[TrainingState]]:
        mesh = replica_mesh(list(self.mesh.devices.flat), models)
        train_steps, ids, first = self._job(mesh)
        states, keys = jax.tree.map(lambda leaf: jnp.stack([leaf] * models), first), jax.random.split(self.key, models)
        # Placed where the steps leave them, so that the second call runs the same program.
        states, keys = jax.device_put((states, keys), NamedSharding(mesh, PartitionSpec(REPLICA)))
        return train_steps, ids, keys, [states]

    def train_together(self, count: int, models: int) -> None:
        """Take training steps of many models at once."""
        train_steps, ids, keys, states = self._joint_training(models)
        states[0] = jax.block_until_ready(train_steps(states[0], ids, keys, states[0].step + count))

    def checkpoint(self, count: int) -> None:
        """Save the training state, and read it back with every check."""
        state = self._training(10 * WINDOW * BATCH_SIZE)[2][0]
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(count):
                save_state(Path(folder), state, "benchmark")
                (path,) = state_files(Path(folder)).values()
                read_state(path, state, "benchmark")

    @functools.cache  # noqa: B019
    def _streams(self, sampler: Sampler, streams: int) -> tuple[Model, SamplingState, jax.Array, jax.Array]:
        devices = max(number for number in range(1, self.mesh.size + 1) if streams % number == 0)
        mesh = data_mesh(list(self.mesh.devices.flat)[:devices])
        model = replicate(self.model, mesh)
        prompts = np.random.default_rng(0).integers(0, VOCABULARY, (streams, WINDOW)).astype(np.int32)
        rows = split_rows((prompts, np.full(streams, WINDOW, np.int32)), mesh)
        state = read_prompts(model, *rows, sampler=sampler, window=WINDOW)
        keys = split_rows(jax.random.split(jax.random.key(2), streams), mesh)
        return model, state, split_rows(jnp.ones(streams), mesh), keys

    def _generate(self, sampler: Sampler, count: int, streams: int) -> None:
        jax.block_until_ready(generate_piece(*self._streams(sampler, streams), length=count))

    def windowed(self, count: int, streams: int = 1) -> None:
        """Generate characters, each from the last window alone."""
        self._generate("windowed", count, streams)

    def stateful(self, count: int, streams: int = 1) -> None:
        """Generate characters, carrying the state on."""
        self._generate("stateful", count, streams)

    @functools.cache  # noqa: B019
    def _products(self, rows: int, inner: int, columns: int) -> tuple[Any, jax.Array, jax.Array]:
        def own(start: jax.Array, factor: jax.Array, count: jax.Array) -> jax.Array:
            def product(_: jax.Array, left: jax.Array) -> jax.Array:
                return multiply(left, factor, self.network.precision).reshape(rows, -1, inner).sum(1)

            return jax.lax.fori_loop(0, count, product, start)

        each, whole = PartitionSpec(DATA), PartitionSpec()
        loop = jax.shard_map(own, mesh=self.mesh, in_specs=(each, whole, whole), out_specs=each, check_vma=False)
        # In bfloat16 the arrays between products are bfloat16 too: conversions would slow these yardsticks, and make
        # shares too high.
        kind = jnp.bfloat16 if self.network.precision == "bfloat16" else jnp.float32
        start, factor = jnp.ones((self.mesh.size * rows, inner), kind), jnp.full((inner, columns), 1 / columns, kind)
        return jax.jit(loop), split_rows(start, self.mesh), replicate(factor, self.mesh)

    def multiply(self, count: int, rows: int, inner: int, columns: int) -> None:
        """Multiply matrices on all devices at once, `count` times, each time sums of the last product's columns."""
        loop, start, factor = self._products(rows, inner, columns)
        loop(start, factor, count).block_until_ready()
