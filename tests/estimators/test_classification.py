"""Classifiers as people use them."""

import numpy as np
import pytest
import scipy.sparse

from tests.estimators.problems import classification
from tests.tolerance import assert_close
from widelimit.estimators import NNGPClassifier, NNGPRegressor, NTKClassifier

KINDS = pytest.mark.parametrize("kind", [NNGPClassifier, NTKClassifier])


@pytest.mark.parametrize("classes", [2, 3])
@KINDS
def test_probabilities_agree_with_classes(kind, classes):
    x, labels = classification(classes)
    names = np.array(["left", "middle", "right"])[labels]
    model = kind(depth=1).fit(x[:40], names[:40])
    shares = model.predict_proba(x[40:])
    assert_close(shares.sum(1), np.ones(20))
    assert (model.classes_[shares.argmax(1)] == model.predict(x[40:])).all()
    assert model.score(x[40:], names[40:]) > 0.5
    assert_close(np.exp(model.predict_log_proba(x)), model.predict_proba(x))


def test_classes_are_the_signs_of_a_regression():
    x, labels = classification(2)
    classifier = NNGPClassifier(depth=1).fit(x, labels)
    regressor = NNGPRegressor(depth=1, normalize_y=False).fit(x, 2.0 * labels - 1)
    assert ((regressor.predict(x) > 0) == classifier.predict(x)).all()
    assert_close(regressor.noise_, classifier.noise_)


def test_probabilities_are_calibrated():
    x, labels = classification(3)
    model = NNGPClassifier(depth=1).fit(x, labels)
    other = np.random.default_rng(5)
    truth = other.integers(0, 3, 3000)
    test = 1.5 * np.eye(3)[truth] + other.standard_normal((3000, 3))
    shares = model.predict_proba(test)
    sure = shares.max(1)
    hits = model.predict(test) == truth
    assert abs(hits.mean() - sure.mean()) < 0.1


@KINDS
def test_one_class_is_refused(kind):
    x, labels = classification(2)
    with pytest.raises(ValueError, match="expected labels of at least 2 classes"):
        kind().fit(x, np.ones(60, int))
    with pytest.raises(ValueError, match="expected labels of at least 2 classes"):
        kind().fit(x, labels, sample_weight=labels)


def test_sparse_inputs_are_refused():
    x, labels = classification(2)
    with pytest.raises(TypeError, match="dense data is required"):
        NNGPClassifier().fit(scipy.sparse.csr_matrix(x), labels)


@KINDS
def test_ties_go_to_the_first_class(kind):
    x = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    model = kind(depth=1, b_std=None, optimizer=None).fit(x, [1, 0, 1, 0])
    found = model.predict_proba([[0.0, 0.0]])
    assert_close(found, np.full((1, 2), 0.5))
    assert model.predict([[0.0, 0.0]]) == [0]


def test_the_temperature_of_a_finite_time_is_one():
    x, labels = classification(3)
    model = NTKClassifier(depth=1, training_time=100.0).fit(x, labels)
    assert model.temperature_ == 1.0
    assert model.score(x, labels) > 0.7


@KINDS
def test_samples_without_noise_have_probabilities(kind):
    x, labels = classification(3)
    model = kind(depth=1, noise=0.0, optimizer=None).fit(x, labels)
    assert np.isfinite(model.predict_proba(x)).all()
    assert (model.predict(x) == labels).all()


def test_one_sample_of_each_class():
    model = NNGPClassifier(depth=1).fit([[0.0], [1.0]], ["a", "b"])
    assert list(model.predict([[0.0], [1.0]])) == ["a", "b"]
