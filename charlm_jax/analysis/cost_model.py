"""What a training step costs: a sum of a few terms, fitted to measurements.

An LSTM reads its characters one after another, so each turn (time step) has a fixed cost, whatever the sizes. Added to
it are the work on each row of the batch, and what a step does with every parameter, however large the batch: read it
again at every turn, update it, and exchange its gradient between devices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from scipy.optimize import nnls

from charlm_jax.analysis.ablation import training_flops
from charlm_jax.analysis.figures import line_style, mark_logarithms, new_figure
from charlm_jax.choices import Objective
from charlm_jax.model.initializers import parameter_count, parameter_shapes
from charlm_jax.model.network import CharacterLSTM

TERMS = {
    "a turn": "a character's turn, whatever the sizes",
    "a unit": "a unit of a row, at each turn",
    "an operation": "a floating-point operation of a matrix product, each device by itself",
    "an operation of all": "the same, where devices share the hardware, as those of a CPU share its cores",
    "a parameter": "a parameter in a step, whatever the batch",
    "an exchange": "a parameter exchanged between devices in a step",
}
"""The terms of the model, and what each of them counts."""


class Step(NamedTuple):
    """The size of a training step.

    Attributes:
        hidden_size: units of each layer.
        batch_size: windows in a batch.
        devices: number of devices that share the batch.
        characters: read in all windows together.
        terms: the count of each of `TERMS`, on the device with the most to do.
    """

    hidden_size: int
    batch_size: int
    devices: int
    characters: int
    terms: tuple[float, ...]

    @classmethod
    def of(cls, network: CharacterLSTM, objective: Objective, *, window: int, batch_size: int, devices: int) -> "Step":
        """Return the size of a model's step on windows of `window` characters."""
        rows, operations = -(-batch_size // devices), training_flops(network, objective, window)
        units, parameters = network.layers * network.hidden_size, parameter_count(parameter_shapes(network))
        terms = {
            "a turn": window * network.layers,
            "a unit": window * rows * units,
            "an operation": window * rows * operations,
            "an operation of all": window * batch_size * operations,
            "a parameter": parameters,
            "an exchange": parameters if devices > 1 else 0,
        }
        counts = tuple(float(terms[name]) for name in TERMS)
        return cls(network.hidden_size, batch_size, devices, batch_size * window, counts)


def fit_costs(steps: Sequence[Step], measured: Sequence[float]) -> Float[np.ndarray, " term"]:
    """Return the seconds of each of `TERMS` that fit the measured steps with the least squared relative errors.

    None is below 0 (Lawson and Hanson, 1974). A term that no step has, or that the fit does not need, gets 0.
    """
    counts = np.array([step.terms for step in steps])
    scale = np.maximum(counts.max(axis=0), 1.0)  # brings all terms to a comparable size
    seconds, _ = nnls(counts / scale / np.array(measured)[:, None], np.ones(len(steps)))
    return seconds / scale


def predict(costs: Float[np.ndarray, " term"], step: Step) -> float:
    """Return the seconds that a step takes, given the seconds of each term."""
    return float(np.dot(costs, step.terms))


def left_out(steps: Sequence[Step], measured: Sequence[float]) -> list[float]:
    """Return each step's seconds as predicted by a fit to all others: leave-one-out cross-validation."""
    predicted = []
    for place, step in enumerate(steps):
        others = [*steps[:place], *steps[place + 1 :]], [*measured[:place], *measured[place + 1 :]]
        predicted.append(predict(fit_costs(*others), step))
    return predicted


def plot_costs(
    steps: Sequence[Step], measured: Sequence[float], costs: Float[np.ndarray, " term"], *, title: str
) -> Figure:
    """Draw the measured time per character against the hidden size as dots, and the fitted one as lines.

    There is a panel for each number of devices, and in it a line for each batch size.
    """
    numbers = sorted({step.devices for step in steps})
    batches, sizes = sorted({step.batch_size for step in steps}), sorted({step.hidden_size for step in steps})
    size = 1.5 + 3.6 * len(numbers), 3.8
    figure, panels = new_figure(*size, columns=len(numbers), title=title, grid="y", sharey=True, squeeze=False)
    seconds = dict(zip(steps, measured, strict=True))
    for panel, devices in zip(panels[0], numbers, strict=True):
        for number, batch_size in enumerate(batches):
            line = sorted(step for step in steps if (step.batch_size, step.devices) == (batch_size, devices))
            style = {**line_style(number).options, "ms": 5}
            at = [step.hidden_size for step in line]
            panel.plot(at, [predict(costs, step) / step.characters for step in line], **style)
            panel.plot(at, [seconds[step] / step.characters for step in line], "o", color=style["color"], ms=5)
            panel.plot([], [], marker="o", label=f"{batch_size}", **style)  # dot and line, for the legend
        panel.set_title("1 device" if devices == 1 else f"{devices} devices", fontsize=10)
        panel.set_xlabel("hidden size")
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.xaxis.minorticks_off()
        panel.set_yscale("log")
        mark_logarithms(panel.yaxis, EngFormatter("s", sep=" "))
    panels[0, 0].set_ylabel("training time per character")
    panels[0, 0].legend(title="windows a batch", frameon=False, fontsize=9)
    return figure
