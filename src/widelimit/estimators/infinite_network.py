"""What all estimators share: parameters, checks of inputs, and an ensemble that is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from widelimit._text import shown
from widelimit.estimators.inputs import Standardiser, shaped
from widelimit.estimators.named_networks import build_network
from widelimit.estimators.network_search import Bounds, search_network, search_space
from widelimit.estimators.training import Ensemble, LearningSettings
from widelimit.estimators.tuning import Amplitudes
from widelimit.layers.base import Layer
from widelimit.predict.checks import check_scalar
from widelimit.predict.solvers.base import Solver, check_solver
from widelimit.typing import Bytes, NetworkLike, Scalar, Size


class InfiniteNetwork(BaseEstimator):
    """The base of the estimators; see `NNGPRegressor` for the parameters."""

    _names: ClassVar[tuple[str, ...]]
    _criteria: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        network: NetworkLike | str,
        *,
        depth: Size,
        activation: Layer | str,
        W_std: Scalar,
        b_std: Scalar | None,
        noise: Scalar,
        scale: Scalar,
        optimizer: str | None,
        W_std_bounds: Bounds,
        b_std_bounds: Bounds,
        n_restarts_optimizer: Size,
        normalize_X: bool,
        image_shape: Sequence[int] | None,
        solver: Solver | None,
        memory: Bytes,
        random_state: int | np.random.RandomState | None,
    ) -> None:
        self.network = network
        self.depth = depth
        self.activation = activation
        self.W_std = W_std
        self.b_std = b_std
        self.noise = noise
        self.scale = scale
        self.optimizer = optimizer
        self.W_std_bounds = W_std_bounds
        self.b_std_bounds = b_std_bounds
        self.n_restarts_optimizer = n_restarts_optimizer
        self.normalize_X = normalize_X
        self.image_shape = image_shape
        self.solver = solver
        self.memory = memory
        self.random_state = random_state

    def _steps(self) -> float | None:
        """Returns learning rate times steps, None for infinitely many."""
        return None

    def _settings(self) -> LearningSettings:
        """Returns how to learn.

        Raises:
          ValueError: parameters that are out of range, or do not go together.
        """
        check_scalar("noise", self.noise)
        check_scalar("scale", self.scale)
        check_solver(self.solver)
        if not self.scale > 0:
            raise ValueError(f"expected a positive scale, got {self.scale!r}")
        if self.optimizer is not None and self.optimizer not in self._criteria:
            raise ValueError(
                f"expected optimizer to be None or one of {self._criteria} for "
                f"{type(self).__name__}, got {shown(self.optimizer)}"
            )
        steps, criterion = self._steps(), self.optimizer
        if self.solver is not None and (criterion is not None or steps is not None):
            raise ValueError(
                "expected optimizer=None and infinite training time with a solver, got "
                f"optimizer={criterion!r}: noise, scale and finite times need all eigenvalues"
            )
        fallback = Amplitudes(float(self.noise) ** 2 / float(self.scale) ** 2, float(self.scale))
        criterion = None if steps is not None else criterion
        return LearningSettings(self._names, fallback, criterion, steps, self.solver, self.memory)

    def _read(self, X: Any, y: Any, sample_weight: Any, **checks: Any) -> tuple[Any, Any, Any]:
        """Returns checked inputs, targets, and weights; remembers the features."""
        X, y = validate_data(self, X, y, dtype=np.float64, allow_nd=True, **checks)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return X, y, weights

    def _learn(self, X: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Fits the ensemble to targets [n, outputs] with weighted mean zero."""
        settings, x = self._settings(), shaped(X, self.image_shape)
        if isinstance(self.network, str) and self.network == "cnn" and x.ndim != 4:
            raise ValueError(
                "expected images [n, height, width, channels] for network='cnn', got X of shape "
                f"{X.shape} with image_shape={self.image_shape}: image_shape=(height, width, "
                "channels) makes images of rows, and X[..., None] has one channel"
            )
        self._input_shape = X.shape[1:]
        self._standardiser = Standardiser.of(x, weights) if self.normalize_X else None
        x = self._prepared(X)
        network = self._build(self._search(x, targets, weights, settings))
        self._ensemble = Ensemble(network, x, targets, weights, settings)
        self.network_ = self._ensemble.network
        self.noise_, self.scale_ = self._ensemble.noise, self._ensemble.amplitudes.scale

    def _build(self, values: dict[str, float]) -> NetworkLike:
        W_std, b_std = (values.get(name, getattr(self, name)) for name in ("W_std", "b_std"))
        return build_network(self.network, self.depth, self.activation, W_std, b_std)

    def _search(
        self, x: np.ndarray, targets: np.ndarray, weights: np.ndarray, settings: LearningSettings
    ) -> dict[str, float]:
        """Returns hyper-parameters of the network that have bounds, by the criterion."""
        space = search_space(
            {"W_std": self.W_std, "b_std": self.b_std},
            {"W_std": self.W_std_bounds, "b_std": self.b_std_bounds},
        )
        if not space.start:
            return {}
        if settings.criterion is None or not isinstance(self.network, str):
            raise ValueError(
                "expected a named network, an optimizer and infinite training time for bounds of "
                f"{' and '.join(space.start)}, got network={shown(self.network)} and "
                f"optimizer={self.optimizer!r}"
            )

        def objective(values: dict[str, float]) -> float:
            return Ensemble(self._build(values), x, targets, weights, settings).loss()

        random = check_random_state(self.random_state)
        return search_network(objective, space, self.n_restarts_optimizer, random)

    def _prepared(self, X: np.ndarray) -> np.ndarray:
        """Returns inputs as the network takes them."""
        x = shaped(X, self.image_shape)
        return x if self._standardiser is None else self._standardiser(x)

    def _read_test(self, X: Any) -> np.ndarray:
        """Returns inputs to predict at.

        Raises:
          ValueError: features that differ from those of the training set.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, allow_nd=True, reset=False)
        if X.shape[1:] != self._input_shape:
            raise ValueError(
                f"expected X of shape (n, {', '.join(map(str, self._input_shape))}) as in fit, got "
                f"{X.shape}"
            )
        return self._prepared(X)
