"""Records of what a run measured and wrote, one JSON object per line: epochs, evaluations, rollbacks, texts."""

import json
import math
import os
from pathlib import Path
from typing import Any

from charlm_jax.errors import InputError
from charlm_jax.runs.files import sync_names, write_atomically

_NUMBER, _TEXT = (int, float), (str,)
# The fields that readers rely on besides epoch and step, by event; a generated text has no event.
_FIELDS = {
    "epoch": {"training_loss": _NUMBER, "seconds": (*_NUMBER, type(None))},
    "evaluation": {"held_out_loss": _NUMBER},
    "rollback": {},
    None: {"temperature": _NUMBER, "prompt": _TEXT, "text": _TEXT},
}


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON object as one line, in one write that is on the disk when this returns."""
    line, is_new = json.dumps(record, allow_nan=False) + "\n", not path.exists()
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_names(path.parent)


def read_records(path: Path, event: str | None = None) -> list[dict[str, Any]]:
    """Return a file's records, or only those of an event; a half-written last line is left out.

    Raises:
        InputError: a line is not a record; the message names it.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        record = _record(line)
        if record is None:
            raise InputError(f"{str(path)!r} line {number} is not a record of a run; restore a copy of the file")
        records.append(record)
    return records if event is None else [record for record in records if record.get("event") == event]


def keep_records(path: Path, step: int) -> None:
    """Drop a half-written last line and all records of steps after `step`: they will be made again."""
    if path.exists():
        kept = [record for record in read_records(path) if record["step"] <= step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def _record(line: bytes) -> dict[str, Any] | None:
    """Return a line's record if it has what readers rely on, with finite numbers and 64-bit counts, else None."""
    try:
        record = json.loads(line)
        counts = {"epoch": (int,), "step": (int,)}
        for name, types in {**counts, **_FIELDS[record.get("event")]}.items():
            value = record.get(name)
            if not isinstance(value, types) or (isinstance(value, _NUMBER) and not math.isfinite(value)):
                return None
        return record if all(0 <= record[name] < 2**63 for name in counts) else None
    # Not JSON, nested too deeply, not an object, an unknown event, or a number out of range.
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, OverflowError):
        return None
