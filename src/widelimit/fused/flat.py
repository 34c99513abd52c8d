"""Kernels of networks without spatial axes: one product, then rows that stay in cache."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from widelimit.fused import instructions as m
from widelimit.fused.constants import table
from widelimit.fused.parallel import count_threads, parallel
from widelimit.fused.rules import RefusedError
from widelimit.fused.tape import Path, Source, Tape, Value, numbers_of
from widelimit.layers.base import Layer, Site
from widelimit.layers.reshape import Flatten

_TILE = 1 << 26  # bytes of products held at a time
_LEAST = 1 << 14  # entries that are worth a thread


@dataclasses.dataclass(frozen=True, eq=False)
class FlatProgram:
    """A network on inputs without spatial axes.

    Attributes:
      code: instructions [ops, COLUMNS].
      sources: per instruction, a function from the network to its numbers; None without any.
      slots: how many slots they use.
      places: numbers recorded per sample.
      tangent: whether there is a tangent kernel at the end.
      weighted: whether there are weights at all.
      gaussian: whether the outputs are Gaussian given the inputs.
    """

    code: np.ndarray
    sources: tuple[Source | None, ...]
    slots: int
    places: int
    tangent: bool
    weighted: bool
    gaussian: bool


class _FlatTape(Tape):
    """Instructions on rows of the kernel matrix, which carry the gap."""

    def numbers_of(self, value: Value) -> int:
        """Returns how many numbers a nonlinearity records per sample and kind."""
        return 1

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
    value = Value(tape.slot(), 0, False, False, frozenset())
    tape.emit(m.INPUT, value)
    out = tape.lower(net, (), site, value)
    if not isinstance(out, Value):
        raise RefusedError("the network has several outputs")
    if site.mixes:
        raise RefusedError("a layer combines samples of a batch")
    # The result is what the last instruction writes.
    final = dataclasses.replace(out, slot=tape.slot())
    tape.emit(m.COPY, final, out)
    code = np.stack(tape.code)
    _mark_gaps(code)
    return FlatProgram(
        code,
        tuple(tape.sources),
        len(tape.uses),
        tape.room,
        out.has_t,
        bool(out.origins),
        out.gaussian,
    )


def _mark_gaps(code: np.ndarray) -> None:
    """Marks the instructions whose input carries the gap; smooth nonlinearities drop it."""
    has: dict[int, bool] = {}
    for op in code:
        target, source = int(op[m.TARGET]), int(op[m.SOURCE])
        carried = has.get(source, True)
        op[m.HAS_G] = carried
        match op[m.CODE]:
            case m.NONLINEAR:
                if op[m.KIND] in (m.NORM, m.SIGN):
                    raise RefusedError("a layer whose loop does not carry the gap")
                has[target] = op[m.KIND] == m.RELU
            case m.ADD:
                has[target] = carried and has[target]
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


class FlatEngine:
    """A network bound to its hyper-parameters.

    Args:
      program: the network, lowered.
      net: the network, for its numbers.
      dtype: float32 or float64.
    """

    def __init__(self, program: FlatProgram, net: Layer, dtype: Any) -> None:
        self.program = program
        self.dtype = np.dtype(dtype)
        self._numbers = numbers_of(program.sources, net, self.dtype)
        self._constants = table(self.dtype)

    def prepare(self, x: np.ndarray) -> PreparedRows:
        """Returns inputs [n, features] with their variances at every layer."""
        from widelimit.fused.flat_machine import run_own

        wide = np.ascontiguousarray(x, np.float64)
        squares = np.einsum("nc,nc->n", wide, wide) / wide.shape[1]
        own = squares.astype(self.dtype)
        numbers = np.zeros((self.program.places, len(x)), self.dtype)
        variances = own.copy()
        run_own(
            self.program.code, self._numbers, self._constants, variances, numbers, self._scratch()
        )
        return PreparedRows(wide, squares, own, numbers, variances)

    def kernels(
        self, first: PreparedRows, second: PreparedRows | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns K and T [n1, n2]; None stands for `first`, and is symmetric to the bit."""
        from widelimit.fused.flat_machine import run_rows

        symmetric = second is None
        other = first if second is None else second
        n1, n2 = len(first.x), len(other.x)
        out = _aligned(n1, n2, self.dtype), _aligned(n1, n2, self.dtype)
        step = max(1, min(n1, _TILE // (8 * max(n2, 1))))
        for start in range(0, n1, step):
            end = min(start + step, n1)
            columns = other.x[start:] if symmetric else other.x
            products = first.x[start:end] @ columns.T
            products /= first.x.shape[1]
            shared = self.program.code, self._numbers, self._constants, products
            inputs = first.squares, other.squares, first.own, first.numbers, other.numbers

            def rows(
                part: np.ndarray, shared: Any = shared, inputs: Any = inputs, start: int = start
            ) -> None:
                run_rows(*shared, *inputs, symmetric, start, part, out, self._scratch())

            parallel(rows, _parts(start, end, n2))
        if symmetric:
            for values in out:
                _mirror(values)
            np.fill_diagonal(out[0], first.variances)
        return out

    def _scratch(self) -> np.ndarray:
        # Two temporaries, three parts of every slot, and a slice of ones, in whole triples.
        return np.zeros((self.program.slots + 2) * 3 * m.CHUNK, self.dtype)


def _parts(start: int, end: int, columns: int) -> list[np.ndarray]:
    """Returns ranges of rows, more of them than threads: rows differ in length if symmetric."""
    enough = (end - start) * columns // _LEAST + 1  # threads take longer to start than a few rows
    count = min(end - start, 4 * count_threads(), enough)
    bounds = np.linspace(start, end, count + 1).astype(np.int64)
    return [np.array(pair) for pair in itertools.pairwise(bounds)]


def _aligned(rows: int, columns: int, dtype: np.dtype) -> np.ndarray:
    """Returns an empty matrix at an address that JAX can take over without a copy."""
    size = rows * columns * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size].view(dtype).reshape(rows, columns)


def _mirror(values: np.ndarray, block: int = 256) -> None:
    """Copies the upper triangle to the lower one, block by block."""
    n = len(values)
    for i in range(0, n, block):
        for j in range(i, n, block):
            tile = values[i : i + block, j : j + block]
            if i == j:
                rows, columns = np.tril_indices(len(tile), -1)
                tile[rows, columns] = tile[columns, rows]
            else:
                values[j : j + block, i : i + block] = tile.T
