"""Exchange with other libraries. Keras, PyTorch and NumPy are the oracles: they run our weights, and we run theirs."""

import contextlib
import io
import itertools
import json
import zipfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np
import pytest
from oracles import GATES, lenient_jax, numpy_logits

from charlm_jax.errors import InputError
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.interop import KERAS_3_SLOPE, from_keras, from_torch, scale_gates, to_keras, to_torch
from charlm_jax.model.network import CharacterLSTM

h5py = pytest.importorskip("h5py", reason="h5py is not installed: .venv/bin/python -m pip install -e '.[interop]'")
keras = pytest.importorskip("keras", reason="Keras is not installed")

from charlm_jax.runs.keras_files import read_keras, write_keras  # noqa: E402 (it needs h5py)

VOCABULARY, HIDDEN, WINDOW = 7, 5, 9
IDS = np.asarray(jax.random.randint(jax.random.key(1), (4, WINDOW), 0, VOCABULARY))
SHAPES = [
    pytest.param(layers, size, id=f"{layers}-layers-{size}") for layers, size in itertools.product((1, 2), (None, 4))
]
ENDINGS = [".keras", ".weights.h5", ".h5"]


@pytest.fixture
def lenient():
    with lenient_jax():
        yield


def parameters_of(layers=1, embedding_size=None, scale=2.0):
    """Return parameters so large that a hard sigmoid of another slope, or two swapped gates, would show clearly."""
    network = CharacterLSTM(VOCABULARY, HIDDEN, layers, embedding_size=embedding_size)
    parameters = initial_parameters(network, "keras", jax.random.key(0))
    return jax.tree.map(
        lambda leaf: scale * leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), parameters
    )


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for here, there in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(here, there)


def assert_predicts(model, parameters, gate):
    """Assert that a Keras model's probabilities equal NumPy's, up to float32 rounding over nine steps."""
    read = IDS if "embedding" in parameters else np.eye(VOCABULARY, dtype=np.float32)[IDS]
    expected = jax.nn.softmax(numpy_logits(parameters, IDS, GATES[gate])[:, -1])
    np.testing.assert_allclose(np.asarray(model(read)), expected, rtol=0, atol=1e-6)


def keras_model(layers, embedding_size, gate, window=None):
    inputs = keras.Input((window, VOCABULARY) if embedding_size is None else (window,))
    embedding = [] if embedding_size is None else [keras.layers.Embedding(VOCABULARY, embedding_size)]
    lstm = [
        keras.layers.LSTM(
            HIDDEN, recurrent_activation=gate, return_sequences=number < layers - 1, name=f"recurrent_{number}"
        )
        for number in range(layers)
    ]
    return keras.Sequential([inputs, *embedding, *lstm, keras.layers.Dense(VOCABULARY, activation="softmax")])


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("layers", "embedding_size"), SHAPES)
@pytest.mark.parametrize("ending", ENDINGS)
def test_keras_reads_what_is_written(ending, layers, embedding_size, gate, tmp_path):
    """Keras 3 reads each file; from Keras 2's with hard sigmoids it takes the weights, and is given Keras 2's slope."""
    parameters = parameters_of(layers, embedding_size)
    keras_2 = ending == ".h5"
    scaled = scale_gates(parameters, KERAS_3_SLOPE) if gate == "hard_sigmoid" and not keras_2 else parameters
    path = tmp_path / f"model{ending}"
    path.write_bytes(write_keras(ending, to_keras(scaled), gate, WINDOW))
    if ending == ".weights.h5" or (keras_2 and gate == "hard_sigmoid"):
        slope = (lambda x: keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0)) if keras_2 else gate
        model = keras_model(layers, embedding_size, slope)
        model.load_weights(path)
    else:
        model = keras.models.load_model(path)
        assert model.input_shape == ((None, WINDOW) if embedding_size else (None, WINDOW, VOCABULARY))
    assert_predicts(model, parameters, gate)


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("layers", "embedding_size"), SHAPES)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_what_keras_writes_is_read(ending, layers, embedding_size, gate, tmp_path):
    model = keras_model(layers, embedding_size, gate, WINDOW)
    model.set_weights([3 * weight + 0.1 for weight in model.get_weights()])
    model.compile(loss="categorical_crossentropy")  # so that the file has an optimizer's state, too
    path = tmp_path / f"model{ending}"
    (model.save_weights if ending == ".weights.h5" else model.save)(path)
    read, gate_of_file, window, is_keras_3 = read_keras(path.read_bytes())
    assert (gate_of_file, window) == ((None, None) if ending == ".weights.h5" else (gate, WINDOW))
    assert is_keras_3
    parameters = from_keras(read)
    assert_predicts(model, scale_gates(parameters, 1 / KERAS_3_SLOPE) if gate == "hard_sigmoid" else parameters, gate)


