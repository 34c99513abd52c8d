import operator
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tests.predict import linear_model
from tests.tolerance import assert_close
from widelimit.predict import Gaussian, gp_inference, gradient_descent_mse_ensemble

TIMES = [0.0, 0.7, 30.0, np.inf, None]
MODES = ["nngp", "ntk", "ntkgp"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("get", MODES)
@pytest.mark.parametrize("features", [(40, 20), (9, 3)], ids=["definite", "singular"])
def test_a_linear_model_trained_by_gradient_flow(get, features):
    model, x, y, x_test = linear_model.make(width=features[0], started=features[1])
    predict_fn = gradient_descent_mse_ensemble(model.kernel_fn, x, y, learning_rate=0.7)
    for t in TIMES[:4] if features[0] < 2 * len(x) else TIMES:
        for inputs, argument in [(x, None), (x_test, x_test)]:
            time = np.inf if t is None else 0.7 * t
            if get == "ntkgp":
                full = model._replace(started=model.weights.shape[1])
                mean, covariance = full.trained(x, y, inputs, time, "ntk")
            else:
                mean, covariance = model.trained(x, y, inputs, time, get)
            got = predict_fn(t, argument, get, compute_cov=True)
            assert isinstance(got, Gaussian)
            # At t = 0 the mean is 0 up to rounding.
            np.testing.assert_allclose(got.mean, mean, rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(got.covariance, covariance, rtol=1e-10, atol=1e-10)
            np.testing.assert_array_equal(predict_fn(t, argument, get), got.mean)


@pytest.mark.usefixtures("x64")
def test_limits_in_time():
    model, x, y, x_test = linear_model.make(width=40, started=20)
    predict_fn = gradient_descent_mse_ensemble(model.kernel_fn, x, y, diag_reg=1e-3)
    start, end = (predict_fn(t, x_test, MODES, compute_cov=True) for t in (0.0, np.inf))
    for get in MODES:
        prior = model.kernel_fn(x_test, None, "ntk" if get == "ntkgp" else "nngp")
        assert not np.any(getattr(start, get).mean)
        assert_close(getattr(start, get).covariance, prior)
    limit = predict_fn(None, x_test, MODES, compute_cov=True)
    jax.tree.map(assert_close, end, limit)
    pair = [
        model.kernel_fn(*inputs, ("nngp", "ntk"))
        for inputs in [(x, None), (x_test, x), (x_test, None)]
    ]
    inference = gp_inference(pair[0], y, diag_reg=1e-3)(tuple(MODES), *pair[1:])
    jax.tree.map(assert_close, tuple(inference), tuple(limit))
    mean, covariance = predict_fn(None, None, "ntk", compute_cov=True)
    np.testing.assert_array_equal(mean, y)
    assert not np.any(covariance)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("absolute", [False, True])
def test_ridge(absolute):
    model, x, y, x_test = linear_model.make(width=40, started=20)
    predict_fn = gradient_descent_mse_ensemble(
        model.kernel_fn, x, y, diag_reg=0.2, diag_reg_absolute_scale=absolute
    )
    k = {
        (name, where): np.asarray(model.kernel_fn(*inputs, name))
        for name in ("nngp", "ntk")
        for where, inputs in {"dd": (x, x), "td": (x_test, x), "tt": (x_test, x_test)}.items()
    }
    t, eye = 8.0, np.eye(len(x))
    for name in ("nngp", "ntk"):
        ridge = 0.2 * (1 if absolute else np.trace(k[name, "dd"]) / len(x))
        k_r, k_td = k[name, "dd"] + ridge * eye, k[name, "td"]
        decay = scipy.linalg.expm(-k_r * t / y.size)
        influence = k_td @ np.linalg.inv(k_r) @ (eye - decay)
        train, test = (predict_fn(t, i, name, compute_cov=True) for i in (None, x_test))
        assert_close(train.mean, y - decay @ y)
        assert_close(test.mean, influence @ y)
        prior = k["nngp", "tt"]
        if name == "nngp":
            assert_close(train.covariance, k_r @ decay @ decay)
            learnt = k_td @ np.linalg.inv(k_r) @ (eye - decay @ decay) @ k_td.T
            assert_close(test.covariance, prior - learnt)
        else:
            nngp = k["nngp", "dd"]
            assert_close(train.covariance, decay @ nngp @ decay)
            cross = influence @ k["nngp", "td"].T
            moved = influence @ nngp @ influence.T
            assert_close(test.covariance, prior + moved - cross - cross.T)


def test_arrays_of_times_jit_and_vmap():
    model, x, y, x_test = linear_model.make(width=40, started=20)
    predict_fn = gradient_descent_mse_ensemble(model.kernel_fn, x, y, diag_reg=1e-3)
    t = jnp.array([[0.0, 1.0, jnp.inf]])
    for inputs in (None, x_test):
        whole = predict_fn(t, inputs, "ntk", compute_cov=True)
        rows = len(x if inputs is None else x_test)
        assert whole.mean.shape == (1, 3, rows, 2)
        assert whole.covariance.shape == (1, 3, rows, rows)
        assert_close(whole.covariance[0, 1], predict_fn(1.0, inputs, "ntk", True).covariance)
        mapped = jax.vmap(lambda t, i=inputs: predict_fn(t, i, "ntk", True))(t[0])
        jax.tree.map(assert_close, mapped, jax.tree.map(operator.itemgetter(0), whole))
    jitted = jax.jit(predict_fn, static_argnames=("get", "compute_cov"))
    got = jitted(2.0, x_test, get="nngp", compute_cov=True)
    jax.tree.map(assert_close, got, predict_fn(2.0, x_test, "nngp", True))


def test_kernels_are_computed_once_even_if_first_in_a_jit():
    model, x, y, x_test = linear_model.make(width=40, started=20)
    calls = []

    def kernel_fn(x1, x2, get):
        calls.append((x1.shape[0], x2 is None, get))
        return model.kernel_fn(x1, x2, get)

    predict_fn = gradient_descent_mse_ensemble(kernel_fn, x, y)
    inside = jax.jit(lambda x: predict_fn(1.0, x, "ntk", compute_cov=True))(x_test)
    assert calls == [(6, True, ("nngp", "ntk")), (4, False, ("nngp", "ntk")), (4, True, "nngp")]
    del calls[:]
    predict_fn(None, None, None, compute_cov=True)
    predict_fn(3.0, None, "nngp")
    assert not calls
    jax.tree.map(assert_close, predict_fn(1.0, x_test, "ntk", True), inside)
    # In the other order, only what is missing is computed.
    predict_fn = gradient_descent_mse_ensemble(kernel_fn, x, y)
    del calls[:]
    predict_fn(get="nngp", t=1.0)
    predict_fn(get="ntk", t=1.0, compute_cov=True)
    assert calls == [(6, True, "nngp"), (6, True, "ntk")]


def test_modes():
    model, x, y, x_test = linear_model.make(width=40, started=20)
    predict_fn = gradient_descent_mse_ensemble(model.kernel_fn, x, y)
    both = predict_fn(1.0, x_test)
    assert type(both).__name__ == "Gaussians"
    assert both._fields == ("nngp", "ntk")
    assert both.ntk.dtype == jnp.float32
    assert predict_fn(1.0, x_test, ("ntk",))._fields == ("ntk",)
    np.testing.assert_array_equal(predict_fn(1.0, x_test, "NTK"), both.ntk)


def test_a_kernel_function_of_one_array():
    model, x, y, x_test = linear_model.make(width=40, started=20)
    asked = []

    def kernel_fn(x1, x2, get):
        asked.append(get)
        return model.kernel_fn(x1, x2, "ntk")

    flow = gradient_descent_mse_ensemble(kernel_fn, x, y)
    on_train = flow(get="ntk", compute_cov=True)
    assert asked == ["ntk"]
    assert_close(on_train.mean, y.astype(np.float32))
    np.testing.assert_array_equal(on_train.covariance, np.zeros((6, 6)))
    # Means take each kernel by itself; the covariance of trained networks takes both.
    both = flow(x_test=x_test)
    np.testing.assert_array_equal(both.nngp, both.ntk)
    for other in [x_test, None]:
        fresh = gradient_descent_mse_ensemble(kernel_fn, x, y)
        with pytest.raises(ValueError, match=r"for get=\('nngp', 'ntk'\) to hold both kernels"):
            fresh(2.0, other, "ntk", compute_cov=True)
    assert np.isfinite(flow(2.0, x_test, "ntkgp", compute_cov=True).covariance).all()


def test_errors():
    model, x, y, x_test = linear_model.make(width=40, started=20)
    predict_fn = gradient_descent_mse_ensemble(model.kernel_fn, x, y)
    for get in ["foo", (), ("ntk", "ntk")]:
        with pytest.raises(ValueError, match="expected get to be None, one of"):
            predict_fn(1.0, x_test, get)
    with pytest.raises(ValueError, match="expected t of at least 0"):
        predict_fn(-1.0, x_test)
    with pytest.raises(ValueError, match="x_train to be finite"):
        gradient_descent_mse_ensemble(model.kernel_fn, x * np.nan, y)
    with pytest.raises(ValueError, match="y_train to be finite"):
        gradient_descent_mse_ensemble(model.kernel_fn, x, y * np.nan)
    with pytest.raises(ValueError, match="learning_rate of at least 0"):
        gradient_descent_mse_ensemble(model.kernel_fn, x, y, learning_rate=-1.0)
    with pytest.raises(ValueError, match="diag_reg of at least 0"):
        gradient_descent_mse_ensemble(model.kernel_fn, x, y, diag_reg=-1.0)
    with pytest.raises(ValueError, match=r"kernel_fn\(x_train, None\) of shape \(5, 5\)"):
        gradient_descent_mse_ensemble(model.kernel_fn, x, y[:5])(1.0)
    doubled = gradient_descent_mse_ensemble(model.kernel_fn, np.tile(x, (2, 1)), np.tile(y, (2, 1)))
    with pytest.warns(RuntimeWarning, match=r"ntk of x_train, .* is singular.*diag_reg=.*6 of 12"):
        limit = doubled(None, x_test, "ntk")
    assert_close(limit, doubled(np.inf, x_test, "ntk"))
    only = namedtuple("Only", ["nngp"])
    lacking = gradient_descent_mse_ensemble(
        lambda x1, x2, get: only(model.kernel_fn(x1, x2, "nngp")), x, y
    )
    with pytest.raises(ValueError, match="result of kernel_fn to hold 'ntk'"):
        lacking(1.0, None, "ntk")
    with pytest.raises(ValueError, match=r"one number for learning_rate.*\(6, 2\); .* x_test\)"):
        gradient_descent_mse_ensemble(model.kernel_fn, x, y, y)


class TestKernelKeywords:
    """A graph's pattern is a pair, one for each input; a scale is one for all."""

    def setup_method(self):
        self.calls = []
        model, self.x, self.y, self.x_test = linear_model.make(width=40, started=20)

        def kernel_fn(x1, x2, get, scale=1.0, pattern=None):
            self.calls.append(pattern)
            return model.kernel_fn(x1, x2, get, scale=scale)

        self.kernel_fn = kernel_fn

    def make(self, **kwargs):
        return gradient_descent_mse_ensemble(self.kernel_fn, self.x, self.y, **kwargs)

    def test_pairs_are_paired_anew(self):
        train, test = jnp.zeros(6), jnp.ones(4)
        predict_fn = self.make(pattern=(train, train))
        predict_fn(1.0, self.x_test, "nngp", True, pattern=(test, test))
        expected = [(train, train), (test, train), (test, test)]
        for got, want in zip(self.calls, expected, strict=True):
            assert all(a is b for a, b in zip(got, want, strict=True))

    def test_others_are_kept(self):
        predict_fn = self.make(scale=2.0)
        for kwargs in [{}, {"scale": 2.0}]:
            covariance = predict_fn(0.0, self.x_test, "nngp", True, **kwargs).covariance
            assert_close(covariance, self.kernel_fn(self.x_test, None, "nngp", 2.0))

    def test_a_key_of_either_kind(self):
        for key in [jax.random.key(0), jax.random.PRNGKey(0)]:
            self.make(pattern=key)(1.0, self.x_test, "nngp", pattern=jax.tree.map(jnp.array, key))
        with pytest.raises(ValueError, match="expected 'pattern' to be the same"):
            self.make(pattern=key)(1.0, self.x_test, "nngp", pattern=jax.random.PRNGKey(1))

    def test_errors(self):
        with pytest.raises(ValueError, match="expected 'scale' to be the same"):
            self.make(scale=2.0)(1.0, self.x_test, "nngp", scale=3.0)
        with pytest.raises(ValueError, match=r"that the training set has, \['scale'\], got 'pat"):
            self.make(scale=2.0)(1.0, self.x_test, "nngp", pattern=None)


def test_gradient_through_the_kernel_with_float64_off():
    def f(scale):
        # Fresh arrays: JAX confuses constants of jitted functions across settings of float64.
        model, x, y, x_test = linear_model.make()
        predict_fn = gradient_descent_mse_ensemble(
            lambda *args: model.kernel_fn(*args, scale=scale), x, y
        )
        mean, covariance = predict_fn(5.0, x_test, "ntk", compute_cov=True)
        return (mean**2).sum() + covariance.sum()

    with jax.enable_x64(True):
        expected = linear_model.finite_difference(jax.jit(f), 1.3, 1.0)
    for transformed in [jax.jit(jax.grad(f)), jax.grad(jax.jit(f))]:
        assert_close(transformed(1.3), expected, rtol=1e-4)
