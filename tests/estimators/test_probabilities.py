"""Probabilities of the largest output beside closed forms and draws."""

import numpy as np
from scipy.stats import norm

from tests.tolerance import assert_close
from widelimit.estimators.probabilities import calibrated_temperature, class_probabilities


def test_one_output_is_positive():
    means, std = np.array([[-1.0], [0.0], [2.0]]), np.array([1.0, 2.0, 0.5])
    positive = norm.cdf(means[:, 0] / std)
    assert_close(class_probabilities(means, std), np.stack([1 - positive, positive], 1))


def test_two_outputs_differ_by_a_gaussian():
    means, std = np.array([[0.3, -0.5], [4.0, -3.0], [-40.0, 30.0]]), np.array([0.7, 1.0, 2.0])
    first = norm.cdf((means[:, 0] - means[:, 1]) / (std * 2**0.5))
    assert_close(class_probabilities(means, std)[:, 0], first)


def test_several_outputs_are_those_of_draws():
    means, std = np.array([[0.0, 0.5, 1.0, -1.0]]), np.array([0.8])
    draws = means + 0.8 * np.random.default_rng(0).standard_normal((400_000, 4))
    shares = np.bincount(draws.argmax(1), minlength=4) / len(draws)
    assert np.abs(class_probabilities(means, std) - shares).max() < 4e-3


def test_equal_outputs_have_equal_probabilities_far_apart_none():
    found = class_probabilities(np.array([[1.0, 1.0, 1.0], [0.0, 1e6, 0.0]]), np.array([0.1, 1.0]))
    assert_close(found, np.array([[1 / 3] * 3, [0, 1, 0]]))


def test_the_temperature_undoes_a_wrong_spread():
    random = np.random.default_rng(0)
    means = random.standard_normal((4_000, 3))
    classes = (means + 0.5 * random.standard_normal(means.shape)).argmax(1)
    ones = np.ones(len(means))
    assert abs(calibrated_temperature(means, 0.1 * ones, classes, ones) - 5) < 0.4
