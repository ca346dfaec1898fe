"""The commands as users run them: flags, output, errors, exit codes."""

import csv
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import call
from faults import Command
from oracles import GATES, numpy_logits

from charlm_jax.analysis.baselines import baselines
from charlm_jax.analysis.text_statistics import Reference, text_statistics
from charlm_jax.learning.evaluation import Evaluation
from charlm_jax.runs import loop
from charlm_jax.runs.checkpoints import state_files
from charlm_jax.runs.command_line import parse_training
from charlm_jax.runs.configuration import PRESETS
from charlm_jax.runs.directory import open_run
from charlm_jax.runs.encoding import encode
from charlm_jax.runs.records import read_records
from charlm_jax.runs.trained import load_text, read_run
from experiments.reproduce import _differences

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py"))
SMALL = ["--window", "10", "--stride", "2", "--batch-size", "16", "--hidden-size", "8", "--sample-length", "20"]
TINY = [*SMALL, "--objective", "last-character", "--sampler", "windowed", "--sample-every", "1"]


def command(experiment, *flags, **options):
    """Start an experiment in its own process, as scripts/run does once .venv exists."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("environment", {})}
    words = [sys.executable, str(ROOT / "experiments" / f"{experiment}.py"), *map(str, flags)]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def run(experiment, *flags, timeout=300, **options):
    process = command(experiment, *flags, **options)
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("the will to power is the will to truth; what is good? the feeling of power.\n" * 14)
    return path


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A finished run, and what its command printed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    code, output, errors = run("text_generation", "--corpus", corpus, *TINY, "--epochs", 2, "--run-dir", path)
    assert code == 0, errors
    return path, output, errors


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_help_reads_like_documentation_and_loads_no_jax(experiment, tmp_path):
    (tmp_path / "jax.py").write_text("raise SystemExit('JAX was imported')")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "COLUMNS": "80"}
    code, output, errors = run(experiment, "--help", environment=environment)
    assert (code, errors) == (0, "")
    documentation = importlib.import_module(f"experiments.{experiment}").__doc__
    assert documentation is not None
    assert output.startswith(f"usage: scripts/run {experiment}")
    assert documentation.splitlines()[0] in " ".join(output.split())
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize("experiment", ["compare", "evaluate", "report", "sample", "temperature"])
def test_a_run_that_is_not_there_is_told_of_before_jax_is_loaded(experiment, tmp_path):
    (tmp_path / "jax.py").write_text("raise SystemExit('JAX was imported')")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    code, output, errors = run(experiment, tmp_path / "nowhere", environment=environment)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")


def test_all_experiments_are_listed():
    def listing(*words):
        environment = {**os.environ, "CDPATH": "/tmp:."}  # with which cd may go elsewhere and print where
        return subprocess.run(["scripts/run", *words], capture_output=True, text=True, cwd=ROOT, env=environment)

    asked, nothing, wrong = listing("--help"), listing(), listing("nosuch")
    assert (asked.returncode, asked.stderr, nothing.stdout, wrong.stdout) == (0, "", "", "")
    assert re.findall(r"^  (\w+) +[A-Z]", asked.stdout, re.M) == EXPERIMENTS
    assert max(map(len, asked.stdout.splitlines())) <= 80
    assert (nothing.returncode, nothing.stderr) == (2, asked.stdout)
    assert (wrong.returncode, wrong.stderr) == (2, f"error: there is no experiment 'nosuch'\n{asked.stdout}")


def test_every_flag_of_the_design_is_there():
    code, output, _ = run("text_generation", "--help")
    assert code == 0
    text = ["corpus", "encoding", "lowercase", "held-out-fraction", "window", "stride", "batch-size"]
    model = ["hidden-size", "layers", "dropout", "weight-dropout", "gate-activation", "precision", "seed"]
    learning = ["objective", "carry", "optimizer", "learning-rate", "schedule", "warmup", "weight-decay", "clip"]
    learning += ["epochs", "patience", "init-from", "embedding-size"]
    for flag in [*text, *model, *learning, "temperatures", "sample-length", "sampler", "run-dir", "devices"]:
        assert f"--{flag} " in output or f"--{flag}," in output


def test_the_main_job_prints_results_to_stdout_and_the_rest_to_stderr(trained):
    _, output, errors = trained
    epochs = re.findall(r"^epoch (\d+) \(\d+ s\): training loss [\d.]+ nats per character, held-out loss", output, re.M)
    assert epochs == ["1", "2"]
    assert output.count("--- prompt: ") == 2
    assert re.findall(r"^------ temperature: (\S+)$", output, re.M) == ["0.2", "0.5", "1", "1.2"] * 2
    for word in ("1,064 characters", "21 distinct", "parameters", "cpu", "float32", "scripts/run sample"):
        assert word in errors, errors
    assert "epoch" not in output.split("epoch 1")[0]
    losses = [record["held_out_loss"] for record in read_records(trained[0] / "metrics.jsonl", "evaluation")]
    number, loss = min(enumerate(losses, start=1), key=lambda entry: entry[1])
    assert f"finished; best: epoch {number}, {loss:.4f} nats per character of held-out text; " in errors
    loaded, texts = read_run(open_run(trained[0])), load_text(open_run(trained[0]))
    losses = baselines(*texts, len(loaded.vocabulary), loaded.vocabulary.decode)
    words = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    assert words.startswith("uniform 3.0445, unigram")
    assert output.splitlines()[-1] == f"without a network, the held-out text costs, in nats per character: {words}"


def test_the_default_learns_every_character_and_writes_now_and_then(corpus, tmp_path, capsys):
    flags = ["--corpus", corpus, *SMALL, "--epochs", 4, "--sample-every", 2, "--run-dir", tmp_path / "run"]
    assert call("text_generation", *flags) == 0
    captured = capsys.readouterr()
    assert "one after another with the state kept, every character learned; 4 x 5 steps of 16 windows" in captured.err
    assert captured.out.count("epoch ") == 4
    assert captured.out.count("--- prompt: ") == 2
    samples = read_records(tmp_path / "run" / "samples.jsonl")
    assert [record["epoch"] for record in samples] == [2] * 4 + [4] * 4
    assert {record["sampler"] for record in samples} == {"stateful"}


def test_sample_prints_only_text(trained, capsys):
    path = trained[0]
    flags = ["--prompt", "the will", "--temperature", 0.5, 1, "--count", 2, "--length", 30]
    assert call("sample", path, *flags) == 0
    texts = capsys.readouterr().out
    assert texts.count("the will") >= 4
    assert len(texts) == 4 * (8 + 30 + 1)
    assert call("sample", path, *flags, "--json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["temperature"], record["number"]) for record in records] == [(0.5, 0), (0.5, 1), (1, 0), (1, 1)]
    assert texts == "".join(f"{record['prompt']}{record['text']}\n" for record in records)
    assert len({record["text"] for record in records}) == 4


def test_sample_takes_what_the_run_has_for_what_is_not_said(trained, capsys):
    path = trained[0]
    assert call("sample", path, "--length", 5, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt"] == read_records(path / "samples.jsonl")[-1]["prompt"]
    assert call("sample", path, "--greedy", "--length", 30, "--seed", 1) == 0
    greedy = capsys.readouterr().out
    assert call("sample", path, "--temperature", 0, "--length", 30, "--seed", 2, "--top-k", 1) == 0
    assert capsys.readouterr().out == greedy
    assert call("sample", path, "--temperature", 2, "--length", 30, "--top-k", 1, "--sampler", "windowed") == 0
    assert capsys.readouterr().out == greedy


def test_a_text_that_is_asked_for_twice_is_two_texts(trained, capsys):
    flags = ["--prompt", "the will", "--temperature", 1, 1, "--length", 30]
    assert call("sample", trained[0], *flags, "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["text"] != second["text"]


def test_texts_that_come_in_portions_are_those_that_come_at_once(trained, capsys, monkeypatch):
    flags = ["--prompt", "the will", "is", "--temperature", 1, 0.5, 1, "--count", 3, "--length", 30, "--json"]
    assert call("sample", trained[0], *flags) == 0
    whole = capsys.readouterr().out
    assert len(set(whole.splitlines())) == 18
    monkeypatch.setattr("experiments.sample._PORTION", 5)
    assert call("sample", trained[0], *flags) == 0
    assert capsys.readouterr().out == whole


def test_a_reader_that_has_seen_enough_and_a_terminal_without_the_letters(trained, tmp_path):
    path = trained[0]
    words = [sys.executable, str(ROOT / "experiments" / "sample.py"), str(path), "--length", "100000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
    for words in (["sample", "--help"], ["verify", path]):  # output so short that it is written at exit
        with command(*words, environment={"PYTHONUNBUFFERED": ""}) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 141
    words = [sys.executable, str(ROOT / "experiments" / "verify.py"), str(path)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, env=environment, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: standard output, or a file: No space left on device;")
    (tmp_path / "corpus.txt").write_text("天地玄黄宇宙洪荒" * 30)
    flags = ["--corpus", tmp_path / "corpus.txt", *TINY, "--epochs", 1, "--run-dir", tmp_path / "run"]
    code, output, errors = run("text_generation", *flags, environment={"PYTHONIOENCODING": "ascii"})
    assert code == 0, errors
    assert "\\u5929" in output


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_that_is_started_without_a_standard_stream_does_its_work(trained, tmp_path, closed):
    for path, code in ((trained[0], 0), (tmp_path, 2)):
        words = shlex.join([sys.executable, str(ROOT / "experiments" / "verify.py"), str(path)])
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(f"{words} {closed}", shell=True, capture_output=True, env=environment)
        assert (ended.returncode, b"Traceback" in ended.stderr) == (code, False)
        assert (b"is not a run directory" in ended.stderr) == (code == 2 and "2>" not in closed)


def test_evaluate_repeats_the_number_of_the_run(trained, corpus, tmp_path, capsys):
    """To the last bit, on the same number of devices."""
    path = trained[0]
    devices = json.loads((path / "provenance.json").read_text())["device_count"]
    assert call("evaluate", path, "--devices", devices, "--stride", 2) == 0
    result = json.loads(capsys.readouterr().out)
    recorded = read_records(path / "metrics.jsonl")[-2]
    assert result["loss_nats"] == recorded["held_out_loss"]
    assert result["bits_per_character"] == recorded["bits_per_character"]
    assert result["characters"] == recorded["characters"]
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text()[:100])
    assert call("evaluate", path, "--text", text) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["characters"], result["stateful"]["characters"]) == (90, 99)


def test_evaluate_says_what_the_model_earns_and_draws_it(trained, tmp_path, capsys):
    """NumPy computes the same numbers from the run's held-out text and the parameters that it kept."""
    path = trained[0]
    figure = tmp_path / "figure.svg"
    assert call("evaluate", path, "--figure", figure) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    loaded, (training, held_out) = read_run(open_run(path)), load_text(open_run(path))
    assert (result["window"], result["stride"], result["step"]) == (10, 1, loaded.step)
    assert result["baselines"] == baselines(training, held_out, len(loaded.vocabulary), loaded.vocabulary.decode)
    assert list(result["baselines"]) == ["uniform", "unigram", "7-gram", "bz2", "xz"]

    def nats(ids):
        logits = numpy_logits(loaded.model.parameters, ids[..., :-1], GATES["sigmoid"])
        here = np.take_along_axis(logits, ids[..., 1:, None], -1)[..., 0]
        return np.log(np.exp(logits).sum(-1)) - here, logits[..., -1, :]

    assert result["stateful"]["loss_nats"] == pytest.approx(nats(held_out[None].astype(int))[0].mean(), rel=1e-5)
    windows = np.lib.stride_tricks.sliding_window_view(held_out.astype(int), 11)
    losses, last = nats(windows)
    assert result["loss_nats"] == pytest.approx(losses[:, -1].mean(), rel=1e-5)
    assert result["loss_by_position"] == pytest.approx(losses.mean(axis=0), rel=1e-5)
    calibration = result["calibration"]
    assert calibration["loss_nats_at_best"] == min(calibration["loss_nats"]) <= result["loss_nats"]
    assert calibration["best_temperature"] != 1
    for name, temperature in [("", 1.0), ("_at_best", calibration["best_temperature"])]:
        weighed = np.exp(last / temperature)
        confidence, right = (weighed / weighed.sum(-1, keepdims=True)).max(-1), last.argmax(-1) == windows[:, -1]
        bins = [np.flatnonzero((confidence * 15).astype(int) == place) for place in range(15)]
        error = sum(abs(right[there].mean() - confidence[there].mean()) * len(there) for there in bins if len(there))
        assert calibration[f"expected_calibration_error{name}"] == pytest.approx(error / len(last), rel=1e-4)
    assert figure.stat().st_size > 10_000
    assert f"figure: {figure}" in captured.err


