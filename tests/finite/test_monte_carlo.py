import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as nt
from tests.tolerance import assert_close
from widelimit import stax
from widelimit.finite.monte_carlo import Estimate, monte_carlo_kernel_fn

X = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
ROWS, COLUMNS = slice(4), slice(4, None)
X1, X2 = X[ROWS], X[COLUMNS]
KEY = jax.random.PRNGKey(1)
INIT, APPLY, KERNEL = stax.serial(stax.Dense(8, 1.3, 0.2), stax.Erf(), stax.Dense(2, 1.1, 0.1))


jacobian = jax.jit(jax.jacobian(APPLY))


@functools.cache
def all_draws():
    """NNGP and NTK of six networks, by whole Jacobians, [6, 2, 7, 7]."""
    found = []
    for i in range(6):
        init_key, _ = jax.random.split(jax.random.fold_in(KEY, i))
        params = INIT(init_key, X.shape)[1]
        f = APPLY(params, X)
        leaves = jax.tree.leaves(jacobian(params, X))
        flat = np.concatenate([leaf.reshape(*f.shape, -1) for leaf in leaves], -1)
        ntk = np.einsum("icp,jcp->ij", flat, flat) / f.shape[1]
        found.append([f @ f.T / f.shape[1], ntk])
    return np.array(found)


def draws(n, rows, columns):
    """Those of the first n networks for some samples."""
    return all_draws()[:n, :, rows][..., columns]


def test_it_is_the_average_of_its_draws():
    expected = draws(5, ROWS, COLUMNS)
    kernel_fn = monte_carlo_kernel_fn(INIT, APPLY, KEY, 5)
    both = kernel_fn(X1, X2)
    assert type(both).__name__ == "MonteCarloKernel"
    assert both._fields == ("nngp", "ntk")
    assert_close(np.stack(both), expected.mean(0))
    swapped = kernel_fn(X1, X2, ("ntk", "nngp"))
    assert swapped._fields == ("ntk", "nngp")
    np.testing.assert_array_equal(swapped.ntk, both.ntk)
    np.testing.assert_array_equal(kernel_fn(X1, X2, "nngp"), both.nngp)
    alone = kernel_fn(X1, None, "ntk")
    assert_close(alone, kernel_fn(X1, X1.copy(), "ntk"))
    assert isinstance(alone, jax.Array)
    # The networks are those of every other call.
    assert_close(kernel_fn(X, None, "ntk")[:4, 4:], both.ntk)
    again = monte_carlo_kernel_fn(INIT, APPLY, jax.random.wrap_key_data(KEY), np.int64(5))
    assert_close(again(X1, X2, "ntk"), both.ntk)


def test_running_averages_and_standard_errors():
    expected = draws(6, ROWS, COLUMNS)[:, 1]
    options = {"n_samples": [6, np.int64(1), 3, 3], "standard_error": True}
    kernel_fn = monte_carlo_kernel_fn(INIT, APPLY, KEY, **options)
    results = list(kernel_fn(X1, X2, "ntk"))
    assert len(results) == 3
    for n, result in zip((1, 3, 6), results, strict=True):
        assert isinstance(result, Estimate)
        assert_close(result.mean, expected[:n].mean(0))
        if n == 1:
            assert np.isnan(result.standard_error).all()
        else:
            error = expected[:n].std(0, ddof=1) / np.sqrt(n)
            assert_close(result.standard_error, error, rtol=1e-4)
    one = monte_carlo_kernel_fn(INIT, APPLY, KEY, 3, standard_error=True)(X1, X2)
    np.testing.assert_array_equal(one.mean.ntk, results[1].mean)
    assert_close(one.standard_error.ntk, results[1].standard_error)
    # A generator reads its inputs when it is called.
    x = X1.copy()
    running = monte_carlo_kernel_fn(INIT, APPLY, KEY, iter([1, 3]))(x, X2, "ntk")
    x[:] = 0
    np.testing.assert_array_equal(list(running)[1], results[1].mean)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": np.int64(3), "device_count": 0},
        {"vmap_axes": 0, "device_count": 1, "store_on_device": False},
        {"implementation": nt.NtkImplementation.NTK_VECTOR_PRODUCTS},
    ],
)
def test_batches_and_implementations(options):
    got = monte_carlo_kernel_fn(INIT, APPLY, KEY, 5, **options)(X1, X2)
    assert_close(np.stack(got), draws(5, ROWS, COLUMNS).mean(0))
    assert isinstance(got.ntk, np.ndarray) != options.get("store_on_device", True)
    if "batch_size" in options:
        alone = monte_carlo_kernel_fn(INIT, APPLY, KEY, 5, **options)(X1, None, "ntk")
        assert_close(alone, draws(5, ROWS, ROWS)[:, 1].mean(0))


def test_the_limit_lies_within_standard_errors():
    # With one hidden layer there is no bias at any width.
    kernel_fn = monte_carlo_kernel_fn(INIT, APPLY, KEY, 400, standard_error=True)
    estimate, exact = kernel_fn(X1, X2), KERNEL(X1, X2, ("nngp", "ntk"))
    for name in ("nngp", "ntk"):
        mean, error, limit = (np.asarray(getattr(k, name)) for k in (*estimate, exact))
        deviations = (mean - limit) / error
        assert np.abs(deviations).max() < 4
        assert np.abs(deviations).max() > 0.1
        assert error.max() < 0.2 * np.abs(limit).max()