def keras_2_file(path, layers, *, whole, gate="hard_sigmoid", as_list=False, **changes):
    """Write a file in the layout of Keras 2.2, whose attributes name the layers and describe the whole model."""
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights") if whole else file
        group.attrs["layer_names"] = np.array([b"lstm_1", b"dropout_1", b"dense_1", b"activation_1"])
        group.attrs["keras_version"], group.attrs["backend"] = b"2.2.4", b"tensorflow"
        for name in ("dropout_1", "activation_1"):
            group.create_group(name).attrs["weight_names"] = np.array([], "S1")
        for name, arrays in zip(("lstm_1", "dense_1"), layers, strict=True):
            names = [f"{name}/{weight}:0" for weight in ("kernel", "recurrent_kernel", "bias")]
            names = [names[0], names[2]] if len(arrays) == 2 else names
            group.create_group(name).attrs["weight_names"] = np.array([name.encode() for name in names])
            for weight, array in zip(names, arrays, strict=True):
                group[name][weight] = array
        lstm = {"units": HIDDEN, "activation": "tanh", "recurrent_activation": gate, "go_backwards": False}
        described = [
            ("LSTM", {"batch_input_shape": [None, WINDOW, VOCABULARY], **lstm, **changes}),
            ("Dropout", {"rate": 0.2}),
            ("Dense", {"units": VOCABULARY, "activation": "linear"}),
            ("Activation", {"activation": "softmax"}),
        ]
        described = [{"class_name": kind, "config": configuration} for kind, configuration in described]
        model = {"class_name": "Sequential", "config": described if as_list else {"layers": described}}
        if whole:
            file.attrs["model_config"] = json.dumps(model).encode()
    return path


@pytest.mark.parametrize("as_list", [True, False])
def test_files_of_keras_2_are_read(as_list, tmp_path):
    """Whole models, whose configuration was once a list, and weights alone; their hard sigmoid is not Keras 3's."""
    parameters = parameters_of()
    path = keras_2_file(tmp_path / "model.h5", to_keras(parameters), whole=True, as_list=as_list)
    read, *said = read_keras(path.read_bytes())
    assert said == ["hard_sigmoid", WINDOW, False]
    assert_equal(from_keras(read), parameters)
    path = keras_2_file(tmp_path / "weights.h5", to_keras(parameters), whole=False)
    read, *said = read_keras(path.read_bytes())
    assert said == [None, None, False]
    assert_equal(from_keras(read), parameters)


def test_layers_beyond_ten_are_read_in_their_order():
    parameters = parameters_of(12)
    for ending in ENDINGS:
        assert_equal(from_keras(read_keras(write_keras(ending, to_keras(parameters), "sigmoid", None))[0]), parameters)


