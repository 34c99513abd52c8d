import numpy as np
import pytest

from tests.scale.stores import chunk, flip, inputs, net, small_store
from widelimit.engines.fused import parallel
from widelimit.scale import tiled_operator


@pytest.fixture
def filled(tmp_path):
    store = small_store(tmp_path)
    store.fill(progress=False)
    return store


@pytest.fixture
def kernel():
    return np.asarray(net().kernel_fn(inputs(), None, "ntk"))


@pytest.mark.parametrize("backend", ["stored", "recompute"])
def test_products_diagonal_and_columns(filled, kernel, backend):
    operator = filled.operator(backend=backend)
    v = np.random.default_rng(0).standard_normal((50, 3))
    assert operator.shape == (50, 50)
    np.testing.assert_allclose(operator.matmat(v), kernel.astype(float) @ v, atol=1e-12)
    np.testing.assert_array_equal(operator.diagonal(), kernel.diagonal().astype(float))
    indices = np.array([40, 3, 17, 3, 49])
    np.testing.assert_array_equal(operator.columns(indices), kernel[:, indices])


def test_both_back_ends_and_any_number_of_threads_agree_to_the_bit(filled, monkeypatch):
    v = np.random.default_rng(0).standard_normal((50, 2))
    results = [filled.operator(backend=name).matmat(v) for name in ("stored", "recompute")]
    monkeypatch.setattr(parallel, "count_threads", lambda: 1)
    results.append(filled.operator().matmat(v))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_many_columns_go_in_blocks(filled, monkeypatch):
    v = np.random.default_rng(0).standard_normal((50, 7))
    whole = filled.operator().matmat(v)
    monkeypatch.setattr(tiled_operator, "_COLUMNS", 3)
    np.testing.assert_allclose(filled.operator().matmat(v), whole, atol=1e-12)


def test_damage_is_found_at_the_first_product(filled):
    flip(chunk(filled, 0, 2))
    with pytest.raises(ValueError, match=r"damaged.*repair"):
        filled.operator().matmat(np.ones((50, 1)))


def test_bad_arguments(filled):
    operator = filled.operator()
    with pytest.raises(ValueError, match=r"expected columns of shape \(50, c\), got \(49, 1\)"):
        operator.matmat(np.ones((49, 1)))
    with pytest.raises(IndexError, match=r"indices from 0 to 49, got 3..50"):
        operator.columns(np.array([3, 50]))
    with pytest.raises(IndexError, match=r"integer"):
        operator.columns(np.array([3.0]))
    with pytest.raises(ValueError, match=r"backend one of \('stored', .*got 'x'"):
        filled.operator(backend="x")


def test_missing_tiles_are_an_error_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"all 10 tiles .*, got 10 missing: store.fill"):
        small_store(tmp_path).operator()
