"""Training steps against Keras and Flax, and what the compiled program promises."""

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from oracles import keras_cell, lenient_jax

from charlm_jax.choices import Objective, OptimizerName
from charlm_jax.data.host_windows import read_batches
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.data.windows import Order, ParallelStreams, ShuffledWindows, draw_batch
from charlm_jax.keys import fold_text
from charlm_jax.learning.evaluation import evaluate, loss_by_position
from charlm_jax.learning.objective import last_losses, losses_along
from charlm_jax.learning.optimizer import make_optimizer, make_schedule
from charlm_jax.learning.training import MAX_SKIPPED, Batches, initial_state, make_train_steps
from charlm_jax.mesh import data_mesh, local_rows, replica_mesh, replicate, split_columns
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM, Dropout, Model

KEY = jax.random.key(7)
MESH = data_mesh()
ORDER = ShuffledWindows(20, stride=3, batch_size=16)
CONSTANT = make_schedule("constant")


def encode(text):
    vocabulary = Vocabulary.of(text)
    return replicate(jnp.array(vocabulary.encode(text)), MESH), len(vocabulary)


def start(
    ids,
    vocabulary_size,
    *,
    rule: OptimizerName = "rmsprop-keras-2",
    rate=0.01,
    order: Order = ORDER,
    objective: Objective = "last-character",
    hidden=16,
    mesh=MESH,
    schedule=CONSTANT,
    **options,
):
    """Return the train steps and a function that makes the first state, which training donates."""
    network = CharacterLSTM(vocabulary_size, hidden_size=hidden, **options)
    optimizer = make_optimizer(rule)
    train_steps = make_train_steps(optimizer, order, objective, mesh, schedule=schedule)

    def first():
        model = Model(network, initial_parameters(network, "keras", KEY))
        return initial_state(model, optimizer, order, mesh, learning_rate=rate)

    return train_steps, first


def characters_of(order, ids, step):
    """Return all rows of a step's batch: windows, each with the character after it."""
    return draw_batch(order, ids, KEY, jnp.int32(step), jnp.arange(order.batch_size, dtype=jnp.int32)).characters


def equal(one, other):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def notebook_text():
    """Return eight thousand characters, 57 of them distinct, with structure to learn."""
    random = np.random.default_rng(0)
    alphabet = [chr(65 + n) for n in range(57)]
    words = ["".join(random.choice(alphabet, 5)) for _ in range(60)]
    return "".join(alphabet) + "".join(random.choice(words, 1600))


class KerasTwoRMSprop(keras.optimizers.Optimizer):
    """RMSprop as in tf.keras 2 and Keras 2: epsilon is added to the root."""

    def build(self, variables):
        super().build(variables)
        self.squares = self.add_optimizer_variables(variables, "square")

    def update_step(self, gradient, variable, learning_rate):
        square = self.squares[self._get_variable_index(variable)]
        self.assign(square, 0.9 * square + 0.1 * gradient * gradient)
        self.assign_sub(variable, learning_rate * gradient / (keras.ops.sqrt(square) + 1e-7))


def keras_losses(parameters, batches, optimizer):
    """Train the notebooks' Keras model on given batches; return its losses and weights."""
    size = parameters["head"]["bias"].shape[0]
    window, hidden = batches[0].shape[1] - 1, parameters["lstm_0"]["hf"]["bias"].shape[0]
    model = keras.Sequential(
        [
            keras.layers.Input((window, size)),
            keras.layers.LSTM(hidden),
            keras.layers.Dense(size, activation="softmax"),
        ]
    )
    head = [np.asarray(parameters["head"]["kernel"]), np.asarray(parameters["head"]["bias"])]
    model.set_weights([*keras_cell(parameters["lstm_0"]), *head])
    model.compile(loss="categorical_crossentropy", optimizer=optimizer)
    one_hot = np.eye(size, dtype=np.float32)
    losses = [float(model.train_on_batch(one_hot[batch[:, :-1]], one_hot[batch[:, -1]])) for batch in batches]
    return np.array(losses), model.get_weights()


