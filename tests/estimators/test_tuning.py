"""Noise and scale beside a search over all densities, and derivatives beside differences."""

import numpy as np
import pytest
import scipy.optimize
from scipy.stats import multivariate_normal, norm

from tests.estimators.problems import regression, weights
from tests.tolerance import assert_close
from widelimit.estimators.resolvents import SpectralResolvent
from widelimit.estimators.tuning import _evidence, _left_out, log_evidence, tuned_amplitudes
from widelimit.estimators.weighted import weigh


def problem(weighted=False):
    x, y, _ = regression()
    kernel = np.exp(-((x[:, None] - x) ** 2).sum(-1) / 2)
    w = weights(len(x)) if weighted else np.ones(len(x))
    data = weigh(w, {"nngp": kernel}, y - y.mean(0))
    return kernel, data, SpectralResolvent.of(data, "kernel")


def test_evidence_is_the_greatest():
    kernel, data, spectrum = problem()
    found = tuned_amplitudes(data, spectrum, "evidence")

    def minus(theta):
        ratio, variance = np.exp(theta)
        covariance = variance * (kernel + ratio * np.eye(len(kernel)))
        return -multivariate_normal(None, covariance).logpdf(data.targets.T).sum()

    best = scipy.optimize.minimize(minus, [-2.0, 0.0], method="Nelder-Mead", tol=1e-10)
    assert_close(np.log([found.ratio, found.scale**2]), best.x, rtol=1e-4)
    value = log_evidence(data, spectrum.regularised(found.ratio), found)
    assert_close(value, -best.fun, rtol=1e-9)


def test_residuals_of_samples_left_out_are_the_least():
    kernel, data, spectrum = problem()
    found = tuned_amplitudes(data, spectrum, "leave_one_out")
    rows = np.arange(len(kernel))

    def left_out(ratio, i):
        others = rows != i
        solved = np.linalg.solve(
            kernel[np.ix_(others, others)] + ratio * np.eye(len(kernel) - 1), kernel[others, i]
        )
        mean = solved @ data.targets[others]
        return data.targets[i] - mean, kernel[i, i] - solved @ kernel[others, i] + ratio

    def squares(log_ratio):
        return sum((left_out(np.exp(log_ratio), i)[0] ** 2).sum() for i in rows)

    best = scipy.optimize.minimize_scalar(squares, bounds=(-6, 3), method="bounded")
    assert_close(np.log(found.ratio), best.x, rtol=1e-4)

    def density(scale):
        pairs = [left_out(found.ratio, i) for i in rows]
        return -sum(norm(0, scale * v**0.5).logpdf(r).sum() for r, v in pairs)

    best = scipy.optimize.minimize_scalar(density, bounds=(1e-2, 10), method="bounded")
    assert_close(found.scale, best.x, rtol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("criterion", [_evidence, _left_out])
def test_derivatives_are_those_of_differences(criterion, weighted):
    _, data, spectrum = problem(weighted)
    projected = spectrum.evecs.T @ data.targets
    first = spectrum.evals if criterion is _evidence else spectrum
    objective = criterion(data, first, projected)
    for ratio in (1e-3, 0.1, 5.0):
        ends = [objective(ratio * np.exp(step))[0] for step in (1e-5, -1e-5)]
        assert_close(objective(ratio)[1], (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


def test_zeros_tell_nothing():
    _, data, spectrum = problem()
    assert tuned_amplitudes(data._replace(targets=0 * data.targets), spectrum, "evidence") is None
    assert tuned_amplitudes(data._replace(driving=0 * data.driving), spectrum, "evidence") is None
