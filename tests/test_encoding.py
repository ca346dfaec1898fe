import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm_jax.data.corpus import load_corpus
from charlm_jax.data.vocabulary import Vocabulary
from charlm_jax.errors import InputError, Preempted
from charlm_jax.runs import encoding as module
from charlm_jax.runs.assembly import prepare
from charlm_jax.runs.configuration import Configuration
from charlm_jax.runs.encoding import encode, encoded, is_encoded, open_corpus, open_encoded, verify_encoded
from charlm_jax.runs.files import hold_folder
from experiments import verify

ODD = "ΟΔΥΣΣΕΥΣ\r\ncafé\r🜁 İ日Σ\n\n" * 9


@pytest.fixture(autouse=True)
def tiny_blocks(monkeypatch):
    """Make blocks three characters long, so that block borders are everywhere."""
    monkeypatch.setattr(module, "_BLOCK", 3)


def write(path, content=ODD):
    path.write_bytes(content.encode())
    return path


def same_as_resident(folder, name, **options):
    corpus = open_encoded(folder, **options)
    resident = load_corpus(str(name), **options)
    vocabulary = Vocabulary.of(resident.text)
    assert corpus.vocabulary == vocabulary
    assert corpus.sha256 == resident.sha256
    assert isinstance(corpus.ids, np.memmap)
    assert corpus.ids.dtype == vocabulary.dtype
    np.testing.assert_array_equal(corpus.ids, vocabulary.encode(resident.text))
    verify_encoded(folder)


def all_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


@pytest.mark.parametrize("lowercase", [False, True])
def test_an_encoded_file_is_the_text(tmp_path, lowercase):
    text, folder = write(tmp_path / "text.txt"), tmp_path / "ids"
    assert encode(text, folder, encoding=None, lowercase=lowercase)
    same_as_resident(folder, text, encoding=None, lowercase=lowercase)
    assert set(all_files(folder)) == {"ids.npy", "corpus.json"}
    assert is_encoded(folder)


def test_any_folder_of_texts_is_the_text_that_is_loaded(tmp_path_factory):
    files = st.lists(st.text(st.sampled_from("\r\n\ufeffΣσİ'aA é日🜁"), max_size=12), min_size=1, max_size=4)

    @given(files=files, lowercase=st.booleans(), encoding=st.sampled_from(["utf-8", "utf-16", "gb18030"]))
    @settings(max_examples=50, deadline=None)
    def check(files, lowercase, encoding):
        where = tmp_path_factory.mktemp("texts")
        texts, folder = where / "texts", where / "ids"
        texts.mkdir()
        for number, content in enumerate(files):
            (texts / f"{number}.txt").write_bytes(content.encode(encoding, "ignore"))
        options = {"encoding": encoding, "lowercase": lowercase}
        if load_corpus(str(texts), **options).text:
            encode(texts, folder, **options)
            same_as_resident(folder, texts, **options)
        else:
            with pytest.raises(InputError, match="no characters"):
                encode(texts, folder, **options)

    check()


@pytest.mark.parametrize(("distinct", "dtype"), [(256, np.uint8), (257, np.uint16), (65_537, np.uint32)])
def test_ids_take_as_few_bytes_as_hold_them(tmp_path, monkeypatch, distinct, dtype):
    monkeypatch.setattr(module, "_BLOCK", 1 << 16)
    text = write(tmp_path / "text.txt", "".join(map(chr, range(0x10000, 0x10000 + distinct))))
    encode(text, tmp_path / "ids", encoding=None, lowercase=False)
    same_as_resident(tmp_path / "ids", text, encoding=None, lowercase=False)
    assert open_encoded(tmp_path / "ids", encoding=None, lowercase=False).ids.dtype == dtype


def test_stopped_anywhere_it_goes_on_to_the_same_end(tmp_path):
    """Stop before each block of each pass in turn."""
    text, unbroken, folder = write(tmp_path / "text.txt"), tmp_path / "unbroken", tmp_path / "ids"
    options = {"encoding": None, "lowercase": True}
    encode(text, unbroken, **options)
    stop_at = 0
    for stop_at in range(1000):
        asked = iter(range(stop_at + 1))
        try:
            encode(text, folder, **options, stop_requested=lambda asked=asked: next(asked, None) is None)
        except Preempted:
            assert not is_encoded(folder)
            continue
        break
    assert 100 < stop_at < 999
    assert all_files(folder) == all_files(unbroken)


