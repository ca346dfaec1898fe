"""Where text comes from: the embedded corpus, the named downloads, any file, any folder of text files."""

import codecs
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from charlm_jax.errors import InputError, meant

DATA_FOLDER_VARIABLE = "CHARLM_JAX_DATA"
PYTHON_DOCS = "python-docs"
IDS_FILE = "ids.npy"
"""The file of an encoded corpus, which is not text."""
_BYTE_ORDER_MARKS = {
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
}
_NATIVE = "le" if codecs.BOM_UTF16 == codecs.BOM_UTF16_LE else "be"
_OF_NAMES = "punycode", "idna"  # encodings of domain names, which encode a whole name at once
_PIECE = 1 << 22  # bytes whose lines are counted at a time


@dataclass(frozen=True)
class Corpus:
    """A text and its name.

    Attributes:
        name: the corpus's name, or the path that it was read from.
        text: its characters, after decoding and lower-casing.
    """

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text in UTF-8, in hexadecimal digits."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Download:
    """A public corpus.

    Attributes:
        url: where it is served.
        file: the text's file name, in the cache, in the data folder and inside an archive.
        sha256: of that file's bytes.
        zip_sha256: of the archive that is served instead, if there is one.
        encoding: of its bytes.
    """

    url: str
    file: str
    sha256: str
    zip_sha256: str | None = None
    encoding: str = "utf-8"


# Hashes: nietzsche's is from a copy of the file, the others are as published by projects that pin them.
# enwik8 is read as one byte per character, as in every published "bits per character" on it.
DOWNLOADS = {
    "nietzsche": Download(
        url="https://s3.amazonaws.com/text-datasets/nietzsche.txt",
        file="nietzsche.txt",
        sha256="23cf69874ab69d3d256099ab530ea4be24d47d9675b673bcc67cbcd6298ec647",
    ),
    "tinyshakespeare": Download(
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        file="tinyshakespeare.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "text8": Download(
        url="http://mattmahoney.net/dc/text8.zip",
        file="text8",
        sha256="6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
        zip_sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
    ),
    "enwik8": Download(
        url="http://mattmahoney.net/dc/enwik8.zip",
        file="enwik8",
        sha256="2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        zip_sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
        encoding="latin-1",
    ),
}
NAMES = (PYTHON_DOCS, *DOWNLOADS)


def load_corpus(name: str, *, encoding: str | None = None, lowercase: bool = False) -> Corpus:
    """Read a corpus.

    Line endings CR LF and CR become LF, one byte-order mark at the start of a file is dropped, and nothing else
    changes: a missing final newline stays missing, and a character beyond the basic plane is one character.
    Lower-casing is Python's, which turns a few characters (such as U+0130) into two.

    Args:
        name: `python-docs`, a name in `DOWNLOADS`, a text file, or a folder, all of whose files (hidden ones aside)
            are read in the order of their paths and joined by blank lines.
        encoding: of the bytes; None means the corpus's own: UTF-8, or what its `Download` says.
        lowercase: whether to lower-case the text.

    Raises:
        InputError: no such corpus, bytes that do not decode, a file that cannot be read, or a download that failed.
    """
    if name == PYTHON_DOCS:
        text = _python_docs()
    elif name in DOWNLOADS:
        source = DOWNLOADS[name]
        text = _decode(_bytes_of(name, source), encoding or source.encoding, name)
    else:
        text = _read(name, encoding or "utf-8")
    return Corpus(name=name, text=text.lower() if lowercase else text)


def _python_docs() -> str:
    """Return the language reference bundled with this CPython; it differs between Python versions."""
    from pydoc_data.topics import topics  # half a megabyte, needed by this corpus only

    return "\n\n".join(topics[topic] for topic in sorted(topics))


def text_files(name: str) -> list[Path]:
    """Return the files of a text: the path itself, or all files of a folder that are not hidden, sorted by path.

    Raises:
        InputError: the path does not exist, or its folder has no files, cannot be read or holds an encoded corpus.
    """
    path = Path(name)
    if not name or not path.exists():
        raise InputError(
            f"there is no corpus, file or folder {name!r}; name one of {', '.join(NAMES)}, or a path to text"
            f"{meant(name, NAMES)}"
        )
    if not path.is_dir():
        return [path]
    if (path / IDS_FILE).exists():
        raise InputError(
            f"the folder {name!r} holds {IDS_FILE}, an encoded corpus that is unfinished or used where text is needed; "
            "run the same encode command again, or name the text it was made from"
        )
    inside = []
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside += [Path(folder, name).relative_to(path) for name in names if not name.startswith(".")]
    files = [path / file for file in sorted(inside) if (path / file).is_file()]
    if not files:
        raise InputError(f"the folder {str(path)!r} has no text files; name another")
    return files