def test_evaluate_scores_an_encoded_text_and_of_a_long_one_the_beginning(trained, corpus, tmp_path, capsys):
    """The numbers are those of the plain text, and of a file with its beginning alone."""
    encode(corpus, tmp_path / "ids", encoding=None, lowercase=False)
    beginning = tmp_path / "beginning.txt"
    beginning.write_text(corpus.read_text()[:100])
    results = []
    for flags in ([corpus, "--characters", 100], [tmp_path / "ids", "--characters", 100], [beginning]):
        assert call("evaluate", trained[0], "--text", *flags) == 0
        captured = capsys.readouterr()
        results.append(json.loads(captured.out))
        assert captured.err.startswith("the first 100 of the text's 1,064 ") == (len(flags) > 1)
    assert results[0] == results[1] == results[2]


def test_evaluate_takes_the_best_model_unless_told(corpus, tmp_path, monkeypatch, capsys):
    """The best is the first epoch's: the second is made to look worse, whatever its loss."""
    seen, real = [], loop.evaluate

    def worse(*arguments, **options):
        seen.append(real(*arguments, **options).loss_nats)
        return Evaluation(loss_nats=float(len(seen)), characters=1)

    monkeypatch.setattr(loop, "evaluate", worse)
    assert call("text_generation", "--corpus", corpus, *TINY, "--epochs", 2, "--run-dir", tmp_path) == 0
    devices = json.loads((tmp_path / "provenance.json").read_text())["device_count"]
    for flags, loss in (([], seen[0]), (["--checkpoint", "best"], seen[0]), (["--checkpoint", "newest"], seen[1])):
        capsys.readouterr()
        assert call("evaluate", tmp_path, *flags, "--devices", devices, "--stride", 2) == 0
        assert json.loads(capsys.readouterr().out)["loss_nats"] == loss


