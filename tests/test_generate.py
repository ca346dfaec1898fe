"""Generation, against the notebooks' own procedure: re-read the last characters for every new one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import notebook_distribution, numpy_logits

from charlm_jax.choices import Sampler
from charlm_jax.generation.generate import (
    SamplingState,
    generate,
    generate_piece,
    generate_pieces,
    read_prompts,
    stream_keys,
)
from charlm_jax.generation.temperature import draw_character
from charlm_jax.mesh import data_mesh, replicate, split_rows
from charlm_jax.model.initializers import initial_parameters
from charlm_jax.model.network import CharacterLSTM, Model

VOCABULARY, WINDOW, LENGTH = 11, 12, 60
KEY = jax.random.key(5)
MESH = data_mesh()


def decided_model(layers=1):
    """Return a model whose logits are spread widely enough that rounding decides no draw."""
    network = CharacterLSTM(VOCABULARY, hidden_size=24, layers=layers)
    parameters = initial_parameters(network, "keras", jax.random.key(0))
    return Model(network, jax.tree.map(lambda leaf: 3 * leaf, parameters))


def prompt_of(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.uint8)


draw = jax.jit(draw_character)


def naive(parameters, prompt, temperature, key, *, sampler):
    """Re-read the last window (or everything) from the zero state for every character, in float64."""
    text = list(prompt)
    for number in range(LENGTH):
        context = np.array([text[-WINDOW:] if sampler == "windowed" else text], int)
        logits = numpy_logits(parameters, context)[0, -1] if text else np.asarray(parameters["head"]["bias"])
        uniform = jax.random.uniform(jax.random.fold_in(key, number))
        text.append(int(draw(jnp.asarray(logits, jnp.float32), jnp.float32(temperature), uniform)))
    return np.array(text[len(prompt) :])


def run(model, prompts, temperatures, keys, *, sampler: Sampler = "windowed", length=LENGTH):
    keys = jnp.stack(keys) if isinstance(keys, list) else keys
    return generate(model, prompts, temperatures, keys, MESH, sampler=sampler, window=WINDOW, length=length)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("sampler", ["windowed", "stateful"])
@pytest.mark.parametrize("prompt_length", [0, 1, 5, WINDOW, 2 * WINDOW + 3])
def test_tokens_equal_naive_re_reading(layers, sampler, prompt_length):
    model = decided_model(layers)
    prompt, key = prompt_of(prompt_length), jax.random.fold_in(KEY, prompt_length)
    (ours,) = run(model, [prompt], [0.8], [key], sampler=sampler)
    np.testing.assert_array_equal(ours, naive(model.parameters, prompt, 0.8, key, sampler=sampler))


def test_windowed_and_stateful_differ_beyond_the_window():
    model = decided_model()
    arguments = (model, [prompt_of(WINDOW)], [0.8], [KEY])
    assert not np.array_equal(run(*arguments, sampler="windowed"), run(*arguments, sampler="stateful"))


def test_many_streams_at_once_equal_each_alone():
    """With prompts of all lengths, temperatures and keys side by side, no stream affects another."""
    model = decided_model()
    prompts = [prompt_of(length, seed=length) for length in (0, 3, WINDOW, 20)]
    temperatures = [0.0, 0.5, 1.0, 2.0]
    keys = [jax.random.fold_in(KEY, number) for number in range(4)]
    for sampler in ("windowed", "stateful"):
        together = run(model, prompts, temperatures, keys, sampler=sampler)
        for row, prompt, temperature, key in zip(together, prompts, temperatures, keys, strict=True):
            (alone,) = run(model, [prompt], [temperature], [key], sampler=sampler)
            np.testing.assert_array_equal(row, alone)


@pytest.mark.parametrize("sampler", ["windowed", "stateful"])
def test_devices_share_the_streams_and_never_wait_for_one_another(sampler):
    """Four streams on one, two and three devices: the same texts, by programs without communication."""
    model = decided_model()
    prompts, keys = [prompt_of(WINDOW, seed=seed) for seed in range(4)], jax.random.split(KEY, 4)

    def texts(devices):
        mesh = data_mesh(jax.devices()[:devices])
        return generate(model, prompts, [0.8] * 4, keys, mesh, sampler=sampler, window=WINDOW, length=LENGTH)

    alone = texts(1)
    for devices in (2, 3):
        np.testing.assert_array_equal(texts(devices), alone)

    mesh = data_mesh(jax.devices()[:2])
    rows = split_rows((jnp.stack(prompts).astype(jnp.int32), jnp.full(4, WINDOW)), mesh)
    model = replicate(model, mesh)
    state = read_prompts(model, *rows, sampler=sampler, window=WINDOW)

    def go_on(model, carry, position, temperatures, keys):
        state = SamplingState(carry, position, sampler)
        return generate_piece(model, state, temperatures, keys, length=LENGTH)[1]

    arguments = (model, state.carry, state.position, *split_rows((jnp.ones(4), keys), mesh))
    program = str(jax.jit(go_on).lower(*arguments).compile().as_text())
    assert "while" in program
    for communication in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert communication not in program


def test_pieces_join_to_the_whole():
    model = decided_model()
    arguments = (model, [prompt_of(5)], [1.0], jnp.stack([KEY]))
    whole = run(*arguments)
    pieces = list(generate_pieces(*arguments, MESH, sampler="windowed", window=WINDOW, length=LENGTH, piece=7))
    assert [piece.shape[1] for piece in pieces] == [7] * 8 + [4]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_temperature_zero_always_takes_the_likeliest():
    model = decided_model()
    (text,) = run(model, [prompt_of(WINDOW)], [0.0], [KEY])
    context = list(prompt_of(WINDOW))
    for character in text:
        assert character == np.argmax(numpy_logits(model.parameters, np.array([context[-WINDOW:]]))[0, -1])
        context.append(int(character))
    (other,) = run(model, [prompt_of(WINDOW)], [0.0], [jax.random.key(99)])
    np.testing.assert_array_equal(other, text)


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0, 1.2, 2.0])
def test_characters_are_distributed_as_the_notebooks_draw_them(temperature):
    """The first two characters of 20,000 texts, against the notebooks' arithmetic on NumPy's float64 network.

    Chi-squared over the pairs expected at least five times, at most 121 cells: if the distributions are equal, it
    exceeds 120 + 6 sqrt(240) = 213 with a probability below 1e-6.
    """
    network = CharacterLSTM(VOCABULARY, hidden_size=24)
    parameters = initial_parameters(network, "keras", jax.random.key(0))
    # Head weights large enough for lively distributions: at temperature 1 the likeliest character has about a third.
    head = {"kernel": 6 * parameters["head"]["kernel"], "bias": parameters["head"]["bias"]}
    parameters = {**parameters, "head": head}
    prompt, streams = prompt_of(WINDOW), 20_000
    keys = jax.random.split(KEY, streams)
    ids = run(Model(network, parameters), [prompt] * streams, [temperature] * streams, keys, length=2)
    seen = np.zeros((VOCABULARY, VOCABULARY))
    np.add.at(seen, (ids[:, 0], ids[:, 1]), 1)

    first = notebook_distribution(numpy_logits(parameters, prompt[None])[0, -1], temperature)
    expected = np.empty_like(seen)
    for character in range(VOCABULARY):
        context = np.append(prompt, character)[-WINDOW:]
        second = notebook_distribution(numpy_logits(parameters, context[None])[0, -1], temperature)
        expected[character] = streams * first[character] * second
    common = expected >= 5
    assert common.sum() > 1
    assert ((seen - expected) ** 2 / expected)[common].sum() < common.sum() - 1 + 6 * (2 * common.sum()) ** 0.5
    assert seen[~common].sum() < expected[~common].sum() + 6 * expected[~common].sum() ** 0.5 + 6


def test_keys_are_functions_of_values():
    def bits(prompts, temperatures):
        return list(map(tuple, np.asarray(jax.random.key_data(stream_keys(KEY, prompts, temperatures))).tolist()))

    (base,) = bits(["a prompt"], [0.5])
    keys = bits(["another", "a prompt", "a prompt", "a prompt"], [0.5, 0.5000001, 0.5, 0.5])
    assert keys[2] == base
    assert bits(["a prompt"] * 2, [0.5, 0.5 + 1e-12])[1] == keys[3], "temperatures are what float32 makes of them"
    assert len(set(keys)) == 4, "a stream that is asked for twice gets two keys"


def test_adding_a_temperature_changes_no_other_text():
    model = decided_model()

    def texts(temperatures):
        keys = stream_keys(KEY, ["p"] * len(temperatures), temperatures)
        ids = run(model, [prompt_of(WINDOW)] * len(temperatures), temperatures, keys)
        return dict(zip(temperatures, map(tuple, ids.tolist()), strict=True))

    few, more = texts([0.5, 1.2]), texts([0.2, 0.5, 0.7, 1.2])
    assert few == {temperature: more[temperature] for temperature in few}
