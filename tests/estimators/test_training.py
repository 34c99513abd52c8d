"""Ensembles of estimators beside `InfiniteEnsemble`, repeated samples and samples left out."""

import numpy as np
import pytest

import widelimit as wl
from tests.estimators.problems import regression, repeated, weights
from tests.tolerance import assert_close
from widelimit.estimators.training import Ensemble, LearningSettings
from widelimit.estimators.tuning import Amplitudes

NET = wl.models.fcn(2, W_std=1.3, b_std=0.4)
NAMES = {"bayes": ("nngp",), "gradient_descent": ("nngp", "ntk")}
KINDS = pytest.mark.parametrize("inference", sorted(NAMES))
CHOSEN = Amplitudes(0.05, 0.8)


def ensemble(inference, x, y, weights=None, chosen=CHOSEN, steps=None, solver=None):
    settings = LearningSettings(NAMES[inference], chosen, None, steps, solver, "1GB")
    return Ensemble(NET, x, y, np.ones(len(x)) if weights is None else weights, settings)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", [None, wl.predict.Cholesky()], ids=["None", "Cholesky"])
@KINDS
def test_moments_are_those_of_an_infinite_ensemble(inference, solver):
    x, y, test = regression()
    chosen = Amplitudes(0.05, 1.0)
    ours = ensemble(inference, x, y, chosen=chosen, solver=solver)
    theirs = wl.InfiniteEnsemble(NET, x, y, inference=inference, noise=0.05**0.5, jitter=0.0)
    assert_close(ours.mean(test), theirs.mean(test))
    assert_close(ours.variance(test), theirs.var(test)[:, 0])
    assert_close(ours.covariance(test), theirs.cov(test))
    if inference == "bayes":
        assert_close(ours.log_evidence(), theirs.log_marginal_likelihood())


@pytest.mark.usefixtures("x64")
def test_finite_times_are_those_of_an_infinite_ensemble():
    x, y, test = regression()
    ours = ensemble("gradient_descent", x, y, chosen=Amplitudes(0.05, 1.0), steps=21.0)
    theirs = wl.InfiniteEnsemble(NET, x, y, learning_rate=0.7, noise=0.05**0.5, jitter=0.0).at(30)
    assert_close(ours.mean(test), theirs.mean(test))
    assert_close(ours.variance(test), theirs.var(test)[:, 0])


@pytest.mark.usefixtures("x64")
def test_scale_multiplies_the_network():
    x, y, test = regression()
    ours = ensemble("gradient_descent", x, y, chosen=Amplitudes(0.05, 0.5), steps=40.0)

    def scaled(x1, x2, get, **kwargs):
        kernels = NET.kernel_fn(x1, x2, ("nngp", "ntk"), **kwargs)
        halves = type(kernels)(*(0.25 * kernel for kernel in kernels))
        return getattr(halves, get) if isinstance(get, str) else halves

    noise = 0.05**0.5 * 0.5
    theirs = wl.InfiniteEnsemble(scaled, x, y, noise=noise, jitter=0.0).at(40)
    assert_close(ours.mean(test), theirs.mean(test))
    assert_close(ours.variance(test), theirs.var(test)[:, 0])


@pytest.mark.parametrize(
    ("inference", "steps"),
    [("bayes", None), ("gradient_descent", None), ("gradient_descent", 30.0)],
)
def test_weights_count_as_repeated_samples(inference, steps):
    x, y, test = regression()
    w = weights(len(x))
    weighted = ensemble(inference, x, y, w, steps=steps)
    copies = ensemble(inference, *repeated(w, x, y), steps=steps)
    assert_close(weighted.mean(test), copies.mean(test), rtol=1e-9)
    assert_close(weighted.covariance(test), copies.covariance(test), rtol=1e-9)
    assert_close(weighted.log_evidence(), copies.log_evidence(), rtol=1e-9)


@KINDS
def test_samples_left_out_are_predicted_by_the_others(inference):
    x, y, _ = regression()
    w = weights(len(x))
    w[4] = 0.5  # left out whole
    residuals, variances = ensemble(inference, x, y, w).left_out()
    for i in range(8):
        others = w.copy()
        others[i] -= min(1.0, w[i])
        if w[i]:
            without = ensemble(inference, x, y, others)
            assert_close(residuals[i], y[i] - without.mean(x[i : i + 1])[0], rtol=1e-9)
            assert_close(variances[i : i + 1], without.variance(x[i : i + 1]), rtol=1e-9)
        else:
            assert not residuals[i].any()


@KINDS
def test_without_noise_samples_left_out_are_still_predicted(inference):
    x, y, _ = regression(samples=8)
    residuals, variances = ensemble(inference, x, y, chosen=Amplitudes(0.0, 1.0)).left_out()
    without = ensemble(inference, x[1:], y[1:], chosen=Amplitudes(0.0, 1.0))
    assert_close(residuals[0], y[0] - without.mean(x[:1])[0], rtol=1e-8)
    assert_close(variances[:1], without.variance(x[:1]), rtol=1e-8)


def test_repeated_samples_without_noise_warn():
    x, y, test = regression(samples=5)
    exact = Amplitudes(0.0, 1.0)
    with pytest.warns(RuntimeWarning, match="limit of vanishing noise"):
        ours = ensemble("bayes", *repeated(np.full(5, 2), x, y), chosen=exact)
    assert_close(ours.mean(test), ensemble("bayes", x, y, chosen=exact).mean(test), rtol=1e-8)


def test_finite_times_have_no_closed_form_for_samples_left_out():
    x, y, _ = regression()
    with pytest.raises(ValueError, match="expected training_time=None for leave-one-out"):
        ensemble("gradient_descent", x, y, steps=3.0).left_out()


@KINDS
def test_many_samples_are_predicted_in_blocks(inference, monkeypatch):
    x, y, test = regression()
    ours = ensemble(inference, x, y)
    whole = ours.mean(test), ours.variance(test)
    monkeypatch.setattr("widelimit.estimators.training._BLOCK", 4)
    assert_close(ours.mean(test), whole[0])
    assert_close(ours.variance(test), whole[1])
