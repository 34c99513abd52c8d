"""Methods of the public Kernel against kernels of finite activations, moved by NumPy."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.tolerance import assert_close
from widelimit.kernel.axes import canonical_index
from widelimit.stax import Dense, Flatten, Relu, serial

pytestmark = pytest.mark.usefixtures("x64")


class Layout(NamedTuple):
    """How a Kernel is stored, and the axes of its activations."""

    diagonal_batch: bool
    diagonal_spatial: bool
    is_reversed: bool
    batch_axis: int = 0
    channel_axis: int = 3


PLAIN = Layout(True, False, False)
LAYOUTS = [Layout(*flags) for flags in itertools.product((True, False), repeat=3)]
# Samples in the middle, channels first, three spatial axes.
LAYOUTS += [Layout(True, False, True, 2, 0), Layout(False, False, False, 2, 0)]
LAYOUTS += [Layout(True, True, True, 2, 0)]


class Pair(NamedTuple):
    """Finite activations of x1 and x2, features whose products are the NTK, and masks."""

    z1: Any
    z2: Any
    t1: Any
    t2: Any
    mask1: Any = None
    mask2: Any = None

    def map(self, function: Any, other: Any = None) -> "Pair":
        """The pair with a function applied to side 1, and to side 2 (the same if not given)."""
        other = other or function
        mask1 = None if self.mask1 is None else function(self.mask1)
        mask2 = None if self.mask2 is None else other(self.mask2)
        return Pair(function(self.z1), other(self.z2), function(self.t1), other(self.t2)).masked(
            mask1, mask2
        )

    def masked(self, mask1: Any, mask2: Any) -> "Pair":
        return self._replace(mask1=mask1, mask2=mask2)


def draw(layout: Layout, symmetric: bool = False) -> Pair:
    rng = np.random.default_rng(0)
    shape = [3, 2, 3, 4] if layout.channel_axis else [4, 2, 3, 3, 2]
    other = shape.copy()
    other[layout.batch_axis] = 2
    z1, t1 = (rng.standard_normal(shape) for _ in range(2))
    z2, t2 = (z1, t1) if symmetric else (rng.standard_normal(other) for _ in range(2))
    return Pair(z1, z2, t1, t2)


def product(a: np.ndarray, b: np.ndarray, layout: Layout, once: bool) -> np.ndarray:
    """Mean over channels of products, laid out; `once` keeps equal samples only."""
    ndim = a.ndim
    spatial = [i for i in range(ndim) if i not in (layout.batch_axis, layout.channel_axis)]
    spatial = spatial[::-1] if layout.is_reversed else spatial
    copies = {axis: (2 * axis, 2 * axis + 1) for axis in range(ndim)}
    copies[layout.channel_axis] = (2 * layout.channel_axis,) * 2
    if once:
        copies[layout.batch_axis] = (2 * layout.batch_axis,) * 2
    if layout.diagonal_spatial:
        copies |= {axis: (2 * axis,) * 2 for axis in spatial}
    out = [i for axis in (layout.batch_axis, *spatial) for i in dict.fromkeys(copies[axis])]
    left, right = ([copies[axis][side] for axis in range(ndim)] for side in (0, 1))
    return np.einsum(a, left, b, right, out) / a.shape[layout.channel_axis]


def kernel_of(pair: Pair, layout: Layout, symmetric: bool = False) -> wl.Kernel:
    """The Kernel of finite activations."""

    def own(z: np.ndarray) -> jax.Array:
        return jnp.asarray(product(z, z, layout, once=layout.diagonal_batch))

    masks = [None if m is None else jnp.asarray(m) for m in (pair.mask1, pair.mask2)]
    return wl.Kernel(
        nngp=jnp.asarray(product(pair.z1, pair.z2, layout, once=False)),
        ntk=jnp.asarray(product(pair.t1, pair.t2, layout, once=False)),
        cov1=own(pair.z1),
        cov2=None if symmetric else own(pair.z2),
        x1_is_x2=jnp.asarray(symmetric),
        is_gaussian=True,
        is_reversed=layout.is_reversed,
        is_input=False,
        diagonal_batch=layout.diagonal_batch,
        diagonal_spatial=layout.diagonal_spatial,
        shape1=pair.z1.shape,
        shape2=pair.z2.shape,
        batch_axis=layout.batch_axis,
        channel_axis=layout.channel_axis,
        mask1=masks[0],
        mask2=masks[1],
    )


def assert_same(actual: wl.Kernel, desired: wl.Kernel) -> None:
    for name, value in desired.asdict().items():
        got = getattr(actual, name)
        if isinstance(value, jax.Array):
            assert_close(got, value)
        else:
            assert got == value, name


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_reverse(layout: Layout) -> None:
    kernel = kernel_of(draw(layout), layout)
    flipped = layout._replace(is_reversed=not layout.is_reversed)
    assert_same(kernel.reverse(), kernel_of(draw(layout), flipped))
    assert_same(kernel.reverse().reverse(), kernel)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_transpose(layout: Layout) -> None:
    pair = draw(layout)
    pair = pair.masked(*(z > 1 for z in (pair.z1[..., :1], pair.z2[..., :1])))
    kernel = kernel_of(pair, layout)
    assert_same(kernel.transpose(), kernel)
    if layout.channel_axis:
        moved = kernel_of(pair.map(lambda z: z.transpose(0, 2, 1, 3)), layout)
        assert_same(kernel.transpose((1, 0)), moved)
        assert_same(kernel.transpose([-1, 0]), moved)
    else:
        moved = kernel_of(pair.map(lambda z: z.transpose(0, 4, 2, 1, 3)), layout)
        assert_same(kernel.transpose((2, 0, 1)), moved)
    for bad in ((0,), (0, 0), (0, 1, 2, 3)):
        with pytest.raises(ValueError, match="permutation of"):
            kernel.transpose(bad)


INDICES = [
    np.s_[1:],
    np.s_[::-1, ..., :],
    np.s_[:, :, -1, 0:4],
    np.s_[:2, 1, ::2],
    np.s_[..., 1, 2, :],
]


@pytest.mark.parametrize("layout", LAYOUTS[1:7:2], ids=str)
def test_indexing(layout: Layout) -> None:
    pair = draw(layout)
    kernel = kernel_of(pair.masked(pair.z1[..., :1] > 1, pair.z2[..., :1] > 1), layout)
    for idx in INDICES:
        moved = pair.masked(kernel.mask1, kernel.mask2).map(lambda z, idx=idx: np.asarray(z)[idx])
        axis = moved.z1.ndim - 1
        single = layout.diagonal_spatial and axis > 1
        after = layout._replace(channel_axis=axis, diagonal_spatial=single)
        assert_same(kernel[idx], kernel_of(moved, after))


def test_indexing_with_axes_elsewhere() -> None:
    for layout in LAYOUTS[8:]:
        pair = draw(layout)
        moved = pair.map(lambda z: z[:, 1, ::2, -1])
        after = layout._replace(batch_axis=1)
        assert_same(kernel_of(pair, layout)[:, 1, ::2, -1], kernel_of(moved, after))


def test_indexing_of_a_kernel_with_itself() -> None:
    kernel = kernel_of(draw(PLAIN, symmetric=True), PLAIN, symmetric=True)
    part = kernel[1:, 0]
    assert part.cov2 is None
    assert bool(part.x1_is_x2)
    assert_close(part.nngp, part.nngp.transpose(1, 0, 3, 2))
    # Masks of size 1 stand for all indices, in slices too.
    masked = kernel.mask(np.zeros((1, 2, 1, 1), bool), None)
    assert masked[1:, 0, 1].mask1.shape == (1, 1)
    assert masked.slice(slice(1, 3), slice(2)).mask1.shape == (1, 2, 1, 1)


def test_refused_indices() -> None:
    kernel = kernel_of(draw(PLAIN), PLAIN)
    for bad in (0, np.s_[0, 1], np.s_[:, 0, 0, 0], np.s_[..., 1:], np.s_[..., ::-1]):
        with pytest.raises(NotImplementedError, match=r"expected (a slice of|all channels)"):
            kernel[bad]
    for bad in (None, [0, 1], np.arange(2), True, "a"):
        with pytest.raises(TypeError, match="expected ints, slices and an ellipsis"):
            kernel[:, bad]
    for bad in (np.s_[:, 2], np.s_[:, -3], np.s_[..., :, ...], np.s_[:, :, :, :, :]):
        with pytest.raises(IndexError, match="expected"):
            kernel[bad]
    with pytest.raises(TypeError, match="not iterable"):
        list(kernel)
    assert canonical_index(np.s_[:, np.int64(-1)], (3, 2, 3, 4), 0, 3)[1] == 1


@pytest.mark.parametrize("layout", [LAYOUTS[i] for i in (2, 3, 5, 6, 10)], ids=str)
def test_mask(layout: Layout) -> None:
    pair = draw(layout)
    kernel = kernel_of(pair, layout)
    channel = [slice(None)] * pair.z1.ndim
    channel[layout.channel_axis] = slice(1)
    mask1, mask2 = pair.z1[tuple(channel)] > 0.5, pair.z2[tuple(channel)] > 0.5

    def hidden(m1: Any, m2: Any) -> wl.Kernel:
        keep1, keep2 = (1 if m is None else ~m for m in (m1, m2))
        zeroed = pair.map(lambda z: z * keep1, lambda z: z * keep2)
        return kernel_of(zeroed.masked(m1, m2), layout)

    assert_same(kernel.mask(mask1, mask2), hidden(mask1, mask2))
    assert_same(kernel.mask(mask1, None), hidden(mask1, None))
    assert_same(kernel.mask(None, mask2), hidden(None, mask2))
    assert_same(kernel.mask(None, None), kernel)
    row = mask1[:, :1]  # size 1 along an axis
    assert_same(kernel.mask(row, None), hidden(row, None))
    with pytest.raises(NotImplementedError, match="a mask per channel"):
        kernel.mask(pair.z1 > 1, None)


def test_mask_of_a_kernel_with_itself() -> None:
    pair = draw(PLAIN, symmetric=True)
    kernel = kernel_of(pair, PLAIN, symmetric=True)
    mask1, mask2 = pair.z1[..., :1] > 0.5, pair.z1[..., 1:2] > 0.5
    zeroed = pair.map(lambda z: z * ~mask1)
    expected = kernel_of(zeroed.masked(mask1, None), PLAIN, symmetric=True)
    assert_same(kernel.mask(mask1, None), expected)
    assert kernel.mask(mask1, mask1.copy()).cov2 is None
    equal = kernel.replace(cov2=kernel.cov1)
    assert bool(equal.mask(mask1, mask1.copy()).x1_is_x2)
    assert not bool(equal.mask(mask1, mask2).x1_is_x2)
    assert not bool(equal.mask(mask1, None).x1_is_x2)
    other = kernel.mask(mask1, mask2)  # x2 is no longer x1
    zeroed = pair.map(lambda z: z * ~mask1, lambda z: z * ~mask2)
    assert_same(other, kernel_of(zeroed.masked(mask1, mask2), PLAIN))


# Of activations (n, H, W, C) = (3 or 2, 2, 3, 4): constant's shape, whether it is on the left,
# contracted and batched axes of (activation, constant).
PRODUCTS = [
    ((), False, ((), ()), ((), ())),
    ((), True, ((), ()), ((), ())),
    ((2,), False, ((), ()), ((1,), (0,))),
    ((5, 3, 2), True, ((), ()), ((2, 1), (1, 2))),
    ((5,), True, ((), ()), ((), ())),
    ((5,), False, ((), ()), ((), ())),
    ((None, 3), False, ((), ()), ((0, 2), (0, 1))),
    ((2, 5), False, ((1,), (0,)), ((), ())),
    ((5, 3, 2), True, ((1, 2), (2, 1)), ((), ())),
    ((3, None, 2), True, ((1,), (2,)), ((0, 2), (1, 0))),
    ((5, 2, None), True, ((0,), (2,)), ((), ())),
    ((None, 3, 5), False, ((0, 2), (0, 1)), ((), ())),
]


@pytest.mark.parametrize("layout", [LAYOUTS[i] for i in (2, 7)], ids=str)
def test_dot_general(layout: Layout) -> None:
    pair = draw(layout)
    kernel = kernel_of(pair, layout)
    count = 0
    for shape, is_lhs, contracted, batched in PRODUCTS:
        pairs = tuple(p[::-1] if is_lhs else p for p in (contracted, batched))
        rng = np.random.default_rng(1)
        # The same constant in both where it does not depend on the samples.
        whole = rng.standard_normal([n or 3 for n in shape])
        others = [
            whole[tuple(slice(n) if m is None else slice(None) for m in shape)] for n in (3, 2)
        ]
        spatial = set(contracted[0]) - {0}
        samples = 0 in contracted[0]
        if (spatial and layout.diagonal_spatial) or (samples and layout.diagonal_batch):
            with pytest.raises(ValueError, match="expected a Kernel with"):
                kernel.dot_general(*others, is_lhs, pairs)
            continue
        count += 1

        def dot(z: Any, other: Any, is_lhs: Any = is_lhs, pairs: Any = pairs) -> np.ndarray:
            factors = (other, z) if is_lhs else (z, other)
            return np.asarray(jax.lax.dot_general(*map(jnp.asarray, factors), pairs))

        moved = pair.map(*(lambda z, other=other: dot(z, other) for other in others))
        out = kernel.dot_general(*others, is_lhs, pairs)
        assert moved.z1.shape[out.channel_axis] == 4  # no other axis has this size
        after = layout._replace(
            batch_axis=out.batch_axis,
            channel_axis=out.channel_axis,
            is_reversed=False,
            diagonal_spatial=layout.diagonal_spatial and moved.z1.ndim > 2,
        )
        assert_same(out, kernel_of(moved, after))
    assert count >= 7


def test_axes_after_dot_general() -> None:
    kernel = kernel_of(draw(PLAIN), PLAIN)
    ones = np.ones
    both = (((-3,), (-2,)), ((), ()))
    out = kernel.dot_general(ones((2, 5)), ones((2, 5)), False, both)
    assert (out.shape1, out.batch_axis, out.channel_axis) == ((3, 3, 4, 5), 0, 2)
    out = kernel.dot_general(ones((2, 5)), ones((2, 5)), True, (((0,), (1,)), ((), ())))
    assert (out.shape2, out.batch_axis, out.channel_axis) == ((5, 2, 3, 4), 1, 3)
    full = kernel_of(draw(PLAIN), PLAIN._replace(diagonal_batch=False))
    out = full.dot_general(ones((3, 5)), ones((2, 5)), False, (((0,), (0,)), ((), ())))
    assert (out.shape1, out.batch_axis, out.channel_axis) == ((2, 3, 4, 5), 3, 2)
    assert out.cov1.shape == (5, 5, 2, 2, 3, 3)


def test_masks_after_dot_general() -> None:
    mask1 = np.zeros((3, 2, 3, 1), bool)
    mask1[0, :, 1] = mask1[1, 0] = True
    kernel = kernel_of(draw(PLAIN), PLAIN).mask(mask1, None)
    constant = np.random.default_rng(0).standard_normal((5, 2))
    out = kernel.dot_general(constant, constant, True, (((1,), (1,)), ((), ())))
    expected = np.broadcast_to(mask1.all(1), (5, 3, 3, 1))
    np.testing.assert_array_equal(out.mask1, expected)
    assert out.mask2 is None
    assert_same(out.mask(out.mask1, None), out)


def test_dot_general_of_a_kernel_with_itself() -> None:
    pair = draw(PLAIN, symmetric=True)
    kernel = kernel_of(pair, PLAIN, symmetric=True)
    assert kernel.dot_general(None, None, True, (((), ()), ((), ()))) is kernel
    numbers = (((1,), (0,)), ((), ()))
    a, b = np.random.default_rng(0).standard_normal((2, 2, 5))
    same = kernel.dot_general(a, a.copy(), False, numbers)
    assert same.cov2 is None
    assert bool(same.x1_is_x2)
    other = kernel.dot_general(a, b, False, numbers)
    assert not bool(other.x1_is_x2)

    def dot(m: np.ndarray) -> Any:
        return lambda z: np.tensordot(z, m, (1, 0))

    assert_same(other, kernel_of(pair.map(dot(a), dot(b)), PLAIN._replace(channel_axis=2)))
    scalar = kernel.replace(ntk=jnp.zeros(()))
    assert scalar.dot_general(a, a, False, numbers).ntk.shape == ()
    assert scalar[:, 0].mask(None, None).reverse().ntk.shape == ()
    assert kernel.replace(ntk=None).transpose().ntk is None


def test_refused_products() -> None:
    kernel = kernel_of(draw(PLAIN), PLAIN)
    full = kernel_of(draw(PLAIN), PLAIN._replace(diagonal_batch=False))
    wrong = [
        (kernel, (4,), (((3,), (0,)), ((), ())), "leaves the channels"),
        (kernel, (4,), (((), ()), ((-1,), (0,))), "leaves the channels"),
        (kernel, (5,), (((1,), (0,)), ((), ())), "that jax.lax.dot_general multiplies"),
        (kernel, (2,), (((1,), (1,)), ((), ())), "axes of a factor with 1 axes"),
        (kernel, (2,), (((1, 2), (0,)), ((), ())), "pairs of axes"),
    ]
    for k, shape, numbers, message in wrong:
        with pytest.raises(ValueError, match=message):
            k.dot_general(np.ones(shape), np.ones(shape), False, numbers)
    with pytest.raises(ValueError, match="as many axes as each other"):
        kernel.dot_general(np.ones(2), np.ones((2, 2)), False, wrong[3][2])
    with pytest.raises(ValueError, match="as many axes as each other"):
        kernel.dot_general(np.ones(2), None, False, wrong[3][2])
    with pytest.raises(ValueError, match="a free axis to replace"):
        full.dot_general(np.ones(3), np.ones(2), False, (((0,), (0,)), ((), ())))


def test_methods_under_jit() -> None:
    pair = draw(PLAIN)
    kernel = kernel_of(pair, PLAIN)
    mask = jnp.asarray(pair.z1[..., :1] > 0.5)
    constant = jnp.ones((2, 5))

    def many(k: wl.Kernel, m: jax.Array, c: jax.Array) -> wl.Kernel:
        k = k.mask(m, None)[1:, :, ::2].transpose((1, 0)).reverse()
        return k.dot_general(c, c, True, (((0,), (2,)), ((), ())))

    assert_same(jax.jit(many)(kernel, mask, constant), many(kernel, mask, constant))


def test_layers_take_reversed_kernels() -> None:
    x1, x2 = (np.random.default_rng(i).standard_normal((2, 2, 3, 4)) for i in (0, 1))
    first, rest = Dense(4, 1.2, 0.3), serial(Relu(), Dense(3))
    kernel = first.kernel_fn(x1, x2)
    expected = rest.kernel_fn(kernel)
    assert_same(rest.kernel_fn(kernel.reverse()), expected)
    diagonal = first.kernel_fn(x1, x2, diagonal_spatial=True)
    flat = serial(rest, Flatten()).kernel_fn(diagonal.reverse(), get="ntk")
    assert_close(flat, serial(first, rest, Flatten()).kernel_fn(x1, x2, "ntk"))
    # Moved axes mean the same to later layers.
    moved = rest.kernel_fn(kernel[:, 0])
    assert_close(moved.ntk, expected[:, 0].ntk)
    assert moved.shape1 == (2, 3, 3)