def test_axes_keywords_and_trees():
    def init_fn(key, shape):
        return {}, {"w": jax.random.normal(key, (shape["a"][-1], 2))}

    def apply_fn(params, x, scale=1.0):  # takes no rng
        out = scale * x["a"] @ params["w"]
        return [out, (out**2).sum(-1, keepdims=True)]

    kernel_fn = monte_carlo_kernel_fn(init_fn, apply_fn, KEY, 2, trace_axes=())
    first, second = kernel_fn({"a": X1}, {"a": X2}, scale=2.0)
    assert first.ntk.shape == (4, 3, 2, 2)
    assert second.nngp.shape == (4, 3, 1, 1)
    assert_close(first.ntk, np.einsum("ij,ab->ijab", 4 * X1 @ X2.T, np.eye(2)))
    diagonal = monte_carlo_kernel_fn(init_fn, apply_fn, KEY, 2, trace_axes=(), diagonal_axes=(-1,))(
        {"a": X1}, {"a": X2}, "ntk", scale=2.0
    )
    assert_close(diagonal[0], np.einsum("ijaa->ija", first.ntk))


def test_dropout_draws_masks_of_its_own():
    init_fn, apply_fn, _ = stax.serial(stax.Dense(64), stax.Dropout(0.5), stax.Dense(1))
    kernel_fn = monte_carlo_kernel_fn(init_fn, apply_fn, KEY, 1)
    np.testing.assert_array_equal(kernel_fn(X1, None, "nngp"), kernel_fn(X1, None, "nngp"))
    one, two = monte_carlo_kernel_fn(init_fn, apply_fn, KEY, [1, 2])(X1, X1, "nngp")
    assert np.abs(one - two).max() > 1e-3


def test_it_is_a_kernel_function():
    # At float32: predictions of the average kernel.
    kernel_fn = monte_carlo_kernel_fn(INIT, APPLY, KEY, 3, batch_size=3)
    y = np.ones((4, 1), np.float32)
    predict_fn = nt.predict.gradient_descent_mse_ensemble(kernel_fn, X1, y, diag_reg=1e-2)
    mean, covariance = predict_fn(10.0, X2, "ntk", compute_cov=True)
    assert mean.shape == (3, 1)
    assert covariance.shape == (3, 3)
    k_dd, k_td = kernel_fn(X1, None, "ntk"), kernel_fn(X2, X1, "ntk")
    alone = nt.predict.gradient_descent_mse(k_dd, y, diag_reg=1e-2)(10.0, 0.0, 0.0, k_td)[1]
    assert_close(mean, alone)
    traced = jax.jit(kernel_fn, static_argnames="get")(X2, X1, get="ntk")
    assert_close(traced, k_td)


TWO_DEVICES = """
import jax, numpy as np, widelimit as nt
from widelimit import stax
assert jax.local_device_count() == 2
x = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
init_fn, apply_fn, _ = stax.serial(stax.Dense(8), stax.Erf(), stax.Dense(1))
def estimate(**options):
    kernel_fn = nt.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.key(0), 2, **options)
    return np.stack(kernel_fn(x, x[:2]))
one = estimate(device_count=0)
for options in ({}, {"batch_size": 2}, {"device_count": 2, "batch_size": 1}):
    np.testing.assert_allclose(estimate(**options), one, rtol=2e-5, atol=1e-6)
print("fine")
"""


@pytest.mark.slow
def test_two_devices():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", TWO_DEVICES],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "fine\n", result.stderr


def test_errors():
    for n in (0, -3, [], [1, 0], [1.5], "5", [True]):
        with pytest.raises(ValueError, match="expected n_samples of at least 1, in ints"):
            monte_carlo_kernel_fn(INIT, APPLY, KEY, n)
    for n in (1.5, None, True):
        with pytest.raises(TypeError, match="expected n_samples to be an int or an iterable"):
            monte_carlo_kernel_fn(INIT, APPLY, KEY, n)
    with pytest.raises(TypeError, match="expected a function init_fn"):
        monte_carlo_kernel_fn(3, APPLY, KEY, 1)
    with pytest.raises(ValueError, match="expected batch_size of at least 0"):
        monte_carlo_kernel_fn(INIT, APPLY, KEY, 1, batch_size=-1)
    with pytest.raises(ValueError, match="devices"):
        monte_carlo_kernel_fn(INIT, APPLY, KEY, 1, device_count=1000)
    kernel_fn = monte_carlo_kernel_fn(INIT, APPLY, KEY, 1)
    with pytest.raises(TypeError, match="expected no rng, got one"):
        kernel_fn(X1, rng=KEY)
    with pytest.raises(ValueError, match="expected get to be None, one of nngp, ntk"):
        kernel_fn(X1, None, "cov1")
    for wrong, got in (({"params": {}}, "dict"), ((1, 2, 3), "3 values")):
        with pytest.raises(TypeError, match=rf"to return \(output_shape, params\), got {got}"):
            monte_carlo_kernel_fn(lambda key, shape, made=wrong: made, APPLY, KEY, 1)(X1)
    for x in (np.zeros((0, 3)), np.float32(1.0), []):
        with pytest.raises(ValueError, match="expected x1 with samples"):
            kernel_fn(x)
    assert jnp.ndim(kernel_fn(X1, None, "NTK")) == 2
