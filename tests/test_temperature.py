import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import notebook_distribution

from charlm_jax.generation.temperature import draw_character, keep_top_k, keep_top_p, reweight

LOGITS = jnp.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.9, -8.0])


def softmax(logits):
    return np.asarray(jax.nn.softmax(logits))


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0, 1.2, 2.0, 10.0])
def test_reweighting_is_the_notebooks(temperature):
    ours = softmax(reweight(LOGITS, jnp.float32(temperature)))
    np.testing.assert_allclose(ours, notebook_distribution(LOGITS, temperature), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-4])
def test_towards_zero_it_is_greedy(temperature):
    np.testing.assert_array_equal(softmax(reweight(LOGITS, jnp.float32(temperature))), np.arange(8) == 0)


@pytest.mark.parametrize("temperature", [1e6, 1e30, np.inf])
def test_towards_infinity_it_is_uniform(temperature):
    np.testing.assert_allclose(softmax(reweight(LOGITS, jnp.float32(temperature))), 1 / 8, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1.0, 1e30])
def test_extreme_logits_stay_finite_probabilities(temperature):
    probabilities = softmax(reweight(jnp.array([3e38, -3e38, 0.0, 1e30]), jnp.float32(temperature)))
    assert np.isfinite(probabilities).all()
    assert probabilities.sum() == pytest.approx(1)


def test_zero_shares_the_mass_among_equals_and_draws_the_first():
    tied = jnp.array([1.0, 3.0, 3.0, 0.0])
    np.testing.assert_array_equal(softmax(reweight(tied, jnp.float32(0))), [0, 0.5, 0.5, 0])
    assert int(draw_character(tied, jnp.float32(0), jnp.float32(0.9))) == 1


def brute_force_top_p(probabilities, p):
    """Return the likeliest characters that together hold p of the mass, added one by one."""
    kept, mass = set(), 0.0
    for character in np.argsort(-probabilities):
        kept.add(int(character))
        mass += probabilities[character]
        if mass >= p:
            return kept
    return kept


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.72, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_that_holds_its_share(p):
    kept = set(np.flatnonzero(keep_top_p(LOGITS, p)).tolist())
    assert kept == brute_force_top_p(np.asarray(softmax(LOGITS), np.float64), p)


@pytest.mark.parametrize("k", [1, 2, 5, 8, 100, 2**40])
def test_top_k_keeps_the_k_likeliest(k):
    kept = set(np.flatnonzero(keep_top_k(LOGITS, k)).tolist())
    assert kept == set(np.argsort(-LOGITS)[:k].tolist())


def test_truncation_at_its_limits():
    halves = jnp.log(jnp.array([0.25, 0.5, 0.25]))
    np.testing.assert_array_equal(keep_top_p(halves, 0.5), [False, True, False])
    np.testing.assert_array_equal(keep_top_p(halves, 0.75), [True, True, False])
    equal = jnp.zeros(10)
    assert int(keep_top_p(equal, 0.45).sum()) == 5
    np.testing.assert_array_equal(np.flatnonzero(keep_top_k(equal, 3)), [0, 1, 2])
    many = jnp.asarray(np.random.default_rng(0).normal(size=5000), jnp.float32)
    assert keep_top_p(many, 1.0).all()
    assert int(keep_top_p(many, 1e-50).sum()) == 1
    # Rounding makes all characters equal at this temperature, yet the likeliest one is kept.
    assert set(np.asarray(draws(100, 1e30, top_k=1)).nonzero()[0].tolist()) == {0}


def draws(count, temperature, **options):
    uniforms = jax.random.uniform(jax.random.key(3), count)
    draw = jax.jit(jax.vmap(lambda uniform: draw_character(LOGITS, jnp.float32(temperature), uniform, **options)))
    return np.bincount(np.asarray(draw(uniforms)), minlength=8)


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0, 1.2, 2.0])
def test_frequencies_are_those_of_the_notebooks_distribution(temperature):
    """Chi-squared of 200,000 draws over the characters expected at least five times: at most 7 degrees of freedom.

    If the distributions are equal, it exceeds 45 with a probability below 2e-7. Against a temperature that is a quarter
    off, it is above 450.
    """
    count = 200_000
    seen, expected = draws(count, temperature), count * notebook_distribution(LOGITS, temperature)
    common = expected >= 5
    assert ((seen - expected) ** 2 / expected)[common].sum() < 45
    assert seen[~common].sum() <= 40
    other = count * notebook_distribution(LOGITS, temperature * 1.25)
    assert ((seen - other) ** 2 / other)[common].sum() > 450


def test_truncated_draws_stay_inside_and_keep_their_proportions():
    seen = draws(100_000, 1.0, top_k=3)
    kept = np.sort(np.argsort(-LOGITS)[:3])
    assert set(np.flatnonzero(seen)) == set(kept.tolist())
    expected = softmax(LOGITS)[kept] / softmax(LOGITS)[kept].sum()
    np.testing.assert_allclose(seen[kept] / 100_000, expected, atol=0.01)
    # The temperature comes first: at 0.2 the two likeliest hold nine tenths of the mass, at 1 they do not.
    assert len(np.flatnonzero(draws(10_000, 0.2, top_p=0.9))) == 2
    assert len(np.flatnonzero(draws(10_000, 1.0, top_p=0.9))) > 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_draw_inverts_the_cumulative_distribution(temperature):
    """Against float64, at uniform numbers that rounding does not move across a step."""
    cumulative = np.cumsum(notebook_distribution(LOGITS, temperature))
    uniforms = np.random.default_rng(0).random(2000)
    uniforms = uniforms[np.abs(uniforms[:, None] - cumulative).min(axis=1) > 1e-6].astype(np.float32)
    draw = jax.vmap(lambda uniform: draw_character(LOGITS, jnp.float32(temperature), uniform))
    np.testing.assert_array_equal(draw(jnp.asarray(uniforms)), np.searchsorted(cumulative, uniforms, side="right"))


def test_no_number_draws_a_character_without_probability():
    """At both ends of the range, where all characters but two in the middle are impossible."""
    for size in (3, 57, 5000):
        logits = jnp.full(size, -jnp.inf).at[size // 2].set(1.0).at[size // 2 + 1].set(0.5)
        for uniform, expected in [(0.0, size // 2), (1 - 2**-23, size // 2 + 1), (1 - 2**-24, size // 2 + 1)]:
            assert int(draw_character(logits, jnp.float32(1), jnp.float32(uniform))) == expected