def test_temperature_measures_texts_after_the_same_prompts(trained, tmp_path, capsys):
    """Prompts and human texts come from the held-out text; adding a temperature changes no text of the others."""
    path = trained[0]
    flags = ["--prompts", 8, "--length", 30]
    assert call("temperature", path, *flags, "--temperatures", 0.5, 1.0, "--output", tmp_path / "two") == 0
    page = capsys.readouterr().out
    assert "because the human texts overlap: give a longer --text" in page, "there are no fewer --prompts to give"
    assert (tmp_path / "two" / "temperature.md").read_text().startswith(page)
    assert call("temperature", path, *flags, "--temperatures", 1.0, 0.2, 0.5, "--output", tmp_path / "three") == 0
    two, three = (read_records(tmp_path / name / "temperature_samples.jsonl") for name in ("two", "three"))
    assert two == [record for record in three if record["temperature"] in (0.5, 1.0)]
    assert len(three) == 24
    loaded, (_, held_out) = read_run(open_run(path)), load_text(open_run(path))
    text = loaded.vocabulary.decode(held_out)
    starts = [number * (len(text) - 40) // 7 for number in range(8)]
    assert [record["prompt"] for record in two[:8]] == [text[start : start + 10] for start in starts]
    rows = list(csv.DictReader((tmp_path / "two" / "temperature.csv").read_text().splitlines()[1:]))
    human = [text[start + 10 : start + 40] for start in starts]
    reference = Reference.of(loaded.vocabulary.decode(load_text(open_run(path))[0]))
    for name, texts in (("human", human), ("0.5", [record["text"] for record in two[:8]])):
        for measure, values in text_statistics(reference, texts).items():
            (row,) = (row for row in rows if (row["measure"], row["temperature"]) == (measure, name))
            assert float(row["mean"]) == pytest.approx(np.nanmean(values), rel=1e-5)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        f"temperature{ending}" for ending in (".md", ".csv", ".svg", ".png", "_samples.jsonl")
    }


