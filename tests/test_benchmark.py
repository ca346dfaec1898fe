"""The benchmark: contenders against one another, arithmetic against counting by hand, commands as users run them."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import rnn
from oracles import lenient_jax

from charlm_jax.analysis.benchmark import BATCH_SIZE, Benchmark, Timing, describe, plot_benchmark
from charlm_jax.choices import Precision
from charlm_jax.runs.command_line import exit_codes
from experiments import benchmark

ROOT = Path(__file__).parent.parent
ON_GPU = benchmark.PLACES["gpu"].contenders
PEERS = {f"{one.name} in {one.precision}": one for one in ON_GPU if one.module != "charlm"}


def contender(chosen, monkeypatch, hidden_size=4):
    """Make a GPU contender in this process, on the CPU."""
    library = pytest.importorskip(chosen.package)
    if chosen.package == "torch":
        library.manual_seed(0)  # the others use keys
    monkeypatch.syspath_prepend(ROOT / "experiments" / "peers")
    return importlib.import_module(chosen.module).Contender(hidden_size, chosen.precision, chosen.way, "cpu")


def logits(peer):
    """Return a peer's float32 logits after its windows."""
    if hasattr(peer, "network"):
        return np.asarray(peer.network.apply(peer.parameters, peer.ids))
    return peer.head(peer.lstm(peer.inputs)[0][:, -1]).detach().numpy()


def reference(inputs, hidden, cell, weights, lengths, size, hidden_size, layers, dropout, bidirectional):
    """Call JAX's own reference for cuDNN's LSTM, which takes the weights one by one."""
    lstm: Any = rnn.lstm_ref
    one_by_one = rnn.unpack_lstm_weights(weights, size, hidden_size, layers, bidirectional)
    return lstm(inputs, hidden, cell, *one_by_one, lengths, size, hidden_size, layers, dropout, bidirectional)


@pytest.fixture
def stand_ins(monkeypatch):
    """Replace what a CPU lacks: JAX's cuDNN by its reference, and CUDA graphs by a list of the calls made to them."""
    monkeypatch.setattr(rnn, "lstm", reference)
    did = []
    if not importlib.util.find_spec("torch"):
        return did
    torch = importlib.import_module("torch")

    class Stream:
        def wait_stream(self, other):
            did.append(("wait", other is not self))

    class Graph:
        def replay(self):
            did.append("replay")

    @contextlib.contextmanager
    def entered(name, *_, **options):
        did.append((name, *options))
        yield

    for name, stand_in in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "current_stream": Stream,
        "stream": lambda stream: entered("stream"),
        "graph": lambda graph, **options: entered("graph", **options),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    own = torch.optim.RMSprop

    def optimizer(*words, capturable, **flags):
        did.extend(["capturable"] * capturable)
        return own(*words, **flags)  # without `capturable`, which it refuses on a CPU

    monkeypatch.setattr(torch.optim, "RMSprop", optimizer)
    return did


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_on_a_gpu_does_its_tasks(name, monkeypatch, stand_ins):
    chosen = PEERS[name]
    with lenient_jax():
        made = contender(chosen, monkeypatch)
        for task in chosen.tasks:
            getattr(made, task)(3)
    if chosen.way == "graph":
        captured = [("wait", True), ("stream",), ("wait", True), ("graph", "stream")]
        assert stand_ins == ["capturable", *captured, *["replay"] * 3]


def test_ours_unrolled_learns_what_ours_does(monkeypatch):
    """Up to rounding: a step of RMSprop is 0.01 times a scaled gradient, of which 1e-5 is a thousandth."""
    models = {}
    for way in ("", "unrolled"):
        (chosen,) = (one for one in ON_GPU if (one.module, one.way, one.precision) == ("charlm", way, "float32"))
        made = contender(chosen, monkeypatch, hidden_size=4)
        assert made.network.recurrence == (way or "scan")
        made.train(3)
        models[way] = made._training(600_893)[2][0].model.parameters
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), models[""], models["unrolled"])


def test_cudnn_by_jax_is_pytorchs_lstm(monkeypatch, stand_ins):
    """Both take the same weights in the same order."""
    torch = pytest.importorskip("torch")
    flax, pytorch = (
        contender(next(one for one in ON_GPU if (one.module, one.way) == which), monkeypatch, hidden_size=8)
        for which in (("flax_rnn", "cudnn"), ("pytorch_lstm", ""))
    )
    with lenient_jax():
        (layer,) = (name for name in flax.parameters["params"] if "CuDNN" in name)
        weights = torch.cat([part.ravel() for part in pytorch.lstm.parameters()]).detach().numpy()
        assert flax.parameters["params"][layer]["weights"].shape == weights.shape
        head = {"kernel": pytorch.head.weight.detach().numpy().T, "bias": pytorch.head.bias.detach().numpy()}
        flax.parameters = {"params": {layer: {"weights": weights}, "Dense_0": head}}
        assert np.allclose(logits(flax), logits(pytorch), atol=1e-5)
    assert np.array_equal(flax.ids, pytorch.inputs.argmax(-1))


