import numpy as np
import pytest

from tests.scale.stores import inputs, net, small_store
from widelimit.scale.backends import rows_of


@pytest.mark.parametrize("backend", [None, "stored", "recompute", "memory", "sharded"])
def test_every_back_end_is_the_kernel(tmp_path, backend):
    store = small_store(tmp_path, get=("nngp", "ntk"))
    store.fill(progress=False)
    kernel = np.asarray(net().kernel_fn(inputs(), None, "nngp"), float)
    operator, v = store.operator("nngp", backend), np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(operator.matmat(v), kernel @ v, atol=1e-12)
    np.testing.assert_array_equal(operator.diagonal(), kernel.diagonal())
    np.testing.assert_array_equal(operator.columns(np.array([20, 3])), kernel[:, [20, 3]])


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (3, 4), (10, 40), (48, 50)])
def test_rows(tmp_path, start, stop):
    store = small_store(tmp_path)
    store.fill(progress=False)
    kernel = net().kernel_fn(inputs(), None, "ntk")
    np.testing.assert_array_equal(rows_of(store.tiles["ntk"], start, stop), kernel[start:stop])


def test_only_stored_tiles_are_read_by_a_cluster(tmp_path):
    store = small_store(tmp_path)
    store.fill(progress=False)
    with pytest.raises(ValueError, match=r"engine='inline' for backend='memory', got 'dask'"):
        store.operator(backend="memory", engine="dask")