def flax_losses(parameters, batches, root):
    """Train Flax's cell at the notebooks' rate, by automatic differentiation and the textbook's RMSprop."""
    rnn = nn.RNN(nn.LSTMCell(128, param_dtype=float))

    @jax.jit
    @jax.value_and_grad
    def loss(parameters, inputs, targets):
        one_hot = jnp.eye(57)
        hidden = cast(jax.Array, rnn.apply({"params": {"cell": parameters["lstm_0"]}}, one_hot[inputs]))
        logits = hidden[:, -1] @ parameters["head"]["kernel"] + parameters["head"]["bias"]
        return -jnp.mean(jnp.sum(one_hot[targets] * jax.nn.log_softmax(logits), axis=-1))

    rate = float(np.float32(0.01))  # as training states hold it
    losses, squares = [], jax.tree.map(jnp.zeros_like, parameters)
    for batch in batches:
        value, gradient = loss(parameters, batch[:, :-1], batch[:, -1])
        squares = jax.tree.map(lambda square, slope: 0.9 * square + 0.1 * slope**2, squares, gradient)
        parameters = jax.tree.map(
            lambda old, slope, square: old - rate * slope / root(square), parameters, gradient, squares
        )
        losses.append(float(value))
    return np.array(losses), [*keras_cell(parameters["lstm_0"]), *map(parameters["head"].get, ("kernel", "bias"))]


def fifty_steps(rule, rate, dtype, oracle):
    """Train the notebooks' model and an oracle from the same parameters on the same 50 batches of 32 windows.

    Returns the largest relative difference of a loss and the largest difference of a parameter.
    """
    ids, size = encode(notebook_text())
    assert size == 57
    order = ShuffledWindows(60, stride=3, batch_size=32)
    batches = [characters_of(order, ids, step) for step in range(50)]
    train_steps, first = start(ids, size, rule=rule, rate=rate, order=order, hidden=128)

    def in_precision(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    state = replicate(jax.tree.map(in_precision, first()), MESH)
    their_losses, theirs = oracle(jax.tree.map(np.asarray, state.model.parameters), batches)
    losses = []
    for stop in range(1, 51):
        state = train_steps(state._replace(epoch=jax.tree.map(jnp.zeros_like, state.epoch)), ids, KEY, jnp.int32(stop))
        assert not int(state.skipped_in_a_row)
        losses.append(float(state.epoch.loss))
    ours = state.model.parameters
    ours = [*keras_cell(ours["lstm_0"]), ours["head"]["kernel"], ours["head"]["bias"]]
    distances = [np.abs(mine - weight).max() for mine, weight in zip(ours, theirs, strict=True)]
    return np.abs(losses / their_losses - 1).max(), max(distances)


RULES = [
    ("rmsprop-keras-2", "rmsprop-keras-3", KerasTwoRMSprop, lambda square: jnp.sqrt(square) + 1e-7),
    ("rmsprop-keras-3", "rmsprop-keras-2", keras.optimizers.RMSprop, lambda square: jnp.sqrt(square + 1e-7)),
]


@pytest.mark.parametrize(("rule", "other", "theirs", "root"), RULES)
def test_fifty_rmsprop_steps_equal_keras(rule, other, theirs, root):
    """At a tenth of the notebooks' rate: losses to 1e-5 relative, parameters to 1e-4, where updates add up to 0.03.

    RMSprop divides even tiny gradients by their own size, so at the rate of 0.01 rounding errors grow from step to
    step. Epsilon in the other place exceeds both tolerances.
    """

    def oracle(parameters, batches):
        with lenient_jax():
            return keras_losses(parameters, batches, theirs(0.001))

    losses, parameters = fifty_steps(rule, 0.001, np.float32, oracle)
    assert losses < 1e-5
    assert parameters < 1e-4
    losses, parameters = fifty_steps(other, 0.001, np.float32, oracle)
    assert losses > 1e-3
    assert parameters > 1e-3


@pytest.mark.parametrize(("rule", "other", "theirs", "root"), RULES)
def test_fifty_rmsprop_steps_at_the_notebooks_rate_equal_flax(rule, other, theirs, root):
    """In float64, where rounding errors of 1e-16 have no time to grow; updates add up to 0.3."""
    with jax.enable_x64(True), lenient_jax():
        oracle = functools.partial(flax_losses, root=root)
        losses, parameters = fifty_steps(rule, 0.01, np.float64, oracle)
        assert losses < 1e-9
        assert parameters < 1e-9


def test_any_number_of_steps_is_the_same_program_and_the_same_result(small_text):
    ids, size = encode(small_text)
    train_steps, first = start(ids, size)
    whole = train_steps(first(), ids, KEY, 30)
    state = first()
    for stop in (1, 2, 9, 30):
        state = train_steps(state, ids, KEY, stop)
    assert equal(state, whole)
    compiled: Any = train_steps
    assert compiled._cache_size() == 1, "the program was compiled more than once"


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_devices_share_a_batch(small_text, devices):
    """However many share each batch of 16, ten steps equal those of one device, up to the order of sums."""
    ids, size = encode(small_text)

    def train(devices):
        mesh = data_mesh(jax.devices()[:devices])
        train_steps, first = start(ids, size, rate=0.001, mesh=mesh, dropout=0.3, weight_dropout=0.2)
        return train_steps(first(), replicate(ids, mesh), KEY, 10)

    alone, together = train(1), train(devices)
    assert equal(together, train(devices))
    for one, another in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-4, atol=1e-6)
        assert len(one.sharding.device_set) == devices


