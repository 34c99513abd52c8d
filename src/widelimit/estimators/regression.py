"""Regression: NNGPRegressor and NTKRegressor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from widelimit.estimators.evidence import EvidenceMixin
from widelimit.estimators.gradient_descent import GradientDescentMixin
from widelimit.estimators.infinite_network import InfiniteNetwork
from widelimit.estimators.inputs import Standardiser
from widelimit.estimators.network_search import Bounds
from widelimit.gram.sizes import DEFAULT_MEMORY
from widelimit.layers.base import Layer
from widelimit.predict.solvers.base import Solver
from widelimit.typing import Bytes, NetworkLike, Scalar, Size

_T = TypeVar("_T", bound="InfiniteRegressor")


class LeaveOneOut(NamedTuple):
    """Predictions of each training sample without it, in units of y.

    Attributes:
      residuals: y minus the mean, in the shape of y.
      std: standard deviations of the prediction, without noise, in the shape of y.
    """

    residuals: np.ndarray
    std: np.ndarray


class InfiniteRegressor(MultiOutputMixin, RegressorMixin, InfiniteNetwork):
    """The base of the regressors; see `NNGPRegressor` for the parameters."""

    normalize_y: bool

    def fit(self: _T, X: Any, y: Any, sample_weight: Any = None) -> _T:
        """Returns the regressor, fitted to samples.

        Args:
          X: inputs [n, features], or images [n, height, width, channels].
          y: targets [n] or [n, outputs].
          sample_weight: weights [n], by which noise is smaller: a sample of weight 2 counts as
            two equal ones. None means 1 for all.
        """
        X, y, weights = self._read(X, y, sample_weight, multi_output=True, y_numeric=True)
        y = np.asarray(y, np.float64)
        self._flat = y.ndim == 1
        columns = y.reshape(len(y), -1)
        outputs = columns.shape[1]
        scaler = Standardiser(np.zeros(outputs), np.ones(outputs))
        if self.normalize_y:
            scaler = Standardiser.of(columns, weights)
        self._y_mean, self._y_std = scaler.mean, np.where(scaler.std > 0, scaler.std, 1.0)
        self._learn(X, scaler(columns), weights)
        return self

    def predict(
        self, X: Any, return_std: bool = False, return_cov: bool = False, noise: bool = False
    ) -> Any:
        """Returns the mean of the outputs, [t] or [t, outputs], and how sure it is.

        Args:
          X: inputs.
          return_std: whether to return standard deviations in the shape of the mean, too.
          return_cov: whether to return the covariance [t, t] or [t, t, outputs] between samples.
          noise: whether these are of observations of weight 1, the noise added; else they are of
            the function alone.

        Raises:
          ValueError: if both are asked for.
        """
        if return_std and return_cov:
            raise ValueError("expected one of return_std and return_cov, got both")
        x = self._read_test(X)
        mean = self._shaped(self._ensemble.mean(x) * self._y_std + self._y_mean)
        added = self.noise_**2 if noise else 0.0
        if return_std:
            return mean, self._spread(np.sqrt(self._ensemble.variance(x) + added))
        if return_cov:
            covariance = self._ensemble.covariance(x) + added * np.eye(len(x))
            return mean, self._shaped(covariance[..., None] * self._y_std**2)
        return mean

    def sample_y(
        self, X: Any, n_samples: int = 1, random_state: int | np.random.RandomState | None = 0
    ) -> np.ndarray:
        """Returns functions drawn from the ensemble, [t, n_samples] or [t, outputs, n_samples].

        Args:
          X: inputs.
          n_samples: how many functions.
          random_state: seed or generator.
        """
        x = self._read_test(X)
        evals, evecs = np.linalg.eigh(self._ensemble.covariance(x))
        root = evecs * np.sqrt(np.maximum(evals, 0.0))
        shape = (len(x), len(self._y_mean), n_samples)
        normal = check_random_state(random_state).standard_normal(shape)
        draws = np.einsum("ij,jos->ios", root, normal) + self._ensemble.mean(x)[..., None]
        draws = draws * self._y_std[:, None] + self._y_mean[:, None]
        return draws[:, 0] if self._flat else draws

    def leave_one_out(self) -> LeaveOneOut:
        """Returns residuals of each training sample predicted without it, in closed form.

        Hyper-parameters and the means of X and y stay those of all samples. Of a sample of weight
        w > 1 one unit of weight is left out; weights of zero leave zeros.

        Raises:
          ValueError: if training time is finite.
        """
        check_is_fitted(self)
        residuals, variances = self._ensemble.left_out()
        return LeaveOneOut(self._shaped(residuals * self._y_std), self._spread(np.sqrt(variances)))

    def _spread(self, std: np.ndarray) -> np.ndarray:
        """Returns standard deviations of all outputs in units of y."""
        return self._shaped(std[:, None] * self._y_std)

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        """Returns results [..., outputs] without that axis if y had none."""
        return values[..., 0] if self._flat else values


class NNGPRegressor(EvidenceMixin, InfiniteRegressor):
    """Regression with the exact posterior of an infinitely wide Bayesian network.

    A Gaussian process whose covariance is the NNGP kernel of a network (arXiv:1711.00165), with
    noise of a chosen size. Everything is computed in float64, on all cores. Outputs share one
    kernel and one noise, in units of standardised targets.

    Args:
      network: "fcn", "cnn" (with global average pooling), or a network such as
        `stax.serial(...)`, which brings its own hyper-parameters.
      depth: hidden layers of a named network.
      activation: "relu", "erf", "gelu", "leaky_relu", "rbf", "silu", "sin", "tanh", or a layer, of
        a named network.
      W_std: standard deviation of the weights of a named network.
      b_std: standard deviation of the biases of a named network; None means no bias.
      noise: standard deviation of the noise of targets, in units of standardised targets; where
        `optimizer` is None.
      scale: number that the outputs of the network are multiplied by; where `optimizer` is None.
      optimizer: "evidence" chooses noise and scale by the marginal likelihood, "leave_one_out" by
        the squared error of samples that are left out and, for the scale, their density. None
        takes them as they are.
      W_std_bounds: least and greatest W_std for the optimizer, or "fixed".
      b_std_bounds: the same for b_std.
      n_restarts_optimizer: how often the search for W_std and b_std begins again, at random within
        their bounds. Noise and scale need none.
      normalize_X: whether each feature, or each channel of images over all positions, is
        standardised to mean 0 and variance 1. What is constant in training is left out.
      normalize_y: whether each output is standardised.
      image_shape: (height, width, channels) of images that come as rows of a table, or None.
      solver: a `widelimit.predict.Solver` for many samples, with `optimizer=None`. None takes all
        eigenvalues, ten times the work of `Cholesky()`.
      memory: bytes, or text like "4GiB", that computing kernels may take beside the result.
      random_state: seed of the restarts.

    Attributes:
      network_: the network with the hyper-parameters chosen.
      noise_: the standard deviation of the noise, in units of standardised targets.
      scale_: what outputs are multiplied by.
      log_marginal_likelihood_value_: log density of the standardised targets.
      n_features_in_: number of features; the height of images.
      feature_names_in_: names of features, if X is a data frame.

    Example:
      >>> import numpy as np
      >>> from widelimit.estimators import NNGPRegressor
      >>> X = np.linspace(-3, 3, 20)[:, None]
      >>> model = NNGPRegressor(depth=2).fit(X, np.sin(X[:, 0]))
      >>> mean, std = model.predict([[0.5]], return_std=True)
      >>> bool(abs(mean[0] - np.sin(0.5)) < 0.05)
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
        normalize_y: bool = True,
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
        self.normalize_y = normalize_y


