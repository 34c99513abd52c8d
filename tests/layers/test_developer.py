"""Layers as their authors wrote them for neural-tangents: `requires`, `supports_masking`, masks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit import stax
from widelimit.engines.plan import input_signal, make_site, output_need
from widelimit.layers.base import Site
from widelimit.stax import (
    Bool,
    Conv,
    Dense,
    Diagonal,
    FanInSum,
    FanOut,
    Flatten,
    GlobalAvgPool,
    Relu,
    parallel,
    repeat,
    serial,
)

KEY = jax.random.PRNGKey(0)
X1, X2 = (np.random.default_rng(i).standard_normal((n, 3, 4, 2)) for i, n in ((0, 3), (1, 2)))


@stax.layer
@stax.supports_masking(remask_kernel=True)
def MyScale(c, **reqs):
    """A layer as in scripts."""
    reqs = {"batch_axis": 0, "channel_axis": -1, "diagonal_spatial": Diagonal()} | reqs

    def init_fn(rng, input_shape):
        return input_shape, ()

    def apply_fn(params, x, **kwargs):
        return x * c

    @stax.requires(**reqs)
    def kernel_fn(k, **kwargs):
        return k * c

    return init_fn, apply_fn, kernel_fn


@stax.layer
@stax.supports_masking(remask_kernel=False)
def Rows(seen):
    """The sum of all rows (the second axis), axis kept; notes the Kernels and masks it is given."""

    def init_fn(rng, input_shape):
        return (input_shape[0], 1, *input_shape[2:]), ()

    def apply_fn(params, x, mask=None, **kwargs):
        seen.append(mask)
        return x.sum(1, keepdims=True)

    @stax.requires(diagonal_spatial=Diagonal(input=Bool.NO), use_dropout=True)
    def kernel_fn(k, **kwargs):
        seen.append(k)
        ones = np.ones((1, k.shape1[1]))
        out = k.dot_general(ones, ones, False, (((1,), (1,)), ((), ())))
        order = (0, 3, 1, 2)  # (n, W, C, 1) to (n, 1, W, C)
        shapes = (tuple(s[i] for i in order) for s in (out.shape1, out.shape2))
        out = out.transpose((1, 0)).replace(channel_axis=3, mask1=None, mask2=None)
        return out.replace(**dict(zip(("shape1", "shape2"), shapes, strict=True)))

    def mask_fn(mask, input_shape):
        return jnp.broadcast_to(mask, (*input_shape[:3], mask.shape[3])).all(1, keepdims=True)

    return init_fn, apply_fn, kernel_fn, mask_fn


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [X2, None], ids=["x2", "None"])
def test_a_script_of_old(x2):
    assert MyScale.__name__ == "MyScale"
    assert MyScale(2.0)[2](X1, x2, "ntk").shape == ()
    first = Conv(3, (2, 2), padding="SAME"), Relu()
    actual = serial(*first, MyScale(3.0), Flatten(), Dense(1)).kernel_fn(X1, x2)
    expected = serial(*first, Flatten(), Dense(1, 3.0)).kernel_fn(X1, x2)
    for field in ("nngp", "ntk", "cov1", "cov2"):
        got, desired = getattr(actual, field), getattr(expected, field)
        assert (got is None) == (desired is None)
        assert got is None or np.allclose(got, desired, rtol=1e-12, atol=0)


@pytest.mark.usefixtures("x64")
def test_inside_combinators():
    net = serial(
        FanOut(2),
        parallel(serial(Dense(2), MyScale(2.0)), serial(Dense(2), MyScale(0.5))),
        FanInSum(),
        repeat(serial(MyScale(1.5), Dense(2)), 2),
    )
    same = serial(Dense(2, 4.25**0.5), Dense(2, 1.5), Dense(2, 1.5))
    assert_close(net.kernel_fn(X1, X2, "nngp"), same.kernel_fn(X1, X2, "nngp"))
    assert net.apply_fn(net.init_fn(KEY, X1.shape)[1], X1).shape == X1.shape


@pytest.mark.usefixtures("x64")
def test_traced_hyperparameters():
    def ntk(c):
        return serial(Dense(2), MyScale(c), Flatten()).kernel_fn(X1, X2, "ntk")

    expected = serial(Dense(2), Flatten()).kernel_fn(X1, X2, "ntk")
    assert_close(jax.jit(ntk)(2.0), 4 * expected)
    assert_close(jax.grad(lambda c: ntk(c)[0, 0])(3.0), 6 * expected[0, 0])


def sites(net, diagonal_spatial=False) -> Site:
    signal = input_signal(X1.shape, X2.shape, (0, 3))
    need = output_need(net.output_signal(signal), diagonal_spatial, own=True)
    return make_site(net, signal, need, (None, None), (None, None))


def test_equal_positions_only_where_they_suffice():
    full, zero = set(range(-2, 3)), {0}
    for layer, tail, expected in (
        (MyScale(2.0), (Flatten(),), zero),
        (MyScale(2.0), (GlobalAvgPool(),), full),
        (MyScale(2.0), (), full),
        (MyScale(2.0, diagonal_spatial=Diagonal(Bool.NO)), (Flatten(),), full),
        (MyScale(2.0, diagonal_spatial=Diagonal(Bool.MAYBE)), (Flatten(),), full),
    ):
        inside = sites(serial(Dense(2), layer, *tail)).children[1]
        assert set(inside.need_in.cross.axes[0]) == expected
        assert set(inside.need_in.own.axes[0]) == expected
    inside = sites(serial(Dense(2), MyScale(2.0)), diagonal_spatial=True).children[1]
    assert inside.need_in.cross.count == 1
    seen = []
    net = serial(Rows(seen), Flatten())
    net.kernel_fn(X1, X2, "nngp")
    assert not seen[0].diagonal_spatial


@pytest.mark.usefixtures("x64")
def test_kernels_of_equal_positions():
    diagonal = Dense(2).kernel_fn(X1, X2, diagonal_spatial=True)
    out = MyScale(2.0).kernel_fn(diagonal)
    assert out.diagonal_spatial
    assert_close(out.nngp, 4 * diagonal.nngp)
    with pytest.raises(ValueError, match="Kernel with all pairs of positions") as error:
        serial(MyScale(2.0, diagonal_spatial=Diagonal(Bool.NO))).kernel_fn(diagonal)
    assert "at serial" in error.value.__notes__


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [X2, None], ids=["x2", "None"])
def test_masks_of_ones_own(x2):
    x1 = np.where(np.arange(4)[:, None] == 1, 9.0, X1)
    x1[0, :2] = 9.0
    seen = []
    options = {"mask_constant": 9.0}
    net = serial(Rows(seen), Dense(2, 1.2, 0.3))
    kernel = net.kernel_fn(x1, x2, **options)
    hidden = np.where(x1 == 9, 0, x1)
    rows = hidden.sum(1, keepdims=True)
    mask = (x1 == 9).all(1, keepdims=True).all(-1, keepdims=True)
    np.testing.assert_array_equal(kernel.mask1, mask)
    assert seen[0].mask1.shape == x1.shape  # one mask per channel before the layer
    other = None if x2 is None else x2.sum(1, keepdims=True)
    expected = Dense(2, 1.2, 0.3).kernel_fn(rows, other).mask(mask, None)
    for field in ("nngp", "ntk", "cov1", "cov2"):
        actual, desired = getattr(kernel, field), getattr(expected, field)
        assert (actual is None) == (desired is None)
        assert actual is None or np.allclose(actual, desired, rtol=1e-12, atol=0)
    params = net.init_fn(KEY, x1.shape)[1]
    seen.clear()
    out = net.apply_fn(params, x1, **options)
    np.testing.assert_array_equal(out.mask, mask)
    np.testing.assert_array_equal(seen[0], x1 == 9)
    zeroed = np.where(mask, 0, rows)  # what the next layer sees
    assert_close(out.masked_value, Dense(2, 1.2, 0.3).apply_fn(params[1], zeroed))


@pytest.mark.usefixtures("x64")
def test_masks_pass_unchanged():
    x = np.where(X1 > 0.8, 9.0, X1)
    net = serial(MyScale(2.0), Dense(2, 1.1, 0.2))
    expected = Dense(2, 2.2, 0.2).kernel_fn(x, None, mask_constant=9.0)
    actual = net.kernel_fn(x, None, mask_constant=9.0)
    assert_close(actual.nngp, expected.nngp)
    np.testing.assert_array_equal(actual.mask1, expected.mask1)
    kernel = MyScale(2.0).kernel_fn(expected)  # its output is masked where its input is
    assert_close(kernel.ntk, 4 * expected.ntk)
    np.testing.assert_array_equal(kernel.mask1, expected.mask1)
    out = MyScale(2.0).apply_fn((), x, mask_constant=9.0)
    np.testing.assert_array_equal(out.mask, x == 9)
    assert_close(out.masked_value, np.where(x == 9, 0, 2 * x))
    triple = stax.supports_masking(remask_kernel=False)(lambda: tuple(MyScale(2.0)))()
    assert_close(serial(triple).kernel_fn(X1, X2, "nngp"), MyScale(2.0).kernel_fn(X1, X2, "nngp"))


def test_masks_that_do_not_fit():
    wider = stax.layer(
        stax.supports_masking(remask_kernel=True)(
            lambda: (
                lambda rng, shape: ((*shape[:-1], 7), ()),
                lambda params, x, **kwargs: jnp.concatenate([x] * 4, -1)[..., :7],
                lambda k, **kwargs: k,
            )
        )
    )
    assert wider().kernel_fn(X1).shape1 == (3, 3, 4, 7)
    with pytest.raises(ValueError, match="expected a mask for outputs of shape") as error:
        serial(wider()).kernel_fn(X1, mask_constant=X1[0, 0, 0, 0])
    assert "fourth function mask_fn" in str(error.value)
    masked = np.where(np.arange(4)[:, None] == 1, 9.0, X1)
    # One channel of masks fits any number of channels.
    assert serial(Dense(2), wider()).kernel_fn(masked, mask_constant=9.0).mask1.shape[-1] == 1


def test_requirements_are_checked_on_each_call():
    kernel = Dense(2).kernel_fn(X1, X2)
    identity = lambda k, **kwargs: k  # noqa: E731

    @stax.requires(batch_axis=0, channel_axis=-1, use_dropout=True, anything=3)
    def checked(k, **kwargs):
        """Documented."""
        return k

    assert checked.__doc__ == "Documented."
    assert checked(kernel) is kernel
    assert checked([kernel, kernel], pattern=None)[1] is kernel
    for name, axis in (("batch_axis", 1), ("channel_axis", 0), ("channel_axis", 7)):
        with pytest.raises(ValueError, match=f"expected a Kernel with {name}={axis}, got"):
            stax.requires(**{name: axis})(identity)(kernel)
    with pytest.raises(ValueError, match="diagonal_batch=False"):
        stax.requires(diagonal_batch=False)(identity)(kernel)
    stax.requires(diagonal_batch=False)(identity)(kernel.replace(diagonal_batch=False))
    diagonal = kernel.replace(diagonal_spatial=True)
    with pytest.raises(ValueError, match="all pairs of positions"):
        stax.requires(diagonal_spatial=Diagonal(Bool.NO))(identity)(diagonal)
    stax.requires(diagonal_spatial=Diagonal())(identity)(diagonal)
    with pytest.raises(TypeError, match="expected a Kernel, got ndarray"):
        checked(X1)
    for bad in ({"diagonal_spatial": True}, {"diagonal_batch": 0}, {"batch_axis": "0"}):
        with pytest.raises(TypeError):
            stax.requires(**bad)


@pytest.mark.usefixtures("x64")
def test_axes_come_from_the_requirements():
    x1, x2 = (np.moveaxis(x, (0, -1), (1, 0)) for x in (X1, X2))  # (C, n, H, W)
    layer = MyScale(2.0, batch_axis=1, channel_axis=0)
    assert_close(layer.kernel_fn(x1, x2, "nngp"), MyScale(2.0).kernel_fn(X1, X2, "nngp"))
    with pytest.raises(ValueError, match="expected a Kernel with batch_axis=1, got 0") as error:
        serial(Dense(2), layer).kernel_fn(X1)
    assert "at serial[1].MyScale" in error.value.__notes__
    with pytest.raises(NotImplementedError, match="keeps samples apart"):
        serial(Dense(2), MyScale(2.0, diagonal_batch=False)).kernel_fn(X1)


def test_refused_layers():
    with pytest.raises(TypeError, match="supports_masking"):
        stax.supports_masking(lambda: None)
    with pytest.raises(TypeError, match="three or four functions from"):
        stax.layer(lambda: (len, len))()
    lost = stax.layer(lambda: (*MyScale(1.0)[:2], lambda k: k.replace(cov2=None)))
    with pytest.raises(ValueError, match="expected a Kernel with cov2"):
        lost().kernel_fn(X1, X2)
    arrays = stax.layer(lambda: (*MyScale(1.0)[:2], lambda k: k.nngp))
    with pytest.raises(TypeError, match="expected a Kernel from kernel_fn"):
        arrays().kernel_fn(X1, X2)


def test_bools_and_diagonals():
    assert [b.value for b in Bool] == [0, 1, 2]
    assert all((a & b) is min(a, b) for a in Bool for b in Bool)
    assert Diagonal() == Diagonal(input=Bool.YES, output=Bool.NO)
    everything = [Diagonal(a, b) for a in Bool for b in Bool]
    for a, b, c in itertools.product(everything, repeat=3):
        assert (a >> b) >> c == a >> (b >> c)
    for a, b in itertools.product(everything, repeat=2):
        assert b << a == a >> b
        assert a & b == b & a
    conv, flatten = Diagonal(), Diagonal(Bool.YES, Bool.YES)
    pool, local = Diagonal(Bool.MAYBE, Bool.YES), Diagonal(Bool.YES, Bool.MAYBE)
    assert bool(conv >> conv >> flatten)
    assert not conv >> conv >> pool
    assert bool(local >> pool)
    assert not conv
    assert bool((conv >> flatten) & flatten)
    assert not (conv >> pool) & flatten
