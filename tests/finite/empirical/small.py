"""Small networks for the tests of empirical kernels, and their kernels by definition."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.quick import jit


def mlp(params, x):
    """Outputs [n, 2, 3]."""
    h = jnp.tanh(x @ params["w1"] + params["b"][None])
    return (h @ params["w2"]).reshape(len(x), 2, 3)


def mlp_params(seed=0):
    k = jax.random.split(jax.random.key(seed), 3)
    shapes = {"w1": (4, 7), "b": (7,), "w2": (7, 6)}
    return {n: jax.random.normal(key, s) for (n, s), key in zip(shapes.items(), k, strict=True)}


def inputs(n, seed=1, size=4):
    return jax.random.normal(jax.random.key(seed), (n, size))


def flat_jacobian(f, params, x):
    """Jacobian [*output, parameters] with respect to real parameters."""
    y = jax.eval_shape(f, params, x)
    leaves = jax.tree.leaves(jit(jax.jacrev(f))(params, x))
    return np.concatenate([np.reshape(j, (*y.shape, -1)) for j in leaves], -1)


def full_kernel(f, params, x1, x2=None):
    """Kernel [*output of x1, *output of x2] with all axes."""
    j1 = flat_jacobian(f, params, x1)
    j2 = j1 if x2 is None else flat_jacobian(f, params, x2)
    return np.tensordot(j1, j2.conj(), (-1, -1))


def reduced(full, trace=(), diagonal=()):
    """The layout of kernels, of a kernel with all axes."""
    rank = full.ndim // 2
    first = [chr(ord("a") + i) for i in range(rank)]
    second = [chr(ord("n") + i) for i in range(rank)]
    size, out = 1, []
    for i in range(rank):
        if i in trace or i in diagonal:
            second[i] = first[i]
        if i in trace:
            size *= full.shape[i]
        else:
            out += [first[i]] if i in diagonal else [first[i], second[i]]
    return np.einsum("".join(first + second) + "->" + "".join(out), full) / size
