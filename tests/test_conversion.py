"""Runs converted to files and back by the command, and the files sampled without this package."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import call
from safetensors.numpy import save_file

from charlm_jax.choices import GateActivation
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.generation.generate import generate, pad_left
from charlm_jax.generation.serving import PLATFORMS
from charlm_jax.mesh import data_mesh
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.interop import to_keras, to_torch
from charlm_jax.model.network import CharacterLSTM, Model
from charlm_jax.runs import conversion
from charlm_jax.runs.directory import open_run
from charlm_jax.runs.trained import read_run

h5py = pytest.importorskip("h5py", reason="h5py is not installed: .venv/bin/python -m pip install -e '.[interop]'")

from charlm_jax.runs.keras_files import write_keras  # noqa: E402 (it needs h5py)

ROOT = Path(__file__).parent.parent
CHARACTERS = "\n abcdzé✓"
TEXT = "abécéz abab\n✓ da" * 3
WINDOW = 10
LAYOUTS = {
    "notebook": {},
    "hard": {"gate_activation": "hard_sigmoid", "layers": 2, "embedding_size": 3},
    "stateful": {"sampler": "stateful", "layers": 2},
}


def network_and_parameters(
    gate_activation: GateActivation = "sigmoid", layers=1, embedding_size=None, sampler="windowed"
):
    """Return a model whose likeliest text has some variety."""
    network = CharacterLSTM(len(CHARACTERS), 16, layers, gate_activation, embedding_size=embedding_size)
    parameters = initial_parameters(network, "keras", jax.random.key(4))
    return network, jax.tree.map(
        lambda leaf: 8 * leaf + jax.random.normal(jax.random.key(leaf.size + 4), leaf.shape), parameters
    )


@pytest.fixture(scope="module", params=LAYOUTS)
def made(request, tmp_path_factory):
    """A run converted from a hand-written pair of files, and what it must hold."""
    layout = LAYOUTS[request.param]
    network, parameters = network_and_parameters(**layout)
    folder = tmp_path_factory.mktemp(request.param)
    save_file(to_torch(to_keras(parameters)), folder / "source.safetensors")
    said = {"vocabulary": CHARACTERS, "gate_activation": "sigmoid", "window": WINDOW, "sampler": "windowed", **layout}
    (folder / "source.safetensors.json").write_text(json.dumps(said))
    assert call("convert", folder / "source.safetensors", folder / "run") == 0
    return folder / "run", network, parameters, said


def assert_same(run, parameters, **tolerance):
    for here, there in zip(
        jax.tree.leaves(read_run(open_run(run)).model.parameters), jax.tree.leaves(parameters), strict=True
    ):
        np.testing.assert_allclose(here, there, **{"rtol": 0, "atol": 0, **tolerance})


def sampled(capsys, run, *flags):
    capsys.readouterr()
    assert call("sample", run, "--prompt", "abé", "--length", 40, *flags) == 0
    return capsys.readouterr().out


def test_a_run_of_a_file_is_what_the_file_and_its_record_say(made):
    path, network, parameters, said = made
    loaded = read_run(open_run(path))
    assert (loaded.model.network, loaded.step, loaded.vocabulary) == (network, 0, Vocabulary(CHARACTERS))
    assert (loaded.configuration.window, loaded.configuration.sampler) == (WINDOW, said["sampler"])
    assert_same(path, parameters)
    source = path.with_name("source.safetensors")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert open_run(path).provenance()["converted_from"] == {"file": str(source), "sha256": digest}


@pytest.mark.parametrize("ending", [".keras", ".weights.h5", ".h5", ".safetensors"])
def test_there_and_back_again(made, ending, tmp_path, capsys):
    """The same numbers, bit for bit where no gate is scaled, and the same texts under the same key."""
    path, network, parameters, said = made
    file = tmp_path / f"model{ending}"
    assert call("convert", path, file) == 0
    beside = json.loads(Path(f"{file}.json").read_text())
    assert {name: beside[name] for name in said} == said
    assert (beside["hidden_size"], beside["layers"], beside["lowercase"]) == (16, network.layers, False)
    assert call("convert", file, tmp_path / "back") == 0
    scaled = network.gate_activation == "hard_sigmoid" and ending in (".keras", ".weights.h5")
    assert_same(tmp_path / "back", parameters, rtol=2e-7 if scaled else 0)
    for flags in (["--greedy"], ["--temperature", 0.7, "--count", 2]):
        assert sampled(capsys, tmp_path / "back", *flags) == sampled(capsys, path, *flags)


def sampled_by_numpy(*words):
    command = [sys.executable, "-I", ROOT / "scripts" / "sample_numpy.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout


def test_numpy_alone_writes_the_same_text(made, tmp_path, capsys):
    path, file = made[0], tmp_path / "model.safetensors"
    assert call("convert", path, file) == 0
    greedy = sampled_by_numpy(file, "abé", "0", "40")
    assert greedy == sampled(capsys, path, "--greedy")
    assert len(set(greedy[3:])) > 3, "a text of one character would show little"
    first, again, other = (sampled_by_numpy(file, "abé", "1", "40", seed) for seed in "112")
    assert first == again != other
    assert len(sampled_by_numpy(file, "", "1", "40")) == 41


def test_numpy_alone_says_what_it_cannot_use(made, tmp_path):
    file = tmp_path / "model.safetensors"
    assert call("convert", made[0], file) == 0
    for words, message in [
        ([], "the following arguments are required: file, prompt"),
        ([tmp_path / "nothing", "a"], f"'{tmp_path / 'nothing'}.json': No such file"),
        ([file, "aXbX"], "the model does not know the prompt's 'X'"),
        ([file, "a", "hot"], "invalid float value: 'hot'"),
    ]:
        with pytest.raises(subprocess.CalledProcessError) as failed:
            sampled_by_numpy(*words)
        usage, error = failed.value.stderr.splitlines()
        assert failed.value.returncode == 2
        assert usage.startswith("usage: sample_numpy.py [-h] file prompt [temperature] [length] [seed]")
        assert message in error
    assert "400 if not given" in sampled_by_numpy("--help")


def test_numpy_draws_at_the_temperature(tmp_path):
    """Compare each character's share of 4,000 independent draws; 5 standard deviations are allowed."""
    parameters = jax.tree.map(jnp.zeros_like, network_and_parameters()[1])
    parameters["head"]["bias"] = jnp.linspace(0, 2, len(CHARACTERS))
    save_file(to_torch(to_keras(parameters)), tmp_path / "model.safetensors")
    said = {"vocabulary": CHARACTERS, "gate_activation": "sigmoid", "sampler": "stateful"}
    (tmp_path / "model.safetensors.json").write_text(json.dumps({**said, "hidden_size": 16, "layers": 1}))
    text = sampled_by_numpy(tmp_path / "model.safetensors", "", "0.5", "4000")[:-1]
    shares = np.array([text.count(character) for character in CHARACTERS]) / 4000
    expected = np.asarray(jax.nn.softmax(parameters["head"]["bias"] / 0.5))
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)).all()


