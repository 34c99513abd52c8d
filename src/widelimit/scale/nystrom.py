"""Regression on landmarks: another model, whose cost is linear in the number of samples."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array

from widelimit.gram.compute import kernel_fn_of, kernels_between
from widelimit.gram.sizes import DEFAULT_MEMORY, parse_memory
from widelimit.predict.checks import as_targets, check_finite_inputs, check_scalar
from widelimit.predict.precision import resolution, result_dtype
from widelimit.scale.inputs import check_samples_first, in_batches, sample_count
from widelimit.scale.nystrom_preconditioner import independent
from widelimit.typing import Inputs, NetworkLike, TargetsLike

# Samples whose kernels with the landmarks are computed at a time take so many bytes at most.
_TILE_BYTES = 2**26
# Of test samples with each other only the diagonal is needed: so many at a time.
_PRIOR_ROWS = 32


class NystromRegression:
    """Regression with the kernel k(x, Z) k(Z, Z)^-1 k(Z, x') of M landmarks Z.

    It is not the infinite ensemble of the network, but a model of rank M that tends to its
    posterior as the landmarks become all of the samples: means differ by what the landmarks do not
    tell of the kernel, and nothing here says by how much. With k the kernel of x and Z, lambda the
    ridge, and S = k(Z, X) k(X, Z) + lambda k(Z, Z),

        mean = k(x, Z) S^-1 k(Z, X) y
        variance = k(x, x) - k(x, Z) (k(Z, Z)^-1 - lambda S^-1) k(Z, x),

    the projected process of "Gaussian Processes for Machine Learning", section 8.3.4: far from the
    landmarks the variance is that of the prior. Kernels of samples with landmarks are computed some
    samples at a time and not kept: memory is 16 M^2 bytes and a tile. All is float64, in the basis
    in which k(Z, Z) is the identity; landmarks that depend on others within rounding are dropped.

    Args:
      net_or_kernel_fn: a network, or a function `kernel_fn(x1, x2, get)` of kernels.
      x: training inputs [n, ...].
      y: training targets [n, outputs].
      landmarks: number of training inputs that are drawn as landmarks, or their indices.
      get: "nngp" or "ntk".
      noise: standard deviation of the noise of observations, in units of y.
      jitter: ridge beside noise^2, in units of the mean diagonal of the landmarks' kernel.
      seed: of the draw.
      memory: bytes that computing kernels may take.

    Raises:
      ValueError: if x or y is not finite, shapes do not fit, `noise` or `jitter` is negative, there
        are fewer than 1 or more than n landmarks, or noise and jitter are both 0.

    Example:
      >>> import numpy as np
      >>> from widelimit import stax
      >>> net = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
      >>> x = np.random.default_rng(0).normal(size=(50, 3))
      >>> model = NystromRegression(net, x, x[:, :1], landmarks=10, noise=0.1)
      >>> model.mean(x[:4]).shape, model.std(x[:4]).shape
      ((4, 1), (4, 1))
    """

    def __init__(
        self,
        net_or_kernel_fn: NetworkLike,
        x: Inputs,
        y: TargetsLike,
        *,
        landmarks: int | np.ndarray,
        get: str = "nngp",
        noise: float = 0.0,
        jitter: float = 1e-6,
        seed: int = 0,
        memory: str | float | int = DEFAULT_MEMORY,
    ) -> None:
        """Makes one pass over the training set."""
        self._kernel_fn, self._memory = kernel_fn_of(net_or_kernel_fn), parse_memory(memory)
        self._get, y = get, np.asarray(as_targets("y", y), np.float64)
        check_finite_inputs("x", x, {})
        check_scalar("noise", noise)
        check_scalar("jitter", jitter)
        check_samples_first(self._kernel_fn, x)
        n = sample_count(x)
        if y.ndim != 2 or len(y) != n:
            raise ValueError(f"expected y of shape ({n}, outputs), got {y.shape}")
        places = _places(landmarks, n, seed)
        self._landmarks, self._noise = jax.tree.map(lambda leaf: leaf[places], x), noise
        within = self._kernel(self._landmarks, None)
        self._dtype = result_dtype(within)
        self._lower, self._kept = independent(within, resolution(within))
        self._ridge = float(noise * noise + jitter * within.diagonal().mean())
        if not self._ridge > 0:
            raise ValueError("expected noise or jitter above 0, got 0 for both")
        self._fit(x, y)

    def mean(self, x: Inputs) -> Array:
        """The predictions at x, [t, outputs]."""
        parts = [self._features(part) @ self._weights for part in self._tiles(x)]
        return jnp.asarray(np.concatenate(parts), self._dtype)

    def var(self, x: Inputs, noise: bool = False) -> Array:
        """The variance [t, outputs] of the outputs at x, or of observations there.

        Args:
          x: inputs [t, ...].
          noise: whether to add that of the noise.
        """
        parts = [self._variance(part) for part in self._tiles(x)]
        variance = np.concatenate(parts) + (self._noise**2 if noise else 0.0)
        shape = (len(variance), self._weights.shape[1])
        return jnp.asarray(np.broadcast_to(variance[:, None], shape), self._dtype)

    def std(self, x: Inputs, noise: bool = False) -> Array:
        """The standard deviation [t, outputs]; see `var`."""
        return jnp.sqrt(self.var(x, noise))

    def _fit(self, x: Inputs, y: np.ndarray) -> None:
        """Sums the features F of all samples: S = F^T F + ridge I, and S^-1 F^T y."""
        size, start = len(self._kept), 0
        inner, outer = self._ridge * np.eye(size), np.zeros((size, y.shape[1]))
        for part in self._tiles(x):
            features = self._features(part)
            stop = start + len(features)
            inner += features.T @ features
            outer += features.T @ y[start:stop]
            start = stop
        self._inner = scipy.linalg.cho_factor(inner, lower=True, overwrite_a=True)
        self._weights = scipy.linalg.cho_solve(self._inner, outer)

    def _features(self, x: Inputs) -> np.ndarray:
        """K(x, Z) L^-T [t, M], whose products are the kernel of the model."""
        columns = self._kernel(x, self._landmarks)[:, self._kept]
        return scipy.linalg.solve_triangular(self._lower, columns.T, lower=True).T

    def _variance(self, x: Inputs) -> np.ndarray:
        features = self._features(x)
        batches = in_batches(x, _PRIOR_ROWS)
        prior = np.concatenate([self._kernel(batch, None).diagonal() for batch in batches])
        left = self._ridge * scipy.linalg.cho_solve(self._inner, features.T).T
        return np.maximum(prior - (features * (features - left)).sum(1), 0.0)

    def _kernel(self, x1: Inputs, x2: Inputs) -> np.ndarray:
        kernel = kernels_between(self._kernel_fn, x1, x2, self._get, self._memory, {})
        matrix = np.asarray(kernel)
        if matrix.ndim != 2:
            raise ValueError(
                f"expected a kernel of two axes, samples by samples, got shape {matrix.shape}: a "
                "network that keeps spatial axes needs stax.Flatten() before its last layer"
            )
        return matrix

    def _tiles(self, x: Inputs) -> Iterator[Inputs]:
        return in_batches(x, _TILE_BYTES // (8 * len(self._kept)))


def _places(landmarks: int | np.ndarray, n: int, seed: int) -> np.ndarray:
    """The indices of the landmarks.

    Raises:
      ValueError: if there are too few or too many.
    """
    if np.ndim(landmarks):
        return np.asarray(landmarks)
    if not 1 <= landmarks <= n:
        raise ValueError(f"expected between 1 and {n} landmarks, got {landmarks}")
    return np.sort(np.random.default_rng(seed).choice(n, int(landmarks), replace=False))
