import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.scale import stores
from tests.scale.problems import MemoryStore
from widelimit import InfiniteEnsemble, scale, stax
from widelimit.scale.ensemble import StoredEnsemble
from widelimit.scale.krylov import Krylov

NET = stax.serial(
    stax.Dense(512, W_std=1.5, b_std=0.1),
    stax.Relu(),
    stax.Dense(512, W_std=1.5, b_std=0.1),
    stax.Relu(),
    stax.Dense(1, W_std=1.5, b_std=0.1),
)


def data(n=150, dtype=np.float64):
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(n, 6)), rng.normal(size=(7, 6))
    y = np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], 1) + 0.1 * rng.normal(size=(n, 2))
    return x.astype(dtype), y.astype(dtype), x_test.astype(dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("inference", ["gradient_descent", "bayes"])
def test_against_the_ensemble_in_memory(inference, noise, tmp_path):
    x, y, x_test = data()
    options = {"inference": inference, "noise": noise, "learning_rate": 0.7}
    dense = InfiniteEnsemble(NET, x, y, **options)
    store = MemoryStore(NET, x, tmp_path / "a")
    stored = InfiniteEnsemble(store, y, solver="pcg", **options)
    assert isinstance(stored, StoredEnsemble)
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(stored.mean(x_test), dense.mean(x_test), **close)
    np.testing.assert_allclose(stored.cov(x_test), dense.cov(x_test), **close)
    np.testing.assert_allclose(
        stored.std(x_test, noise=True), dense.std(x_test, noise=True), **close
    )
    key = jax.random.key(0)
    np.testing.assert_allclose(stored.var(x_test), dense.var(x_test), **close)
    drawn = [ensemble.sample(key, x_test, 3) for ensemble in (stored, dense)]
    np.testing.assert_allclose(*drawn, rtol=0, atol=1e-4)
    losses = [ensemble.loss(x_test, y[:7]) for ensemble in (stored, dense)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_every_time_by_one_basis(tmp_path):
    x, y, x_test = data()
    dense = InfiniteEnsemble(NET, x, y, noise=0.2, learning_rate=0.7)
    store = MemoryStore(NET, x, tmp_path / "a")
    stored = InfiniteEnsemble(store, y, noise=0.2, learning_rate=0.7)
    t = np.array([0.0, 10.0, 1e3, 1e5, np.inf])
    np.testing.assert_allclose(
        stored.at(t).mean(x_test), dense.at(t).mean(x_test), rtol=0, atol=1e-7
    )
    np.testing.assert_allclose(stored.at(t).cov(x_test), dense.at(t).cov(x_test), rtol=0, atol=1e-6)
    passes = store.operators["ntk"].passes
    stored.at(33.0).mean(x_test)
    again = InfiniteEnsemble(store, y, noise=0.3, learning_rate=0.1)  # another ridge
    again.at(5.0).mean(x_test)
    assert store.operators["ntk"].passes == passes
    assert stored.at(2.0).mean(x_test).shape == (7, 2)


def test_the_solution_is_computed_once(tmp_path, monkeypatch):
    x, y, x_test = data(dtype=np.float32)
    store = MemoryStore(NET, x, tmp_path / "a")
    first = InfiniteEnsemble(store, y, noise=0.2)
    mean = first.mean(x_test)
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, InfiniteEnsemble(NET, x, y, noise=0.2).mean(x_test), atol=2e-6)
    passes = store.operators["ntk"].passes
    np.testing.assert_array_equal(copy.copy(first).mean(x_test), mean)
    np.testing.assert_array_equal(InfiniteEnsemble(store, y, noise=0.2).mean(x_test), mean)
    assert store.operators["ntk"].passes == passes
    assert store.operators["nngp"].passes == 0
    # Few test points at a time.
    monkeypatch.setattr("widelimit.scale.ensemble._ROW_BYTES", 2**28 // len(x))
    small = StoredEnsemble(store, y, noise=0.2, memory=3 * 2**28)
    np.testing.assert_allclose(small.mean(x_test), mean, rtol=1e-5)
    assert small.at(np.ones((2, 1))).mean(x_test).shape == (2, 1, 7, 2)


@pytest.mark.usefixtures("x64")
def test_the_marginal_likelihood_and_its_error(tmp_path):
    x, y, _ = data()
    exact = InfiniteEnsemble(NET, x, y, noise=0.2, inference="bayes").log_marginal_likelihood()
    store = MemoryStore(NET, x, tmp_path / "a", get=("nngp", "ntk"))
    stored = InfiniteEnsemble(store, y, noise=0.2, inference="bayes", solver=Krylov(probes=32))
    found = stored.estimate_log_marginal_likelihood()
    assert abs(found.value - exact) < 4 * found.error < 0.2 * abs(exact)
    np.testing.assert_allclose(stored.log_marginal_likelihood(), found.value, rtol=1e-12)
    trained = InfiniteEnsemble(store, y)
    for method in ["estimate_log_marginal_likelihood", "log_marginal_likelihood"]:
        with pytest.raises(ValueError, match="expected inference='bayes' for a marginal"):
            getattr(trained, method)()


def test_a_store_on_disk(tmp_path):
    x = stores.inputs()
    y, x_test = np.sin(x[:, :2]), x[:5] + 0.1
    store = stores.small_store(tmp_path, get=("nngp", "ntk"))
    store.fill(progress=False)
    stored = InfiniteEnsemble(store, y, noise=0.1)
    dense = InfiniteEnsemble(stores.net(), x, y, noise=0.1)
    np.testing.assert_allclose(stored.mean(x_test), dense.mean(x_test), atol=1e-5)
    np.testing.assert_allclose(stored.std(x_test), dense.std(x_test), atol=1e-5)
    np.testing.assert_allclose(stored.at(9.0).mean(x_test), dense.at(9.0).mean(x_test), atol=1e-5)
    # Checkpoints are not part of what the store holds.
    assert store.verify(progress=False)
    again = InfiniteEnsemble(scale.open_store(store.path), y, noise=0.1)
    np.testing.assert_array_equal(again.mean(x_test), stored.mean(x_test))


def test_errors(tmp_path):
    x, y, _ = data(20, np.float32)
    store = MemoryStore(NET, x, tmp_path / "a")
    with pytest.raises(TypeError, match=r"expected solver 'pcg' or a scale.Krylov, got 'lu'"):
        InfiniteEnsemble(store, y, solver="lu")
    with pytest.raises(ValueError, match=r"expected y of shape \(20, outputs\) .*got \(19, 2\)"):
        InfiniteEnsemble(store, y[1:])
    with pytest.raises(ValueError, match=r"expected y of shape \[n, outputs\]"):
        InfiniteEnsemble(store, y[:, 0])
    with pytest.raises(ValueError, match="expected inference 'gradient_descent' or 'bayes'"):
        InfiniteEnsemble(store, y, inference="map")
    store.get = ("nngp",)
    InfiniteEnsemble(store, y, inference="bayes")
    with pytest.raises(ValueError, match=r"expected a store with the kernels \('nngp', 'ntk'\)"):
        InfiniteEnsemble(store, y)
