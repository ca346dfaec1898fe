"""Text by blocks: what `load_corpus` makes of whole files, made a block at a time."""

import codecs
import io
from collections.abc import Iterable, Iterator
from itertools import chain

from charlm_jax.data.corpus import undecodable, unknown_encoding

_BYTE_ORDER_MARKS = {
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}
_MARK = "\ufeff"
_NATIVE = "le" if codecs.BOM_UTF16 == codecs.BOM_UTF16_LE else "be"
_NOT_BY_BLOCKS = "punycode", "idna"  # they encode names, each as a whole
_SIGMA = "\u03a3"


def decode_blocks(blocks: Iterable[bytes], encoding: str, source: str) -> Iterator[str]:
    """Decode a file and unify its line ends; together the blocks are the text that `load_corpus` makes of it.

    Args:
        blocks: the file's bytes, in blocks that are not empty; the first has four bytes, or all.
        encoding: of the bytes.
        source: the file, for error messages.

    Raises:
        InputError: a byte does not decode, or there is no such encoding.
    """
    blocks = iter(blocks)
    first = next(blocks, b"")
    name = _codec(encoding, first)
    marks = 1
    if name == "utf-8-sig":  # which drops one too, but by blocks loses a mark that breaks off
        name, marks = "utf-8", 2
    decoder = codecs.getincrementaldecoder(name)()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    end, lines = 0, 0
    for block in chain([first] if first else [], blocks, [b""]):
        end, lines = end + len(block), lines + block.count(b"\n")
        try:
            text = decoder.decode(block, not block)
        except UnicodeError as error:
            raise undecodable(error, encoding, source, end, lines) from error
        while marks and text.startswith(_MARK):
            text, marks = text[1:], marks - 1
        marks = 0 if text else marks
        if text := newlines.decode(text, not block):
            yield text


def _codec(encoding: str, first: bytes) -> str:
    """Return the name of the codec for a file of an encoding whose first bytes these are."""
    try:
        b" ".decode(encoding)
    except UnicodeError:  # a text encoding, of which a space is not enough
        pass
    except (LookupError, ValueError) as error:
        raise unknown_encoding(encoding) from error
    name = codecs.lookup(encoding).name
    if name in _NOT_BY_BLOCKS:
        raise unknown_encoding(encoding)
    # Without a mark whole bytes are decoded in this machine's order, but Python's incremental decoders refuse them.
    if name in _BYTE_ORDER_MARKS and not first.startswith(_BYTE_ORDER_MARKS[name]):
        name = f"{name}-{_NATIVE}"
    return name


def lowercase_blocks(blocks: Iterable[str]) -> Iterator[str]:
    """Lower-case a text; together the blocks are what `str.lower` makes of the whole.

    One character depends on others: a capital sigma becomes a final one where a word ends with it (The Unicode
    Standard, section 3.13, Final_Sigma). So a sigma waits for what decides that, and a block knows whether it begins
    inside a word.
    """
    before, waiting = "", ""
    for block in blocks:
        text = waiting + block
        end = _decided(text)
        text, waiting = text[:end], text[end:]
        if text:
            # What comes next is a sigma, which a letter stands for here, or has no say.
            yield (before + text + "a").lower()[len(before) : -1]
            # Characters before white space have no say in what comes after it.
            word = (before + text).rpartition("\n")[2].rpartition(" ")[2]
            before = "a" if (word + _SIGMA).lower().endswith("\u03c2") else ""
    if waiting:
        yield (before + waiting).lower()[len(before) :]


def _decided(text: str) -> int:
    """Return up to where the lower case of a text does not depend on what comes after it."""
    last = text.rfind(_SIGMA)
    if last < 0:
        return len(text)
    after = text[last + 1 :]
    is_open = f"a{_SIGMA}{after}".lower()[1] != f"a{_SIGMA}{after}a".lower()[1]
    return last if is_open else len(text)