STREAMS = ParallelStreams(7, batch_size=5)


TOGETHER = {"layers": 2, "dropout": 0.3, "weight_dropout": 0.2}
SEEDS = [(jax.random.key(seed), 0.001 * (seed + 1), 10 - 3 * seed) for seed in range(4)]  # with its rate and last step


@functools.cache
def trained_alone(text, order, number):
    """Return one of SEEDS after at most two steps, and at its end."""
    ids, size = encode(text)
    key, rate, stop = SEEDS[number]
    train_steps, first = start(ids, size, rate=rate, order=order, objective=objective_of(order), **TOGETHER)
    return [jax.tree.map(np.asarray, train_steps(first(), ids, key, last)) for last in (min(2, stop), stop)]


def objective_of(order) -> Objective:
    return "every-character" if order.consecutive else "last-character"


@pytest.mark.parametrize("replicas", [1, 2, 3, 4])
@pytest.mark.parametrize("order", [ORDER, STREAMS])
def test_models_that_are_trained_together_are_what_they_are_alone(small_text, order, replicas):
    """Each resumes with its own seed, rate and stop, on two devices that split the models, the batches, or both.

    The tolerance of 1e-5 nats is for a float32 loss of ten steps, summed in another order.
    """
    ids, _ = encode(small_text)
    begun, alone = zip(*[trained_alone(small_text, order, number) for number in range(replicas)], strict=True)
    mesh = replica_mesh(jax.devices()[:2], replicas)
    train_together = make_train_steps(make_optimizer("rmsprop-keras-2"), order, objective_of(order), mesh)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *begun)
    keys, _, stops = zip(*SEEDS[:replicas], strict=True)
    together = train_together(states, replicate(ids, mesh), jnp.stack(keys), jnp.array(stops))
    for number, state in enumerate(alone):
        mine = jax.tree.map(lambda leaf: leaf[number], together)  # noqa: B023
        assert int(mine.step) == int(state.step)
        assert float(mine.epoch.loss) == pytest.approx(float(state.epoch.loss), abs=1e-5)
        for one, another in zip(jax.tree.leaves(mine), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(one, another, rtol=1e-3, atol=1e-5)


def flax_stream_losses(parameters, batches, steps):
    """Train Flax's cell on every character by automatic differentiation and Adam, keeping the carry between batches."""
    rnn: Any = nn.RNN(nn.LSTMCell(16), return_carry=True)
    adam = optax.adam(0.01)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(parameters, carry, batch):
        one_hot = jnp.eye(parameters["head"]["bias"].shape[0])
        carry, hidden = rnn.apply(
            {"params": {"cell": parameters["lstm_0"]}}, one_hot[batch[:, :-1]], initial_carry=carry
        )
        logits = hidden @ parameters["head"]["kernel"] + parameters["head"]["bias"]
        return -jnp.mean(jnp.sum(one_hot[batch[:, 1:]] * jax.nn.log_softmax(logits), axis=-1)), carry

    losses, carry, state = [], None, adam.init(parameters)
    for number, batch in enumerate(batches):
        if number % steps == 0:
            carry = (jnp.zeros((5, 16)), jnp.zeros((5, 16)))
        (value, carry), gradient = loss(parameters, carry, batch)
        updates, state = adam.update(gradient, state)
        parameters = optax.apply_updates(parameters, updates)
        losses.append(float(value))
    return losses, parameters


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_every_character_with_the_carry_kept_equals_flax(small_text, devices):
    """Over an epoch and a half, first in dispatches of three steps, on five streams, which no two devices divide."""
    ids, size = encode(small_text)
    mesh = data_mesh(jax.devices()[:devices])
    steps = STREAMS.steps(len(ids))
    assert 20 < steps < 40
    train_steps, first = start(ids, size, rule="adam", order=STREAMS, objective="every-character", mesh=mesh)
    batches = [characters_of(STREAMS, ids, step) for step in range(steps + 15)]
    state, shared = first(), replicate(ids, mesh)
    with lenient_jax():
        start_on_host, batches_on_host = jax.tree.map(np.asarray, (state.model.parameters, batches))
        expected, parameters = flax_stream_losses(start_on_host, batches_on_host, steps)
    for stop in (*range(3, steps, 3), steps):
        state = train_steps(state, shared, KEY, stop)
    assert float(state.epoch.loss) == pytest.approx(np.mean(expected[:steps]), rel=1e-5)
    state = train_steps(state, shared, KEY, steps + 15)
    assert float(state.epoch.loss) == pytest.approx(np.mean(expected[steps:]), rel=1e-5)
    for mine, theirs in zip(jax.tree.leaves(state.model.parameters), jax.tree.leaves(parameters), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5)
    assert all(leaf.shape == (5, 16) for leaf in jax.tree.leaves(state.carry))


def test_kept_carries_go_on_over_another_number_of_devices(small_text):
    """Five rows on two devices, then on three, equal those on two throughout, up to the order of sums."""
    ids, size = encode(small_text)

    def train(state, devices, stop):
        mesh = data_mesh(jax.devices()[:devices])
        train_steps, first = start(ids, size, rate=0.001, order=STREAMS, objective="every-character", mesh=mesh)
        state = first() if state is None else replicate(jax.tree.map(np.asarray, state), mesh)
        return train_steps(state, replicate(ids, mesh), KEY, stop)

    moved, stayed = train(train(None, 2, 8), 3, 14), train(train(None, 2, 8), 2, 14)
    for one, another in zip(jax.tree.leaves(moved), jax.tree.leaves(stayed), strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-4, atol=1e-5)
    assert np.abs(moved.carry[0].hidden).max(axis=1).min() > 0, "every row has read something"


def test_consecutive_segments_whose_carry_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match="give it ShuffledWindows"):
        start(jnp.arange(9), 9, order=STREAMS)


