"""Runs: what they record, how they stop and how they resume."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charlm_jax.errors import DivergedError, InputError, Preempted
from charlm_jax.learning.evaluation import Evaluation
from charlm_jax.learning.training import make_train_steps
from charlm_jax.mesh import replica_mesh, replicate
from charlm_jax.runs import history, loop
from charlm_jax.runs import train as training
from charlm_jax.runs.assembly import prepare, state_shapes
from charlm_jax.runs.checkpoints import outdated, read_state, state_files
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.directory import RunDirectory, find_runs, open_run
from charlm_jax.runs.records import read_records
from charlm_jax.runs.samples import _prompt
from charlm_jax.runs.stop import stop_requests
from charlm_jax.runs.train import train, train_together
from charlm_jax.runs.trained import load_text, read_run
from charlm_jax.runs.verification import verify

TINY = Configuration(
    lowercase=True, window=10, stride=2, batch_size=16, hidden_size=8, epochs=2, sample_length=20, seed=3
)


@pytest.fixture
def tiny(tmp_path, small_text):
    """A configuration whose runs take a second."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(small_text)
    return dataclasses.replace(TINY, corpus=str(corpus))


def finish(configuration, path):
    """Train to the end; return the epochs, and what `left_behind` returns."""
    job = prepare(configuration, path=path)
    with stop_requests() as stop_requested:
        epochs = list(train(job, path, stop_requested))
    return epochs, *left_behind(path)


def left_behind(path):
    """Return what a run must reproduce: its final and best parameters, and its records without timings."""
    run = RunDirectory(path)
    newest, best = read_run(run, "newest"), read_run(run, "best")
    clock = ("seconds", "characters_per_second")
    metrics = [
        {key: value for key, value in record.items() if key not in clock} for record in read_records(run.metrics)
    ]
    return jax.tree.leaves((newest.model, best.model)), metrics, read_records(run.samples)


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """What `finish` returns for an uninterrupted `tiny` run."""
    return finish(dataclasses.replace(TINY, corpus=str(corpus)), tmp_path_factory.mktemp("unbroken") / "run")


def same(one, other):
    return all(map(np.array_equal, one[1], other[1])) and one[2:] == other[2:]


def stop_after(monkeypatch, dispatches, deed):
    """Call `deed` after a number of dispatches of the training program."""
    make = training.train_steps_of

    def counting(*arguments, **options):
        train_steps, done = make(*arguments, **options), [0]

        def counted(state, ids, key, stop):
            result = train_steps(state, ids, key, stop)
            done[0] += 1
            if done[0] == dispatches:
                deed()
            return result

        return counted

    monkeypatch.setattr(training, "train_steps_of", counting)


