"""The fused engine against the definitions, and what must hold to the bit."""

from __future__ import annotations

import threading
from typing import Any

import jax
import numpy as np
import pytest

from tests.engines.fused import oracle
from tests.engines.fused.networks import draw
from widelimit import stax
from widelimit.engines.fused import bridge, engine
from widelimit.engines.plan import input_axes, input_signal
from widelimit.stax import Conv, Dense, serial

FIELDS = ("nngp", "ntk", "cov1", "cov2")


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def refusal(net: Any, shape: Any) -> str | None:
    return bridge.refusal(net, input_signal(shape, shape, input_axes(net, shape, (None, None))))


def error(actual: Any, expected: Any, scale: float = 0.0) -> float:
    """The largest difference, relative to the largest entry."""
    expected = np.asarray(expected, np.float64)
    scale = max(scale, float(np.abs(expected).max()))
    difference = float(np.abs(np.asarray(actual, np.float64) - expected).max())
    return difference / scale if scale else difference


def compare(seed: int, get: Any) -> None:
    case = draw(seed)
    if case is None:
        return
    try:
        if refusal(case.net, case.x1.shape) is not None:
            return
    except (ValueError, NotImplementedError):
        return  # the reference engine refuses it as well
    kernel = case.net.kernel_fn(case.x1, case.x2, get, engine="fused")
    true = oracle.kernels(case.net, case.x1, case.x2, case.channel_axis)
    largest = float(max(np.abs(true.nngp).max(), true.cov1.max(), true.cov2.max()))
    # At a correlation of one an angle is the root of rounding, and a sign before takes it again.
    loss = 1e-10 if true.margin > 1e-4 else 1e-7 if "Sign" not in repr(case.net) else 1e-4
    if min(true.cov1.min(), true.cov2.min()) < 1e-30:
        loss = max(loss, 1e-8)  # layers behind the spatial axes take the root of rounding there
    names = FIELDS if get is None else get if isinstance(get, tuple) else (get,)
    for name in names:
        value = kernel if isinstance(get, str) else getattr(kernel, name)
        if name == "ntk" and np.ndim(value) < 2:
            value = np.zeros_like(true.ntk)  # no trainable layer
        if name != "cov2" or case.x2 is not None:
            assert error(value, getattr(true, name), largest) < loss, name


