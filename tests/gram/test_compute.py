"""Kernels in tiles where one call would take too much; kernel functions inside `jax.jit`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import stax
from widelimit.engines.fused import flat_machine
from widelimit.gram import compute
from widelimit.gram.callables import CallableTiler
from widelimit.gram.compute import unwrapped
from widelimit.stax import Dense, serial

NET = serial(Dense(16, 1.4, 0.1), stax.Relu(), Dense(1, 1.2))
SMALL = 2_000  # bytes, a few pairs
BOTH = ("nngp", "ntk")


def data(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3)).astype(np.float32)
    return x, np.sin(x[:, :1])


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tiles of every kernel that was computed in tiles."""
    seen = []

    def counted(tiler: Any, grid: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(grid.spans(0)) * len(grid.spans(1)))
        return original(tiler, grid, *args, **kwargs)

    original = compute.compute
    monkeypatch.setattr(compute, "compute", counted)
    return seen


@pytest.mark.usefixtures("reference_engine")
@pytest.mark.parametrize("inference", ["bayes", "gradient_descent"])
def test_ensembles_within_a_budget(inference: str, tiles: list[int]) -> None:
    (x, y), (x_test, _) = data(9), data(4, seed=1)
    whole = wl.InfiniteEnsemble(NET, x, y, inference=inference, noise=0.1)
    mean, std = whole.mean(x_test), whole.std(x_test)
    assert tiles == []
    parts = wl.InfiniteEnsemble(NET, x, y, inference=inference, noise=0.1, memory=SMALL)
    np.testing.assert_allclose(parts.mean(x_test), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.std(x_test), std, rtol=1e-3, atol=1e-4)
    assert len(tiles) >= 3
    assert min(tiles) > 1
    with pytest.raises(ValueError, match="memory of at least"):
        wl.InfiniteEnsemble(NET, x, y, inference=inference, memory=10)
    with pytest.raises(ValueError, match="expected memory like"):
        wl.InfiniteEnsemble(NET, x, y, memory="much")


