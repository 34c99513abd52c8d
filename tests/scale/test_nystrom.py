import numpy as np
import pytest

from widelimit import InfiniteEnsemble, stax
from widelimit.scale.nystrom import NystromRegression

NET = stax.serial(
    stax.Dense(512, W_std=1.5, b_std=0.1), stax.Relu(), stax.Dense(1, W_std=1.5, b_std=0.1)
)


def data(n=60):
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(n, 4)), rng.normal(size=(5, 4))
    return x, np.stack([np.sin(x[:, 0]), x[:, 1]], 1), x_test


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_against_dense_algebra(get, monkeypatch):
    monkeypatch.setattr("widelimit.scale.nystrom._TILE_BYTES", 8 * 15 * 7)
    monkeypatch.setattr("widelimit.scale.nystrom._PRIOR_ROWS", 2)
    x, y, x_test = data()
    places = np.arange(0, 60, 4)
    model = NystromRegression(NET, x, y, landmarks=places, get=get, noise=0.3, jitter=1e-3)

    def kernel(x1, x2):
        return np.asarray(NET.kernel_fn(x1, x2, get))

    z = x[places]
    zz, zx, tz = kernel(z, None), kernel(z, x), kernel(x_test, z)
    ridge = 0.09 + 1e-3 * np.trace(zz) / 15
    s = zx @ zx.T + ridge * zz
    np.testing.assert_allclose(model.mean(x_test), tz @ np.linalg.solve(s, zx @ y), rtol=1e-8)
    between = np.linalg.inv(zz) - ridge * np.linalg.inv(s)
    variance = np.diag(kernel(x_test, None) - tz @ between @ tz.T)
    np.testing.assert_allclose(model.var(x_test)[:, 1], variance, rtol=1e-7)
    np.testing.assert_allclose(model.std(x_test, noise=True)[:, 0] ** 2, variance + 0.09, rtol=1e-7)


@pytest.mark.usefixtures("x64")
def test_all_samples_as_landmarks_are_the_posterior():
    x, y, x_test = data()
    exact = InfiniteEnsemble(NET, x, y, inference="bayes", noise=0.3, jitter=0)
    model = NystromRegression(NET, x, y, landmarks=60, noise=0.3, jitter=0.0)
    np.testing.assert_allclose(model.mean(x_test), exact.mean(x_test), atol=1e-7)
    np.testing.assert_allclose(model.var(x_test), exact.var(x_test), atol=1e-7)


def test_repeated_landmarks_in_float32():
    x, y, x_test = (array.astype(np.float32) for array in data())
    model = NystromRegression(NET, x, y, landmarks=np.tile(np.arange(10), 2), noise=0.3)
    once = NystromRegression(NET, x, y, landmarks=np.arange(10), noise=0.3)
    assert model.mean(x_test).dtype == np.float32
    np.testing.assert_allclose(model.mean(x_test), once.mean(x_test), atol=1e-4)


def test_errors():
    x, y, _ = data()
    with pytest.raises(ValueError, match="expected between 1 and 60 landmarks, got 61"):
        NystromRegression(NET, x, y, landmarks=61)
    with pytest.raises(ValueError, match=r"expected y of shape \(60, outputs\), got \(59, 2\)"):
        NystromRegression(NET, x, y[1:], landmarks=5)
    with pytest.raises(ValueError, match="expected noise or jitter above 0"):
        NystromRegression(NET, x, y, landmarks=5, jitter=0.0)
