"""A run's records as TensorBoard event files, which are made from the records and never read back."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from charlm_jax.errors import optional
from charlm_jax.runs.directory import RunDirectory
from charlm_jax.runs.records import read_records

_SCALARS = "training_loss", "held_out_loss", "bits_per_character", "characters_per_second", "skipped_steps"
_OURS = "charlm_jax"  # the ending of the event files that are made and removed here


class Point(NamedTuple):
    """One thing that TensorBoard shows of a run at one step.

    Attributes:
        step: updates since the start of the run.
        tag: the name that it is shown under.
        value: a number for a curve, a text in Markdown, or choices by name for the table of hyper-parameters.
    """

    step: int
    tag: str
    value: float | str | dict[str, bool | int | float | str]


def points_of(run: RunDirectory, compared: Sequence[str]) -> list[Point]:
    """Return what TensorBoard shows of a run so far, in the order in which it was recorded.

    Each held-out loss is shown, and the lowest so far, which is the best model's. The table of hyper-parameters, with
    the choices `compared`, shows the last value of both.

    Raises:
        InputError: the configuration or the records cannot be read.
    """
    chosen, points, lowest = run.configuration().to_json(), [], math.inf
    texts: dict[tuple[int, str], list[str]] = {}
    for sample in read_records(run.samples):
        shown = f"Prompt:\n\n{_verbatim(sample['prompt'])}\n\nText:\n\n{_verbatim(sample['text'])}"
        texts.setdefault((sample["step"], f"temperature {sample['temperature']:g}"), []).append(shown)
    points += [Point(step, tag, "\n\n---\n\n".join(parts)) for (step, tag), parts in texts.items()]
    for record in read_records(run.metrics):
        points += [Point(record["step"], name, record[name]) for name in _SCALARS if _is_number(record.get(name))]
        if record.get("event") == "evaluation":
            lowest = min(lowest, record["held_out_loss"])
            points.append(Point(record["step"], "lowest_held_out_loss", lowest))
    points.sort(key=lambda point: point.step)  # stable: an epoch's texts stay first, as they were recorded
    table = {name: value if isinstance(value := chosen[name], int | float) else str(value) for name in compared}
    heads = [Point(0, "configuration", _verbatim(json.dumps(chosen, indent=2)))] + [Point(0, "", table)] * bool(table)
    return heads + points


def _is_number(value: object) -> bool:
    """Return whether a field, which `read_records` may not have checked, is a number that an event can hold."""
    return isinstance(value, int | float) and abs(value) < 2**63


def _verbatim(text: str) -> str:
    """Return Markdown that shows a text verbatim."""
    return "\n".join(f"    {line}" for line in text.encode("utf-8", "replace").decode().split("\n"))


class EventFile:
    """A run's event file, in the run's directory, so that TensorBoard calls the run by its name."""

    def __init__(self, folder: Path) -> None:
        """Start the file, in place of older ones.

        Raises:
            InputError: tensorboardX is not installed.
        """
        self._folder = folder
        self._begin()

    def show(self, points: Sequence[Point]) -> None:
        """Add the points that are new; start the file again if older ones are gone, as resuming drops records."""
        if points[: len(self._shown)] != self._shown:
            self.close()
            self._begin()
        for point in points[len(self._shown) :]:
            self._write(step=point.step, summary=_summary(point))
        self._file.flush()
        self._shown = list(points)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _begin(self) -> None:
        with optional("TensorBoard's event files need tensorboardX", "tracking"):
            from tensorboardX import RecordWriter
        older = sorted(self._folder.glob(f"events.out.tfevents.*.{_OURS}"))
        for path in older:
            if path == older[-1] and not path.is_symlink():
                path.write_bytes(b"")  # not removed: a TensorBoard that is reading it would wait for it forever
            else:
                path.unlink()
        self._shown: list[Point] = []
        self._file = RecordWriter(str(self._folder.resolve() / f"events.out.tfevents.{time.time():.6f}.{_OURS}"))
        self._write(file_version="brain.Event:2")
        self._write(step=0, session_log={"status": "START"})  # makes readers forget what the older file said

    def _write(self, **content: Any) -> None:
        from tensorboardX.proto import event_pb2

        event = event_pb2.Event(wall_time=time.time(), **content)  # pyright: ignore[reportAttributeAccessIssue]
        self._file.write(event.SerializeToString())


def _summary(point: Point) -> Any:
    from tensorboardX.summary import hparams, scalar, text

    if isinstance(point.value, dict):
        return hparams(point.value, {})[1]  # a session's start; TensorBoard finds out what all sessions have in common
    return text(point.tag, point.value) if isinstance(point.value, str) else scalar(point.tag, point.value)
