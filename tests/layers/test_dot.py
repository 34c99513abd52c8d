"""DotGeneral: lax.dot_general, kernels as a congruence on both copies, samples, masks, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.brute_force import PLAIN, same_samples, through
from tests.monte_carlo import agrees, compare
from tests.tolerance import assert_close
from widelimit.stax import Conv, Dense, DotGeneral, Flatten, GlobalAvgPool, Identity, Relu, serial

KEY = jax.random.PRNGKey(0)
X1 = np.random.default_rng(0).standard_normal((2, 4, 3, 2))
X2 = np.random.default_rng(1).standard_normal((2, 4, 3, 2))
BASE = Conv(3, (2, 2), padding="SAME", W_std=1.3, b_std=0.2)


def constant(*shape):
    return np.random.default_rng(2).standard_normal(shape)


def numbers(contracting=((), ()), batch=((), ())):
    return contracting, batch


def check(layer, x2=True, tail=None, axes_out=PLAIN, base=BASE):
    other = X2 if x2 else None
    expected = through(layer, base.kernel_fn(X1, other, diagonal_batch=False), axes_out)
    actual = serial(base, layer).kernel_fn(X1, other)
    assert (actual.shape1, actual.shape2) == (expected.shape1, expected.shape2)
    assert (actual.batch_axis, actual.channel_axis) == (expected.batch_axis, expected.channel_axis)
    for field in ("nngp", "ntk", "cov1") + (("cov2",) if x2 else ()):
        own = getattr(expected, field)
        diagonal = field.startswith("cov") and actual.diagonal_batch
        assert_close(getattr(actual, field), same_samples(own) if diagonal else own)
    if tail is not None:
        out = serial(base, layer, tail).kernel_fn(X1, other, ("nngp", "ntk"))
        wanted = tail.kernel_fn(expected, None, ("nngp", "ntk"))
        assert_close(out.nngp, wanted.nngp)
        assert_close(out.ntk, wanted.ntk)


CONTRACTED = DotGeneral(rhs=constant(4, 3), dimension_numbers=numbers(((1,), (0,))))
PER_POSITION = DotGeneral(
    lhs=constant(5, 3, 4), dimension_numbers=numbers(((2,), (1,)), ((1,), (2,)))
)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_contracted_space():
    # (2, 4, 3, 3) -> (2, 3, 3, 3): axis 2 of the input, channels, free axis of the constant
    tail = serial(Relu(), Conv(4, (2, 2), dimension_numbers=("NHCW", "HWIO", "NHWC")), Flatten())
    check(CONTRACTED, True, tail, (0, 2))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_matrices_per_position():
    # batch axis 2 of the input comes first, then the free axis of the constant
    tail = serial(Dense(4, 1.2, batch_axis=2), Relu(), GlobalAvgPool(batch_axis=2))
    check(PER_POSITION, False, tail, (2, 3))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("x2", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_combined_samples(x2):
    layer = DotGeneral(lhs=constant(5, 2), dimension_numbers=numbers(((1,), (0,))))
    check(layer, x2, serial(Dense(4, 1.2, 0.1), Relu(), Flatten()))


CASES = {
    "number": (2.5, numbers(), "lhs", PLAIN),
    "new axes behind": (constant(2, 3), numbers(), "rhs", (0, 3)),
    "new axes in front": (constant(2, 3), numbers(), "lhs", (2, -1)),
    "both axes": (constant(3, 4), numbers(((1, 2), (1, 0))), "rhs", PLAIN),
    "elementwise": (constant(4, 3), numbers(batch=((1, 2), (0, 1))), "rhs", (2, 3)),
    "elementwise swapped": (constant(4, 3), numbers(batch=((1, 0), (2, 1))), "lhs", (2, 3)),
    "scaled samples": (constant(2), numbers(batch=((0,), (0,))), "rhs", PLAIN),
    "samples and space": (constant(2, 4, 5), numbers(((0, -3), (0, 1))), "rhs", (2, 1)),
    "samples batched, space contracted": (
        constant(3, 2, 5),
        numbers(((2,), (0,)), ((0,), (1,))),
        "rhs",
        (0, 2),
    ),
    "samples contracted, space batched": (
        constant(3, 2, 5, 2),
        numbers(((1,), (0,)), ((0,), (2,))),
        "lhs",
        (1, 4),
    ),
}


@pytest.mark.slow
@pytest.mark.usefixtures("x64", "reference_engine")
@pytest.mark.parametrize("x2", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_kernel_sweep(name, x2):
    value, dims, side, axes_out = CASES[name]
    layer = DotGeneral(dimension_numbers=dims, **{side: value})
    batch, channel = axes_out
    ndim = jax.eval_shape(layer.apply_fn, (), jax.ShapeDtypeStruct((2, 4, 3, 3), float)).ndim
    axes = {"batch_axis": batch % ndim, "channel_axis": channel % ndim}
    tail = serial(Dense(3, 1.1, 0.2, **axes), Relu(), GlobalAvgPool(**axes))
    check(layer, x2, tail, axes_out)


@pytest.mark.usefixtures("x64")
def test_untouched_axes_keep_their_offsets():
    from widelimit.covariance.offsets import Need, Offsets
    from widelimit.covariance.signal import Signal

    signal = Signal((2, 4, 3, 6), (2, 4, 3, 6), 0, 3)
    need = CONTRACTED.needs(Need.zero(2), signal)
    assert need.cross.axes == (Offsets.full((4,)).axes[0], (0,))
    assert CONTRACTED.moduli((4, 3), signal) == (3, None)
    assert PER_POSITION.moduli((4, 3), signal) == (3, None)
    elementwise = DotGeneral(rhs=constant(4, 3), dimension_numbers=numbers(batch=((2, 1), (1, 0))))
    wanted = Need(Offsets(((0, 1), (-3, 0))), Offsets.none(2))
    assert elementwise.needs(wanted, signal).cross.axes == ((-3, 0), (0, 1))
    assert not elementwise.needs(wanted, signal).own.wanted


@pytest.mark.usefixtures("x64")
def test_constants_are_traced_leaves():
    x = jnp.asarray(X1[:, :, 0])

    def total(matrix):
        layer = DotGeneral(rhs=matrix, dimension_numbers=numbers(((1,), (0,))))
        net = serial(Dense(3), layer, Dense(3, channel_axis=1), Relu())
        return net.kernel_fn(x, None, "nngp").sum()

    a, step = jnp.asarray(constant(4, 3)), 1e-5
    grad = jax.jit(jax.grad(total))(a)
    moved = total(a.at[1, 2].add(step)) - total(a.at[1, 2].add(-step))
    assert_close(grad[1, 2], moved / (2 * step), rtol=1e-6)
    scalar = DotGeneral(lhs=2)
    assert jax.tree.leaves(scalar) == [2.0]
    kernel = serial(Dense(3), scalar).kernel_fn(x, None, "ntk", channel_axis=2)
    assert_close(kernel, 4 * Dense(3).kernel_fn(x, None, "ntk"))


def test_finite_layer_is_dot_general():
    x = jnp.asarray(X1, jnp.float32)
    for value, dims, side, _ in CASES.values():
        layer = DotGeneral(dimension_numbers=dims, **{side: value})
        array = jnp.asarray(value, x.dtype)
        plain = jax.tree.map(lambda a: a % 4, dims)
        factors = (x, array) if side == "rhs" else (array, x)
        if np.ndim(value):
            shape = jax.eval_shape(lambda a, b, n=plain: jax.lax.dot_general(a, b, n), *factors)
            assert layer.init_fn(KEY, x.shape)[0] == shape.shape
            assert_close(layer.apply_fn((), x), jax.lax.dot_general(*factors, plain))
    assert_close(DotGeneral(lhs=2.5).apply_fn((), x), 2.5 * x)
    assert DotGeneral().apply_fn((), x) is x
    assert DotGeneral().init_fn(KEY, (-1, 3))[0] == (-1, 3)
    assert DotGeneral().kernel_fn(X1[:, 0, 0]).nngp.shape == (2, 2)
    assert CONTRACTED.init_fn(KEY, (-1, 4, 3, 2))[0] == (-1, 3, 2, 3)
    assert_close(DotGeneral(rhs=0.5).apply_fn((), jnp.arange(3)), 0.5 * np.arange(3.0))


@pytest.mark.usefixtures("x64")
def test_masked_where_all_that_contributes_is():
    x = np.ones((2, 3, 1))
    x[0, :2] = x[1, 1:] = 9.0
    matrix = np.array([[1.0, 0.0], [0.5, 0.0], [0.0, -2.0]])
    layer = DotGeneral(rhs=matrix, dimension_numbers=numbers(((1,), (0,))), channel_axis=2)
    out = layer.apply_fn((), x, mask_constant=9.0)
    assert_close(out.masked_value[:, 0], [[0, -2], [1, 0]])
    np.testing.assert_array_equal(out.mask[:, 0], [[True, False], [False, True]])
    net = serial(Dense(4, b_std=1.0), layer, Dense(1, 1.0, 0.5, channel_axis=1))
    kernel = net.kernel_fn(x, None, "nngp", mask_constant=9.0)
    assert_close(kernel[:, :, 0, 0], np.array([[0, 0], [0, 2 + 0.25]]))


@pytest.mark.slow
def test_limit_of_finite_networks():
    def build(width, out):
        conv = Conv(width, (2,), padding="SAME", W_std=1.3, b_std=0.2)
        dot = DotGeneral(rhs=constant(4, 2), dimension_numbers=numbers(((1,), (0,))))
        return serial(
            conv, Relu(), dot, Dense(width, channel_axis=1), Relu(), Flatten(), Dense(out)
        )

    assert agrees(compare(build, X1[:, :, 0], X2[:, :, 0])).all()


def test_refusals():
    with pytest.raises(ValueError, match="expected lhs or rhs, got both"):
        DotGeneral(lhs=1.0, rhs=2.0)
    with pytest.raises(TypeError):
        DotGeneral(2.0)
    with pytest.raises(TypeError, match="a constant of real numbers"):
        DotGeneral(lhs=np.ones(2, complex))
    for dims in (((), ()), (((0,), ()), ((), ())), "ab", 3):
        with pytest.raises(ValueError, match="expected dimension_numbers"):
            DotGeneral(lhs=np.ones(2), dimension_numbers=dims)

    def refused(match, value, dims, net=BASE):
        layer = DotGeneral(rhs=value, dimension_numbers=dims)
        with pytest.raises(ValueError, match=match) as caught:
            serial(net, layer).kernel_fn(X1)
        assert "at serial[1].DotGeneral" in caught.value.__notes__

    refused("without the channel axis 3", np.ones(3), numbers(((3,), (0,))))
    refused("without the channel axis 3", np.ones(3), numbers(batch=((3,), (0,))))
    refused("a free axis where it sums over the samples", np.ones(2), numbers(((0,), (0,))))
    refused("5 entries along axis 1 of the input", np.ones(5), numbers(((1,), (0,))))
    refused("name each axis at most once", np.ones((4, 4)), numbers(((1, 1), (0, 1))))
    refused("axes of a factor with 4 axes", np.ones(4), numbers(((4,), (0,))), Identity())
    text = repr(DotGeneral(rhs=np.ones((2, 3)), dimension_numbers=numbers(((1,), (0,)))))
    assert text == "DotGeneral(rhs=float64[2, 3], dimension_numbers=(((1,), (0,)), ((), ())))"
    assert repr(DotGeneral()) == "DotGeneral()"
