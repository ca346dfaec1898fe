"""Decoding and lower-casing block by block: the same as on the whole text, however it is cut."""

import codecs
import io
import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from charlm_jax.data.corpus import decode_blocks
from charlm_jax.data.lowercase import lowercase_blocks
from charlm_jax.errors import InputError

# Characters that depend on their neighbours, and others: line ends, marks, sigmas, cased and case-ignorable ones.
ODD = st.text(st.sampled_from("\r\n\ufeffΣσςİ'\u00ad\u0345.aA1 é日🜁"), max_size=30)
ENCODINGS = [
    *("utf-8", "utf-8-sig", "utf-7", "utf-16", "utf-16-be", "utf-32", "utf-32-le", "ascii", "latin-1", "cp1252"),
    *("shift_jis", "gb18030", "iso2022_jp", "hz"),
]


def cut(whole, sizes):
    """Cut a text into blocks, repeating these sizes."""
    sizes, places = itertools.cycle(sizes), [0]
    while places[-1] < len(whole):
        places.append(places[-1] + next(sizes))
    return [whole[start:end] for start, end in itertools.pairwise(places)]


class Dribbling(io.BytesIO):
    """A file that returns a few bytes at a time, however many are asked for."""

    def __init__(self, content, sizes):
        super().__init__(content)
        self.sizes = itertools.cycle(sizes)

    def read1(self, size=-1, /):
        return super().read1(next(self.sizes))


SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@given(text=ODD, sizes=SIZES)
@example(text="ΑΣ'''Σ", sizes=[2])
@example(text="ΑΣ\u00ad\u00ad\u00ada", sizes=[2])
@settings(max_examples=500, deadline=None)
def test_lower_casing_by_blocks_is_that_of_the_whole(text, sizes):
    assert "".join(lowercase_blocks(cut(text, sizes))) == text.lower()


def test_every_character_around_a_sigma_is_judged_as_python_does():
    """Each of the first 12,288 code points, both as the last and as the first of a block."""
    for character in map(chr, range(0x3000)):
        for blocks in (["a" + character, "Σ1"], ["aΣ", character + "1"], ["aΣ", character, "a"]):
            assert "".join(lowercase_blocks(blocks)) == "".join(blocks).lower()


def outcomes(content, encoding, sizes):
    """Return what a file decodes to, or the place that its error names: by `bytes.decode`, as a whole, by blocks."""

    def found(file, size):
        try:
            return "".join(decode_blocks(file, encoding, "it", size))
        except InputError as error:
            return str(error).partition(" does not decode")[0].partition(": ")[2]

    try:
        text = content.decode(encoding.removesuffix("-sig")).removeprefix("\ufeff")
        expected = text.replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        expected = f"byte 0x{content[error.start]:02x} at offset {error.start} (line {line})"
    return expected, found(io.BytesIO(content), -1), found(Dribbling(content, sizes), sizes[0])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_decoding_by_blocks_is_that_of_the_whole(encoding):
    @given(text=ODD, sizes=SIZES)
    @settings(max_examples=50, deadline=None)
    def check(text, sizes):
        assert len(set(outcomes(text.encode(encoding, "ignore"), encoding, sizes))) == 1

    check()


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name != "iso2022_jp"])  # says it in other words
def test_bytes_that_do_not_decode_are_named_alike(encoding):
    """Any bytes, and truncated pieces of encoded text: the error names the same byte, offset and line."""
    piece = ODD.map(lambda text: text.encode(encoding, "ignore")[:-1])

    @given(parts=st.lists(st.one_of(piece, st.binary(max_size=6), st.just(b"\n"), st.just(b"\xff\xfe"))), sizes=SIZES)
    @settings(max_examples=100, deadline=None)
    def check(parts, sizes):
        assert len(set(outcomes(b"".join(parts), encoding, sizes))) == 1

    check()


def test_a_bad_byte_is_named_with_its_place():
    file = Dribbling(b"abc\nd\xc3\xa9\ne\xe9f", [4, 2, 4, 1])
    with pytest.raises(InputError, match=r"'it' is not utf-8: byte 0xe9 at offset 9 \(line 3\) does not decode"):
        list(decode_blocks(file, "utf-8", "it", 1))


def test_wide_text_without_a_mark_is_in_this_machines_order():
    native = "utf-16-le" if codecs.BOM_UTF16 == codecs.BOM_UTF16_LE else "utf-16-be"
    assert "".join(decode_blocks(io.BytesIO("wide".encode(native)), "utf-16", "it")) == "wide"


@pytest.mark.parametrize("encoding", ["no-such-encoding", "hex", "punycode", "\0"])
def test_an_encoding_that_is_none_is_named(encoding):
    with pytest.raises(InputError, match="is not a text encoding that Python knows"):
        list(decode_blocks(io.BytesIO(b"text"), encoding, "it"))


def test_a_sigma_waits_for_no_more_than_decides_it():
    """A text needs no white space to be lower-cased in constant memory."""
    blocks = list(lowercase_blocks(["\u03a3" + "\u5b57" * 9] + ["\u5b57" * 10] * 50))
    assert max(map(len, blocks)) <= 20
    assert "".join(blocks) == ("\u03a3" + "\u5b57" * 509).lower()
