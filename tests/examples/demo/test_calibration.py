"""Class probabilities and scores against hand computations, Monte-Carlo and direct integration."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import log_ndtr, ndtr
from scipy.stats import norm

from examples.demo import calibration
from examples.demo.calibration import largest_probabilities
from widelimit.plot import reliability_bins


def test_two_classes_have_a_closed_form():
    gaps = np.array([0.0, 0.5, 3.0, 20.0])
    probabilities = largest_probabilities(np.stack([gaps, 0 * gaps], 1), np.full(4, 2.0))
    expected = ndtr(gaps / (2.0 * np.sqrt(2)))
    np.testing.assert_allclose(probabilities[:, 0], expected, rtol=1e-12)
    # The unlikely class keeps its relative precision.
    np.testing.assert_allclose(probabilities[:, 1], ndtr(-gaps / (2 * np.sqrt(2))), rtol=1e-6)


def test_many_classes_against_direct_integration():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(3, 10)), np.array([0.3, 1.0, 4.0])
    probabilities = largest_probabilities(mean, std)
    for t in range(3):
        for i in range(10):
            lead = (mean[t, i] - np.delete(mean[t], i)) / std[t]

            def integrand(z, lead=lead):
                return norm.pdf(z) * np.exp(log_ndtr(z + lead).sum())

            expected = quad(integrand, -12, 20, epsabs=1e-13, epsrel=1e-11, limit=200)[0]
            assert probabilities[t, i] == pytest.approx(expected, rel=1e-7, abs=1e-13)


def test_many_classes_against_draws():
    rng = np.random.default_rng(1)
    mean, std = rng.normal(size=(2, 5)), np.array([0.5, 2.0])
    n = 200_000
    draws = mean + std[:, None] * rng.standard_normal((n, 2, 5))
    wins = np.stack([np.bincount(row, minlength=5) for row in draws.argmax(-1).T]) / n
    probabilities = largest_probabilities(mean, std)
    error = np.sqrt(probabilities * (1 - probabilities) / n)
    assert np.all(np.abs(wins - probabilities) < 5 * error)


def test_equal_outputs_are_equally_likely():
    np.testing.assert_allclose(largest_probabilities(np.zeros((1, 7)), np.ones(1)), 1 / 7)


def test_one_class_is_certain():
    np.testing.assert_allclose(largest_probabilities(np.zeros((2, 1)), np.ones(2)), 1)


def test_extreme_outputs_stay_finite():
    mean = np.array([[1e3, 0.0, -1e3], [1.0, 1.0, 1.0]])
    probabilities = largest_probabilities(mean, np.array([1e-6, 1e-9]))
    assert np.all(np.isfinite(probabilities))
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [1 / 3] * 3], atol=1e-12)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (np.zeros(3), np.ones(3), "expected mean of shape"),
        (np.zeros((3, 2)), np.ones(2), "got"),
        (np.zeros((3, 2)), np.zeros(3), "positive"),
        (np.zeros((1, 2)), np.full(1, np.nan), "positive"),
    ],
)
def test_largest_probabilities_checks(mean, std, message):
    with pytest.raises(ValueError, match=message):
        largest_probabilities(mean, std)


def test_softmax_by_hand():
    probabilities = calibration.softmax_probabilities(np.log([[4.0, 1.0]]), 2.0)
    np.testing.assert_allclose(probabilities, [[2 / 3, 1 / 3]])


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_softmax_needs_a_positive_temperature(temperature):
    with pytest.raises(ValueError, match="positive temperature"):
        calibration.softmax_probabilities(np.zeros((1, 2)), temperature)


def test_fitted_temperature_is_the_one_of_the_labels():
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(20_000, 3))
    probabilities = calibration.softmax_probabilities(mean, 0.25)
    labels = (rng.random((20_000, 1)) > probabilities.cumsum(1)).sum(1)
    assert calibration.fit_temperature(mean, labels) == pytest.approx(0.25, rel=0.05)
    # In the units of the outputs.
    assert calibration.fit_temperature(7 * mean, labels) == pytest.approx(1.75, rel=0.05)


def test_temperature_of_a_constant():
    with pytest.raises(ValueError, match="no temperature"):
        calibration.fit_temperature(np.ones((3, 2)), np.array([0, 1, 0]))


def test_scores_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
    labels = np.array([0, 1, 1, 1])
    assert calibration.accuracy(probabilities, labels) == 0.75
    expected = -np.mean(np.log([0.9, 0.6, 0.2, 0.7]))
    assert calibration.negative_log_likelihood(probabilities, labels) == pytest.approx(expected)
    # Two bins: all confidences are in (0.5, 1].
    confidence, correct, count = reliability_bins(probabilities, labels, bins=2)
    np.testing.assert_array_equal(count, [0, 4])
    np.testing.assert_allclose(confidence, [np.nan, 0.75])
    np.testing.assert_allclose(correct, [np.nan, 0.75])
    assert calibration.expected_calibration_error(probabilities, labels, 2) == pytest.approx(0)
    # Ten bins: one point each at 0.9, 0.6, 0.8, 0.7, of which the third is wrong.
    error = (0.1 + 0.4 + 0.8 + 0.3) / 4
    assert calibration.expected_calibration_error(probabilities, labels, 10) == pytest.approx(error)


def test_bins_are_closed_on_the_right():
    probabilities = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert reliability_bins(probabilities, np.array([0, 0]), bins=2)[2].tolist() == [1, 1]


def test_certain_and_wrong_is_finite():
    assert calibration.negative_log_likelihood(np.eye(2)[:1], np.array([1])) == pytest.approx(
        36.04, abs=0.01
    )


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [(np.ones(2), np.zeros(2, int)), (np.ones((2, 2)), np.zeros(3, int)), (np.ones((0, 2)), [])],
)
def test_scores_check_shapes(probabilities, labels):
    with pytest.raises(ValueError, match="expected probabilities of shape"):
        calibration.accuracy(probabilities, np.asarray(labels, int))


def test_covered_by_hand():
    targets = np.array([0.0, 0.67, 0.68, -1.95, -1.97])
    np.testing.assert_array_equal(
        calibration.covered(targets, 0.0, 1.0, 0.5), [True, True, False, False, False]
    )
    np.testing.assert_array_equal(
        calibration.covered(targets, 0.0, 1.0, 0.95), [True, True, True, True, False]
    )


def test_covered_fraction_is_the_level():
    draws = 3 + 2 * np.random.default_rng(0).standard_normal(100_000)
    assert calibration.covered(draws, 3.0, 2.0, 0.9).mean() == pytest.approx(0.9, abs=0.005)


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5])
def test_covered_checks_its_level(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        calibration.covered(0.0, 0.0, 1.0, level)