def terminate():
    """Send this process a SIGTERM, and wait until it has been handled."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)


def die():
    raise KeyboardInterrupt


def mended(configuration, path, monkeypatch, dispatches, deed, end):
    """Train until `deed` interrupts the first epoch, as `end` expects; resume, and return what `finish` returns."""
    with monkeypatch.context() as patch, end:
        stop_after(patch, dispatches, deed)
        finish(configuration, path)
    assert 0 < read_run(open_run(path), "newest").step < prepare(configuration).steps_per_epoch
    return finish(configuration, path)


def dying(function, call, *, after=False):
    """Wrap a function so that the process dies at call number `call`, before or after the function does its work."""
    calls = itertools.count(1)

    def died(*arguments, **options):
        now = next(calls) == call
        if now and not after:
            die()
        result = function(*arguments, **options)
        if now:
            die()
        return result

    return died


def test_what_a_run_records(tiny, tmp_path):
    epochs, _, metrics, samples = finish(tiny, tmp_path / "run")
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert [record["event"] for record in metrics] == ["evaluation", "epoch"] * 2
    job = prepare(tiny)
    assert metrics[3]["windows"] == job.windows
    assert metrics[3]["step"] == 2 * job.steps_per_epoch
    assert epochs[1].training_loss == metrics[3]["training_loss"] < epochs[0].training_loss
    assert metrics[2]["bits_per_character"] == pytest.approx(metrics[2]["held_out_loss"] / np.log(2))
    assert [record["temperature"] for record in samples] == [0.2, 0.5, 1.0, 1.2] * 2
    assert all(len(record["prompt"]) == 10 and len(record["text"]) == 20 for record in samples)
    assert samples[0]["prompt"] in job.vocabulary.decode(job.corpus.ids)
    assert samples[0]["prompt"] != samples[4]["prompt"]

    run = open_run(tmp_path / "run")
    assert run.configuration() == tiny
    provenance = run.provenance()
    assert provenance["corpus"]["sha256"] == job.corpus.sha256
    assert provenance["versions"]["jax"] == jax.__version__
    assert {"command", "commit", "device_kind", "device_count", "precision"} <= set(provenance)


def test_nothing_held_out_is_nothing_evaluated(tiny, tmp_path):
    everything = dataclasses.replace(tiny, held_out_fraction=0.0, epochs=1)
    epochs, _, metrics, _ = finish(everything, tmp_path / "run")
    assert epochs[0].held_out is None
    assert [record["event"] for record in metrics] == ["epoch"]


@pytest.mark.parametrize("dispatches", [1, 2, 3])
def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(tiny, unbroken, tmp_path, monkeypatch, dispatches):
    stopped = pytest.raises(Preempted, match=r"broken was stopped .* the same command resumes if it names")
    assert same(mended(tiny, tmp_path / "broken", monkeypatch, dispatches, terminate, stopped), unbroken)


def test_a_run_with_kept_carries_stopped_amid_an_epoch_goes_on_bit_for_bit(tiny, tmp_path, monkeypatch):
    every = dataclasses.replace(tiny, objective="every-character", batch_size=5, dropout=0.1)
    broken = mended(every, tmp_path / "broken", monkeypatch, 2, terminate, pytest.raises(Preempted))
    assert same(broken, finish(every, tmp_path / "unbroken"))


def test_a_long_epoch_is_saved_on_the_way(tiny, unbroken, tmp_path, monkeypatch):
    """Killed within its first epoch, it resumes from there."""
    monkeypatch.setattr(loop, "_SAVE_SECONDS", 0.0)
    assert same(mended(tiny, tmp_path / "broken", monkeypatch, 3, die, pytest.raises(KeyboardInterrupt)), unbroken)


@pytest.mark.parametrize(
    "place", ["before the checkpoint", "before the best", "before the records", "amid the records", "after the records"]
)
def test_a_run_that_dies_goes_on_bit_for_bit(tiny, unbroken, tmp_path, monkeypatch, place):
    """Die at the end of the second epoch, at each point where its checkpoint or its records may be missing."""
    with monkeypatch.context() as patch:
        if place == "before the checkpoint":
            patch.setattr(loop, "save_state", dying(loop.save_state, 3))  # after the first epoch's two
        elif place == "before the best":
            patch.setattr(loop, "save_state", dying(loop.save_state, 4))
        elif place == "before the records":
            patch.setattr(loop, "evaluate", dying(loop.evaluate, 2))
        else:  # six records an epoch: four texts, the evaluation, the epoch
            call = 9 if place == "amid the records" else 12
            patch.setattr(history, "append_record", dying(history.append_record, call, after=True))
        with pytest.raises(KeyboardInterrupt):
            finish(tiny, tmp_path / "broken")
    assert same(finish(tiny, tmp_path / "broken"), unbroken)


def test_the_best_model_is_kept_and_training_stops_when_it_stays_the_best(tiny, tmp_path, monkeypatch, capsys):
    """The third epoch is the best; two no better ones end training, and the next command leaves it ended."""
    losses = iter([3.0, 2.5, 2.0, 2.1, 2.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: Evaluation(next(losses), 7))
    patient = dataclasses.replace(tiny, epochs=9, patience=2, sample_every=9)
    epochs = list(train(prepare(patient), tmp_path / "run"))
    assert [(epoch.epoch, bool(epoch.samples)) for epoch in epochs] == [*((n, False) for n in (1, 2, 3, 4)), (5, True)]
    assert "stopped early: no lower held-out loss for 2 epochs" in capsys.readouterr().err
    run, steps = open_run(tmp_path / "run"), prepare(patient).steps_per_epoch
    assert read_run(run).step == 3 * steps
    assert read_run(run, "newest").step == 5 * steps
    assert list(train(prepare(patient), tmp_path / "run")) == []
    assert "stopped early" in capsys.readouterr().err
    losses = iter([1.9])
    more = dataclasses.replace(patient, patience=3)
    assert next(train(prepare(more), tmp_path / "run")).epoch == 6, "more patience goes on"
    assert open_run(tmp_path / "run").configuration().patience == 3


def test_a_run_without_its_checkpoints_goes_on_from_its_best_model(tiny, unbroken, tmp_path, monkeypatch):
    """The best state suffices to resume; without that as well, training refuses to start over records that exist."""
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", dying(loop.save_state, 4))  # before the second epoch's best state
        with pytest.raises(KeyboardInterrupt):
            finish(tiny, path)
    shutil.rmtree(path / "checkpoints")
    again = finish(tiny, path)
    assert [epoch.epoch for epoch in again[0]] == [2]
    assert same(again, unbroken)
    for folder in ("checkpoints", "best"):
        shutil.rmtree(path / folder)
    before = (path / "metrics.jsonl").read_text()
    with pytest.raises(
        InputError, match=r"has records up to step \d+, but its states are missing; restore .* again in"
    ):
        finish(tiny, path)
    assert (path / "metrics.jsonl").read_text() == before


def test_texts_come_every_few_epochs_and_at_the_end(tiny, tmp_path):
    samples = finish(dataclasses.replace(tiny, epochs=5, sample_every=2), tmp_path / "run")[3]
    assert [record["epoch"] for record in samples] == [2] * 4 + [4] * 4 + [5] * 4


def test_a_run_goes_on_from_another_runs_model_with_its_vocabulary(tiny, tmp_path, small_text, monkeypatch):
    with monkeypatch.context() as patch:
        losses = iter([1.0, 2.0])
        patch.setattr(loop, "evaluate", lambda *_, **__: Evaluation(next(losses), 7))
        finish(tiny, tmp_path / "first")
    (tmp_path / "other.txt").write_text(small_text[200:])
    second = dataclasses.replace(tiny, corpus=str(tmp_path / "other.txt"), init_from=str(tmp_path / "first"), seed=4)
    job, source = prepare(second), read_run(open_run(tmp_path / "first"))
    assert source.step < read_run(open_run(tmp_path / "first"), "newest").step, "it goes on from the best"
    assert job.vocabulary == source.vocabulary
    start = loop.first_state(job)
    assert all(map(np.array_equal, jax.tree.leaves(start.model), jax.tree.leaves(source.model)))
    assert int(start.step) == 0
    epochs, *_ = finish(second, tmp_path / "second")
    assert epochs[0].training_loss < finish(tiny, tmp_path / "first")[2][1]["training_loss"]

    finish(dataclasses.replace(tiny, precision="bfloat16", epochs=1), tmp_path / "coarse")
    assert read_run(open_run(tmp_path / "coarse")).model.network.precision == "bfloat16"
    finer = prepare(dataclasses.replace(second, init_from=str(tmp_path / "coarse")))
    assert finer.network.precision == "float32", "the source's precision stays its own"
    loop.first_state(finer)

    (tmp_path / "first").rename(tmp_path / "gone")
    longer = dataclasses.replace(second, epochs=3)
    assert [epoch.epoch for epoch in finish(longer, tmp_path / "second")[0]] == [3], "the source is needed no more"
    assert len(load_text(open_run(tmp_path / "second"))[1]) == len(job.held_out_ids)
    (tmp_path / "gone").rename(tmp_path / "first")

    with pytest.raises(InputError, match=r"--init-from .*: its model differs: --hidden-size 8 there, 9 here"):
        prepare(dataclasses.replace(second, hidden_size=9))
    with pytest.raises(InputError, match="--gate-activation sigmoid there, hard_sigmoid here"):
        prepare(dataclasses.replace(second, gate_activation="hard_sigmoid"))
    with pytest.raises(InputError, match="is not a run directory"):
        prepare(dataclasses.replace(second, init_from=str(tmp_path / "nothing")))
    shutil.copytree(tmp_path / "first", tmp_path / "begun")
    for folder in ("best", "checkpoints"):
        shutil.rmtree(tmp_path / "begun" / folder)
    early = dataclasses.replace(second, init_from=str(tmp_path / "begun"))
    with pytest.raises(InputError, match="has no checkpoint yet"):
        finish(early, tmp_path / "third")
    assert not (tmp_path / "third").exists()
    (tmp_path / "other.txt").write_text(small_text + "🜁")
    with pytest.raises(InputError, match=r"the corpus .* has '🜁' .* which is not among the"):
        prepare(second)


def test_streams_that_the_text_does_not_fill_are_refused_with_what_would_do(tiny):
    every = dataclasses.replace(tiny, objective="every-character", batch_size=500)
    with pytest.raises(InputError, match=r"do not fill --batch-size 500 windows of 10 .* give at most") as caught:
        prepare(every)
    most = int(re.findall(r"at most --batch-size (\d+)", str(caught.value))[0])
    assert prepare(dataclasses.replace(every, batch_size=most)).steps_per_epoch == 1
    with pytest.raises(InputError):
        prepare(dataclasses.replace(every, batch_size=most + 1))


def test_more_epochs_extend_a_run_to_what_it_would_have_been(tiny, unbroken, tmp_path):
    short = dataclasses.replace(tiny, epochs=1)
    finish(short, tmp_path / "extended")
    assert same(finish(tiny, tmp_path / "extended"), unbroken)
    assert open_run(tmp_path / "extended").configuration() == tiny
    assert finish(tiny, tmp_path / "extended")[0] == [], "a finished run has nothing to do"


def test_another_configuration_is_refused_with_its_differences(tiny, tmp_path):
    finish(dataclasses.replace(tiny, epochs=1), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for changed, message in [
        ({"hidden_size": 9, "seed": 4}, "--hidden-size 8 there, 9 here; --seed 3 there, 4 here"),
        ({"epochs": 3, "window": 11}, "--window 10 there, 11 here"),
    ]:
        with pytest.raises(InputError, match=message):
            finish(dataclasses.replace(tiny, **{"epochs": 1, **changed}), tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_another_text_is_refused(tiny, tmp_path, small_text):
    """The message is short: that the hash and the characters differ as well need not be said."""
    finish(tiny, tmp_path / "run")
    (tmp_path / "other.txt").write_text(f"{small_text} another")
    with pytest.raises(InputError, match=r"another run: --corpus \S+corpus.txt there, \S+other.txt here\. Use"):
        finish(dataclasses.replace(tiny, corpus=str(tmp_path / "other.txt")), tmp_path / "run")
    (tmp_path / "corpus.txt").write_text(small_text.replace("power", "tower", 1))
    with pytest.raises(InputError, match=r"another run: the text of --corpus \S+corpus.txt has changed since\. Use"):
        finish(tiny, tmp_path / "run")


def test_the_same_text_from_another_place_is_the_same_run(tiny, tmp_path, small_text):
    finish(dataclasses.replace(tiny, epochs=1), tmp_path / "run")
    (tmp_path / "copy.txt").write_text(small_text)
    (tmp_path / "wide.txt").write_text(small_text, encoding="utf-16")
    for name, encoding in (("copy.txt", "utf8"), ("wide.txt", "utf-16")):
        here = dataclasses.replace(tiny, corpus=str(tmp_path / name), encoding=encoding, epochs=1)
        assert finish(here, tmp_path / "run")[0] == [], "already finished"
    assert len(finish(dataclasses.replace(tiny, corpus=str(tmp_path / "copy.txt")), tmp_path / "run")[0]) == 1
    run = open_run(tmp_path / "run")
    assert run.configuration() == tiny, "the run keeps the place that it knows"
    assert len(load_text(run)[1]) == len(prepare(tiny).held_out_ids)
    (tmp_path / "corpus.txt").write_text(small_text.replace("power", "tower"))
    with pytest.raises(InputError, match="not the text that the run"):
        load_text(run)


def test_fewer_epochs_and_a_longer_cosine_are_refused(tiny, tmp_path):
    cosine = dataclasses.replace(tiny, schedule="cosine")
    finish(cosine, tmp_path / "run")
    with pytest.raises(InputError, match="--epochs 2 there, 1 here"):
        finish(dataclasses.replace(cosine, epochs=1), tmp_path / "run")
    more = r"2 there, 3 here; a warm-up and a cosine schedule span all epochs.* --init-from \S+ --run-dir OTHER\. Use"
    with pytest.raises(InputError, match=more):
        finish(dataclasses.replace(cosine, epochs=3), tmp_path / "run")
    warm = dataclasses.replace(tiny, warmup=0.5)
    finish(warm, tmp_path / "warm")
    with pytest.raises(InputError, match=more):
        finish(dataclasses.replace(warm, epochs=3), tmp_path / "warm")


def test_what_is_no_run_is_named_for_what_it_is(tiny, tmp_path):
    path = tmp_path / "runs" / "run"
    finish(dataclasses.replace(tiny, epochs=1), path)
    with pytest.raises(InputError, match="but holds runs; name one of them"):
        open_run(path.parent)
    with pytest.raises(InputError, match="it does not exist; name one"):
        open_run(tmp_path / "nowhere")
    assert [run.path for run in find_runs(path.parent)] == [path]
    hidden = path.rename(path.parent / ".run.unfinished")
    with pytest.raises(InputError, match="and holds none"):
        find_runs(path.parent)
    hidden.rename(path)
    (path / "config.json").unlink()
    for use in (open_run, lambda path: finish(tiny, path)):
        with pytest.raises(InputError, match=r"it was one, but its config.json is missing; restore a copy"):
            use(path)


@pytest.mark.parametrize("use", ["a file", "in a file", "other files"])
def test_a_directory_that_cannot_hold_a_run(tiny, tmp_path, use):
    path = tmp_path / "taken"
    if use == "other files":
        path.mkdir()
        (path / "thesis.tex").write_text("")
    else:
        path.write_text("")
    with pytest.raises(InputError, match=r"the directory '.*taken"):
        finish(tiny, path / "run" if use == "in a file" else path)


def test_training_that_diverges_keeps_the_last_finite_state(tiny, tmp_path):
    wild = dataclasses.replace(tiny, learning_rate=1e38)
    said = r"in epoch 1, up to step \d+, 10 steps in a row were not finite; .* --learning-rate, or --clip 1, in another"
    with pytest.raises(DivergedError, match=said):
        finish(wild, tmp_path / "run")
    loaded = read_run(open_run(tmp_path / "run"))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(loaded.model))


def test_divergence_that_only_the_evaluation_sees(tiny, tmp_path):
    """One huge step at the end of an epoch leaves finite parameters, but no finite loss."""
    wild = dataclasses.replace(tiny, learning_rate=1e37, batch_size=1000)
    for _ in range(2):
        with pytest.raises(DivergedError, match="in epoch 1, up to step 1, the evaluation after it was not finite"):
            finish(wild, tmp_path / "run")
    assert read_run(open_run(tmp_path / "run")).step == 1
    assert read_records(tmp_path / "run" / "metrics.jsonl") == []


def test_an_epoch_without_a_finite_step(tiny, tmp_path):
    """Its only step, RMSprop's first of 3.2 times the rate, overflows float32; --clip, already set, is not advised."""
    wild = dataclasses.replace(tiny, learning_rate=3e38, optimizer="rmsprop-keras-2", batch_size=1000, clip=1.0)
    with pytest.raises(
        DivergedError, match=r"up to step 1, no step was finite; .* a smaller --learning-rate, in another"
    ):
        finish(wild, tmp_path / "run")