@pytest.mark.parametrize("module", ["flax_rnn", "pytorch_lstm"])
def test_a_peer_learns_and_in_bfloat16_nearly_the_same(module, monkeypatch):
    """It learns its one batch to below the loss of the characters' frequencies; bfloat16 has a precision of 0.4 %."""
    losses = {}
    for chosen in ON_GPU:
        if (chosen.module, chosen.way) == (module, "") and chosen.precision != "tf32":
            with lenient_jax():
                peer = contender(chosen, monkeypatch, hidden_size=16)
                peer.train(30)
                scores = logits(peer)
            right = scores[np.arange(BATCH_SIZE), np.asarray(peer.targets)]
            losses[chosen.precision] = (np.log(np.exp(scores).sum(-1)) - right).mean()
            frequencies = np.bincount(np.asarray(peer.targets)) / BATCH_SIZE
            assert losses[chosen.precision] < -(frequencies * np.log(np.maximum(frequencies, 1e-9))).sum()
    assert 1e-6 < abs(losses["bfloat16"] - losses["float32"]) < 0.2


def test_the_benchmark_times_every_contender_that_is_there(tmp_path, monkeypatch, capsys):
    """With fewer streams, smaller matrices and less of everything than in real use."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    little = dataclasses.replace(benchmark.PLACES["cpu"], steps=4, product_side=64, streams=(1, 8))
    monkeypatch.setitem(benchmark.PLACES, "cpu", little)
    figure = tmp_path / "figure.svg"
    benchmark.main(["--rounds", "1", "--hidden-sizes", "4", "--json", "--figure", str(figure)])
    output, errors = capsys.readouterr()
    record = json.loads(output)
    assert all(0 < row["minimum"] <= row["median"] <= row["maximum"] for row in record["seconds"])
    assert all(row["peak_bytes"] > 10 * 2**20 for row in record["seconds"])
    timed = {row["contender"] for row in record["seconds"] if row["title"] == "training step"}
    absent = set(record["machine"]["absent"])
    assert timed | absent == {"charlm_jax", "Keras on TensorFlow", "Keras on JAX", "PyTorch", "Flax"}
    assert timed >= {"charlm_jax", "Flax"}
    assert not timed & absent
    assert all(f"absent: {name}" in errors for name in absent)
    assert "left out" not in errors
    titles = {row["title"] for row in record["seconds"]}
    assert titles >= {f"training step of each of {models} together" for models in (1, 2, 4, 8, 16)}
    assert 0 < record["roofline"]["float32"]["training step"] < 1
    assert figure.stat().st_size > 10_000


def test_without_a_gpu_one_sentence_says_the_way_out(monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit) as end, exit_codes():
        benchmark.main(["--device", "gpu"])
    output, errors = capsys.readouterr()
    assert (end.value.code, output) == (2, "")
    *absent, error = errors.splitlines()
    assert all(line.startswith("absent: ") for line in absent)
    assert error.startswith("error: --device gpu cannot be used: charlm_jax in float32 cannot do ")
    assert "JAX sees no CUDA device" in error
    assert "pip install -e '.[gpu]'" in error


def test_what_one_contender_cannot_do_is_named_and_leaves_the_others_theirs(monkeypatch, capsys):
    """Run GPU contenders on the CPU, where JAX has no cuDNN."""
    chosen = [
        one
        for one in ON_GPU
        if (one.name, one.precision)
        in [("charlm_jax", "tf32"), ("charlm_jax", "bfloat16"), ("cuDNN by JAX", "tf32"), ("Flax", "bfloat16")]
    ]
    place = benchmark.Place("cpu", chosen, steps=2, product_side=16, streams=(1, 8))
    monkeypatch.setitem(benchmark.PLACES, "gpu", place)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    own = benchmark._own

    def few(ours, hidden_size):
        wrong = benchmark.Order("a task that is none", ours, "fly", 1, {"hidden_size": hidden_size})
        return [wrong, *islice(own(ours, hidden_size), 2)]

    monkeypatch.setattr(benchmark, "_own", few)
    benchmark.main(["--device", "gpu", "--rounds", "1", "--hidden-sizes", "4"])
    captured = capsys.readouterr()
    lost = [line for line in captured.err.splitlines() if line.startswith("left out: ")]
    assert [line.split(" cannot do ")[0] for line in lost] == [
        "left out: cuDNN by JAX in tf32",
        "left out: charlm_jax in tf32",
        "left out: charlm_jax in bfloat16",
    ]
    assert "'a task that is none' here: 'Contender' object has no attribute 'fly'" in lost[1]
    for row in ("charlm_jax, tf32 ", "charlm_jax, bfloat16 ", "Flax, bfloat16 ", "latency floor, bfloat16: "):
        assert f"\n{row}" in captured.out.replace("\n  ", "\n")
    assert "Flax, float32" not in captured.out


def timing(title, contender, seconds, precision: Precision = "float32"):
    return Timing(title, contender, precision, 128, seconds, seconds / 2, seconds * 2, 3 * 2**20)


MEASURED = Benchmark(
    [
        timing("training step", "charlm_jax", 0.02),
        timing("training step", "PyTorch", 0.05),
        timing("training step", "charlm_jax", 0.01, "tf32"),
        timing("training step", "PyTorch", 0.04, "tf32"),
        timing("windowed character", "charlm_jax", 1e-4),
        timing("windowed character", "Flax", 7e-4),
        timing("matrix product", "charlm_jax", 1e-3),
        timing("dependent product", "charlm_jax", 2e-5),
        timing("training step of each of 16 together", "charlm_jax", 0.002),
        timing("windowed character, 1 streams", "charlm_jax", 1e-4),
        timing("windowed character, 4096 streams", "charlm_jax", 1e-5),
    ],
    devices=2,
    product_side=500,
)


def test_the_roofline_is_a_matter_of_arithmetic():
    """Two devices, each doing a product of 2 * 500^3 operations in a millisecond, make 5e11 a second."""
    roofline = MEASURED.roofline("float32")
    operations = 2 * 128 * 512  # per row and step
    assert roofline == pytest.approx(
        {
            "floating_point_operations_per_second": 5e11,
            "training step": 3 * 128 * 60 * operations / 5e11 / 0.02,
            "windowed character, 4096 streams": 60 * operations / 5e11 / 1e-5,
        }
    )
    assert np.isnan(MEASURED.roofline("tf32")["training step"]), "whose products were not timed"


def test_the_tables_say_what_was_asked_for():
    lines = [" ".join(line.split()) for line in describe(MEASURED)]
    for line in (
        "charlm_jax, float32 20 ms (10 ms to 40 ms) 31.3 s an epoch",  # 1,565 steps
        "PyTorch, float32 50 ms (25 ms to 100 ms) 78.2 s an epoch 2.5 x ours",
        "PyTorch, tf32 40 ms (20 ms to 80 ms) 62.6 s an epoch 4.0 x ours",  # compared within a precision
        "the ring, float32: 7.0 times as fast as a window re-read for each character (Flax)",
        "training step of each of 16 together 2 ms 3,840,000 characters a second",  # 128 * 60 characters each
        "windowed character, 4096 streams 10 us 100,000 characters a second",
    ):
        assert line in lines
    (floor,) = (line for line in lines if line.startswith("latency floor, float32"))
    assert "the 120 products" in floor
    assert floor.endswith("take 2.4 ms by themselves, 12% of it")


def test_one_precision_is_named_once_and_every_word_stays_in_its_panel():
    timings = [timing("training step", "charlm_jax", 0.012), timing("training step", "Keras on TensorFlow", 0.027)]
    timings += [timing("windowed character", "charlm_jax", 6e-5), timing("windowed character", "PyTorch", 0.0376)]
    timings += [timing("stateful character", "charlm_jax", 4e-6)]
    measured = Benchmark(timings, devices=2, product_side=512)
    assert "float32" not in "".join(describe(measured))
    figure = plot_benchmark(measured)
    figure.draw_without_rendering()
    assert figure.get_suptitle() == "Hidden size 128, float32: median and range"
    _, windowed, _ = figure.axes
    assert [label.get_text() for label in windowed.get_yticklabels()] == ["charlm_jax", "PyTorch"]
    assert {"100 us", "1 ms", "10 ms"} <= {label.get_text() for label in windowed.get_xticklabels()}
    for axes in figure.axes:
        assert axes.texts
        assert all(words.get_window_extent().x1 <= axes.bbox.x1 for words in axes.texts)


def test_a_gpus_peak_memory_is_its_librarys(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "peers")
    worker = importlib.import_module("worker")
    device = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 7, "bytes_in_use": 5})
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(max_memory_allocated=lambda: 9)))
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(devices=lambda: [device]))
    assert worker.peak_bytes("cuda") == 7
    monkeypatch.delitem(sys.modules, "jax")
    assert worker.peak_bytes("cuda") == 9
    assert worker.peak_bytes("cpu") > 10 * 2**20
