"""Layers of one's own that change shapes: arrays are what counts, contradictions are refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit import plan, stax
from widelimit.stax import Bool, Dense, Diagonal, FanInSum, FanOut, GlobalAvgPool, Relu, serial

SPACE = np.random.default_rng(0).standard_normal((2, 4, 3, 5))
OTHER = np.random.default_rng(1).standard_normal((3, 4, 3, 5))
FIELDS = ("nngp", "ntk", "cov1", "cov2")


def own_layer(shape, move, stated=False, more=None, requires=None):
    """A layer as its author writes it: from a shape to a shape, and from arrays to arrays.

    Args:
      shape: what init_fn says of a shape.
      move: function of an array and its number of axes of samples.
      stated: whether the Kernel gets its new shapes, too.
      more: other changes of the Kernel.
      requires: what kernel_fn states.
    """

    @stax.layer
    def Own():
        def init_fn(key, input_shape):
            return shape(input_shape), ()

        def apply_fn(params, x, **kwargs):
            raise NotImplementedError

        def kernel_fn(k, **kwargs):
            leads = {"nngp": 2, "ntk": 2, "cov1": 1, "cov2": 1}
            arrays = {name: getattr(k, name) for name in leads}
            changes = {
                name: value if value is None or value.ndim == 0 else move(value, leads[name])
                for name, value in arrays.items()
            }
            if stated:
                changes |= {"shape1": shape(k.shape1), "shape2": shape(k.shape2)}
            return k.replace(**changes | (more or {}))

        return init_fn, apply_fn, stax.requires(**requires)(kernel_fn) if requires else kernel_fn

    return Own()


def every_second(value, lead):
    return value[(slice(None),) * lead + (slice(None, None, 2),) * 2]


def swapped(value, lead):
    """(n.., H, H, W, W) to (n.., W, W, H, H)."""
    return value.transpose(*range(lead), lead + 2, lead + 3, lead, lead + 1)


def doubled(value, lead):
    """(n.., H, H, W, W) to (n.., H, H, 2, 2, W, W): every row twice, in an axis of its own."""
    single = value[(slice(None),) * (lead + 2) + (None, None)]
    return single.repeat(2, lead + 2).repeat(2, lead + 3)


def corner(value, lead):
    """(n.., H, H, W, W) at one position."""
    return value[(slice(None),) * lead + (1, 1, 2, 2)]


def first_row(value, lead):
    return value[(slice(None),) * lead + (0, 0)]


MOVES = {
    "crop": (lambda s: (s[0], -(-s[1] // 2), *s[2:]), every_second, stax.Slice[:, ::2]),
    "row": (lambda s: (s[0], *s[2:]), first_row, stax.Slice[:, 0]),
    "corner": (lambda s: (s[0], s[3]), corner, stax.Slice[:, 1, 2]),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("stated", "x2"), [(False, OTHER), (True, None)], ids=["old-x2", "new-None"]
)
@pytest.mark.parametrize("name", MOVES)
def test_positions_are_taken(name, stated, x2):
    shape, move, index = MOVES[name]
    more = {"channel_axis": len(shape(SPACE.shape)) - 1} if stated else None
    ours, library = own_layer(shape, move, stated, more), stax.Index(index)
    for before, after in (
        ((Dense(8, 1.3, 0.4), Relu()), (Dense(3), Relu())),
        ((), (Dense(4, 1.3, 0.4), Relu(), Dense(3))),
        ((stax.Conv(8, (2, 1), padding="SAME"), Relu()), (GlobalAvgPool(), Dense(1))),
    ):
        if name == "corner" and isinstance(after[0], GlobalAvgPool):
            after = after[1:]
        actual = serial(*before, ours, *after).kernel_fn(SPACE, x2)
        expected = serial(*before, library, *after).kernel_fn(SPACE, x2)
        assert (actual.shape1, actual.shape2) == (expected.shape1, expected.shape2)
        assert (actual.batch_axis, actual.channel_axis) == (0, len(expected.shape1) - 1)
        for field in FIELDS:
            if getattr(expected, field) is not None:
                assert_close(getattr(actual, field), getattr(expected, field))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_axes_that_move_come_and_go(get):
    dense = serial(Dense(8, 1.3, 0.4), Relu())
    full = np.asarray(dense.kernel_fn(SPACE, OTHER, get))
    reverse = {"is_reversed": True}
    turned = lambda s: (s[0], s[2], s[1], s[3])  # noqa: E731
    for layer, expected in (
        (own_layer(turned, swapped), swapped(full, 2)),
        (own_layer(turned, lambda v, _: v, more=reverse), swapped(full, 2)),
        (own_layer(lambda s: (*s[:2], 2, *s[2:]), doubled), doubled(full, 2)),
    ):
        assert_close(serial(dense, layer).kernel_fn(SPACE, OTHER, get), expected)
        # The layers behind see the shapes that there are: a pool over the second axis alone.
        window = (1, expected.shape[4]) + (1,) * (expected.ndim // 2 - 3)
        pooled = serial(dense, layer, stax.AvgPool(window)).kernel_fn(SPACE, OTHER, get)
        assert_close(pooled, expected.mean((4, 5), keepdims=True))
        assert_close(
            serial(dense, layer, GlobalAvgPool()).kernel_fn(SPACE, OTHER, get),
            full.mean((2, 3, 4, 5)),
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("axes", "order", "shape"),
    [
        ((0, 1), (0, 3, 1, 2), lambda s: (s[0], s[1], s[3])),
        ((3, 2), (1, 2, 3, 0), lambda s: s[1:]),
        ((3, 0), (3, 1, 2, 0), lambda s: (s[0], *s[2:])),
    ],
)
def test_axes_in_other_places(axes, order, shape):
    """A layer that drops the first spatial axis, wherever samples and channels stand."""
    batch, channel = axes
    x1, x2 = SPACE.transpose(order), OTHER.transpose(order)
    layer = own_layer(shape, first_row)
    dense = Dense(4, 1.2, 0.3, batch_axis=batch, channel_axis=channel)
    actual = serial(dense, layer).kernel_fn(x1, x2)
    expected = Dense(4, 1.2, 0.3).kernel_fn(SPACE[:, 0], OTHER[:, 0])
    assert actual.shape1 == shape((*x1.shape[:channel], 4, *x1.shape[channel + 1 :]))
    for field in FIELDS:
        assert_close(getattr(actual, field), getattr(expected, field))


def test_axes_between_others():
    layer = own_layer(lambda s: s[1:], first_row, requires={"batch_axis": 2, "channel_axis": 0})
    with pytest.raises(NotImplementedError, match=r"keep 4 axes where .* \(2, 0\) .* got 3"):
        layer.kernel_fn(SPACE)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spatial", [False, True])
def test_equal_positions_only(spatial):
    """A layer that takes Kernels of equal positions crops those and whole ones."""

    def crop(value, lead):
        kept = (value.ndim - lead) // 2 if value.ndim - lead > 2 else 1
        return value[(slice(None),) * lead + (slice(None, None, 2),) * kept]

    states = {"diagonal_spatial": Diagonal(input=Bool.YES)}
    layer = own_layer(MOVES["crop"][0], crop, requires=states)
    behind = GlobalAvgPool() if spatial else stax.Flatten()
    before = Dense(8, 1.3, 0.4), Relu()
    for x2 in (OTHER, None):
        actual = serial(*before, layer, behind, Dense(1)).kernel_fn(SPACE, x2, "ntk")
        library = stax.Index(stax.Slice[:, ::2])
        assert_close(actual, serial(*before, library, behind, Dense(1)).kernel_fn(SPACE, x2, "ntk"))


@pytest.mark.usefixtures("x64")
def test_branches_and_samples():
    crop = own_layer(*MOVES["crop"][:2])
    library = stax.Index(stax.Slice[:, ::2])

    def net(layer):
        branches = stax.parallel(
            serial(layer, Dense(4)),
            serial(Relu(), Dense(4, 0.7), layer),
            serial(layer, Dense(4, 0.3)),
        )
        return serial(Dense(8, 1.3), Relu(), Dense(4), FanOut(3), branches, FanInSum(), Relu())

    expected = net(library).kernel_fn(SPACE, OTHER, FIELDS)
    for actual, desired in zip(net(crop).kernel_fn(SPACE, OTHER, FIELDS), expected, strict=True):
        assert_close(actual, desired)
    some = lambda v, lead: v[(slice(None, None, 2),) * lead]  # noqa: E731
    half = own_layer(lambda s: (-(-s[0] // 2), *s[1:]), some)
    for x2, kept in ((OTHER, OTHER[::2]), (None, None)):
        actual = serial(Dense(4), Relu(), half, Dense(2)).kernel_fn(SPACE, x2)
        expected = serial(Dense(4), Relu(), Dense(2)).kernel_fn(SPACE[::2], kept)
        assert actual.shape1 == expected.shape1
        assert_close(actual.ntk, expected.ntk)
    with pytest.raises(ValueError, match=r"got serial\[1\]\.Own, which combines samples"):
        plan(serial(Dense(4), half), SPACE.shape).check_tiles()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [OTHER, None], ids=["x2", "None"])
def test_masks_of_a_layer_that_crops(x2):
    @stax.layer
    def Crop():
        layer = own_layer(*MOVES["crop"][:2])

        def apply_fn(params, x, **kwargs):
            return x[:, ::2]

        def mask_fn(mask, input_shape):
            return jnp.broadcast_to(mask, (*input_shape[:3], mask.shape[3]))[:, ::2]

        return layer.init_function, apply_fn, layer.kernel_function, mask_fn

    x1 = SPACE.copy()
    x1[0, 2:] = 9.0
    x1[1, :, 0] = 9.0
    nets = [
        serial(Dense(8, 1.2, 0.3), Relu(), layer, GlobalAvgPool(), Dense(1))
        for layer in (Crop(), stax.Index(stax.Slice[:, ::2]))
    ]
    actual, expected = (net.kernel_fn(x1, x2, "ntk", mask_constant=9.0) for net in nets)
    assert_close(actual, expected)


def plain(shape, **changes):
    """A layer whose kernel_fn changes nothing but what is given."""
    return own_layer(shape, lambda v, _: v, more=changes)


def same(shape):
    return shape


def keep(value, lead):
    return value


CROPPED, TURNED = MOVES["crop"][0], lambda s: (s[0], s[2], s[1], s[3])
STALE_OWN = own_layer(CROPPED, lambda v, lead: every_second(v, 2) if lead == 2 else v)
WHOLE = "nngp of shape (2, 2, 4, 4, 3, 3)"


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        # Arrays that contradict init_fn.
        (own_layer(same, first_row), (WHOLE, "(2, 4, 3, 8)", "init_fn", "got nngp of shape (2, 2")),
        (own_layer(CROPPED, keep), ("(2, 2, 2, 2, 3, 3)", "(2, 2, 3, 8)", f"got {WHOLE}")),
        (own_layer(TURNED, keep), ("(2, 2, 3, 3, 4, 4)", "(2, 3, 4, 8)", f"got {WHOLE}")),
        (own_layer(lambda s: (1, *s[1:]), keep), ("(1, 1, 4, 4, 3, 3)", f"got {WHOLE}")),
        # Arrays that contradict each other.
        (STALE_OWN, ("cov1 of shape (2, 2, 2, 3, 3)", "got cov1 of shape (2, 4, 4, 3, 3)")),
        (own_layer(same, lambda v, lead: v[:, :1]), (WHOLE, "got nngp of shape (2, 1, 4")),
        # Shapes and axes that contradict init_fn.
        (plain(same, shape1=(2, 2, 3, 8)), ("shape1=(2, 4, 3, 8)", "got (2, 2, 3, 8)")),
        (plain(same, shape2=(3, 4, 3, 8)), ("shape2=(2, 4, 3, 8)", "got (3, 4, 3, 8)")),
        (plain(same, shape1=(2, 4, 3, 7)), ("shape1=(2, 4, 3, 8)", "got (2, 4, 3, 7)")),
        (plain(same, channel_axis=1), ("axes (0, 3)", "(2, 4, 3, 8)", "got (0, 1)")),
        (plain(lambda s: s[:1]), ("a batch and a channel axis from init_fn, got 1 axes",)),
        # Layouts that contradict the arrays.
        (plain(same, diagonal_spatial=True), ("(2, 2, 4, 3)", f"got {WHOLE}", "spatial=True")),
        (plain(same, is_reversed=True), ("(2, 2, 3, 3, 4, 4)", f"got {WHOLE}", "reversed=True")),
        (plain(same, diagonal_batch=False), ("cov1 of shape (2, 2, 4", "got cov1 of shape (2, 4")),
        (plain(same, nngp=None), ("a Kernel with nngp, got None",)),
        (plain(same, cov1=None), ("a Kernel with cov1, got None",)),
    ],
)
def test_contradictions_are_refused_with_both_shapes(layer, parts):
    with pytest.raises(ValueError, match="expected") as error:
        serial(Dense(8), Relu(), layer, GlobalAvgPool()).kernel_fn(SPACE, None, "nngp")
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert any("serial[2].Own" in note for note in error.value.__notes__)


def test_an_ntk_of_another_shape():
    layer = plain(same)
    broken = (
        layer.init_function,
        layer.apply_function,
        lambda k: k.replace(ntk=None if k.ntk is None else k.ntk[:, :, ::2, ::2]),
    )
    net = serial(Dense(8), Relu(), broken)
    with pytest.raises(
        ValueError, match=r"ntk of shape \(2, 2, 4, 4, 3, 3\).*got ntk .*\(2, 2, 2, 2"
    ):
        net.kernel_fn(SPACE)
    assert net.kernel_fn(SPACE, None, "nngp").shape == (2, 2, 4, 4, 3, 3)


def test_kernels_and_branches_that_are_not_what_init_says():
    one = (same, lambda p, x, **kwargs: x, lambda k: [k, k])
    with pytest.raises(ValueError, match=r"one Kernel from .*init_fn, got a list or tuple of 2"):
        serial(Dense(8), (lambda key, s: (s, ()), *one[1:])).kernel_fn(SPACE)
    two = (lambda key, s: ([s, s], ()), one[1], lambda k: k)
    with pytest.raises(ValueError, match=r"a list or tuple of 2 Kernels .*, got one Kernel"):
        serial(Dense(8), two).kernel_fn(SPACE)
    masking = plain(same)
    hiding = (
        masking.init_function,
        masking.apply_function,
        lambda k: k.mask(np.ones((1, 4, 3, 1), bool), None),
    )
    with pytest.raises(NotImplementedError, match="masks from a fourth function"):
        serial(Dense(8), hiding).kernel_fn(SPACE)


@pytest.mark.usefixtures("x64")
def test_an_nngp_without_the_rest():
    """Where kernel_fn leaves cov1 as it was, the diagonal of the NNGP stays what it says."""
    before = serial(Dense(8, 1.3, 0.4), Relu())
    double = (
        lambda key, s: (s, ()),
        lambda p, x, **kwargs: 2**0.5 * x,
        lambda k: k.replace(nngp=2 * k.nngp, ntk=None),
    )
    net = serial(before, double)
    expected = before.kernel_fn(SPACE)
    actual = net.kernel_fn(SPACE)
    assert_close(actual.nngp, 2 * expected.nngp)
    assert_close(actual.cov1, 2 * expected.cov1)
    assert actual.ntk is None
    assert net.kernel_fn(SPACE, None, "ntk") is None
    # A join of branches one of which has no NTK has none.
    branch = serial(double, Dense(3))
    for branches in ((branch, Dense(3)), (Dense(3), branch)):
        for join in (FanInSum(), stax.FanInProd(), stax.FanInConcat(-1), stax.FanInConcat(1)):
            joined = serial(before, FanOut(2), stax.parallel(*branches), join)
            assert joined.kernel_fn(SPACE, None, "ntk") is None
            assert joined.kernel_fn(SPACE, None, "nngp") is not None


@pytest.mark.parametrize("layer", [Dense(3), Relu(), GlobalAvgPool()])
def test_kernels_given_with_old_shapes(layer):
    kernel = Dense(8).kernel_fn(SPACE, OTHER)
    leads = (("nngp", 2), ("ntk", 2), ("cov1", 1), ("cov2", 1))
    stale = kernel.replace(**{n: every_second(getattr(kernel, n), lead) for n, lead in leads})
    with pytest.raises(ValueError, match="shape1 and shape2 say") as error:
        layer.kernel_fn(stale)
    for part in (
        "(2, 3, 4, 4, 3, 3)",
        "(2, 4, 3, 8) and (3, 4, 3, 8)",
        "got nngp of shape (2, 3, 2",
    ):
        assert part in str(error.value)
    fresh = stale.replace(shape1=(2, 2, 3, 8), shape2=(3, 2, 3, 8))
    expected = layer.kernel_fn(Dense(8).kernel_fn(SPACE[:, ::2], OTHER[:, ::2]), None, "nngp")
    assert_close(layer.kernel_fn(fresh, None, "nngp"), expected)
    with pytest.raises(ValueError, match=r"got nngp of shape \(2, 3, 3, 3\)"):
        layer.kernel_fn(kernel.replace(nngp=first_row(kernel.nngp, 2)))
