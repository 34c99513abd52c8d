"""Closed-form duals against quadrature, autodiff, and their behaviour at the edges."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf as jax_erf
from scipy.special import erf, ndtr

from tests import quick
from tests.tolerance import assert_close
from widelimit import activations as duals
from widelimit.activations import Dual


class Case(NamedTuple):
    dual: Callable[..., Dual]
    fn: Callable[[np.ndarray], np.ndarray] | None
    homogeneous: int | None = None  # degree, of a function with a kink at 0
    convention: bool = False  # kdot is not dk/dc


def polynomial(coefficients):
    return lambda x: np.polynomial.polynomial.polyval(x, coefficients)


def hermite(degree):
    basis = np.eye(degree + 1)[degree]
    coefficients = np.polynomial.hermite_e.herme2poly(basis) / math.sqrt(math.factorial(degree))
    return polynomial(coefficients)


def bind(dual, *parameters):
    return lambda c, q1, q2, gap: dual(c, q1, q2, gap, *parameters)


COEFFICIENTS = (0.3, -0.2, 0.5, 0.1, -0.3)
SMOOTH = {
    "erf": Case(bind(duals.erf, 1.3, 0.7, 0.2), lambda x: 1.3 * erf(0.7 * x) + 0.2),
    "gelu": Case(duals.gelu, lambda x: x * ndtr(x)),
    "sin": Case(bind(duals.sin, 1.3, 0.7, 0.2), lambda x: 1.3 * np.sin(0.7 * x + 0.2)),
    "rbf": Case(
        bind(duals.rbf, 0.6),
        lambda x: math.sqrt(2) * np.sin(math.sqrt(1.2) * x + math.pi / 4),
    ),
    "gabor": Case(duals.gabor, lambda x: np.exp(-x * x) * np.sin(x)),
    "exp": Case(bind(duals.exp, 1.3, 0.7), lambda x: 1.3 * np.exp(0.7 * x)),
    "gaussian": Case(bind(duals.gaussian, 1.3, -0.7), lambda x: 1.3 * np.exp(-0.7 * x * x)),
    "gaussian_growing": Case(bind(duals.gaussian, 1.3, 0.04), lambda x: 1.3 * np.exp(0.04 * x * x)),
    "polynomial": Case(bind(duals.polynomial, COEFFICIENTS), polynomial(COEFFICIENTS)),
    "polynomial_empty": Case(bind(duals.polynomial, ()), np.zeros_like),
    **{
        f"monomial_{d}": Case(bind(duals.monomial, d), polynomial(np.eye(d + 1)[d]))
        for d in (0, 1, 2, 3, 5, 6)
    },
    **{f"hermite_{d}": Case(bind(duals.hermite, d), hermite(d)) for d in (0, 1, 2, 3, 6)},
}
KINKED = {
    "relu": Case(bind(duals.abrelu, 0.0, 1.0), lambda x: np.maximum(x, 0), 1),
    "abrelu": Case(
        bind(duals.abrelu, -0.3, 1.2),
        lambda x: -0.3 * np.minimum(x, 0) + 1.2 * np.maximum(x, 0),
        1,
    ),
    "abs": Case(bind(duals.abrelu, -1.0, 1.0), np.abs, 1),
    "sign": Case(duals.sign, np.sign, 0, convention=True),
    **{
        f"rectified_{d}": Case(
            bind(duals.rectified_monomial, d),
            lambda x, d=d: np.where(x >= 0, x, 0) ** d * (x >= 0),
            d,
            convention=d == 0,
        )
        for d in range(5)
    },
}
UNFOUNDED = {
    "exp_normalized": Case(bind(duals.exp_normalized, 1.3, -0.8), None),
    "exp_normalized_clipped": Case(bind(duals.exp_normalized, 1.3, -0.8, True), None),
}
ALL = {**SMOOTH, **KINKED, **UNFOUNDED}


def parametrize(cases):
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


Q1, Q2, RHO = (
    a.ravel() for a in np.meshgrid([0.3, 1.0, 2.5], [0.3, 1.2], [-1, -0.7, 0, 0.5, 0.95, 1])
)
C = RHO * np.sqrt(Q1 * Q2)


def gauss_quadrature(fn):
    """E[f f] at (Q1, Q2, RHO), by 150 nodes in each direction."""
    z, w = np.polynomial.hermite_e.hermegauss(150)
    w = w / w.sum()
    rho = RHO[:, None, None]
    u = np.sqrt(Q1)[:, None, None] * z[:, None]
    v = np.sqrt(Q2)[:, None, None] * (rho * z[:, None] + np.sqrt(1 - rho * rho) * z)
    return np.einsum("nij,i,j->n", fn(u) * fn(v), w, w)


def angular_quadrature(fn, degree):
    """E[f f] at (Q1, Q2, RHO) of a homogeneous function, between the angles of its kinks."""
    x, w = np.polynomial.legendre.leggauss(30)
    result = []
    for theta in np.arccos(RHO):
        kinks = [s * math.pi / 2 + t for s in (-1, 1, 3) for t in (0, theta)]
        edges = np.unique(np.clip([-math.pi / 2, 1.5 * math.pi, *kinks], -math.pi / 2, 4.8))
        half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
        phi = middle[:, None] + half[:, None] * x
        inside = phi < 1.5 * math.pi
        product = fn(np.cos(phi)) * fn(np.cos(phi - theta)) * inside
        result.append((half[:, None] * w * product).sum() / (2 * math.pi))
    return np.array(result) * (Q1 * Q2) ** (degree / 2) * 2**degree * math.factorial(degree)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("with_gap", [False, True])
@parametrize({**SMOOTH, **KINKED})
def test_k_is_the_expectation(case, with_gap):
    if case.homogeneous is None:
        expected, rtol = gauss_quadrature(case.fn), 1e-12
    else:
        expected, rtol = angular_quadrature(case.fn, case.homogeneous), 1e-12
        if case.homogeneous == 0:
            rtol = 1e-7  # a square root of rounding in the angle at rho = 1
    c, q1, q2 = jnp.array(C), jnp.array(Q1), jnp.array(Q2)
    actual = case.dual(c, q1, q2, (q1 + q2) / 2 - c if with_gap else None)
    assert_close(actual.k, expected, rtol=rtol)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("with_gap", [False, True])
@parametrize({name: case for name, case in ALL.items() if not case.convention})
def test_kdot_is_the_derivative_of_k(case, with_gap):
    q1, q2 = jnp.array(Q1), jnp.array(Q2)

    def k(c):
        return case.dual(c, q1, q2, (q1 + q2) / 2 - c if with_gap else None)[:2]

    (_, kdot), (derivative, _) = jax.jvp(k, (jnp.array(C),), (jnp.ones(C.shape),))
    assert_close(derivative, kdot, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@parametrize({**SMOOTH, **KINKED})
def test_variance_derivatives(case):
    """dk/dq1 against a central difference, away from the kink."""
    inside = np.abs(RHO) < 0.99
    c, q1, q2 = jnp.array(C[inside]), jnp.array(Q1[inside]), jnp.array(Q2[inside])

    def k(q1):
        return case.dual(c, q1, q2, None).k

    step = 1e-5
    expected = (k(q1 + step) - k(q1 - step)) / (2 * step)
    assert_close(jax.jvp(k, (q1,), (jnp.ones_like(q1),))[1], expected, rtol=1e-7)


@parametrize(ALL)
def test_finite_derivatives_at_identical_and_zero_inputs(case):
    def both(x, y):
        c, q1, q2 = x @ y / 3, x @ x / 3, y @ y / 3
        dual = case.dual(c, q1, q2, None)
        carried = case.dual(c, q1, q2, ((x - y) ** 2).sum() / 6)
        return dual.k + dual.kdot + carried.k + carried.kdot

    @quick.jit
    @jax.vmap
    def derivatives(x, y):
        first, second = jax.grad(both, (0, 1)), jax.hessian(both, (0, 1))
        return both(x, y), first(x, y), second(x, y)

    a, b = jnp.array([0.3, -1.1, 0.7]), jnp.array([0.5, 0.2, 0.9])
    x, y = jnp.stack([a, a, 0 * a, 0 * a, a]), jnp.stack([a, -a, 0 * a, b, b])
    leaves = jax.tree.leaves(derivatives(x, y))
    for leaf in leaves:
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()


@pytest.mark.optimised
@parametrize(ALL)
def test_symmetric_positive_semidefinite_and_float32(case):
    x = jax.random.normal(jax.random.PRNGKey(1), (12, 5))
    x = x.at[3].set(x[2]).at[4].set(0).at[5].set(-x[2])
    c = x @ x.T / 5
    q1, q2 = jnp.diag(c)[:, None], jnp.diag(c)[None, :]
    with jax.enable_x64(True):  # float32 stays float32 there too
        for gap in (None, (q1 + q2) / 2 - c):
            dual = case.dual(c, q1, q2, gap)
            for matrix in dual[:2]:
                assert matrix.dtype == jnp.float32
                assert matrix.shape == c.shape
                np.testing.assert_array_equal(matrix, matrix.T)
            for matrix in dual[:2]:
                eigenvalues = np.linalg.eigvalsh(np.asarray(matrix, np.float64))
                assert eigenvalues[0] >= -2e-6 * max(eigenvalues[-1], 1e-30)


def near_duplicates(distance):
    """c, q1, q2, gap in float64, rounded to float32 values that differ by about `distance`."""
    key1, key2 = jax.random.split(jax.random.PRNGKey(0))
    x = jax.random.normal(key1, (8, 50))
    y = x + distance * jax.random.normal(key2, (8, 50))
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return tuple(
        (a * b / n).mean(1) for a, b, n in [(x, y, 1), (x, x, 1), (y, y, 1), (x - y, x - y, 2)]
    )


@pytest.mark.optimised
@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-1.0, 1.0), (0.2, 1.0), (1.0, 1.0)])
def test_abrelu_with_gap_is_accurate_in_float32(distance, slopes):
    exact = near_duplicates(distance)
    with jax.enable_x64(True):
        expected = duals.abrelu(*map(jnp.asarray, exact), *slopes)
    actual = duals.abrelu(*(jnp.asarray(a, jnp.float32) for a in exact), *slopes)
    np.testing.assert_allclose(actual.k, expected.k, rtol=1e-6)
    np.testing.assert_allclose(actual.kdot, expected.kdot, rtol=1e-6)
    # the angle, about the distance, has an absolute error of one rounding
    gap_rtol = 1e-6 + (4e-7 / distance if distance else 0)
    np.testing.assert_allclose(actual.gap, expected.gap, rtol=gap_rtol)


@pytest.mark.usefixtures("x64")
def test_abrelu_gap_is_half_the_mean_squared_distance():
    c, q1, q2 = jnp.array(C), jnp.array(Q1), jnp.array(Q2)
    gap = (q1 + q2) / 2 - c
    dual = duals.abrelu(c, q1, q2, gap, 0.3, 1.2)
    variances = (0.3**2 + 1.2**2) / 2 * (q1 + q2) / 2
    assert dual.gap is not None
    assert_close(dual.gap, variances - dual.k, rtol=1e-14)
    assert duals.abrelu(c, q1, q2, None, 0.3, 1.2).gap is None


@pytest.mark.parametrize("scale", [1e-33, 1e30, 1e37])
@pytest.mark.parametrize("with_gap", [False, True])
@parametrize({name: case for name, case in KINKED.items() if case.homogeneous in (0, 1)})
def test_kinked_duals_of_any_size(case, with_gap, scale):
    inside = np.abs(RHO) < 1
    c, q1, q2 = (jnp.asarray(a[inside], jnp.float32) for a in (C, Q1, Q2))
    gap = (q1 + q2) / 2 - c if with_gap else None
    expected = case.dual(c, q1, q2, gap)
    actual = case.dual(*(None if a is None else a * scale for a in (c, q1, q2, gap)))
    assert_close(actual.k / scale**case.homogeneous, expected.k, rtol=1e-6)
    assert_close(actual.kdot, expected.kdot, rtol=1e-6)


@parametrize({name: KINKED[name] for name in ("relu", "sign", "rectified_1")})
@pytest.mark.parametrize("q", [1e-30, 1e-20, 1e20, 1e30])
def test_kinked_duals_of_one_small_or_large_variance(case, q):
    # XLA sees that all are one array, and that the gap is a constant.
    k, kdot, _ = jax.jit(lambda q: case.dual(q, q, q, jnp.zeros((1, 1))))(jnp.full((1, 1), q))
    assert_close(k / q**case.homogeneous, case.dual(*map(jnp.ones, ((1, 1),) * 3), None).k)
    assert_close(kdot, case.dual(*map(jnp.ones, ((1, 1),) * 3), None).kdot)


@parametrize({"relu": KINKED["relu"], "abrelu": KINKED["abrelu"], "abs": KINKED["abs"]})
def test_abrelu_derivatives_near_identical_inputs(case):
    """float32 derivatives are those of float64, at any distance."""

    def k(c, gap, q):
        return case.dual(c, q, q, gap).k

    q, gap = np.ones(5), np.array([0.0, 1e-12, 1e-8, 1e-4, 1e-2])
    gradients = jax.vmap(jax.grad(k, (0, 1, 2)))
    with jax.enable_x64(True):
        expected = gradients(*map(jnp.asarray, (1 - gap, gap, q)))
    actual = gradients(*(jnp.asarray(a, jnp.float32) for a in (1 - gap, gap, q)))
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, np.asarray(e), rtol=1e-6)


def scalars(*values):
    return [jnp.float32(v) for v in values]


def test_values_at_zero_variance():
    zero, one = scalars(0.0, 1.0)
    minus_zero = -zero
    for c in (zero, minus_zero):
        relu = duals.abrelu(c, zero, zero, None, 0.0, 1.0)
        assert (relu.k, relu.kdot) == (0.0, 0.5)
        assert duals.abrelu(c, zero, one, None, 0.0, 1.0).kdot == 0.25
        assert duals.rectified_monomial(c, zero, zero, None, 1).kdot == 0.5
        assert duals.sign(c, zero, one, None).k == 0
        assert duals.sign(c, zero, zero, zero).k == 0
        assert duals.rectified_monomial(c, zero, zero, None, 0).k == 1
        assert duals.rectified_monomial(c, zero, one, None, 0).k == 0.5
        assert duals.rectified_monomial(c, zero, zero, None, 2).k == 0
        assert duals.polynomial(c, zero, zero, None, COEFFICIENTS).k == pytest.approx(0.09)
        assert duals.polynomial(c, zero, zero, None, COEFFICIENTS).kdot == pytest.approx(0.04)
        normalized = duals.exp_normalized(c, zero, zero, None, 2.0, -1.0)
        assert (normalized.k, normalized.kdot) == (0, 2)
        mixed = duals.exp_normalized(c, zero, one, None, 2.0, 0.0)
        assert (mixed.k, mixed.kdot) == (0, 2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("degree", range(1, 9))
def test_rectified_monomial_at_identical_inputs(degree):
    q = jnp.array([0.5, 2.0])
    moment = math.prod(range(1, 2 * degree, 2)) / 2
    dual = duals.rectified_monomial(q, q, q, None, degree)
    assert_close(dual.k, moment * q**degree, rtol=1e-13)
    slope = degree**2 * moment / (2 * degree - 1) * q ** (degree - 1)
    assert_close(dual.kdot, slope, rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_hermite_at_unit_variance_is_a_power():
    c, one = jnp.array([-0.4, 0.0, 0.9, 1.0]), jnp.ones(4)
    for degree in (1, 4, 25):
        dual = duals.hermite(c, one, one, None, degree)
        assert_close(dual.k, c**degree, rtol=1e-14)
        assert_close(dual.kdot, degree * c ** (degree - 1), rtol=1e-14)


@pytest.mark.usefixtures("x64")
def test_high_degrees():
    c, one = jnp.array([0.3, 1.0]), jnp.ones(2)
    dual = duals.monomial(c, one, one, None, 25)
    assert_close(dual.k[1], math.prod(range(1, 50, 2)), rtol=1e-13)
    assert np.isfinite(duals.polynomial(c, one, one, None, [0.1] * 26).k).all()


def test_gaussian_is_nan_where_it_diverges():
    c, q1, q2 = (jnp.array(a) for a in ([0.0, 0.0, 2.0, 0.1], [0.6, 3.0, 2.0, 0.2], [0.1] * 4))
    dual = duals.gaussian(c, q1, q2.at[1].set(3.0).at[2].set(2.0), None, 1.0, 1.0)
    np.testing.assert_array_equal(np.isnan(dual.k), [True, True, True, False])
    np.testing.assert_array_equal(np.isnan(dual.kdot), [True, True, True, False])
    # 1 - 2 b q > 0 for both, but not the determinant
    c, q = scalars(0.45, 0.45)
    assert np.isfinite(duals.gaussian(0 * c, q, q, None, 1.0, 1.0).k)
    assert np.isnan(duals.gaussian(c, q, q, None, 1.0, 1.0).k)


def test_gabor_and_sin_neither_overflow_nor_cancel():
    c, q = scalars(-900.0, 1000.0)
    assert all(np.isfinite(duals.gabor(c, q, q, None)[:2]))
    assert all(np.isfinite(duals.sin(c, q, q, None)[:2]))
    c, q = scalars(1e-6, 1.0)
    np.testing.assert_allclose(duals.sin(c, q, q, None).k, math.exp(-1) * 1e-6, rtol=1e-6)
    np.testing.assert_allclose(
        duals.gabor(c, q, q, None).k, 1e-6 * math.exp(-1 / 3) / 27, rtol=1e-6
    )


@pytest.mark.optimised
def test_exp_normalized_clips_rounding_only():
    c, one = scalars(1.5, 1.0)
    assert duals.exp_normalized(c, one, one, None, 1.0, -1.0, True).k == 1
    assert duals.exp_normalized(-c, one, one, None, 1.0, 1.0, True).k == 1
    assert duals.exp_normalized(c, one, one, None, 1.0, -1.0).k > 1


def test_parameters_are_differentiable():
    c, q1, q2 = scalars(0.4, 1.1, 0.8)

    def total(p):
        found = [
            duals.abrelu(c, q1, q2, None, p, 1.0),
            duals.erf(c, q1, q2, None, p, p, p),
            duals.sin(c, q1, q2, None, p, p, p),
            duals.rbf(c, q1, q2, None, p),
            duals.exp(c, q1, q2, None, p, p),
            duals.gaussian(c, q1, q2, None, p, -p),
            duals.exp_normalized(c, q1, q2, None, p, p),
            duals.polynomial(c, q1, q2, None, (p, 1.0, p)),
        ]
        return jnp.stack([d.k + d.kdot for d in found])

    p, step = jnp.float32(0.7), 1e-2
    expected = (total(p + step) - total(p - step)) / (2 * step)
    np.testing.assert_allclose(jax.jacfwd(total)(p), expected, rtol=2e-3)


def test_erf_matches_a_finite_network():
    """Guards the quadrature above: a Monte-Carlo estimate shares none of its code."""
    u, v = jax.random.multivariate_normal(
        jax.random.PRNGKey(0), jnp.zeros(2), jnp.array([[1.5, 0.6], [0.6, 0.8]]), (200_000,)
    ).T
    products = jax_erf(u) * jax_erf(v)
    k = duals.erf(*scalars(0.6, 1.5, 0.8), None).k
    assert abs(products.mean() - k) < 5 * products.std() / math.sqrt(products.size)
