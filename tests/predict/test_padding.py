"""Inputs padded with what is not finite, where `mask_constant` says so."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.tolerance import assert_close
from widelimit import InfiniteEnsemble, predict, stax

NET = stax.serial(stax.Dense(1), stax.Relu(), stax.GlobalAvgPool(), stax.Dense(1))


def problem(padding: float = np.nan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sequences of different lengths, with targets, and others to test on."""
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(5, 4, 2)), rng.normal(size=(3, 4, 2))
    x[1, 2:], x[4, 3], x_test[0, 1:] = padding, padding, padding
    return x, rng.normal(size=(5, 1)), x_test


def kernels(get: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those of the problem, padded with a number instead."""
    x, _, x_test = problem(77.0)
    pairs = [(x, None), (x_test, x), (x_test, None)]
    found = (np.asarray(NET.kernel_fn(*pair, get, mask_constant=77.0)) for pair in pairs)
    dd, td, tt = (kernel.astype(np.float64) for kernel in found)
    return dd, td, tt


def posterior(get: str, relative: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and the covariance for "nngp"."""
    dd, td, tt = kernels(get)
    regular = dd + relative * np.trace(dd) / len(dd) * np.eye(len(dd))
    _, y, _ = problem()
    return td @ np.linalg.solve(regular, y), tt - td @ np.linalg.solve(regular, td.T)


@pytest.mark.parametrize("padding", [np.nan, np.inf])
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_a_keyword_of_the_kernel(padding: float, get: str) -> None:
    x, y, x_test = problem(padding)
    flow = predict.gradient_descent_mse_ensemble(
        NET.kernel_fn, x, y, diag_reg=1e-3, mask_constant=padding
    )
    found = flow(x_test=x_test, get=get, compute_cov=True)
    mean, covariance = posterior(get)
    assert_close(found.mean, mean, np.float32)
    if get == "nngp":
        assert_close(found.covariance, covariance, np.float32)
    on_train = flow(t=10.0, get=get)
    assert_close(flow(t=10.0, x_test=x.copy(), get=get), on_train, rtol=2e-2)


def test_the_keyword_may_be_given_again() -> None:
    x, y, x_test = problem()
    flow = predict.gradient_descent_mse_ensemble(
        NET.kernel_fn, x, y, diag_reg=1e-3, mask_constant=np.nan
    )
    expected = flow(3.0, x_test, "ntk")
    for constant in [np.nan, float("nan"), np.float32("nan"), jnp.nan * 1]:
        again = flow(3.0, x_test, "ntk", mask_constant=constant)
        np.testing.assert_array_equal(again, expected)
    with pytest.raises(ValueError, match="expected 'mask_constant' to be the same"):
        flow(3.0, x_test, "ntk", mask_constant=0.0)


def test_steps_in_tiles_and_in_batches() -> None:
    x, y, x_test = problem()
    whole = predict.discrete_gradient_descent_mse_ensemble(
        NET.kernel_fn, x, y, 0.1, mask_constant=np.nan
    )(5, x_test, "ntk")
    assert np.isfinite(whole).all()
    for kernel_fn, memory in [(NET.kernel_fn, "8KB"), (wl.batch(NET.kernel_fn, 2), "1GB")]:
        found = predict.discrete_gradient_descent_mse_ensemble(
            kernel_fn, x, y, 0.1, memory=memory, mask_constant=np.nan
        )(5, x_test, "ntk")
        assert_close(found, whole, np.float32)


@pytest.mark.parametrize("memory", ["1GB", "8KB"])
@pytest.mark.parametrize("inference", ["bayes", "gradient_descent"])
def test_a_partial_function(memory: str, inference: str) -> None:
    x, y, x_test = problem()
    kernel_fn = functools.partial(NET.kernel_fn, mask_constant=np.nan)
    ensemble = InfiniteEnsemble(kernel_fn, x, y, inference=inference, jitter=1e-3, memory=memory)
    mean, covariance = posterior("nngp" if inference == "bayes" else "ntk")
    assert_close(ensemble.mean(x_test), mean, np.float32)
    if inference == "bayes":
        assert_close(ensemble.cov(x_test), covariance, np.float32)
    expected = NET.kernel_fn(x, None, "ntk", mask_constant=np.nan)
    assert_close(wl.gram(kernel_fn, x, memory=memory, progress=False), expected, np.float32)
    assert_close(wl.batch(kernel_fn, 2)(x, None).ntk, expected, np.float32)


def test_a_kernel_of_masked_arrays() -> None:
    x, y, x_test = problem()

    def kernel_fn(x1: Any, x2: Any, get: Any) -> Any:
        filled = (None if x is None else np.where(x.mask, np.nan, x.masked_value) for x in (x1, x2))
        return NET.kernel_fn(*filled, get, mask_constant=np.nan)

    masked, masked_test = (stax.MaskedArray(v, jnp.isnan(v)) for v in map(jnp.asarray, (x, x_test)))
    flow = predict.gradient_descent_mse_ensemble(kernel_fn, masked, y, diag_reg=1e-3)
    assert_close(flow(x_test=masked_test, get="ntk"), posterior("ntk")[0], np.float32)
    shown = stax.MaskedArray(jnp.asarray(x), jnp.zeros(x.shape, bool))
    with pytest.raises(ValueError, match="x_train to be finite, got 6 of 40"):
        predict.gradient_descent_mse_ensemble(kernel_fn, shown, y)


def test_what_is_not_padding_is_refused() -> None:
    x, y, x_test = problem()
    match = r"to be finite, got 6 of 40 .* \(1, 2, 0\): nan; mark padding by mask_constant="
    for constant in [None, 0.0, np.inf]:
        with pytest.raises(ValueError, match=match):
            predict.gradient_descent_mse_ensemble(NET.kernel_fn, x, y, mask_constant=constant)
    with pytest.raises(ValueError, match=match):
        InfiniteEnsemble(NET, x, y)
    kernel_fn = functools.partial(NET.kernel_fn, engine="reference")
    whole = InfiniteEnsemble(kernel_fn, np.nan_to_num(x), y)
    with pytest.raises(ValueError, match="x to be finite, got 6 of 24"):
        whole.mean(x_test)
    x[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"got 1 of 40 .* \(0, 0, 0\): inf"):
        predict.gradient_descent_mse_ensemble(NET.kernel_fn, x, y, mask_constant=np.nan)
