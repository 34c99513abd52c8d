import numpy as np
import pytest

from tests.tolerance import assert_close


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 2e-5), (np.float64, 1e-10)])
def test_tolerance_follows_the_dtype(dtype, rtol):
    desired = np.array([0.0, 100.0], dtype)
    assert_close(desired + np.array([0.5 * rtol * 100, 0], dtype), desired)
    with pytest.raises(AssertionError, match="index"):
        assert_close(desired + np.array([2 * rtol * 100, 0], dtype), desired)


def test_the_least_precise_dtype_decides():
    assert_close(np.float32(1 + 1e-6), np.float64(1.0))
    with pytest.raises(AssertionError):
        assert_close(np.float64(1 + 1e-6), np.float64(1.0))
    assert_close(np.float64(1 + 1e-6), np.float64(1.0), dtype=np.float32)


def test_integers_must_be_equal():
    assert_close(np.arange(3), np.arange(3))
    with pytest.raises(AssertionError):
        assert_close(np.arange(3), np.arange(1, 4))


def test_shapes_must_be_equal():
    with pytest.raises(AssertionError, match="expected shape"):
        assert_close(np.zeros(3), np.zeros((1, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(bad):
    assert_close(np.array([bad, 1.0]), np.array([bad, 1.0]))
    for actual, desired in [([bad, 1.0], [0.0, 1.0]), ([0.0, 1.0], [bad, 1.0])]:
        with pytest.raises(AssertionError):
            assert_close(np.array(actual), np.array(desired))


def test_zeros():
    assert_close(np.zeros(2), np.zeros(2))
    with pytest.raises(AssertionError):
        assert_close(np.array([0.0, 1e-30]), np.zeros(2))
