import jax
import numpy as np
import pytest

from tests.diagnostics.networks import X, network, parameters
from tests.tolerance import assert_close
from widelimit.diagnostics.chunked import in_chunks


@pytest.mark.parametrize("size", [2, 5, 9])
def test_values_and_derivatives(size):
    params, direction = parameters(0), parameters(1)
    f = in_chunks(network, size)
    assert f == in_chunks(network, size)  # one compilation for both

    def bend(f):
        """A Hessian-vector product of the sum of squares."""
        slope = jax.grad(lambda p: (f(p, X) ** 2).sum())
        return jax.jit(lambda: (f(params, X), jax.jvp(slope, (params,), (direction,))))()

    jax.tree.map(assert_close, bend(f), bend(network))


def test_trees():
    def f(p, x):
        return {"sum": p * x["a"] + x["b"].sum(1), "rows": x["b"]}

    x = {"a": np.arange(5.0), "b": np.ones((5, 2))}
    jax.tree.map(assert_close, in_chunks(f, 2)(2.0, x), f(2.0, x))


def test_errors():
    assert in_chunks(network, None) is network
    for size in (0, True, 1.5):
        with pytest.raises(ValueError, match="batch_size of at least 1"):
            in_chunks(network, size)
    with pytest.raises(TypeError, match="a function"):
        in_chunks(3, 1)
    with pytest.raises(ValueError, match="x with one number of samples"):
        in_chunks(lambda p, x: x[0], 1)(0, (np.ones(2), np.ones(3)))
    with pytest.raises(ValueError, match="samples first, 2 in a chunk of 2, got 3"):
        in_chunks(lambda p, x: x.T, 2)(0, X)
