"""The fused engine inside jit, vmap and grad: called back, differentiated by plain JAX."""

from __future__ import annotations

import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import widelimit as wl
from tests import quick
from tests.cases import CASES, SPATIAL
from tests.engines.fused.test_engine import error
from widelimit import choose_engine, stax
from widelimit.engines.fused import traced
from widelimit.engines.request import Request
from widelimit.stax import Conv, Dense, serial

BOTH = ("nngp", "ntk")
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 6, 5, 2)).astype(np.float32)
OTHERS = RNG.standard_normal((2, 6, 5, 2)).astype(np.float32)
ROWS = RNG.standard_normal((70, 5)).astype(np.float32)


def cnn(W_std: Any = 1.3, b_std: Any = 0.3) -> Any:
    return serial(
        Conv(3, (3, 3), padding="SAME", W_std=W_std, b_std=b_std),
        stax.Relu(),
        stax.AvgPool((2, 2), (2, 2)),
        Conv(3, (2, 2), W_std=1.2),
        stax.Erf(),
        stax.GlobalAvgPool(),
        Dense(1, W_std, 0.1),
    )


def fcn(W_std: Any = 1.3) -> Any:
    return serial(stax.Flatten(), Dense(8, W_std, 0.2), stax.Relu(), Dense(8, 1.1), stax.Relu())


NET = cnn()


@pytest.mark.parametrize("net", [NET, fcn()], ids=["cnn", "fcn"])
@pytest.mark.parametrize("get", [None, "ntk", "cov2", ("cov1", "nngp", "x1_is_x2")])
@pytest.mark.parametrize("given", [True, False])
def test_under_jit(net: Any, get: Any, given: bool, calls: list[int]) -> None:
    kernel_fn = functools.partial(net.kernel_fn, get=get, engine="fused")
    x2 = OTHERS if given else None
    found = jax.jit(lambda a, b: kernel_fn(a, b))(IMAGES, x2)
    assert calls or found is None
    expected = kernel_fn(IMAGES, x2)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert error(a, b) < 1e-6


RUNNING = [
    case
    for case in CASES + SPATIAL
    if choose_engine(case.net, (64, *case.shape), traced=True).name == "fused"
]


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNNING, ids=lambda c: c.name)
def test_the_zoo(case: Any, calls: list[int]) -> None:
    x1, x2 = case.inputs(3, 2)
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-12)):
        with jax.enable_x64(dtype == np.float64):
            call = functools.partial(case.net.kernel_fn, get=BOTH, engine="fused")
            found = jax.jit(call)(x1.astype(dtype), x2.astype(dtype))
            assert calls
            expected = call(x1.astype(dtype), x2.astype(dtype))
            assert max(map(error, found, expected)) < tolerance


def test_hyper_parameters_as_arguments(calls: list[int]) -> None:
    tangent = jax.jit(lambda net, x: net.kernel_fn(x, None, "ntk", engine="fused"))
    for make, W_std in ((cnn, 1.1), (cnn, 0.7), (fcn, 1.4)):
        calls.clear()
        found = tangent(make(W_std), IMAGES)
        assert calls
        assert error(found, make(W_std).kernel_fn(IMAGES, None, "ntk", engine="fused")) < 1e-6
    one = jax.jit(lambda s: cnn(s).kernel_fn(IMAGES, OTHERS, "nngp"))(0.9)
    assert error(one, cnn(0.9).kernel_fn(IMAGES, OTHERS, "nngp")) < 1e-6


@pytest.mark.parametrize("compiled", [True, False])
def test_vmap(compiled: bool, calls: list[int]) -> None:
    wrap = jax.jit if compiled else lambda f: f

    def kernel(W_std: Any, x1: Any, x2: Any) -> Any:
        return cnn(W_std).kernel_fn(x1, x2, "ntk")

    stacks = np.stack([IMAGES, IMAGES + 1]), np.stack([OTHERS, OTHERS - 1, 2 * OTHERS])
    by_x = jax.vmap(jax.vmap(functools.partial(kernel, 1.2), (None, 0)), (0, None))
    found = wrap(by_x)(*stacks)
    assert len(calls)
    for i, x1 in enumerate(stacks[0]):
        for j, x2 in enumerate(stacks[1]):
            assert error(found[i, j], kernel(1.2, x1, x2)) < 1e-6
    numbers = jnp.array([0.8, 1.2])
    by_both = jax.vmap(kernel, (0, 0, None))
    found = wrap(by_both)(numbers, stacks[0], OTHERS)
    for i in range(2):
        assert error(found[i], kernel(float(numbers[i]), stacks[0][i], OTHERS)) < 1e-6


@pytest.mark.parametrize("compiled", [True, False])
def test_derivatives_are_those_of_plain_jax(compiled: bool, calls: list[int]) -> None:
    wrap = quick.jit if compiled else lambda f: f
    x1, x2 = IMAGES[:, :3, :3], OTHERS[:, :3, :3]

    def total(engine: str, W_std: Any, x: Any) -> Any:
        net = serial(Conv(1, (2, 2), W_std=W_std, b_std=0.3), stax.Relu(), stax.GlobalAvgPool())
        kernel = net.kernel_fn(x, x2, None, engine=engine)
        return jnp.sum(kernel.nngp * jnp.cos(kernel.ntk)) + kernel.cov1.sum()

    fused, plain = (functools.partial(total, name) for name in ("fused", "reference"))
    found, expected = (wrap(jax.value_and_grad(f, (0, 1)))(1.2, x1) for f in (fused, plain))
    assert calls
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert error(a, b) < 1e-5
    tangent = wrap(lambda v: jax.jvp(lambda s: fused(s, x1), (1.2,), (v,))[1])(1.0)
    assert error(tangent, expected[1][0]) < 1e-5


