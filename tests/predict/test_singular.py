"""Kernels that are singular by rounding alone: the limit of a vanishing ridge."""

import warnings
from collections import namedtuple
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit import InfiniteEnsemble, stax
from widelimit.predict import (
    gp_inference,
    gradient_descent_mse,
    gradient_descent_mse_ensemble,
    in_place,
)

NET = stax.serial(stax.Dense(1, 1.2, 0.3), stax.Erf(), stax.Dense(1, 1.1))
Kernels = namedtuple("Kernels", ["nngp", "ntk"])
SINGULAR = pytest.warns(RuntimeWarning, match="singular to working precision: its smallest eig")


def repeated(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs of which some are repeated, their targets, which differ, others, and who is who."""
    rng = np.random.default_rng(seed)
    who = np.array([0, 1, 2, 3, 4, 5, 1, 1, 4])
    x, x_test = rng.normal(size=(6, 3))[who], rng.normal(size=(4, 3))
    return x, rng.normal(size=(9, 2)), x_test, who


def without_repeats(get: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The limit of a vanishing ridge in float64: each input once, with the mean of its targets."""
    x, y, x_test, who = repeated(seed)
    once = np.array([x[who == i][0] for i in range(6)])
    targets = np.array([y[who == i].mean(0) for i in range(6)])
    with jax.enable_x64(True):
        pairs = [(once, None), (x_test, once), (x_test, None)]
        dd, td, tt = (
            Kernels(*map(np.asarray, NET.kernel_fn(*pair, ("nngp", "ntk")))) for pair in pairs
        )
    name = "nngp" if get == "nngp" else "ntk"
    a = np.linalg.solve(getattr(dd, name), getattr(td, name).T).T
    if get == "ntk":
        cross = a @ td.nngp.T
        return a @ targets, tt.nngp + a @ dd.nngp @ a.T - cross - cross.T
    return a @ targets, getattr(tt, name) - a @ getattr(td, name).T


def kernels(seed: int = 0) -> list[Any]:
    x, _, x_test, _ = repeated(seed)
    pairs = [(x, None), (x_test, x), (x_test, None)]
    return [NET.kernel_fn(*pair, ("nngp", "ntk")) for pair in pairs]


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("get", ["nngp", "ntk", "ntkgp"])
def test_repeated_samples_count_by_the_mean_of_their_targets(get: str, x64: bool) -> None:
    x, y, x_test, _ = repeated()
    mean, covariance = without_repeats(get)
    tolerance = {"rtol": 1e-8 if x64 else 3e-4}
    with jax.enable_x64(x64):
        dd, td, tt = kernels()
        with SINGULAR:
            found = gp_inference(dd, y)(get, td, tt)
        assert_close(found.mean, mean, **tolerance)
        assert_close(found.covariance, covariance, **tolerance)
        flow = gradient_descent_mse_ensemble(NET.kernel_fn, x, y)
        with SINGULAR:
            found = flow(x_test=x_test, get=get, compute_cov=True)
        assert_close(found.mean, mean, **tolerance)
        assert_close(found.covariance, covariance, **tolerance)
        # The limit of long times, and of times in steps.
        for t in [np.inf, 1e14]:
            late = flow(t, x_test, get, compute_cov=True)
            assert_close(late.mean, found.mean, **tolerance)
            assert_close(late.covariance, found.covariance, **tolerance)


@pytest.mark.usefixtures("x64")
def test_a_small_ridge_tends_to_it() -> None:
    _, y, _, _ = repeated()
    dd, td, _ = kernels()
    dd, td = np.asarray(dd.ntk), np.asarray(td.ntk)
    with SINGULAR:
        found = gp_inference(dd, y)("ntk", td)
    errors = []
    for ridge in [1e-4, 1e-6]:
        small = td @ np.linalg.solve(dd + ridge * np.eye(9), y)
        errors.append(np.abs(small - found).max())
    assert errors[1] < 1e-3
    assert 50 < errors[0] / errors[1] < 200


def test_outputs_from_a_start() -> None:
    _, y, _, _ = repeated()
    dd, td, _ = kernels()
    rng = np.random.default_rng(1)
    start, start_test = rng.normal(size=(9, 2)), rng.normal(size=(4, 2))
    predict_fn = gradient_descent_mse(dd.ntk, y)
    with SINGULAR:
        train, test = predict_fn(None, start, start_test, td.ntk)
    kernel, other = (np.asarray(k, np.float64) for k in (dd.ntk, td.ntk))
    solved = np.linalg.pinv(kernel, rcond=1e-5, hermitian=True) @ (y - start)
    assert_close(test, start_test + other @ solved, rtol=3e-4)
    assert_close(train, y, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        predict_fn(None, start, start_test, td.ntk)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "rank"), [(5, 4), (30, 29), (30, 12), (80, 3)])
