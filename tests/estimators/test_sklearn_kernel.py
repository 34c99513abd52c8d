"""The kernel of scikit-learn beside our own kernels and estimators."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, WhiteKernel

import widelimit as wl
from tests.estimators.problems import regression
from tests.tolerance import assert_close
from widelimit.estimators import NNGPRegressor, SklearnKernel


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
def test_values_are_those_of_the_network(kernel):
    x, _, test = regression()
    ours = SklearnKernel(kernel=kernel, depth=2, W_std=1.2, b_std=0.3)
    kernel_fn = wl.models.fcn(2, W_std=1.2, b_std=0.3).kernel_fn
    assert_close(ours(x), kernel_fn(x, None, kernel))
    assert_close(ours(x, test), kernel_fn(x, test, kernel))
    assert_close(ours.diag(x), np.diag(ours(x)))


@pytest.mark.parametrize("b_std", [0.5, None])
@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
def test_derivatives_are_those_of_differences(kernel, b_std):
    x, _, _ = regression(samples=5)
    ours = SklearnKernel(kernel=kernel, depth=1, activation="erf", b_std=b_std)
    slopes = ours(x, eval_gradient=True)[1]
    assert slopes.shape == (5, 5, 1 + (b_std is not None)) == (5, 5, len(ours.theta))
    for i, step in enumerate(1e-5 * np.eye(len(ours.theta))):
        ends = [ours.clone_with_theta(ours.theta + sign * step)(x) for sign in (1, -1)]
        assert_close(slopes[..., i], (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


def test_fixed_hyperparameters_have_no_derivatives():
    x, _, _ = regression(samples=4)
    fixed = SklearnKernel(wl.models.fcn(1))
    assert fixed.theta.size == 0
    assert fixed(x, eval_gradient=True)[1].shape == (4, 4, 0)
    half = SklearnKernel(depth=1, W_std_bounds="fixed")
    assert half.bounds.shape == (1, 2)
    full = SklearnKernel(depth=1)(x, eval_gradient=True)[1]
    assert_close(half(x, eval_gradient=True)[1], full[..., 1:])


def test_posteriors_are_those_of_our_estimator():
    x, y, test = regression()
    ours = NNGPRegressor(depth=1, noise=0.3, optimizer=None, normalize_X=False).fit(x, y)
    theirs = GaussianProcessRegressor(
        SklearnKernel(depth=1), alpha=0.09, optimizer=None, normalize_y=True
    ).fit(x, y)
    assert_close(ours.predict(test), theirs.predict(test), rtol=1e-9)
    pairs = zip(
        ours.predict(test, return_std=True), theirs.predict(test, return_std=True), strict=True
    )
    for mine, other in pairs:
        assert_close(mine, other, rtol=1e-8)
    assert_close(
        ours.log_marginal_likelihood_value_, theirs.log_marginal_likelihood_value_, rtol=1e-9
    )


@pytest.mark.filterwarnings("ignore:The optimal value")  # W_std ends at a bound
def test_scikit_learn_finds_the_same_evidence():
    x, y, _ = regression(outputs=1, samples=60)
    bounds = {"W_std_bounds": (0.5, 4.0), "b_std_bounds": (0.01, 4.0)}
    ours = NNGPRegressor(depth=1, normalize_X=False, **bounds).fit(x, y[:, 0])
    scale = ConstantKernel(1.0, (1e-9, 1e3))
    kernel = scale * SklearnKernel(depth=1, **bounds) + WhiteKernel(0.1)
    theirs = GaussianProcessRegressor(kernel, alpha=0.0, normalize_y=True).fit(x, y[:, 0])
    assert_close(
        ours.log_marginal_likelihood_value_, theirs.log_marginal_likelihood_value_, rtol=1e-3
    )


def test_images_come_as_rows():
    x = np.random.default_rng(0).random((3, 16))
    ours = SklearnKernel("cnn", depth=1, image_shape=(4, 4, 1))
    assert_close(ours(x).diagonal(), ours.diag(x))
    assert clone(ours) == ours


def test_wrong_calls_are_refused():
    x, _, test = regression()
    with pytest.raises(ValueError, match="expected Y=None with eval_gradient=True"):
        SklearnKernel()(x, test, eval_gradient=True)
    with pytest.raises(ValueError, match="expected kernel to be one of"):
        SklearnKernel(kernel="rbf")(x)
