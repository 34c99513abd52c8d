"""Image classification with infinite fully-connected networks, beside a support vector machine.

The classes are regressed on as centred one-hot vectors, which is exact for infinite networks, and
the Gaussian outputs are then turned into class probabilities in two ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.demo.calibration import (
    fit_temperature,
    largest_probabilities,
    negative_log_likelihood,
    softmax_probabilities,
)
from examples.demo.datasets import LabelledImages, standardised
from widelimit import stax
from widelimit.predict import max_learning_rate
from widelimit.predict.infinite import InfiniteEnsemble

Array = NDArray[np.float64]
Progress = Callable[[int], object]

MIN_PER_CLASS = 10
TRAINED = "gradient descent"
_CALIBRATIONS = ("sigmoid", "isotonic")


@dataclass(frozen=True)
class ClassificationTask:
    """What is fitted to the images.

    Attributes:
      depth: hidden layers of the infinite network.
      noises: candidates for the noise of the one-hot targets, in units of their root mean square.
      steps: training times, in steps of half the largest stable learning rate; None is infinity.
      C, gamma: the grid of the support vector machine, gamma in units of 1 / features (the inputs
        have unit variance).
    """

    depth: int = 3
    noises: tuple[float, ...] = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
    steps: tuple[int | None, ...] = (10, 100, 1000, None)
    C: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    gamma: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)

    @property
    def work(self) -> int:
        """How often `classify` calls its `progress` with 1."""
        return len(self.noises) + 1 + 2 + len(self.steps) + 1 + len(_CALIBRATIONS)


class Prediction(NamedTuple):
    """Class probabilities of one model.

    Attributes:
      model: its name.
      method: how the probabilities were made.
      probabilities: one row [t, classes] for each test image.
    """

    model: str
    method: str
    probabilities: Array


@dataclass(frozen=True)
class ClassificationResult:
    """Everything that the figure and the table of the classification show.

    Attributes:
      data: the images, standardised.
      held_out: how many training images chose the noise and the temperatures.
      noise: the chosen noise as a fraction of the root mean square of the targets.
      svc: the chosen parameters of the support vector machine.
      predictions: probabilities on the test images, model by model.
    """

    data: LabelledImages
    held_out: int
    noise: float
    svc: dict[str, float]
    predictions: list[Prediction] = field(default_factory=list)


def image_network(depth: int, scale: float) -> Any:
    """A fully-connected ReLU network of `depth` hidden layers, outputs of size `scale`.

    `scale` multiplies the weights of the last layer. Taken as the root mean square of the targets,
    it makes the prior expect outputs of the size of the targets. At a given ratio of noise to
    scale, posterior means do not depend on it and their standard deviations are proportional to it.
    """
    hidden = [stax.Dense(1, W_std=np.sqrt(2.0), b_std=0.1), stax.Relu()] * depth
    return stax.serial(*hidden, stax.Dense(1, W_std=scale, b_std=0.1 * scale))


def check_classes(data: LabelledImages) -> None:
    """Check that every class has enough training images for 5-fold search and calibration.

    Raises:
      ValueError: if there are fewer than two classes, or too few images of one.
    """
    present, counts = np.unique(data.y_train, return_counts=True)
    missing = len(present) != data.classes
    if data.classes < 2 or missing or counts.min() < MIN_PER_CLASS:
        raise ValueError(
            f"expected at least two classes, labelled from 0 on, with {MIN_PER_CLASS} training "
            f"images or more each; got {len(present)} classes, largest label {data.classes - 1}, "
            f"fewest images {counts.min()}"
        )


def classify(
    data: LabelledImages,
    task: ClassificationTask,
    *,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> ClassificationResult:
    """Class probabilities of infinite networks and of a support vector machine on the test images.

    A random tenth of the training images is held out to choose the noise and to fit one softmax
    temperature for each model; the models are then fitted to all training images. The noise is the
    one with the least negative log likelihood of the held-out labels, not the one with the largest
    marginal likelihood: that speaks of the one-hot vectors, which are not Gaussian and a function
    of the image almost without noise, so that it favours the smallest noise whatever that does to
    the probabilities.

    Args:
      data: images as loaded; every class needs 10 training images.
      task: models and their candidates.
      seed: draws the held-out tenth.
      progress: called with 1 after each part, `task.work` times in all.

    Raises:
      ValueError: if there are fewer than two classes, or too few images of one.
    """
    check_classes(data)
    data = standardised(data)
    targets = np.eye(data.classes)[data.y_train] - 1 / data.classes
    scale = float(np.sqrt(np.mean(targets**2)))
    net = image_network(task.depth, scale)

    order = np.random.default_rng(seed).permutation(len(targets))
    held, kept = np.split(order, [max(1, len(order) // 10)])
    split = _Split(data, targets, held, kept)

    noise, bayes = _bayesian(net, split, task, scale, progress)
    trained = _trained(net, split, task, progress)
    svc, baselines = _support_vectors(data, task, seed, progress)
    return ClassificationResult(data, len(held), noise, svc, [*bayes, *trained, *baselines])


class _Split(NamedTuple):
    """Training images as the held-out tenth and the rest, by index."""

    data: LabelledImages
    targets: Array
    held: NDArray[np.int64]
    kept: NDArray[np.int64]

    @property
    def validation(self) -> tuple[Array, NDArray[np.int64]]:
        """Images and labels of the held-out tenth."""
        return self.data.x_train[self.held], self.data.y_train[self.held]

    def ensemble(self, net: Any, *, everything: bool, **options: Any) -> InfiniteEnsemble:
        """The infinite ensemble fitted to all training images, or to all but the held-out tenth."""
        rows = np.arange(len(self.targets)) if everything else self.kept
        return InfiniteEnsemble(net, self.data.x_train[rows], self.targets[rows], **options)


def _bayesian(
    net: Any, split: _Split, task: ClassificationTask, scale: float, progress: Progress
) -> tuple[float, list[Prediction]]:
    """The chosen noise, and the test probabilities of exact Bayesian inference with it."""
    images, labels = split.validation
    scores = []
    for noise in task.noises:
        fitted = split.ensemble(net, everything=False, inference="bayes", noise=noise * scale)
        mean, std = _outputs(fitted, images)
        score = negative_log_likelihood(largest_probabilities(mean, std), labels)
        scores.append((score, noise, fit_temperature(mean, labels)))
        progress(1)
    _, noise, temperature = min(scores)
    fitted = split.ensemble(net, everything=True, inference="bayes", noise=noise * scale)
    predictions = _both_ways("Bayesian inference", fitted, split.data.x_test, temperature)
    progress(1)
    return noise, predictions


def _trained(
    net: Any, split: _Split, task: ClassificationTask, progress: Progress
) -> list[Prediction]:
    """Test probabilities of ensembles trained by gradient descent, at each time.

    They train without a ridge, as networks are trained: stopping early is what regularises them.
    """
    # One learning rate for both fits, so that a step means the same in both.
    ntk = net.kernel_fn(split.data.x_train, None, "ntk")
    rate = 0.5 * float(max_learning_rate(ntk, y_train_size=split.targets.size))
    options = {"inference": "gradient_descent", "learning_rate": rate}
    partial = split.ensemble(net, everything=False, **options)
    progress(1)
    full = split.ensemble(net, everything=True, **options)
    progress(1)
    images, labels = split.validation
    predictions = []
    for steps in task.steps:
        t = np.inf if steps is None else steps
        temperature = fit_temperature(np.asarray(partial.at(t).mean(images)), labels)
        name = f"{TRAINED}, " + ("converged" if steps is None else f"{steps:,} steps")
        predictions += _both_ways(name, full.at(t), split.data.x_test, temperature)
        progress(1)
    return predictions


def _both_ways(
    model: str, fitted: InfiniteEnsemble, images: Array, temperature: float
) -> list[Prediction]:
    """The probabilities of being the largest output, and the softmax of the mean."""
    mean, std = _outputs(fitted, images)
    return [
        Prediction(model, "largest output", largest_probabilities(mean, std)),
        Prediction(model, "softmax", softmax_probabilities(mean, temperature)),
    ]


def _outputs(fitted: InfiniteEnsemble, images: Array) -> tuple[Array, Array]:
    """Mean [t, classes] and standard deviation [t] of the noisy outputs.

    A label is an observation, so its noise counts.
    """
    mean = np.asarray(fitted.mean(images), np.float64)
    std = np.asarray(fitted.std(images, noise=True), np.float64)[:, 0]
    # A test image that is also a training image has no variance without noise.
    return mean, np.maximum(std, 1e-6)


def _support_vectors(
    data: LabelledImages, task: ClassificationTask, seed: int, progress: Progress
) -> tuple[dict[str, float], list[Prediction]]:
    """The parameters chosen by 5-fold search, and test probabilities with each calibration."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.svm import SVC

    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    grid = {
        "C": list(task.C),
        "kernel": [_RadialKernel(gamma / data.x_train.shape[1]) for gamma in task.gamma],
    }
    search = GridSearchCV(SVC(cache_size=500), grid, cv=folds, refit=False)
    search.fit(data.x_train, data.y_train)
    progress(1)
    best = search.best_params_
    predictions = []
    for method in _CALIBRATIONS:
        model = CalibratedClassifierCV(SVC(cache_size=500, **best), method=method, cv=folds)
        model.fit(data.x_train, data.y_train)
        probabilities = model.predict_proba(data.x_test)
        predictions.append(Prediction("support vectors", method, probabilities))
        progress(1)
    return {"C": best["C"], "gamma": best["kernel"].gamma}, predictions


@dataclass(frozen=True)
class _RadialKernel:
    """exp(-gamma |x - z|^2) by matrix products: libsvm's own loop over pairs is far slower."""

    gamma: float

    def __call__(self, x: Array, z: Array) -> Array:
        from sklearn.metrics.pairwise import rbf_kernel

        return rbf_kernel(x, z, gamma=self.gamma)