def test_the_exported_sampler_writes_what_the_sampler_writes(made, tmp_path):
    """Any number of texts, after prompts of any length; each text's key is made from its seed."""
    pytest.importorskip(
        "flatbuffers", reason="flatbuffers is not installed: .venv/bin/python -m pip install flatbuffers"
    )
    path, network, parameters, said = made
    assert call("convert", path, tmp_path / "model.jax", "--length", 50) == 0
    assert json.loads((tmp_path / "model.jax.json").read_text())["length"] == 50
    program = jax.export.deserialize(bytearray((tmp_path / "model.jax").read_bytes()))
    assert program.platforms == PLATFORMS
    for prompts in ([np.array([4, 5, 6]), np.array([], int), np.array([1, 2, 3, 4, 5, 6, 7])], [np.array([4, 5, 6])]):
        temperatures = np.array([0.0, 0.7, 1.2], np.float32)[: len(prompts)]
        seeds = np.arange(len(prompts), dtype=np.uint32)
        keys = jax.vmap(jax.random.key)(seeds)
        options = {"sampler": said["sampler"], "window": WINDOW, "length": 50}
        model = Model(network, parameters)
        expected = generate(model, prompts, temperatures.tolist(), keys, data_mesh(), **options)
        np.testing.assert_array_equal(program.call(*pad_left(prompts), temperatures, seeds), expected)


@pytest.mark.parametrize("made", ["hard"], indirect=True)
def test_a_converted_run_is_evaluated_and_started_from_but_not_gone_on_with(made, tmp_path, capsys):
    path, network, *_ = made
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 20)
    assert call("evaluate", path, "--text", text, "--characters", 100) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["characters"] == 90
    assert "without baselines: the text that the model of" in captured.err
    assert call("evaluate", path) == 2
    assert "`sample` and `evaluate --text FILE` do without it" in capsys.readouterr().err
    assert call("sample", path) == 2
    assert "give one with --prompt TEXT" in capsys.readouterr().err
    assert call("verify", path) == 0
    assert call("report", path) == 0
    embedding = ["--embedding-size", 3] if network.embedding_size else []
    model = ["--hidden-size", 16, "--layers", network.layers, "--gate-activation", network.gate_activation, *embedding]
    flags = ["--corpus", text, *model, "--window", WINDOW, "--batch-size", 8, "--sample-length", 5, "--epochs", 1]
    capsys.readouterr()
    assert call("text_generation", *flags, "--run-dir", path) == 2
    assert f"a model from another library, to start a run from: --init-from {path}" in capsys.readouterr().err
    assert call("text_generation", *flags, "--init-from", path, "--run-dir", tmp_path / "run") == 0
    assert open_run(tmp_path / "run").vocabulary().characters == CHARACTERS


