"""What every test runs under: strict JAX, Keras on JAX, and the corpora that are at hand."""

import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # nothing is kept, here and in the commands under test

import jax
import pytest

from charlm_jax.data.corpus import DATA_FOLDER_VARIABLE, load_corpus
from charlm_jax.errors import InputError

# Three devices, which divide neither a batch nor two cores.
jax.config.update("jax_num_cpu_devices", 3)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def nietzsche():
    """The notebooks' text as UTF-8, lower-cased; a test that needs it is skipped where it is not to be had."""
    try:
        return load_corpus("nietzsche", lowercase=True)
    except InputError:
        pytest.skip(
            f"the Nietzsche corpus is not here: put nietzsche.txt into a folder that ${DATA_FOLDER_VARIABLE} names"
        )


@pytest.fixture
def small_text():
    """A thousand characters with some structure, the same every time."""
    words = "the will to power is the will to truth; what is good? all that heightens the feeling of power in man.\n"
    return (words * 11)[:1000]
