import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tests.tolerance import assert_close
from widelimit.predict.factor import Ridge, System
from widelimit.predict.precision import in_float64
from widelimit.predict.solvers.eigenbasis import Spectral
from widelimit.predict.spectral import DECAY, RESPONSE, ROOT

EIGENVALUES = {
    "distinct": [0.3, 0.7, 1.1, 2.5],
    "repeated": [0.5, 0.5, 0.5, 2.0],
    "all equal": [1.5, 1.5, 1.5, 1.5],
    "nearly equal": [0.5, 0.5 + 1e-9, 0.5 + 1e-6, 2.0],
}


def symmetric(evals, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(evals), len(evals))))[0]
    return (basis * np.asarray(evals)) @ basis.T


def spectral(matrix):
    basis = System(jnp.asarray(matrix), Ridge(), 2e-16).factorised(Spectral()).state
    return basis._replace(matrix=jnp.asarray(matrix)) if basis.matrix is None else basis


def random(shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.usefixtures("x64")
class TestFloat64:
    def test_values(self):
        matrix, b, tau = symmetric(EIGENVALUES["repeated"]), random((4, 2)), 0.8
        decay = scipy.linalg.expm(-tau * matrix)
        k = spectral(matrix)
        assert_close(k.decay(jnp.array([tau]), b[None])[0], decay @ b)
        response = np.linalg.solve(matrix, (np.eye(4) - decay) @ b)
        assert_close(k.response(jnp.array([tau]), b[None])[0], response)
        assert_close(k.root(jnp.asarray(b[None]))[0], scipy.linalg.sqrtm(matrix) @ b)

    @pytest.mark.parametrize("evals", EIGENVALUES.values(), ids=EIGENVALUES)
    @pytest.mark.parametrize("name", ["decay", "response"])
    @pytest.mark.parametrize("tau", [0.0, 1e-4, 0.9, 30.0, np.inf])
    def test_derivative_is_finite_and_right(self, name, tau, evals):
        matrix, b, d = symmetric(evals), random((1, 4, 2)), random((4, 4))

        def f(k):
            return getattr(spectral(k), name)(jnp.array([tau]), b)

        def reference(k):
            k = (k + k.T) / 2
            decay = scipy.linalg.expm(-tau * k) if tau < np.inf else np.zeros((4, 4))
            f = decay if name == "decay" else np.linalg.solve(k, np.eye(4) - decay)
            return f @ b[0]

        step = 1e-4
        expected = (
            8 * (reference(matrix + step * d) - reference(matrix - step * d))
            - (reference(matrix + 2 * step * d) - reference(matrix - 2 * step * d))
        ) / (12 * step)
        tangent = jax.jvp(f, (jnp.asarray(matrix),), (jnp.asarray(d),))[1][0]
        np.testing.assert_allclose(tangent, expected, rtol=1e-7, atol=1e-9 * (1 + min(tau, 1)))

    def test_root_derivative(self):
        matrix, b, d = symmetric(EIGENVALUES["repeated"]), random((1, 4, 2)), random((4, 4))
        d = d + d.T

        def f(k):
            return spectral(k).root(jnp.asarray(b))

        tangent = jax.jvp(f, (jnp.asarray(matrix),), (jnp.asarray(d),))[1][0]
        high, low = (scipy.linalg.sqrtm(matrix + s * 1e-5 * d) @ b[0] for s in (1, -1))
        assert_close(tangent, (high - low) / 2e-5, rtol=1e-8)

    @pytest.mark.parametrize("tau", [0.0, 1e-3, 1.0, np.inf])
    def test_derivative_in_time(self, tau):
        k, b = spectral(symmetric([0.3, 0.3, 2.0])), random((1, 3, 2))
        matrix = k.matrix
        for f, slope in [
            (k.decay, lambda e: -matrix @ e),
            (k.response, lambda e: e),
        ]:
            tangent = jax.jvp(lambda t, f=f: f(t[None], b), (tau,), (1.0,))[1][0]
            decay = scipy.linalg.expm(-tau * matrix) if tau < np.inf else np.zeros((3, 3))
            np.testing.assert_allclose(tangent, slope(decay) @ b[0], atol=1e-12)

    @pytest.mark.parametrize("function", [DECAY, RESPONSE], ids=["decay", "response"])
    def test_divided_differences_do_not_cancel(self, function):
        # Wide ranges of eigenvalues and times, against quotients in extended precision.
        l = np.concatenate(
            [[0.0], 10.0 ** np.arange(-9, 4, 0.7), 10.0 ** np.arange(-9, 4) * 1.0003]
        )
        tau = np.array([1e-3, 0.02, 1.0, 40.0, 1e5])
        got = np.asarray(function.divided(jnp.asarray(l), jnp.asarray(tau)))
        x, t = l.astype(np.longdouble), tau.astype(np.longdouble)[:, None, None]
        i, j = x[:, None], x[None, :]
        gap = np.where(i == j, 1, i - j)
        if function is DECAY:
            low = np.minimum(i, j)
            quotient = np.exp(-low * t) * np.expm1(-np.abs(gap) * t) / np.abs(gap)
        else:
            safe = np.where(x == 0, 1, x)
            value = np.where(x == 0, 0, -np.expm1(-t[:, 0] * x) / safe)
            quotient = (value[:, :, None] - value[:, None, :]) / gap
        wide = np.abs(i - j) > 1e-4 * (i + j)
        # The quotient itself loses digits where the response is nearly flat.
        flat = 1e-19 * np.maximum(t, 0) / np.where(wide, np.abs(i - j), 1)
        error = np.abs(got - quotient.astype(np.float64))
        bound = 1e-9 * np.abs(quotient) + (10 * flat if function is RESPONSE else 0)
        assert np.all((error <= bound) | ~wide)

    def test_zero_eigenvalues_are_frozen(self):
        matrix, b = symmetric([0.0, 0.0, 1.0, 2.0]), random((1, 4, 2))
        k = spectral(matrix)
        np.testing.assert_array_equal(k.evals[:2], 0.0)
        tau = jnp.array([0.7, np.inf])
        inverse = np.linalg.pinv(matrix, rcond=1e-10)
        decay = scipy.linalg.expm(-0.7 * matrix)
        assert_close(k.response(tau, b)[0], inverse @ (np.eye(4) - decay) @ b[0])
        assert_close(k.response(tau, b)[1], inverse @ b[0])
        assert_close(k.decay(tau, b)[1], b[0] - inverse @ matrix @ b[0])

    def test_derivative_of_the_pseudo_inverse(self):
        factor, d, b = random((4, 2)), random((4, 2), 3), random((1, 4, 1))

        def f(a):
            return spectral(a @ a.T).response(jnp.array([np.inf]), b)

        tangent = jax.jvp(f, (jnp.asarray(factor),), (jnp.asarray(d),))[1][0]
        high, low = (
            np.linalg.pinv((factor + s * d) @ (factor + s * d).T, rcond=1e-8) @ b[0]
            for s in (1e-6, -1e-6)
        )
        assert_close(tangent, (high - low) / 2e-6, rtol=1e-6)

    def test_second_derivatives_are_refused(self):
        matrix = jnp.asarray(symmetric([1.0, 2.0]))

        def f(k):
            return spectral(k).decay(jnp.array([1.0]), jnp.ones((1, 2, 1))).sum()

        with pytest.raises(NotImplementedError, match="second derivatives"):
            jax.jit(jax.hessian(f))(matrix)

    def test_second_derivative_in_time(self):
        k = spectral(symmetric([1.0, 2.0]))

        def f(t):
            return k.decay(t[None], jnp.ones((1, 2, 1))).sum()

        expected = np.ones(2) @ k.matrix @ k.matrix @ scipy.linalg.expm(-k.matrix) @ np.ones(2)
        assert_close(jax.jit(jax.grad(jax.grad(f)))(1.0), expected)


@pytest.mark.optimised
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradient_in_float32_with_x64_off(wrap):
    # Differentiating a jitted function runs the rule, and any transpose, outside the context.
    matrix = jnp.asarray(symmetric(EIGENVALUES["repeated"]), jnp.float32)

    @in_float64
    def f(k):
        b, tau = jnp.ones((1, 4, 1)), jnp.array([2.0])
        k = spectral(k)
        return ((k.response(tau, b) + k.decay(tau, b)) ** 2).sum().astype(jnp.float32)

    gradient = jax.grad(wrap(f))(matrix)
    assert gradient.dtype == jnp.float32
    with jax.enable_x64(True):
        assert_close(gradient, jax.grad(f)(matrix.astype(jnp.float64)), rtol=1e-6)


def test_root_has_finite_gradient_at_zero():
    assert np.isfinite(ROOT.divided(jnp.zeros(3), jnp.zeros(1))).all()