def test_temperature_says_that_a_model_predicts_nothing(corpus, tmp_path, capsys):
    """After steps so large that its losses are huge or not finite."""
    for rate, code, message in (
        ("1e3", 0, r"warning: in .* costs \S+e\+\d+ nats per character, more than uniform guessing \(3.0445\)"),
        ("1e38", 2, r"error: .* predicts no text \(its loss is (inf|nan) nats per character\)"),
    ):
        path = tmp_path / rate
        call("text_generation", "--corpus", corpus, *TINY, "--epochs", 1, "--learning-rate", rate, "--run-dir", path)
        capsys.readouterr()
        assert call("temperature", path, "--prompts", 8, "--length", 30, "--temperatures", 1) == code
        captured = capsys.readouterr()
        assert re.search(message, captured.err)
        assert ("nats per character" in captured.out) == (code == 0)
        figure = tmp_path / f"{rate}.svg"
        assert call("evaluate", path, "--figure", figure) == code
        captured = capsys.readouterr()
        assert re.search(message, captured.err) or code == 0
        assert bool(captured.out) == figure.exists() == (code == 0)
    assert call("temperature", tmp_path, "--prompts", 8, "--length", 30, "--temperatures", 1) == 0
    captured = capsys.readouterr()
    assert re.search("left out: the model of '.*/1e38', at step .*, predicts no text", captured.err)
    assert captured.out.startswith("# 1e3, step ")


def test_temperature_says_what_texts_are_compared_with(trained, tmp_path, capsys, monkeypatch):
    """Of a training text too long for it, the end; the page and the table say so."""
    monkeypatch.setattr("charlm_jax.analysis.baselines.LIMIT", 500)
    flags = ["--prompts", 8, "--length", 30, "--temperatures", 1, "--output", tmp_path]
    assert call("temperature", trained[0], *flags) == 0
    said = "Texts are compared with the last 500 characters of the training text."
    assert said in capsys.readouterr().out
    remark, *lines = (tmp_path / "temperature.csv").read_text().splitlines()
    assert said in remark
    loaded, (training, _) = read_run(open_run(trained[0])), load_text(open_run(trained[0]))
    texts = [record["text"] for record in read_records(tmp_path / "temperature_samples.jsonl")]
    expected = text_statistics(Reference.of(loaded.vocabulary.decode(training[-500:])), texts)["novelty_8"]
    (row,) = (row for row in csv.DictReader(lines) if (row["measure"], row["temperature"]) == ("novelty_8", "1"))
    assert float(row["mean"]) == pytest.approx(np.nanmean(expected), rel=1e-5)