def test_the_text_of_every_preset_style(tiny, tmp_path):
    """Rolling on, each temperature's prompt is the end of the previous text; restarting, all prompts are the same."""
    rolling = dataclasses.replace(tiny, continuation="roll-on", epochs=1, sample_length=7)
    samples = finish(rolling, tmp_path / "rolling")[3]
    for before, after in itertools.pairwise(samples):
        assert after["prompt"] == (before["prompt"] + before["text"])[-10:]

    fixed = dataclasses.replace(tiny, prompt_start=4, temperatures=(0.5, 1.0, 1.0))
    samples = finish(fixed, tmp_path / "fixed")[3]
    assert {record["prompt"] for record in samples} == {prepare(tiny).vocabulary.decode(prepare(tiny).corpus.ids[4:14])}
    assert samples[1]["text"] != samples[2]["text"], "a temperature that is named twice gives two texts"


def test_texts_are_drawn_anew_in_every_epoch(tiny, tmp_path):
    """From the same prompt and temperature and, at a rate of 1e-30, the same model."""
    still = dataclasses.replace(tiny, prompt_start=4, temperatures=(1.0,), learning_rate=1e-30)
    first, second = finish(still, tmp_path / "still")[3]
    assert first["prompt"] == second["prompt"]
    assert first["text"] != second["text"]


