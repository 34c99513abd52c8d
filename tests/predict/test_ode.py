import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.special

from tests.predict import linear_model
from tests.tolerance import assert_close
from widelimit.predict import ODEState, gradient_descent, gradient_descent_mse
from widelimit.predict.equation import ODEState as ODEStateOfModule

RATE = 0.3
TIMES = np.array([[40.0, 0.0], [10.0, 40.0]])


def cross_entropy(fx, y):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(fx) * y, axis=-1))


def slope(fx, y):
    """The gradient of cross-entropy, by hand."""
    return (scipy.special.softmax(fx, axis=-1) - y) / len(y)


def problem(n=5, t=3, outputs=3, width=14, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n + t, width)) / np.sqrt(width)
    labels = np.eye(outputs)[rng.integers(outputs, size=n)]
    return features[:n], features[n:], labels, rng.normal(size=(width, outputs))


def path(train, test, y, theta, momentum, times):
    """Outputs and velocities by another solver, in the space of parameters."""
    size = theta.size
    span = np.sqrt(RATE) if momentum is not None else RATE

    def velocity(_, state):
        theta, q = state.reshape(2, -1, y.shape[1])
        force = -train.T @ slope(train @ theta, y)
        if momentum is None:
            return np.concatenate([force.ravel(), np.zeros(size)])
        return np.concatenate([q.ravel(), (force + (momentum - 1) / np.sqrt(RATE) * q).ravel()])

    start = np.concatenate([theta.ravel(), np.zeros(size)])
    states = []
    for t in times:
        solution = scipy.integrate.solve_ivp(
            velocity, (0, span * t), start, method="DOP853", rtol=1e-12, atol=1e-13
        )
        states.append(solution.y[:, -1].reshape(2, -1, y.shape[1]))
    both = np.vstack([train, test])
    return both @ np.stack(states)[:, 0], both @ np.stack(states)[:, 1]


def train_by_steps(train, y, theta, steps, rate, momentum):
    optimiser = optax.sgd(rate, momentum=momentum)

    def step(carry, _):
        theta, state = carry
        gradient = jax.grad(lambda theta: cross_entropy(train @ theta, y))(theta)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(theta, updates), state), None

    carry = jnp.asarray(theta), optimiser.init(jnp.asarray(theta))
    return jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(carry)[0][0]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_cross_entropy_and_resumption(momentum):
    train, test, y, theta = problem()
    k, k_td = train @ train.T, test @ train.T
    predict_fn = gradient_descent(cross_entropy, k, y, RATE, momentum)
    fx, fx_test = predict_fn(TIMES, train @ theta, test @ theta, k_td)
    assert fx.shape == (2, 2, 5, 3)
    assert fx_test.shape == (2, 2, 3, 3)
    both = np.concatenate([fx, fx_test], axis=-2).reshape(4, 8, 3)
    f, q = path(train, test, y, theta, momentum, TIMES.ravel())
    assert_close(both, f, rtol=1e-7)
    np.testing.assert_array_equal(both[1], np.vstack([train, test]) @ theta)
    # Forty steps at once, or thirty after ten.
    state = predict_fn(10.0, ODEState(train @ theta, test @ theta), None, k_td)
    if momentum is not None:
        assert_close(np.vstack([state.qx_train, state.qx_test]), q[2], rtol=1e-7)
    state = predict_fn(30.0, state, None, k_td)
    assert_close(np.vstack([state.fx_train, state.fx_test]), f[3], rtol=1e-7)
    assert (state.qx_train is None) == (state.qx_test is None) == (momentum is None)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_training_by_steps_tends_to_it(momentum):
    train, test, y, theta = problem()
    f, _ = path(train, test, y, theta, momentum, [40.0])
    errors = []
    # With momentum time passes as sqrt(rate) steps, and as many steps forget as much as before.
    for finer in (50, 100, 200):
        if momentum is None:
            rate, steps, kept = RATE / finer, 40 * finer, None
        else:
            rate, steps, kept = RATE / finer**2, 40 * finer, 1 - (1 - momentum) / finer
        trained = train_by_steps(train, y, theta, steps, rate, kept)
        errors.append(np.abs(np.vstack([train, test]) @ trained - f[0]).max())
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 2.0, rtol=0.05)
    assert errors[-1] < 3e-2 * np.abs(f).max()


