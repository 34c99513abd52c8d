import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit.predict.stepping import LEFT, STEPPED_RESPONSE, Descent, Progress

# Below, at and beyond critical damping; frozen, repeated and near ones; unstable ones.
L = np.array([0.0, 1e-9, 1e-4, 1e-4, 0.01, 0.0527864, 0.3, 0.3000003, 1.0, 1.9, 2.05, 3.5])
COUNTS = [0, 1, 2, 3, 10, 37]
OPTIMISERS = [(0.0, 0.0), (0.9, 0.0), (0.6, 0.0), (0.9, 1.0), (0.6, 1.0)]
SIZE = 0.8

pytestmark = pytest.mark.usefixtures("x64")


def progress(counts, momentum, nesterov, size=SIZE):
    counts, size, momentum, nesterov = (
        jnp.asarray(v, jnp.float64) for v in (counts, size, momentum, nesterov)
    )
    return Progress(counts, size, Descent(momentum, nesterov))


@functools.partial(jax.jit, static_argnums=0)
def slope_in_l(function, l, p):
    return jax.jvp(lambda l: function.value(l, p), (l,), (jnp.ones_like(l),))[1]


def run(l, counts, momentum, nesterov):
    """p_n and (1 - p_n) / l by the steps themselves, in extended precision."""
    l = l.astype(np.longdouble)
    momentum, size = np.longdouble(momentum), np.longdouble(SIZE)
    away, velocity, speed, learnt, left = np.ones_like(l), 0 * l, 0 * l, 0 * l, {}
    for n in range(max(counts) + 1):
        left[n] = away, learnt
        gradient = l * away
        velocity = momentum * velocity + gradient
        step = gradient + momentum * velocity if nesterov else velocity
        away = away - size * step
        # The same step of (1 - p) / l, which needs no division.
        speed = momentum * speed + (1 - l * learnt)
        learnt = learnt + size * ((1 - l * learnt) + momentum * speed if nesterov else speed)
    return [np.stack([left[n][i] for n in counts]) for i in (0, 1)]


@pytest.mark.parametrize(("momentum", "nesterov"), OPTIMISERS)
def test_values_are_those_of_a_run(momentum, nesterov):
    p = progress(COUNTS, momentum, nesterov)
    left, learnt = run(L, COUNTS, momentum, nesterov)
    learnt[:, 0] = 0.0  # frozen
    np.testing.assert_allclose(LEFT.value(jnp.asarray(L), p), left, rtol=1e-12, atol=1e-13)
    # Small eigenvalues keep all digits.
    response = np.asarray(STEPPED_RESPONSE.value(jnp.asarray(L), p))
    np.testing.assert_allclose(response, learnt, rtol=1e-12)


@pytest.mark.parametrize(("momentum", "nesterov"), OPTIMISERS)
def test_divided_differences_do_not_cancel(momentum, nesterov):
    p = progress(COUNTS, momentum, nesterov)
    x = L.astype(np.longdouble)
    gap = x[:, None] - x[None, :]
    near = np.abs(gap) <= 1e-5 * (x[:, None] + x[None, :])
    values = run(L, COUNTS, momentum, nesterov)
    values[1][:, 0] = 0.0  # frozen
    for function, value in zip((LEFT, STEPPED_RESPONSE), values, strict=True):
        got = np.asarray(function.divided(jnp.asarray(L), p))
        quotient = (value[:, :, None] - value[:, None, :]) / np.where(near, 1, gap)
        # The quotient itself loses digits to the extended precision of its values.
        noise = 1e-17 * np.abs(value).max(initial=1.0) / np.where(near, 1, np.abs(gap))
        # Where values oscillate there are small differences of large ones.
        noise = noise[None] + 1e-12 * np.square(COUNTS)[:, None, None]
        assert np.all((np.abs(got - quotient) <= 1e-9 * np.abs(quotient) + noise) | near)
        # Where two eigenvalues meet it is the derivative.
        l = jnp.asarray(L[1:])
        slope = slope_in_l(function, l, p)
        met = np.diagonal(got[:, 1:, 1:], axis1=1, axis2=2)
        np.testing.assert_allclose(met, slope, rtol=1e-8, atol=1e-12)


