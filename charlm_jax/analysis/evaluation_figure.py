"""The figure of an evaluation."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from charlm_jax.analysis.calibration import BINS, Calibration
from charlm_jax.analysis.figures import BLUE, VERMILION, marker, new_figure


def plot_evaluation(
    by_position: Float[np.ndarray, " window"],
    stream_loss: float,
    baselines: Mapping[str, float],
    calibration: Calibration,
    *,
    title: str,
) -> Figure:
    """Draw the loss against the context, the loss against the temperature, and the reliability of the predictions.

    Args:
        by_position: mean nats per character given 1, 2, ... characters.
        stream_loss: nats per character of the text read as one stream.
        baselines: nats per character of each baseline, by name.
        calibration: at several temperatures, including 1.
        title: of the whole figure.
    """
    figure, (context, temperature, reliability) = new_figure(11.0, 3.6, columns=3, title=title)

    given = np.arange(1, len(by_position) + 1)
    line = {"color": VERMILION, "lw": 2, "marker": marker(len(given))}
    context.plot(given, by_position, label="model, fresh state", **line)
    context.axhline(stream_loss, color=VERMILION, ls="--", lw=1.2, label="model, one stream")
    top = max(by_position[:2].max(), stream_loss * 1.3)
    for number, (name, loss) in enumerate(sorted(baselines.items(), key=lambda item: item[1])):
        if loss < top:
            context.axhline(loss, color="0.6", lw=0.8, zorder=0)
            left = number % 2 == 1  # alternate ends keep the names of close lines apart
            context.annotate(
                name, (0.30 if left else 0.99, loss), xycoords=("axes fraction", "data"), ha="right",
                va="top" if loss < stream_loss else "bottom", fontsize=8, color="0.35",
            )  # fmt: skip
    shown = [*by_position, stream_loss, *(loss for loss in baselines.values() if loss < top)]
    context.set_ylim(min(shown) - 0.1 * (max(shown) - min(shown)))  # room for a name under the lowest line
    context.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    context.set_xlabel("characters of context")
    context.set_ylabel("nats per character")
    context.legend(framealpha=1, edgecolor="none", fontsize=8, loc="upper right")  # hides the lines behind it

    best = calibration.best
    temperature.plot(calibration.temperatures, calibration.losses, color=VERMILION, lw=2)
    temperature.plot(calibration.temperatures[best], calibration.losses[best], "o", color=VERMILION)
    temperature.axvline(1, color="0.6", lw=0.8, zorder=0)
    edge = ", the edge of those tried" if calibration.best_at_edge else ""
    temperature.set_title(f"lowest at {calibration.temperatures[best]:g}{edge}", fontsize=9)
    temperature.set_xlabel("softmax temperature")
    temperature.set_ylabel("nats per character")

    at_one = calibration.at_one
    reliability.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    confidences, accuracies = calibration.confidences[at_one], calibration.accuracies[at_one]
    reliability.plot(confidences, accuracies, "o-", color=VERMILION, ms=4, label="model")
    share = calibration.counts[at_one] / calibration.counts[at_one].sum()
    reliability.bar((np.arange(BINS) + 0.5) / BINS, share, 1 / BINS, color=BLUE, alpha=0.25, label="share of all")
    reliability.set_title(f"expected calibration error {calibration.expected_errors[at_one]:.3f}", fontsize=9)
    reliability.set_xlabel("probability of the likeliest character")
    reliability.set_ylabel("how often it came")
    reliability.legend(frameon=False, fontsize=8, loc="upper left")
    return figure
