"""Event files: what TensorBoard itself reads from them, against the records that they are made from."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import call

from charlm_jax import PRESETS, load_run, train_run
from charlm_jax.runs.directory import open_run
from charlm_jax.runs.records import append_record, keep_records, read_records
from charlm_jax.runs.tracking import EventFile, points_of
from charlm_jax.runs.verification import verify

tensorboard = pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer  # noqa: E402
from tensorboard.context import RequestContext  # noqa: E402
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups  # noqa: E402

SMALL = ["--window", "10", "--batch-size", "4", "--sample-length", "10", "--sample-every", "1"]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A finished run that lists a temperature twice, and whose last loss is then changed to a worse one."""
    quick, temperatures = PRESETS["quick"], (0.2, 1.0, 1.0)
    small = replace(quick, window=10, batch_size=4, hidden_size=8, sample_length=10, sample_every=2, epochs=5)
    path = tmp_path_factory.mktemp("trained") / "run"
    run = train_run(replace(small, corpus=str(corpus), temperatures=temperatures), path)
    last = str(run.metrics.held_out_loss[-1])
    (path / "metrics.jsonl").write_text((path / "metrics.jsonl").read_text().replace(last, "9.0"))
    return load_run(path)


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the finished run for each test."""
    run = replace(trained, path=shutil.copytree(trained.path, tmp_path / "run"))
    assert len(run.metrics.epoch) == 5, "read while all are there"
    return run


def seen(folder, **options):
    """Return what TensorBoard reads, by tag: curves as lists of (step, value), texts as lists of (step, text)."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}, **options).Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = {
        tag.removesuffix("/text_summary"): [
            (event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
        if not tag.startswith("_hparams_")
    }
    return curves, texts


def recorded(run, event, name):
    return [
        (record["step"], pytest.approx(record[name], rel=1e-6))  # event files hold float32
        for record in read_records(run / "metrics.jsonl")
        if record["event"] == event
    ]


def table(folder):
    """Return the rows of TensorBoard's table of hyper-parameters: choices and metrics by run."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(SimpleNamespace(data_provider=provider))
    statuses = api_pb2.Status.values()  # pyright: ignore[reportAttributeAccessIssue]
    request = api_pb2.ListSessionGroupsRequest(  # pyright: ignore[reportAttributeAccessIssue]
        start_index=0, slice_size=100, allowed_statuses=statuses, include_metrics=True
    )
    response = list_session_groups.Handler(RequestContext(), context, "", request).run()
    rows = {}
    for group in response.session_groups:
        choices = {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()}
        metrics = {value.name.tag: value.value for value in group.metric_values}
        rows[group.sessions[0].name] = choices, metrics
    return rows


def test_curves_and_texts_are_the_records(run):
    assert call("track", run.path) == 0
    curves, texts = seen(run.path)
    for name in ("training_loss", "characters_per_second", "skipped_steps"):
        assert curves.pop(name) == recorded(run.path, "epoch", name)
    losses = recorded(run.path, "evaluation", "held_out_loss")
    assert curves.pop("held_out_loss") == losses
    assert curves.pop("bits_per_character") == recorded(run.path, "evaluation", "bits_per_character")
    steps, values = run.metrics.step, run.metrics.held_out_loss
    lowest = [(int(step), pytest.approx(min(values[: place + 1]))) for place, step in enumerate(steps)]
    assert curves.pop("lowest_held_out_loss") == lowest
    assert not curves
    assert json.loads(texts.pop("configuration")[0][1]) == run.configuration.to_json()
    assert texts.keys() == {"temperature 0.2", "temperature 1"}
    for temperature, name in [(0.2, "temperature 0.2"), (1.0, "temperature 1")]:
        for step, shown in texts[name]:
            samples = [
                sample
                for sample in read_records(run.path / "samples.jsonl")
                if (sample["step"], sample["temperature"]) == (step, temperature)
            ]
            blocks = shown.split("\n\n---\n\n")
            assert len(blocks) == len(samples) == (2 if temperature == 1.0 else 1)
            for block, sample in zip(blocks, samples, strict=True):
                lines = sample["prompt"].split("\n"), sample["text"].split("\n")
                prompt, text = ("\n".join(f"    {line}" for line in those) for those in lines)
                assert block == f"Prompt:\n\n{prompt}\n\nText:\n\n{text}"
    assert [step for step, _ in texts["temperature 1"]] == [int(steps[place]) for place in (1, 3, 4)]


def test_a_grid_has_a_table_of_its_choices_and_losses(trained, tmp_path):
    lines = (trained.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    expected = {}
    for epochs, clip, hidden_size in [(5, None, 8), (3, 1.0, 8), (5, 1.0, 4)]:
        run = shutil.copytree(trained.path, tmp_path / "grid" / f"clip={clip},hidden_size={hidden_size}")
        chosen = replace(trained.configuration, clip=clip, hidden_size=hidden_size)
        (run / "config.json").write_text(json.dumps(chosen.to_json()))
        (run / "metrics.jsonl").write_text("".join(lines[: 2 * epochs]))
        losses = trained.metrics.held_out_loss[:epochs]
        metrics = {"held_out_loss": losses[-1], "lowest_held_out_loss": min(losses)}
        choices = {"clip": clip or "None", "hidden_size": hidden_size}
        expected[run.name] = choices, {name: pytest.approx(loss) for name, loss in metrics.items()}
    assert losses[-1] == 9 > min(losses)
    assert call("track", tmp_path / "grid") == 0
    found = table(tmp_path / "grid")
    assert found.keys() == expected.keys()
    for name, (choices, metrics) in expected.items():
        assert found[name][0] == choices
        assert {metric: found[name][1][metric] for metric in metrics} == metrics


def test_what_resuming_makes_again_is_there_once(run):
    """An older event file still has the last epochs that the resumed run has replaced."""
    assert call("track", run.path) == 0
    metrics = run.path / "metrics.jsonl"
    keep_records(metrics, int(run.metrics.step[2]))
    last = {"event": "epoch", "epoch": 4, "step": int(run.metrics.step[3]), "training_loss": 9.0, "seconds": None}
    append_record(metrics, last)
    assert call("track", run.path) == 0
    assert call("track", run.path) == 0
    assert sorted(path.stat().st_size > 0 for path in run.path.glob("*tfevents*")) == [False, True]
    curves, _ = seen(run.path)
    assert curves["training_loss"] == recorded(run.path, "epoch", "training_loss")
    assert curves["training_loss"][-1] == (last["step"], 9.0)
    assert len(curves["training_loss"]) == 4


def test_following_shows_each_epoch_as_it_comes_and_forgets_what_is_dropped(run):
    metrics, whole = run.path / "metrics.jsonl", (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "samples.jsonl").unlink()
    metrics.write_text("".join(whole[:4]))
    file = EventFile(run.path)
    file.show(points_of(open_run(run.path), ()))
    reader = EventAccumulator(str(run.path), size_guidance={"scalars": 0})  # like a TensorBoard that stays open

    def steps():
        return [event.step for event in reader.Reload().Scalars("training_loss")]

    ends = run.metrics.step.tolist()
    assert steps() == ends[:2]
    (name,) = run.path.glob("*tfevents*")
    metrics.write_text("".join(whole[:8]) + whole[8][:20])  # ends within a line
    file.show(points_of(open_run(run.path), ()))
    assert [*run.path.glob("*tfevents*")] == [name]
    assert steps() == ends[:4]
    metrics.write_text("".join(whole[:6]))
    file.show(points_of(open_run(run.path), ()))
    assert steps() == ends[:3]
    metrics.write_text("".join(whole))
    file.show(points_of(open_run(run.path), ()))
    file.close()
    assert steps() == ends == [step for step, _ in seen(run.path)[0]["training_loss"]]


def test_the_command_follows_until_it_is_told_to_stop(run, monkeypatch):
    whole = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text("".join(whole[:2]))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt
        (run.path / "metrics.jsonl").write_text("".join(whole))

    monkeypatch.setattr("experiments.track.time.sleep", sleep)
    assert call("track", run.path, "--follow") == 130
    assert len(seen(run.path)[0]["training_loss"]) == 5


def test_without_the_library_it_says_how_to_get_it(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert call("track", run.path) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("error: TensorBoard's event files need tensorboardX")
    assert sentence.endswith("-m pip install -e '.[tracking]'")
    assert not list(run.path.glob("*tfevents*"))


def test_nothing_but_the_command_needs_the_library(corpus, tmp_path):
    """A run is trained by a process in which tensorboardX cannot be imported."""
    (tmp_path / "tensorboardX.py").write_text("raise SystemExit('tensorboardX was imported')")
    words = ["--corpus", str(corpus), *SMALL, "--hidden-size", "8", "--epochs", "2", "--run-dir", str(tmp_path / "run")]
    script = Path(__file__).parent.parent / "experiments" / "text_generation.py"
    environment = {"PYTHONPATH": f"{tmp_path}:{script.parent.parent}", "PATH": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, str(script), *words], env=environment, check=True, capture_output=True)
    assert len(read_records(tmp_path / "run" / "metrics.jsonl")) == 4


def test_event_files_are_no_part_of_a_run(run):
    assert call("track", run.path) == 0
    other, link = (run.path / f"events.out.tfevents.9{name}" for name in (".elsewhere", ".charlm_jax"))
    other.write_text("another program's")
    link.symlink_to(other)
    assert call("track", run.path) == 0
    assert other.read_text() == "another program's"
    assert not link.exists()
    again = train_run(run.configuration, run.path)
    assert again.metrics.step.tolist() == run.metrics.step.tolist()
    assert not [finding for finding in verify(open_run(run.path)) if finding.problem]