def test_many_steps_and_infinitely_many():
    l = jnp.array([0.0, 1e-12, 0.5, 2.0])
    counts = [10**6, 2**52 + 1, np.inf]
    left = np.asarray(LEFT.value(l, progress(counts, 0.0, 0.0)))
    np.testing.assert_allclose(left[0, 1], np.exp(1e6 * np.log1p(-SIZE * 1e-12)), rtol=1e-12)
    np.testing.assert_allclose(
        left[1, 1], np.exp((2**52 + 1) * np.log1p(-SIZE * 1e-12)), atol=1e-15
    )
    np.testing.assert_array_equal(left[:, 0], 1.0)
    np.testing.assert_allclose(left[:, 2:], 0.0, atol=1e-15)
    np.testing.assert_array_equal(left[2, 1:], 0.0)
    response = np.asarray(STEPPED_RESPONSE.value(l, progress(counts, 0.9, 1.0)))
    np.testing.assert_array_equal(response[:, 0], 0.0)
    np.testing.assert_allclose(response[2], [0, 1e12, 2.0, np.nan])  # 0.8 * 2 > 3.8 / 2.8
    np.testing.assert_allclose(response[0, 2], 2.0)
    early = STEPPED_RESPONSE.divided(l, progress([np.inf], 0.0, 0.0))[0]
    np.testing.assert_allclose(early[2, 3], -1.0)
    np.testing.assert_allclose(early[0, 3], 0.25)
    # What is no number of steps is no number.
    wrong = progress([2.0**54, 1.5, -1.0], 0.9, 0.0)
    assert np.isnan(LEFT.value(l, wrong)[:, 1:]).all()
    assert np.isnan(STEPPED_RESPONSE.value(l, wrong)[:, 1:]).all()


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_divided_differences_after_many_steps(momentum):
    # All is learnt, p = 0 and the response is 1 / l, across eigenvalues of very different size.
    l = np.array([0.995 * Descent(momentum, 0.0).stable_below() / SIZE, 1e-4, 1e-3, 0.1])
    p = progress([10**6, 2**50], momentum, 0.0)
    left, response = (np.asarray(f.divided(jnp.asarray(l), p)) for f in (LEFT, STEPPED_RESPONSE))
    inverse = -1 / np.outer(l, l)
    np.testing.assert_allclose(response, np.stack([inverse, inverse]), rtol=1e-10)
    np.testing.assert_allclose(left * np.maximum(*np.ix_(l, l)), 0.0, atol=1e-13)


def test_stability_is_that_of_a_run():
    for momentum, nesterov in OPTIMISERS:
        below = Descent(momentum, nesterov).stable_below() / SIZE
        left, _ = run(np.array([0.999, 1.001]) * below, [20000], momentum, nesterov)
        assert abs(left[0, 0]) < 1 < abs(left[0, 1])


def test_slopes_in_rate_and_momentum():
    l = jnp.asarray(L[1:-2])

    def f(size, momentum, function):
        return function.value(l, progress([1, 7, np.inf], momentum, 1.0, size))

    for function in (LEFT, STEPPED_RESPONSE):
        p = progress([1, 7, np.inf], 0.3, 1.0, 0.4)
        change = Progress(jnp.zeros(3), jnp.asarray(0.7), Descent(jnp.asarray(-0.4), 0.0 * p.size))
        got = function.slope(l, p, change)
        high, low = (f(0.4 + s * 0.7, 0.3 - s * 0.4, function) for s in (1e-6, -1e-6))
        np.testing.assert_allclose(got, (high - low) / 2e-6, rtol=1e-6, atol=1e-7)
