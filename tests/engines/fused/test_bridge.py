"""The fused engine behind kernel_fn: that it runs where it should, and agrees with the other."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from tests.cases import CASES, SPATIAL
from tests.engines.fused import oracle
from tests.engines.fused.test_engine import error
from widelimit import choose_engine, gram, stax
from widelimit.engines.fused import bridge, engine
from widelimit.stax import Conv, Dense, serial

STORED = np.load(pathlib.Path(__file__).parents[2] / "data" / "reference_kernels.npz")
NAMES = sorted({key.split("/")[0] for key in STORED.files})
BOTH = ("nngp", "ntk")


def _net() -> Any:
    return serial(
        Conv(3, (3, 3), padding="SAME", W_std=1.3, b_std=0.3),
        stax.Relu(),
        stax.AvgPool((2, 2), (2, 2)),
        Conv(3, (2, 2), W_std=1.2),
        stax.Erf(),
        stax.GlobalAvgPool(),
        Dense(1, 1.1, 0.1),
    )


SMALL = serial(Conv(3, (2, 2), b_std=0.3), stax.Relu(), stax.Flatten())
IMAGES = np.random.default_rng(3).standard_normal((3, 6, 5, 2)).astype(np.float32)


def test_auto_takes_the_fused_engine(calls: list[int]) -> None:
    net = _net()
    assert choose_engine(net, IMAGES.shape).name == "fused"
    automatic = net.kernel_fn(IMAGES, None, BOTH)
    assert calls
    calls.clear()
    reference = net.kernel_fn(IMAGES, None, BOTH, engine="reference")
    assert not calls
    fused = net.kernel_fn(IMAGES, None, BOTH, engine="fused")
    assert calls
    for name in BOTH:
        np.testing.assert_array_equal(getattr(automatic, name), getattr(fused, name))
        assert error(getattr(fused, name), getattr(reference, name)) < 5e-6


def test_masks_and_patterns_do_not_run(calls: list[int]) -> None:
    net = SMALL
    net.kernel_fn(IMAGES, None, "nngp", mask_constant=100.0)
    assert not calls
    with pytest.raises(ValueError, match="but there are masks"):
        net.kernel_fn(IMAGES, None, "nngp", mask_constant=100.0, engine="fused")
    with pytest.raises(ValueError, match="expected engine to be one of"):
        net.kernel_fn(IMAGES, None, "nngp", engine="numba")


def test_without_numba(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "numba" else find(name, *a)
    )
    net = _net()
    choice = choose_engine(net, IMAGES.shape)
    assert choice.name == "reference"
    assert "numba is not installed" in choice.reason
    assert net.kernel_fn(IMAGES, None, "nngp").shape == (3, 3)
    assert not calls
    with pytest.raises(ValueError, match="but numba is not installed"):
        net.kernel_fn(IMAGES, None, "nngp", engine="fused")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("get", ["nngp", "ntk", "cov1", ("cov2", "ntk"), None])
@pytest.mark.parametrize("given", [True, False])
def test_fields(get: Any, given: bool) -> None:
    net = _net()
    x2 = IMAGES[:2] + 1 if given else None
    kernel = net.kernel_fn(IMAGES, x2, get, engine="fused")
    true = oracle.kernels(net, IMAGES, x2)
    if isinstance(get, str):
        assert error(kernel, getattr(true, get)) < 1e-12
        return
    for name in get or (*BOTH, "cov1", "cov2"):
        if name == "cov2" and not given:
            assert kernel.cov2 is None
        else:
            assert error(getattr(kernel, name), getattr(true, name)) < 1e-12


@pytest.mark.usefixtures("x64")
def test_the_public_kernel_is_that_of_the_reference_engine() -> None:
    fused, reference = (
        SMALL.kernel_fn(IMAGES, IMAGES[:2], None, engine=name, diagonal_batch=False)
        for name in ("fused", "reference")
    )
    assert jax.tree.structure(fused) == jax.tree.structure(reference)
    for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


KEPT = {
    "strides and pools": serial(
        Conv(3, (3, 2), (1, 2), "SAME", 1.3, 0.2),
        stax.Relu(),
        stax.AvgPool((2, 2)),
        Conv(3, (2, 1), (2, 1), W_std=1.2),
        stax.Erf(),
    ),
    "circular": serial(
        Conv(3, (3, 3), padding="CIRCULAR", W_std=1.3, b_std=0.3),
        stax.Relu(),
        stax.SumPool((2, 1), (2, 1)),
        Conv(3, (1, 3), padding="CIRCULAR"),
    ),
    "attention": serial(
        Conv(3, (3, 3), (2, 2), "SAME", 1.3, 0.3),
        stax.Relu(),
        Conv(3, (2, 2), padding="SAME", b_std=0.1),
        stax.GlobalSelfAttention(4, 2, 2, 2, b_std=0.3),
        stax.GlobalAvgPool(),
        Dense(1),
    ),
    "branches": serial(
        Conv(3, (3, 3), padding="SAME", W_std=1.3, b_std=0.3),
        stax.Relu(),
        stax.FanOut(2),
        stax.parallel(
            serial(stax.AvgPool((2, 2), (2, 2)), Conv(3, (1, 1))), Conv(3, (2, 2), (2, 2), "SAME")
        ),
        stax.FanInSum(),
        stax.Relu(),
        stax.Flatten(),
    ),
}


@pytest.mark.optimised
@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.usefixtures("x64")
def test_all_pairs_of_positions(name: str, given: bool, calls: list[int]) -> None:
    net, x2 = KEPT[name], IMAGES[:2, ::-1] if given else None
    x1 = IMAGES[:, :, :4]
    x2 = None if x2 is None else x2[:, :, :4]
    fused = net.kernel_fn(x1, x2, None, engine="fused")
    assert calls
    reference = net.kernel_fn(x1, x2, None, engine="reference")
    assert jax.tree.structure(fused) == jax.tree.structure(reference)
    for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(reference), strict=True):
        assert error(a, b) < 1e-12
    alone = net.kernel_fn(x1[:1], (x1 if x2 is None else x2)[1:2], "ntk", engine="fused")
    if name not in ("attention", "branches"):  # behind the program arrays have other sizes
        np.testing.assert_array_equal(alone[0, 0], fused.ntk[0, 1])
    assert net.kernel_fn(x1, x2, "cov1", engine="fused").shape == reference.cov1.shape


def test_results_with_space_are_symmetric_to_the_bit() -> None:
    net = KEPT["strides and pools"]
    for values in net.kernel_fn(IMAGES, None, BOTH, engine="fused"):
        np.testing.assert_array_equal(values, np.transpose(values, (1, 0, 3, 2, 5, 4)))
    assert choose_engine(net, IMAGES.shape).name == "fused"
    equal = net.kernel_fn(IMAGES, None, "nngp", diagonal_spatial=True)
    full = net.kernel_fn(IMAGES, None, "nngp", engine="reference")
    assert error(equal, np.einsum("abiijj->abij", full)) < 5e-6
    with pytest.raises(ValueError, match="equal positions alone"):
        net.kernel_fn(IMAGES, None, "nngp", diagonal_spatial=True, engine="fused")


@pytest.mark.optimised
@pytest.mark.usefixtures("x64")
def test_results_with_space_in_tiles() -> None:
    net = KEPT["strides and pools"]
    tiled = gram(net, IMAGES, None, "ntk", memory=2**23, progress=False)
    assert error(tiled, net.kernel_fn(IMAGES, None, "ntk", engine="reference")) < 1e-12


@pytest.mark.parametrize("pool", [stax.GlobalSumPool(), stax.Flatten()])
def test_smooth_layers_behind_the_spatial_axes_are_computed_in_float64(pool: Any) -> None:
    x = (np.random.default_rng(0).standard_normal((3, 3, 3, 1)) + 100).astype(np.float32)
    x[1] = x[0] * np.float32(1.0001)
    net = serial(Conv(1, (2, 2)), stax.Relu(), pool, Dense(1), stax.Sin(), Dense(1))
    found = net.kernel_fn(x, x[:2], engine="fused")
    with jax.enable_x64(True):
        right = net.kernel_fn(x.astype(np.float64), x[:2].astype(np.float64), engine="reference")
        right = [np.asarray(v) for v in (right.nngp, right.ntk, right.cov1, right.cov2)]
    for a, b in zip((found.nngp, found.ntk, found.cov1, found.cov2), right, strict=True):
        assert a.dtype == np.float32
        assert error(a, b) < 1e-6


def test_hyper_parameters_lower_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def net(W_std: float, gamma: float) -> Any:
        return serial(Conv(3, (2, 2), W_std=W_std), stax.Rbf(gamma), stax.Flatten())

    net(1.1, 0.3).kernel_fn(IMAGES, None, "nngp", engine="fused")

    def lower(*args: Any) -> None:
        raise AssertionError("expected a program that is known already")

    monkeypatch.setattr(bridge, "lower", lower)
    for W_std, gamma in [(0.7, 0.5), (1.6, 0.1)]:
        other = net(W_std, gamma)
        found = other.kernel_fn(IMAGES[:2], IMAGES, "nngp", engine="fused")
        assert error(found, oracle.kernels(other, IMAGES[:2], IMAGES).nngp) < 1e-6


def test_channels_first_and_one_axis() -> None:
    letters = ("NCHW", "OIHW", "NCHW")
    first = serial(
        Conv(3, (3, 2), (1, 2), "SAME", 1.3, 0.2, letters),
        stax.Relu(),
        stax.AvgPool((2, 1), channel_axis=1),
        stax.GlobalAvgPool(channel_axis=1),
    )
    last = serial(
        Conv(3, (3, 2), (1, 2), "SAME", 1.3, 0.2),
        stax.Relu(),
        stax.AvgPool((2, 1)),
        stax.GlobalAvgPool(),
    )
    moved = np.moveaxis(IMAGES, -1, 1)
    a = first.kernel_fn(moved, None, "ntk", engine="fused")
    b = last.kernel_fn(IMAGES, None, "ntk", engine="fused")
    np.testing.assert_array_equal(a, b)
    line = serial(Conv(3, (2,), padding="SAME", b_std=0.2), stax.Relu(), stax.Flatten())
    row = serial(Conv(3, (1, 2), padding="SAME", b_std=0.2), stax.Relu(), stax.Flatten())
    c = line.kernel_fn(IMAGES[:, 0], None, "ntk", engine="fused")
    d = row.kernel_fn(IMAGES[:, :1], None, "ntk", engine="fused")
    np.testing.assert_array_equal(c, d)


RUNNING = [c for c in CASES + SPATIAL if choose_engine(c.net, (1, *c.shape)).name == "fused"]


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNNING, ids=lambda c: c.name)
def test_the_zoo(case: Any, calls: list[int]) -> None:
    x1, x2 = case.inputs(3, 2)
    with jax.enable_x64(True):
        exact = case.net.kernel_fn(x1, x2, BOTH, engine="reference")
        double = case.net.kernel_fn(x1, x2, BOTH, engine="fused")
    assert calls
    x1, x2 = x1.astype(np.float32), x2.astype(np.float32)
    with jax.enable_x64(True):
        rounded = case.net.kernel_fn(x1, x2, BOTH, engine="reference")
    single = case.net.kernel_fn(x1, x2, BOTH, engine="fused")
    reference = case.net.kernel_fn(x1, x2, BOTH, engine="reference")
    for name in BOTH:
        assert error(getattr(double, name), getattr(exact, name)) < 1e-10
        ours = error(getattr(single, name), getattr(rounded, name))
        theirs = error(getattr(reference, name), getattr(rounded, name))
        assert ours < 5e-6
        assert ours < max(2 * theirs, 5e-7)  # both are a few roundings


def _spatial_names() -> list[str]:
    return [name for name in NAMES if STORED[f"{name}/x1"].ndim > 2]


@pytest.mark.parametrize("name", _spatial_names())
@pytest.mark.usefixtures("x64")
def test_stored_values(name: str, calls: list[int]) -> None:
    net = eval(str(STORED[f"{name}/expr"]), {"stax": stax, "np": np})
    net = net if hasattr(net, "kernel_fn") else serial(net)
    if f"{name}/kwargs" in STORED.files and json.loads(str(STORED[f"{name}/kwargs"])):
        pytest.skip("the fused engine knows no masks")
    x1 = STORED[f"{name}/x1"]
    x2 = STORED[f"{name}/x2"] if f"{name}/x2" in STORED.files else None
    if choose_engine(net, x1.shape).name != "fused":
        pytest.skip("the fused engine does not run it")
    kernel = net.kernel_fn(x1, x2, BOTH, engine="fused")
    assert calls
    for get in BOTH:
        np.testing.assert_allclose(getattr(kernel, get), STORED[f"{name}/{get}"], rtol=1e-9, atol=0)


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    from widelimit.engines.fused import compiling

    def njit(**options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**options)

    monkeypatch.setattr(compiling, "njit", njit)
    double = compiling.entry(lambda x: 2 * x)
    assert double(3.0) == 6.0


def test_pair_order_holds_every_pair_once() -> None:
    for n1, n2, symmetric in [(1, 1, True), (9, 9, True), (17, 5, False), (0, 3, False)]:
        pairs = engine.pair_order(n1, n2, symmetric)
        expected = {(i, j) for i in range(n1) for j in range(n2) if i <= j or not symmetric}
        assert len(pairs) == len(expected)
        assert {(int(i), int(j)) for i, j in pairs} == expected
