"""Encoded corpora: folders whose ids are memory-mapped, so that a text may be larger than memory.

ids.npy           the id of every character, an array of the smallest unsigned integer type that holds them
corpus.json       the characters that have ids, the text's length and SHA-256, and what it was made from
unfinished.json   stands in place of corpus.json until the ids are complete and checked
lock              empty, or names the process that writes here
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from charlm_jax.data.corpus import IDS_FILE, Corpus, decode_blocks, encoding_name, load_corpus, text_files
from charlm_jax.data.lowercase import lowercase_blocks
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.errors import DamagedError, InputError, Preempted
from charlm_jax.runs.command_line import ProgressBar, progress_bar, tell
from charlm_jax.runs.files import LOCK, hold_folder, is_temporary, read_json, sync_names, write_json
from charlm_jax.runs.stop import StopRequested

_FORMAT = 1
_FINISHED, _UNFINISHED = "corpus.json", "unfinished.json"
_BLOCK = 1 << 22  # characters read, and ids checked, at a time


@dataclass(frozen=True)
class EncodedCorpus:
    """A text as ids.

    Attributes:
        name: the corpus's name, or the path that it was read from.
        vocabulary: the characters that have ids.
        ids: of the text's characters, in order; memory-mapped if it was encoded beforehand.
        sha256: see `Corpus.sha256`.
    """

    name: str
    vocabulary: Vocabulary
    ids: Integer[np.ndarray, " character"]
    sha256: str


def open_corpus(name: str, *, encoding: str | None, lowercase: bool) -> Corpus | EncodedCorpus:
    """Open the encoded corpus in a folder, or read any other corpus; see `open_encoded` and `load_corpus`."""
    if is_encoded(Path(name)):
        return open_encoded(Path(name), encoding=encoding, lowercase=lowercase)
    return load_corpus(name, encoding=encoding, lowercase=lowercase)


def encoded(corpus: Corpus | EncodedCorpus, vocabulary: Vocabulary | None = None) -> EncodedCorpus:
    """Return a corpus as ids under a vocabulary, by default its own.

    Raises:
        InputError: it was encoded under another vocabulary, or has a character that this one lacks.
    """
    if isinstance(corpus, Corpus):
        vocabulary = Vocabulary.of(corpus.text) if vocabulary is None else vocabulary
        ids = vocabulary.encode(corpus.text, f"corpus {corpus.name!r}")
        return EncodedCorpus(corpus.name, vocabulary, ids, corpus.sha256)
    if vocabulary not in (None, corpus.vocabulary):
        raise InputError(
            f"the corpus {corpus.name!r} was encoded with characters other than the model's; name the text itself"
        )
    return corpus


def is_encoded(path: Path) -> bool:
    """Return whether a folder holds a complete encoded corpus."""
    return (path / _FINISHED).is_file() and (path / IDS_FILE).is_file()


def open_encoded(folder: Path, *, encoding: str | None, lowercase: bool) -> EncodedCorpus:
    """Open an encoded corpus.

    The number and the type of the ids are checked against corpus.json; their values are not (see `verify_encoded`).

    Args:
        folder: the corpus's.
        encoding: what `encode` must have been told; None is UTF-8.
        lowercase: whether the text must have been lower-cased.

    Raises:
        InputError: it is damaged, or was encoded with other options.
    """
    record = read_json(folder / _FINISHED)
    there = encoding_name(str(record.get("encoding") or "utf-8")), bool(record.get("lowercase"))
    here = encoding_name(encoding or "utf-8"), lowercase
    for name, was, wanted in zip(("encoding", "lowercase"), there, here, strict=True):
        if was != wanted:
            raise InputError(
                f"the corpus {str(folder)!r} was encoded with --{name} {was}, not {wanted}; give the same flags, or "
                "encode the text with these into another folder"
            )
    return _corpus(folder, record)


def _corpus(folder: Path, record: dict[str, Any]) -> EncodedCorpus:
    path = folder / IDS_FILE
    try:
        if record["format"] != _FORMAT:
            raise ValueError(f"its format is {record['format']}, not {_FORMAT}")
        vocabulary = Vocabulary(record["vocabulary"])
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
        there = ids.shape, ids.dtype, path.stat().st_size - ids.offset
        if there != ((record["characters"],), vocabulary.dtype, ids.nbytes):
            raise ValueError(f"{IDS_FILE} has another size or type")
        return EncodedCorpus(record["name"], vocabulary, ids, record["sha256"])
    except (InputError, AttributeError, EOFError, KeyError, OSError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{str(folder)!r} is damaged, or was not encoded by this version ({error}); encode the text into another "
            "folder"
        ) from error


def require_known(ids: Integer[np.ndarray, "*axes"], vocabulary: Vocabulary) -> None:
    """Raise a DamagedError if some ids stand for no character, as can happen in a damaged encoded corpus."""
    if ids.size and int(ids.max()) >= len(vocabulary):
        raise DamagedError(
            "the encoded corpus is damaged: it has ids that stand for no character; remove it and encode the text again"
        )


def verify_encoded(folder: Path) -> None:
    """Check every id of an encoded corpus: the text that they stand for must have the recorded SHA-256.

    Raises:
        InputError: it has another, or the corpus cannot be read.
    """
    _check_ids(folder, read_json(folder / _FINISHED), lambda: False)


def _check_ids(folder: Path, record: dict[str, Any], stop_requested: StopRequested) -> None:
    corpus, path, digest = _corpus(folder, record), folder / IDS_FILE, hashlib.sha256()
    # Read rather than mapped, as mapped pages would count as memory in use.
    with path.open("rb") as file, progress_bar("checking", len(corpus.ids), " characters", scaled=True) as bar:
        file.seek(-corpus.ids.nbytes, os.SEEK_END)
        while (block := np.fromfile(file, corpus.ids.dtype, _BLOCK)).size:
            _stop_if(stop_requested)
            try:
                text = corpus.vocabulary.decode(block)
            except InputError as error:
                raise DamagedError(
                    f"{str(path)!r} is damaged: {error}; remove the folder and encode the text again"
                ) from error
            digest.update(text.encode("utf-8", "surrogatepass"))
            bar.update(len(block))
    if digest.hexdigest() != corpus.sha256:
        raise DamagedError(
            f"{str(path)!r} is damaged: its text is not what was encoded; remove the folder and encode it again"
        )


def encode(
    text: Path, folder: Path, *, encoding: str | None, lowercase: bool, stop_requested: StopRequested = lambda: False
) -> bool:
    """Encode a text into a folder, in constant memory.

    The text is read twice: first for its characters and its SHA-256, which are kept for the next process if this one is
    stopped later, then for the ids. The ids are read back, and the folder is finished only if the text that they stand
    for has that SHA-256.

    Args:
        text: a file, or a folder of them, read as `load_corpus` reads it.
        folder: new or empty, or begun with the same text and options.
        encoding: of the text's bytes; None is UTF-8.
        lowercase: whether to lower-case the text.
        stop_requested: see `stop_requests`.

    Returns:
        Whether there was anything to do.

    Raises:
        InputError: the text cannot be read, has no characters, or has changed; or the folder holds something else.
        Preempted: a stop was requested; the same call resumes.
    """
    if not text.exists():
        raise InputError(f"there is no file or folder {str(text)!r} to encode; name a text")
    files = text_files(str(text))
    if not all(file.is_file() for file in files):
        raise InputError(f"{str(text)!r} is not a file, so it cannot be read twice; write it to one first")
    if text.is_dir() and folder.resolve().is_relative_to(text.resolve()):
        raise InputError(f"--output {str(folder)!r} lies in the text {str(text)!r}; name a folder outside it")
    facts = [(str(file.relative_to(text)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    request = {
        "format": _FORMAT,
        "name": str(text.resolve()),
        "encoding": encoding_name(encoding or "utf-8"),
        "lowercase": lowercase,
        "source_bytes": sum(size for _, size, _ in facts),
        "source_facts_sha256": hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
    }

    def read(purpose: str) -> Iterator[str]:
        with progress_bar(purpose, request["source_bytes"], "B", scaled=True) as bar:
            blocks = _text_blocks(files, request["encoding"], bar, stop_requested)
            yield from lowercase_blocks(blocks) if lowercase else blocks

    unfinished, ids = folder / _UNFINISHED, folder / IDS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    _begun(folder)  # raises before a lock is left there
    with hold_folder("--output", folder):
        begun = _begun(folder)
        if begun is None:
            ids.touch()  # first, so that the folder is never mistaken for text
            write_json(unfinished, {**request, **_survey(read("reading"), str(text))})
        record = read_json(begun or unfinished)
        if differences := [name for name, value in request.items() if record.get(name) != value]:
            raise InputError(
                f"--output {str(folder)!r} holds the ids of another text, of a changed text, or of other options "
                f"({', '.join(differences)} differ); name another folder, or remove this one"
            )
        if begun == folder / _FINISHED:
            _corpus(folder, record)
            return False
        if begun is not None:
            tell(f"resuming in {str(folder)!r}")
        try:
            _write_ids(ids, read("encoding"), record)
            _check_ids(folder, record, stop_requested)
        except DamagedError as error:
            ids.unlink()
            unfinished.unlink()
            raise InputError(
                f"{str(text)!r} has changed since it was first read, or the disk of {str(folder)!r} loses what is "
                "written; rule both out, and run the same command again"
            ) from error
        unfinished.replace(folder / _FINISHED)
        sync_names(folder)
    return True


def _text_blocks(
    files: Sequence[Path], encoding: str, bar: ProgressBar, stop_requested: StopRequested
) -> Iterator[str]:
    """Yield the text of files, joined by blank lines, in blocks."""
    for number, file in enumerate(files):
        if number:
            yield "\n\n"
        try:
            with file.open("rb") as opened:
                read = 0
                for block in decode_blocks(opened, encoding, str(file), _BLOCK):
                    _stop_if(stop_requested)
                    bar.update(opened.tell() - read)
                    read = opened.tell()
                    yield block
        except OSError as error:
            raise InputError(f"{str(file)!r} cannot be read: {error.strerror}") from error


def _survey(blocks: Iterator[str], source: str) -> dict[str, Any]:
    """Return what corpus.json records about a text."""
    characters, length, digest = set[str](), 0, hashlib.sha256()
    for block in blocks:
        characters |= set(block)
        length += len(block)
        digest.update(block.encode("utf-8", "surrogatepass"))
    if not length:
        raise InputError(f"{source!r} has no characters; name another text")
    vocabulary = Vocabulary("".join(sorted(characters)))
    return {
        "characters": length,
        "vocabulary": vocabulary.characters,
        "sha256": digest.hexdigest(),
        "dtype": vocabulary.dtype.name,
    }


def _write_ids(path: Path, blocks: Iterator[str], record: dict[str, Any]) -> None:
    """Write the ids of a text; their number is not checked.

    Raises:
        DamagedError: it has a character that the record lacks.
    """
    vocabulary = Vocabulary(record["vocabulary"])
    description = np.lib.format.dtype_to_descr(vocabulary.dtype)
    header = {"descr": description, "fortran_order": False, "shape": (record["characters"],)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            try:
                file.write(vocabulary.encode(block).data)
            except InputError as error:
                raise DamagedError(str(error)) from error
        file.flush()
        os.fsync(file.fileno())


def _begun(folder: Path) -> Path | None:
    """Return the path of a folder's record, finished or not; None if there is none yet.

    Raises:
        InputError: the folder holds anything else.
    """
    records = [path for path in (folder / _FINISHED, folder / _UNFINISHED) if path.exists()]
    ours, ids = {_FINISHED, _UNFINISHED, IDS_FILE, LOCK}, folder / IDS_FILE
    others = [path for path in folder.iterdir() if path.name not in ours and not is_temporary(path)]
    if others or (not records and ids.exists() and ids.stat().st_size):
        raise InputError(f"--output {str(folder)!r} holds other files; name an empty or a new folder")
    return records[0] if records else None


def _stop_if(stop_requested: StopRequested) -> None:
    if stop_requested():
        raise Preempted("stopped by a signal; the same command resumes")
