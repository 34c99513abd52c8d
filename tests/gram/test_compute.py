"""Ensembles compute their kernels in tiles where one call would take too much."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from widelimit import stax
from widelimit.gram import compute
from widelimit.gram.callables import CallableTiler
from widelimit.stax import Dense, serial

NET = serial(Dense(16, 1.4, 0.1), stax.Relu(), Dense(1, 1.2))
SMALL = 2_000  # bytes, a few pairs


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