GETS = [None, ("nngp", "ntk"), "nngp", "ntk", ("cov1", "cov2"), ("ntk", "cov1")]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("x64")
def test_random_networks(seed: int) -> None:
    for i in range(12):
        compare(12 * seed + i, GETS[i % len(GETS)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.usefixtures("x64")
def test_many_random_networks(seed: int) -> None:
    for i in range(30):
        compare(1000 + 30 * seed + i, GETS[i % len(GETS)])


@pytest.mark.usefixtures("x64")
def test_outputs_over_padding() -> None:
    # Windows whose padding makes the image larger read beyond the last position.
    x1, x2 = normal(2, 1, 1, 5, 2)
    for net in (
        serial(
            Conv(1, (2, 1), padding=((0, 2), (0, 1)), b_std=0.3),
            stax.SumPool((1, 5), (1, 2), ((0, 2), (0, 0))),
            stax.Flatten(),
        ),
        serial(
            Conv(1, (1, 2), padding=((2, 2), (1, 2))),
            stax.SumPool((1, 4), (2, 2), ((1, 1), (1, 0))),
            stax.Flatten(),
        ),
    ):
        if refusal(net, x1.shape) is None:
            kernel = net.kernel_fn(x1, x2, "nngp", engine="fused")
            assert error(kernel, oracle.kernels(net, x1, x2).nngp) < 1e-12


def _pooled(*ends: Any) -> Any:
    return serial(
        Conv(3, (3, 3), padding="SAME", W_std=1.3, b_std=0.3),
        stax.Relu(),
        stax.AvgPool((2, 2), (2, 2)),
        Conv(3, (3, 2), (1, 2), "SAME", 1.2, 0.1),
        stax.Relu(),
        *ends,
    )


@pytest.mark.parametrize("ends", [(stax.GlobalAvgPool(), Dense(1)), (stax.Flatten(),)])
def test_a_pair_is_the_same_in_every_batch(ends: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = _pooled(*ends)
    x1, x2 = normal(2, 19, 7, 8, 2)
    x2[3] = x1[5]
    kernel = net.kernel_fn(x1, x2, None, engine="fused")
    for threads in (1, 2, 3):
        monkeypatch.setattr(engine, "count_threads", lambda n=threads: n)
        for i, j in [(0, 0), (5, 3), (18, 18)]:
            alone = net.kernel_fn(x1[i : i + 1], x2[j : j + 1], None, engine="fused")
            assert alone.nngp[0, 0] == kernel.nngp[i, j]
            assert alone.ntk[0, 0] == kernel.ntk[i, j]
            assert alone.cov1[0] == kernel.cov1[i]
        part = net.kernel_fn(x1[2:7], x2[1:4], "ntk", engine="fused")
        np.testing.assert_array_equal(part, kernel.ntk[2:7, 1:4])


def test_symmetry_and_the_diagonal() -> None:
    net = _pooled(stax.GlobalAvgPool(), Dense(1))
    x = normal(9, 6, 6, 1)
    x[4] = x[2]
    kernel = net.kernel_fn(x, None, None, engine="fused")
    np.testing.assert_array_equal(kernel.nngp, kernel.nngp.T)
    np.testing.assert_array_equal(kernel.ntk, kernel.ntk.T)
    np.testing.assert_array_equal(np.diagonal(kernel.nngp), kernel.cov1)
    assert kernel.cov2 is None
    assert kernel.nngp[2, 4] == kernel.nngp[2, 2]
    assert kernel.ntk[2, 4] == kernel.ntk[2, 2]
    other = net.kernel_fn(x[:7], x[6:], None, engine="fused")
    np.testing.assert_array_equal(other.nngp, kernel.nngp[:7, 6:])
    np.testing.assert_array_equal(other.cov2, kernel.cov1[6:])


def test_constant_patches_count_as_equal() -> None:
    # Borders of zeros with a bias: correlations of one off the diagonal, and between images.
    net = serial(
        *[Conv(3, (3, 3), padding="SAME", W_std=1.4, b_std=0.3), stax.Relu()] * 4, stax.Flatten()
    )
    x1, x2 = np.zeros((2, 2, 8, 8, 1), np.float32)
    x1[:, 3:5, 3:5], x2[:, 3:5, 3:5] = np.abs(normal(2, 2, 2, 2, 1))
    kernel = net.kernel_fn(x1, x2, ("nngp", "ntk"), engine="fused")
    true = oracle.kernels(net, x1, x2)
    assert error(kernel.nngp, true.nngp) < 1.5e-6
    assert error(kernel.ntk, true.ntk) < 1.5e-6
    same = net.kernel_fn(np.zeros((1, 4, 4, 1), np.float32), None, None, engine="fused")
    true = oracle.kernels(net, np.zeros((1, 4, 4, 1)), None)
    assert error(same.ntk, true.ntk) < 1.5e-6


def test_diverging_images_spoil_only_their_own_pairs() -> None:
    net = serial(
        Conv(3, (3, 3), padding="SAME", W_std=1.0, b_std=0.1),
        stax.Gaussian(1.0, 0.05),
        Conv(3, (3, 3), padding="SAME"),
        stax.Relu(),
        stax.GlobalAvgPool(),
    )
    x = normal(4, 5, 6, 2)
    good = net.kernel_fn(x[[0, 1, 3]], None, "ntk", engine="fused")
    x[2] *= 100
    kernel = np.asarray(net.kernel_fn(x, None, "ntk", engine="fused"))
    assert np.isnan(kernel[2]).all()
    np.testing.assert_array_equal(np.delete(np.delete(kernel, 2, 0), 2, 1), good)


def test_threads_of_the_caller() -> None:
    net = _pooled(stax.GlobalAvgPool())
    batches = list(normal(4, 5, 6, 5, 2))
    expected = [np.asarray(net.kernel_fn(x, None, "ntk", engine="fused")) for x in batches]
    found: dict[int, list[np.ndarray]] = {i: [] for i in range(4)}

    def work(i: int) -> None:
        for _ in range(5):
            found[i].append(np.asarray(net.kernel_fn(batches[i], None, "ntk", engine="fused")))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(4):
        assert len(found[i]) == 5
        for value in found[i]:
            np.testing.assert_array_equal(value, expected[i])


def test_an_error_on_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    net = _pooled(stax.GlobalAvgPool())
    x = normal(8, 6, 5, 2)
    expected = np.asarray(net.kernel_fn(x, None, "nngp", engine="fused"))

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "call_stage", stop)
        with pytest.raises(KeyboardInterrupt):
            net.kernel_fn(x, None, "nngp", engine="fused")
    np.testing.assert_array_equal(net.kernel_fn(x, None, "nngp", engine="fused"), expected)


def test_settings_of_numba_are_left_alone() -> None:
    import numba

    before = numba.get_num_threads(), numba.config.THREADING_LAYER
    net = _pooled(stax.GlobalAvgPool())
    net.kernel_fn(np.ones((2, 6, 5, 2), np.float32), None, "ntk", engine="fused")
    assert (numba.get_num_threads(), numba.config.THREADING_LAYER) == before


@pytest.mark.parametrize("n", [0, 1])
def test_few_images(n: int) -> None:
    net = _pooled(stax.GlobalAvgPool())
    x1, x2 = np.ones((n, 6, 5, 2), np.float32), np.ones((3, 6, 5, 2), np.float32)
    kernel = net.kernel_fn(x1, x2, None, engine="fused")
    assert kernel.nngp.shape == kernel.ntk.shape == (n, 3)
    assert kernel.cov1.shape == (n,)
    assert net.kernel_fn(x1, None, "ntk", engine="fused").shape == (n, n)


def test_huge_and_tiny_images() -> None:
    net = serial(
        Conv(3, (3, 3), padding="SAME"), stax.Relu(), Conv(3, (2, 2)), stax.Relu(), stax.Flatten()
    )
    x = normal(3, 4, 5, 2)
    base = np.asarray(net.kernel_fn(x, None, "ntk", engine="fused"))
    for power in (-40, 40):
        scaled = np.asarray(net.kernel_fn(np.ldexp(x, power), None, "ntk", engine="fused"))
        np.testing.assert_array_equal(scaled, np.ldexp(base, 2 * power))
    with np.errstate(over="ignore"):
        overflown = net.kernel_fn(x * np.float32(1e25), None, "ntk", engine="fused")
    assert not np.isfinite(overflown).any()
    with pytest.raises(ValueError, match=r"expected .* to be finite"):
        net.kernel_fn(np.full_like(x, np.nan), None, "ntk", engine="fused")


@pytest.mark.parametrize("x64", [False, True])
def test_precisions(x64: bool) -> None:
    net = _pooled(stax.GlobalAvgPool(), Dense(1))
    with jax.enable_x64(x64):
        x = normal(2, 6, 5, 2)
        kernel = net.kernel_fn(x, None, "ntk", engine="fused")
        assert kernel.dtype == (np.float64 if x64 else np.float32)
        assert error(kernel, oracle.kernels(net, x, None).ntk) < (1e-13 if x64 else 1e-6)