def test_second_derivatives(calls: list[int]) -> None:
    def total(engine: str, W_std: Any) -> Any:
        return fcn(W_std).kernel_fn(ROWS, None, "ntk", engine=engine).sum()

    found, expected = (
        quick.jit(jax.hessian(functools.partial(total, name)))(1.3)
        for name in ("auto", "reference")
    )
    assert error(found, expected) < 1e-5


def test_samples_that_are_not_finite_are_nan() -> None:
    for net in (NET, fcn()):
        kernel_fn = functools.partial(net.kernel_fn, get=None, engine="fused")
        x1, x2 = IMAGES.copy(), OTHERS.copy()
        x1[1, 0, 0, 0], x2[0, 1, 1, 1] = np.nan, np.inf
        found = jax.jit(kernel_fn)(x1, x2)
        clean = kernel_fn(IMAGES, OTHERS)
        for name in BOTH:
            values = np.array(getattr(found, name))
            assert np.isnan(values[1]).all()
            assert np.isnan(values[:, 0]).all()
            rest = np.ix_([0, 2], [1])
            assert error(values[rest], np.asarray(getattr(clean, name))[rest]) < 1e-6
        assert np.isnan(found.cov1).tolist() == [False, True, False]
        assert np.isnan(found.cov2).tolist() == [True, False]
        alone = np.isnan(jax.jit(lambda x, f=kernel_fn: f(x, None).ntk)(x1))
        assert alone.sum() == 5
        assert alone[1].all()


def test_equal_images_have_the_exact_diagonal() -> None:
    found = jax.jit(lambda a, b: NET.kernel_fn(a, b, None))(IMAGES, IMAGES.copy())
    np.testing.assert_array_equal(np.diag(found.nngp), found.cov1)
    assert not found.x1_is_x2


def test_equal_calls_share_what_is_compiled() -> None:
    def call(W_std: Any) -> Any:
        return traced.TracedEngine(cnn(W_std), IMAGES.shape, Request(BOTH))._call

    assert call(jnp.float32(1.1)) == call(jnp.float32(0.4))
    assert hash(call(1.1)) == hash(call(1.1))
    assert call(1.1) != call(1.2)


def _work(errors: list[float], size: int, seed: int) -> None:
    """Calls back from all kinds of code, with arrays that XLA does not copy at once."""
    rng = np.random.default_rng(seed)
    x1, x2 = rng.standard_normal((2, size, 700)).astype(np.float32)
    net = serial(Dense(1, 1.2, 0.1), stax.Relu(), Dense(1))
    kernel = functools.partial(net.kernel_fn, get="ntk", engine="fused")
    expected = np.asarray(kernel(np.sin(x1), x2))

    @jax.jit
    def scanned(x1: Any, x2: Any) -> Any:
        def step(total: Any, x: Any) -> Any:
            k = kernel(jnp.sin(x), x2)
            return total + k, (k @ k.T).sum()

        return lax.scan(step, jnp.zeros((size, size)), jnp.stack([x1, x1]))

    mapped = jax.jit(lambda x1, x2: lax.map(lambda x: kernel(jnp.sin(x), x2), jnp.stack([x1, x1])))
    gradient = jax.jit(jax.value_and_grad(lambda x1, x2: kernel(jnp.sin(x1), x2).sum()))
    for _ in range(2):
        errors.append(error(scanned(x1, x2)[0] / 2, expected))
        errors.append(error(mapped(x1, x2)[1], expected))
        value, direction = gradient(x1, x2)
        errors.append(abs(float(value) / float(expected.sum()) - 1))
        assert np.isfinite(direction).all()


def test_loops_gradients_and_threads_at_once() -> None:
    errors: list[float] = []
    threads = [threading.Thread(target=_work, args=(errors, 150, i)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    assert len(errors) == 18
    assert max(errors) < 1e-5


def test_predictions_inside_jit(calls: list[int]) -> None:
    x, y = ROWS, np.sin(ROWS[:, :1])

    def predict(x: Any, x_test: Any) -> Any:
        make = wl.predict.gradient_descent_mse_ensemble
        return make(fcn().kernel_fn, x, y, diag_reg=1e-2)(x_test=x_test, get="ntk")

    expected = predict(x, x[:64] + 1)
    calls.clear()
    found = jax.jit(predict)(x, x[:64] + 1)
    assert calls
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_which_engine_runs(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose_engine(NET, IMAGES.shape, traced=True)
    assert choice.name == "fused"
    assert "traced" in choice.reason
    assert choose_engine(fcn(), (63, 5), traced=True).name == "reference"
    assert choose_engine(fcn(), (64, 5), traced=True).name == "fused"
    assert "series" in choose_engine(serial(Dense(1), stax.Tanh()), ROWS.shape, traced=True).reason
    few = jax.jit(fcn().kernel_fn, static_argnums=2)
    few(ROWS[:10], None, "ntk")
    jax.jit(functools.partial(NET.kernel_fn, get="ntk", engine="reference"))(IMAGES)
    jax.jit(lambda x: NET.kernel_fn(x, None, "ntk", mask_constant=9.0))(IMAGES)
    assert not calls
    few(ROWS, None, "ntk")
    assert calls
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert "several devices" in choose_engine(cnn(), IMAGES.shape, traced=True).reason


def test_what_is_refused() -> None:
    tanh = serial(Dense(1), stax.Tanh(), Dense(1))
    with pytest.raises(ValueError, match="a table of a series"):
        jax.jit(lambda x: tanh.kernel_fn(x, None, "ntk", engine="fused"))(ROWS)
    with pytest.raises(ValueError, match="masks"):
        jax.jit(lambda x: NET.kernel_fn(x, None, "ntk", mask_constant=9.0, engine="fused"))(IMAGES)
