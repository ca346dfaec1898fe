from pathlib import Path

import pytest

from charlm_jax.analysis.loss_curves import Comparison, compare, plot_comparison, read_published

TEXT = (Path(__file__).parent.parent / "experiments" / "published_loss_curves.csv").read_text()
SIGMOID, HARD = read_published(TEXT, "sigmoid"), read_published(TEXT, "hard_sigmoid")


def test_the_published_curves():
    assert {run: len(curve) for run, curve in HARD.items()} == {"A": 59, "B": 57, "C": 59, "D": 57}
    assert {run: len(curve) for run, curve in SIGMOID.items()} == {"E": 59, "F": 59, "G": 24}
    assert [SIGMOID["E"][epoch] for epoch in (1, 2, 3, 59)] == [1.9593, 1.6129, 1.5250, 1.2416]
    assert [HARD["B"][epoch] for epoch in (1, 2, 3)] == [1.9812, 1.6265, 1.5360]
    assert HARD["A"][59] > 14


@pytest.mark.parametrize(("loss", "distance"), [(1.5, 0), (1.4, 0), (1.6, 0), (1.35, -0.05), (1.62, 0.02)])
def test_the_distance_from_the_band(loss, distance):
    assert Comparison(1, loss, lowest=1.4, highest=1.6).distance == pytest.approx(distance)


def test_only_epochs_that_both_have_are_compared():
    published = {"P": {1: 2.0, 2: 1.5}, "Q": {1: 2.1}}
    assert compare({1: 2.05, 2: 1.6, 3: 1.2}, published) == [
        Comparison(1, 2.05, 2.0, 2.1),
        Comparison(2, 1.6, 1.5, 1.5),
    ]


def test_a_run_that_diverges_leaves_the_picture():
    ours = {epoch: 2.0 - 0.01 * epoch for epoch in range(1, 60)}
    figure = plot_comparison(ours, HARD, compare(ours, HARD), title="title", tolerance=0.01)
    top = figure.axes[0].get_ylim()[1]
    assert top < 2.1
    assert [axes.get_ylabel() != "" for axes in figure.axes] == [True, True]


@pytest.mark.parametrize(("epochs", "marker"), [(1, "o"), (2, "none")])
def test_published_losses_of_one_epoch_are_dots(epochs, marker):
    ours = dict.fromkeys(range(1, epochs + 1), 2.0)
    figure = plot_comparison(ours, HARD, compare(ours, HARD), title="title", tolerance=0.01)
    assert [line.get_marker() for line in figure.axes[0].lines[:4]] == [marker] * 4
