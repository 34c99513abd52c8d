"""Derivatives of kernels without spatial axes: strips of rows on all threads."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np

from widelimit.engines.fused import instructions as m
from widelimit.engines.fused.adjoints.cotangents import Cotangents, Pulled
from widelimit.engines.fused.adjoints.order import values_read
from widelimit.engines.fused.flat import FlatProgram, PreparedRows, RowKernels, row_parts
from widelimit.engines.fused.parallel import one_blas_thread, run_parallel
from widelimit.layers.base import Layer

_SCRATCH = 1 << 18  # bytes of what instructions keep of a slice, which stays in the second cache
_PARTS = 5  # K, T, the gap, and the cotangents of K and T


@dataclasses.dataclass(frozen=True)
class _RowSums:
    """What the strips add up.

    Attributes:
      numbers: cotangents of hyper-parameters [ops, NUMBERS].
      first: of variances of x1 at every instruction [ops, n1].
      second: of those of x2 [ops, n2].
      x1: of inputs [n1, features].
      x2: of those of x2.
    """

    numbers: np.ndarray
    first: np.ndarray
    second: np.ndarray
    x1: np.ndarray
    x2: np.ndarray


class RowAdjoints:
    """The derivatives of a network bound to its hyper-parameters, in float64.

    Args:
      program: the network, lowered; all of its activations have partials.
      net: the network, for its numbers.
    """

    def __init__(self, program: FlatProgram, net: Layer) -> None:
        from widelimit.engines.fused.adjoints.pulls import pull_address

        self.kernels = RowKernels(program, net, np.float64, single=False)
        self._reads = values_read(program.code)
        self._pulls = np.array(
            [
                0 if placed is None else pull_address(placed.activation, np.dtype(float), "rows")
                for placed in program.activations
            ],
            np.int64,
        )
        ops = len(program.code)
        room = _SCRATCH // (8 * _PARTS * ops)
        self._chunk = max(64, min(m.CHUNK, room // m.VECTOR * m.VECTOR))

    def pull(
        self, first: PreparedRows, second: PreparedRows | None, given: Cotangents, inputs: bool
    ) -> Pulled:
        """Returns what cotangents of kernels become.

        Args:
          first: inputs of x1.
          second: inputs of x2; None stands for `first`.
          given: the cotangents.
          inputs: whether those of inputs are wanted.
        """
        other = first if second is None else second
        n1, n2, ops = len(first.x), len(other.x), len(self._reads)
        sums = _RowSums(
            np.zeros((ops, m.NUMBERS)),
            np.zeros((ops, n1)),
            np.zeros((ops, n2)),
            np.zeros(first.x.shape if inputs else (0, 0)),
            np.zeros(other.x.shape if inputs else (0, 0)),
        )
        lock = threading.Lock()
        with one_blas_thread():
            run_parallel(
                lambda rows: self._strip(first, second, given, rows, inputs, sums, lock),
                row_parts(n1, n2),
            )
        if second is None:
            diagonals = (_total(None if v is None else v.diagonal()) for v in given[:2])
            k_bar, t_bar = (_total(d, n=n1) for d in diagonals)
            sums.first[:] += sums.second
            sums.x1[:] += sums.x2
            k_bar = k_bar + _total(given.cov1, n=n1)
            self._own(first, k_bar, t_bar, sums.first, sums.x1, sums.numbers)
            return Pulled(sums.numbers, sums.x1 if inputs else None, None)
        for side, cov, bars, x in (
            (first, given.cov1, sums.first, sums.x1),
            (second, given.cov2, sums.second, sums.x2),
        ):
            n = len(side.x)
            self._own(side, _total(cov, n=n), np.zeros(n), bars, x, sums.numbers)
        return Pulled(sums.numbers, *((sums.x1, sums.x2) if inputs else (None, None)))

    def _strip(
        self,
        first: PreparedRows,
        second: PreparedRows | None,
        given: Cotangents,
        rows: np.ndarray,
        inputs: bool,
        sums: _RowSums,
        lock: Any,
    ) -> None:
        """Adds what rows low to high - 1 contribute."""
        from widelimit.engines.fused.adjoints.flat_machine import pull_rows

        low, high = rows
        symmetric, other = second is None, first if second is None else second
        x1, x2 = first.x[low:high], other.x[low:] if symmetric else other.x
        products = x1 @ x2.T
        nothing = np.zeros((len(x1), 0))
        cotangents = tuple(
            nothing if values is None else _strip_of(values, low, high, symmetric)
            for values in given[:2]
        )
        inputs_bar = np.zeros(products.shape) if inputs else nothing
        numbers = np.zeros_like(sums.numbers)
        seconds = np.zeros_like(sums.second)
        bound = self.kernels
        pull_rows(
            bound.code,
            self._reads,
            self._pulls,
            bound.numbers,
            bound.constants,
            products,
            first.x.shape[1],
            first.squares,
            other.squares,
            first.numbers,
            other.numbers,
            symmetric,
            rows,
            self._chunk,
            cotangents,
            (numbers, sums.first, seconds),  # rows of x1 are those of one strip
            inputs_bar,
            self._scratch(self._chunk),
        )
        inputs_bar /= first.x.shape[1]
        x2_bar = inputs_bar.T @ x1 if inputs else None
        with lock:
            sums.numbers[:] += numbers
            sums.second[:] += seconds
            if inputs:
                sums.x2[low if symmetric else 0 :] += x2_bar
                sums.x1[low:high] += inputs_bar @ x2

    def _own(
        self,
        side: PreparedRows,
        k_bar: np.ndarray,
        t_bar: np.ndarray,
        variances: np.ndarray,
        x_bar: np.ndarray,
        numbers: np.ndarray,
    ) -> None:
        """Adds what samples with themselves contribute to numbers and inputs."""
        from widelimit.engines.fused.adjoints.flat_machine import pull_own

        squares, lock, bound = np.zeros(len(side.x)), threading.Lock(), self.kernels
        nothing = np.zeros((1, 0))

        def part(samples: np.ndarray) -> None:
            found = np.zeros_like(numbers)
            pull_own(
                bound.code,
                self._reads,
                self._pulls,
                bound.numbers,
                bound.constants,
                side.own,
                side.numbers,
                samples,
                k_bar,
                t_bar,
                variances,
                (found, nothing, nothing),
                squares,
                self._scratch(0),
            )
            with lock:
                numbers[:] += found

        run_parallel(part, row_parts(len(side.x), 128))
        if x_bar.size:
            x_bar += (2 / side.x.shape[1]) * squares[:, None] * side.x

    def _scratch(self, chunk: int) -> np.ndarray:
        # Five parts of every instruction, four slices beside, and room for loops.
        slices = _PARTS * len(self._reads) + 4
        return np.zeros(slices * (chunk + m.VECTOR) + m.WORK)


def _strip_of(values: np.ndarray, low: int, high: int, symmetric: bool) -> np.ndarray:
    """Returns rows of cotangents in float64; if symmetric, from the diagonal on, of both halves."""
    if not symmetric:
        return values[low:high].astype(np.float64, order="C", copy=False)
    upper = values[low:high, low:].astype(np.float64)
    upper += values[low:, low:high].T
    return upper


def _total(values: np.ndarray | None, n: int | None = None) -> Any:
    """Returns cotangents in float64, zeros for none."""
    if values is None:
        return None if n is None else np.zeros(n)
    return np.ascontiguousarray(values, np.float64)