def test_killed_at_every_change_it_goes_on_to_the_same_end(tmp_path):
    """SIGKILL each attempt before one of its first four changes to a file, in turn, until an attempt finishes."""
    text, unbroken, folder = write(tmp_path / "text.txt"), tmp_path / "unbroken", tmp_path / "ids"
    encode(text, unbroken, encoding=None, lowercase=False)
    program = """
import itertools, os, signal, sys
from pathlib import Path
from charlm_jax.runs.encoding import encode
made = itertools.count()
def before(event, arguments):
    if event in ("open", "os.rename", "os.remove", "os.truncate") and "/ids/" in str(arguments[0]):
        if (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)) and next(made) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(before)
encode(Path(sys.argv[1]), Path(sys.argv[2]), encoding=None, lowercase=False)
"""
    changes = 0
    for changes in range(24):
        command = [sys.executable, "-c", program, str(text), str(folder), str(changes % 4)]
        if subprocess.run(command, check=False, cwd=Path(__file__).parent.parent).returncode == 0:
            break
        assert not is_encoded(folder)
    assert changes > 3
    assert all_files(folder) == all_files(unbroken)


def test_the_same_again_does_nothing_and_something_else_is_refused(tmp_path):
    text, folder = write(tmp_path / "text.txt"), tmp_path / "ids"
    options = {"encoding": None, "lowercase": False}
    encode(text, folder, **options)
    before = all_files(folder)
    assert not encode(text, folder, **options)
    with pytest.raises(InputError, match=r"of other options \(lowercase differ\)"):
        encode(text, folder, encoding=None, lowercase=True)
    with pytest.raises(InputError, match=r"of another text.* \(name, source_facts_sha256 differ\)"):
        encode(write(tmp_path / "other.txt"), folder, **options)
    assert all_files(folder) == before
    with pytest.raises(InputError, match="holds other files"):
        encode(text, tmp_path, **options)
    assert open_encoded(folder, encoding="utf-8", lowercase=False).sha256 == open_encoded(folder, **options).sha256
    assert open_encoded(folder, encoding="UTF8", lowercase=False).name == str(text), "another name of the same encoding"
    assert not encode(text, folder, encoding="U8", lowercase=False)
    for odd in ("nonsense", "\udcff", "a\0b"):
        with pytest.raises(InputError, match="is not a text encoding that Python knows"):
            open_encoded(folder, encoding=odd, lowercase=False)
    with pytest.raises(InputError, match=r"encoded with --encoding utf-8, not cp1252"):
        open_encoded(folder, encoding="cp1252", lowercase=False)
    with pytest.raises(InputError, match=r"encoded with --lowercase False, not True"):
        open_encoded(folder, encoding=None, lowercase=True)
    with pytest.raises(InputError, match=r"holds ids\.npy, an encoded corpus"):
        load_corpus(str(folder))


@pytest.mark.parametrize("other", ["shorter", ODD.replace("c", "k"), ODD.replace("c", "a"), ODD + "more"])
def test_a_text_that_changes_between_the_passes_is_told_and_encoded_anew(tmp_path, monkeypatch, other):
    text, folder = write(tmp_path / "text.txt"), tmp_path / "ids"
    survey = module._survey

    def survey_and_change(*arguments):
        found = survey(*arguments)
        write(text, other)
        return found

    options = {"encoding": None, "lowercase": False}
    with monkeypatch.context() as patch:
        patch.setattr(module, "_survey", survey_and_change)
        with pytest.raises(InputError, match="has changed since it was first read"):
            encode(text, folder, **options)
    assert not all_files(folder)
    encode(text, folder, **options)
    same_as_resident(folder, text, **options)