@pytest.mark.usefixtures("x64")
def test_mean_squared_error_has_the_closed_form():
    train, test, y, theta = problem()
    k, k_td = train @ train.T, test @ train.T
    arrays = train @ theta, test @ theta, k_td
    predict_fn = gradient_descent(lambda fx, y: 0.5 * jnp.mean((fx - y) ** 2), k, y, 2.0)
    times = np.array([100.0, 3.0])
    for got, want in zip(
        predict_fn(times, *arrays), gradient_descent_mse(k, y, 2.0)(times, *arrays), strict=True
    ):
        assert_close(got, want, rtol=1e-7)


@pytest.mark.usefixtures("x64")
def test_full_kernels_and_what_is_asked_for():
    # Correlated outputs: no trace axes.
    rng = np.random.default_rng(0)
    features = rng.normal(size=(9, 12))
    kernel = (features @ features.T).reshape(3, 3, 3, 3).transpose(0, 2, 1, 3)
    y = np.eye(3)
    predict_fn = gradient_descent(cross_entropy, kernel, y, RATE, trace_axes=())
    train, test = predict_fn(5.0, 0.0, 0.0, kernel)
    assert_close(test, train)
    solution = scipy.integrate.solve_ivp(
        lambda _, f: -features @ (features.T @ slope(f.reshape(3, 3), y).ravel()),
        *((0, 5 * RATE), np.zeros(9), "DOP853"),
        rtol=1e-11,
        atol=1e-12,
    )
    assert_close(train, solution.y[:, -1].reshape(3, 3), rtol=1e-7)
    assert_close(predict_fn(5.0, None, 0.0, kernel), test)
    assert predict_fn(np.zeros((0, 2)), 0.0).shape == (0, 2, 3, 3)
    assert ODEState is ODEStateOfModule
    assert jax.tree.leaves(ODEState()) == []


def loss_after_training(s):
    """Depends on all that can be differentiated; arrays are fresh, since JAX keeps constants."""
    train, test, y, theta = problem()
    k = jnp.asarray(train * (1 + s * np.arange(14.0)[None]) @ train.T)
    predict_fn = gradient_descent(cross_entropy, (k + k.T) / 2, y, RATE + s, 0.9 - s)
    arrays = (1 + s) * (train @ theta), test @ theta, test @ train.T * (1 - s)
    fx, fx_test = predict_fn(jnp.array([9.0, 4.0]) * (1 + s), *arrays)
    return (fx**3).sum() + (fx_test**2).sum(), fx


@pytest.mark.slow
def test_gradients_and_float32():
    with jax.enable_x64(True):
        f = jax.jit(jax.value_and_grad(loss_after_training, has_aux=True))
        gradient = f(0.0)[1]
        expected = linear_model.finite_difference(lambda s: f(s)[0][0], 0.0, 1.0, step=1e-4)
    assert_close(gradient, expected, rtol=1e-6)
    # Traced with float64 off: all of it in float32.
    (_, fx), gradient = jax.jit(jax.value_and_grad(loss_after_training, has_aux=True))(0.0)
    assert gradient.dtype == fx.dtype == jnp.float32
    assert_close(gradient, expected, rtol=1e-4)
    # Concrete: in float64.
    concrete = loss_after_training(0.0)[1]
    assert concrete.dtype == jnp.float32
    assert_close(fx, concrete, rtol=1e-5)


