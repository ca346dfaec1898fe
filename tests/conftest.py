"""The setting of every test: strict JAX, Keras on JAX, and the corpora at hand."""

import itertools
import multiprocessing
import os
import shutil
import tempfile
from multiprocessing import forkserver
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
# Compiled programs are kept while the tests run, for the tests and for the commands under test.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest
from faults import PRELOADED

from charlm_jax.data.corpus import DATA_FOLDER_VARIABLE, load_corpus
from charlm_jax.errors import InputError

# Three devices: a number that divides neither a batch nor two cores.
jax.config.update("jax_num_cpu_devices", 3)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption("--faults", action="store_true", help="run the whole fault suite, and nothing else")


def pytest_unconfigure():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(config, items):
    if config.getoption("--faults"):
        items[:] = [item for item in items if item.path.name in ("test_faults.py", "test_processes.py")]


def pytest_terminal_summary(terminalreporter):
    reports = itertools.chain(*terminalreporter.stats.values())
    figures = dict(figure for report in reports for figure in getattr(report, "user_properties", ()))
    if figures:
        terminalreporter.section("faults")
        for fault, outcome in figures.items():
            terminalreporter.write_line(f"{fault}: {outcome}")


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Drop a file's compiled programs from memory at its end: those of all files would be gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def sized(request):
    """How much of a fault test to run: sized(sample, whole) is `whole` under --faults, else `sample`."""
    return lambda sample, whole: whole if request.config.getoption("--faults") else sample


@pytest.fixture
def report(record_property):
    """Record a fault test's findings for the end of the tests' output: report("kills", "200, all resumed")."""
    return record_property


@pytest.fixture(scope="session")
def commands():
    """Make commands start fast: fork them from a process that has already loaded JAX.

    Returns the folder of compiled programs.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()
    return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.fixture(scope="session")
def nietzsche():
    """The notebooks' text as UTF-8, lower-cased; tests that need it are skipped where it is missing."""
    try:
        return load_corpus("nietzsche", lowercase=True)
    except InputError:
        pytest.skip(
            f"the Nietzsche corpus is not here: put nietzsche.txt into a folder that ${DATA_FOLDER_VARIABLE} names"
        )


@pytest.fixture(scope="session")
def corpus(small_text, tmp_path_factory):
    """A file of `small_text`."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(small_text)
    return path


@pytest.fixture(scope="session")
def small_text():
    """A thousand characters with some structure, the same every time."""
    words = "the will to power is the will to truth; what is good? all that heightens the feeling of power in man.\n"
    return (words * 11)[:1000]