def test_compare_lays_runs_side_by_side(corpus, trained, tmp_path, capsys):
    """The trained run beside one of a larger model, stopped within its first epoch, whose seconds are thus unknown."""
    other = tmp_path / "larger"
    model = ["--hidden-size", 12, "--dropout", 0.1, "--seed", 9]
    flags = ["--corpus", corpus, *TINY, *model, "--epochs", 2, "--run-dir", other]
    assert call("text_generation", *flags) == 0
    lines = (other / "metrics.jsonl").read_text().splitlines()
    first = {**json.loads(lines[1]), "seconds": None}
    (other / "metrics.jsonl").write_text("\n".join([lines[0], json.dumps(first), *lines[2:]]) + "\n")
    table, figure = tmp_path / "table.csv", tmp_path / "figure.png"
    capsys.readouterr()
    assert call("compare", trained[0], other, "--table", table, "--figure", figure, "--target", 9) == 0
    captured = capsys.readouterr()
    header, *rows = [line.split() for line in captured.out.splitlines()]
    assert header == [
        "run", "hidden_size", "dropout", "seed", "held_out_loss", "epoch", "seconds", "seconds_to_9.0000"
    ]  # fmt: skip
    assert "larger was stopped within an epoch; its seconds are unknown from there" in captured.err
    assert "differ in" not in captured.err
    remark, *written = csv.reader(table.read_text().splitlines())
    assert remark[0].startswith("# held-out loss in nats per character")
    assert remark[-1].endswith(f"scripts/run compare {trained[0]} {other} --target 9.0")
    assert [[cell for cell in row if cell] for row in written] == [header, *rows]
    assert figure.stat().st_size > 10_000
    records = read_records(trained[0] / "metrics.jsonl")
    assert rows[0][:6] == [f"{trained[0].parent.name}/run", "8", "0.2", "1", f"{records[2]['held_out_loss']:.4f}", "2"]
    assert float(rows[0][6]) == pytest.approx(records[1]["seconds"] + records[3]["seconds"], abs=0.06)
    assert float(rows[0][7]) == pytest.approx(records[1]["seconds"], abs=0.06)
    assert rows[1][1:4] == ["12", "0.1", "9"]
    assert len(rows[1]) == 6, "after the stop its times are unknown"
    assert call("compare", trained[0], other) == 0
    header, row, _ = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header[-1] == f"seconds_to_{rows[0][4]}"
    assert row[-1] == row[-2], "the first run reaches its own best"
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(trained[0], elsewhere)
    provenance = json.loads((elsewhere / "provenance.json").read_text())
    provenance["corpus"]["sha256"] = "0" * 64
    (elsewhere / "provenance.json").write_text(json.dumps(provenance))
    settings = json.loads((elsewhere / "config.json").read_text())
    (elsewhere / "config.json").write_text(json.dumps({**settings, "stride": 1}))
    assert call("compare", trained[0], elsewhere) == 0
    notes = capsys.readouterr().err
    assert "differ in text," in notes
    assert "differ in stride," in notes
    (elsewhere / "metrics.jsonl").unlink()
    assert call("compare", elsewhere, trained[0], other) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert re.match("left out: the run '.*elsewhere' has no held-out loss: let it finish an epoch", captured.err)
    for bad, message in [
        ([elsewhere], "error: the run "),
        ([], "no run is named; give directories"),
        ([tmp_path / "nothing"], "is not a run directory"),
        ([other, "--figure", "x.txt"], "ends in .svg or .png"),
        ([other, "--table", "x.txt"], "ends in .csv"),
        ([other, "--target", "nan"], "--target nan cannot be used"),
    ]:
        assert call("compare", *bad) == 2
        assert message in capsys.readouterr().err


def test_compare_tells_runs_of_the_same_name_apart(trained, tmp_path, capsys):
    """In the table and in the figure's legend, whatever the name means to matplotlib."""
    for grid in ("one", "_two"):
        shutil.copytree(trained[0], tmp_path / grid / "$_^$")
    figure = tmp_path / "figure.svg"
    assert call("compare", tmp_path / "one", tmp_path / "_two", "--figure", figure) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["one/$_^$", "_two/$_^$"]
    drawn = figure.read_text()
    assert all(name in drawn for name in ("one/$_^$", "_two/$_^$"))


def test_commands_say_why_a_run_has_no_held_out_loss(corpus, tmp_path, capsys):
    flags = ["--corpus", corpus, *TINY, "--held-out-fraction", 0, "--run-dir", tmp_path / "run"]
    assert call("text_generation", *flags, "--epochs", 1) == 0
    assert call("compare", tmp_path / "run") == 2
    assert "has no held-out loss: none is held out; train another with --held-out-fr" in capsys.readouterr().err
    for experiment in ("temperature", "evaluate"):
        assert call(experiment, tmp_path / "run") == 2
        assert "held out no text; name one with --text FILE" in capsys.readouterr().err


def test_verify_names_what_is_bad(trained, tmp_path, capsys):
    path = tmp_path / "run"
    shutil.copytree(trained[0], path)
    assert call("verify", path) == 0
    output = capsys.readouterr().out
    assert output.count("ok  ") == len(output.splitlines()) == 4 + len(list(path.glob("*/*.safetensors")))
    (best,) = (path / "best").iterdir()
    best.write_bytes(best.read_bytes()[:-1] + b"?")
    (path / "metrics.jsonl").write_text("{}\n")
    (path / "checkpoints" / "notes.txt").write_text("mine")
    assert call("verify", path) == 2
    captured = capsys.readouterr()
    bad = [line for line in captured.out.splitlines() if not line.startswith("ok  ")]
    assert [line.split(": ")[0] for line in bad] == [
        "BAD       metrics.jsonl", "BAD       checkpoints/notes.txt", f"BAD       best/{best.name}"
    ]  # fmt: skip
    assert "does not have the SHA-256 that it was saved with" in bad[2]
    assert f"3 of {len(captured.out.splitlines())} files" in captured.err


