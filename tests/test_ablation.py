"""Grids as evidence: intervals, costs and tables, each against another way to compute the same numbers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ttest_1samp

from charlm_jax.analysis.ablation import Interval, Outcome, by_choices, plot_outcomes, results_table, training_flops
from charlm_jax.choices import Objective
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM


def outcome(size, rate, seed, loss):
    return Outcome(
        {"hidden_size": size, "learning_rate": rate}, seed, loss, loss - 0.25, 10 * size, 60.0 * size, 3, 1e5
    )


GRID = [
    outcome(size, rate, seed, 2 - size / 100 + rate + seed / 50)
    for size in (8, 16, 32)
    for rate in (0.01, 0.03)
    for seed in (1, 2, 3)
]


def test_an_interval_is_that_of_students_t_test():
    values = [1.25, 1.5, 1.375, 1.1]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert Interval.of(values) == pytest.approx((np.mean(values), *expected))
    assert Interval.of([2.0]) == pytest.approx((2.0, math.nan, math.nan), nan_ok=True)


@pytest.mark.parametrize("options", [{}, {"layers": 2}, {"embedding_size": 32}])
def test_flops_are_those_that_the_compiler_counts(options):
    """Compare a forward step, a third of training. The compiler also counts gates and biases, which at 256 units are
    less than 3 % of the products, and the table of characters: an addition per entry, and an embedding's product.
    """
    network = CharacterLSTM(vocabulary_size=100, hidden_size=256, **options)
    parameters = initial_parameters(network, "keras", jax.random.key(0))

    def step(parameters, ids, carry):
        bound = network.bind({"params": parameters})
        carry = bound.step(ids, carry)
        return bound.predict(carry[-1].hidden), carry

    arguments = parameters, jnp.zeros(1, jnp.int32), jax.tree.map(jnp.ones_like, network.zero_carry((1,)))
    counted: Any = jax.jit(step).lower(*arguments).cost_analysis()
    table = 100 * 4 * 256 * (1 + 2 * options.get("embedding_size", 0))
    own = training_flops(network, "every-character", 60) / 3
    assert own <= counted["flops"] - table <= 1.03 * own


@pytest.mark.parametrize(("objective", "heads"), [("every-character", 1), ("last-character", 1 / 60)])
def test_the_head_is_passed_where_there_is_something_to_learn(objective: Objective, heads):
    network = CharacterLSTM(vocabulary_size=100, hidden_size=16)
    assert training_flops(network, objective, 60) == pytest.approx(6 * (4 * 16 * 16 + heads * 16 * 100))


def test_the_table_has_a_row_a_combination():
    header, rows = results_table(GRID)
    assert [row[:3] for row in rows] == [[str(s), str(r), "3"] for s in (8, 16, 32) for r in (0.01, 0.03)]
    assert [len(group) for group in by_choices(GRID)] == [3] * 6
    row = dict(zip(header, rows[1], strict=True))
    losses = [2 - 0.08 + 0.03 + seed / 50 for seed in (1, 2, 3)]
    assert float(row["held_out_loss"]) == pytest.approx(np.mean(losses), abs=1e-4)
    assert float(row["bits_per_character"]) == pytest.approx(np.mean(losses) / np.log(2), abs=1e-4)
    assert float(row["low"]) == pytest.approx(Interval.of(losses).low, abs=1e-4)
    assert (float(row["gap"]), row["parameters"], row["replicas"], row["diverged"]) == (0.25, "80", "3", "0")
    assert (row["trained_together"], row["characters_per_second_each"]) == ("3", "100000")


def test_runs_that_diverged_are_counted_and_count_for_nothing():
    lost = [Outcome(run.choices, run.seed, math.nan, math.nan, 9, 9.0, 3, math.nan) for run in GRID[:4]]
    header, rows = results_table([*lost, *GRID[4:]])
    none, some = (dict(zip(header, row, strict=True)) for row in rows[:2])
    assert (none["replicas"], none["diverged"], none["held_out_loss"], none["gap_high"]) == ("3", "3", "", "")
    losses = [2 - 0.08 + 0.03 + seed / 50 for seed in (2, 3)]
    assert (some["replicas"], some["diverged"]) == ("3", "1")
    assert float(some["low"]) == pytest.approx(Interval.of(losses).low, abs=1e-4)
    assert (none["characters_per_second_each"], some["characters_per_second_each"]) == ("", "100000")
    plot_outcomes([*lost, *GRID[4:]], title="some diverged")


def test_a_run_that_failed_is_no_divergence_and_says_why():
    nan = math.nan
    failed = [Outcome(run.choices, run.seed, nan, nan, nan, nan, 1, nan, "see jobs/log") for run in GRID]
    header, rows = results_table([failed[0], *GRID[1:]])
    row = dict(zip(header, rows[0], strict=True))
    assert (row["diverged"], row["failure"]) == ("0", "see jobs/log")
    assert {dict(zip(header, row, strict=True))["failure"] for row in rows[1:]} == {""}
    plot_outcomes(failed, title="all failed").draw_without_rendering()


@pytest.mark.parametrize(
    "grid", [GRID, GRID[:1], [Outcome({"objective": word}, 1, 2.0, 1.5, 9, 9.0, 1, math.nan) for word in "ab"]]
)
def test_any_grid_can_be_drawn(grid):
    """Numbers, a single run, or words: a mean for every combination and a dot for every run."""
    figure = plot_outcomes(grid, title="grid")
    speed = figure.axes[3]
    drawn = np.concatenate([line.get_ydata() for line in speed.lines])
    assert speed.get_ylim()[1] > 1.03 * np.nanmax(drawn), "there is room above the highest"
    loss = figure.axes[0]
    dots = sum(np.size(line.get_xdata()) for line in loss.lines if line.get_alpha() == 0.5)
    assert dots == len(grid)
    ticks = [label.get_text() for label in figure.axes[2].get_xticklabels()]
    assert ticks == list(dict.fromkeys(str(next(iter(each.choices.values()))) for each in grid))
