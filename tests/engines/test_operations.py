"""Operations of layers, and of any traced function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import extend, plan, stax
from widelimit.engines.operations import count
from widelimit.tracing.jaxprs import Equations

MATRIX = np.ones((6, 4), np.float32)
IMAGES = np.ones((2, 8, 8, 3), np.float32)


def window_sums(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def convolution(x):
    dimensions = ("NHWC", "HWIO", "NHWC")
    weights = jnp.ones((3, 3, 3, 5))
    return jax.lax.conv_general_dilated(x, weights, (1, 1), "SAME", dimension_numbers=dimensions)


@pytest.mark.parametrize(
    ("function", "x", "right"),
    [
        (lambda x: 2 * x + 1, MATRIX, 2 * 24),
        (lambda x: x @ x.T, MATRIX, 2 * 4 * 36),
        (lambda x: x.sum(0), MATRIX, 24),
        (lambda x: x.T.reshape(-1)[::2], MATRIX, 0),
        (window_sums, IMAGES, 2 * 8 * 8 * 3),
        (lambda x: jax.lax.scan(lambda c, _: (c * 2, None), x, None, length=7)[0], MATRIX, 7 * 24),
        (lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, lambda y: y, x), MATRIX, 24 + 1),
        (convolution, IMAGES, 2 * 27 * 2 * 8 * 8 * 5),
    ],
)
def test_what_functions_take(function, x, right):
    found = count(Equations.of(function, x))
    assert right <= found <= right + 4  # with what picks a branch


@extend.pytree
class Cubed(extend.Layer):
    """A layer whose kernel takes three products per entry: of NNGP, NTK and self-covariance."""

    def propagate(self, cov, site):
        return cov.map(lambda value, _: value * 3 * 3 * 3)


@extend.pytree
class Stated(Cubed):
    def operations(self, site):
        return 11.5


def operations(net, shape):
    return {row.layer.strip(): row.operations for row in plan(net, shape).rows}


def test_a_layer_of_your_own_counts_as_what_it_computes():
    found = operations(stax.serial(stax.Dense(4), Cubed(), Stated()), (50, 3))
    assert 6 <= found["Cubed()"] <= 8  # with the exact diagonal
    assert found["Stated()"] == 12


def test_a_combinator_counts_without_its_layers():
    @extend.pytree
    class Around(extend.Layer):
        layer: extend.Layer

        def needs(self, need, signal):
            return self.layer.needs(need, signal)

        def children(self, signal, need):
            return (extend.Child(0, signal, need),)

        def propagate(self, cov, site):
            inside = extend.step(self.layer, cov, site.children[0])
            return inside.map(lambda value, _: 2 * value)

    net = stax.serial(stax.Dense(4), Around(stax.GlobalSelfAttention(4, 4, 4, 2)))
    rows = plan(net, (2, 20, 3)).rows
    attention, around = rows[-2], rows[-1]
    assert attention.operations > 400 * 20 * 2  # matrices of all pairs of positions
    assert 2 * 400 <= around.operations < 10 * 400


def test_maps_of_positions_count_as_products_of_matrices():
    net = stax.serial(stax.Dense(4), stax.ImageResize((-1, 16, -1), "linear"))
    found = operations(net, (2, 8, 3))
    matrices = 2 * 2 * (16 * 8 * 8 + 16 * 16 * 8)
    assert found[repr(net.layers[1])] >= matrices
