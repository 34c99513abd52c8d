"""Series on the fused engine against the reference engine, and what it leaves to that one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit import InfiniteEnsemble, choose_engine, gram, stax

LAYERS = [
    stax.Tanh(),
    stax.Sigmoid(),
    stax.Softplus(),
    stax.Silu(),
    stax.Mish(),
    stax.Elu(0.7),
    stax.Selu(),
    stax.Elementwise(lambda x: x * jnp.sin(x)),
    stax.Elementwise(lambda x: jnp.sin(x) + 1),
    stax.Elementwise(lambda x: x**3 - x),
    stax.ElementwiseNumerical(jnp.tanh, deg=25),
]


def images(n: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, 7, 6, 2))
    x[-1, 2:5] = 0
    return x


def conv(W_std: float = 1.2, b_std: float = 0.1, **keywords: Any) -> Any:
    return stax.Conv(1, (3, 3), padding="SAME", W_std=W_std, b_std=b_std, **keywords)


def spatial(layer: Any) -> dict[str, Any]:
    wide = stax.Conv(1, (3, 3), padding="CIRCULAR")
    halved = stax.serial(layer, conv(strides=(2, 2)))
    skip = stax.Conv(1, (1, 1), strides=(2, 2))
    pool = stax.AvgPool((2, 2), (2, 2))
    return {
        "global pool": [conv(), layer, conv(), layer, stax.GlobalAvgPool(), stax.Dense(1)],
        "pools": [conv(), layer, pool, conv(), layer, stax.Flatten(), stax.Dense(1)],
        "residual": [
            *(conv(), stax.FanOut(2), stax.parallel(halved, skip), stax.FanInSum()),
            *(layer, stax.GlobalAvgPool()),
        ],
        "circular": [wide, layer, wide, layer, stax.GlobalAvgPool()],
        "normalised": [conv(), stax.LayerNorm(), layer, conv(), layer, stax.Flatten()],
    }


def check(net: Any, x1: Any, x2: Any, tolerance: float) -> None:
    fused, right = (
        net.kernel_fn(x1, x2, ("nngp", "ntk"), engine=engine) for engine in ("fused", "reference")
    )
    for a, b in zip(fused, right, strict=True):
        assert float(jnp.abs(a - b).max()) <= tolerance * float(jnp.abs(b).max())


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-10), (False, 2e-6)])
def test_without_space(layer: Any, x64: bool, tolerance: float) -> None:
    dtype = np.float64 if x64 else np.float32
    with jax.enable_x64(x64):
        x = np.random.default_rng(0).standard_normal((6, 5)).astype(dtype)
        far = np.random.default_rng(1).standard_normal((3, 5)) * [[1e-6], [0.0], [1.5]]
        y = np.concatenate([x[:1], -x[1:2], far]).astype(dtype)
        hidden = [stax.Dense(1, 1.1, 0.1), layer, stax.Dense(1, 1.1, 0.0), layer]
        net = stax.serial(*hidden, stax.Dense(1))
        check(net, x, None, tolerance)
        check(net, x, y, tolerance)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("layer", [stax.Tanh(), stax.Silu(), stax.Selu()], ids=repr)
@pytest.mark.parametrize("name", spatial(stax.Relu()))
def test_images(layer: Any, name: str) -> None:
    net = stax.serial(*spatial(layer)[name])
    x, y = images(3), images(2, 1)
    y[0] = x[1]
    check(net, x, None, 1e-10)
    check(net, x, y, 1e-10)


@pytest.mark.usefixtures("x64")
def test_a_pair_is_the_same_to_the_bit_in_every_batch() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 4)) * np.geomspace(0.01, 3, 9)[:, None]
    dense = stax.serial(stax.Dense(1), stax.Tanh(), stax.Dense(1), stax.Silu(), stax.Dense(1))
    many = images(4) * np.geomspace(0.1, 2, 4)[:, None, None, None]
    for net, inputs in ((dense, x), (stax.serial(*spatial(stax.Silu())["pools"]), many)):
        others = 0.9 * inputs[::-1]  # products of equal samples depend on the batch in BLAS
        whole = np.asarray(net.kernel_fn(inputs, others, "ntk", engine="fused"))
        for i in range(len(inputs)):
            one = net.kernel_fn(inputs[i : i + 1], others[1:2], "ntk", engine="fused")
            np.testing.assert_array_equal(one[0, 0], whole[i, 1])


@pytest.mark.usefixtures("x64")
def test_large_variances_are_left_to_the_reference_engine() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3)) * [[1.0], [1.0], [30.0], [1.0]]
    net = stax.serial(stax.Dense(1), stax.Softplus(), stax.Dense(1))
    assert choose_engine(net, x.shape).name == "fused"
    right = net.kernel_fn(x, None, ("nngp", "ntk"), engine="reference")
    for found in (
        net.kernel_fn(x, None, ("nngp", "ntk"), engine="fused"),
        gram(net, x, get=("nngp", "ntk"), memory="5MB", progress=False),
    ):
        np.testing.assert_allclose(found.nngp, right.nngp, rtol=1e-9)
        np.testing.assert_allclose(found.ntk, right.ntk, rtol=1e-9)


def test_variances_beyond_a_series_are_refused() -> None:
    x = 1e3 * np.eye(3, dtype=np.float32) + 1e3
    net = stax.serial(stax.Dense(1), stax.Tanh(), stax.Dense(1))
    with pytest.raises(ValueError, match="variances of at most 100"):
        net.kernel_fn(x, 0.9 * x, "ntk")
    behind = stax.serial(
        *(stax.Conv(1, (1, 1)), stax.GlobalAvgPool(), stax.Dense(1, 3000.0)),
        *(stax.Tanh(), stax.Dense(1)),
    )
    near = images(2).astype(np.float32)
    with pytest.raises(ValueError, match="variances of at most 100"):
        behind.kernel_fn(near, 0.9 * near, "nngp", engine="fused")


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (
            stax.Elementwise(lambda x: jnp.where(x > 0.5, 1.0, 0.0)),
            "has a jump, a kink beside 0, or",
        ),
        (stax.Elementwise(lambda x: jnp.sin(30 * x)), "or narrow features"),
        (stax.Elementwise(nngp_fn=lambda c, q1, q2: c), "has formulas of its own"),
        (stax.ElementwiseNumerical(jnp.tanh, 25, jnp.cos), "has a derivative of its own"),
    ],
)
def test_what_tables_do_not_hold(layer: Any, why: str) -> None:
    net, x = stax.serial(stax.Dense(1), layer, stax.Dense(1)), np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match=why):
        net.kernel_fn(x, None, "nngp", engine="fused")
    assert choose_engine(net, x.shape).name == "reference"
    net.kernel_fn(x, None, "nngp")


def test_a_function_that_changes() -> None:
    scale = [1.0]
    net = stax.serial(stax.Dense(1), stax.Elementwise(lambda x: scale[0] * x), stax.Dense(1))
    x = np.eye(3, dtype=np.float32)
    one = np.asarray(net.kernel_fn(x, None, "nngp", engine="fused"))
    scale[0] = 2.0
    np.testing.assert_allclose(net.kernel_fn(x, None, "nngp", engine="fused"), 4 * one, rtol=1e-6)


def test_a_function_that_reads_traced_values() -> None:
    x = np.eye(3, dtype=np.float32)

    def total(a: Any) -> Any:
        net = stax.serial(stax.Dense(1), stax.Elementwise(lambda v: a * v), stax.Dense(1))
        return net.kernel_fn(x, None, "nngp").sum()

    np.testing.assert_allclose(jax.grad(total)(2.0), 4.0, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(total)(2.0), 4.0, rtol=1e-5)


def test_an_ensemble() -> None:
    rng = np.random.default_rng(0)
    x, x_test = (rng.standard_normal((n, 3)).astype(np.float32) for n in (20, 5))
    net = stax.serial(stax.Dense(1, 1.3), stax.Tanh(), stax.Dense(1))
    fused, right = (
        InfiniteEnsemble(
            functools.partial(net.kernel_fn, engine=engine), x, np.sin(x[:, :1]), noise=0.1
        ).std(x_test)
        for engine in ("fused", "reference")
    )
    np.testing.assert_allclose(fused, right, rtol=1e-4)