@pytest.mark.usefixtures("reference_engine")
def test_predictions_within_a_budget(tiles: list[int]) -> None:
    (x, y), (x_test, _) = data(9), data(4, seed=1)
    make = wl.predict.gradient_descent_mse_ensemble
    kwargs = {"diag_reg": 1e-2, "learning_rate": 0.1}
    whole, parts = (
        make(NET.kernel_fn, x, y, **kwargs),
        make(NET.kernel_fn, x, y, **kwargs, memory=SMALL),
    )
    for arguments in ({"t": 10.0}, {"t": None, "x_test": x_test}, {"t": 10.0, "x_test": x_test}):
        expected = whole(**arguments, compute_cov=True)
        for one, other in zip(
            *map(jax.tree.leaves, (parts(**arguments, compute_cov=True), expected)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert min(tiles) > 1
    inside = jax.jit(lambda x_test: parts(1.0, x_test, "ntk"))(x_test)
    np.testing.assert_allclose(inside, whole(1.0, x_test, "ntk"), rtol=1e-4, atol=1e-5)


def test_what_is_traced_or_combines_samples_takes_one_call(tiles: list[int]) -> None:
    x, y = data(9)

    def evidence(net: Any, kernel_fn_of: Any) -> Any:
        kernel_fn = kernel_fn_of(net)
        ensemble = wl.InfiniteEnsemble(
            kernel_fn, x, y, inference="bayes", noise=0.1, memory=SMALL * 1000
        )
        return ensemble.log_marginal_likelihood()

    expected = jax.grad(evidence)(NET, lambda net: net)
    hidden = jax.grad(evidence)(NET, lambda net: lambda *args: net.kernel_fn(*args))
    for one, other in zip(*map(jax.tree.leaves, (hidden, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    mixing = serial(Dense(3), stax.LayerNorm((0, -1)), Dense(2))
    wl.InfiniteEnsemble(mixing, x, y, memory=SMALL, noise=0.1)
    batched = wl.batch(NET.kernel_fn, 4)
    wl.InfiniteEnsemble(batched, x, y, memory=SMALL, noise=0.1)
    assert tiles == []


def test_estimates_of_any_function() -> None:
    def kernel_fn(x1: Any, x2: Any, get: str) -> Any:
        x2 = x1 if x2 is None else x2
        return jnp.exp(-jnp.square(x1[:, None] - x2[None]).sum(-1))

    x, _ = data(64)
    tiler = CallableTiler(kernel_fn, (x, None), ("nngp",), jax.local_devices()[:1], {})
    compiled = jax.jit(kernel_fn, static_argnums=2).lower(x, x, "nngp").compile().memory_analysis()
    actual = compiled.temp_size_in_bytes + compiled.output_size_in_bytes
    assert actual <= tiler.tile_bytes(64, 64) <= 20 * 4 * 3 * 64**2

    def untraceable(x1: Any, x2: Any, get: str) -> Any:
        return np.asarray(kernel_fn(x1, x2, get))

    tiler = CallableTiler(untraceable, (x, None), ("nngp",), jax.local_devices()[:1], {})
    assert tiler.tile_bytes(64, 64) >= 4 * 64**2


@pytest.mark.usefixtures("reference_engine")
def test_network_estimates_cover_what_xla_needs() -> None:
    net = wl.models.fcn(5)
    x = jax.ShapeDtypeStruct((512, 100), jnp.float32)
    compiled = jax.jit(lambda a, b: net.kernel_fn(a, b, ("nngp", "ntk"))).lower(x, x).compile()
    sizes = compiled.memory_analysis()
    samples = np.zeros((512, 100), np.float32)
    tiler = net.kernel_fn.tiler(samples, None, ("nngp", "ntk"), jax.local_devices()[:1])
    needed = sizes.temp_size_in_bytes + sizes.output_size_in_bytes
    assert needed <= tiler.tile_bytes(512, 512) <= 2 * needed


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every run of the fused engine's loops."""
    made: list[int] = []
    run = flat_machine.run_rows

    def counted(*args: Any) -> None:
        made.append(len(args))
        run(*args)

    monkeypatch.setattr(flat_machine, "run_rows", counted)
    return made


def _jitted() -> dict[str, Any]:
    kernel_fn = NET.kernel_fn
    by_number = jax.jit(kernel_fn, static_argnums=(2,))
    return {
        "number": by_number,
        "name": jax.jit(kernel_fn, static_argnames="get"),
        "partial inside": jax.jit(functools.partial(kernel_fn, diagonal_spatial=False)),
        "partial outside": functools.partial(by_number, diagonal_spatial=False),
        "twice": jax.jit(by_number, static_argnums=(2,)),
        "triple": (*NET[:2], by_number),
    }


JITTED = pytest.mark.parametrize("how", list(_jitted()))


@JITTED
def test_gram_and_batch(how: str, runs: list[int]) -> None:
    jitted = _jitted()[how]
    (x, _), (x_test, _) = data(9), data(4, seed=1)
    expected = wl.gram(NET, x, x_test, BOTH)
    runs.clear()
    for a, b in zip(wl.gram(jitted, x, x_test, BOTH), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert runs
    runs.clear()
    jitted = jitted[2] if isinstance(jitted, tuple) else jitted
    batched, plain = (wl.batch(f, 4)(x, x_test, "ntk") for f in (jitted, NET.kernel_fn))
    np.testing.assert_array_equal(batched, plain)
    assert runs


@JITTED
def test_ensembles(how: str, runs: list[int]) -> None:
    (x, y), (x_test, _) = data(9), data(4, seed=1)
    jitted = _jitted()[how]

    def predictions(kernel_fn: Any) -> list[Any]:
        predict = wl.predict.gradient_descent_mse_ensemble(kernel_fn, x, y, diag_reg=1e-3)
        ensemble = wl.InfiniteEnsemble(kernel_fn, x, y, noise=0.1)
        return [*predict(x_test=x_test, get="ntk", compute_cov=True), ensemble.std(x_test)]

    expected = predictions(NET.kernel_fn)
    runs.clear()
    for a, b in zip(predictions(jitted), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert runs


def test_keywords_of_both_sides_of_jit() -> None:
    inside = functools.partial(NET.kernel_fn, mask_constant=7.0, diagonal_spatial=False)
    outside = functools.partial(jax.jit(inside), diagonal_spatial=True)
    found, keywords = unwrapped(outside, {"a": 1})
    assert found == NET.kernel_fn
    assert keywords == {"mask_constant": 7.0, "diagonal_spatial": True, "a": 1}


def test_functions_around_a_kernel_function_stay_as_they_are() -> None:
    @functools.wraps(NET.kernel_fn)
    def twice(x1: Any, x2: Any, get: Any) -> Any:
        return 2 * NET.kernel_fn(x1, x2, get)

    (x, _), (x_test, _) = data(9), data(4, seed=1)
    for function in (twice, jax.jit(twice, static_argnums=2), jax.vmap(NET.kernel_fn)):
        assert unwrapped(function, {}) == (function, {})
    found = wl.gram(jax.jit(twice, static_argnums=2), x, x_test, "ntk")
    expected = 2 * np.asarray(NET.kernel_fn(x, x_test, "ntk"))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    batched = wl.batch(NET.kernel_fn, 2)
    assert unwrapped(jax.jit(batched), {})[0] != NET.kernel_fn