def test_fresh_carries_learn_from_every_character_of_shuffled_windows(small_text):
    """Without learning, the mean loss of an epoch is the mean over all positions of its windows."""
    ids, size = encode(small_text)
    train_steps, first = start(ids, size, rate=1e-30, objective="every-character")
    state = train_steps(first(), ids, KEY, ORDER.steps(len(ids)))
    along = loss_by_position(state.model, ids, MESH, window=20, stride=3)
    assert float(state.epoch.loss) == pytest.approx(along.mean(), rel=1e-5)
    assert state.carry == ()


def test_the_last_smaller_batch_is_trained_on_exactly(small_text):
    """With a batch as large as the epoch, one step sees every window once, whatever the padding."""
    ids, size = encode(small_text)
    count = ORDER.windows(len(ids))
    results = []
    for batch_size in (count, count + 100):
        order = ShuffledWindows(20, stride=3, batch_size=batch_size)
        train_steps, first = start(ids, size, order=order)
        state = train_steps(first(), ids, KEY, 1)
        results.append(state)
        assert order.steps(len(ids)) == 1
    assert float(results[0].epoch.loss) == pytest.approx(float(results[1].epoch.loss), rel=1e-6)
    assert float(results[0].epoch.loss) == pytest.approx(np.log(size), rel=0.02)


def test_the_epoch_loss_is_the_mean_over_its_windows(small_text):
    """Without learning, the mean loss of an epoch is the evaluation of the same windows."""
    ids, size = encode(small_text)
    train_steps, first = start(ids, size, rate=1e-30)
    steps = ORDER.steps(len(ids))
    for epochs in (1, 2):
        state = train_steps(first(), ids, KEY, epochs * steps)
        expected = evaluate(state.model, ids, MESH, window=20, stride=3)
        assert float(state.epoch.loss) == pytest.approx(expected.loss_nats, rel=1e-5)


