import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

import widelimit as wl
from tests.finite.empirical.small import full_kernel, inputs, mlp, mlp_params, reduced
from tests.tolerance import assert_close

x64 = pytest.mark.usefixtures("x64")


def dense(f, params, x, trace=()):
    """The matrix over axes that are kept."""
    kernel = reduced(full_kernel(f, params, x), trace)
    rank = kernel.ndim // 2
    first, second = range(0, 2 * rank, 2), range(1, 2 * rank, 2)
    size = int(np.prod([kernel.shape[a] for a in first]))
    return kernel.transpose(*first, *second).reshape(size, size)


@x64
@pytest.mark.parametrize(("batch_size", "trace"), [(None, ()), (2, (2,)), (None, (0, 2))])
def test_products_are_those_of_the_dense_kernel(batch_size, trace):
    params, x = mlp_params(), inputs(5)
    matrix = dense(mlp, params, x, trace)
    operator = wl.NTKOperator(mlp, params, x, trace_axes=trace, batch_size=batch_size)
    assert operator.shape == matrix.shape
    vectors = np.random.default_rng(0).standard_normal((len(matrix), 3))
    v = vectors[:, 0]
    assert_close(operator @ v, matrix @ v)
    assert_close(operator.matvec(v.reshape(operator.vector_shape)).ravel(), matrix @ v)
    assert_close(operator.matvec(v + 2j * v), matrix @ (v + 2j * v))
    assert_close(operator @ vectors, matrix @ vectors)
    assert_close(operator.diagonal().ravel(), np.diag(matrix))
    jitted = jax.jit(lambda operator, v: operator @ v)
    assert_close(jitted(operator, v), matrix @ v)


@x64
def test_solutions():
    params, x = mlp_params(), inputs(5)
    operator = wl.NTKOperator(mlp, params, x, batch_size=3)
    matrix = dense(mlp, params, x) + 0.1 * np.eye(30)
    b = np.random.default_rng(0).standard_normal(30)
    u = operator.solve(b, 0.1)
    assert np.linalg.norm(matrix @ u - b) <= 1e-8 * np.linalg.norm(b)
    assert_close(u, np.linalg.solve(matrix, b), rtol=1e-6)
    solve = jax.jit(lambda o, b, **how: o.solve(b, 0.1, **how), static_argnames="maxiter")
    assert_close(solve(operator, b), u)
    assert np.isnan(solve(operator, b, maxiter=1)).all()
    with pytest.raises(ValueError, match="expected conjugate gradients to reach"):
        operator.solve(b, 0.1, maxiter=1)
    for ridge in (-1.0, np.ones(30), 1j):
        with pytest.raises(ValueError, match="ridge of at least 0"):
            operator.solve(b, ridge)
    assert not np.any(operator.solve(0 * b, 0.1))


@x64
def test_complex_operators_and_scipy():
    key = jax.random.split(jax.random.key(0), 3)
    params = jax.random.normal(key[0], (4, 2)) + 1j * jax.random.normal(key[1], (4, 2))
    x = inputs(4)

    def f(params, x):
        z = x @ params
        return z * jnp.abs(z)

    operator = wl.NTKOperator(f, params, x)
    matrix = wl.empirical_ntk_fn(f, ())(x, None, params).transpose(0, 2, 1, 3).reshape(8, 8)
    assert_close(operator @ jnp.eye(8), matrix)
    assert_close(operator.diagonal().ravel(), jnp.diag(matrix).real)
    b = jax.random.normal(key[2], (8,)) * (1 - 2j)
    assert_close((matrix + 2 * jnp.eye(8)) @ operator.solve(b, 2.0), b, rtol=1e-8)
    wrapped = operator.to_scipy()
    assert wrapped.shape == (8, 8)
    assert wrapped.dtype == np.complex128
    assert_close(wrapped @ np.eye(8), matrix)
    largest = scipy.sparse.linalg.eigsh(wrapped, 1, return_eigenvectors=False)
    assert_close(largest[0], np.linalg.eigvalsh(matrix)[-1])


def test_nothing_of_the_size_of_the_matrix_is_stored():
    def temporary_bytes(n):
        x = jax.ShapeDtypeStruct((n, 8), jnp.float32)

        def product(x, w, v):
            return wl.NTKOperator(lambda w, x: jnp.tanh(x @ w), w, x) @ v

        w, v = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, 1), (n,)))
        return jax.jit(product).lower(x, w, v).compile().memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(1000), temporary_bytes(8000)
    assert large < 16 * small + 10**5
    assert large < 8000**2


def test_wrong_operators_and_vectors():
    params, x = mlp_params(), inputs(2)
    operator = wl.NTKOperator(mlp, params, x)
    for wrong in (np.ones(11), np.ones((2, 3, 2)), 1.0):
        with pytest.raises(ValueError, match="expected shape"):
            operator.matvec(wrong)
    with pytest.raises(ValueError, match="batch_size of at least 1"):
        wl.NTKOperator(mlp, params, x, batch_size=0)
    with pytest.raises(ValueError, match="expected batch_size with vmap_axes"):
        wl.NTKOperator(mlp, params, x, vmap_axes=0)
    with pytest.raises(TypeError, match="one array as its output"):
        wl.NTKOperator(lambda p, x: (mlp(p, x),) * 2, params, x)
    with pytest.raises(ValueError, match="depends on the chosen parameters"):
        wl.NTKOperator(lambda p, x: x, params, x)


def test_diagonals_are_added_up_in_float32():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mlp_params())
    found = wl.NTKOperator(mlp, params, inputs(2).astype(jnp.bfloat16)).diagonal()
    assert found.dtype == jnp.float32
    x = 51 * jnp.ones((1, 1), jnp.bfloat16)
    (entry,) = wl.NTKOperator(lambda p, x: x @ p, x, x).diagonal().ravel()
    assert entry == 51**2  # which bfloat16 does not have


@x64
def test_the_dtype_of_diagonals_is_that_of_the_network():
    params, x = jnp.ones((3, 1), jnp.float32), jnp.ones((2, 3), jnp.float32)
    assert wl.NTKOperator(lambda p, x: x @ p, params, x).diagonal().dtype == jnp.float32


@pytest.mark.parametrize("batch_size", [None, 2])
def test_no_samples(batch_size):
    operator = wl.NTKOperator(mlp, mlp_params(), jnp.zeros((0, 4)), batch_size=batch_size)
    empty = jnp.zeros((0, 2, 3))
    assert operator.matvec(empty).shape == operator.diagonal().shape == (0, 2, 3)
    assert operator.matmat(jnp.zeros((0, 5))).shape == (0, 5)
    assert operator.solve(empty, 1.0).shape == (0, 2, 3)


def test_arrays_of_numpy_are_copied():
    params, x = np.ones((3, 2), np.float32), np.ones((4, 3), np.float32)
    operator = wl.NTKOperator(lambda p, x: x @ p, params, x)
    x[:] = params[:] = 5
    assert_close(operator.diagonal(), 3 * jnp.ones((4, 2)))