def test_a_prompt_may_start_at_every_place(tiny):
    """A training text of eleven characters has two places for a window of ten; both occur."""
    job = prepare(tiny)
    short = dataclasses.replace(job, training_ids=job.training_ids[:11])
    prompts = {_prompt(short, epoch) for epoch in range(50)}
    assert prompts == {job.vocabulary.decode(job.corpus.ids[:10]), job.vocabulary.decode(job.corpus.ids[1:11])}


def changed(**values):
    return json.dumps({**TINY.to_json(), **values})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json' cannot be read"),
        ("config.json", "[]", "config.json' holds no JSON object"),
        (
            "config.json",
            '{"temperatures": [], "colour": "red"}',
            "of this version .*fields are not .*carry, clip, colour",
        ),
        ("config.json", changed(gate_activation="step"), "not the configuration of a run of this version .*step"),
        ("config.json", changed(window=-1), "config.json' is not the configuration .*--window -1"),
        ("provenance.json", "{}", "provenance.json' does not say where"),
        ("provenance.json", '{"versions": {}, "corpus": {}}', "provenance.json' does not say where"),
        ("metrics.jsonl", "not JSON\n", "metrics.jsonl' line 1 is not a record"),
        ("samples.jsonl", "{}\n", "samples.jsonl' line 1 is not a record"),
    ],
)
def test_damaged_files_are_named(tiny, tmp_path, file, content, message):
    path = tmp_path / "run"
    finish(dataclasses.replace(tiny, epochs=1), path)
    (path / file).write_text(content)
    with pytest.raises(InputError, match=message):
        finish(tiny, path)


