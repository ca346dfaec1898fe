import json

import numpy as np
import pytest

from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.errors import InputError


def test_ids_are_ranks_in_code_point_order():
    vocabulary = Vocabulary.of("banana\n")
    assert vocabulary.characters == "\nabn"
    np.testing.assert_array_equal(vocabulary.encode("nab"), [3, 1, 2])
    assert vocabulary.decode(np.array([3, 1, 2])) == "nab"


@pytest.mark.parametrize(("size", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_ids_take_the_smallest_type(size, dtype):
    points = [point for point in range(1, size + 5000) if not 0xD800 <= point < 0xE000][:size]
    vocabulary = Vocabulary.of("".join(map(chr, points)))
    ids = vocabulary.encode(vocabulary.characters)
    assert ids.dtype == dtype
    np.testing.assert_array_equal(ids, np.arange(size))


def test_text_and_json_round_trip():
    text = "道可道，非常道。\x00🜁 naïve\u2028\r"
    vocabulary = Vocabulary.of(text)
    again = Vocabulary(json.loads(json.dumps(vocabulary.characters)))
    assert again == vocabulary
    assert again.decode(again.encode(text)) == text


def test_an_unknown_character_is_named_with_its_place():
    with pytest.raises(InputError, match=r"prompt has 'z' \(U\+007A\) at character 2.*'abn'"):
        Vocabulary.of("banana").encode("baz", "prompt")


def test_an_unknown_character_deep_in_a_long_text(monkeypatch):
    monkeypatch.setattr("charlm_jax.data.vocabulary._BLOCK", 10)
    vocabulary = Vocabulary.of("ab")
    assert vocabulary.decode(vocabulary.encode("ab" * 33)) == "ab" * 33
    with pytest.raises(InputError, match="at character 66"):
        vocabulary.encode("ab" * 33 + "é")


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(InputError, match=r"0\.\.1"):
        Vocabulary.of("ab").decode(np.array([0, 2]))


def test_a_vocabulary_is_sorted_and_distinct():
    with pytest.raises(InputError, match="distinct"):
        Vocabulary("ba")