@pytest.mark.parametrize(("layers", "embedding_size"), SHAPES)
def test_pytorch_computes_the_same_logits(layers, embedding_size):
    """PyTorch computes with our weights, and NumPy with PyTorch's own, including both of its biases."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: .venv/bin/python -m pip install torch")

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            if embedding_size:
                self.embedding = torch.nn.Embedding(VOCABULARY, embedding_size)
            self.lstm = torch.nn.LSTM(embedding_size or VOCABULARY, HIDDEN, num_layers=layers, batch_first=True)
            self.head = torch.nn.Linear(HIDDEN, VOCABULARY)

        def forward(self, ids):
            characters = self.embedding(ids) if embedding_size else torch.nn.functional.one_hot(ids, VOCABULARY).float()
            return self.head(self.lstm(characters)[0])

    torch.manual_seed(0)
    module, ids = Module(), torch.tensor(IDS).long()
    theirs = from_keras(from_torch({name: value.numpy() for name, value in module.state_dict().items()}))
    with torch.no_grad():
        np.testing.assert_allclose(module(ids), numpy_logits(theirs, IDS), rtol=0, atol=1e-5)
        ours = parameters_of(layers, embedding_size)
        state = {name: torch.tensor(array) for name, array in to_torch(to_keras(ours)).items()}
        assert not module.load_state_dict(state).missing_keys
        np.testing.assert_allclose(module(ids), numpy_logits(ours, IDS), rtol=0, atol=1e-5)


def test_what_is_no_such_model_is_refused(tmp_path):
    layers = to_keras(parameters_of())
    refused: list[tuple[Any, dict[str, Any]]] = [
        ("relu", {}),
        ({"class_name": "Custom"}, {}),
        ("sigmoid", {"activation": "relu"}),
        ("sigmoid", {"go_backwards": True}),
    ]
    for gate, changes in refused:
        path = keras_2_file(tmp_path / "model.h5", layers, whole=True, gate=gate, **changes)
        with pytest.raises(InputError, match="activations"):
            read_keras(path.read_bytes())
    lstm, dense = layers
    for odd in [
        [],
        [lstm],
        [dense],
        [lstm, lstm, dense],
        [[array.T for array in lstm], dense],
        [lstm, [dense[0], dense[1][:-1]]],
        [[dense[0]], lstm, dense],
        [[np.array(1, np.float32)], lstm, dense],
        [lstm, [*dense, dense[1]]],
    ]:
        with pytest.raises(InputError, match="arrays"):
            from_keras(odd)
    for wrong in (np.float64, np.float16):
        with pytest.raises(InputError, match="finite and float32"):
            from_keras([lstm, [array.astype(wrong) for array in dense]])
    with pytest.raises(InputError, match="finite and float32"):
        from_keras([lstm, [dense[0], np.full_like(dense[1], np.nan)]])
    state = to_torch(layers)
    with pytest.raises(InputError, match=r"see 'lstm\.bias_ih_l0'"):
        from_torch({name: array for name, array in state.items() if name != "lstm.bias_ih_l0"})
    with pytest.raises(InputError, match="see 'tail"):
        from_torch({**state, "tail.weight": state["head.weight"]})
    with pytest.raises(InputError, match="biases"):
        from_torch({**state, "lstm.bias_hh_l0": np.zeros(1, np.float32)})


@pytest.mark.usefixtures("lenient")
def test_other_models_of_keras_are_refused(tmp_path):
    inputs = keras.Input((WINDOW, VOCABULARY))
    dense = keras.layers.Dense(VOCABULARY, activation="softmax")
    gru = keras.Sequential([inputs, keras.layers.GRU(HIDDEN), dense])
    outputs = keras.layers.Dense(VOCABULARY, activation="softmax")(keras.layers.LSTM(HIDDEN)(inputs))
    for model in (gru, keras.Model(inputs, outputs)):
        model.save(tmp_path / "model.keras")
        with pytest.raises(InputError, match=r"it is a (Sequential|Functional) of|has"):
            from_keras(read_keras((tmp_path / "model.keras").read_bytes())[0])


@pytest.mark.parametrize("ending", ENDINGS)
def test_broken_files_are_refused(ending):
    """A truncated file is refused; one with a flipped bit is refused or read as other numbers, and does nothing else.

    Flipped bits are read in a process of their own: in other versions, or by other bits, the HDF5 library may crash.
    """
    content = write_keras(ending, to_keras(parameters_of()), "sigmoid", None)
    for length in range(0, len(content) - 1, 101):
        with pytest.raises(InputError):
            read_keras(content[:length])
    with ProcessPoolExecutor(1, get_context("spawn")) as reader, contextlib.suppress(BrokenProcessPool):
        reader.submit(read_flipped, content).result()


def read_flipped(content):
    generator = np.random.default_rng(0)
    for place in generator.integers(len(content), size=200):
        changed = bytearray(content)
        changed[place] ^= 1 << generator.integers(8)
        with contextlib.suppress(InputError):
            from_keras(read_keras(bytes(changed))[0])


def test_no_link_is_followed_and_no_bomb_unpacked(tmp_path):
    content = write_keras(".weights.h5", to_keras(parameters_of()), "sigmoid", None)
    elsewhere = tmp_path / "elsewhere.h5"
    elsewhere.write_bytes(content)
    (tmp_path / "raw").write_bytes(b"\1" * 4 * VOCABULARY)
    place = "layers/dense/vars/1"

    def external(file):
        file.create_dataset(place, (VOCABULARY,), "<f4", external=[(str(tmp_path / "raw"), 0, 4 * VOCABULARY)])

    def virtual(file):
        layout = h5py.VirtualLayout((VOCABULARY,), "<f4")
        layout[:] = h5py.VirtualSource(str(elsewhere), place, (VOCABULARY,))
        file.create_virtual_dataset(place, layout)

    def linked(file):
        file[place] = h5py.ExternalLink(str(elsewhere), place)

    def softly(file):
        file["layers/dense/elsewhere"] = np.zeros(VOCABULARY, np.float32)
        file[place] = h5py.SoftLink("/layers/dense/elsewhere")

    def bomb(file):
        file.create_dataset(place, (1 << 28,), "<f4", chunks=(1 << 20,), compression="gzip")

    def text(file):
        file[place] = ["text"]

    for change, words in [
        (external, "another file"),
        (virtual, "another file"),
        (linked, "a link"),
        (softly, "a link"),
        (bomb, "more than its own size"),
        (text, "not a float32 array"),
    ]:
        path = tmp_path / f"{change.__name__}.weights.h5"
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            del file[place]
            change(file)
        with pytest.raises(InputError, match=words):
            read_keras(path.read_bytes())
    with zipfile.ZipFile(archived := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("config.json", "metadata.json"):
            archive.writestr(name, "{}")
        archive.writestr("model.weights.h5", bytes(1 << 24))
    with pytest.raises(InputError, match="more than its own size"):
        read_keras(archived.getvalue())
