"""The Hermite series against quadrature in two dimensions and against closed forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from tests.tolerance import assert_close
from widelimit import activations
from widelimit.activations.series import ORDER, Features, features, series, variance


def mish(x):
    return x * jnp.tanh(jax.nn.softplus(x))


def step(x):
    return jnp.where(x >= 0, 1.0, 0.0)


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


Q1, Q2, RHO = (
    a.ravel()
    for a in np.meshgrid([1e-4, 0.3, 1.0, 4.0], [0.1, 4.0], [-0.99, -0.6, 0.2, 0.8, 0.95, 0.99])
)
C = RHO * np.sqrt(Q1 * Q2)


@functools.partial(jax.jit, static_argnums=0, static_argnames="df")
def dual(fn, c, q1, q2, df=None):
    """The dual by series and the two variances, from plain arrays."""
    f1, f2 = features(fn, q1, df=df), features(fn, q2, df=df)
    return series(c, f1, f2), variance(f1), variance(f2)


def trapezoid(fn, c, q1, q2):
    """E[f(u) f(v)] for analytic f: the trapezoidal rule converges exponentially."""
    z = np.arange(-90, 91) * 0.1
    density = 0.1 * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    rho = c / math.sqrt(q1 * q2)
    u = math.sqrt(q1) * z[:, None]
    v = math.sqrt(q2) * (rho * z[:, None] + math.sqrt(1 - rho * rho) * z)
    return density @ (fn(u) * fn(v)) @ density


def mish_numpy(x):
    return x * np.tanh(np.logaddexp(x, 0))


def mish_slope(x):
    t = np.tanh(np.logaddexp(x, 0))
    return t + x * expit(x) * (1 - t * t)


SMOOTH = {
    "tanh": (jnp.tanh, np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    "sigmoid": (jax.nn.sigmoid, expit, lambda x: expit(x) * expit(-x)),
    "softplus": (jax.nn.softplus, lambda x: np.logaddexp(x, 0), expit),
    "silu": (
        jax.nn.silu,
        lambda x: x * expit(x),
        lambda x: expit(x) * (1 + x * expit(-x)),
    ),
    "mish": (mish, mish_numpy, mish_slope),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("fn", "f", "df"), SMOOTH.values(), ids=SMOOTH)
def test_smooth_functions_reach_1e_8(fn, f, df):
    actual, _, _ = dual(fn, jnp.array(C), jnp.array(Q1), jnp.array(Q2))
    points = list(zip(C, Q1, Q2, strict=True))
    k, kdot = ([trapezoid(g, *point) for point in points] for g in (f, df))
    np.testing.assert_allclose(actual.k, k, rtol=1e-8)
    np.testing.assert_allclose(actual.kdot, kdot, rtol=1e-8)


CLOSED = {
    "erf": (jax.scipy.special.erf, activations.erf, 1e-11, 1e-11),
    "sin": (jnp.sin, activations.sin, 1e-11, 1e-11),
    "gelu": (gelu, activations.gelu, 1e-11, 1e-11),
    # a kink at zero: what the docstring says, relative to rho = 1
    "relu": (jax.nn.relu, lambda *cov: activations.abrelu(*cov, 0.0, 1.0), 2e-6, 9e-4),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("fn", "closed", "rtol", "slope_rtol"), CLOSED.values(), ids=CLOSED)
def test_closed_forms(fn, closed, rtol, slope_rtol):
    c, q1, q2 = jnp.array(C), jnp.array(Q1), jnp.array(Q2)
    actual, var1, var2 = dual(fn, c, q1, q2)
    expected = closed(c, q1, q2, None)
    top = closed(jnp.sqrt(q1 * q2), q1, q2, None).kdot
    assert_close(var1, closed(q1, q1, q1, None).k, rtol=1e-12)
    assert abs((actual.k - expected.k) / jnp.sqrt(var1 * var2)).max() < rtol
    assert abs((actual.kdot - expected.kdot) / top).max() < slope_rtol


@pytest.mark.optimised
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("fn", [jax.nn.leaky_relu, jax.nn.selu, jnp.tanh, mish])
def test_exact_at_full_correlation(fn):
    q = jnp.array([1e-3, 0.7, 4.0, 50.0])
    z, w = np.polynomial.legendre.leggauss(2000)
    z, w = 6.5 * (z + 1), 13 * w * np.exp(-((6.5 * (z + 1)) ** 2) / 2) / math.sqrt(8 * math.pi)
    x = jnp.sqrt(q)[:, None] * z[None]

    def slope(x):
        return jax.jvp(fn, (x,), (jnp.ones_like(x),))[1]

    same, var, _ = dual(fn, q, q, q)
    opposite, _, _ = dual(fn, -q, q, q)
    assert_close(same.k, var, rtol=1e-13)
    assert_close(var, (fn(x) ** 2 + fn(-x) ** 2) @ w, rtol=1e-12)
    assert_close(opposite.k, 2 * (fn(x) * fn(-x)) @ w, rtol=1e-12)
    assert_close(same.kdot, (slope(x) ** 2 + slope(-x) ** 2) @ w, rtol=1e-11)
    assert_close(opposite.kdot, 2 * (slope(x) * slope(-x)) @ w, rtol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("fn", [jnp.tanh, jax.nn.silu])
def test_kdot_is_the_derivative_of_k(fn):
    f1, f2 = features(fn, jnp.array(Q1)), features(fn, jnp.array(Q2))
    (_, kdot), (derivative, _) = jax.jvp(
        lambda c: series(c, f1, f2)[:2], (jnp.array(C),), (jnp.ones(C.shape),)
    )
    assert_close(derivative, kdot, rtol=1e-8)


@pytest.mark.usefixtures("x64")
def test_a_step_has_no_slope():
    c, q1, q2 = jnp.array(C), jnp.array(Q1), jnp.array(Q2)
    for df in (None, jnp.zeros_like):
        actual, var, _ = dual(step, c, q1, q2, df=df)
        assert_close(var, jnp.full(c.shape, 0.5), rtol=1e-12)
        assert abs(actual.k - (math.pi - np.arccos(RHO)) / (2 * math.pi)).max() < 5e-3
        assert (actual.kdot == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("fn", [jax.nn.selu, jnp.tanh])
def test_finite_derivatives_at_identical_and_zero_inputs(fn):
    """With float64 off, where the transposed integrals run."""

    def both(x, y):
        f1, f2 = features(fn, x @ x), features(fn, y @ y)
        k, kdot, _ = series(x @ y, f1, f2)
        return k + kdot

    @jax.jit
    def k(x, y):
        return series(x @ y, features(fn, x @ x), features(fn, y @ y)).k

    @jax.jit
    @jax.vmap
    def derivatives(x, y):
        return both(x, y), jax.grad(k, (0, 1))(x, y), jax.hessian(both)(x, y)

    a, b = jnp.array([0.3, -0.6]), jnp.array([0.5, 0.2])
    value, gradient, hessian = derivatives(
        jnp.stack([a, a, 0 * a, 0 * a, a]), jnp.stack([a, -a, 0 * a, b, b])
    )
    for leaf in jax.tree.leaves((value, gradient, hessian)):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
    step = 1e-2
    difference = [(k(a + h, b) - k(a - h, b)) / (2 * step) for h in step * jnp.eye(2)]
    np.testing.assert_allclose(gradient[0][4], difference, rtol=2e-3)
    assert (gradient[0][2] == 0).all()


@pytest.mark.usefixtures("x64")
def test_softplus_at_zero_variance():
    """First derivatives in the variance are E[f''] / 2 and E[f f'' + f'^2]."""

    def moments(q):
        f = features(jax.nn.softplus, q)
        dual = series(0 * q, f, f)
        return f.mean, f.variance, dual.k, dual.kdot

    value, slope = jax.jit(lambda q: jax.jvp(moments, (q,), (jnp.ones_like(q),)))(jnp.zeros(()))
    log2 = math.log(2)
    np.testing.assert_allclose(value, [log2, log2**2, log2**2, 0.25], rtol=1e-9)
    np.testing.assert_allclose(slope[:2], [1 / 8, log2 / 4 + 1 / 4], rtol=1e-8)
    np.testing.assert_allclose(slope[2], log2 / 4, rtol=1e-8)


@pytest.mark.optimised
@pytest.mark.parametrize("fn", [jax.nn.selu, jnp.tanh, jax.nn.sigmoid])
def test_symmetric_positive_semidefinite_float32(fn):
    x = jax.random.normal(jax.random.PRNGKey(1), (12, 5))
    x = x.at[3].set(x[2]).at[4].set(0).at[5].set(-x[2])
    c = x @ x.T

    @jax.jit
    def gram(c):
        f = features(fn, jnp.diag(c))
        assert all(leaf.dtype == jnp.float32 for leaf in f)
        left = jax.tree.map(lambda leaf: leaf[..., :, None], f)
        right = jax.tree.map(lambda leaf: leaf[..., None, :], f)
        return series(c, left, right)

    for matrix in gram(c)[:2]:
        assert matrix.dtype == jnp.float32
        np.testing.assert_array_equal(matrix, matrix.T)
        eigenvalues = np.linalg.eigvalsh(np.asarray(matrix, np.float64))
        assert eigenvalues[0] >= -2e-6 * eigenvalues[-1]


def test_many_variances_equal_few():
    """More variances than are integrated at once, and a shape."""
    q = jnp.linspace(0, 3, 2060).reshape(2, 5, 206)
    many = jax.jit(lambda q: features(jnp.tanh, q))(q)
    few = jax.jit(lambda q: features(jnp.tanh, q))(q[:, :, -2:])
    for a, b, leading in zip(
        many, few, Features(*[()] * 4, *[(ORDER,)] * 2, *[(4,)] * 2), strict=True
    ):
        assert a.shape == (*leading, *q.shape)
        np.testing.assert_allclose(a[..., -2:], b, rtol=1e-6, atol=1e-7)


def test_order_is_a_lower_bound():
    q = jnp.ones(1)
    for order, terms in [(5, ORDER), (ORDER, ORDER), (ORDER + 1, ORDER + 16)]:
        shapes = jax.eval_shape(lambda q, order=order: features(jnp.tanh, q, order), q)
        assert shapes.values.shape == (terms, 1)


def test_closed_over_parameters_are_differentiable():
    def second_moment(slope):
        return features(lambda x: jnp.sin(slope * x), jnp.full(1, 0.8)).variance.sum()

    slope = 1.3
    expected = 2 * slope * 0.8 * math.exp(-2 * slope**2 * 0.8)
    np.testing.assert_allclose(jax.jit(jax.grad(second_moment))(slope), expected, rtol=1e-5)
