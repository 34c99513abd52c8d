import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit._pytree import is_concrete
from widelimit.predict.precision import in_float64, resolution, result_dtype


@in_float64
def solve(matrices, b, *, scale):
    """Ill conditioned, and written with operations whose transposes index and gather."""
    k = matrices["k"] @ matrices["k"].T + 1e-6 * jnp.eye(3)
    lower = jnp.linalg.cholesky(k)
    x = jax.scipy.linalg.cho_solve((lower, True), b)
    return (scale * (x * b).sum() + jnp.log(jnp.diag(lower)).sum()).astype(jnp.float32)


MATRIX = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.01], [0.5, 0.3, 0.2]], np.float32)
B = np.array([1.0, -1.0, 0.5], np.float32)


def gradient(matrix, b=B):
    return jax.grad(lambda k: solve({"k": k}, b, scale=2.0))(matrix)


TRANSFORMED = {
    "grad": gradient,
    "jit of grad": jax.jit(gradient),
    "grad of jit": jax.grad(jax.jit(lambda k: solve({"k": k}, B, scale=2.0))),
    "vmap of grad": lambda k: jax.vmap(gradient)(k[None])[0],
    "grad of vmap": jax.grad(
        lambda k: jax.vmap(lambda k: solve({"k": k}, B, scale=2.0))(k[None]).sum()
    ),
    "grad of vmap over the other": jax.grad(
        lambda k: jax.vmap(lambda b: solve({"k": k}, b, scale=2.0))(jnp.asarray(B)[None]).sum()
    ),
}


@pytest.mark.parametrize("transformed", TRANSFORMED.values(), ids=TRANSFORMED)
def test_cotangents_keep_float64(transformed):
    with jax.enable_x64(True):
        expected = gradient(MATRIX.astype(np.float64))
    got = transformed(jnp.asarray(MATRIX))
    assert got.dtype == jnp.float32
    # In float32 the conditioning of 1e7 would leave no digit.
    assert_close(got, expected, rtol=1e-6)


def test_forward_mode_says_what_to_do():
    def f(k):
        return solve({"k": k}, B, scale=2.0)

    matrix = jnp.asarray(MATRIX)
    for derivative in [jax.jacfwd(f), jax.jit(jax.jacfwd(f)), lambda k: jax.jvp(f, (k,), (k,))]:
        with pytest.raises(TypeError, match=r"reverse mode .*jax_enable_x64") as caught:
            derivative(matrix)
        assert "custom_vjp" not in str(caught.value)
    assert_close(jax.jacrev(f)(matrix), gradient(matrix))


@pytest.mark.usefixtures("x64")
def test_all_derivatives_where_float64_is_on():
    def f(k):
        return solve({"k": k}, B, scale=2.0).astype(jnp.float64)

    k = jnp.asarray(np.eye(3) + 0.1 * MATRIX)
    forward, reverse = (jax.jit(jac(jax.grad(f)))(k) for jac in (jax.jacfwd, jax.jacrev))
    assert_close(forward, reverse, rtol=1e-5)


def test_arrays_of_numpy_keep_their_digits():
    @in_float64
    def below(x):
        return (x - 1.0).astype(jnp.float32)

    assert_close(below(np.array([1 + 1e-12])), np.array([1e-12]), rtol=1e-3)
    assert_close(jax.jit(lambda: below(np.array([1 + 1e-12])))(), np.array([1e-12]), rtol=1e-3)


def test_integers_and_scalars():
    @in_float64
    def f(n, x):
        return (n * x).astype(jnp.float32)

    assert jax.grad(lambda x: f(jnp.arange(3), x).sum())(2.0) == 3.0
    assert jax.grad(jax.jit(lambda n, x: f(n, x).sum()), 1)(jnp.arange(3), 2.0) == 3.0


def test_concreteness():
    seen = []

    def f(x):
        seen.append((is_concrete(x), is_concrete({"a": 1.0, "b": np.ones(2)})))
        return x.sum()

    jax.jit(f)(jnp.ones(2))
    jax.grad(f)(jnp.ones(2))
    jax.vmap(f)(jnp.ones((2, 2)))
    f(jnp.ones(2))
    assert seen == [(False, True)] * 3 + [(True, True)]


@pytest.mark.parametrize(
    ("kernel", "dtype", "eps"),
    [
        (np.ones(1, np.float64), jnp.float32, 2.0**-52),
        (np.ones(1, np.float32), jnp.float32, 2.0**-23),
        (np.ones(1, np.int64), jnp.float32, 2.0**-52),
        (jnp.ones(1, jnp.bfloat16), jnp.bfloat16, 2.0**-7),
        (jnp.ones(1, jnp.float16), jnp.float16, 2.0**-10),
        (MATRIX.astype(np.float64), jnp.float32, 2.0**-23),
        (MATRIX.astype(np.float64) + 1e-9, jnp.float32, 2.0**-52),
        (np.arange(60_000.0), jnp.float32, 2.0**-52),
    ],
    ids=str,
)
def test_dtypes(kernel, dtype, eps):
    assert result_dtype(kernel) == dtype
    assert resolution(kernel) == eps
