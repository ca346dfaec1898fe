"""The training state and the compiled function that advances it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32, Integer, PyTree

from charlm_jax.choices import Objective
from charlm_jax.data.windows import Batch, Order, draw_batch
from charlm_jax.keys import Key, ReplicaKeys, fold_text
from charlm_jax.learning.objective import targets_of, window_losses
from charlm_jax.learning.optimizer import RateSchedule, make_schedule
from charlm_jax.mesh import DATA, REPLICA, own_rows, replicate
from charlm_jax.model.network import Carry, Dropout, Model, Parameters

MAX_SKIPPED = 10
"""Training stops after this many steps in a row have been skipped."""
_CONSTANT = make_schedule("constant")


class EpochSoFar(NamedTuple):
    """Running statistics of the current epoch.

    Attributes:
        loss: mean nats per character of its windows so far, each measured when it was learned from.
        windows: how many were learned from.
        skipped: steps that were not taken because something in them was not finite.
    """

    loss: Float[Array, ""]
    windows: Int32[Array, ""]
    skipped: Int32[Array, ""]


class TrainingState(NamedTuple):
    """All that training carries from one step to the next; the rest is a function of (text, key, step).

    Attributes:
        step: updates done or skipped since the start of the run.
        model: the network and its parameters.
        optimizer_state: the optimizer's.
        carry: each row's state after the previous segments; empty where windows start from the zero state.
        epoch: running statistics of the current epoch.
        skipped_in_a_row: how many steps just before this one were skipped.
        learning_rate: what the schedule's factor and the optimizer's updates are multiplied by; the chosen one, unless
            an epoch's loss rose far above the lowest and training was rolled back.
    """

    step: Int32[Array, ""]
    model: Model
    optimizer_state: PyTree
    carry: Carry
    epoch: EpochSoFar
    skipped_in_a_row: Int32[Array, ""]
    learning_rate: Float[Array, ""]

    @property
    def diverged(self) -> bool:
        """Whether `MAX_SKIPPED` steps in a row have been skipped."""
        return int(self.skipped_in_a_row) >= MAX_SKIPPED


def initial_state(
    model: Model, optimizer: optax.GradientTransformation, order: Order, mesh: Mesh, *, learning_rate: float
) -> TrainingState:
    """Return the state before the first step, replicated on every device of the mesh."""
    carry = model.network.zero_carry((order.batch_size,)) if order.consecutive else ()
    # Copies: no buffer may be donated twice, and the caller's model stays usable.
    model, carry = jax.tree.map(jnp.copy, (model, carry))
    state = TrainingState(
        step=jnp.int32(0),
        model=model,
        optimizer_state=optimizer.init(model.parameters),
        carry=carry,
        epoch=EpochSoFar(jnp.float32(0), jnp.int32(0), jnp.int32(0)),
        skipped_in_a_row=jnp.int32(0),
        learning_rate=jnp.float32(learning_rate),
    )
    return replicate(state, mesh)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batches:
    """Batches of successive steps, passed instead of the text that they come from.

    Attributes:
        characters: see `Batch`; split over the devices by rows, of any integer dtype. The number of rows is a multiple
            of the number of devices; rows from `batch_size` on are padding.
        weights: see `Batch`; split in the same way.
        first: the step of the first batch, counted over all epochs.
        text_length: characters in the text; static, as the length of a text itself is.
    """

    characters: Integer[Array, "steps batch length"]
    weights: Float[Array, "steps batch"]
    first: Int32[Array, ""]
    text_length: int = field(metadata={"static": True})


Text = Integer[Array, " character"] | Batches
TrainSteps = Callable[[TrainingState, Text, Key | ReplicaKeys, int | Int32[Array, "*replica"]], TrainingState]


def make_train_steps(
    optimizer: optax.GradientTransformation,
    order: Order,
    objective: Objective,
    mesh: Mesh,
    *,
    schedule: RateSchedule = _CONSTANT,
    min_probability: float = 0.0,
) -> TrainSteps:
    """Return `train_steps(state, text, key, stop) -> state`, compiled.

    It takes steps until `state.step` is `stop`, in one dispatch; the same program takes any number of them. `state` is
    donated. A step that would make the loss, a parameter or the optimizer's state non-finite is counted but skipped,
    and its windows do not count; after `MAX_SKIPPED` in a row the state has `diverged`, and no more are tried. The
    state is always finite.

    `text` is the ids of the training text and `key` the run's key: batches depend only on (text, key, epoch, step).
    Each device of the mesh reads its share of a batch, the gradients are summed, and every device takes the same step.
    All arguments belong on the whole mesh (`replicate`); any that are elsewhere are copied there on every call. A
    different number of devices changes the order of the sums and nothing else.

    In an order of consecutive segments, each starts from the carry of the one before, through which no gradient flows
    (truncated backpropagation through time; Williams and Peng, 1990); an epoch's first starts from the zero state.

    On a `replica_mesh`, many models (replicas) learn from the same text in one program. Every array of `state` has an
    additional first axis for the replicas, as have `key` and `stop`: each replica has its own key, learning rate and
    step to stop at. A replica that has stopped waits for the others; none affects another's results.

    If the devices do not hold the text, the `Batches` of the steps to be taken are passed as `text`; the result is the
    same, bit for bit.

    Args:
        optimizer: the update rule, for a learning rate of 1; see `make_optimizer`.
        order: in which an epoch reads the text.
        objective: which characters of a window are learned.
        mesh: the devices.
        schedule: the factor of the learning rate at each step, whatever came before it; see `make_schedule`.
        min_probability: see `window_losses`.

    Raises:
        ValueError: the order is of consecutive segments, but the objective reads every window from the zero state.
    """
    if order.consecutive and not targets_of(objective, order.window).consecutive:
        raise ValueError(f"{objective} reads every window from the zero state; give it ShuffledWindows")
    learner = _Learner(optimizer, schedule, order, objective, mesh, min_probability)
    everywhere, by_rows = PartitionSpec(), PartitionSpec(None, DATA)
    own_steps, each = learner.steps, everywhere
    if REPLICA in mesh.axis_names:
        own_steps, each = learner.steps_of_all, PartitionSpec(REPLICA)

    def steps(
        state: TrainingState, text: Text, key: Key | ReplicaKeys, stop: Int32[Array, "*replica"]
    ) -> TrainingState:
        arrays, structure = jax.tree.flatten(text)  # as `Batches`, whose fields are arrays, cannot hold their places
        split = [by_rows, by_rows, everywhere] if isinstance(text, Batches) else [everywhere]

        def own(state: TrainingState, arrays: list[Array], key: Key | ReplicaKeys, stop: Array) -> TrainingState:
            return own_steps(state, structure.unflatten(arrays), key, stop)

        sharded = jax.shard_map(own, mesh=mesh, in_specs=(each, split, each, each), out_specs=each, check_vma=False)
        return sharded(state, arrays, key, stop)

    return jax.jit(steps, donate_argnums=0)


@dataclass(frozen=True)
class _Learner:
    """One device's part in training, for use inside `jax.shard_map`; see `make_train_steps`."""

    optimizer: optax.GradientTransformation
    schedule: RateSchedule
    order: Order
    objective: Objective
    mesh: Mesh
    min_probability: float

    def steps_of_all(
        self, states: TrainingState, text: Text, keys: ReplicaKeys, stops: Int32[Array, " replica"]
    ) -> TrainingState:
        """Take the steps of the models on this device."""
        if len(stops) > 1:
            return jax.vmap(self.steps, in_axes=(0, None, 0, 0))(states, text, keys, stops)
        # A single model: with an additional axis, even of size 1, a CPU takes several times as long.
        state = self.steps(jax.tree.map(lambda leaf: leaf[0], states), text, keys[0], stops[0])
        return jax.tree.map(lambda leaf: leaf[None], state)

    def steps(self, state: TrainingState, text: Text, key: Key, stop: int | Int32[Array, ""]) -> TrainingState:
        """Take a model's steps until `stop`."""
        batch_size = self.order.batch_size
        rows = jnp.minimum(own_rows(batch_size, self.mesh), batch_size - 1)
        own = state._replace(carry=jax.tree.map(lambda value: value[rows], state.carry))
        own = jax.lax.while_loop(
            lambda state: (state.step < stop) & (state.skipped_in_a_row < MAX_SKIPPED),
            lambda state: self.step(state, text, key),
            own,
        )
        everyones = jax.lax.all_gather(own.carry, DATA, tiled=True)
        return own._replace(carry=jax.tree.map(lambda value: value[:batch_size], everyones))

    def step(self, state: TrainingState, text: Text, key: Key) -> TrainingState:
        """Take one step of a model."""
        order = self.order
        network, parameters = state.model.network, state.model.parameters
        rows = own_rows(order.batch_size, self.mesh)
        if isinstance(text, Batches):
            number, length = state.step - text.first, text.text_length
            batch = Batch(text.characters[number].astype(jnp.int32), text.weights[number])
        else:
            length, batch = len(text), draw_batch(order, text, key, state.step, rows)
        steps = order.steps(length)
        step = state.step % steps  # within the epoch
        trained = jnp.minimum(order.batch_size, order.windows(length) - step * order.batch_size)
        dropout = Dropout(jax.random.fold_in(fold_text(key, "dropout"), state.step), rows)
        # An epoch begins with nothing read and nothing counted.
        start, so_far = jax.tree.map(
            lambda value: jnp.where(step == 0, 0, value).astype(value.dtype), (state.carry, state.epoch)
        )

        def mean_loss(parameters: Parameters) -> tuple[Float[Array, ""], Carry]:
            model = Model(network, parameters)
            losses, carry = window_losses(model, batch, self.objective, start, dropout, self.min_probability)
            return jnp.sum(batch.weights * losses) / trained.astype(jnp.float32), carry if order.consecutive else ()

        (own_loss, carry), own_gradient = jax.value_and_grad(mean_loss, has_aux=True)(parameters)
        # Each device sees only its own rows of the carry, but all see the loss: a non-finite carry makes it non-finite.
        own_loss += sum(0.0 * jnp.sum(leaf) for leaf in jax.tree.leaves(carry))
        # As one array: the devices wait for one another once, not once per parameter.
        flat, unflatten = ravel_pytree((own_loss, own_gradient))
        loss, gradient = unflatten(jax.lax.psum(flat, DATA))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types, which the tests forbid our own code
            updates, optimizer_state = self.optimizer.update(gradient, state.optimizer_state, parameters)
        factor = self.schedule(state.step)
        updates = jax.tree.map(lambda update: state.learning_rate * (factor * update), updates)
        # A running mean: a float32 sum would lose the digits of its small terms.
        share = trained / (so_far.windows + trained)
        after = TrainingState(
            step=state.step + 1,
            model=Model(network, optax.apply_updates(parameters, updates)),
            optimizer_state=optimizer_state,
            carry=carry,
            epoch=EpochSoFar(so_far.loss + (loss - so_far.loss) * share, so_far.windows + trained, so_far.skipped),
            skipped_in_a_row=jnp.int32(0),
            learning_rate=state.learning_rate,
        )
        without = state._replace(
            step=state.step + 1,
            carry=start,
            epoch=so_far._replace(skipped=so_far.skipped + 1),
            skipped_in_a_row=state.skipped_in_a_row + 1,
        )
        finite = _all_finite(after._replace(carry=()))
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, without)


def _all_finite(state: TrainingState) -> Bool[Array, ""]:
    # By shape: each reduction is a kernel to compile and to start, and most arrays have the shape of others.
    by_shape: dict[tuple[int, ...], Bool[Array, "*shape"]] = {}
    for leaf in jax.tree.leaves(state):
        by_shape[leaf.shape] = by_shape.get(leaf.shape, True) & jnp.isfinite(leaf)
    return jnp.stack([jnp.all(finite) for finite in by_shape.values()]).all()
