"""Block Lanczos: an orthonormal basis in which a kernel is a small matrix."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import scipy.linalg
from jaxtyping import Float64

from widelimit.scale.checkpoint import Location, SavedBasis, digest
from widelimit.scale.operator import check_product

# Directions of a new block below so much of the largest entry of the projected matrix, times n eps,
# are rounding errors: they are dropped.
_DEFLATE = 10.0
# A unit vector that lies in the basis but for less than this part was itself a rounding error.
_MOSTLY = 0.5

Function: TypeAlias = Callable[[np.ndarray], Any]
"""Maps eigenvalues [k] to values [m, k]."""

Product: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Maps columns [n, c] to the product of a symmetric matrix with them."""


class BlockLanczos:
    """The Krylov space of K and the columns of b, by orthonormal blocks of vectors.

    With the basis V, T = V^T K V is block tridiagonal and b = V R, so f(K) b is about V f(T) R for
    any f (Golub and Meurant, "Matrices, Moments and Quadrature"): one pass over K per step serves
    every function. New blocks are made orthogonal to all others, twice. A block that loses rank
    goes on with what is left of it (deflation); where nothing is left the space is invariant, and
    f(K) b exact up to rounding.

    Memory is 8 n bytes for every column of b and step.

    Args:
      product: maps columns [n, c] to K times them.
      b: float64 columns [n, c].
      checkpoint: path or URL of a store, or of any folder, in whose group `krylov` the basis is
        kept, a chunk row for every step; what is there already is not computed again.
      name: a text that tells K apart from other matrices, for the checkpoint.

    Attributes:
      start: R of the first block, [w, c].
      blocks: the blocks of V, each [n, w]; the last one is the next step's.
      exhausted: whether the space is invariant.
    """

    def __init__(
        self,
        product: Product,
        b: Float64[np.ndarray, "n c"],
        checkpoint: Location | None = None,
        name: str = "",
    ) -> None:
        self._product, self._norm = product, 0.0
        longest = np.linalg.norm(b, axis=0).max(initial=0.0)
        first, self.start = _orthonormal(b, _lowest(len(b), longest))
        self.blocks, self._saved = [first], None
        self._diagonals: list[np.ndarray] = []
        self._couplings: list[np.ndarray] = []
        if checkpoint is not None and first.shape[1]:
            fingerprint = digest(name, b)
            self._saved = SavedBasis(checkpoint, fingerprint, (len(b), first.shape[1]))
            for step in self._saved.read():
                self._append(*step)

    @property
    def steps(self) -> int:
        """Passes over the kernel so far, those before a restart included."""
        return len(self._diagonals)

    @property
    def exhausted(self) -> bool:
        """Whether the Krylov space is invariant: there is nothing to add."""
        return not self.blocks[-1].shape[1]

    def extend(self, steps: int) -> None:
        """Adds so many blocks, or fewer if the space is exhausted."""
        for _ in range(steps):
            if self.exhausted:
                return
            step = self._step()
            self._append(*step)
            if self._saved is not None:
                self._saved.write(*step)

    def size(self, steps: int) -> int:
        """Returns the number of basis vectors of the first steps."""
        return sum(len(a) for a in self._diagonals[:steps])

    def projected(self, steps: int | None = None) -> Float64[np.ndarray, "k k"]:
        """Returns T = V^T K V of the first steps, of all by default."""
        steps = self.steps if steps is None else steps
        t, place = np.zeros((self.size(steps),) * 2), 0
        for index, a in enumerate(self._diagonals[:steps]):
            here = slice(place, place + len(a))
            t[here, here], place = a, here.stop
            if index + 1 < steps:
                coupling = self._couplings[index]
                below = slice(place, place + len(coupling))
                t[below, here], t[here, below] = coupling, coupling.T
        return t

    def coefficients(
        self, function: Function, steps: int | None = None
    ) -> Float64[np.ndarray, "m k c"]:
        """Returns f(T) R for functions of eigenvalues at m times, from the first steps."""
        evals, evecs = scipy.linalg.eigh(self.projected(steps))
        weights = evecs[: len(self.start)].T @ self.start
        return evecs @ (np.asarray(function(evals))[:, :, None] * weights[None])

    def last_coupling(self) -> Float64[np.ndarray, "v w"]:
        """Returns B, by which K V = V T + Q B for the next block Q and the last one of V."""
        return self._couplings[-1]

    def combine(self, coefficients: Float64[np.ndarray, "k c"]) -> Float64[np.ndarray, "n c"]:
        """Returns V times the coefficients."""
        result, place = np.zeros((len(self.blocks[0]), coefficients.shape[1])), 0
        for block in self.blocks[: self.steps]:
            result += block @ coefficients[place : place + block.shape[1]]
            place += block.shape[1]
        return result

    def _append(self, a: np.ndarray, coupling: np.ndarray, block: np.ndarray) -> None:
        self._diagonals.append(a)
        self._couplings.append(coupling)
        self.blocks.append(block)
        self._norm = max(self._norm, np.abs(a).max(), np.abs(coupling).max(initial=0.0))

    def _step(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next blocks of T, and the block of vectors after them."""
        last = self.blocks[-1]
        product = check_product(self._product(last))
        a = last.T @ product
        a = (a + a.T) / 2
        lowest = _lowest(len(last), max(self._norm, np.abs(a).max()))
        if sum(block.shape[1] for block in self.blocks) >= len(last):
            lowest = np.inf  # the whole space: what is left are rounding errors
        block, coupling = _orthonormal(self._outside(product), lowest)
        # Again, of unit vectors: short ones were blown up, with what rounding had left of others.
        block, kept = _orthonormal(self._outside(block), _MOSTLY)
        return a, kept @ coupling, block

    def _outside(self, vectors: np.ndarray) -> np.ndarray:
        """What is left of vectors outside of the basis."""
        for block in self.blocks:
            vectors = vectors - block @ (block.T @ vectors)
        return vectors


def _lowest(n: int, scale: float) -> float:
    """What rounding errors leave of vectors of this length."""
    return _DEFLATE * n * float(np.finfo(np.float64).eps) * scale


def _orthonormal(b: np.ndarray, lowest: float) -> tuple[np.ndarray, np.ndarray]:
    """Q [n, w] and R [w, c] with b = Q R but for directions that are not longer than `lowest`."""
    q, r, pivots = scipy.linalg.qr(b, mode="economic", pivoting=True)
    rank = int((np.abs(r.diagonal()) > lowest).sum())
    coefficients = np.empty((rank, b.shape[1]))
    coefficients[:, pivots] = r[:rank]
    return np.asfortranarray(q[:, :rank]), coefficients
