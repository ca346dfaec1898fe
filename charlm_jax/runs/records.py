"""What a run measured and wrote, as one JSON object a line: epochs, evaluations, texts."""

import json
import math
import os
from pathlib import Path
from typing import Any

from charlm_jax.errors import InputError
from charlm_jax.runs.files import sync_names, write_atomically

_NUMBER, _TEXT = (int, float), (str,)
# What the readers of a record rely on beside its epoch and step, by its event; a generated text has none.
_FIELDS = {
    "epoch": {"training_loss": _NUMBER, "seconds": (*_NUMBER, type(None))},
    "evaluation": {"held_out_loss": _NUMBER},
    "rollback": {},
    None: {"temperature": _NUMBER, "prompt": _TEXT, "text": _TEXT},
}


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as one line, in one write that is on the disk when this returns."""
    line, is_new = json.dumps(record, allow_nan=False) + "\n", not path.exists()
    with path.open("ab") as file:
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_names(path.parent)


def read_records(path: Path, event: str | None = None) -> list[dict[str, Any]]:
    """Return a file's records, or those of an event alone; a last line that was not written to its end is left out.

    Raises:
        InputError: a line is no record; names it.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        record = _record(line)
        if record is None:
            raise InputError(f"{str(path)!r} line {number} is not a record of a run; remove the line")
        records.append(record)
    return records if event is None else [record for record in records if record.get("event") == event]


def keep_records(path: Path, step: int) -> None:
    """Drop a half-written last line and all records of later steps: they will be made again."""
    if path.exists():
        kept = [record for record in read_records(path) if record["step"] <= step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())


def _record(line: bytes) -> dict[str, Any] | None:
    """Return a line's record, if it has what readers rely on, each number finite, each count one of 64 bits."""
    try:
        record = json.loads(line)
        counts = {"epoch": (int,), "step": (int,)}
        for name, types in {**counts, **_FIELDS[record.get("event")]}.items():
            value = record.get(name)
            if not isinstance(value, types) or (isinstance(value, _NUMBER) and not math.isfinite(value)):
                return None
        return record if all(0 <= record[name] < 2**63 for name in counts) else None
    # No JSON, nested too deeply, no object, no such event, a number beyond any.
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, OverflowError):
        return None