@pytest.mark.parametrize(
    ("missing", "verdict", "way"),
    [
        ("samples.jsonl", "it is missing", r"start from its model in another run: --init-from \S+ --run-dir OTHER$"),
        ("metrics.jsonl", "it is missing", r"start from its model in another run: --init-from \S+ --run-dir OTHER$"),
        ("provenance.json", "it is missing", "restore copies of them$"),
        ("checkpoints/NEWEST", "it is recorded but missing", "resume training from the newest intact state$"),
        ("best/NEWEST", "it is recorded but missing", "resume training from the newest intact state$"),
    ],
)
def test_verify_names_what_is_missing_once_and_what_can_be_done(trained, tmp_path, capsys, missing, verdict, way):
    """No advice to resume where training would refuse the run; states that cannot be checked are not called ok."""
    path = tmp_path / "run"
    shutil.copytree(trained[0], path)
    folder = missing.partition("/")[0]
    states = sorted(str(state.relative_to(path)) for state in path.glob("*/*.safetensors"))
    missing = missing.replace("NEWEST", max(state_files(path / folder).values(), default=path).name)
    (path / missing).unlink()
    assert call("verify", path) == 2
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line for line in lines if missing in line] == [f"BAD       {missing}: {verdict}"]
    assert captured.err.startswith(f"error: 1 of {4 + len(states)} files of")
    assert re.search(way, captured.err.strip())
    others = {line for line in lines if ".safetensors" in line and missing not in line}
    word = "unchecked" if missing == "provenance.json" else "ok"
    assert others == {f"{word:<9} {state}" for state in states if state != missing}


def test_reproduce_lays_a_run_over_the_published_curves(corpus, tmp_path, capsys):
    flags = ["--corpus", corpus, *TINY, "--epochs", 2, "--run-dir", tmp_path / "run"]
    assert call("reproduce", "keras-2.2", *flags) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[0].split() == ["epoch", "ours", "A", "B", "C", "D", "distance", "verdict"]
    assert "1.9812" in output.splitlines()[1]
    assert output.splitlines()[-1] == "0 of 2 epochs within 0.01 nats of the published band"
    for suffix in ("svg", "png"):
        assert (tmp_path / "run" / "figures" / f"loss_curves.{suffix}").stat().st_size > 10_000
    assert call("reproduce", "keras-2.2", *flags) == 0, "a trained run is only compared"
    assert capsys.readouterr().out == output


def test_reproduce_judges_each_epoch_and_names_another_job(corpus, tmp_path, capsys):
    """Losses just inside and outside of 0.01 nats from the published 1.9812 to 1.9982, and 1.6265 to 1.6427."""
    flags = ["--corpus", corpus, *TINY, "--recurrence", "unrolled", "--epochs", 2, "--run-dir", tmp_path / "run"]
    assert call("reproduce", "keras-2.2", *flags) == 0
    said = capsys.readouterr().err
    assert "not the published job that it is compared with: --window 60 there, 10 here; " in said
    assert "training windows here, not Nietzsche's 200,278" in said
    assert "--recurrence" not in said, "the numbers are the same"
    metrics = tmp_path / "run" / "metrics.jsonl"
    for losses, verdicts in (
        ((1.9722, 1.6517), ["reproduced"] * 2),
        ((1.9702, 1.6537), ["differs"] * 2),
        ((1.99, 1.0), ["reproduced", "differs"]),
    ):
        records = read_records(metrics)
        for record, loss in zip((each for each in records if each["event"] == "epoch"), losses, strict=True):
            record["training_loss"] = loss
        metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
        assert call("reproduce", "keras-2.2", *flags) == 0
        *_, first, second, last = capsys.readouterr().out.splitlines()
        assert [first.split()[-1], second.split()[-1]] == verdicts
        assert last.startswith(f"{verdicts.count('reproduced')} of 2 epochs")
    assert "(not the published job)" in (tmp_path / "run" / "figures" / "loss_curves.csv").read_text()


def test_reproduce_knows_what_changes_the_loss():
    for flags, differences in (
        (["--seed", "2", "--epochs", "1", "--recurrence", "unrolled"], []),
        (["--precision", "bfloat16"], ["--precision float32 there, bfloat16 here"]),
    ):
        arguments = parse_training("reproduce", None, flags, preset="tf-keras-2.5")
        assert _differences(arguments.configuration, 200_278) == differences