class NTKRegressor(GradientDescentMixin, InfiniteRegressor):
    """Regression with an infinite ensemble of infinitely wide networks, trained from random starts.

    The mean is kernel regression with the NTK; the standard deviation says how the trained networks
    differ (arXiv:1902.06720). With noise, a ridge holds each network to its own start. Sample
    weights multiply squared errors.

    Args:
      network: as in `NNGPRegressor`, like all that is not named here.
      depth: hidden layers of a named network.
      activation: nonlinearity of a named network.
      W_std: standard deviation of the weights of a named network.
      b_std: standard deviation of the biases of a named network.
      training_time: steps of gradient descent on half the mean squared error of standardised
        targets, with a small learning rate; None for infinitely many. At a finite time noise and
        scale are as given: early stopping takes the place of the optimizer.
      learning_rate: the size of a step.
      noise: standard deviation of the noise of targets, where it is not chosen.
      scale: number that the outputs of the network are multiplied by, where it is not chosen.
      optimizer: "leave_one_out", or None. Trained ensembles have no marginal likelihood.
      W_std_bounds: least and greatest W_std for the optimizer, or "fixed".
      b_std_bounds: the same for b_std.
      n_restarts_optimizer: restarts of the search for W_std and b_std.
      normalize_X: whether inputs are standardised.
      normalize_y: whether each output is standardised.
      image_shape: shape of images that come as rows, or None.
      solver: a `widelimit.predict.Solver` for many samples, with `optimizer=None`.
      memory: what computing kernels may take.
      random_state: seed of the restarts.

    Attributes:
      network_: the network with the hyper-parameters chosen.
      noise_: the standard deviation of the noise, in units of standardised targets.
      scale_: what outputs are multiplied by.
      n_features_in_: number of features; the height of images.
      feature_names_in_: names of features, if X is a data frame.

    Example:
      >>> import numpy as np
      >>> from widelimit.estimators import NTKRegressor
      >>> X = np.linspace(-3, 3, 20)[:, None]
      >>> y = np.sin(X[:, 0])
      >>> early = NTKRegressor(training_time=10).fit(X, y)
      >>> bool(early.score(X, y) < NTKRegressor(noise=0.01, optimizer=None).fit(X, y).score(X, y))
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
        normalize_y: bool = True,
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
        self.normalize_y = normalize_y
