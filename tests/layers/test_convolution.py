"""Convolutions: the finite layers against jax.lax, the infinite ones by their properties."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit import stax
from widelimit.stax import Conv, ConvLocal, ConvTranspose, Dense, serial

KEY = jax.random.PRNGKey(0)
RNG = np.random.default_rng(0)
BOTH = ("nngp", "ntk")


def images(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def parameters(layer: Any, x: np.ndarray) -> Any:
    shape, params = layer.init_fn(KEY, x.shape)
    assert layer.apply_fn(params, x).shape == shape
    return params


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 2), (1, 1))])
@pytest.mark.parametrize(
    ("strides", "dilation", "numbers"),
    [
        (None, None, None),
        ((2, 1), None, ("NHWC", "HWIO", "NHWC")),
        ((1, 2), (2, 1), ("NCHW", "OIWH", "WNHC")),
    ],
)
def test_conv_is_that_of_lax(padding: Any, strides: Any, dilation: Any, numbers: Any) -> None:
    x = images(2, 3, 6, 5) if numbers and numbers[0] == "NCHW" else images(2, 6, 5, 3)
    layer = Conv(4, (3, 2), strides, padding, 1.3, 0.5, numbers, rhs_dilation=dilation)
    weights, bias = parameters(layer, x)
    plain = jax.lax.conv_general_dilated(
        x,
        weights,
        strides or (1, 1),
        padding,
        rhs_dilation=dilation,
        dimension_numbers=numbers or ("NHWC", "HWIO", "NHWC"),
    )
    assert_close(layer.apply_fn((weights, bias), x), 1.3 / 18**0.5 * plain + 0.5 * bias)
    standard = Conv(4, (3, 2), strides, padding, 1.3, 0.5, numbers, "standard", (1, 1),
                    rhs_dilation=dilation)  # fmt: skip
    assert_close(standard.apply_fn((weights, bias), x), plain + bias)


def test_circular_conv_wraps_around() -> None:
    x = images(2, 5, 4, 3)
    layer = Conv(4, (3, 2), (1, 2), "CIRCULAR")
    params = parameters(layer, x)
    wrapped = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="wrap")
    valid = Conv(4, (3, 2), (1, 2), "VALID").apply_fn(params, wrapped)
    assert_close(layer.apply_fn(params, x), valid)
    rolled = layer.apply_fn(params, np.roll(x, 1, axis=1))
    assert_close(rolled, np.roll(layer.apply_fn(params, x), 1, axis=1))


def test_no_spatial_axes_is_dense() -> None:
    x = images(3, 4)
    layer, dense = Conv(5, (), W_std=1.2, b_std=0.3), Dense(5, 1.2, 0.3)
    params = parameters(layer, x)
    assert_close(layer.apply_fn(params, x), dense.apply_fn(params, x))
    for get in BOTH:
        assert_close(layer.kernel_fn(x, None, get), dense.kernel_fn(x, None, get))


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((1, 2), (0, 1))])
@pytest.mark.parametrize("strides", [None, (2, 3), (4, 1)])
def test_transposed_conv_is_that_of_lax(padding: Any, strides: Any) -> None:
    x = images(2, 3, 4, 3)
    for dilation in (None, (1, 2)):
        layer = ConvTranspose(4, (3, 2), strides, padding, rhs_dilation=dilation)
        params = parameters(layer, x)
        plain = jax.lax.conv_transpose(
            x, params[0], strides or (1, 1), padding, rhs_dilation=dilation
        )
        assert_close(layer.apply_fn(params, x), plain / 18**0.5)


def test_circular_transposed_conv_is_the_adjoint() -> None:
    y, x = images(2, 6, 4, 4), images(2, 3, 4, 3)
    forward = Conv(3, (3, 2), (2, 1), "CIRCULAR")
    adjoint = ConvTranspose(4, (3, 2), (2, 1), "CIRCULAR")
    weights = parameters(adjoint, x)[0]
    swapped = weights.swapaxes(2, 3)  # the filter from 4 to 3 channels
    _, vjp = jax.vjp(lambda y: forward.apply_fn((swapped, None), y) * 24**0.5, y)
    assert_close(adjoint.apply_fn((weights, None), x) * 18**0.5, vjp(x)[0])


@pytest.mark.parametrize("kind", [Conv, ConvTranspose])
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", ((1, 0),)])
def test_kernels_read_what_the_finite_layer_reads(kind: Any, padding: Any) -> None:
    """With a filter of ones the finite layer is the linear map of the stencil, to the position."""
    x = np.arange(1.0, 7.0, dtype=np.float32)
    for size, stride, dilation in [
        (3, 2, 1),
        (2, 2, 1),
        (3, 1, 1),
        (2, 3, 1),
        (4, 2, 1),
        (3, 2, 2),
    ]:
        layer = kind(1, (size,), (stride,), padding, rhs_dilation=(dilation,))
        params = jnp.ones((size, 1, 1)), None
        plain = layer.apply_fn(params, x[None, :, None])[0, :, 0] * size**0.5
        (stencil,) = layer._stencils((6,))
        assert_close(plain, stencil.matrix() @ x)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
def test_local_conv_has_weights_per_position(padding: str) -> None:
    x = images(2, 4, 3, 3)
    layer = ConvLocal(4, (3, 2), (2, 1), padding, 1.3, 0.5)
    weights, bias = parameters(layer, x)
    assert weights.shape == (*bias.shape[1:3], 18, 4)
    wrapped = x if padding != "CIRCULAR" else np.pad(
        x, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="wrap"
    )  # fmt: skip
    patches = jax.lax.conv_general_dilated_patches(
        wrapped, (3, 2), (2, 1), padding if padding != "CIRCULAR" else "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    expected = jnp.einsum("nhwi,hwio->nhwo", patches, weights) * 1.3 / 18**0.5 + 0.5 * bias
    assert_close(layer.apply_fn((weights, bias), x), expected)


def test_local_conv_of_standard_width_was_not_scaled() -> None:
    """The finite layer has s_out times as many channels, as Conv has."""
    x = images(2, 4, 2)
    options: dict[str, Any] = {"parameterization": "standard", "s": (1, 3)}
    assert Conv(4, (2,), **options).init_fn(KEY, x.shape)[0] == (2, 3, 12)
    assert ConvLocal(4, (2,), **options).init_fn(KEY, x.shape)[0] == (2, 3, 12)
    assert parameters(ConvLocal(4, (2,), **options), x)[0].shape == (3, 4, 12)


@pytest.mark.parametrize(
    "options", [{}, {"b_std": 0.4}, {"b_std": 0.4, "parameterization": "standard", "s": (2, 3)}]
)
@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
@pytest.mark.parametrize("kind", [Conv, ConvTranspose, ConvLocal])
def test_weights_of_another_number_of_outputs(kind: Any, padding: str, options: Any) -> None:
    """The finite layer has as many outputs as its weights."""
    x = images(2, 3, 4, 5)  # N, C, W, H
    numbers = ("NCWH", "HOWI", "NHWC")
    layer, wide = (
        kind(width, (3, 2), (2, 1), padding, 1.3, dimension_numbers=numbers, **options)
        for width in (4, 7)
    )
    params = parameters(wide, x)
    assert_close(layer.apply_fn(params, x), wide.apply_fn(params, x))
    other = parameters(layer, images(2, 2, 4, 5))  # another number of inputs
    with pytest.raises(ValueError, match="expected weights of shape"):
        layer.apply_fn(other, x)
    with pytest.raises(ValueError, match="expected weights of shape"):
        layer.apply_fn((params[0][0], params[1]), x)


def test_hidden_layers_of_another_width() -> None:
    x = images(2, 6, 6, 3)

    def net(n: int, out: int) -> Any:
        hidden = Conv(n, (3, 3), b_std=0.1), stax.Relu(), ConvTranspose(n, (2, 2)), stax.Gelu()
        return serial(*hidden, ConvLocal(n, (2, 2)), stax.Flatten(), Dense(out, 1.2, 0.3))

    narrow, wide = net(4, 1), net(9, 5)
    params = wide.init_fn(KEY, x.shape)[1]
    assert_close(narrow.apply_fn(params, x), wide.apply_fn(params, x))
    outputs = narrow.apply_fn(params, np.where(x > 1, 9.0, x), mask_constant=9.0)
    assert outputs.masked_value.shape == (2, 5)


@pytest.mark.usefixtures("x64")
@pytest.mark.optimised
def test_repeat_of_a_conv_failed() -> None:
    x = images(3, 5, 2)
    block = serial(Conv(2, (3,), padding="SAME", W_std=1.3, b_std=0.2), stax.Relu())
    tail = (stax.GlobalAvgPool(),)
    repeated = serial(stax.repeat(block, 3), *tail).kernel_fn
    unrolled = serial(*[block] * 3, *tail).kernel_fn(x, None, BOTH)
    for kernel in (repeated(x, None, BOTH), jax.jit(lambda x: repeated(x, None, BOTH))(x)):
        for get in BOTH:
            assert_close(getattr(kernel, get), getattr(unrolled, get))
    alone = stax.repeat(Conv(2, (3,), padding="SAME"), 2)
    assert alone.kernel_fn(x, None, "nngp").shape == (3, 3, 5, 5)


def _masked(pool: Any) -> Any:
    conv = Conv(2, (3, 3), padding="SAME", W_std=1.3, b_std=0.5)
    return serial(conv, stax.Cos(), conv, stax.Relu(), pool, Dense(2))


@pytest.mark.usefixtures("x64")
def test_masked_border_equals_the_smaller_image() -> None:
    x = np.asarray(images(3, 4, 4, 2), np.float64)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 2), (0, 0)), constant_values=9.0)
    net = _masked(stax.GlobalAvgPool())
    for get in BOTH:
        small = net.kernel_fn(x[:2], x[2:], get)
        large = net.kernel_fn(padded[:2], padded[2:], get, mask_constant=9.0)
        assert_close(large, small)
    params = net.init_fn(KEY, x.shape)[1]
    out = net.apply_fn(params, padded, mask_constant=9.0)
    assert_close(out.masked_value, net.apply_fn(params, x))
    assert not np.any(out.mask)


def test_masks_are_read_at_the_centres_of_windows() -> None:
    mask = np.zeros((1, 6, 6, 2), bool)
    mask[0, 2:4, 4] = True
    mask[0, 0, 0, 0] = True  # one channel of two
    full = Conv(3, (3, 3), (2, 1), "SAME").mask(jnp.asarray(mask), mask.shape)
    assert full.shape == (1, 3, 6, 1)
    np.testing.assert_array_equal(np.argwhere(full[0, ..., 0]), [[1, 4]])
    assert not Conv(3, (3, 3), padding="VALID").mask(jnp.asarray(mask), mask.shape)[0, 0, 0]
    same = Conv(3, (3, 3), padding="SAME").mask(jnp.asarray(mask), mask.shape)
    np.testing.assert_array_equal(same[..., 0], mask.all(-1))
    spread = ConvTranspose(3, (1, 2), (2, 1), "VALID").mask(jnp.asarray(mask), mask.shape)
    np.testing.assert_array_equal(np.argwhere(spread[0, ..., 0]), [[4, 4], [4, 5], [6, 4], [6, 5]])


def _derivative_net(readout: Any) -> Any:
    conv = Conv(3, (2, 2), padding="SAME", W_std=1.3, b_std=None)
    return serial(conv, stax.Relu(), conv, stax.Relu(), readout, Dense(1))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("readout", [stax.GlobalAvgPool(), stax.Flatten()], ids=["pool", "flatten"])
def test_gradients_at_a_zero_image_and_at_identical_images(readout: Any) -> None:
    """Finite there; equal to finite differences in all directions that keep clear of the kink."""
    x = np.array(images(4, 3, 3, 2), np.float64)
    x[1], x[3] = 0, x[2]
    net = _derivative_net(readout)
    weights = jnp.asarray(RNG.standard_normal((2, 4, 4)))

    @jax.jit
    def value(net: Any, x: Any) -> Any:
        kernel = net.kernel_fn(x, None, BOTH)
        return (weights[0] * kernel.nngp + weights[1] * kernel.ntk).sum()

    by_net, by_x = jax.jit(jax.grad(value, argnums=(0, 1)))(net, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((by_net, by_x)))
    shift = np.zeros_like(x)
    shift[0] = RNG.standard_normal(x.shape[1:])
    shift[1] = 0  # the zero image stays zero, and the two identical ones alike
    shift[2] = shift[3] = RNG.standard_normal(x.shape[1:])
    assert_close(
        jnp.vdot(by_x, shift), slope_at_zero(lambda h: value(net, x + h * shift)), rtol=1e-5
    )
    leaves, tree = jax.tree.flatten(net)
    for i, slope in enumerate(jax.tree.leaves(by_net)):

        def moved(h: float, i: int = i) -> Any:
            changed = [leaf + h * (i == j) for j, leaf in enumerate(leaves)]
            return value(jax.tree.unflatten(tree, changed), x)

        assert_close(slope, slope_at_zero(moved), rtol=1e-5)


def slope_at_zero(function: Any, step: float = 1e-3) -> Any:
    """The derivative by differences of fourth order; a step of 1e-6 would show rounding."""
    near = function(step) - function(-step)
    far = function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (Conv(3, (4, 2)), (2, 3, 3, 1), r"window that fits the image, got a window .*\(4, 2\)"),
        (Conv(3, (2, 2), rhs_dilation=(3, 1)), (2, 3, 3, 1), r"steps \(3, 1\)"),
        (Conv(3, (2, 2)), (2, 3, 1), "axes NABC for a filter|got one with 3 axes"),
        (ConvTranspose(3, (1,), padding=((0, 0),)), (2, 0, 1), "fits the image"),
        (ConvLocal(3, (3, 3)), (2, 2, 5, 1), "fits the image"),
        (stax.AvgPool((3, 3)), (2, 2, 5, 1), "fits the image"),
        (stax.AvgPool((3,)), (2, 5, 5, 1), "1 spatial axes"),
    ],
)
def test_inputs_that_do_not_fit(layer: Any, shape: Any, message: str) -> None:
    net = serial(stax.Identity(), serial(layer))
    with pytest.raises(ValueError, match=message) as found:
        net.init_fn(KEY, shape)
    assert f"serial[1].serial[0].{layer.label}" in found.value.__notes__[-1]
    with pytest.raises(ValueError, match=message):
        net.kernel_fn(np.zeros(shape, np.float32), None, "nngp")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv(3, (2, 2), (1,)), "2 numbers in strides"),
        (lambda: Conv(3, (2, 0)), "at least 1 in filter_shape"),
        (lambda: Conv(3, (2,), padding="same"), "padding 'SAME', 'VALID', 'CIRCULAR'"),
        (lambda: Conv(3, (2,), padding=((1, -1),)), "pairs of ints >= 0"),
        (lambda: Conv(3, (2, 2), padding=((1, 1),)), "2 pairs of padding"),
        (lambda: Conv(3, (2, 2), dimension_numbers=("NHWC", "HWIO")), "three strings"),
        (lambda: Conv(3, (2, 2), dimension_numbers=("NHWC", "HIO", "NHWC")), "2 spatial axes"),
        (lambda: Conv(0, (2, 2)), "out_chan of at least 1"),
        (lambda: Conv(3, (2,), parameterization="mup"), "'ntk' or 'standard'"),
        (lambda: stax.SumPool((2,), (0,)), "at least 1 in strides"),
        (lambda: stax.AvgPool((2,), padding=((1, 1), (0, 0))), "1 pairs of padding"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_arguments_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match="ints for filter_shape"):
        Conv(3, 2)
    with pytest.raises(TypeError, match="ints for strides"):
        Conv(3, (2,), (1.5,))


@pytest.mark.usefixtures("x64")
def test_float32_and_integer_inputs_with_x64_on() -> None:
    layer = Conv(3, (2,))
    params = layer.init_fn(KEY, (2, 4, 3))[1]
    for x in (images(2, 4, 3), np.ones((2, 4, 3), np.int32)):
        assert layer.apply_fn(params, x).dtype == np.float64


def test_parameters_of_another_input() -> None:
    layer = Conv(3, (2,))
    params = parameters(layer, images(2, 4, 3))
    with pytest.raises(ValueError, match="input of the shape that init_fn got"):
        layer.apply_fn(params, images(2, 4, 2))
