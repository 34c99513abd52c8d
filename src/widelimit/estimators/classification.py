"""Classification: NNGPClassifier and NTKClassifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from widelimit._text import shown
from widelimit.estimators.evidence import EvidenceMixin
from widelimit.estimators.gradient_descent import GradientDescentMixin
from widelimit.estimators.infinite_network import InfiniteNetwork
from widelimit.estimators.network_search import Bounds
from widelimit.estimators.probabilities import calibrated_temperature, class_probabilities
from widelimit.gram.sizes import DEFAULT_MEMORY
from widelimit.layers.base import Layer
from widelimit.predict.solvers.base import Solver
from widelimit.typing import Bytes, NetworkLike, Scalar, Size

_T = TypeVar("_T", bound="InfiniteClassifier")


class InfiniteClassifier(ClassifierMixin, InfiniteNetwork):
    """The base of the classifiers; see `NNGPClassifier` for the parameters."""

    def fit(self: _T, X: Any, y: Any, sample_weight: Any = None) -> _T:
        """Returns the classifier, fitted to samples.

        Args:
          X: inputs [n, features], or images [n, height, width, channels].
          y: labels [n], numbers or text.
          sample_weight: weights [n]: a sample of weight 2 counts as two equal ones. None means 1
            for all.

        Raises:
          ValueError: labels of fewer than two classes.
        """
        X, y, weights = self._read(X, y, sample_weight)
        check_classification_targets(y)
        encoder = LabelEncoder().fit(column_or_1d(y, warn=True))
        self.classes_, classes = encoder.classes_, encoder.transform(y)
        count = len(np.unique(classes[weights > 0]))
        if count < 2:
            raise ValueError(
                f"expected labels of at least 2 classes with positive weight, got {count} class: "
                f"{shown(self.classes_)}"
            )
        codes = _codes(classes, len(self.classes_))
        self._code_mean = weights @ codes / weights.sum()
        self._learn(X, codes - self._code_mean, weights)
        self.temperature_ = self._calibrate(codes, classes, weights)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns the class of the largest mean output [t]; the first of equal ones."""
        means = self._means(self._read_test(X))
        chosen = means[:, 0] > 0 if means.shape[1] == 1 else means.argmax(1)
        return self.classes_[np.asarray(chosen, np.intp)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probabilities of classes [t, classes], in the order of `classes_`.

        That is the probability that the observed output of a class is the largest, where the
        standard deviation of the ensemble and the noise are multiplied by `temperature_`.
        """
        x = self._read_test(X)
        spread = np.sqrt(self._ensemble.variance(x) + self.noise_**2) * self.temperature_
        return class_probabilities(self._means(x), _positive(spread))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Returns the logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def _means(self, x: np.ndarray) -> np.ndarray:
        return self._ensemble.mean(x) + self._code_mean

    def _calibrate(self, codes: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> float:
        """Returns the temperature of samples that are left out; 1 at a finite training time."""
        if self._steps() is not None:
            return 1.0
        residuals, variances = self._ensemble.left_out()
        spread = _positive(np.sqrt(variances + self.noise_**2))
        return calibrated_temperature(codes - residuals, spread, classes, weights)


def _codes(classes: np.ndarray, count: int) -> np.ndarray:
    """Returns -1 and 1: one column for two classes, else one for each."""
    if count == 2:
        return np.where(classes == 1, 1.0, -1.0)[:, None]
    return np.where(classes[:, None] == np.arange(count), 1.0, -1.0)


def _positive(std: np.ndarray) -> np.ndarray:
    """Returns standard deviations that can be divided by: without noise there may be zeros."""
    return np.maximum(std, np.finfo(np.float64).tiny ** 0.25)


class NNGPClassifier(EvidenceMixin, InfiniteClassifier):
    """Classification with the exact posterior of an infinitely wide Bayesian network.

    Regression on labels coded as -1 and 1, as in arXiv:1711.00165, from the mean of the codes:
    one output for two classes, else one for each. Probabilities are those that an observed output
    is the largest, with a temperature that is calibrated on training samples which are left out.

    Args:
      network: as in `NNGPRegressor`, like all that is not named here.
      depth: hidden layers of a named network.
      activation: nonlinearity of a named network.
      W_std: standard deviation of the weights of a named network.
      b_std: standard deviation of the biases of a named network.
      noise: standard deviation of the noise of codes, where `optimizer` is None.
      scale: number that outputs of the network are multiplied by, where `optimizer` is None.
      optimizer: "evidence", "leave_one_out" or None.
      W_std_bounds: least and greatest W_std for the optimizer, or "fixed".
      b_std_bounds: the same for b_std.
      n_restarts_optimizer: restarts of the search for W_std and b_std.
      normalize_X: whether inputs are standardised.
      image_shape: shape of images that come as rows, or None.
      solver: a `widelimit.predict.Solver` for many samples, with `optimizer=None`.
      memory: what computing kernels may take.
      random_state: seed of the restarts.

    Attributes:
      classes_: the labels.
      temperature_: what standard deviations are multiplied by in probabilities.
      network_: the network with the hyper-parameters chosen.
      noise_: the standard deviation of the noise of codes.
      scale_: what outputs are multiplied by.
      log_marginal_likelihood_value_: log density of the codes.
      n_features_in_: number of features; the height of images.
      feature_names_in_: names of features, if X is a data frame.

    Example:
      >>> from sklearn.datasets import load_iris
      >>> from widelimit.estimators import NNGPClassifier
      >>> X, y = load_iris(return_X_y=True)
      >>> NNGPClassifier().fit(X[::2], y[::2]).score(X[1::2], y[1::2]) > 0.9
      True
    """

    def __init__(
        self,
        network: NetworkLike | str = "fcn",
        *,
        depth: Size = 3,
        activation: Layer | str = "relu",
        W_std: Scalar = 2**0.5,
        b_std: Scalar | None = 0.1,
        noise: Scalar = 0.1,
        scale: Scalar = 1.0,
        optimizer: str | None = "evidence",
        W_std_bounds: Bounds = "fixed",
        b_std_bounds: Bounds = "fixed",
        n_restarts_optimizer: Size = 0,
        normalize_X: bool = True,
        image_shape: Sequence[int] | None = None,
        solver: Solver | None = None,
        memory: Bytes = DEFAULT_MEMORY,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(
            network,
            depth=depth,
            activation=activation,
            W_std=W_std,
            b_std=b_std,
            noise=noise,
            scale=scale,
            optimizer=optimizer,
            W_std_bounds=W_std_bounds,
            b_std_bounds=b_std_bounds,
            n_restarts_optimizer=n_restarts_optimizer,
            normalize_X=normalize_X,
            image_shape=image_shape,
            solver=solver,
            memory=memory,
            random_state=random_state,
        )


class NTKClassifier(GradientDescentMixin, InfiniteClassifier):
    """Classification with an infinite ensemble of networks, trained from random starts.

    Regression on coded labels as in `NNGPClassifier`, with the mean and the covariance of trained
    networks (arXiv:1902.06720).

    Args:
      network: as in `NNGPRegressor`, like all that is not named here.
      depth: hidden layers of a named network.
      activation: nonlinearity of a named network.
      W_std: standard deviation of the weights of a named network.
      b_std: standard deviation of the biases of a named network.
      training_time: steps of gradient descent on half the mean squared error of codes; None for
        infinitely many. At a finite time noise and scale are as given, and the temperature is 1.
      learning_rate: the size of a step.
      noise: standard deviation of the noise of codes, where it is not chosen.
      scale: number that outputs of the network are multiplied by, where it is not chosen.
      optimizer: "leave_one_out", or None.
      W_std_bounds: least and greatest W_std for the optimizer, or "fixed".
      b_std_bounds: the same for b_std.
      n_restarts_optimizer: restarts of the search for W_std and b_std.
      normalize_X: whether inputs are standardised.
      image_shape: shape of images that come as rows, or None.
      solver: a `widelimit.predict.Solver` for many samples, with `optimizer=None`.
      memory: what computing kernels may take.
      random_state: seed of the restarts.

    Attributes:
      classes_: the labels.
      temperature_: what standard deviations are multiplied by in probabilities.
      network_: the network with the hyper-parameters chosen.
      noise_: the standard deviation of the noise of codes.
      scale_: what outputs are multiplied by.
      n_features_in_: number of features; the height of images.
      feature_names_in_: names of features, if X is a data frame.

    Example:
      >>> from sklearn.datasets import load_wine
      >>> from widelimit.estimators import NTKClassifier
      >>> X, y = load_wine(return_X_y=True)
      >>> NTKClassifier(depth=2).fit(X[::2], y[::2]).score(X[1::2], y[1::2]) > 0.9
      True
    """

    def __init__(
        self,
        network: NetworkLike | str = "fcn",
        *,
        depth: Size = 3,
        activation: Layer | str = "relu",
        W_std: Scalar = 2**0.5,
        b_std: Scalar | None = 0.1,
        training_time: Scalar | None = None,
        learning_rate: Scalar = 1.0,
        noise: Scalar = 0.1,
        scale: Scalar = 1.0,
        optimizer: str | None = "leave_one_out",
        W_std_bounds: Bounds = "fixed",
        b_std_bounds: Bounds = "fixed",
        n_restarts_optimizer: Size = 0,
        normalize_X: bool = True,
        image_shape: Sequence[int] | None = None,
        solver: Solver | None = None,
        memory: Bytes = DEFAULT_MEMORY,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(
            network,
            depth=depth,
            activation=activation,
            W_std=W_std,
            b_std=b_std,
            noise=noise,
            scale=scale,
            optimizer=optimizer,
            W_std_bounds=W_std_bounds,
            b_std_bounds=b_std_bounds,
            n_restarts_optimizer=n_restarts_optimizer,
            normalize_X=normalize_X,
            image_shape=image_shape,
            solver=solver,
            memory=memory,
            random_state=random_state,
        )
        self.training_time, self.learning_rate = training_time, learning_rate
