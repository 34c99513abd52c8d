import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.finite.empirical import long_rows
from widelimit.finite.empirical.long_rows import rows_product

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch):
    monkeypatch.setattr(long_rows, "_PIECE", 20)


@pytest.mark.parametrize("length", [0, 3, 40, 43])
def test_sum_over_pieces(length):
    a, b = (np.random.default_rng(n).standard_normal((n, length)) for n in (4, 5))
    assert_close(rows_product(jnp.array(a), jnp.array(b), jnp.float64), a @ b.T)


def test_few_digits_are_added_up_in_more():
    a = jnp.ones((2, 1001), jnp.bfloat16)
    found = rows_product(a, a, jnp.float32)
    assert found.dtype == jnp.float32
    assert (found == 1001).all()


def test_derivatives_are_those_of_a_product():
    a, b, v = (jax.random.normal(jax.random.key(k), (3, 100)) for k in range(3))

    def f(a, b):
        return jnp.sin(rows_product(a, b, jnp.float64)).sum()

    def plain(a, b):
        return jnp.sin(a @ b.T).sum()

    assert "scan" in str(jax.make_jaxpr(f)(a, b))
    assert_close(jax.grad(f, (0, 1))(a, b), jax.grad(plain, (0, 1))(a, b))
    assert_close(jax.jvp(f, (a, b), (v, b)), jax.jvp(plain, (a, b), (v, b)))
    assert_close(jax.hessian(f)(a, b), jax.hessian(plain)(a, b))
    stacked = jnp.stack([a, v])
    assert_close(jax.vmap(f, (0, None))(stacked, b), jax.vmap(plain, (0, None))(stacked, b))
