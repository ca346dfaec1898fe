"""Temperature sweeps: intervals against resampling by hand, verdicts on sweeps with known answers."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from charlm_jax.analysis.calibration import Calibration
from charlm_jax.analysis.temperature_page import plot_sweep, sweep_page, sweep_table
from charlm_jax.analysis.temperature_sweep import MEASURES, Sweep, estimate, verdicts

TEMPERATURES = np.array([0.2, 0.5, 0.8, 1.0, 1.2])
RANDOM = np.random.default_rng(0)


def sweep_of(means, human=0.5, noise=0.01, prompts=20):
    """Return a sweep in which every measure has these means, one per temperature."""
    samples = {name: np.array(means)[:, None] + noise * RANDOM.normal(size=(5, prompts)) for name in MEASURES}
    return Sweep(TEMPERATURES, samples, {name: human + noise * RANDOM.normal(size=prompts) for name in MEASURES})


def test_intervals_are_those_of_means_resampled_by_hand():
    """Percentiles of 20,000 other resamples differ by at most a twentieth of the interval's width."""
    values = RANDOM.exponential(size=(2, 30))
    mean, low, high = estimate(values)
    means = values[:, RANDOM.integers(0, 30, (20_000, 30))].mean(axis=2)
    np.testing.assert_allclose(mean, values.mean(axis=1))
    width = np.percentile(means, 97.5, axis=1) - np.percentile(means, 2.5, axis=1)
    assert (np.abs(low - np.percentile(means, 2.5, axis=1)) < width / 20).all()
    assert (np.abs(high - np.percentile(means, 97.5, axis=1)) < width / 20).all()


def test_an_interval_covers_the_mean_as_often_as_it_says():
    """The 95 % intervals of 400 normal samples of 40 miss the mean in 5 %, or a little more as they are bootstrapped.

    At a true rate of 94 %, coverage below 91 % has a probability below 1e-3.
    """
    _, low, high = estimate(RANDOM.normal(size=(400, 40)))
    assert 0.91 < np.mean((low < 0) & (high > 0)) < 0.99


def test_a_difference_is_paired():
    """Prompts differ a hundred times as much as the texts, which does not matter."""
    prompts = 100 * RANDOM.normal(size=20)
    one, other = prompts + RANDOM.normal(size=20) * 0.1, prompts + 1
    mean, low, high = estimate(other - one)
    assert low < 1 < high
    assert high - low < 0.2
    assert estimate(np.stack([one, other])).high[0] - mean > 10


def test_texts_without_a_statistic_are_left_out():
    """Of eight or more there is an interval, of fewer only a mean."""
    values = np.full((3, 12), np.nan)
    values[0, ::2] = values[1, ::2] = [1, 3, 1, 3, 1, 3]
    values[0, 1:5:2] = [1, 3]
    mean, low, high = estimate(values)
    np.testing.assert_array_equal(mean, [2, 2, np.nan])
    assert 1 <= low[0] < 2 < high[0] <= 3
    assert np.isnan([low[1:], high[1:]]).all()


def test_nothing_is_decided_by_a_few_texts():
    """At 0.2 and 0.5 only seven texts have a word; they are told from no others, and are the nearest to none."""
    sweep = sweep_of([0.5, 0.5, 0.3, 0.9, 0.05])
    sweep.samples["known_words"][:2, 7:] = np.nan
    assert [verdict.answer for verdict in verdicts(sweep)][2:4] == ["not decided"] * 2
    evidence = "known words at 0.2 minus human text's: only 7 of 20 texts have both"
    assert evidence in [verdict.evidence for verdict in verdicts(sweep)]
    assert list(sweep.nearest("known_words")) == [0.8]
    assert not set(sweep.alike("known_words")) & {0.2, 0.5}
    sweep.samples["known_words"][:, 7:] = np.nan
    assert not len(sweep.nearest("known_words"))


def test_the_nearest_and_those_that_are_not_told_apart():
    sweep = sweep_of([0.1, 0.3, 0.5, 0.501, 0.9])
    (nearest,) = sweep.nearest("entropy")
    assert nearest in (0.8, 1.0)
    assert set(sweep.alike("entropy")) <= {0.8, 1.0}
    assert len(sweep.alike("entropy"))
    looped = np.tile([[0.5], [0], [0], [0], [1.0]], 8)
    tied = Sweep(TEMPERATURES, {"looped": looped}, {"looped": np.zeros(8)})
    np.testing.assert_array_equal(tied.nearest("looped"), [0.5, 0.8, 1.0])
    nothing = Sweep(TEMPERATURES, {"looped": np.full((5, 1), np.nan)}, {"looped": np.zeros(1)})
    assert not len(nothing.nearest("looped"))


def test_the_distance_over_all_measures_is_cliffs_delta_counted_by_hand():
    sweep = sweep_of([0.49, 0.3, 0.5, 0.501, 0.9])
    weights = RANDOM.integers(0, 3, (2, 20)).astype(float)
    for row, found in zip((np.ones(20), *weights), (sweep.distances(), *sweep.distances(weights)), strict=True):
        for place in range(5):
            deltas = []
            for name in MEASURES:
                both = sweep.samples[name][place], sweep.human[name]
                drawn, human = (np.repeat(side, row.astype(int)) for side in both)
                more = sum(one > other for one in drawn for other in human)
                less = sum(one < other for one in drawn for other in human)
                deltas.append(abs(more - less) / len(drawn) / len(human))
            assert found[place] == pytest.approx(np.mean(deltas))


