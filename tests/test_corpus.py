import errno
import hashlib
from pathlib import Path
from unittest.mock import Mock

import pytest

from charlm_jax.data import corpus as module
from charlm_jax.data.corpus import DATA_FOLDER_VARIABLE, Download, load_corpus
from charlm_jax.errors import InputError


def read(tmp_path, content, **options):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    return load_corpus(str(path), **options).text


def test_the_embedded_corpus_is_the_language_reference():
    text = load_corpus("python-docs").text
    assert len(text) > 300_000
    assert '"try" statement' in text


@pytest.mark.parametrize(
    ("encoding", "characters", "vocabulary"), [(None, 600_893, 57), ("cp1252", 600_901, 59), ("latin-1", 600_901, 59)]
)
def test_nietzsche_is_the_notebooks_text(nietzsche, encoding, characters, vocabulary):
    corpus = load_corpus("nietzsche", encoding=encoding, lowercase=True)
    assert len(corpus.text) == characters
    assert len(set(corpus.text)) == vocabulary
    if encoding is None:
        assert corpus.sha256 == "9cb94a5f1f8d1359e2e018fa67306eba4ae03942b8c44643eececded39e096df"


def test_line_ends_and_byte_order_marks(tmp_path):
    assert read(tmp_path, "one\r\ntwo\rthree\n".encode("utf-8-sig")) == "one\ntwo\nthree\n"
    assert read(tmp_path, b"no newline at the end") == "no newline at the end"
    assert read(tmp_path, "\ufeffx\ufeffy".encode()) == "x\ufeffy"
    assert read(tmp_path, "wide".encode("utf-16"), encoding="utf-16") == "wide"


def test_a_character_beyond_the_basic_plane_is_one_character(tmp_path):
    assert len(read(tmp_path, "a🜁b".encode())) == 3


def test_lower_casing(tmp_path):
    assert read(tmp_path, "ÆON İ".encode(), lowercase=True) == "æon i̇"
    assert read(tmp_path, "ÆON".encode()) == "ÆON"


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_text("third")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / ".hidden").write_bytes(b"\xff")
    assert load_corpus(str(tmp_path)).text == "first\n\nthird\n\nsecond"


def test_a_byte_that_does_not_decode_is_named_with_its_place(tmp_path):
    with pytest.raises(InputError, match=r"byte 0xe9 at offset 9 \(line 2\).*--encoding cp1252, latin-1"):
        read(tmp_path, b"abc\ndef: \xe9\n")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no-such-corpus", {}, "python-docs, nietzsche, tinyshakespeare, text8, enwik8"),
        (".", {"encoding": "no-such-encoding"}, "'no-such-encoding' is not a text encoding"),
        (".", {"encoding": "hex"}, "'hex' is not a text encoding"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, monkeypatch, name, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(InputError, match=message):
        load_corpus(name, **options)


def test_a_file_that_cannot_be_read_to_its_end_is_named(tmp_path, monkeypatch):
    """The error of a failing disk, unlike that of a missing file, does not say which it was."""
    path = tmp_path / "a.txt"
    path.touch()
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(InputError, match=r"a.txt' cannot be read: Input/output error"):
        load_corpus(str(path))


def test_a_folder_without_text(tmp_path):
    with pytest.raises(InputError, match="no text files"):
        load_corpus(str(tmp_path))


@pytest.fixture
def tiny_download(tmp_path, monkeypatch):
    """Register a public corpus of a few bytes whose server does not answer; return its content."""
    monkeypatch.delenv(DATA_FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = b"Tiny text, cached."
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(module.DOWNLOADS, "tiny", Download("http://127.0.0.1:9/tiny.txt", "tiny.txt", digest))
    return content


def test_offline_says_what_was_tried_and_the_ways_out(tiny_download):
    with pytest.raises(InputError) as caught:
        load_corpus("tiny")
    for part in (
        "cache",
        "http://127.0.0.1:9/tiny.txt",
        "connect",
        "CHARLM_JAX_DATA",
        "a file of your own",
        "python-docs",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_data_folder_comes_before_any_download(tiny_download, tmp_path, monkeypatch):
    (tmp_path / "tiny.txt").write_bytes(tiny_download)
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))
    assert load_corpus("tiny").text == "Tiny text, cached."


def test_a_file_that_is_not_the_published_one_is_refused(tiny_download, tmp_path, monkeypatch):
    (tmp_path / "tiny.txt").write_bytes(tiny_download + b"!")
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match="is not the published tiny"):
        load_corpus("tiny")