def test_linear_networks_of_few_inputs(dtype: Any, n: int, rank: int) -> None:
    """One eigenvalue of rounding errors, positive by chance, may leave all pivots large."""
    for seed in range(20 if n < 80 else 4):
        rng = np.random.default_rng(seed)
        x, x_test, y = (rng.normal(size=shape) for shape in [(n, rank), (4, rank), (n, 1)])
        expected = x_test @ np.linalg.pinv(x) @ y
        x, x_test = x.astype(dtype), x_test.astype(dtype)
        with jax.enable_x64(dtype is np.float64), SINGULAR:
            found = gp_inference(x @ x.T, y)("nngp", x_test @ x.T)
        assert_close(found, expected, rtol=2e-3 if dtype is np.float32 else 1e-9)


@pytest.mark.parametrize("inference", ["bayes", "gradient_descent"])
def test_ensembles_without_noise_and_jitter(inference: str) -> None:
    x, y, x_test, _ = repeated(seed=3)
    mean, covariance = without_repeats("nngp" if inference == "bayes" else "ntk", seed=3)
    with SINGULAR as caught:
        ensemble = InfiniteEnsemble(NET, x, y, inference=inference, jitter=0.0)
        found = ensemble.mean(x_test)
    assert "widelimit/" not in caught[0].filename
    assert "jitter=" in str(caught[0].message)
    assert "3 of 9 eigenvalues" in str(caught[0].message)
    assert_close(found, mean, rtol=1e-3)
    assert_close(ensemble.cov(x_test), covariance, rtol=1e-3)
    assert np.isfinite(ensemble.std(x)).all()
    assert np.isfinite(ensemble.sample(jax.random.key(0), x_test, 2)).all()
    if inference == "bayes":
        with pytest.raises(ValueError, match=r"is singular or indefinite .*jitter=.*would do"):
            ensemble.log_marginal_likelihood()
        return
    assert_close(ensemble.at(np.inf).mean(x_test), mean, rtol=1e-3)
    assert_close(ensemble.at(1e9).mean(x_test), mean, rtol=1e-3)
    # A short time before rounding matters.
    flow = gradient_descent_mse_ensemble(NET.kernel_fn, x, y, diag_reg=1e-7)
    assert_close(ensemble.at(5.0).mean(x_test), flow(5.0, x_test, "ntk"), rtol=1e-4)


def test_rounding_is_told_from_indefinite() -> None:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    values = np.linspace(1.0, 2.0, 20)
    y, other = rng.normal(size=(20, 1)), rng.normal(size=(3, 20))
    floor = np.sqrt(20) * 2.0**-23 * 2
    for lowest, fails in [(-30 * floor, False), (0.2 * floor, False), (-300 * floor, True)]:
        values[0] = lowest
        kernel = ((basis * values) @ basis.T).astype(np.float32)
        k_td = (other @ basis[:, 1:] @ basis[:, 1:].T).astype(np.float32)
        if fails:
            with pytest.raises(ValueError, match=r"is indefinite: its smallest .*diag_reg="):
                gp_inference(kernel, y)("ntk", k_td)
            continue
        with SINGULAR:
            found = gp_inference(kernel, y)("ntk", k_td)
        live = (basis[:, 1:] / values[1:]) @ basis[:, 1:].T
        assert_close(found, k_td @ live @ y, np.float32)


def test_numbers_of_float32_in_float64_have_its_rounding() -> None:
    _, y, _, _ = repeated()
    dd, td, _ = kernels()
    kernel = np.asarray(dd.ntk, np.float64)
    with SINGULAR:
        found = gp_inference(kernel, y)("ntk", td.ntk)
    with SINGULAR:
        expected = gp_inference(dd.ntk, y)("ntk", td.ntk)
    np.testing.assert_array_equal(found, expected)


def test_traced_kernels_are_nan_and_concrete_ones_are_not() -> None:
    _, y, _, _ = repeated()
    dd, td, _ = kernels()
    traced = jax.jit(lambda k: gp_inference(k, y)("nngp", td.nngp))(dd.nngp)
    assert np.isnan(traced).all()
    with SINGULAR:
        inside = jax.jit(lambda y: gp_inference(dd.nngp, y)("nngp", td.nngp))(y)
    with SINGULAR:
        expected = gp_inference(dd.nngp, y)("nngp", td.nngp)
    assert_close(inside, expected, np.float32)
    with SINGULAR:
        slope = jax.grad(lambda y: gp_inference(dd.nngp, y)("nngp", td.nngp).sum())(jnp.asarray(y))
    with SINGULAR:
        weights = gp_inference(dd.nngp, np.eye(9))("nngp", td.nngp)
    assert_close(slope[:, 0], np.asarray(weights).sum(0), np.float32)


def test_a_definite_kernel_needs_no_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(matrix: np.ndarray) -> None:
        raise AssertionError

    monkeypatch.setattr(in_place, "eigh", refuse)
    x = np.random.default_rng(0).normal(size=(50, 3))
    flow = gradient_descent_mse_ensemble(NET.kernel_fn, x, x[:, :1], diag_reg=1e-3)
    assert np.isfinite(flow(x_test=x[:4], get="ntk")).all()
    with pytest.raises(AssertionError):
        gp_inference(np.ones((3, 3)), np.ones((3, 1)))("ntk", np.ones((1, 3)))
