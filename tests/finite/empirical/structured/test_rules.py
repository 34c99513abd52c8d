"""Rules of primitives, where one meets another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.tolerance import assert_close
from widelimit.finite.empirical.jacobian import jacobian_contraction
from widelimit.finite.empirical.kernel_axes import KernelAxes
from widelimit.finite.empirical.structured import explain, structured

pytestmark = pytest.mark.usefixtures("x64")

QUICK = {"xla_backend_optimization_level": "0", "xla_llvm_disable_expensive_passes": True}
AXES = KernelAxes((1,))


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


def assert_agrees(f, params, *, without=()):
    """Both ways give the same; parameters at these places alone have no structure."""
    ways = structured, jacobian_contraction
    compute = jax.jit(lambda p: [way(f, None, p, AXES) for way in ways], compiler_options=QUICK)
    found, expected = compute(params)
    assert_close(found, expected, rtol=1e-10)
    reports = explain(lambda way, p: way(f, None, p, AXES), params)
    assert [i for i, report in enumerate(reports) if report.reason] == list(without)


def test_rows_of_a_table_that_was_put_together():
    ids = np.array([0, 1, 4, 3, 0, 2])

    def f(p):
        table = jnp.concatenate([jnp.zeros((1, 3)), p[0]])
        other = jnp.stack([p[1], p[2], p[1]])
        rows = table[ids] * other[ids % 3] + lax.dynamic_index_in_dim(other, ids[3] - 1)
        return jnp.tanh(rows)

    assert_agrees(f, draw((4, 3), (3,), (3,)))


def test_rows_of_a_masked_table_among_other_uses():
    mask, ids = draw((4, 2))[0], np.array([[0], [3]])

    def f(p):  # so many uses that Jacobians are formed
        table = p[0] * mask
        rows = table[ids][:, 0]
        return jnp.tanh(rows @ table.T @ table) + rows

    assert_agrees(f, draw((4, 2)))


@pytest.mark.optimised  # the emitters that compile fastest clamp such indices to their own range
def test_rows_by_small_unsigned_numbers():
    ids = np.arange(250, 256, dtype=np.uint8)

    def f(p):
        return jnp.tanh(jnp.take(p[0], ids, axis=0, mode="clip"))

    assert_agrees(f, draw((300, 2)))


def test_parts_of_scaled_weights_in_a_scan_over_an_inner_axis():
    (x,) = draw((2, 3))

    def f(p):
        def step(h, w):
            return jnp.tanh(h @ (w * h.mean())[1:]), None

        return lax.scan(step, x, p[0].transpose(1, 0, 2))[0]

    assert_agrees(f, draw((4, 4, 3)))


def test_powers_of_a_matrix_have_too_many_terms():
    (x,) = draw((2, 3))

    def f(p):
        power = p[0] / 3
        for _ in range(6):
            power = 1.5 * power - 0.5 * power @ power.T @ power
        return x @ power @ p[1]

    assert_agrees(f, draw((3, 3), (3, 2)), without=[0])
