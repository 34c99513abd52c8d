"""Batches whose samples are cut out, filled up and checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import _samples as samples
from widelimit._samples import Samples, check_finite, finite_or_masked


def test_rows_are_cut_along_their_own_axes() -> None:
    x = np.arange(12.0).reshape(4, 3), np.arange(8.0).reshape(2, 4)
    batch = Samples.of(x, (0, -1), {"pattern": np.arange(4)}, "x1")
    assert batch.count == 4
    assert batch.sample_bytes() == 3 * 8 + 2 * 8 + 8
    assert batch.sample_bytes(4) == 3 * 4 + 2 * 4 + 8
    rows = batch.cut(2, 4, 3)
    np.testing.assert_array_equal(rows.x[0], x[0][[2, 3, 3]])
    np.testing.assert_array_equal(rows.x[1], x[1][:, [2, 3, 3]])
    np.testing.assert_array_equal(rows.extras["pattern"], [2, 3, 3])
    np.testing.assert_array_equal(batch.cut(0, 2, 2).x[0], x[0][:2])


def test_numbers_of_samples_must_agree() -> None:
    with pytest.raises(ValueError, match=r"same number of samples in x1, got \[4, 3\]"):
        Samples.of([np.ones((4, 3)), np.ones((3, 3))], 0, {}, "x1")
    with pytest.raises(ValueError, match="pattern with the 4 samples of x1"):
        Samples.of(np.ones((4, 3)), 0, {"pattern": np.ones(3)}, "x1")
    with pytest.raises(ValueError, match="a batch axis 2 in x1"):
        Samples.of(np.ones((4, 3)), 2, {}, "x1")


def test_what_is_not_finite_is_found_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_CHECKED_BYTES", 64)
    x = np.zeros((40, 3))
    x[17, 2], x[30, 0] = np.nan, np.inf
    with pytest.raises(
        ValueError, match=r"expected x to be finite, got 2 of 120 .* \(17, 2\): nan"
    ):
        check_finite("x", x)
    with pytest.raises(ValueError, match=r"got 1 of 120 entries .* \(30, 0\): inf"):
        check_finite("x", x, np.nan)
    x[17, 2], x[30, 0] = 1e300, 0.0
    with pytest.raises(ValueError, match=r"got 1 .* \(in float32\), .* \(17, 2\)"):
        check_finite("x", x, None, np.dtype(np.float32))
    check_finite("x", np.zeros((0, 3)))


def test_finite_integers_and_traced_arrays_pass() -> None:
    check_finite("y", np.ones(3))
    check_finite("y", np.arange(3))
    jax.jit(lambda x: check_finite("y", x))(jnp.array([jnp.nan]))
    for value in [np.nan, jnp.array(-jnp.inf)]:
        with pytest.raises(ValueError, match=r"got 1 of 1 entries .* index \(\): "):
            check_finite("y", value)


def test_masked_entries_may_be_anything() -> None:
    x = np.array([1.0, np.nan, np.inf, -1e30])
    finite = [True, False, False, True]
    for constant, masked in [(None, []), (7.0, []), (np.nan, [1]), (np.inf, [2])]:
        expected = [ok or i in masked for i, ok in enumerate(finite)]
        assert finite_or_masked(x, constant).tolist() == expected
    jax.jit(lambda constant: (finite_or_masked(x, constant).all() or 1 / 0, constant)[1])(1.0)