def test_a_directory_that_an_interrupted_start_left_is_used(tiny, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    for name in ("provenance.json", ".config.json.1234.unfinished"):
        (path / name).write_text("{")
    assert len(finish(dataclasses.replace(tiny, epochs=1), path)[0]) == 1


def test_no_temperatures_is_no_texts(tiny, tmp_path):
    assert finish(dataclasses.replace(tiny, temperatures=(), epochs=1), tmp_path / "run")[3] == []


@pytest.mark.parametrize("what", ["device_kind", "processor"])
def test_a_run_from_elsewhere_goes_on_with_a_warning(tiny, tmp_path, capsys, what):
    finish(dataclasses.replace(tiny, epochs=1), tmp_path / "run")
    run = open_run(tmp_path / "run")
    here = run.provenance()[what]
    run.write_provenance({**run.provenance(), what: "abacus"})
    finish(tiny, tmp_path / "run")
    said = f"not bit-exact: this run was started elsewhere ({what} abacus then and {here} now)"
    assert said in capsys.readouterr().err
    run.write_provenance({name: fact for name, fact in run.provenance().items() if name != what})
    finish(dataclasses.replace(tiny, epochs=3), tmp_path / "run")
    assert "not bit-exact" not in capsys.readouterr().err, "where it was is not known"


def test_json_files_are_whole_or_absent(tiny, tmp_path, monkeypatch):
    finish(dataclasses.replace(tiny, epochs=1), tmp_path / "run")
    run = open_run(tmp_path / "run")

    def broken(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="No space"):
            run.write_configuration(tiny)
    assert run.configuration().epochs == 1
    assert sorted(path.name for path in run.path.iterdir()) == [
        "best", "checkpoints", "config.json", "lock", "metrics.jsonl", "provenance.json", "samples.jsonl"
    ]  # fmt: skip
    assert json.loads((run.path / "config.json").read_text())["epochs"] == 1


@pytest.mark.parametrize("response", ["warn", "rollback"])
def test_training_that_becomes_unstable(tiny, tmp_path, monkeypatch, capsys, response):
    """The second epoch is judged unstable; the first is the best, and training resumes from it at half the rate."""
    chosen = dataclasses.replace(tiny, epochs=4, on_divergence=response, schedule="cosine")
    monkeypatch.setattr(loop, "unstable", lambda losses, size: len(losses) == 2)
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: Evaluation(1.0 + len(list((tmp_path).rglob("*"))), 7))
    unbroken = finish(chosen, tmp_path / "unbroken")
    said = capsys.readouterr().err
    assert "the training loss of epoch 2," in said
    events = [record for record in unbroken[2] if record["event"] == "rollback"]
    assert ("or --on-divergence rollback" in said) == (response == "warn")
    if response == "warn":
        assert events == []
        return
    steps = prepare(chosen).steps_per_epoch
    rate = pytest.approx(0.005, rel=1e-6)  # float32
    assert events == [{"event": "rollback", "epoch": 2, "step": 2 * steps, "to_step": steps, "rate": rate}]
    assert f"rolled back to the model of step {steps}; the learning rate is now 0.005 at most" in said

    job, run = prepare(chosen), open_run(tmp_path / "unbroken")
    like = state_shapes(job.network, job.optimizer, job.order, job.mesh)
    first, third = (read_state(state_files(run.checkpoints)[n * steps], like, run.identity()) for n in (1, 3))
    back = first._replace(step=jnp.int32(2 * steps), learning_rate=first.learning_rate / 2)
    train_steps = make_train_steps(job.optimizer, job.order, chosen.objective, job.mesh, schedule=job.schedule)
    expected = train_steps(
        replicate(back, job.mesh), replicate(jnp.array(job.training_ids), job.mesh), job.key, 3 * steps
    )
    assert all(map(np.array_equal, jax.tree.leaves(third), jax.tree.leaves(expected)))


