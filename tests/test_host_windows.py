import jax
import jax.numpy as jnp
import numpy as np
import pytest

from charlm_jax.data.host_windows import read_batches
from charlm_jax.data.windows import ParallelStreams, ShuffledWindows, gather_batch
from charlm_jax.keys import fold_text

KEY = jax.random.key(11)
ORDERS = [ShuffledWindows(10, stride=3, batch_size=8), ShuffledWindows(7, 1, 5), ParallelStreams(10, batch_size=6)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("length", "rows"), [(101, range(9)), (1000, range(2, 7))])
def test_they_are_the_batches_that_a_device_gathers(tmp_path, order, length, rows):
    """For all rows or a share of them, including padding, over up to 36 epochs."""
    path = tmp_path / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(0, 200, length, np.uint8))
    mapped = np.load(path, mmap_mode="r")
    resident, per_epoch, rows = jnp.array(np.load(path)), order.steps(length), np.array(rows)

    @jax.jit
    def gather(epoch, step):
        epoch_key = jax.random.fold_in(fold_text(KEY, "windows"), epoch)
        starts = order.starts(length, epoch_key, step, jnp.array(rows, jnp.int32))
        return gather_batch(resident, *starts, window=order.window)

    for steps in np.arange(36).reshape(4, 9):
        read = read_batches(mapped, order, KEY, steps, rows)
        assert read.characters.dtype == np.uint8
        for number, step in enumerate(steps):
            batch = gather(jnp.int32(step // per_epoch), jnp.int32(step % per_epoch))
            np.testing.assert_array_equal(read.characters[number], batch.characters)
            np.testing.assert_array_equal(read.weights[number], batch.weights)


@pytest.fixture(scope="module")
def long_text(tmp_path_factory):
    """5,000,000,000 characters in a sparse file, with only the last thousand on the disk."""
    path = tmp_path_factory.mktemp("long") / "ids.npy"
    ids = np.lib.format.open_memmap(path, "w+", np.uint8, (5_000_000_000,))
    ids[-1000:] = 1
    return ids


def test_a_text_beyond_32_bits_is_read_to_its_end(long_text):
    """Parallel streams: only the last stretch's last segment reaches the characters at the end."""
    order = ParallelStreams(50, batch_size=4)
    steps = order.steps(len(long_text))
    ends = np.array([0, steps - 1, steps, 2 * steps - 1])
    read = read_batches(long_text, order, KEY, ends, np.arange(4))
    assert read.characters[[0, 2]].max() == 0
    assert read.characters[[1, 3], :3].max() == 0
    assert read.characters[[1, 3], 3].min() == 1


def test_windows_beyond_32_bits_are_all_over_the_text(long_text):
    """The mean of 40,000 uniform starts is more than six standard errors from the middle once in 5e8 tries."""
    from charlm_jax.data import host_windows

    order = ShuffledWindows(60, stride=3, batch_size=400)
    length = len(long_text)
    with jax.enable_x64(True):
        starts, there = map(np.asarray, host_windows._starts(order, length, KEY, np.arange(100), np.arange(400)))
    assert there.all()
    assert np.all(starts % 3 == 0)
    assert len(np.unique(starts)) == starts.size
    assert starts.min() >= 0
    assert starts.max() < length - 60
    assert abs(starts.mean() / length - 0.5) < 6 / (12 * starts.size) ** 0.5