BAD_TRAINING = {
    "an unknown preset": (
        ["qick"],
        r"no preset 'qick'; name one of quick, strong, tf-keras-2.5.*; did you mean 'quick'\?",
    ),
    "nothing like a preset": (["xyz"], "no preset 'xyz'; name one of .*, tf-keras$"),
    "a text for a preset": (
        ["long.txt"],
        "no preset 'long.txt'; name one of .*; a text is given with --corpus long.txt$",
    ),
    "an unknown corpus": (
        ["--corpus", "neitzsche"],
        r"no corpus, file or folder 'neitzsche'; name one of python-docs.* to text; did you mean 'nietzsche'\?",
    ),
    "an empty text": (["--corpus", "empty.txt"], "empty.txt' has 0 characters.*needs at least 610"),
    "a text of one character": (["--corpus", "one.txt"], "one.txt' has 1 character, but"),
    "a text too short": (["--corpus", "short.txt"], "has 300 characters.*needs at least 610"),
    "one distinct character": (["--corpus", "same.txt"], "only one distinct character, 'a'"),
    "bytes that do not decode": (["--corpus", "latin.txt"], r"byte 0xe9 at offset 3 \(line 2\).*--encoding cp1252"),
    "an unknown encoding": (["--corpus", "short.txt", "--encoding", "utf8000"], "'utf8000' is not a text encoding"),
    "a directory of files": (["--run-dir", "."], "holds files but no run"),
    "a directory under a file": (
        ["--corpus", "long.txt", "--batch-size", "8", "--run-dir", "one.txt/run"],
        "cannot be written",
    ),
    "a negative seed": (["--seed", "-1"], r"--seed -1.*0 to 4294967295"),
    "a large seed": (["--seed", str(2**32)], r"--seed 4294967296.*0 to 4294967295"),
    "a negative temperature": (["--temperatures", "0.5", "-0.1"], r"--temperatures -0.1.*0 \(always"),
    "a temperature that is no number": (["--temperatures", "nan"], "--temperatures nan"),
    "a temperature beyond all": (["--temperatures", "inf"], "--temperatures inf.*1e30"),
    "an empty name": (["--corpus", ""], "no corpus, file or folder ''"),
    "a very long name": (["--corpus", "x" * 300], "File name too long"),
    "a count beyond 32 bits": (["--stride", "10000000000"], "--stride 10000000000.*2147483647"),
    "steps beyond 32 bits": (
        ["--corpus", "long.txt", "--carry", "fresh", "--epochs", "2000000000"],
        "32-bit counter.*at most 238609294",
    ),
    "too little for the streams": (["--corpus", "long.txt"], "do not fill --batch-size 32.*at most --batch-size 14"),
    "a decay that adam ignores": (["--optimizer", "adam"], "--weight-decay 0.01.*0 without --optimizer adamw"),
    "rollback with nothing": (
        ["--on-divergence", "rollback", "--held-out-fraction", "0"],
        "--on-divergence rollback.*nothing is held out",
    ),
    "patience with nothing": (["--patience", "3", "--held-out-fraction", "0"], "--patience 3.*nothing is held out"),
    "a negative warm-up": (["--warmup", "-0.1"], "--warmup -0.1.*at least 0"),
    "no embedding": (["--embedding-size", "0"], "--embedding-size 0.*from 1 to 2147483647"),
    "no run to start from": (["--init-from", "long.txt"], "long.txt' is not a run directory"),
    "a sliver held out": (["--held-out-fraction", "1e-9"], "--held-out-fraction 1e-09.*from 1e-6"),
    "no window": (["--window", "0"], "--window 0.*from 1 to 2147483647"),
    "no stride": (["--stride", "0"], "--stride 0.*from 1 to 2147483647"),
    "no batch": (["--batch-size", "-3"], "--batch-size -3.*from 1 to 2147483647"),
    "no units": (["--hidden-size", "0"], "--hidden-size 0.*from 1 to 2147483647"),
    "no layers": (["--layers", "0"], "--layers 0.*from 1 to 2147483647"),
    "no epochs": (["--epochs", "0"], "--epochs 0.*from 1 to 2147483647"),
    "all dropped": (["--dropout", "1"], "--dropout 1.*below 1"),
    "more than all dropped": (["--weight-dropout", "1.5"], "--weight-dropout 1.5.*below 1"),
    "all held out": (["--held-out-fraction", "1"], "--held-out-fraction 1.*below 1"),
    "a rate that is no number": (["--learning-rate", "nan"], "--learning-rate nan.*positive"),
    "a prompt beyond the text": (["--corpus", "long.txt", "--prompt-start", "900"], "the latest possible start is 840"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = {
        "empty": b"",
        "one": b"a",
        "short": b"abc" * 100,
        "same": b"a" * 1000,
        "latin": b"ab\n\xe9",
        "long": b"ab" * 500,
    }
    for name, content in texts.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    flags, message = BAD_TRAINING[case]
    assert call("text_generation", *flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(f"error: .*{message}", captured.err)
    assert captured.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.txt" for name in texts}


BAD_SAMPLING = {
    "no run": (["nowhere"], "'nowhere' is not a run directory"),
    "a negative temperature": (["RUN", "--temperature", "-1"], "--temperature -1.*0 "),
    "an unknown character": (["RUN", "--prompt", "Ünder"], r"prompt has 'Ü' \(U\+00DC\) at character 0.*21 characters"),
    "no prompt": (["RUN", "--prompt"], "--prompt without a text"),
    "no temperature": (["RUN", "--temperature"], "--temperature without a number"),
    "an infinite temperature": (["RUN", "--temperature", "inf"], "--temperature inf.*1e30"),
    "a very long name": (["x" * 300], "File name too long"),
    "no length": (["RUN", "--length", "0"], "--length 0"),
    "no share": (["RUN", "--top-p", "0"], "--top-p 0.*above 0"),
    "no characters": (["RUN", "--top-k", "0"], "--top-k 0"),
    "a large seed": (["RUN", "--seed", str(2**32 + 3)], "--seed"),
}


@pytest.mark.parametrize("case", BAD_SAMPLING)
def test_bad_sampling_is_one_sentence(case, trained, capsys):
    flags, message = BAD_SAMPLING[case]
    assert call("sample", *(str(trained[0]) if flag == "RUN" else flag for flag in flags)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(f"error: .*{message}", captured.err)
    assert captured.err.count("\n") == 1


def test_bad_evaluation_is_one_sentence(trained, corpus, tmp_path, capsys):
    path = trained[0]
    (tmp_path / "short.txt").write_text("the will")
    (tmp_path / "other.txt").write_text("the will\n to pOwer")
    for flags, message in [
        (["--text", tmp_path / "short.txt"], "has 8 characters to score, but a window and its target need 11"),
        (["--text", tmp_path / "other.txt"], r"'O' \(U\+004F\) at character 14"),
        (["--stride", 0], "--stride 0"),
        (["--encoding", "cp1252"], "--encoding cp1252.*given with --text"),
    ]:
        assert call("evaluate", path, *flags) == 2
        assert re.search(message, capsys.readouterr().err)
    moved = tmp_path / "moved"
    shutil.copytree(path, moved)
    settings = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**settings, "corpus": str(tmp_path / "gone.txt")}))
    assert call("evaluate", moved) == 2
    assert re.search(
        r"the text that the run '.*moved' learned from is missing from '.*gone.txt'", capsys.readouterr().err
    )
    (moved / "provenance.json").unlink()
    assert call("evaluate", moved) == 2
    assert capsys.readouterr().err.count(str(moved)) == 1
    whole = tmp_path / "whole"
    assert (
        call("text_generation", "--corpus", corpus, *TINY, "--held-out-fraction", 0, "--run-dir", whole, "--epochs", 1)
        == 0
    )
    assert call("evaluate", whole) == 2
    assert "held out no text; name one with --text FILE" in capsys.readouterr().err


LONGER = [*TINY, "--epochs", 6, "--stride", 1, "--batch-size", 4]


@pytest.fixture(scope="module")
def unbroken(commands, corpus, tmp_path_factory):
    """An uninterrupted run of six epochs."""
    folder = tmp_path_factory.mktemp("runs")
    assert Command(["--corpus", corpus, *LONGER, "--run-dir", folder / "run"], folder).wait().code == 0
    return folder / "run"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -9)])