def _read(name: str, encoding: str) -> str:
    return "\n\n".join(_decode(_contents(file), encoding, str(file)) for file in text_files(name))


def _contents(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        _refuse(error, file)


def _refuse(error: OSError, place: Path | None = None) -> NoReturn:
    raise InputError(f"{str(place or error.filename)!r} cannot be read: {error.strerror}") from error


def _decode(content: bytes, encoding: str, source: str) -> str:
    return "".join(decode_blocks(io.BytesIO(content), encoding, source))


def encoding_name(encoding: str) -> str:
    """Return Python's own name of a text encoding, which leaves a byte-order mark to `decode_blocks`.

    Raises:
        InputError: there is no such encoding.
    """
    try:
        name = codecs.lookup(encoding).name.removesuffix("-sig")  # by blocks, -sig would drop a truncated mark
        if name in _OF_NAMES:
            raise LookupError(f"{name} is not a text encoding")
        io.TextIOWrapper(io.BytesIO(), name)  # refuses codecs of other things than text
    except (LookupError, ValueError) as error:
        raise InputError(
            f"--encoding {encoding!r} is not a text encoding that Python knows; use utf-8, cp1252, latin-1 or utf-16"
        ) from error
    return name


def decode_blocks(file: io.BytesIO | io.BufferedReader, encoding: str, source: str, size: int = -1) -> Iterator[str]:
    """Decode a file in blocks, converting line endings to LF and dropping one byte-order mark at its start.

    Args:
        file: its bytes, none of them read yet; closed at the end.
        encoding: of the bytes.
        source: the file's name, for error messages.
        size: characters in a block; -1 means all in one.

    Raises:
        InputError: a byte does not decode, or there is no such encoding.
    """
    beginning = file.read(4)
    file.seek(0)
    name = encoding_name(encoding)
    # Without a mark, `bytes.decode` takes this machine's byte order, but Python's incremental decoders refuse.
    if name in _BYTE_ORDER_MARKS and not beginning.startswith(_BYTE_ORDER_MARKS[name]):
        name = f"{name}-{_NATIVE}"
    with io.TextIOWrapper(file, name) as text:
        blocks = iter(partial(text.read, size), "")
        try:
            yield next(blocks, "").removeprefix("\ufeff")
            yield from blocks
        except UnicodeError as error:
            raise _undecodable(error, encoding, source, file) from error


def _undecodable(error: UnicodeError, encoding: str, source: str, file: io.BytesIO | io.BufferedReader) -> InputError:
    """Return the error that names the undecodable byte; the file has been read to the end of the byte's chunk."""
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


def _bytes_of(name: str, source: Download) -> bytes:
    """Return a public corpus's bytes: from the user's data folder, else the cache, else the network."""
    folder = os.environ.get(DATA_FOLDER_VARIABLE)
    local = Path(folder, source.file) if folder else None
    path = local if local and local.exists() else _downloaded(name, source)
    content = _contents(path)
    if path != local and source.zip_sha256:
        # Unpacked anew each time: a file that was being unpacked when the machine died would look complete.
        content = zipfile.ZipFile(io.BytesIO(content)).read(source.file)
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise InputError(
            f"{str(path)!r} is not the published {name} (SHA-256 {found}, not {source.sha256}); "
            "replace it, or name a file of your own instead"
        )
    return content


def _downloaded(name: str, source: Download) -> Path:
    import pooch  # only downloaded corpora need it

    cache = Path(pooch.os_cache("charlm_jax"))
    with suppress(OSError):  # a cache that cannot be made is reported below
        cache.mkdir(parents=True, mode=0o700, exist_ok=True)
    pooch.get_logger().setLevel("WARNING")
    served = f"{source.file}.zip" if source.zip_sha256 else source.file
    sha256 = source.zip_sha256 or source.sha256
    try:
        return Path(pooch.retrieve(source.url, f"sha256:{sha256}", fname=served, path=cache, progressbar=True))
    except ValueError as error:  # how pooch reports a wrong hash
        raise InputError(
            f"{source.url} does not serve the published {name} (SHA-256 {sha256}); name a file of "
            f"your own instead, or put {source.file} into a folder that ${DATA_FOLDER_VARIABLE} names"
        ) from error
    except Exception as error:  # requests, urllib3 and the disk each fail in their own way
        folder = os.environ.get(DATA_FOLDER_VARIABLE) or "not set"
        raise InputError(
            f"the corpus {name} is neither in ${DATA_FOLDER_VARIABLE} ({folder}) nor in {str(cache)!r}, "
            f"and {source.url} could not be fetched ({type(error).__name__}); connect and run again, or put "
            f"{source.file} into a folder that ${DATA_FOLDER_VARIABLE} names, or name a file of your own, or "
            f"{PYTHON_DOCS}, instead"
        ) from error
