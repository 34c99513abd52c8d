import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.predict import linear_model
from tests.tolerance import assert_close
from widelimit.predict import (
    discrete_gradient_descent_mse,
    discrete_gradient_descent_mse_ensemble,
    gradient_descent_mse,
    gradient_descent_mse_ensemble,
    max_learning_rate,
)

OPTIMISERS = {
    "plain": {},
    "heavy ball": {"momentum": 0.9},
    "nesterov": {"momentum": 0.7, "nesterov": True},
    "weight decay": {"weight_decay": 0.03},
    "all": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
}


def run(features, y, theta, steps, rate, momentum=0.0, nesterov=False, weight_decay=0.0):
    """Parameters after steps of the optimiser of optax on a linear model."""
    theta0 = jnp.asarray(theta)

    def loss(theta):
        fit = 0.5 * jnp.mean((features @ theta - y) ** 2)
        return fit + 0.5 * weight_decay * jnp.sum((theta - theta0) ** 2)

    optimiser = optax.sgd(rate, momentum=momentum or None, nesterov=nesterov)

    @jax.jit
    def step(theta, state):
        updates, state = optimiser.update(jax.grad(loss)(theta), state)
        return optax.apply_updates(theta, updates), state

    theta, state, out = theta0, optimiser.init(theta0), {0: theta0}
    for i in range(1, max(steps) + 1):
        theta, state = step(theta, state)
        out[i] = theta
    return np.stack([out[i] for i in steps])


def problem(n=5, t=3, outputs=2, width=12, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n + t, width)) / np.sqrt(width)
    return (
        features[:n],
        features[n:],
        rng.normal(size=(n, outputs)),
        rng.normal(size=(width, outputs)),
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("options", "width"), [*((name, 12) for name in OPTIMISERS), ("all", 3), ("plain", 3)]
)
def test_outputs_are_those_of_a_run(options, width):
    options = OPTIMISERS[options]
    train, test, y, theta = problem(width=width)
    k, k_td = train @ train.T, test @ train.T
    steps = np.array([[0, 1, 2], [3, 30, 200]])
    thetas = run(train, y, theta, steps.ravel(), 1.7, **options).reshape(2, 3, *theta.shape)
    predict_fn = discrete_gradient_descent_mse(k, y, 1.7, **options)
    fx_train, fx_test = predict_fn(steps, train @ theta, test @ theta, k_td)
    assert_close(fx_train, train @ thetas, rtol=1e-12)
    assert_close(fx_test, test @ thetas, rtol=1e-12)
    # A test set equal to the training set is trained alike.
    assert_close(predict_fn(steps, 0.0, 0.0, k)[1], predict_fn(steps, 0.0), rtol=1e-12)
    # Infinitely many: the ridge regression of weight decay, or of least norm.
    ridge = y.size * options.get("weight_decay", 0.0)
    inverse = np.linalg.pinv(k + ridge * np.eye(len(k)), rcond=1e-10, hermitian=True)
    residual = inverse @ (y - train @ theta)
    for t in (None, np.inf):
        fx_train, fx_test = predict_fn(t, train @ theta, test @ theta, k_td)
        assert_close(fx_train, train @ theta + k @ residual)
        assert_close(fx_test, test @ theta + k_td @ residual)
    assert_close(predict_fn(10**9, train @ theta), fx_train)