def test_damage_is_found(tmp_path):
    text, folder = write(tmp_path / "text.txt"), tmp_path / "ids"
    options = {"encoding": None, "lowercase": False}
    encode(text, folder, **options)
    whole, path = (folder / "ids.npy").read_bytes(), folder / "ids.npy"
    for place in range(128, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match="is damaged"):
            verify_encoded(folder)
    for content in (whole[:-1], whole + b"\0", b"", whole[:60]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is damaged, or was not encoded by this version"):
            open_encoded(folder, **options)
    path.write_bytes(whole[:-1] + b"\xff")
    with pytest.raises(InputError, match="ids that stand for no character"):
        prepare(Configuration(corpus=str(folder), window=2, batch_size=1))
    path.write_bytes(whole)
    record = json.loads((folder / "corpus.json").read_text())
    for change in (
        {"format": 2},
        {"vocabulary": "ba"},
        {"vocabulary": None},
        {"characters": 3},
        {"vocabulary": "a" * 9},
    ):
        (folder / "corpus.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(InputError, match="is damaged, or was not encoded by this version"):
            open_encoded(folder, **options)


def test_what_can_be_read_only_once_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a file, so it cannot be read twice; write it to one first"):
        encode(tmp_path / "pipe", tmp_path / "ids", encoding=None, lowercase=False)
    assert not (tmp_path / "ids").exists()


def test_a_second_process_is_refused(tmp_path):
    text, folder = write(tmp_path / "text.txt"), tmp_path / "ids"
    folder.mkdir()
    with (
        hold_folder("--output", folder),
        pytest.raises(InputError, match=f"is being written by process {os.getpid()} on"),
    ):
        encode(text, folder, encoding=None, lowercase=False)


def run(*flags, begin=()):
    command = [sys.executable, str(Path(__file__).parent.parent / "experiments" / "encode.py"), *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run([*begin, *command], capture_output=True, text=True, check=False, env=environment)


def test_the_command(tmp_path):
    text, folder = write(tmp_path / "text.txt"), tmp_path / "ids"
    first, second = (run(text, "--output", folder, "--lowercase") for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stderr.splitlines()[-1].startswith("encoded: 198 characters")
    assert second.stderr.splitlines()[-1].startswith("already done: 198 characters")
    same_as_resident(folder, text, encoding=None, lowercase=True)
    refused = run(text, "--output", folder)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1


def test_a_full_disk_is_told_in_a_sentence_and_the_command_goes_on(tmp_path):
    text, folder = write(tmp_path / "text.txt", ODD * 100), tmp_path / "ids"
    limited = "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); os.execv(sys.argv[1], sys.argv[1:])"
    full = run(text, "--output", folder, begin=[sys.executable, "-c", limited])
    assert full.returncode == 2
    assert "Traceback" not in full.stderr
    assert full.stderr.splitlines()[-1].startswith("error: ")
    assert not is_encoded(folder)
    assert run(text, "--output", folder).returncode == 0
    same_as_resident(folder, text, encoding=None, lowercase=False)


def test_a_run_of_an_encoded_corpus_is_the_run_of_its_text(tmp_path):
    """Both prepare the same job: the same ids, and the same description but for the corpus's name."""
    text, folder = write(tmp_path / "text.txt", ODD * 20), tmp_path / "ids"
    encode(text, folder, encoding=None, lowercase=True)
    jobs = [prepare(Configuration(corpus=str(path), lowercase=True, window=20), devices=1) for path in (text, folder)]
    for name in ("training_ids", "held_out_ids"):
        np.testing.assert_array_equal(*(getattr(job, name) for job in jobs))
    assert jobs[0].describe_corpus() == {**jobs[1].describe_corpus(), "name": str(text)}
    with pytest.raises(InputError, match="encoded with characters other than the model's"):
        encoded(jobs[1].corpus, Vocabulary("a"))


def test_what_is_no_text_or_unfinished_is_named_so(tmp_path):
    for name in ("python-docs", "missing.txt"):
        with pytest.raises(InputError, match=f"there is no file or folder '{name}' to encode"):
            encode(Path(name), tmp_path / "ids", encoding=None, lowercase=False)
    half = tmp_path / "half"
    half.mkdir()
    (half / "ids.npy").touch()
    with pytest.raises(InputError, match="an encoded corpus that is unfinished or used where text is needed"):
        open_corpus(str(half), encoding=None, lowercase=False)
    with pytest.raises(InputError, match="is unfinished; run the same encode command again"):
        verify.main([str(half)])
