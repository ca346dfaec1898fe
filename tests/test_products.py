"""Matrix products of chosen precision, against NumPy in float64 on factors rounded by NumPy."""

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.data.windows import ParallelStreams
from charlm_jax.generation.generate import generate_piece, read_prompts
from charlm_jax.learning.objective import losses_along
from charlm_jax.learning.optimizer import make_optimizer
from charlm_jax.learning.training import initial_state, make_train_steps
from charlm_jax.mesh import data_mesh
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM, Model
from charlm_jax.model.products import multiply


def rounded(factor, precision):
    """Return a factor as the matrix units round it, in float64; ties go to the even neighbour."""
    if precision == "tf32":
        bits = factor.view(np.uint32).astype(np.uint64)
        factor = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~np.uint64(0x1FFF)).astype(np.uint32).view(np.float32)
    return factor.astype({"bfloat16": ml_dtypes.bfloat16}.get(precision, np.float32)).astype(np.float64)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_factors_are_rounded_and_terms_added_up_in_float32(precision):
    generator = np.random.default_rng(0)
    left, right, gradient = (
        generator.normal(size=shape).astype(np.float32) for shape in ((3, 5, 64), (64, 32), (3, 5, 32))
    )

    def expected(one, other):
        return rounded(one, precision) @ rounded(other, precision)

    factors = jnp.array(left), jnp.array(right)
    product, derivatives = jax.vjp(lambda left, right: multiply(left, right, precision), *factors)
    assert product.dtype == jnp.float32
    rows, terms = left.reshape(-1, 64), gradient.reshape(-1, 32)
    by_left, by_right = derivatives(jnp.array(gradient))
    for ours, theirs in [
        (product, expected(left, right)),
        (by_left, expected(gradient, np.ascontiguousarray(right.T))),
        (by_right, expected(np.ascontiguousarray(rows.T), terms)),
    ]:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    if precision != "float32":
        coarser = np.abs(product - left.astype(np.float64) @ right).max()
        assert coarser > {"tf32": 5e-4, "bfloat16": 5e-3}[precision], "it is rounded at all"


FACTORS = {
    "float32": r"precision = \[HIGHEST, HIGHEST\] .*: \(tensor<[\dx]*f32>, tensor<[\dx]*f32>\) -> tensor<[\dx]*f32>",
    "tf32": r"precision = \[HIGH, HIGH\] .*: \(tensor<[\dx]*f32>, tensor<[\dx]*f32>\) -> tensor<[\dx]*f32>",
    "bfloat16": r".*: \(tensor<[\dx]*bf16>, tensor<[\dx]*bf16>\) -> tensor<[\dx]*f32>",
}


@pytest.mark.parametrize("precision", FACTORS)
def test_every_product_of_training_and_sampling_asks_an_accelerator_for_it(precision):
    network = CharacterLSTM(11, hidden_size=8, layers=2, embedding_size=5, precision=precision)
    mesh, optimizer, order = data_mesh(jax.devices()[:1]), make_optimizer("adam"), ParallelStreams(10, batch_size=4)
    parameters = initial_parameters(network, "keras", jax.random.key(0))
    state = initial_state(Model(network, parameters), optimizer, order, mesh, learning_rate=0.01)
    ids, key, keys = jnp.zeros(200, jnp.uint8), jax.random.key(1), jax.random.split(jax.random.key(2), 2)
    prompts, lengths = jnp.zeros((2, 10), jnp.int32), jnp.array([10, 3])
    sampling = read_prompts(Model(network, parameters), prompts, lengths, sampler="windowed", window=10)
    train_steps: Any = make_train_steps(optimizer, order, "every-character", mesh)
    programs = [
        train_steps.trace(state, ids, key, 5),
        jax.jit(lambda ids: losses_along(Model(network, parameters), ids)).trace(prompts),
        read_prompts.trace(Model(network, parameters), prompts, lengths, sampler="windowed", window=10),
        jax.jit(lambda keys: generate_piece(Model(network, parameters), sampling, jnp.ones(2), keys, length=4)).trace(
            keys
        ),
    ]
    for program, platform in itertools.product(programs, ["cuda", "tpu"]):
        text = program.lower(lowering_platforms=(platform,)).as_text()
        products = re.findall(r"stablehlo.dot_general .*", text)
        assert products
        # A GPU sums the gradients of each of the 11 characters by a float32 product with one-hot ids: see `_rows`.
        sums = [product for product in products if "(tensor<11x40x" in product]
        assert len(sums) == (program is programs[0] and platform == "cuda")
        assert all(re.search(FACTORS["float32"], product) for product in sums)
        products = [product for product in products if product not in sums]
        assert [product for product in products if not re.search(FACTORS[precision], product)] == []


@pytest.mark.parametrize(("precision", "least"), [("tf32", 0.0), ("bfloat16", 1e-5)])
def test_training_in_less_precision_stays_near(precision, least, small_text):
    """After 96 steps the mean loss has moved, but by less than 0.01 nats, and parameters are still float32."""
    vocabulary = Vocabulary.of(small_text)
    mesh, optimizer, order = data_mesh(jax.devices()[:1]), make_optimizer("adam"), ParallelStreams(10, batch_size=4)
    ids, key, losses = jnp.array(vocabulary.encode(small_text)), jax.random.key(1), {}
    for chosen in ("float32", precision):
        network = CharacterLSTM(len(vocabulary), hidden_size=16, precision=chosen)
        parameters = initial_parameters(network, "keras", jax.random.key(0))
        state = initial_state(Model(network, parameters), optimizer, order, mesh, learning_rate=0.01)
        state = make_train_steps(optimizer, order, "every-character", mesh)(state, ids, key, 96)
        assert {leaf.dtype for leaf in jax.tree.leaves(state.model)} == {jnp.dtype(jnp.float32)}
        losses[chosen] = float(state.epoch.loss)
    assert least < abs(losses[precision] - losses["float32"]) < 0.01
