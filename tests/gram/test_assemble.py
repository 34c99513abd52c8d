"""Gram matrices in tiles equal those of one call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.tolerance import assert_close
from widelimit import stax
from widelimit.gram.compute import compute, make_tiler
from widelimit.gram.sizes import fixed_grid
from widelimit.gram.storage import Memory
from widelimit.stax import Conv, Dense, serial

BOTH = ("nngp", "ntk")
FLAT = serial(Dense(4, 1.4, 0.1), stax.Relu(), Dense(4, 1.2), stax.Erf(), Dense(1))
CNN = serial(
    Conv(4, (3,), padding="SAME", W_std=1.4, b_std=0.1), stax.Relu(), stax.GlobalAvgPool(), Dense(1)
)
SPATIAL = serial(Conv(4, (2,), padding="SAME", b_std=0.3), stax.Relu(), Conv(4, (2,)))


def inputs(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tiled(kernel_fn: Any, x1: Any, x2: Any, size: int, get: Any = BOTH, **kwargs: Any) -> Any:
    """The kernels from tiles of a given size."""
    devices = jax.local_devices()[:1]
    tiler = make_tiler(kernel_fn, x1, x2, (get,), devices, kwargs)
    return compute(tiler, fixed_grid(tiler, size, 1), get, Memory(), progress=False)


def assert_near(tile: Any, whole: Any) -> None:
    """Equal but for the last bits: what is left over of a vector is computed by other code."""
    for one, other in zip(tile, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=3e-6, atol=1e-6 * np.abs(other).max())


@pytest.mark.parametrize("n2", [None, 5], ids=["symmetric", "rectangular"])
def test_every_tile_size_gives_the_untiled_kernel(n2: int | None) -> None:
    x1, x2 = inputs(7, 6), None if n2 is None else inputs(n2, 6, seed=1)
    whole = FLAT.kernel_fn(x1, x2, BOTH)
    for size in range(1, 9):
        result = tiled(FLAT.kernel_fn, x1, x2, size)
        assert_near(result, whole)
        if n2 is None:
            np.testing.assert_array_equal(result.ntk, result.ntk.T)


@pytest.mark.optimised
@pytest.mark.parametrize("net", [FLAT, CNN], ids=["flat", "conv"])
def test_blocks_are_to_the_bit_the_kernels_of_their_samples(net: Any) -> None:
    shape = (6,) if net is FLAT else (6, 2)
    x1, x2 = inputs(6, *shape), inputs(4, *shape, seed=1)
    symmetric = tiled(net.kernel_fn, x1, None, 2)
    rectangular = tiled(net.kernel_fn, x1, x2, 2)
    first, last, other = slice(0, 2), slice(4, 6), slice(2, 4)
    for result, rows, columns, args in (
        (symmetric, last, last, (x1[last], None)),
        (symmetric, first, last, (x1[first], x1[last])),
        (rectangular, last, other, (x1[last], x2[other])),
    ):
        for one, whole in zip(result, net.kernel_fn(*args, BOTH), strict=True):
            np.testing.assert_array_equal(one[rows, columns], whole)


@pytest.mark.parametrize("net", [CNN, SPATIAL], ids=["pooled", "spatial"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_tiles_of_convolutional_networks(net: Any, symmetric: bool) -> None:
    x1, x2 = inputs(3, 6, 2), None if symmetric else inputs(2, 6, 2, seed=1)
    whole = net.kernel_fn(x1, x2, BOTH)
    for size in (1, 2):
        result = tiled(net.kernel_fn, x1, x2, size)
        assert_near(result, whole)
        if symmetric:
            order = (1, 0, 3, 2)[: result.ntk.ndim]
            np.testing.assert_array_equal(result.ntk, result.ntk.transpose(order))


def test_budget_decides_on_tiles_of_one_shape() -> None:
    x = inputs(50, 6)
    tiler = FLAT.kernel_fn.tiler(x, None, BOTH, jax.local_devices()[:1])
    memory = tiler.tile_bytes(16, 16) + 40 * tiler.prepared_bytes
    result = wl.gram(FLAT, x, get=BOTH, memory=memory)
    assert isinstance(result.ntk, np.ndarray)
    assert_near(result, FLAT.kernel_fn(x, None, BOTH))
    np.testing.assert_array_equal(result.ntk, result.ntk.T)


def test_samples_are_prepared_once_and_pairs_of_tiles_computed_once() -> None:
    x = inputs(7, 6)
    tiler = FLAT.kernel_fn.tiler(x, None, "ntk", jax.local_devices()[:1])
    seen: dict[str, list[Any]] = {"prepare": [], "tile": []}
    prepare, tile = tiler.prepare, tiler.tile
    tiler.prepare = lambda rows: (seen["prepare"].append(rows), prepare(rows))[1]
    tiler.tile = lambda a, b: (seen["tile"].append((a.x.shape, b is None)), tile(a, b))[1]
    compute(tiler, fixed_grid(tiler, 2, 1), "ntk", Memory(), progress=False)
    assert len(seen["prepare"]) == 4
    assert seen["tile"] == [((2, 6), i == j) for i in range(4) for j in range(i, 4)]


def test_equal_samples_in_different_places_are_different_samples() -> None:
    net = serial(Dense(4), stax.Relu(), stax.Dropout(0.5), Dense(1))
    x = np.repeat(inputs(2, 3), 3, axis=0)
    whole = np.asarray(net.kernel_fn(x, None, "nngp"))
    assert whole[0, 0] > 1.2 * whole[0, 1]
    for kernel_fn in (net.kernel_fn, lambda *args: net.kernel_fn(*args)):
        for size in (1, 2, 3):
            result = tiled(kernel_fn, x, None, size, "nngp")
            np.testing.assert_allclose(result, whole, rtol=1e-6)
            # Nor are those of another x2 the same; but x2 is x1 where all samples are.
            part = tiled(kernel_fn, x[:3], x, size, "nngp")
            np.testing.assert_allclose(part, net.kernel_fn(x[:3], x, "nngp"), rtol=1e-6)
            same = tiled(kernel_fn, x, x.copy(), size, "nngp")
            np.testing.assert_allclose(same, whole, rtol=1e-6)


def test_masks_branches_patterns_and_other_batch_axes() -> None:
    x1, x2 = inputs(5, 4, 2), inputs(3, 4, 2, seed=1)
    x1[1, 2:] = x2[0, 1:] = np.nan
    masked = serial(Conv(4, (2,), b_std=0.2), stax.Relu(), stax.GlobalAvgPool(), Dense(1))
    for second in (None, x2):
        result = tiled(masked.kernel_fn, x1, second, 2, "ntk", mask_constant=np.nan)
        whole = masked.kernel_fn(x1, second, "ntk", mask_constant=np.nan)
        assert_near([result], [whole])

    branches = stax.parallel(FLAT, Dense(2))
    pair1, pair2 = [inputs(5, 6), inputs(5, 3)], [inputs(4, 6, seed=1), inputs(4, 3, seed=1)]
    for second in (None, pair2):
        result = tiled(branches.kernel_fn, pair1, second, 2, "ntk")
        assert type(result) is list
        assert_near(result, branches.kernel_fn(pair1, second, "ntk"))

    turned = Dense(2, batch_axis=1, channel_axis=0)
    z = inputs(3, 5)
    result = tiled(turned.kernel_fn, z, None, 2, "nngp")
    assert_near([result], [turned.kernel_fn(z, None, "nngp")])


def test_graphs_are_cut_with_their_samples() -> None:
    net = serial(stax.Aggregate(1), Dense(4, 1.3), stax.Relu(), stax.GlobalAvgPool(), Dense(1))
    x1, x2 = inputs(5, 3, 2), inputs(3, 3, 2, seed=1)
    p1, p2 = abs(inputs(5, 3, 3, seed=2)), abs(inputs(3, 3, 3, seed=3))
    kernel_fns = net.kernel_fn, lambda *args, **kwargs: net.kernel_fn(*args, **kwargs)
    for second, pattern in (
        (None, (p1, p1)),
        (None, (p1, None)),
        (x2, (p1, p2)),
        (x1, (p1, p1 + 1)),
    ):
        whole = net.kernel_fn(x1, second, "ntk", pattern=pattern)
        for kernel_fn in kernel_fns:
            result = tiled(kernel_fn, x1, second, 2, "ntk", pattern=pattern)
            assert_near([result], [whole])
    with pytest.raises(ValueError, match="expected pattern with the 5 samples of x1"):
        wl.gram(net, x1, pattern=(p2, p2))


def test_any_kernel_function() -> None:
    def kernel_fn(x1: Any, x2: Any, get: Any) -> Any:
        x2 = x1 if x2 is None else x2
        return np.exp(-((x1[:, None] - x2[None]) ** 2).sum(-1))  # no function of JAX

    x1, x2 = inputs(5, 3), inputs(4, 3, seed=1)
    for second in (None, x2):
        np.testing.assert_allclose(
            wl.gram(kernel_fn, x1, second, "nngp"), kernel_fn(x1, second, "nngp"), rtol=1e-6
        )
        np.testing.assert_allclose(
            tiled(kernel_fn, x1, second, 2, "nngp"), kernel_fn(x1, second, "nngp"), rtol=1e-6
        )
    # Axes beyond those of samples may come in pairs or not: nothing is mirrored then.
    lopsided = lambda a, b, get: jnp.einsum("ic,jc->ijc", a, a if b is None else 2 * b)  # noqa: E731
    whole = np.einsum("ic,jc->ijc", x1, 2 * x1)
    result = tiled(lopsided, jnp.asarray(x1), jnp.asarray(x1), 2, "nngp")
    assert_close(result, whole)


def test_bad_input() -> None:
    x = inputs(4, 6)
    with pytest.raises(ValueError, match=r"memory of at least (\d+) bytes") as error:
        wl.gram(FLAT, x, memory=100)
    least = int(str(error.value).split("at least ")[1].split()[0])
    with pytest.raises(ValueError, match="at least"):
        wl.gram(FLAT, x, memory=least - 1)
    assert_close(wl.gram(FLAT, x, memory=least), FLAT.kernel_fn(x, None, "ntk"))

    bad = x.copy()
    bad[2, 3] = np.inf
    for kernel_fn in (FLAT, lambda *args: FLAT.kernel_fn(*args)):
        with pytest.raises(
            ValueError, match=r"expected x2 to be finite, got 1 of .* index \(2, 3\)"
        ):
            wl.gram(kernel_fn, x, bad)
    with pytest.raises(ValueError, match=r"x1 to be finite, got 1 of .* index \(2, 3\)"):
        wl.gram(FLAT, 1e300 * np.where(np.arange(24).reshape(4, 6) == 15, 1.0, 0.0))
    mixing = serial(Dense(3), stax.LayerNorm((0, -1)), Dense(2))
    with pytest.raises(ValueError, match=r"serial\[1\]\.LayerNorm, which combines"):
        wl.gram(mixing, x)
    for get in ("cov1", None, (), ("ntk", "NTK")):
        with pytest.raises(ValueError, match="expected get to be one of"):
            wl.gram(FLAT, x, get=get)
    with pytest.raises(TypeError, match="expected concrete inputs"):
        jax.jit(lambda x: wl.gram(FLAT, x))(x)
    with pytest.raises(TypeError, match="expected a concrete network"):
        jax.grad(lambda net: wl.gram(net, x).sum())(FLAT)
    with pytest.raises(TypeError, match="expected a network with a kernel_fn"):
        wl.gram(3, x)
    with pytest.raises(ValueError, match="agree in all axes"):
        wl.gram(FLAT, x, x[:, :5])
    with pytest.raises(NotImplementedError, match="diagonal_batch"):
        wl.gram(FLAT, x, diagonal_batch=False)


def test_no_samples() -> None:
    assert wl.gram(FLAT, inputs(0, 6), inputs(3, 6)).shape == (0, 3)


def test_concrete_inputs_inside_of_jit() -> None:
    net = serial(Dense(8), stax.Relu(), Dense(1))
    x = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    right = net.kernel_fn(x, None, "nngp")
    found = jax.jit(lambda scale: scale * wl.gram(net, x, get="nngp", progress=False))(2.0)
    np.testing.assert_allclose(found, 2 * right, rtol=1e-6)
    ensemble = wl.InfiniteEnsemble(net, x, x[:, :1], noise=0.1)
    std = jax.jit(lambda scale: scale * ensemble.std(x))(1.0)
    np.testing.assert_allclose(std, ensemble.std(x), rtol=1e-4)
