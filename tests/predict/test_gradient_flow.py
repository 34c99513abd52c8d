import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tests.predict import linear_model
from tests.tolerance import assert_close
from widelimit.predict import (
    discrete_gradient_descent_mse,
    gradient_descent_mse,
    gradient_descent_mse_ensemble,
)


def problem(n=5, t=3, outputs=2, rank=20, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n + t, rank)) / np.sqrt(rank)
    kernel = features @ features.T
    y, f0, g0 = (rng.normal(size=(size, outputs)) for size in (n, n, t))
    return kernel[:n, :n], kernel[n:, :n], y, f0, g0


def direct(k, k_td, y, f0, g0, time):
    """The flow of outputs as one matrix exponential, without inverting the kernel."""
    n, t = len(k), len(k_td)
    joint = np.vstack([k, k_td]) / y.size
    system = np.block([[-joint, np.zeros((n + t, t + 1))], [np.zeros((1, n + t + 1))]])
    out = []
    for c in range(y.shape[1]):
        system[: n + t, -1] = joint @ y[:, c]
        start = np.concatenate([f0[:, c], g0[:, c], [1.0]])
        out.append(scipy.linalg.expm(system * time) @ start)
    out = np.stack(out, axis=1)
    return out[:n], out[n : n + t]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("t", [0.0, 0.5, 100.0, np.inf, None])
def test_train_and_test(t):
    k, k_td, y, f0, g0 = problem()
    predict_fn = gradient_descent_mse(k, y, learning_rate=0.7)
    expected = direct(k, k_td, y, f0, g0, 0.7 * min(t, 1e6) if t is not None else 0.7e6)
    train, test = predict_fn(t, f0, g0, k_td)
    assert_close(train, expected[0])
    assert_close(test, expected[1])
    np.testing.assert_array_equal(predict_fn(t, f0), train)
    alone = predict_fn(t, None, g0, k_td)
    assert_close(alone, predict_fn(t, 0.0, g0, k_td)[1])
    assert_close(predict_fn(t, f0, 0.25, k_td)[1], expected[1] - g0 + 0.25)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("absolute", [False, True])
def test_ridge(absolute):
    k, k_td, y, f0, g0 = problem()
    ridge = 0.3 * (1 if absolute else np.trace(k) / len(k))
    k_r = k + ridge * np.eye(len(k))
    predict_fn = gradient_descent_mse(k, y, diag_reg=0.3, diag_reg_absolute_scale=absolute)
    decay = scipy.linalg.expm(-k_r * 3.0 / y.size)
    train, test = predict_fn(3.0, f0, g0, k_td)
    assert_close(train, y + decay @ (f0 - y))
    influence = k_td @ np.linalg.inv(k_r)
    assert_close(test, g0 + influence @ (np.eye(5) - decay) @ (y - f0))
    train, test = predict_fn(None, f0, g0, k_td)
    np.testing.assert_array_equal(train, y)
    assert_close(test, g0 + influence @ (y - f0))


@pytest.mark.usefixtures("x64")
def test_arrays_of_times():
    k, k_td, y, f0, g0 = problem()
    predict_fn = gradient_descent_mse(k, y)
    t = np.array([[0.0, 1.0, 2.0], [5.0, 100.0, np.inf]])
    train, test = predict_fn(t, f0, g0, k_td)
    assert train.shape == (2, 3, 5, 2)
    assert test.shape == (2, 3, 3, 2)
    for index in np.ndindex(2, 3):
        one = predict_fn(t[index], f0, g0, k_td)
        assert_close(train[index], one[0])
        assert_close(test[index], one[1])
    mapped = jax.jit(jax.vmap(jax.vmap(lambda t: predict_fn(t, f0, g0, k_td)[1])))
    assert_close(mapped(t), test)
    assert predict_fn([1, 2], f0).shape == (2, 5, 2)
    assert predict_fn(np.zeros((0,)), f0).shape == (0, 5, 2)


