"""Text from the bytes of a file, whole or a block at a time."""

import codecs
import io
from collections.abc import Iterable, Iterator
from functools import partial

from charlm_jax.errors import InputError

_BYTE_ORDER_MARKS = {
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}
_NATIVE = "le" if codecs.BOM_UTF16 == codecs.BOM_UTF16_LE else "be"
_OF_NAMES = "punycode", "idna"  # each of which is encoded as a whole
_PIECE = 1 << 22  # bytes whose lines are counted at a time
_SIGMA = "\u03a3"


def decode_blocks(file: io.BytesIO | io.BufferedReader, encoding: str, source: str, size: int = -1) -> Iterator[str]:
    """Decode a file, unify its line ends, and drop one byte-order mark at its start.

    Args:
        file: its bytes, of which none have been read; closed at the end.
        encoding: of the bytes.
        source: the file's name, for error messages.
        size: characters in a block; -1 is all.

    Raises:
        InputError: a byte does not decode, or there is no such encoding.
    """
    beginning = file.read(4)
    file.seek(0)
    try:
        name = codecs.lookup(encoding).name.removesuffix("-sig")  # which by blocks loses a mark that breaks off
        if name in _OF_NAMES:
            raise LookupError(f"{name} is no encoding of text")
        # Without a mark whole bytes are decoded in this machine's order, but Python's incremental decoders refuse them.
        if name in _BYTE_ORDER_MARKS and not beginning.startswith(_BYTE_ORDER_MARKS[name]):
            name = f"{name}-{_NATIVE}"
        text = io.TextIOWrapper(file, name)
    except (LookupError, ValueError) as error:
        raise InputError(
            f"--encoding {encoding!r} is not a text encoding that Python knows; use utf-8, cp1252, latin-1 or utf-16"
        ) from error
    with text:
        blocks = iter(partial(text.read, size), "")
        try:
            yield next(blocks, "").removeprefix("\ufeff")
            yield from blocks
        except UnicodeError as error:
            raise _undecodable(error, encoding, source, file) from error


def _undecodable(error: UnicodeError, encoding: str, source: str, file: io.BytesIO | io.BufferedReader) -> InputError:
    """Return the error that names the byte which does not decode, in a file that was read up to where it was met."""
    what = str(error)
    if isinstance(error, UnicodeDecodeError):
        offset = file.tell() - len(error.object) + error.start
        file.seek(0)
        pieces = (file.read(min(_PIECE, offset - place)) for place in range(0, offset, _PIECE))
        line = 1 + sum(piece.count(b"\n") for piece in pieces)
        what = f"byte 0x{error.object[error.start]:02x} at offset {offset} (line {line}) does not decode"
    return InputError(
        f"{source!r} is not {encoding}: {what}; "
        "name its encoding, for example --encoding cp1252, latin-1 (any bytes at all) or utf-16"
    )


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
