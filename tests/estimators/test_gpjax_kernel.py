"""The kernel of GPJax beside our own kernels and posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.estimators.problems import regression
from tests.tolerance import assert_close
from widelimit.estimators import NNGPRegressor

gpjax = pytest.importorskip("gpjax")
pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def conditioned(x, y):
    from widelimit.estimators import GPJaxKernel

    prior = gpjax.gps.Prior(GPJaxKernel(depth=1), gpjax.mean_functions.Zero())
    model = prior * gpjax.likelihoods.Gaussian(obs_stddev=jnp.array(0.3))
    return model, gpjax.Dataset(jnp.asarray(x), jnp.asarray(y))


@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
def test_values_are_those_of_the_network(kernel):
    from widelimit.estimators import GPJaxKernel

    x, _, test = regression()
    ours = GPJaxKernel(kernel=kernel, depth=2, b_std=None)
    expected = wl.models.fcn(2, b_std=None).kernel_fn(x, test, kernel)
    assert_close(ours.cross_covariance(jnp.asarray(x), jnp.asarray(test)), expected)
    assert_close(ours(jnp.asarray(x[0]), jnp.asarray(test[1])), expected[0, 1])
    given = GPJaxKernel(wl.models.fcn(2, b_std=None), kernel)
    assert_close(given.cross_covariance(jnp.asarray(x), jnp.asarray(test)), expected)


def test_evidence_and_posteriors_are_those_of_our_estimator():
    x, y, test = regression(outputs=1)
    model, data = conditioned(x, y)
    ours = NNGPRegressor(
        depth=1, noise=0.3, optimizer=None, normalize_X=False, normalize_y=False
    ).fit(x, y[:, 0])
    found = gpjax.objectives.conjugate_mll(model, data)
    assert_close(found, ours.log_marginal_likelihood_value_, rtol=1e-4)  # their jitter
    latent = model.condition(data).predict(jnp.asarray(test))
    mean, std = ours.predict(test, return_std=True)
    assert_close(latent.mean.ravel(), mean, rtol=1e-4)
    assert_close(latent.variance.ravel(), std**2, rtol=1e-4)


def test_hyperparameters_have_derivatives():
    x, y, _ = regression(outputs=1, samples=6)
    model, data = conditioned(x, y)
    slopes = jax.grad(lambda m: gpjax.objectives.conjugate_mll(m, data))(model)
    leaves = jax.tree.leaves(slopes.prior.kernel)
    assert len(leaves) == 2
    assert np.isfinite(leaves).all()
    assert np.all(leaves)