def test_texts_without_a_measure_are_apart_from_human_ones_that_have_it():
    some, none = np.array([[0.5, 0.7]]), np.full((1, 2), np.nan)
    assert Sweep(TEMPERATURES[:1], {"known_words": none}, {"known_words": some[0]}).distances() == [1.0]
    assert Sweep(TEMPERATURES[:1], {"known_words": none}, {"known_words": none[0]}).distances() == [0.0]
    half = np.array([[0.5, np.nan]])
    assert Sweep(TEMPERATURES[:1], {"known_words": half}, {"known_words": np.array([0.5, 0.7])}).distances() == [0.75]


@pytest.mark.parametrize(
    ("means", "answers"),
    [
        # At 0.2 all measures are far below human text, known words become fewer, and 0.5 is the most human.
        ([0.1, 0.5, 0.3, 0.05, 0.02], ["holds", "holds", "does not hold", "holds", "holds", "holds"]),
        # The reverse of all these.
        ([0.9, 0.1, 0.5, 0.95, 0.97], [*["does not hold"] * 2, "holds", *["does not hold"] * 3]),
    ],
)  # fmt: skip
def test_verdicts(means, answers):
    assert [verdict.answer for verdict in verdicts(sweep_of(means))] == answers


def test_what_does_not_differ_is_seldom_decided():
    """In 60 sweeps without any difference, each of six claims is decided in 5 %, or a little more as n is 20.

    The margin is four standard deviations of 360 such claims at 8 %: 22 more.
    """
    found = [verdict.answer for _ in range(60) for verdict in verdicts(sweep_of([0.5] * 5, noise=0.3))]
    assert len(found) - found.count("not decided") < 0.08 * 360 + 22


def test_a_temperature_is_not_ruled_out_by_many_that_are_as_good():
    """Of 81 equal temperatures each is the nearest in few resamples; 0.5 does not hold once it is another."""
    temperatures = np.linspace(0.46, 0.54, 81).round(3)
    human = {name: 0.3 * RANDOM.normal(size=20) for name in MEASURES}
    equal = {name: 0.3 * RANDOM.normal(size=(81, 20)) for name in MEASURES}
    (verdict,) = verdicts(Sweep(temperatures, equal, human))
    assert verdict.answer == "not decided"
    other = {name: values + (temperatures == 0.5)[:, None] for name, values in equal.items()}
    (verdict,) = verdicts(Sweep(temperatures, other, human))
    assert verdict.answer == "does not hold"


def test_claims_about_temperatures_that_were_not_tried_are_left_out():
    sweep = sweep_of([0.1, 0.5, 0.3, 0.05, 0.02])
    some = Sweep(TEMPERATURES[2:4], {name: values[2:4] for name, values in sweep.samples.items()}, sweep.human)
    assert verdicts(some) == []


def test_the_page_and_the_table_say_what_was_found():
    sweep = sweep_of([0.1, 0.5, 0.3, 0.05, 0.02])
    none = np.zeros((3, 1))
    calibration = Calibration(np.array([0.9, 1.1, 1.3]), np.array([1.5, 1.25, 1.4]), none, none, none)
    page = sweep_page(sweep, calibration, ["a `b` | c\n<script>"] * 5, title="run")
    assert "human text is likeliest at temperature 1.10 (1.2500 nats per character)" in page
    assert "texts at **0.5** are the nearest" in page
    assert r"`` a 'b' \| c <script> ``" in page
    assert page.count("\n- entropy of characters (nats/character): Entropy of the frequencies") == 1
    widths = [line.replace(r"\|", "").count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(widths[:8]) == {4}
    assert page.splitlines()[2].startswith("Over all measures")
    one = Sweep(TEMPERATURES[:1], {name: values[:1] for name, values in sweep.samples.items()}, sweep.human)
    page = sweep_page(one, calibration, ["text"], title="run")
    assert page.splitlines()[2].startswith("Human text is likeliest at temperature 1.10")
    edge = Calibration(calibration.temperatures[:2], calibration.losses[:2], none[:2], none[:2], none[:2])
    page = sweep_page(sweep, edge, ["text"] * 5, title="run")
    assert "human text is likeliest at temperature 1.10, the edge of those tried (1.2500" in page
    header, rows = sweep_table(sweep)
    assert len(rows) == len(MEASURES) * 6
    row = dict(zip(header, next(row for row in rows if row[:2] == ["entropy", "0.5"]), strict=True))
    assert float(row["mean"]) == pytest.approx(sweep.samples["entropy"][1].mean(), rel=1e-5)
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    difference = sweep.samples["entropy"][1] - sweep.human["entropy"]
    assert float(row["difference"]) == pytest.approx(difference.mean(), rel=1e-3, abs=1e-6)


def test_a_sweep_of_one_temperature_is_drawn():
    """As a dot with its interval; a line of one point would be invisible."""
    none = np.zeros((3, 1))
    calibration = Calibration(np.array([0.9, 1.0, 1.3]), np.array([1.5, 1.25, 1.4]), none, none, none)
    sweep = sweep_of([0.1, 0.5, 0.3, 0.05, 0.02])
    for tried, marker in ((slice(3, 4), "o"), (slice(None), "none")):
        some = {name: values[tried] for name, values in sweep.samples.items()}
        figure = plot_sweep(Sweep(TEMPERATURES[tried], some, sweep.human), calibration, title="run")
        drawn = [line for axes in figure.axes[: len(MEASURES)] for line in axes.lines]
        curves = [line for line in drawn if line.get_label() == "generated text"]
        assert [line.get_marker() for line in curves] == [marker] * len(MEASURES)
        intervals = [drawn for axes in figure.axes for drawn in axes.collections if isinstance(drawn, LineCollection)]
        assert len(intervals) == (len(MEASURES) if marker == "o" else 0)
        assert figure.axes[len(MEASURES) + 1].get_visible(), "1.0 was tried"