def test_a_step_to_the_non_finite_is_skipped_and_counted(small_text):
    """With non-finite parameters, steps change neither the epoch's loss nor the optimizer; healed, training goes on."""
    ids, size = encode(small_text)
    train_steps, first = start(ids, size)
    state = train_steps(first(), ids, KEY, 3)
    assert (int(state.epoch.skipped), int(state.skipped_in_a_row)) == (0, 0)
    before = jax.tree.map(np.asarray, state)
    sound, head = state.model, state.model.parameters["head"]
    poisoned = {**sound.parameters, "head": {**head, "kernel": head["kernel"] * jnp.float32(1e38) * jnp.float32(1e3)}}
    after = train_steps(replicate(state._replace(model=Model(sound.network, poisoned)), MESH), ids, KEY, 5)
    assert (int(after.step), int(after.epoch.skipped), int(after.skipped_in_a_row)) == (5, 2, 2)
    assert (float(after.epoch.loss), int(after.epoch.windows)) == (float(before.epoch.loss), int(before.epoch.windows))
    assert equal(after.optimizer_state, before.optimizer_state)

    healed = train_steps(replicate(after._replace(model=before.model), MESH), ids, KEY, 7)
    assert (int(healed.epoch.skipped), int(healed.skipped_in_a_row)) == (2, 0)
    assert int(healed.epoch.windows) == 5 * ORDER.batch_size
    steps = ORDER.steps(len(ids))
    healed = train_steps(healed, ids, KEY, steps + 1)
    assert (int(healed.epoch.skipped), int(healed.epoch.windows)) == (0, ORDER.batch_size), "an epoch counts anew"


def test_a_step_is_skipped_whichever_array_is_not_finite(small_text):
    """Of the optimizer's, too: an infinite mean square makes an update of zero, and a loss that looks sound."""
    ids, size = encode(small_text)
    train_steps, first = start(ids, size)
    leaves, structure = jax.tree.flatten((first().model.parameters, first().optimizer_state))
    for number, leaf in enumerate(leaves):
        spoilt = leaf.at[(0,) * leaf.ndim].set(jnp.inf)
        parameters, optimizer_state = structure.unflatten([*leaves[:number], spoilt, *leaves[number + 1 :]])
        state = first()
        state = state._replace(model=Model(state.model.network, parameters), optimizer_state=optimizer_state)
        after = train_steps(replicate(jax.tree.map(jnp.copy, state), MESH), ids, KEY, 1)
        assert (int(after.step), int(after.epoch.skipped)) == (1, 1), f"leaf {number} of {len(leaves)}"


def test_steps_that_fail_in_a_row_end_it_with_the_last_good_state(small_text):
    ids, size = encode(small_text)
    train_steps, first = start(ids, size, rule="adam", rate=1e38)
    state = train_steps(first(), ids, KEY, 100)
    assert state.diverged
    assert int(state.skipped_in_a_row) == MAX_SKIPPED <= int(state.step) < 100
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_the_schedule_goes_by_the_step_whatever_came_before(small_text):
    """An update at step 6 has the size of step 6 although the optimizer has seen none: they were skipped, or undone."""
    ids, size = encode(small_text)
    schedule = make_schedule("cosine", warmup=2, steps=8)

    def after(step, rate, schedule):
        train_steps, first = start(ids, size, rate=rate, schedule=schedule)
        state = first()._replace(step=jnp.int32(step))
        return train_steps(replicate(state, MESH), ids, KEY, step + 1).model.parameters

    for step, factor in (0, 0.0), (1, 0.5), (6, 0.25):
        scheduled, by_hand = after(step, 0.01, schedule), after(step, 0.01 * factor, CONSTANT)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-7), scheduled, by_hand)


def test_dropout_is_drawn_anew_at_every_step(small_text):
    """Without learning, the mean loss after one and two steps is that of losses under each step's own key."""
    ids, size = encode(small_text)
    train_steps, first = start(ids, size, layers=2, dropout=0.5, rate=1e-30)
    model = first().model

    def loss(step, key_step):
        characters = characters_of(ORDER, ids, step)
        dropout = Dropout(jax.random.fold_in(fold_text(KEY, "dropout"), key_step), jnp.arange(16))
        return float(losses_along(model, characters, dropout=dropout, count=1)[0].mean())

    one, two = (float(train_steps(first(), ids, KEY, stop).epoch.loss) for stop in (1, 2))
    assert one == pytest.approx(loss(0, 0), rel=1e-6)
    assert two == pytest.approx((loss(0, 0) + loss(1, 1)) / 2, rel=2e-6)
    assert two != pytest.approx((loss(0, 0) + loss(1, 0)) / 2, rel=2e-6)


def test_a_model_that_is_trained_stays_as_it_was(small_text):
    """Training donates its states, never the caller's arrays, even where these lie on the mesh and need not move."""
    ids, size = encode(small_text)
    network, optimizer = CharacterLSTM(size, 16), make_optimizer("adam")
    model = replicate(Model(network, initial_parameters(network, "keras", KEY)), MESH)
    before = jax.tree.map(jnp.copy, model)  # a view of NumPy's would keep the arrays from being donated
    state = initial_state(model, optimizer, ORDER, MESH, learning_rate=0.01)
    make_train_steps(optimizer, ORDER, "last-character", MESH)(state, ids, KEY, 3)
    assert equal(model, before)