@pytest.mark.usefixtures("x64")
def test_singular_kernels_reach_the_limit_of_the_flow():
    k, k_td, y, f0, g0 = problem(rank=3)
    predict_fn = gradient_descent_mse(k, y)
    for t in [0.0, 2.0, 1e5]:
        expected = direct(k, k_td, y, f0, g0, t)
        for got, want in zip(predict_fn(t, f0, g0, k_td), expected, strict=True):
            assert_close(got, want)
    expected = direct(k, k_td, y, f0, g0, 1e5)
    for t in [1e20, np.inf]:
        for got, want in zip(predict_fn(t, f0, g0, k_td), expected, strict=True):
            assert_close(got, want)
    with pytest.warns(RuntimeWarning, match="singular"):
        _, test = predict_fn(None, f0, g0, k_td)
    assert_close(test, expected[1])
    # On the training set the answer at t=None is y by definition.
    np.testing.assert_array_equal(predict_fn(None, f0), y)


@pytest.mark.parametrize("trace_axes", [(-1,), (), (0, -1), (0, 0, -3), (0, 1, 2)])
def test_trace_axes(trace_axes):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(3, 2, 2))
    kept = [axis for axis in range(3) if axis not in {a % 3 for a in trace_axes}]
    shape = tuple(y.shape[axis] for axis in kept)
    rows = int(np.prod(shape))
    features = rng.normal(size=(rows, 2 * rows))
    order = [side * len(shape) + i for i in range(len(shape)) for side in (0, 1)]
    kernel = (features @ features.T).reshape(shape + shape).transpose(order)
    train, test = gradient_descent_mse(kernel, y, trace_axes=trace_axes)(2.0, 0.1, 0.1, kernel)
    assert train.shape == y.shape
    # A test set equal to the training set is trained alike.
    assert_close(test, train)
    moved = np.moveaxis(y, kept, range(len(kept))).reshape(rows, -1)
    decay = scipy.linalg.expm(-features @ features.T * 2.0 / y.size)
    expected = np.moveaxis(np.asarray(train), kept, range(len(kept))).reshape(rows, -1)
    assert_close(expected, moved + decay @ (0.1 - moved), jnp.float32)


def test_float32_and_jit():
    k, k_td, y, f0, g0 = (jnp.asarray(a, jnp.float32) for a in problem())
    predict_fn = gradient_descent_mse(k, y, diag_reg=1e-3)
    jitted = jax.jit(predict_fn)
    for t in [None, 2.0, jnp.array([1.0, jnp.inf])]:
        for got, want in zip(jitted(t, f0, g0, k_td), predict_fn(t, f0, g0, k_td), strict=True):
            assert got.dtype == jnp.float32
            assert_close(got, want)
    fresh = gradient_descent_mse(k, y)
    jax.jit(fresh)(1.0, f0)
    assert_close(fresh(1.0, f0), gradient_descent_mse(k, y)(1.0, f0))
    traced = jax.jit(lambda k, y: gradient_descent_mse(k, y)(1.0, f0))(k, y)
    assert_close(traced, fresh(1.0, f0))


@pytest.mark.parametrize("kind", ["distinct", "repeated", "concrete"])
def test_gradients_with_float64_off(kind):
    def f(s):
        # Fresh arrays: JAX confuses constants of jitted functions across settings of float64.
        k, k_td, y, f0, g0 = problem()
        if kind == "repeated":
            k = np.diag([1.0, 1.0, 1.0, 2.0, 2.0])
        rng = np.random.default_rng(3)
        directions = [rng.normal(size=a.shape) for a in (k, k_td, y, f0, g0)]
        directions[0] = directions[0] @ directions[0].T
        moved = [a + s * d for a, d in zip((k, k_td, y, f0, g0), directions, strict=True)]
        kernel = k if kind == "concrete" else moved[0]
        predict_fn = gradient_descent_mse(kernel, moved[2], learning_rate=0.5 + s)
        t = jnp.stack([3.0 + s, jnp.inf + 0 * s])
        train, test = predict_fn(t, moved[3], moved[4], moved[1])
        return (train**3).sum() + (test**2).sum()

    with jax.enable_x64(True):
        expected = linear_model.finite_difference(jax.jit(f), 0.0, 1.0)
        assert_close(jax.jit(jax.jacfwd(f))(0.0), expected, rtol=1e-6)
        assert_close(jax.jit(jax.grad(f))(0.0), expected, rtol=1e-6)
    assert_close(jax.jit(jax.grad(f))(0.0), expected, rtol=1e-4)
    assert_close(jax.grad(jax.jit(f))(0.0), expected, rtol=1e-4)


