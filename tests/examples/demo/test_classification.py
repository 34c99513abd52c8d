"""Classification of small synthetic images: every model, both ways to probabilities."""

import numpy as np
import pytest

from examples.demo import figures, report
from examples.demo.calibration import accuracy
from examples.demo.classification import ClassificationTask, check_classes, classify, image_network
from examples.demo.datasets import LabelledImages, subset

TASK = ClassificationTask(depth=1, noises=(0.1, 1.0), steps=(5, None), C=(1.0,), gamma=(1.0,))


@pytest.fixture(scope="module")
def blobs():
    """Three classes of 4 x 4 images around three random centres."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(3), 50))
    centres = rng.normal(size=(3, 4, 4, 1))
    images = centres[labels] + 0.8 * rng.normal(size=(150, 4, 4, 1))
    return LabelledImages("blobs", images[:100], labels[:100], images[100:], labels[100:])


@pytest.fixture(scope="module")
def done():
    return []


@pytest.fixture(scope="module")
def result(blobs, done):
    return classify(blobs, TASK, progress=done.append)


def test_predictions(result, blobs):
    names = [(p.model, p.method) for p in result.predictions]
    ways = ("largest output", "softmax")
    assert names == [
        *[("Bayesian inference", way) for way in ways],
        *[("gradient descent, 5 steps", way) for way in ways],
        *[("gradient descent, converged", way) for way in ways],
        ("support vectors", "sigmoid"),
        ("support vectors", "isotonic"),
    ]
    for prediction in result.predictions:
        assert prediction.probabilities.shape == (50, 3)
        np.testing.assert_allclose(prediction.probabilities.sum(1), 1)
        assert accuracy(prediction.probabilities, blobs.y_test) > 0.8
    assert result.held_out == 10
    assert result.noise in TASK.noises


def test_progress(result, done):
    assert done == [1] * TASK.work


def test_both_ways_choose_the_same_class(result):
    for a, b in zip(result.predictions[:6:2], result.predictions[1:6:2], strict=True):
        np.testing.assert_array_equal(a.probabilities.argmax(1), b.probabilities.argmax(1))


def test_table(result):
    lines = report.classification_text(result).splitlines()
    assert lines[0].startswith("blobs: 3 classes, 100 training images (10 held out")
    header, rule, *rows = lines[2:12]
    assert header.split() == ["model", "probabilities", "accuracy", "%", "NLL,", "nats", "ECE", "%"]
    assert len({len(row) for row in [rule, *rows]}) == 1


def test_figure(result, tmp_path):
    path = figures.classification_figure(result, tmp_path / "new" / "scores.png")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_scale_is_that_of_the_prior(scale):
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    x /= np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    prior = np.diag(np.asarray(image_network(2, scale).kernel_fn(x, None, "nngp")))
    np.testing.assert_allclose(prior / scale**2, 1.03, atol=0.02)


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (np.repeat([0, 1], [95, 5]), "2 classes, largest label 1, fewest images 5"),
        (np.repeat([0, 2], 50), "2 classes, largest label 2"),
        (np.zeros(100, int), "1 classes"),
    ],
)
def test_classes_are_checked(blobs, labels, got):
    data = LabelledImages("bad", blobs.x_train, labels, blobs.x_test[:1], labels[:1])
    with pytest.raises(ValueError, match=got):
        check_classes(data)
    with pytest.raises(ValueError, match="expected at least two classes"):
        classify(data, TASK)


def test_classes_of_a_subset_are_checked(blobs):
    with pytest.raises(ValueError, match="expected at least two classes"):
        classify(subset(blobs, 12), TASK)