def test_every_step_learns_from_its_own_batch(small_text):
    """The loss of the second epoch's first step is that of its own batch, not of another epoch's first."""
    ids, size = encode(small_text)
    train_steps, first = start(ids, size)
    steps = ORDER.steps(len(ids))
    state = train_steps(first(), ids, KEY, steps)
    model = jax.tree.map(jnp.copy, state.model)
    state = train_steps(state, ids, KEY, steps + 1)
    for epoch in (0, 1, 2):
        expected = last_losses(model, characters_of(ORDER, ids, epoch * steps)).mean()
        assert (float(state.epoch.loss) == pytest.approx(float(expected), rel=1e-5)) is (epoch == 1)


def test_a_source_of_known_entropy_is_learned_and_never_beaten():
    """A Markov chain over four characters: the loss on fresh text approaches its entropy rate from above.

    A model can beat the true conditional probabilities on the same text only by chance. Its advantage is a sum of
    independent terms, so with one beyond five standard errors it must have seen the target.
    """
    random = np.random.default_rng(0)
    transitions = np.array(
        [[0.7, 0.1, 0.1, 0.1], [0.05, 0.05, 0.85, 0.05], [0.25, 0.25, 0.25, 0.25], [0.0, 0.5, 0.0, 0.5]]
    )
    chain = [0]
    for _ in range(40_000):
        chain.append(int(random.choice(4, p=transitions[chain[-1]])))
    chain = np.array(chain, np.uint8)
    stationary = np.linalg.matrix_power(transitions, 200)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        surprisal = -np.log(transitions)
        entropy_rate = np.nansum(stationary[:, None] * transitions * np.where(transitions > 0, surprisal, 0))

    training, fresh = jnp.array(chain[:30_000]), jnp.array(chain[30_000:])
    train_steps, first = start(training, 4, rule="adam", order=ShuffledWindows(8, stride=1, batch_size=128))
    state = train_steps(first(), training, KEY, 700)
    result = evaluate(state.model, fresh, MESH, window=8, stride=1)

    scored, before = chain[30_008:], chain[30_007:-1]
    true_loss = surprisal[before, scored]
    assert result.characters == len(scored)
    assert true_loss.mean() == pytest.approx(entropy_rate, rel=0.05)
    excess_bits = (result.loss_nats - true_loss.mean()) / np.log(2)
    assert excess_bits < 0.02
    assert excess_bits > -5 * true_loss.std() / np.log(2) / len(scored) ** 0.5


def test_memory_does_not_grow_with_the_windows():
    """Compare the temporary memory for a million windows with that for ten thousand of the same text."""
    ids = jax.ShapeDtypeStruct((1_000_000,), np.uint8)

    def temporary_bytes(stride):
        train_steps, first = start(ids, 57, order=ShuffledWindows(20, stride, batch_size=16))
        compiled: Any = train_steps
        return compiled.lower(first(), ids, KEY, 5).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(1) <= temporary_bytes(100) + 1000


@pytest.mark.parametrize(
    ("order", "objective"),
    [
        (ORDER, "last-character"),
        (ORDER, "every-character"),
        (ParallelStreams(20, batch_size=16), "every-character"),
    ],
)
def test_batches_read_on_the_host_teach_what_the_text_on_the_devices_does(small_text, order, objective):
    """Bit for bit, over three epochs, with dispatches that end within pieces; the devices do not divide the batch."""
    ids, size = encode(small_text)
    steps, first = start(ids, size, order=order, objective=objective, dropout=0.2)
    end = 3 * order.steps(len(ids))
    expected = steps(first(), ids, KEY, end)
    state, rows = first(), local_rows(order.batch_size, MESH)
    assert len(rows) == 18
    for step in range(0, end, 7):
        characters, weights = read_batches(np.asarray(ids), order, KEY, np.arange(step, step + 7), rows)
        batches = split_columns(characters, MESH), split_columns(weights, MESH), replicate(jnp.int32(step), MESH)
        for stop in (step + 2, step + 7):
            state = steps(state, Batches(*batches, len(ids)), KEY, min(stop, end))
    assert int(state.step) == end
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    compiled: Any = steps
    assert compiled._cache_size() == 2, "one program for a text, one for its batches"
