"""The model of a step's cost, against known costs, and its command."""

import csv
import itertools
import re

import numpy as np
import pytest
from test_experiments import SMALL, call

from charlm_jax.analysis.cost_model import TERMS, Step, fit_costs, left_out, predict
from charlm_jax.model.network import CharacterLSTM

SECONDS = np.array([2e-6, 3e-9, 1e-11, 4e-12, 5e-10, 7e-10])


def step_of(hidden_size, batch_size, devices, layers=1):
    network = CharacterLSTM(50, hidden_size, layers=layers)
    sizes = {"window": 60, "batch_size": batch_size, "devices": devices}
    return Step.of(network, "every-character", **sizes)


STEPS = [step_of(*sizes) for sizes in itertools.product((16, 32, 64, 128), (8, 20, 60), (1, 2, 4))]


def test_a_step_is_counted_turn_by_turn():
    turns = units = operations = of_all = 0
    for _, _ in itertools.product(range(60), range(2)):  # characters, layers
        turns += 1
        units += 7 * 16  # rows on the first of three devices
    for _, row in itertools.product(range(60), range(20)):
        matrices = [(16, 64), (16, 64), (16, 64), (16, 50)]  # two recurrent, the second layer's input, the head
        each = sum(3 * 2 * rows * columns for rows, columns in matrices)
        of_all += each
        operations += each * (row < 7)
    step = step_of(16, 20, 3, layers=2)
    parameters = 50 * 64 + 3 * 16 * 64 + 2 * 64 + 16 * 50 + 50  # the first layer's input kernel and the biases, too
    assert step.terms == (turns, units, operations, of_all, parameters, parameters)
    assert step.characters == 1200
    assert step_of(16, 20, 1).terms[-1] == 0


def test_known_costs_are_found_and_predicted():
    measured = [predict(SECONDS, step) for step in STEPS]
    np.testing.assert_allclose(fit_costs(STEPS, measured), SECONDS, rtol=1e-6)
    np.testing.assert_allclose(left_out(STEPS, measured), measured, rtol=1e-6)


def test_what_is_left_out_has_no_part_in_its_prediction():
    measured = [predict(SECONDS, step) for step in STEPS]
    other = [measured[0] * 100, *measured[1:]]
    assert left_out(STEPS, other)[0] == pytest.approx(measured[0], rel=1e-6)


def test_relative_errors_are_least_and_no_cost_is_below_nothing():
    noise = np.random.default_rng(0).normal(1, 0.2, len(STEPS))
    measured = [predict(SECONDS, step) * share for step, share in zip(STEPS, noise, strict=True)]

    def squares(seconds):
        return sum((predict(seconds, step) / true - 1) ** 2 for step, true in zip(STEPS, measured, strict=True))

    fitted = fit_costs(STEPS, measured)
    assert (fitted >= 0).all()
    for place, share in itertools.product(range(len(TERMS)), (0.99, 1.01)):
        changed = fitted.copy()
        changed[place] = changed[place] * share + SECONDS[place] * 1e-3 * (share > 1)
        assert squares(changed) >= squares(fitted)


def test_the_command(corpus, tmp_path, capsys):
    sizes = ["--hidden-sizes", 4, 8, "--batch-sizes", 8, 16, "--device-counts", 1, 2, "--rounds", 1]
    figure = tmp_path / "costs.svg"
    flags = [flag for flag in SMALL if flag not in ("--batch-size", "16", "--hidden-size", "8")]
    flags += ["--carry", "fresh", "--predict", "64x32x8", "--figure", figure]
    assert call("cost_model", "--corpus", corpus, *flags, *sizes) == 0
    output = capsys.readouterr().out
    assert len(re.findall(r"^ +[48] +(?:8|16) +[12] +\d+ +\d+ +[+-][\d.]+%$", output, re.M)) == 8
    assert len(re.findall(r"^ *[\d.]+e[+-]\d\d s  ", output, re.M)) == len(TERMS)
    assert re.search(
        r"^predicted for 64 units, 32 windows, 8 devices: \S+ ms a step, \S+ ns a character$", output, re.M
    )
    assert figure.stat().st_size > 10_000
    rows = list(csv.DictReader(figure.with_suffix(".csv").read_text().splitlines()[1:]))
    assert figure.with_suffix(".csv").read_text().startswith("# quick --corpus ")
    assert [row["hidden_size"] for row in rows] == ["4"] * 4 + ["8"] * 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden-sizes", "8"], "3 combinations are too few to fit 6 terms; give more sizes"),
        (["--predict", "8x8"], "--predict 8x8 cannot be used: it must be three numbers, such as 1024x256x8"),
        (["--batch-sizes", "0"], "--batch-sizes 0"),
        (["--predict", "64x2x4"], "--predict 64x2x4 cannot be used: it must be of at least as many windows as devices"),
        (["--hidden-sizes", "16", "16"], "--hidden-sizes 16 16 cannot be used: it must be numbers that all differ"),
        (["--batch-size", "8"], "--batch-size 8 cannot be used: it must be given as --batch-sizes"),
        (["--hidden-size", "8"], "--hidden-size 8 cannot be used: it must be given as --hidden-sizes"),
        (["--device-counts", "64"], "--device-counts 64 cannot be used: it must be at most"),
        (
            ["--predict", "8x8x2"],
            "--predict 8x8x2 cannot be used: it must be for the only number of devices measured, 1;",
        ),
    ],
)
def test_bad_input_is_one_sentence(corpus, capsys, flags, message):
    assert call("cost_model", "--corpus", corpus, "--carry", "fresh", "--window", 4, "--device-counts", 1, *flags) == 2
    assert message in capsys.readouterr().err
