import json

import pytest

from charlm_jax.errors import InputError
from charlm_jax.runs.records import append_record, keep_records, read_records


def epoch(step):
    return {"event": "epoch", "epoch": step, "step": step, "training_loss": 1.5, "seconds": None}


def test_half_a_line_is_dropped_and_so_are_later_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    for step in (5, 10, 15):
        append_record(path, epoch(step))
    with path.open("a") as file:
        file.write('{"step": 20, "los')
    assert read_records(path) == [epoch(5), epoch(10), epoch(15)]
    keep_records(path, 10)
    assert path.read_text() == f"{json.dumps(epoch(5))}\n{json.dumps(epoch(10))}\n"


@pytest.mark.parametrize(
    "line",
    [
        "", "{}", "[]", "null", "7", '"step"', '{"step": 1}', "\udcff", "[" * 100_000,
        '{"event": ["epoch"], "step": 1}',
        '{"event": "epoch", "epoch": 1, "step": "1", "training_loss": 1.0, "seconds": null}',
        '{"event": "epoch", "epoch": 1, "step": 1, "training_loss": NaN, "seconds": null}',
        '{"event": "epoch", "epoch": 1, "step": 1, "training_loss": 1e999, "seconds": null}',
        '{"event": "epoch", "epoch": 1, "step": 1, "training_loss": 1' + "0" * 400 + ', "seconds": null}',
        '{"event": "epoch", "epoch": 1, "step": 1, "training_loss": 1' + "0" * 5000 + ', "seconds": null}',
        '{"event": "epoch", "epoch": 1, "step": -1, "training_loss": 1.0, "seconds": null}',
        f'{{"event": "epoch", "epoch": {2**63}, "step": 1, "training_loss": 1.0, "seconds": null}}',
        '{"event": "evaluation", "epoch": 1, "step": 1}',
        '{"event": "feast", "epoch": 1, "step": 1}',
        '{"epoch": 1, "step": 1, "temperature": 0.5, "prompt": "a", "text": null}',
    ],
)  # fmt: skip
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    append_record(path, epoch(5))
    with path.open("a", errors="surrogateescape") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"metrics.jsonl' line 2 is not a record of a run; restore a copy"):
        read_records(path)
