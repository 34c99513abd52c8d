"""Scripts as users of neural-tangents wrote them, after one changed import."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as nt
from tests.tolerance import assert_close
from widelimit import stax


def test_infinite_ensemble_in_five_lines() -> None:
    x_train = np.linspace(-2, 2, 8)[:, None]
    y_train = np.sin(x_train)
    x_test = np.linspace(-3, 3, 5)[:, None]

    init_fn, apply_fn, kernel_fn = stax.serial(
        stax.Dense(512, W_std=1.5, b_std=0.05), stax.Erf(), stax.Dense(1, W_std=1.5, b_std=0.05)
    )
    kernel_fn = jax.jit(kernel_fn, static_argnames="get")
    predict_fn = nt.predict.gradient_descent_mse_ensemble(
        kernel_fn, x_train, y_train, diag_reg=1e-4
    )
    mean, covariance = predict_fn(x_test=x_test, get="ntk", compute_cov=True)

    assert mean.shape == (5, 1)
    assert covariance.shape == (5, 5)
    both = predict_fn(t=1e3, x_test=x_test, compute_cov=True)
    assert both.ntk.mean.shape == both.nngp.mean.shape == (5, 1)
    out_shape, params = init_fn(jax.random.PRNGKey(0), x_train.shape)
    assert apply_fn(params, x_train).shape == out_shape == (8, 1)


def test_posterior_from_a_kernel() -> None:
    x = np.random.default_rng(0).standard_normal((6, 3))
    y = x[:, :1]
    kernel_fn = stax.serial(stax.Dense(64), stax.Relu(), stax.Dense(1))[2]
    predict_fn = nt.predict.gp_inference(kernel_fn(x, x, ("nngp", "ntk")), y, diag_reg=1e-3)
    k_test_train = kernel_fn(x[:2] + 0.1, x, ("nngp", "ntk"))
    k_test_test = kernel_fn(x[:2] + 0.1, None, ("nngp", "ntk"))
    posterior = predict_fn("ntk", k_test_train, k_test_test)
    assert posterior.mean.shape == (2, 1)
    assert posterior.covariance.shape == (2, 2)


def test_experimental_is_gone_and_says_why() -> None:
    with pytest.raises(ImportError, match="TensorFlow"):
        from widelimit import experimental  # noqa: F401


def test_infinite_fcn() -> None:
    # The example of neural-tangents: exact inference with a batched kernel function, on fewer
    # samples of synthetic classes.
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    images = rng.standard_normal((3, 20))[labels] + 0.5 * rng.standard_normal((60, 20))
    targets = np.eye(3)[labels] - 1 / 3
    x_train, y_train, x_test, y_test = images[:41], targets[:41], images[41:], targets[41:]

    _, _, kernel_fn = stax.serial(stax.Dense(1, 2.0, 0.05), stax.Relu(), stax.Dense(1, 2.0, 0.05))
    kernel_fn = nt.batch(kernel_fn, device_count=0, batch_size=8)
    predict_fn = nt.predict.gradient_descent_mse_ensemble(
        kernel_fn, x_train, y_train, diag_reg=1e-3
    )
    fx_test_nngp, fx_test_ntk = predict_fn(x_test=x_test)
    fx_test_nngp.block_until_ready()
    fx_test_ntk.block_until_ready()
    for outputs in (fx_test_nngp, fx_test_ntk):
        accuracy = np.mean(np.argmax(outputs, axis=1) == np.argmax(y_test, axis=1))
        assert outputs.shape == y_test.shape
        assert accuracy > 0.9


@pytest.mark.usefixtures("x64")
def test_finite_network_by_its_empirical_kernel() -> None:
    # From the outputs of the network itself, with a kernel between all of them: exactly the
    # linearised network, trained.
    rng = np.random.default_rng(0)
    x_train, x_test, y_train = (rng.standard_normal(s) for s in ((5, 3), (2, 3), (5, 2)))
    init_fn, f, _ = stax.serial(stax.Dense(16), stax.Erf(), stax.Dense(2))
    _, params = init_fn(jax.random.PRNGKey(0), x_train.shape)
    f_lin = nt.linearize(f, params)

    def loss(p):
        return 0.5 * jnp.mean((f_lin(p, x_train) - y_train) ** 2)

    def step(_, p):
        return jax.tree.map(lambda leaf, g: leaf - 0.5 * g, p, jax.grad(loss)(p))

    trained = jax.jit(lambda p: jax.lax.fori_loop(0, 30, step, p))(params)
    ntk_fn = nt.empirical_ntk_fn(f, trace_axes=(), vmap_axes=0)
    k_train_train, k_test_train = ntk_fn(x_train, None, params), ntk_fn(x_test, x_train, params)
    start = f(params, x_train), f(params, x_test)
    predict = nt.predict
    predict_fn = predict.discrete_gradient_descent_mse(k_train_train, y_train, 0.5, trace_axes=())
    fx_train, fx_test = predict_fn(30, *start, k_test_train)
    assert_close(fx_train, f_lin(trained, x_train), rtol=1e-11)
    assert_close(fx_test, f_lin(trained, x_test), rtol=1e-11)
    # The flow passes nearby, in closed form and by the solver.
    flow = predict.gradient_descent_mse(k_train_train, y_train, 0.5, trace_axes=())
    ode = predict.gradient_descent(
        lambda fx, y: 0.5 * jnp.mean((fx - y) ** 2), k_train_train, y_train, 0.5, trace_axes=()
    )
    exact = flow(30.0, *start, k_test_train)
    for got, want in zip(ode(30.0, *start, k_test_train), exact, strict=True):
        assert_close(got, want, rtol=1e-7)
    assert_close(exact[1], fx_test, rtol=0.1)
    # The same from a kernel function, which gives the initial parameters.
    kernel_fn = nt.empirical_kernel_fn(f, vmap_axes=0)
    ensemble = predict.gradient_descent_mse_ensemble(
        lambda x1, x2, get: kernel_fn(x1, x2, get, params), x_train, y_train, diag_reg=1e-6
    )
    assert ensemble(x_test=x_test, get="ntk").shape == (2, 2)
