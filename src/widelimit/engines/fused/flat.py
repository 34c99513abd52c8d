"""Kernels of networks without spatial axes: one product, then rows that stay in cache."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from widelimit.engines.fused import instructions as m
from widelimit.engines.fused.activations.base import RefusedError
from widelimit.engines.fused.constants import table
from widelimit.engines.fused.parallel import count_threads, one_blas_thread, run_parallel
from widelimit.engines.fused.tape import (
    INPUT,
    Activations,
    Path,
    Source,
    Tape,
    Value,
    has_counted,
    numbers_of,
    with_addresses,
)
from widelimit.layers.base import Layer, Site
from widelimit.layers.reshape import Flatten

_TILE = 1 << 25  # bytes of products that a thread holds at a time
_LEAST = 1 << 14  # entries that are worth a thread
_SERIES_CHUNK = 256  # samples whose terms of series stay in the second cache


@dataclasses.dataclass(frozen=True, eq=False)
class FlatProgram:
    """A network on inputs without spatial axes.

    Attributes:
      code: instructions [ops, COLUMNS].
      sources: per instruction, a function from the network to its numbers; None without any.
      activations: per instruction, the activation; None without any.
      slots: how many slots they use.
      places: numbers recorded per sample.
      tangent: whether there is a tangent kernel at the end.
      weighted: whether there are weights at all.
      gaussian: whether the outputs are Gaussian given the inputs.
    """

    code: np.ndarray
    sources: tuple[Source | None, ...]
    activations: Activations
    slots: int
    places: int
    tangent: bool
    weighted: bool
    gaussian: bool


class _FlatTape(Tape):
    """Instructions on rows of the kernel matrix, which carry the gap."""

    def other(self, layer: Layer, path: Path, site: Site, value: Any) -> Value:
        """Returns the value after a Flatten."""
        if isinstance(layer, Flatten) and layer.batch_axis_out % 2 == site.signal_in.batch_axis:
            return dataclasses.replace(value, gaussian=False)
        return super().other(layer, path, site, value)


def lower_flat(net: Layer, site: Site, tangent: bool) -> FlatProgram:
    """Returns the program of a network.

    Raises:
      RefusedError: the network holds something that the fused engine does not run.
    """
    tape = _FlatTape(tangent)
    value = Value(tape.slot(), 0, False, False, frozenset({INPUT}))
    tape.emit(m.INPUT, value)
    out = tape.lower(net, (), site, value)
    if not isinstance(out, Value):
        raise RefusedError("the network has several outputs")
    if site.mixes:
        raise RefusedError("a layer combines samples of a batch")
    # The result is what the last instruction writes.
    final = dataclasses.replace(out, slot=tape.slot())
    tape.emit(m.COPY, final, out)
    tape.place_records([1])
    code = np.stack(tape.code)
    _mark_gaps(code, tuple(tape.activations))
    return FlatProgram(
        code,
        tuple(tape.sources),
        tuple(tape.activations),
        len(tape.uses),
        tape.room,
        out.has_t,
        bool(out.origins - {INPUT}),
        out.gaussian,
    )


def _mark_gaps(code: np.ndarray, activations: Activations) -> None:
    """Marks the instructions whose input carries the gap; smooth activations drop it."""
    has: dict[int, bool] = {}
    for op, placed in zip(code, activations, strict=True):
        target, source = int(op[m.TARGET]), int(op[m.SOURCE])
        carried = has.get(source, True)
        op[m.HAS_G] = carried
        match op[m.CODE]:
            case m.NONLINEAR:
                assert placed is not None
                has[target] = placed.activation.pair_gap is not None
            case m.ADD:
                has[target] = carried and has[target]
            case m.MULTIPLY:
                has[target] = False
            case _:
                has[target] = carried


@dataclasses.dataclass(frozen=True)
class PreparedRows:
    """Inputs with what nonlinearities need of their variances.

    Attributes:
      x: inputs [n, features], float64.
      squares: mean squares [n], float64.
      own: mean squares in the working dtype.
      numbers: recorded numbers [places, n].
      variances: variances of the output [n].
    """

    x: np.ndarray
    squares: np.ndarray
    own: np.ndarray
    numbers: np.ndarray
    variances: np.ndarray

    @property
    def lost(self) -> bool:
        """Whether a variance is NaN, as it is where a series is not known."""
        return bool(np.isnan(self.variances).any())


class RowKernels:
    """A network bound to its hyper-parameters.

    Args:
      program: the network, lowered.
      net: the network, for its numbers.
      dtype: float32 or float64.
      single: whether results are rounded to float32.

    Attributes:
      code: instructions with the addresses of loops.
      numbers: hyper-parameters of instructions.
      constants: those of the dtype.
    """

    def __init__(self, program: FlatProgram, net: Layer, dtype: Any, single: bool) -> None:
        self.program = program
        self.dtype = np.dtype(dtype)
        self.code, self._tables = with_addresses(
            program.code, program.activations, net, self.dtype, space=False, single=single
        )
        self.numbers = numbers_of(program.sources, net, self.dtype)
        self.constants = table(self.dtype)
        self._chunk = _SERIES_CHUNK if has_counted(program.activations) else m.CHUNK

    def prepare(self, x: np.ndarray) -> PreparedRows:
        """Returns inputs [n, features] with their variances at every layer."""
        from widelimit.engines.fused.flat_machine import run_own

        wide, squares = np.empty(x.shape), np.empty(len(x))

        def widen(rows: np.ndarray) -> None:
            part = wide[slice(*rows)]
            part[:] = x[slice(*rows)]
            squares[slice(*rows)] = np.einsum("nc,nc->n", part, part) / x.shape[1]

        run_parallel(widen, row_parts(*x.shape))
        own = squares.astype(self.dtype)
        numbers = np.zeros((self.program.places, len(x)), self.dtype)
        variances = own.copy()
        run_own(self.code, self.numbers, self.constants, variances, numbers, self._scratch())
        return PreparedRows(wide, squares, own, numbers, variances)

    def kernels(
        self, first: PreparedRows, second: PreparedRows | None, wanted: tuple[bool, bool]
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Returns K and T [n1, n2], None where not wanted.

        Args:
          first: inputs of x1.
          second: inputs of x2; None stands for `first`, and is symmetric to the bit.
          wanted: whether K, and T, are.
        """
        symmetric = second is None
        other = first if second is None else second
        n1, n2 = len(first.x), len(other.x)
        out = tuple([_aligned(n1, n2 if want else 0, self.dtype) for want in wanted])
        # A thread takes strips of rows: products by BLAS, then the loops.
        with one_blas_thread():
            run_parallel(
                lambda rows: self._strip(first, other, symmetric, rows, out), row_parts(n1, n2)
            )
        if symmetric:
            for values in itertools.compress(out, wanted):
                _mirror(values)
            if wanted[0]:
                np.fill_diagonal(out[0], first.variances)
        return out[0] if wanted[0] else None, out[1] if wanted[1] else None

    def _strip(
        self, first: PreparedRows, other: PreparedRows, symmetric: bool, rows: np.ndarray, out: Any
    ) -> None:
        """Writes rows low to high - 1 of K and T."""
        from widelimit.engines.fused.flat_machine import run_rows

        low, high = rows
        products = first.x[low:high] @ (other.x[low:] if symmetric else other.x).T
        run_rows(
            self.code,
            self.numbers,
            self.constants,
            products,
            first.x.shape[1],
            first.squares,
            other.squares,
            first.own,
            first.numbers,
            other.numbers,
            symmetric,
            rows,
            self._chunk,
            out,
            self._scratch(),
        )

    def _scratch(self) -> np.ndarray:
        # Three parts of every slot, room for loops, and a mask.
        return np.zeros((3 * self.program.slots + 1) * m.CHUNK + m.WORK, self.dtype)


def row_parts(rows: int, columns: int) -> list[np.ndarray]:
    """Returns ranges of rows: a few for every thread, and none with too many products."""
    entries = rows * columns
    threads = min(8 * count_threads(), entries // _LEAST + 1)  # to start one takes time too
    count = min(rows, max(threads, 8 * entries // _TILE))
    bounds = np.linspace(0, rows, count + 1).astype(np.int64)
    return [np.array(pair) for pair in itertools.pairwise(bounds)]


def _aligned(rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
    """Returns an empty matrix at an address that JAX can take over without a copy."""
    size = rows * columns * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size].view(dtype).reshape(rows, columns)


def _mirror(values: np.ndarray) -> None:
    """Copies the upper triangle to the lower one."""
    from widelimit.engines.fused.flat_machine import mirror_rows

    run_parallel(lambda rows: mirror_rows(values, rows), row_parts(*values.shape))