def test_a_killed_command_run_again_ends_as_if_unbroken(corpus, tmp_path, unbroken, number, code):
    """Send the signal as soon as the process has printed its second epoch of six."""
    path = tmp_path / "run"
    flags = ["--corpus", corpus, *LONGER, "--run-dir", path]
    process = Command(flags, tmp_path)
    process.wait_for(process.out)
    while process.process.is_alive() and "epoch 2" not in process.out.read_text():
        time.sleep(0.005)
    process.send(number)
    ended = process.wait()
    assert ended.code == code, ended.errors
    step = read_run(open_run(path), "newest").step
    assert Command(flags, tmp_path).wait().code == 0
    broken, whole = read_run(open_run(path), "newest"), read_run(open_run(unbroken), "newest")
    assert step < broken.step == whole.step
    assert all(map(np.array_equal, jax.tree.leaves(broken.model), jax.tree.leaves(whole.model)))
    assert read_records(path / "samples.jsonl") == read_records(unbroken / "samples.jsonl")


def test_the_presets_are_the_notebooks():
    """Field by field, as in the five notebooks; in all five, an epoch is 1,565 steps."""
    rolling = [0.2, 0.5, 1.0, 1.2]
    facts = {
        "tf-keras-2.5": (None, "sigmoid", 59, None, rolling, "roll-on"),
        "keras-fixed-prompt": ("cp1252", "sigmoid", 59, 116739, [0.2, 0.5, 1.0, 1.0, 2.0], "restart"),
        "keras-2.4": ("cp1252", "sigmoid", 59, None, rolling, "roll-on"),
        "keras-2.2": (None, "hard_sigmoid", 3, None, rolling, "roll-on"),
        "tf-keras": (None, "sigmoid", 59, None, rolling, "roll-on"),
    }
    assert set(PRESETS) == {"quick", "strong", *facts}
    for name, (encoding, gate, epochs, prompt_start, temperatures, continuation) in facts.items():
        preset = PRESETS[name]
        assert (preset.encoding, preset.gate_activation, preset.epochs) == (encoding, gate, epochs)
        assert (preset.prompt_start, list(preset.temperatures)) == (prompt_start, temperatures)
        assert preset.continuation == continuation
        assert (preset.corpus, preset.lowercase, preset.held_out_fraction) == ("nietzsche", True, 0)
        assert (preset.window, preset.stride, preset.batch_size, preset.sample_length) == (60, 3, 128, 400)
        assert (preset.hidden_size, preset.layers, preset.initializer, preset.sampler) == (128, 1, "keras", "windowed")
        assert (preset.optimizer, preset.learning_rate, preset.schedule) == ("rmsprop-keras-2", 0.01, "constant")
        assert preset.clip is None


def test_the_presets_meet_the_notebooks_text(nietzsche):
    from charlm_jax.runs.assembly import prepare

    for name, vocabulary, windows in [("tf-keras-2.5", 57, 200_278), ("keras-fixed-prompt", 59, 200_281)]:
        job = prepare(PRESETS[name])
        assert (len(job.vocabulary), job.windows, job.steps_per_epoch) == (vocabulary, windows, 1565)
        assert f"{vocabulary} distinct" in job.describe(Path("run"))
    prompt = job.vocabulary.decode(job.corpus.ids)[116739 : 116739 + 60]
    assert prompt == "the slowly ascending ranks and classes, in which,\nthrough fo"