def test_errors():
    k, k_td, y, f0, g0 = problem()
    predict_fn = gradient_descent_mse(k, y)
    with pytest.raises(ValueError, match="got None for both"):
        predict_fn(1.0, None)
    with pytest.raises(ValueError, match="expected k_test_train beside fx_test_0"):
        predict_fn(1.0, f0, g0)
    with pytest.raises(ValueError, match="expected t of at least 0"):
        predict_fn(-1.0, f0)
    with pytest.raises(ValueError, match="expected t of at least 0"):
        predict_fn(np.array([1.0, np.nan]), f0)
    with pytest.raises(ValueError, match=r"expected fx_train_0 .* \(5, 2\), got \(3, 2\)"):
        predict_fn(1.0, g0)
    with pytest.raises(ValueError, match=r"expected fx_test_0 .* \(3, 2\), got \(5, 2\)"):
        predict_fn(1.0, f0, f0, k_td)
    with pytest.raises(ValueError, match=r"expected k_test_train of shape \('t', 5\)"):
        predict_fn(1.0, f0, g0, k_td[:, :4])
    with pytest.raises(ValueError, match=r"expected k_train_train of shape \(4, 4\)"):
        gradient_descent_mse(k, y[:4])
    with pytest.raises(ValueError, match="pairs of equal axes"):
        gradient_descent_mse(k[:, :4], y)
    with pytest.raises(ValueError, match="expected learning_rate of at least 0"):
        gradient_descent_mse(k, y, learning_rate=-1.0)
    with pytest.raises(ValueError, match="expected diag_reg of at least 0"):
        gradient_descent_mse(k, y, diag_reg=-1.0)
    for arguments in [(k_td,), (1.0, k_td)]:
        with pytest.raises(ValueError, match=r"expected one number for .*, got an array") as caught:
            gradient_descent_mse(k, y, *arguments)
        assert "k_test_train=..." in str(caught.value)
        assert len(str(caught.value)) < 300
    with pytest.raises(ValueError, match="y_train to be finite"):
        gradient_descent_mse(k, y * np.nan)
    with pytest.raises(ValueError, match="k_train_train to be finite"):
        gradient_descent_mse(k * np.inf, y)
    indefinite = gradient_descent_mse(k - np.eye(5), y)
    with pytest.raises(ValueError, match=r"is indefinite: its smallest .* diag_reg="):
        indefinite(1.0, f0)


def test_complex_numbers_are_refused():
    # Their imaginary parts would be lost.
    k, y = np.eye(3), np.ones((3, 1))
    with pytest.raises(TypeError, match="expected real numbers in k_train_train"):
        gradient_descent_mse(k + 0j, y)
    with pytest.raises(TypeError, match="expected real numbers in y_train"):
        gradient_descent_mse(k, 1j * y)
    predict_fn = gradient_descent_mse(k, y)
    with pytest.raises(TypeError, match="expected real numbers in fx_train_0"):
        predict_fn(1.0, 1j * y)
    with pytest.raises(TypeError, match="expected real numbers in k_test_train"):
        predict_fn(1.0, 0.0, 0.0, 1j * k)
    with pytest.raises(TypeError, match="expected a number for t"):
        predict_fn(1 + 1j)


def test_numbers_of_numpy_that_change():
    k, y, rate, ridge = 2 * np.eye(2), np.ones((2, 1)), np.array(0.5), np.array(0.1)
    flow = gradient_descent_mse(k, y, rate, ridge)
    ensemble = gradient_descent_mse_ensemble(lambda *_: k, np.eye(2), y, rate, ridge)
    steps = discrete_gradient_descent_mse(k, y, rate, momentum := np.array(0.3))
    before = flow(3.0), ensemble(3.0, get="nngp"), steps(3)
    for number in (rate, ridge, momentum):
        number[...] = 0.7
    after = flow(3.0), ensemble(3.0, get="nngp"), steps(3)
    for found, expected in zip(after, before, strict=True):
        assert_close(found, expected)