def test_failures_are_nan_when_traced_and_raise_otherwise():
    train, _, y, _ = problem()
    predict_fn = gradient_descent(cross_entropy, train @ train.T, y, max_steps=3)
    with pytest.raises(ValueError, match="expected to reach t in 3 steps of the solver"):
        predict_fn(1e4)
    got = jax.jit(predict_fn)(jnp.array([1e4, jnp.inf]))
    assert np.isnan(got).all()
    times = jnp.array([1.0, jnp.inf, -1.0])
    one = jax.jit(gradient_descent(cross_entropy, train @ train.T, y))(times)
    np.testing.assert_array_equal(np.isnan(one).all(axis=(1, 2)), [False, True, True])
    # All is concrete, but inside jit: float32.
    whole = jax.jit(lambda: gradient_descent(cross_entropy, train @ train.T, y)(1.0))()
    assert_close(whole, one[0])


def test_errors(monkeypatch):
    train, test, y, _ = problem()
    k, k_td = train @ train.T, test @ train.T
    predict_fn = gradient_descent(cross_entropy, k, y)
    for t in (None, np.inf, [1.0, np.inf]):
        with pytest.raises(ValueError, match=r"expected finite times t, got .* no finite limit"):
            predict_fn(t)
    with pytest.raises(ValueError, match="expected t of at least 0"):
        predict_fn(-1.0)
    with pytest.raises(ValueError, match="got None for both"):
        predict_fn(1.0, None)
    with pytest.raises(ValueError, match="expected k_test_train beside outputs on a test set"):
        predict_fn(1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="expected k_test_train beside outputs on a test set"):
        predict_fn(1.0, ODEState(fx_test=np.zeros((3, 3))))
    with pytest.raises(ValueError, match="expected fx_test_0=None beside an ODEState"):
        predict_fn(1.0, ODEState(), 0.0, k_td)
    with pytest.raises(ValueError, match=r"expected no velocities .* without momentum"):
        predict_fn(1.0, ODEState(qx_train=0.0))
    with pytest.raises(ValueError, match="expected fx_test beside qx_test"):
        gradient_descent(cross_entropy, k, y, momentum=0.9)(1.0, ODEState(qx_test=0.0))
    with pytest.raises(ValueError, match=r"expected fx_train .* \(5, 3\), got \(3, 3\)"):
        predict_fn(1.0, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="expected fx_train to be finite"):
        predict_fn(1.0, np.full((5, 3), np.nan))
    with pytest.raises(
        ValueError, match=r"loss\(.* to be one real number, got float64 of shape \(5"
    ):
        gradient_descent(lambda fx, y: fx - y, k, y)(1.0)
    with pytest.raises(TypeError, match="expected max_steps to be an int"):
        gradient_descent(cross_entropy, k, y, max_steps=1.5)
    for options, words in [
        ({"momentum": 1.1}, "momentum of at most 1"),
        ({"momentum": 0.9, "learning_rate": 0.0}, "learning_rate above 0 with momentum"),
        ({"rtol": 0.0}, "rtol between 0 and 1"),
        ({"max_steps": 0}, "max_steps of at least 1"),
    ]:
        with pytest.raises(ValueError, match=f"expected .*{words}"):
            gradient_descent(cross_entropy, k, y, **options)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs diffrax; .*widelimit\[ode\]"):
        predict_fn(1.0)


def test_equal_losses_are_compiled_once():
    k, y = jnp.array([[2.0, 1.0], [1.0, 2.0]]), jnp.ones((2, 1))
    calls = []

    def predict(factor):
        def loss(fx, y):
            calls.append(factor)
            return jnp.mean((fx - y) ** 2) / 2

        return gradient_descent(loss, factor * k, y)(t=1.0)

    predict(1.0)
    calls.clear()
    faster = predict(2.0)
    assert calls == [2.0]  # to see whether it does the same
    assert_close(faster, gradient_descent_mse(2 * k, y)(t=1.0))
