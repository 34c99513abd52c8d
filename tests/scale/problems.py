"""Kernels with known spectra, operators that count, and a store in memory."""

import numpy as np

import widelimit as wl
from widelimit.scale.operator import DenseOperator


def kernel(n: int, condition: float = 2e3, ridge: float = 0.0, seed: int = 0) -> np.ndarray:
    """A kernel of points on a line with this condition, after the ridge is added."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    evals = np.geomspace(1.0, 1.0 / condition, n) * n - ridge
    matrix = (q * evals) @ q.T
    return (matrix + matrix.T) / 2


def smooth_kernel(n: int, seed: int = 0) -> np.ndarray:
    """A kernel whose eigenvalues fall fast, as those of networks do."""
    x = np.random.default_rng(seed).normal(size=(n, 3))
    distance = ((x[:, None] - x[None]) ** 2).sum(-1)
    return np.exp(-distance / 4)


class Counting(DenseOperator):
    """Counts passes, and is killed at one of them."""

    def __init__(self, matrix: np.ndarray, dies_at: int | None = None) -> None:
        super().__init__(matrix)
        self.passes, self.columns_seen, self.dies_at = 0, 0, dies_at

    def matmat(self, v):
        if self.passes == self.dies_at:
            raise KeyboardInterrupt
        self.passes += 1
        self.columns_seen += v.shape[1]
        return super().matmat(v)


class MemoryStore:
    """The interface of a store that ensembles rely upon, in memory."""

    def __init__(self, network, x, path, get=("nngp", "ntk")):
        self.network, self.x, self.path, self.get, self.count = network, x, path, get, len(x)
        kernels = wl.gram(network, x, None, get, progress=False)
        self.operators = {name: Counting(getattr(kernels, name)) for name in get}
        self.dtype = x.dtype

    def operator(self, get="ntk", backend=None):
        return self.operators[get]

    def ensemble_class(self):
        from widelimit.scale.ensemble import StoredEnsemble

        return StoredEnsemble