def test_what_no_file_says_the_flags_do(tmp_path, capsys, monkeypatch):
    """The vocabulary is a text's sorted characters, lower-cased on request; gates and window have their own flags."""
    _, parameters = network_and_parameters()
    source, text = tmp_path / "source.safetensors", tmp_path / "text.txt"
    save_file(to_torch(to_keras(parameters)), source)
    text.write_text(TEXT.upper())
    command = ["convert", source, tmp_path / "run"]
    for flags, words in [
        ([], "lacks the gate activation and the vocabulary of its model; give --gate-activation sigmoid or"),
        ([], "sigmoid or hard_sigmoid and --corpus TEXT\n"),
        (["--gate-activation", "sigmoid"], "lacks the vocabulary of its model; give --corpus TEXT"),
        (["--gate-activation", "sigmoid", "--corpus", ROOT / "LICENSE"], "knows 9 characters, not the "),
        (["--lowercase"], "--lowercase True cannot be used: it must be given with --corpus"),
        (["--encoding", "latin-1"], "--encoding latin-1 cannot be used: it must be given with --corpus"),
        (
            ["--checkpoint", "newest"],
            "--checkpoint newest cannot be used: it must be omitted where a file becomes a run",
        ),
    ]:
        assert call(*command, *flags) == 2
        assert words in capsys.readouterr().err
    flags = ["--gate-activation", "sigmoid", "--corpus", text, "--lowercase"]
    before = sorted(tmp_path.iterdir())
    for written in range(3):  # the configuration, the provenance and the state are flushed to disk, with their folders
        no_space = OSError(errno.ENOSPC, "No space left on device")
        with monkeypatch.context() as full:
            full.setattr(os, "fsync", Mock(side_effect=[*[None] * (2 * written), no_space]))
            assert call(*command, *flags) == 2
        assert f"{str(tmp_path / 'run')!r} cannot be written (No space left" in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == before, "the failed attempt left nothing"
    assert call(*command, *flags) == 0
    assert "assuming 60 (--window)" in capsys.readouterr().err
    loaded = read_run(open_run(tmp_path / "run"))
    assert loaded.vocabulary.characters == CHARACTERS
    assert (loaded.configuration.lowercase, loaded.configuration.window) == (True, 60)
    assert call(*command[:2], tmp_path / "other", *flags, "--window", 7) == 0
    assert read_run(open_run(tmp_path / "other")).configuration.window == 7
    assert call("convert", source, ".") == 2
    assert "TARGET . cannot be used: it must be the name of a new file or directory" in capsys.readouterr().err
    assert call("convert", tmp_path / "run", tmp_path / "model.keras", "--window", 7) == 2
    assert "--window 7 cannot be used: it must be omitted where a run becomes a file" in capsys.readouterr().err


def test_a_model_whose_record_cannot_be_written_is_not_left_alone(made, tmp_path, monkeypatch, capsys):
    """Without its record it could not be read, and the same command would not write it again."""
    command = ["convert", made[0], tmp_path / "out" / "model.safetensors"]
    (tmp_path / "out").mkdir()
    no_space = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", Mock(side_effect=[None, None, no_space]))
        assert call(*command) == 2
    assert "No space left" in capsys.readouterr().err
    assert not [*(tmp_path / "out").iterdir()]
    assert call(*command) == 0


