import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.predict import linear_model
from tests.tolerance import assert_close
from widelimit import stax
from widelimit.predict import gp_inference, gradient_descent_mse_ensemble
from widelimit.predict.infinite import InfiniteEnsemble


def problem(**kwargs):
    return linear_model.make(**{"width": 40, "started": 20, **kwargs})


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("t", [0.0, 3.0, 500.0, np.inf, None])
def test_gradient_descent_towards_data_and_the_start(t, noise):
    model, x, y, x_test = problem()
    ensemble = InfiniteEnsemble(model.kernel_fn, x, y, learning_rate=0.7, noise=noise, jitter=1e-12)
    view = ensemble if t is None else ensemble.at(t)
    time = np.inf if t is None else 0.7 * t
    for inputs in (x, x_test):
        mean, covariance = model.trained(x, y, inputs, time, "ntk", ridge=noise**2)
        np.testing.assert_allclose(view.mean(inputs), mean, atol=1e-8)
        np.testing.assert_allclose(view.cov(inputs), covariance, atol=1e-8)
        variance = np.broadcast_to(np.diag(covariance)[:, None], mean.shape)
        np.testing.assert_allclose(view.var(inputs), variance, atol=1e-8)
        std = view.std(inputs, noise=True)
        np.testing.assert_allclose(std**2, variance + noise**2, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_bayes_and_the_functions_of_predict():
    model, x, y, x_test = problem()
    bayes = InfiniteEnsemble(model.kernel_fn, x, y, inference="bayes", noise=0.3, jitter=0)
    dd, td, tt = (
        np.asarray(model.kernel_fn(*inputs, "nngp"))
        for inputs in [(x, None), (x_test, x), (x_test, None)]
    )
    mean, covariance = gp_inference(dd, y, diag_reg=0.09, diag_reg_absolute_scale=True)(
        "nngp", td, tt
    )
    assert_close(bayes.mean(x_test), mean)
    assert_close(bayes.cov(x_test), covariance)
    assert_close(bayes.cov(x_test, noise=True), covariance + 0.09 * np.eye(4))
    k = dd + 0.09 * np.eye(6)
    density = scipy.stats.multivariate_normal(np.zeros(6), k).logpdf(y.T).sum()
    assert_close(bayes.log_marginal_likelihood(), density)

    predict_fn = gradient_descent_mse_ensemble(model.kernel_fn, x, y)
    trained = InfiniteEnsemble(model.kernel_fn, x, y, jitter=0).at(np.array([1.0, 30.0]))
    mean, covariance = predict_fn(np.array([1.0, 30.0]), x_test, "ntk", compute_cov=True)
    assert_close(trained.mean(x_test), mean)
    assert_close(trained.cov(x_test), covariance)


@pytest.mark.usefixtures("x64")
def test_jitter_is_relative_to_the_mean_diagonal():
    model, x, y, x_test = problem()
    kernel = np.asarray(model.kernel_fn(x, None, "nngp"))
    ridge = 0.1 * np.trace(kernel) / 6 + 0.04
    ensemble = InfiniteEnsemble(model.kernel_fn, x, y, inference="bayes", noise=0.2, jitter=0.1)
    solved = np.linalg.solve(kernel + ridge * np.eye(6), y)
    assert_close(ensemble.mean(x_test), np.asarray(model.kernel_fn(x_test, x, "nngp")) @ solved)


@pytest.mark.optimised
@pytest.mark.parametrize("inference", ["bayes", "gradient_descent"])
def test_repeated_inputs_without_noise_in_float32(inference):
    model, x, y, x_test = problem()
    twice, targets = np.tile(x, (2, 1)), np.tile(y, (2, 1))
    twice, targets = twice.astype(np.float32), targets.astype(np.float32)
    ensemble = InfiniteEnsemble(model.kernel_fn, twice, targets, inference=inference)
    once = InfiniteEnsemble(model.kernel_fn, twice[:6], targets[:6], inference=inference)
    assert ensemble.mean(x_test).dtype == jnp.float32
    assert_close(ensemble.mean(x_test), once.mean(x_test), rtol=1e-2)
    assert np.isfinite(ensemble.std(twice)).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("inference", ["bayes", "gradient_descent"])
def test_samples_and_the_loss(inference):
    model, x, y, x_test = problem()
    ensemble = InfiniteEnsemble(model.kernel_fn, x, y, inference=inference, noise=0.5)
    rng = np.random.default_rng(5)
    inputs, targets = np.vstack([x_test, x[:2]]), rng.normal(size=(6, 2))
    draws = np.asarray(ensemble.sample(jax.random.key(0), inputs, 40_000))
    assert draws.shape == (40_000, 6, 2)
    covariance = np.asarray(ensemble.cov(inputs))
    error = np.sqrt(np.diag(covariance)[:, None] / len(draws))
    assert np.all(np.abs(draws.mean(0) - ensemble.mean(inputs)) < 5 * error)
    for c in range(2):
        sampled = np.cov(draws[:, :, c].T)
        error = np.sqrt(
            (np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / len(draws)
        )
        assert np.all(np.abs(sampled - covariance) < 5 * error)
    assert np.abs(np.corrcoef(draws[:, 0, 0], draws[:, 0, 1])[0, 1]) < 0.025

    losses = 0.5 * ((draws - targets) ** 2).mean((1, 2))
    loss = ensemble.loss(inputs, targets)
    assert abs(losses.mean() - loss.mean) < 5 * loss.std / np.sqrt(len(draws))
    # The standard error of a standard deviation, from the fourth moment.
    kurtosis = scipy.stats.kurtosis(losses, fisher=False)
    error = loss.std * np.sqrt((kurtosis - 1) / (4 * len(draws)))
    assert abs(losses.std() - loss.std) < 5 * error


@pytest.mark.usefixtures("x64")
def test_arrays_of_times():
    model, x, y, x_test = problem()
    ensemble = InfiniteEnsemble(model.kernel_fn, x, y, noise=0.1)
    t = np.array([[0.0, 1.0, np.inf]])
    whole, one = ensemble.at(t), ensemble.at(1.0)
    for name in ["mean", "std", "var", "cov"]:
        got = getattr(whole, name)(x_test)
        assert got.shape[:2] == (1, 3)
        assert_close(got[0, 1], getattr(one, name)(x_test))
    loss, expected = whole.loss(x, y), one.loss(x, y)
    assert loss.mean.shape == loss.std.shape == (1, 3)
    assert_close(loss.mean[0, 1], expected.mean)
    assert_close(loss.std[0, 1], expected.std)
    assert loss.mean[0, 0] > loss.mean[0, 1] > loss.mean[0, 2]
    with pytest.raises(ValueError, match="at one time to sample from"):
        whole.sample(jax.random.key(0), x, 2)
    # A view leaves the ensemble as it was, and limits agree.
    assert_close(ensemble.mean(x_test), whole.mean(x_test)[0, 2], rtol=1e-8)


def test_output_axes():
    # Outputs [n, h, c] of a kernel (n, n, h, h).
    rng = np.random.default_rng(0)
    model, x, _, x_test = problem()
    mix = np.array([[1.0, 0.3], [0.3, 1.0]], np.float32)

    def kernel_fn(x1, x2, get):
        kernels = model.kernel_fn(x1, x2, get)
        return jax.tree.map(lambda k: jnp.einsum("nm,hg->nmhg", k, mix), kernels)

    y = rng.normal(size=(6, 2, 3))
    ensemble = InfiniteEnsemble(kernel_fn, x, y, noise=0.1)
    assert ensemble.mean(x_test).shape == (4, 2, 3)
    assert ensemble.std(x_test).shape == (4, 2, 3)
    assert ensemble.cov(x_test).shape == (4, 4, 2, 2)
    assert ensemble.sample(jax.random.key(0), x_test, 5).shape == (5, 4, 2, 3)
    covariance = np.asarray(ensemble.cov(x_test))
    diagonal = np.einsum("nnhh->nh", covariance)
    assert_close(ensemble.var(x_test)[:, :, 1], diagonal)


def test_kernels_and_factors_are_shared():
    model, x, y, x_test = problem()
    calls = []

    def kernel_fn(x1, x2, get):
        calls.append((len(x1), x2 is None))
        return model.kernel_fn(x1, x2, get)

    ensemble = InfiniteEnsemble(kernel_fn, x, y)
    view = ensemble.at(1.0)
    jitted = jax.jit(lambda x: (view.mean(x), ensemble.std(x), ensemble.at(2.0).cov(x)))(x_test)
    assert calls.count((6, True)) == 1
    assert_close(jitted[0], view.mean(x_test))
    assert_close(jitted[1], ensemble.std(x_test))
    assert_close(jitted[2], ensemble.at(2.0).cov(x_test))
    assert ensemble._train_kernel.spectral() is view._train_kernel.spectral()


def test_gradient_of_the_marginal_likelihood_with_float64_off():
    def f(parameters):
        # Fresh arrays: JAX confuses constants of jitted functions across settings of float64.
        model, x, y, _ = problem()
        scale, noise, shift = parameters

        def kernel_fn(x1, x2, get):
            return model.kernel_fn(x1, x2, get, scale=scale)

        ensemble = InfiniteEnsemble(kernel_fn, x + shift * x**2, y, inference="bayes", noise=noise)
        return ensemble.log_marginal_likelihood()

    point = np.array([1.3, 0.2, 0.1])
    with jax.enable_x64(True):
        expected = [
            linear_model.finite_difference(jax.jit(f), jnp.asarray(point), direction)
            for direction in np.eye(3)
        ]
    for gradient in [jax.grad(f), jax.jit(jax.grad(f)), jax.grad(jax.jit(f))]:
        assert_close(gradient(jnp.asarray(point, jnp.float32)), expected, rtol=1e-4)


@pytest.mark.parametrize("t", [None, 4.0])
def test_gradient_of_predictions_with_float64_off(t):
    def f(parameters):
        model, x, y, x_test = problem()
        scale, noise, rate, shift = parameters

        def kernel_fn(x1, x2, get):
            return model.kernel_fn(x1, x2, get, scale=scale)

        ensemble = InfiniteEnsemble(kernel_fn, x, y, noise=noise, learning_rate=rate)
        ensemble = ensemble if t is None else ensemble.at(t)
        inputs = x_test + shift
        spread = ensemble.std(inputs).sum() + ensemble.loss(inputs, 0.5 * y[:4]).std
        return (ensemble.mean(inputs) ** 2).sum() + spread

    point = np.array([1.3, 0.2, 0.8, 0.1])
    with jax.enable_x64(True):
        expected = [
            linear_model.finite_difference(jax.jit(f), jnp.asarray(point), direction)
            for direction in np.eye(4)
        ]
    assert_close(jax.jit(jax.grad(f))(jnp.asarray(point, jnp.float32)), expected, rtol=1e-3)


def test_gradient_of_samples():
    def f(noise):
        model, x, y, x_test = problem()
        ensemble = InfiniteEnsemble(model.kernel_fn, x, y, noise=noise)
        # The last inputs are the same: their covariance is singular.
        inputs = np.vstack([x_test, x_test[:1]]).astype(jnp.result_type(float))
        return (ensemble.sample(jax.random.key(1), inputs, 3) ** 2).sum()

    assert np.isfinite(jax.jit(jax.grad(f))(0.3))
    with jax.enable_x64(True):
        expected = linear_model.finite_difference(jax.jit(f), 0.3, 1.0)
        assert_close(jax.jit(jax.grad(f))(0.3), expected, rtol=1e-6)


def test_accepts_a_network():
    model, x, y, x_test = problem()

    class Network:
        kernel_fn = staticmethod(model.kernel_fn)

    expected = InfiniteEnsemble(model.kernel_fn, x, y).mean(x_test)
    np.testing.assert_array_equal(InfiniteEnsemble(Network(), x, y).mean(x_test), expected)


def test_errors():
    model, x, y, x_test = problem()

    def make(x=x, y=y, **kwargs):
        return InfiniteEnsemble(model.kernel_fn, x, y, **kwargs)

    with pytest.raises(TypeError, match=r"expected a network with a kernel_fn.*got tuple"):
        InfiniteEnsemble((1, 2), x, y)
    with pytest.raises(ValueError, match="expected inference 'gradient_descent' or 'bayes', got"):
        make(inference="Bayes")
    with pytest.raises(ValueError, match=r"expected inference .*\.\.\.$") as caught:
        make(inference="bayes" * 100)
    assert len(str(caught.value)) < 150
    with pytest.raises(ValueError, match="expected x to be finite, got 1 of 18"):
        make(x=np.where(x == x[1, 1], np.nan, x))
    with pytest.raises(ValueError, match="expected y to be finite, got 1 of 12"):
        make(y=np.where(y == y[1, 1], np.inf, y))
    with pytest.raises(ValueError, match=r"expected y of shape \[n, outputs\], got \(6,\).*None"):
        make(y=y[:, 0])
    with pytest.raises(ValueError, match="as many samples in x as in y, got 6 in x, 5 in y"):
        make(y=y[:5])
    with pytest.raises(ValueError, match="expected one number for noise, got an array"):
        make(noise=np.ones(6))
    with pytest.raises(TypeError, match="expected numbers in y"):
        make(y=[["a", "b"]] * 6)
    with pytest.raises(ValueError, match="at least one training target"):
        make(y=y[:0])
    for name in ["noise", "jitter", "learning_rate"]:
        with pytest.raises(ValueError, match=f"expected {name} of at least 0, got -0.1"):
            make(**{name: -0.1})
    with pytest.warns(RuntimeWarning, match=r"kernel of x, .*singular.*noise=.*jitter=.* 3 of 6"):
        singular = make(x=np.tile(x[:3], (2, 1)), inference="bayes", jitter=0.0)
    with pytest.raises(ValueError, match=r"is singular or indefinite.*noise=.*jitter="):
        singular.log_marginal_likelihood()
    with pytest.raises(
        ValueError, match=r"for y of shape \(6, 2, 1\) and independent outputs, got"
    ):
        make(y=y[:, :, None])
    with pytest.raises(ValueError, match="has no time"):
        make(inference="bayes").at(1.0)
    with pytest.raises(ValueError, match="expected inference='bayes' for a marginal likelihood"):
        make().log_marginal_likelihood()
    with pytest.raises(ValueError, match="expected t of at least 0"):
        make().at(-1)
    with pytest.raises(ValueError, match=r"expected y of shape \(4, 2\) for these inputs"):
        make().loss(x_test, y)
    with pytest.raises(ValueError, match="expected y to be finite"):
        make().loss(x, y * np.nan)
    with pytest.raises(ValueError, match="expected x to be finite"):
        make().mean(x_test * np.nan)


def test_a_triple_and_lists_are_accepted():
    model, x, y, x_test = problem()
    triple = InfiniteEnsemble((None, None, model.kernel_fn), x, y.tolist())
    assert_close(triple.mean(x_test), InfiniteEnsemble(model.kernel_fn, x, y).mean(x_test))


def test_arrays_written_to_later_change_nothing():
    model, x, y, x_test = problem()
    ensemble = InfiniteEnsemble(model.kernel_fn, x, y)
    flow = gradient_descent_mse_ensemble(model.kernel_fn, x, y, diag_reg=1e-3)
    before = ensemble.at(5.0).mean(x_test), flow(5.0, x_test, "ntk")
    ensemble = InfiniteEnsemble(model.kernel_fn, x, y)
    flow = gradient_descent_mse_ensemble(model.kernel_fn, x, y, diag_reg=1e-3)
    x += 1
    y *= 2
    assert_close(ensemble.at(5.0).mean(x_test), before[0])
    assert_close(flow(5.0, x_test, "ntk"), before[1])


def test_covariances_have_no_negative_diagonal():
    net = stax.serial(stax.Dense(8, 1.5, 0.05), stax.Erf(), stax.Dense(1))
    x = np.linspace(-2, 2, 30)[:, None]
    ensemble = InfiniteEnsemble(net, x, np.sin(x))
    assert np.diag(ensemble.cov(x + 0.01)).min() >= 0


def test_kernels_that_do_not_belong_together():
    model, x, y, _ = problem()

    def kernel_fn(x1, x2, get):
        factor = 1.0 if x2 is None else 2.0
        return jax.tree.map(lambda k: factor * k, model.kernel_fn(x1, x2, get))

    with pytest.raises(ValueError, match="from the same function"):
        InfiniteEnsemble(kernel_fn, x, y, inference="bayes").std(x)