def test_a_run_that_was_sent_back_and_stopped_goes_on_bit_for_bit(tiny, tmp_path, monkeypatch):
    chosen = dataclasses.replace(tiny, epochs=3, on_divergence="rollback")
    monkeypatch.setattr(loop, "unstable", lambda losses, size: len(losses) == 2)
    unbroken = finish(chosen, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_epoch", dying(loop._train_epoch, 3))
        with pytest.raises(KeyboardInterrupt):
            finish(chosen, tmp_path / "broken")
    assert same(finish(chosen, tmp_path / "broken"), unbroken)


def test_no_rollback_is_advised_where_nothing_is_held_out(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "unstable", lambda losses, size: bool(losses))
    finish(dataclasses.replace(tiny, epochs=1, held_out_fraction=0.0), tmp_path / "run")
    said = capsys.readouterr().err
    assert "training has become unstable. Try a smaller --learning-rate, or --clip 1\n" in said


def test_records_lost_during_training_do_not_cost_the_best_model(tiny, tmp_path):
    """Without the losses of earlier epochs, any later model would pass for the best."""
    path = tmp_path / "run"
    epochs = train(prepare(dataclasses.replace(tiny, epochs=3), path=path), path)
    next(epochs)
    best = RunDirectory(path).best
    kept = {file.name: file.read_bytes() for file in best.iterdir()}
    records = RunDirectory(path).metrics.rename(tmp_path / "metrics.jsonl")
    with pytest.raises(InputError, match="has the held-out losses of 0 epochs, not of the 1 before this one"):
        next(epochs)
    assert {file.name: file.read_bytes() for file in best.iterdir()} == kept
    records.rename(RunDirectory(path).metrics)
    resumed = train(prepare(dataclasses.replace(tiny, epochs=3), path=path), path)
    assert [epoch.epoch for epoch in resumed] == [2, 3]


def test_a_run_without_the_loss_of_an_epoch_is_not_resumed(tiny, tmp_path):
    """The lowest may be the one that is missing, and a worse model would take the best one's place."""
    run = RunDirectory(tmp_path / "run")
    finish(tiny, run.path)
    lines = run.metrics.read_text().splitlines(keepends=True)
    assert '"evaluation", "epoch": 1' in lines[0]
    run.metrics.write_text("".join(lines[1:]))
    assert [finding.problem for finding in verify(run) if finding.path == run.metrics] == [
        "it does not hold the held-out loss of every epoch once"
    ]
    with pytest.raises(InputError, match=r"does not hold each epoch up to step \d+ once \(missing: \[1\]\)"):
        finish(dataclasses.replace(tiny, epochs=3), run.path)


def test_going_back_has_an_end(tiny, tmp_path, monkeypatch):
    """Every epoch is judged unstable: after the rate has been halved ten times, training gives up."""
    chosen = dataclasses.replace(tiny, epochs=30, on_divergence="rollback", temperatures=())
    monkeypatch.setattr(loop, "unstable", lambda losses, size: bool(losses))
    with pytest.raises(DivergedError, match=r"in epoch 11, and rolling back did not help; .* in another directory"):
        finish(chosen, tmp_path / "run")
    rates = [record["rate"] for record in read_records(tmp_path / "run" / "metrics.jsonl") if "rate" in record]
    assert rates == pytest.approx([0.01 / 2**n for n in range(1, 11)], rel=1e-6)


def finish_together(configurations, folder):
    """Train runs together; return for each what `finish` returns for one."""
    jobs = [prepare(configuration) for configuration in configurations]
    paths = [folder / str(number) for number in range(len(jobs))]
    mesh = replica_mesh(jax.devices()[:2], len(jobs))
    with stop_requests() as stop_requested:
        epochs = list(train_together(jobs, paths, mesh, stop_requested))
    own = [[epoch for replica, epoch in epochs if replica == number] for number in range(len(jobs))]
    return [(mine, *left_behind(path)) for mine, path in zip(own, paths, strict=True)]


@pytest.fixture
def three(tiny):
    """Runs that differ in seed and learning rate."""
    chosen = dataclasses.replace(tiny, objective="every-character", batch_size=5, dropout=0.1, epochs=2)
    return [dataclasses.replace(chosen, seed=seed, learning_rate=0.003 * seed) for seed in (1, 2, 3)]


def test_runs_that_are_trained_together_are_what_they_are_alone(three, tmp_path):
    """They are ordinary runs, with the losses of ordinary runs."""
    together = finish_together(three, tmp_path / "together")
    for number, configuration in enumerate(three):
        alone = finish(configuration, tmp_path / "alone" / str(number))
        assert [epoch.epoch for epoch in together[number][0]] == [1, 2]
        for mine, theirs in zip(together[number][2], alone[2], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)
        run = open_run(tmp_path / "together" / str(number))
        assert (run.configuration(), run.provenance()["replicas"]) == (configuration, 3)


@pytest.mark.parametrize("dispatches", [1, 5])
def test_runs_trained_together_and_stopped_go_on_bit_for_bit(three, tmp_path, monkeypatch, dispatches):
    unbroken = finish_together(three, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stop_after(patch, dispatches, terminate)
        with pytest.raises(Preempted):
            finish_together(three, tmp_path / "broken")
    assert all(read_run(open_run(tmp_path / "broken" / str(number)), "newest").step > 0 for number in range(3))
    again = finish_together(three, tmp_path / "broken")
    assert all(same(one, other) for one, other in zip(again, unbroken, strict=True))


def test_one_that_diverges_leaves_the_others_to_their_ends(three, tmp_path):
    wild = dataclasses.replace(three[1], learning_rate=1e38)
    with pytest.raises(DivergedError, match="training diverged"):
        finish_together([three[0], wild, three[2]], tmp_path / "run")
    expected = finish_together([three[0], three[2], three[2]], tmp_path / "others")
    for number, other in ((0, 0), (2, 1)):
        assert left_behind(tmp_path / "run" / str(number))[1] == expected[other][2]


def test_a_run_at_its_end_waits_for_those_beside_it(three, tmp_path):
    unbroken = finish_together(three, tmp_path / "unbroken")
    shutil.rmtree(tmp_path / "unbroken" / "1")
    again = finish_together(three, tmp_path / "unbroken")
    assert [len(epochs) for epochs, *_ in again] == [0, 2, 0]
    assert all(same(one, other) for one, other in zip(again, unbroken, strict=True))


def test_what_unstable_is():
    """Half a nat above the lowest loss, or above a uniform guess: as in published run A, or at a rate of 1e30."""
    assert not history.unstable([], 57)
    assert not history.unstable([1.98, 1.3, 1.31, 1.79], 57)
    assert history.unstable([1.98, 1.3, 1.31, 1.81], 57)
    assert not history.unstable([4.5], 57)
    assert history.unstable([4.6], 57)


def test_a_rate_beyond_all_reason_is_called_so(tiny, tmp_path, capsys):
    finish(dataclasses.replace(tiny, learning_rate=1e30, epochs=1), tmp_path / "run")
    said = r"is more than 0\.5 above a uniform guess's, \d\.\d{4}; training has become unstable\. Try a smaller"
    assert re.search(said, capsys.readouterr().err)


def test_which_states_are_kept():
    """The newest two, and those at the ends of epochs 1, 2, 4, 8, ..., of ten steps each."""
    assert outdated([5, 10, 20, 30, 33, 40, 50, 60, 70, 75], 10) == [5, 30, 33, 50, 60]
    assert outdated([], 10) == outdated([3], 10) == outdated([3, 4], 10) == []
