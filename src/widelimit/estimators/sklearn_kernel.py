"""SklearnKernel: a kernel of scikit-learn's Gaussian processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel

from widelimit.estimators.family import Family, kernel_slopes
from widelimit.estimators.inputs import shaped
from widelimit.estimators.kernel_matrices import kernel_diagonal, kernel_matrices
from widelimit.estimators.network_search import Bounds
from widelimit.gram.sizes import DEFAULT_MEMORY
from widelimit.layers.base import Layer
from widelimit.typing import NetworkLike, Scalar, Size


class SklearnKernel(Kernel):
    """The NNGP or the NTK of an infinite network, as a kernel for `GaussianProcessRegressor`.

    Adds and multiplies with kernels of scikit-learn: `ConstantKernel() * SklearnKernel() +
    WhiteKernel()` has the scale of outputs and noise. Values are computed by `wl.gram` and
    derivatives by JAX, in float64.

    Args:
      network: "fcn", "cnn" or a network, whose hyper-parameters stay as they are.
      kernel: "nngp" or "ntk".
      depth: hidden layers of a named network.
      activation: nonlinearity of a named network, a name or a layer; see `NNGPRegressor`.
      W_std: standard deviation of the weights of a named network.
      b_std: standard deviation of its biases; None means no bias.
      W_std_bounds: least and greatest W_std, or "fixed".
      b_std_bounds: the same for b_std.
      image_shape: (height, width, channels) of images that come as rows, or None.

    Example:
      >>> import numpy as np
      >>> from sklearn.gaussian_process import GaussianProcessRegressor
      >>> from widelimit.estimators import SklearnKernel
      >>> X = np.linspace(-2, 2, 8)[:, None]
      >>> kernel = SklearnKernel(depth=1, W_std_bounds="fixed", b_std_bounds="fixed")
      >>> model = GaussianProcessRegressor(kernel).fit(X, X[:, 0] ** 2)
      >>> bool(abs(model.predict([[1.0]])[0] - 1) < 0.2)
      True
    """

    def __init__(
        self,
        network: NetworkLike | str = "fcn",
        kernel: str = "nngp",
        depth: Size = 3,
        activation: Layer | str = "relu",
        W_std: Scalar = 2**0.5,
        b_std: Scalar | None = 0.1,
        W_std_bounds: Bounds = (0.1, 10.0),
        b_std_bounds: Bounds = (1e-3, 10.0),
        image_shape: Sequence[int] | None = None,
    ) -> None:
        self.network = network
        self.kernel = kernel
        self.depth = depth
        self.activation = activation
        self.W_std = W_std
        self.b_std = b_std
        self.W_std_bounds = W_std_bounds
        self.b_std_bounds = b_std_bounds
        self.image_shape = image_shape

    @property
    def hyperparameter_W_std(self) -> Hyperparameter:
        """W_std and its bounds."""
        return self._hyperparameter("W_std", self.W_std_bounds)

    @property
    def hyperparameter_b_std(self) -> Hyperparameter:
        """b_std and its bounds."""
        return self._hyperparameter("b_std", self.b_std_bounds)

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """Returns the kernel [n1, n2], and its derivatives by the logarithms in `theta`.

        Args:
          X: inputs [n1, features].
          Y: inputs [n2, features]; None for X.
          eval_gradient: whether to return derivatives [n1, n1, hyper-parameters], too.

        Raises:
          ValueError: derivatives between different inputs.
        """
        if eval_gradient and Y is not None:
            raise ValueError("expected Y=None with eval_gradient=True, got inputs")
        x1, x2 = shaped(X, self.image_shape), None if Y is None else shaped(Y, self.image_shape)
        network = self._family().member(self.W_std, self.b_std)
        matrix = kernel_matrices(network, x1, x2, [self.kernel], DEFAULT_MEMORY)[self.kernel]
        return (matrix, self._slopes(X)) if eval_gradient else matrix

    def diag(self, X: Any) -> np.ndarray:
        """Returns the kernel of each sample with itself, [n]."""
        network = self._family().member(self.W_std, self.b_std)
        x = shaped(X, self.image_shape)
        return kernel_diagonal(network, x, self.kernel, DEFAULT_MEMORY)

    def is_stationary(self) -> bool:
        """Returns False: the kernel depends on more than differences of inputs."""
        return False

    def _family(self) -> Family:
        shape = None if self.image_shape is None else tuple(self.image_shape)
        biased = self.b_std is not None
        return Family(self.kernel, self.network, self.depth, self.activation, biased, shape)

    def _slopes(self, X: Any) -> np.ndarray:
        """Returns the derivatives [n, n, free] by logarithms of what is not fixed."""
        if not self.n_dims:
            return np.empty((len(X), len(X), 0))
        family = self._family()
        values = np.array([getattr(self, name) for name in family.names], np.float64)
        free = [not getattr(self, f"hyperparameter_{name}").fixed for name in family.names]
        return (kernel_slopes(family, values, np.asarray(X, np.float64)) * values)[..., free]

    def _hyperparameter(self, name: str, bounds: Bounds) -> Hyperparameter:
        exists = isinstance(self.network, str) and getattr(self, name) is not None
        return Hyperparameter(name, "numeric", bounds if exists else "fixed")