def test_weights_that_may_be_of_either_keras_are_refused_where_that_matters(tmp_path, capsys):
    """Late versions of tf.keras 2 lay out weights like Keras 3, whose hard sigmoid differs."""
    _, parameters = network_and_parameters()
    path = tmp_path / "model.weights.h5"
    path.write_bytes(write_keras(".weights.h5", to_keras(parameters), "sigmoid", None))
    Path(f"{path}.json").write_text(json.dumps({"vocabulary": CHARACTERS, "window": WINDOW}))
    with h5py.File(path, "r+") as file:
        del file["vars"].attrs["name"]
    command = ["convert", path, tmp_path / "run", "--gate-activation"]
    assert call(*command, "hard_sigmoid") == 2
    assert "convert the whole model" in capsys.readouterr().err
    assert call(*command, "sigmoid") == 0
    assert_same(tmp_path / "run", parameters)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", "cannot be read"),
        ('{"vocabulary": ["a", "b"]}', "must be of type str"),
        ('{"gate_activation": "relu"}', "must be one of sigmoid, hard_sigmoid"),
        ('{"sampler": {}}', "must be one of windowed, stateful"),
        ('{"window": 0}', "--window 0 cannot be used"),
        ('{"window": "ten"}', "must be of type int"),
        ('{"vocabulary": "ba"}', "in code-point order"),
        ('{"layers": 2}', "the layers is 2 in"),
        ('{"embedding_size": 5}', "the embedding size is 5 in"),
        ('{"gate_activation": "hard_sigmoid"}', "the gate activation is 'sigmoid' in the flags, but 'hard_sigmoid' in"),
    ],
)
def test_a_record_that_is_wrong_is_refused_in_a_sentence(record, words, tmp_path, capsys):
    _, parameters = network_and_parameters()
    source = tmp_path / "source.safetensors"
    save_file(to_torch(to_keras(parameters)), source)
    said = {"vocabulary": CHARACTERS, "gate_activation": "sigmoid"} if record != "{" else None
    whole = record if said is None else json.dumps({**said, **json.loads(record)})
    (tmp_path / "source.safetensors.json").write_text(whole)
    assert call("convert", source, tmp_path / "run", "--gate-activation", "sigmoid") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_contradiction_is_told_with_who_says_what(tmp_path, capsys):
    """The message names the two files, not the flags, which say nothing about the window."""
    path = tmp_path / "model.h5"
    path.write_bytes(write_keras(".h5", to_keras(network_and_parameters()[1]), "sigmoid", WINDOW))
    Path(f"{path}.json").write_text(json.dumps({"vocabulary": CHARACTERS, "window": 7}))
    assert call("convert", path, tmp_path / "run") == 2
    assert f"the window is 7 in '{path}.json', but {WINDOW} in '{path}'; omit" in capsys.readouterr().err


@pytest.mark.parametrize("made", ["notebook"], indirect=True)
def test_nothing_is_overwritten_and_other_endings_are_refused(made, tmp_path, capsys):
    path = made[0]
    there = tmp_path / "model.keras"
    there.write_text("mine")
    (tmp_path / "model.h5.json").write_text("mine")
    (tmp_path / "cut.safetensors").write_bytes(path.with_name("source.safetensors").read_bytes()[:-1])
    (tmp_path / "model.jax").write_text("")
    for source, target, words in [
        (path, there, "must be new"),
        (path, tmp_path / "model.h5", "must be new"),
        (path, tmp_path / "model.pt", "must be one that ends in .keras, .weights.h5, .h5, .safetensors, .jax"),
        (tmp_path / "model.jax", tmp_path / "run", "must be one that ends in .keras, .weights.h5, .h5, .safetensors"),
        (tmp_path / "none.h5", tmp_path / "run", "must be the directory of a run, or a file"),
        (there, tmp_path / "run", "cannot be converted: it cannot be read"),
        (tmp_path / "cut.safetensors", tmp_path / "run", "cannot be converted: it cannot be read"),
        (tmp_path, tmp_path / "out.keras", "is not a run directory"),
    ]:
        assert call("convert", source, target) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert there.read_text() == (tmp_path / "model.h5.json").read_text() == "mine"
    assert not (tmp_path / "run").exists()


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_file_that_hdf5_dies_of_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "model.h5").write_text("")
    monkeypatch.setattr(conversion, "_keras_files", lambda: SimpleNamespace(read_keras=die))
    assert call("convert", tmp_path / "model.h5", tmp_path / "run") == 2
    assert "it crashes the HDF5 library" in capsys.readouterr().err


def test_without_h5py_there_is_a_way(tmp_path, monkeypatch, capsys):
    (tmp_path / "model.h5").write_text("")
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.delitem(sys.modules, "charlm_jax.runs.keras_files", raising=False)
    monkeypatch.delattr("charlm_jax.runs.keras_files", raising=False)
    assert call("convert", tmp_path / "model.h5", tmp_path / "run") == 2
    assert ".venv/bin/python -m pip install -e '.[interop]'" in capsys.readouterr().err


@pytest.mark.parametrize(("ending", "words"), [(".h5", "Keras 3's differs"), (".safetensors", "nn.LSTM lacks")])
def test_a_hard_sigmoid_that_a_library_lacks_is_told_of(ending, words, made, tmp_path, capsys):
    path, network, *_ = made
    capsys.readouterr()
    assert call("convert", path, tmp_path / f"model{ending}") == 0
    assert (words in capsys.readouterr().err) == (network.gate_activation == "hard_sigmoid")
