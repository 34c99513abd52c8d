import jax.numpy as jnp
import numpy as np
import pytest

from widelimit.predict.matrices import (
    Targets,
    check_test_test,
    column_shape,
    from_matrix,
    row_shape,
    to_matrix,
)


def zipped_product(left, right):
    """The kernel of an outer product of outputs, in zipped axes."""
    n = left.ndim
    product = np.multiply.outer(left, right)
    return product.transpose([side * n + axis for axis in range(n) for side in (0, 1)])


@pytest.mark.parametrize("shapes", [((), ()), ((4,), (3,)), ((4, 2, 3), (3, 2, 5))])
def test_kernels_to_matrices_and_back(shapes):
    rng = np.random.default_rng(0)
    left, right = (np.asarray(rng.normal(size=shape)) for shape in shapes)
    kernel = np.asarray(zipped_product(left, right))
    assert row_shape(kernel) == shapes[0]
    assert column_shape(kernel) == shapes[1]
    matrix = to_matrix("k", kernel)
    np.testing.assert_array_equal(matrix, np.multiply.outer(left.ravel(), right.ravel()))
    back = from_matrix(jnp.asarray(matrix)[None, None], *shapes)
    np.testing.assert_array_equal(back, jnp.asarray(kernel)[None, None])


@pytest.mark.parametrize(
    ("trace_axes", "traced"),
    [
        ((-1,), (2,)),
        (-1, (2,)),
        ((), ()),
        ((0, 1), (0, 1)),
        ((0, 0, -3), (0,)),
        ((2, -2), (1, 2)),
        ((1, 0, 2), (0, 1, 2)),
        ([-1, 1], (1, 2)),
    ],
)
def test_targets_to_matrices_and_back(trace_axes, traced):
    y = jnp.arange(24.0).reshape(4, 2, 3)
    targets = Targets.of(y, trace_axes)
    assert targets.traced == traced
    matrix = targets.to_matrix(y)
    kept = [axis for axis in range(3) if axis not in traced]
    assert matrix.shape[0] == np.prod([y.shape[axis] for axis in kept])
    np.testing.assert_array_equal(targets.from_matrix(matrix, targets.kept_shape), y)
    np.testing.assert_array_equal(
        targets.from_matrix(matrix[None, None], targets.kept_shape)[0, 0], y
    )


def test_a_product_of_matrices_is_a_contraction_over_kept_axes():
    rng = np.random.default_rng(0)
    y, k = rng.normal(size=(4, 2, 3)), rng.normal(size=(5, 4, 3, 3))
    targets = Targets.of(y, (1,))
    product = jnp.asarray(to_matrix("k", k)) @ targets.to_matrix(jnp.asarray(y))
    expected = np.einsum("tnij,ncj->tci", k, y)
    np.testing.assert_allclose(targets.from_matrix(product, (5, 3)), expected, rtol=1e-5)
    assert targets.full_shape((5, 3)) == (5, 2, 3)


@pytest.mark.parametrize("axis", [3, -4])
def test_trace_axes_out_of_range(axis):
    with pytest.raises(ValueError, match=r"trace_axes between -3 and 2 .* got"):
        Targets.of(np.ones((4, 2, 3)), (axis,))


def test_trace_axes_that_are_none():
    for axes in [np.ones((50, 200)), (0, np.ones((50, 200))), 1.0, "0"]:
        with pytest.raises(TypeError, match="trace_axes to be an axis of y_train or several, got"):
            Targets.of(np.ones((4, 2, 3)), axes)
    assert Targets.of(np.ones((4, 2, 3)), np.int64(-1)).traced == (2,)
    assert Targets.of(np.ones((4, 2, 3)), np.array([0, -1])).traced == (0, 2)


def test_shapes_that_do_not_fit():
    targets = Targets.of(np.ones((4, 2)), (-1,))
    for shape in [(4, 3), (4, 4, 2), (4,)]:
        with pytest.raises(ValueError, match=r"pairs of equal axes"):
            targets.check_train_train("k", np.ones(shape))
    with pytest.raises(ValueError, match=r"expected k of shape \(4, 4\) for y_train of shape"):
        targets.check_train_train("k", np.ones((5, 5)))
    with pytest.raises(ValueError, match=r"got shape \(4, 4, 2, 2\); .* needs trace_axes=\(\)"):
        targets.check_train_train("k", np.ones((4, 4, 2, 2)))
    with pytest.raises(ValueError, match=r"got shape \(4, 5\): swap both sides"):
        targets.check_test_train("k", np.ones((4, 5)))
    for shape in [(4, 5), (4,), (7, 4, 2, 2)]:
        with pytest.raises(ValueError, match=r"expected k of shape \('t', 4\)"):
            targets.check_test_train("k", np.ones(shape))
    with pytest.raises(
        ValueError, match=r"expected k of shape \(7, 7\) beside a test-train kernel"
    ):
        check_test_test("k", np.ones((4, 4)), np.ones((7, 4)))
    with pytest.raises(ValueError, match="expected k to have pairs of axes"):
        to_matrix("k", np.ones((4, 4, 2)))
