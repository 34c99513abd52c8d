"""Pooling: the finite layers against windows of numpy, the kernels against full covariances."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit import stax
from widelimit.stax import Conv, Dense, serial

RNG = np.random.default_rng(0)
BOTH = ("nngp", "ntk")


def pool(x: np.ndarray, size: int, stride: int, pads: tuple[int, int], mode: str) -> np.ndarray:
    """Sums over windows of axis 1, one by one."""
    padded = np.pad(x, ((0, 0), pads, (0, 0)), mode=mode)
    starts = range(0, padded.shape[1] - size + 1, stride)
    return np.stack([padded[:, i : i + size].sum(1) for i in starts], axis=1)


@pytest.mark.parametrize(
    ("padding", "pads", "mode"),
    [
        ("VALID", (0, 0), "constant"),
        ("SAME", (1, 1), "constant"),
        ("CIRCULAR", (1, 1), "wrap"),
        (((2, 0),), (2, 0), "constant"),
    ],
)
def test_windows(padding: Any, pads: tuple[int, int], mode: Any) -> None:
    x = RNG.standard_normal((2, 7, 3)).astype(np.float32)
    total = pool(x, 3, 2, pads, mode)
    assert_close(stax.SumPool((3,), (2,), padding).apply_fn((), x), total)
    assert_close(stax.AvgPool((3,), (2,), padding).apply_fn((), x), total / 3)
    inside = pool(np.ones_like(x), 3, 2, pads, mode)
    edges = stax.AvgPool((3,), (2,), padding, normalize_edges=True).apply_fn((), x)
    assert_close(edges, total / (inside if padding == "SAME" else 3))


@pytest.mark.parametrize("axes", [(0, -1), (1, 0), (2, 1), (-1, 0)])
def test_any_axes(axes: tuple[int, int]) -> None:
    x = RNG.standard_normal((4, 3, 5, 2)).astype(np.float32)
    batch, channel = (a % 4 for a in axes)
    moved = np.moveaxis(x, (0, 3), (batch, channel))
    for layer, plain in [
        (stax.AvgPool((2, 3), (1, 2), "SAME", False, *axes), stax.AvgPool((2, 3), (1, 2), "SAME")),
        (stax.GlobalAvgPool(*axes), stax.GlobalAvgPool()),
    ]:
        out = layer.apply_fn((), moved)
        ends = (batch, channel) if out.ndim == 4 else (int(batch > channel), int(batch < channel))
        assert_close(np.moveaxis(out, ends, (0, -1)), plain.apply_fn((), x))
        assert layer.init_fn(jax.random.PRNGKey(0), moved.shape)[0] == out.shape
        kernel = layer.kernel_fn(moved, None, "nngp")
        assert_close(kernel, plain.kernel_fn(x, None, "nngp"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("padding", ["VALID", "SAME", "CIRCULAR"])
def test_kernel_is_the_mean_over_pairs_of_positions(padding: str) -> None:
    """Against the pooling of both copies of the full covariance."""
    x1, x2 = RNG.standard_normal((2, 5, 3)), RNG.standard_normal((3, 5, 3))
    net = serial(Conv(2, (2,), padding="SAME", b_std=0.3), stax.Relu(), Conv(2, (1,)))
    full = net.kernel_fn(x1, x2, BOTH)
    layer = stax.AvgPool((3,), (2,), padding, normalize_edges=True)

    def both(k: Any) -> np.ndarray:
        once = np.asarray(layer.apply_fn((), np.asarray(k).reshape(-1, 5, 5)))
        twice = np.asarray(layer.apply_fn((), once.swapaxes(1, 2))).swapaxes(1, 2)
        return twice.reshape(2, 3, *twice.shape[1:])

    pooled = serial(net, layer).kernel_fn(x1, x2, BOTH)
    flat = serial(net, layer, stax.Flatten()).kernel_fn(x1, x2, BOTH)
    for get in BOTH:
        truth = both(getattr(full, get))
        assert_close(getattr(pooled, get), truth)
        # Flatten reads equal positions: a band of offsets before the pool, closed if circular
        assert_close(getattr(flat, get), np.einsum("nmpp->nm", truth) / truth.shape[-1])


@pytest.mark.usefixtures("x64")
def test_global_pooling_with_masks() -> None:
    x = RNG.standard_normal((3, 4, 2))
    x[0, 1] = x[1, 2:] = x[2] = 9.0
    net = serial(Conv(2, (1,), W_std=1.2, b_std=0.3), stax.Relu(), Conv(2, (1,)))
    full = np.asarray(net.kernel_fn(x, None, "ntk", mask_constant=9.0))
    counts = np.array([3.0, 2.0, 1.0])  # a sample that is all masked counts one position
    mean = serial(net, stax.GlobalAvgPool()).kernel_fn(x, None, "ntk", mask_constant=9.0)
    total = serial(net, stax.GlobalSumPool()).kernel_fn(x, None, "ntk", mask_constant=9.0)
    assert_close(total, full.sum((2, 3)))
    assert_close(mean, full.sum((2, 3)) / np.outer(counts, counts))
    finite = serial(net, stax.GlobalAvgPool())
    params = finite.init_fn(jax.random.PRNGKey(0), x.shape)[1]
    out = finite.apply_fn(params, x, mask_constant=9.0)
    cropped = finite.apply_fn(params, x[1:2, :2])
    assert_close(out.masked_value[1], cropped[0])
    np.testing.assert_array_equal(out.mask[:, 0], [False, False, True])


def test_masks_per_channel_are_refused() -> None:
    x = RNG.standard_normal((2, 4, 2)).astype(np.float32)
    x[0, 1, 1] = 9.0
    for layer in (stax.AvgPool((2,)), stax.GlobalAvgPool()):
        with pytest.raises(NotImplementedError, match=f"all channels for {layer.label}"):
            serial(layer, Dense(1)).kernel_fn(x, None, "nngp", mask_constant=9.0)


@pytest.mark.optimised
@pytest.mark.usefixtures("x64")
def test_circular_conv_average_pool_and_flatten_need_more_than_a_band() -> None:
    """The pair of positions (0, 1) reads the pair (last, 0): a band alone loses it."""
    x = RNG.standard_normal((2, 6, 2))
    conv = Conv(2, (3,), padding="CIRCULAR", W_std=1.3, b_std=0.2)
    body = serial(conv, stax.Relu(), conv, stax.Relu())
    net = serial(body, stax.AvgPool((2,), (2,), "CIRCULAR"), stax.Flatten())
    for get in BOTH:
        full = np.asarray(body.kernel_fn(x, None, get))
        blocks = full.reshape(2, 2, 3, 2, 3, 2)
        truth = np.einsum("nmiaib->nm", blocks) / 12
        assert_close(net.kernel_fn(x, None, get), truth)
    # all offsets by a shift of the image: the kernel of a rolled image is the same
    assert_close(net.kernel_fn(np.roll(x, 2, 1), None, "ntk"), net.kernel_fn(x, None, "ntk"))


@pytest.mark.usefixtures("x64")
def test_sign_before_pooling_had_variances_of_one_everywhere() -> None:
    """Self-covariances of unequal positions matter once a pool and a nonlinearity follow."""
    x = RNG.standard_normal((2, 6, 2))

    def arcsine(c: Any, q1: Any, q2: Any) -> Any:
        return 2 / np.pi * jnp.arcsin(jnp.clip(c / jnp.sqrt(q1 * q2), -1, 1))

    def net(activation: Any) -> Any:
        conv = Conv(2, (3,), padding="SAME", W_std=1.2, b_std=0.3)
        layers = [conv, activation, stax.AvgPool((2,)), conv, stax.Relu(), stax.GlobalAvgPool()]
        return serial(*layers)

    formula = net(stax.Elementwise(jnp.sign, arcsine, lambda c, q1, q2: 0 * c))
    expected = formula.kernel_fn(x, None, "nngp")
    assert_close(net(stax.Sign()).kernel_fn(x, None, "nngp"), expected, rtol=1e-7)
