"""One page about runs, as a single string of HTML: what was run, what it cost and reached, and what the models write.

The page needs no network, and everything that it shows is untrusted: text becomes HTML only through Jinja's escaping,
or JSON that the page's script puts into text nodes; pictures are images, whose scripts do not run; and the only script
that may run is named by its hash. Unprintable characters are written out.
"""

import base64
import hashlib
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from charlm_jax.analysis.figures import as_picture, line_style
from charlm_jax.analysis.loss_curves import Curve, loss_limits, plot_losses
from charlm_jax.analysis.reader import Text, as_json

_INKS = {"light": "#3c4048", "dark": "#c3c6cc"}
# The facts that decide which characters a loss is of, and in how much context, with what to call them on the page.
_OF_LOSSES = {"sha256": "text", "held out fraction": "share held out", "window": "window", "stride": "stride"}


@dataclass(frozen=True)
class Epoch:
    """What was measured in an epoch.

    Attributes:
        epoch: its number, from 1.
        training_loss: nats per character while the model learned.
        held_out_loss: nats per character after the epoch; None if nothing is held out.
        seconds: of training; None if unknown.
        characters: read in its windows.
    """

    epoch: int
    training_loss: float
    held_out_loss: float | None
    seconds: float | None
    characters: int


@dataclass(frozen=True)
class Picture:
    """A figure that another command drew: the name of its file, and the SVG."""

    name: str
    svg: bytes


@dataclass(frozen=True)
class Run:
    """What the page shows about a run.

    Attributes:
        name: what the page calls the run.
        configuration: every choice.
        provenance: where the run comes from, including the SHA-256 of its text.
        parameters: number of the model's parameters.
        epochs: those done so far.
        pictures: the run's figures.
        texts: what the run's models have written.
        step: of the model that read the texts; None if none did.
        notes: sentences about what is missing from the page.
    """

    name: str
    configuration: Mapping[str, object]
    provenance: Mapping[str, object]
    parameters: int
    epochs: Sequence[Epoch]
    pictures: Sequence[Picture]
    texts: Sequence[Text]
    step: int | None
    notes: Sequence[str]

    @property
    def lowest(self) -> float:
        """The lowest held-out loss, in nats per character; infinite if there is none."""
        return min((epoch.held_out_loss for epoch in self.epochs if epoch.held_out_loss is not None), default=math.inf)

    @property
    def best(self) -> Epoch | None:
        """The first epoch with the lowest held-out loss; None if there is none."""
        return next((epoch for epoch in self.epochs if epoch.held_out_loss == self.lowest), None)

    @property
    def seconds(self) -> float | None:
        """Seconds of training over all epochs; None unless all of them are known."""
        known = [epoch.seconds for epoch in self.epochs if epoch.seconds is not None]
        return sum(known) if known and len(known) == len(self.epochs) else None

    @property
    def characters_per_second(self) -> float | None:
        """Characters that training read per second, over the epochs whose seconds are known; None if none are."""
        known = [(epoch.characters, epoch.seconds) for epoch in self.epochs if epoch.seconds]
        return sum(characters for characters, _ in known) / sum(seconds for _, seconds in known) if known else None


def make_report(title: str, runs: Sequence[Run], pictures: Sequence[Picture] = (), notes: Sequence[str] = ()) -> str:
    """Return the page about one or more runs; the same runs give the same page.

    Args:
        title: of the page.
        runs: with distinct names.
        pictures: figures of all runs together.
        notes: sentences about what is missing from the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("charlm_jax.analysis", ""),
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    beside = importlib.resources.files("charlm_jax.analysis")
    style, script = (Markup((beside / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    choices = _split(runs, [run.configuration for run in runs])
    origins = _split(runs, [run.provenance for run in runs])
    incomparable = [words for name, words in _OF_LOSSES.items() if name in (*choices[0], *origins[0])]
    winner = min(runs, key=lambda run: run.lowest)
    return environment.get_template("report.html.jinja").render(
        title=title,
        runs=runs,
        pictures=pictures,
        notes=notes,
        choices=choices,
        origins=origins,
        incomparable=incomparable,
        winner=None if incomparable or not winner.best else winner,
        panels=_panels(runs),
        bits=lambda nats: nats / math.log(2),
        address=_address,
        style=style,
        script=script,
        script_hash=_base64(hashlib.sha256(script.encode()).digest()),
        texts=Markup(
            as_json([{"name": run.name, "step": run.step, "notes": run.notes, "texts": run.texts} for run in runs])
        ),
    )


def shown(value: object) -> str:
    """Return a value as text, with unprintable characters written out, as in ‹U+202E›."""
    if isinstance(value, Markup):
        return value
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value))
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(mark if mark.isprintable() else f"‹U+{ord(mark):04X}›" for mark in text)


def _split(
    runs: Sequence[Run], records: Sequence[Mapping[str, object]]
) -> tuple[list[str], dict[str, object], dict[str, Mapping[str, object]]]:
    """Return the names of the facts that differ between the runs' records, the shared facts, and the records by run."""
    names = list(dict.fromkeys(name for record in records for name in record))
    first, *others = whole = [{name: record.get(name) for name in names} for record in records]
    differing = [name for name in names if any(other[name] != first[name] for other in others)]
    shared = {name: first[name] for name in names if name not in differing}
    return differing, shared, {run.name: record for run, record in zip(runs, whole, strict=True)}


def _panels(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the loss plots, light and dark, with their legends: one plot for a single run, two for several runs."""
    curves = {
        "held-out": [{e.epoch: e.held_out_loss for e in run.epochs if e.held_out_loss is not None} for run in runs],
        "training": [{epoch.epoch: epoch.training_loss for epoch in run.epochs} for run in runs],
    }
    if len(runs) == 1:
        panels = {"loss": {kind: curve for kind, (curve,) in curves.items()}}
    else:
        names = [run.name for run in runs]
        panels = {f"{kind} loss": dict(zip(names, those, strict=True)) for kind, those in curves.items()}
    there = {name for named in panels.values() for name, curve in named.items() if curve}
    drawn = [curve for those in curves.values() for curve in those if curve]

    def picture(title: str, named: Mapping[str, Curve], ink: str) -> bytes:
        numbered = {number: curve for number, curve in enumerate(named.values()) if curve}
        label = f"{title} (nats per character)"
        return as_picture(plot_losses(numbered, limits=loss_limits(drawn), label=label, ink=ink), "svg")

    return [
        {
            "title": title,
            "lines": [(name, line_style(number)) for number, name in enumerate(named) if name in there],
            "images": {mode: picture(title, named, ink) for mode, ink in _INKS.items()},
        }
        for title, named in panels.items()
        if any(named.values())
    ]


def _address(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{_base64(svg)}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
