import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.finite.empirical.kernel_axes import (
    KernelAxes,
    kernel_dtype,
    kernel_of_arrays,
    resolve_axes,
)

SHAPE1, SHAPE2, REST = (2, 3, 4), (5, 3, 4), (6,)
EXPECTED = {
    ((), ()): "abcz,defz->adbecf",
    ((2,), ()): "abcz,dec z->adbe",
    ((1,), ()): "abcz,dbfz->adcf",
    ((1, 2), ()): "abcz,dbcz->ad",
    ((), (1,)): "abcz,dbfz->adbcf",
    ((), (2,)): "abcz,decz->adbec",
    ((), (1, 2)): "abcz,dbcz->adbc",
    ((2,), (1,)): "abcz,dbcz->adb",
    ((1,), (2,)): "abcz,dbcz->adc",
}


@pytest.mark.parametrize("axes", EXPECTED, ids=str)
def test_contract_keeps_axes_side_by_side(axes):
    rng = np.random.default_rng(0)
    a1 = rng.standard_normal(SHAPE1 + REST).astype(np.float32)
    a2 = rng.standard_normal(SHAPE2 + REST).astype(np.float32)
    expected = np.einsum(EXPECTED[axes].replace(" ", ""), a1, a2)
    found = KernelAxes(*axes)
    assert found.kernel_shape(SHAPE1, SHAPE2) == expected.shape
    assert_close(kernel_of_arrays(jnp.array(a1), jnp.array(a2), found, 3), expected)


def test_all_axes_of_equal_shapes_may_be_traced():
    a = jnp.arange(6.0).reshape(2, 3)
    for trace in itertools.chain.from_iterable(itertools.combinations(range(2), k) for k in (1, 2)):
        axes = KernelAxes(trace)
        expected = {(0,): a.T @ a, (1,): a @ a.T, (0, 1): (a * a).sum()}[trace]
        if trace == (0,):
            expected = np.einsum("ab,ac->bc", a, a)
        assert_close(kernel_of_arrays(a, a, axes, 2), expected)
        assert axes.trace_size((2, 3)) == {(0,): 2, (1,): 3, (0, 1): 6}[trace]


def test_scalars_and_low_precision():
    one = jnp.float16(300.0)
    product = kernel_of_arrays(one, one, KernelAxes(), 0)
    assert product.dtype == jnp.float32
    assert float(product) == 90000.0  # not a float16
    assert kernel_dtype(jnp.float16, jnp.complex64) == np.complex64
    assert kernel_of_arrays(jnp.ones(2, jnp.bfloat16), jnp.ones(2), KernelAxes((0,)), 1) == 2.0


@pytest.mark.parametrize(
    ("trace", "diagonal", "expected"),
    [
        (-1, (), KernelAxes((2,))),
        ((-1, 2), [-3], KernelAxes((2,), (0,))),
        ((2, -2), (), KernelAxes((1, 2))),
        ((), np.int64(1), KernelAxes((), (1,))),
    ],
)
def test_axes_are_resolved(trace, diagonal, expected):
    assert resolve_axes(trace, diagonal, (2, 3, 4), (2, 3, 4)) == expected


@pytest.mark.parametrize(
    ("trace", "diagonal", "shapes", "error", "message"),
    [
        ((3,), (), ((2, 3, 4),) * 2, ValueError, "trace_axes of an output of shape"),
        ((-1,), (), ((), ()), ValueError, "has 0 axes"),
        ((), (-4,), ((2, 3, 4),) * 2, ValueError, "diagonal_axes of an output"),
        ((-1,), (2,), ((2, 3, 4),) * 2, ValueError, "share axis 2"),
        ((0,), (), (SHAPE1, SHAPE2), ValueError, "same size along trace axis 0"),
        ((), (0,), (SHAPE1, SHAPE2), ValueError, "same size along diagonal axis 0"),
        ((), (), ((2, 3), (2, 3, 4)), ValueError, "same number of axes"),
        ((1.0,), (), ((2, 3),) * 2, TypeError, "integers in trace_axes"),
        ((True,), (), ((2, 3),) * 2, TypeError, "integers in trace_axes"),
        ("ab", (), ((2, 3),) * 2, TypeError, "integers in trace_axes"),
    ],
)
def test_wrong_axes(trace, diagonal, shapes, error, message):
    with pytest.raises(error, match=message):
        resolve_axes(trace, diagonal, *shapes)