@pytest.mark.usefixtures("x64")
def test_steps_that_are_too_long_diverge_as_they_do():
    train, _, y, theta = problem()
    rate = 1.02 * float(max_learning_rate(train @ train.T, y.size, 0.9))
    for factor, grows in [(1.0, True), (0.97, False)]:
        steps = [300, 600]
        thetas = run(train, y, theta, steps, factor * rate, momentum=0.9)
        predict_fn = discrete_gradient_descent_mse(train @ train.T, y, factor * rate, 0.9)
        got = predict_fn(np.array(steps), train @ theta)
        assert_close(got, train @ thetas, rtol=1e-9)
        assert (np.abs(got[1]).max() > 2 * np.abs(got[0]).max()) == grows
        if grows:
            with pytest.raises(ValueError, match=r"expected a learning rate below .* diverges"):
                predict_fn(None, 0.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_flow_is_the_limit_of_small_steps(momentum):
    train, test, y, theta = problem()
    arrays = train @ theta, test @ theta, test @ train.T
    flow = gradient_descent_mse(train @ train.T, y)(30.0, *arrays)[1]
    errors = []
    for steps in (10**4, 10**5, 10**6):
        rate = 30.0 * (1 - momentum) / steps
        predict_fn = discrete_gradient_descent_mse(train @ train.T, y, rate, momentum)
        errors.append(float(np.abs(predict_fn(steps, *arrays)[1] - flow).max()))
    ratios = np.array(errors[:-1]) / errors[1:]
    np.testing.assert_allclose(ratios, 10.0, rtol=0.02)  # of first order in the rate
    assert errors[-1] < 1e-5


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("get", ["nngp", "ntk", "ntkgp"])
def test_ensemble_is_that_of_runs(get):
    # The run is linear in the initial parameters: basis vectors give mean and covariance.
    model, x, y, x_test = linear_model.make()
    count = model.started if get == "nngp" else model.weights.shape[1]
    features, test = model.features(x)[:, :count], model.features(x_test)[:, :count]
    start = np.ones(count)
    if get == "ntk":
        start[model.started :] = 0.0
    options = {"momentum": 0.8, "weight_decay": 0.01}
    steps = [0, 7, 50]
    predict_fn = discrete_gradient_descent_mse_ensemble(model.kernel_fn, x, y, 0.9, **options)
    mean_run = run(features, y, np.zeros((count, 2)), steps, 0.9, **options)
    # 0.5 mean over the N = 12 targets; unit vectors are so many other outputs.
    scale = count / y.shape[1]
    unit = np.eye(count)
    zero = np.zeros((len(x), count))
    moved = run(features * np.sqrt(scale), zero, unit, steps, 0.9, **options)
    for x_new, phi in [(None, features), (x_test, test)]:
        mean, covariance = predict_fn(np.array(steps), x_new, get, compute_cov=True)
        assert_close(mean, phi @ mean_run)
        map_ = phi @ moved
        assert_close(covariance, (map_ * start) @ map_.swapaxes(-1, -2))
        assert_close(predict_fn(np.array(steps), x_new, get), mean)


@pytest.mark.usefixtures("x64")
def test_ensemble_becomes_that_of_the_flow():
    model, x, y, x_test = linear_model.make()
    flow = gradient_descent_mse_ensemble(model.kernel_fn, x, y)(20.0, x_test, None, True)
    predict_fn = discrete_gradient_descent_mse_ensemble(model.kernel_fn, x, y, 1e-5)
    got = predict_fn(2 * 10**6, x_test, None, True)
    for mode in ("nngp", "ntk"):
        for a, b in zip(getattr(got, mode), getattr(flow, mode), strict=True):
            assert_close(a, b, rtol=1e-5)
    endless = gradient_descent_mse_ensemble(model.kernel_fn, x, y)(np.inf, x_test, "ntk", True)
    for a, b in zip(predict_fn(None, x_test, "ntk", True), endless, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("trace_axes", [(), (0, 1)])
def test_trace_axes(trace_axes):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(3, 2))
    if trace_axes:
        kernel, matrix = np.array(1.3), 1.3 * np.eye(6)
    else:
        features = rng.normal(size=(6, 8))
        matrix = features @ features.T
        kernel = matrix.reshape(3, 2, 3, 2).transpose(0, 2, 1, 3)
    predict_fn = discrete_gradient_descent_mse(kernel, y, 0.3, trace_axes=trace_axes)
    expected = y.ravel() - np.linalg.matrix_power(np.eye(6) - 0.05 * matrix, 4) @ y.ravel()
    assert_close(predict_fn(4), expected.reshape(3, 2), rtol=2e-5)


@pytest.mark.slow
def test_float32_jit_and_gradients():
    def f(s):
        # Fresh arrays: JAX confuses constants of jitted functions across settings of float64.
        train, test, y, theta = problem()
        k = jnp.asarray(train * (1 + s * np.arange(12.0)[None]) @ train.T)
        k = (k + k.T) / 2
        predict_fn = discrete_gradient_descent_mse(
            k, y * (1 + s), 0.5 + s, 0.9 - s, weight_decay=0.01 * (1 + s)
        )
        arrays = (1 + s) * (train @ theta), test @ theta, test @ train.T * (1 - s)
        fx_train, fx_test = predict_fn(jnp.array([3, 20]), *arrays)
        return (fx_train**3).sum() + (fx_test**2).sum()

    with jax.enable_x64(True):
        expected = linear_model.finite_difference(jax.jit(f), 0.0, 1.0)
        assert_close(jax.jit(jax.grad(f))(0.0), expected, rtol=1e-6)
    assert_close(jax.jit(jax.grad(f))(0.0), expected, rtol=1e-4)
    train, _, y, _ = problem()
    k, y = (jnp.asarray(a, jnp.float32) for a in (train @ train.T, y))
    predict_fn = discrete_gradient_descent_mse(k, y, 0.5, 0.9)
    got = jax.jit(predict_fn)(jnp.array([1, 100]), 0.0)
    assert got.dtype == jnp.float32
    assert_close(got, predict_fn([1, 100], 0.0))
    assert_close(jax.vmap(lambda t: predict_fn(t, 0.0))(jnp.array([1, 100])), got)


def test_errors():
    train, test, y, _ = problem()
    k = train @ train.T
    with pytest.raises(ValueError, match="expected momentum below 1, got 1"):
        discrete_gradient_descent_mse(k, y, momentum=1)
    with pytest.raises(ValueError, match="expected momentum of at least 0"):
        discrete_gradient_descent_mse(k, y, momentum=-0.1)
    with pytest.raises(ValueError, match="expected weight_decay of at least 0"):
        discrete_gradient_descent_mse(k, y, weight_decay=-0.1)
    with pytest.raises(TypeError, match="expected nesterov to be True or False"):
        discrete_gradient_descent_mse(k, y, nesterov=0.5)
    predict_fn = discrete_gradient_descent_mse(k, y)
    with pytest.raises(ValueError, match="expected t in whole steps, got 1"):
        predict_fn(1.5)
    with pytest.raises(ValueError, match=r"expected t of at most 2\^53 steps"):
        predict_fn(1e17)
    with pytest.raises(ValueError, match="expected t of at least 0"):
        predict_fn(-1)
    with pytest.raises(ValueError, match="is indefinite") as caught:
        discrete_gradient_descent_mse(k - np.eye(5), y)(3)
    assert "diag_reg" not in str(caught.value)
    decay = float(re.search(r"use weight_decay=(\S+)", str(caught.value))[1])
    assert np.isfinite(discrete_gradient_descent_mse(k - np.eye(5), y, weight_decay=decay)(3)).all()
    with pytest.raises(ValueError, match=r"one number for learning_rate.*\(3, 5\); .*k_test_train"):
        discrete_gradient_descent_mse(k, y, test @ train.T)
