"""What a kernel will cost, before it is computed: a table to print."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from widelimit.inputs import working_dtype
from widelimit.kernel import Choice, choose_engine
from widelimit.layers.affine import Dense
from widelimit.layers.base import Layer, Site, as_shape, located
from widelimit.layers.combine import Parallel, Repeat, Serial
from widelimit.layers.elementwise import ElementwiseLayer
from widelimit.layers.numerical import SeriesLayer
from widelimit.plan import input_axes, input_signal, leading_flatten, make_site, output_need
from widelimit.signal import Signal, is_branches


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer of a plan.

    Attributes:
      layer: the layer, indented by its depth.
      shape: output shape of the finite layer.
      parameters: number of parameters of the finite layer.
      entries: covariance entries of one pair of samples at the output (one per NNGP or NTK).
      operations: floating point operations of one pair of samples, by count of the formulas.
    """

    layer: str
    shape: Any
    parameters: int
    entries: int
    operations: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the kernel of a network needs; `print` it.

    Attributes:
      rows: one per layer.
      pairs: number of pairs of samples.
      itemsize: bytes of one number.
      arrays: covariances kept per entry: NNGP, gap and, if wanted, NTK.
      engine: the engine that will run, and why.
    """

    rows: tuple[Row, ...]
    pairs: int
    itemsize: int
    arrays: int
    engine: Choice

    @property
    def parameters(self) -> int:
        """Number of parameters of the finite network."""
        return sum(row.parameters for row in self.rows)

    @property
    def operations(self) -> int:
        """Floating point operations of the whole kernel."""
        return self.pairs * sum(row.operations for row in self.rows)

    @property
    def bytes(self) -> int:
        """Bytes of the covariances of the largest layer, for all pairs."""
        largest = max((row.entries for row in self.rows), default=0)
        return self.pairs * self.arrays * self.itemsize * largest

    def __str__(self) -> str:
        header = ("layer", "output shape", "parameters", "entries/pair", "bytes", "operations")
        scale = self.pairs * self.arrays * self.itemsize
        body = [
            (
                row.layer,
                str(row.shape),
                f"{row.parameters:,}",
                f"{row.entries:,}",
                _quantity(scale * row.entries, "B"),
                _quantity(self.pairs * row.operations),
            )
            for row in self.rows
        ]
        total = ("total", "", f"{self.parameters:,}", "", "", _quantity(self.operations))
        table = [header, *body, total]
        widths = [max(len(line[i]) for line in table) for i in range(len(header))]
        lines = [_line(line, widths) for line in table]
        lines.insert(1, "-" * len(lines[0]))
        lines.insert(-1, lines[1])
        return "\n".join(
            [
                *lines,
                f"pairs of samples: {self.pairs:,}; covariances of the largest layer: "
                f"{_quantity(self.bytes, 'B')}",
                f"engine: {self.engine.name} ({self.engine.reason})",
            ]
        )

    __repr__ = __str__


def plan(net: Layer, shape: Any, get: Any = ("nngp", "ntk")) -> Plan:
    """Returns what the kernel of `net` between n samples and themselves needs.

    Nothing is computed, but every check of the network runs.

    Args:
      net: the network.
      shape: shape of the input, batch size included (-1 counts as 1); a list or tuple of shapes
        for networks with parallel inputs.
      get: what will be asked of `kernel_fn`.

    Raises:
      ValueError: shapes or layers that do not fit; the message names the layer.

    Example:
      >>> from widelimit import plan, stax
      >>> table = plan(stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1)), (100, 784))
      >>> table.parameters
      401920
    """
    shape = _positive(as_shape(shape))
    dtype = working_dtype()
    sample = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, dtype), shape, is_leaf=lambda s: not is_branches(s[0])
    )
    jax.eval_shape(lambda x: net.kernel_fn(x, None, get), sample)
    with located(net.label):
        rows, batch = _rows(net, shape)
    names = (get,) if isinstance(get, str) else get
    tangent = names is None or "ntk" in names
    return Plan(rows, batch**2, dtype.itemsize, 2 + tangent, choose_engine(net, shape))


def _positive(shape: Any) -> Any:
    if is_branches(shape[0]):
        return tuple(_positive(s) for s in shape)
    return tuple(1 if size == -1 else size for size in shape)


def _rows(net: Layer, shape: Any) -> tuple[tuple[Row, ...], int]:
    """Returns the rows of the table and the number of samples."""
    rows = []
    inner, flatten = leading_flatten(net)
    axes: tuple[int | None, int | None] = None, None
    if flatten is not None:
        shape = flatten.output_shape(shape)
        batch = flatten.batch_axis_out % 2
        axes = batch, 1 - batch
    signal = input_signal(shape, shape, input_axes(inner, shape, axes))
    need = output_need(inner.output_signal(signal), diagonal_spatial=False, own=False)
    site = make_site(inner, signal, need, (None, None), (None, None))
    rows.append(_input_row(site))
    rows.extend(_walk(inner, site, 0))
    first = signal
    while not isinstance(first, Signal):
        first = first[0]
    return tuple(rows), first.n1


def _input_row(site: Site) -> Row:
    entries = _entries(site.need_in, site.signal_in)
    channels = _total(lambda s: s.channels, site.signal_in)
    return Row("input", _shape(site.signal_in), 0, entries, 2 * channels * entries)


def _walk(layer: Layer, site: Site, depth: int) -> Iterator[Row]:
    """Yields a row per layer without layers inside."""
    match layer:
        case Serial(layers=inner) | Parallel(layers=inner):
            deeper = depth + isinstance(layer, Parallel)
            for sub, child in zip(inner, site.children, strict=True):
                yield from _walk(sub, child, deeper)
        case Repeat(layer=body, n=n) if n > 0:
            for row in _walk(body, site.children[1], depth + 1):
                yield dataclasses.replace(
                    row,
                    layer=f"{row.layer} x {n}",
                    parameters=n * row.parameters,
                    operations=n * row.operations,
                )
        case _:
            entries = _entries(site.need_out, site.signal_out)
            yield Row(
                layer="  " * depth + repr(layer),
                shape=_shape(site.signal_out),
                parameters=_count_parameters(layer, _shape(site.signal_in)),
                entries=entries,
                operations=entries * _operations(layer),
            )


def _operations(layer: Layer) -> int:
    """Returns operations per covariance entry: NNGP, NTK and gap together, counted by formula."""
    match layer:
        case Dense():
            return 6
        case SeriesLayer():
            return 5 * 256
        case ElementwiseLayer():
            return 60  # an arctangent, a square root and some twenty multiply-adds
        case _:
            return 2


def _count_parameters(layer: Layer, shape: Any) -> int:
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    params = jax.eval_shape(lambda k: layer.init(k, shape), key)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _entries(need: Any, signal: Any) -> int:
    if isinstance(signal, Signal):
        return need.cross.entries(signal.spatial)
    return sum(_entries(n, s) for n, s in zip(need, signal, strict=True))


def _shape(signal: Any) -> Any:
    return signal.shape1 if isinstance(signal, Signal) else tuple(_shape(s) for s in signal)


def _total(function: Any, signal: Any) -> int:
    if isinstance(signal, Signal):
        return function(signal)
    return sum(_total(function, s) for s in signal)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    first = f"{cells[0]:<{widths[0]}}  {cells[1]:<{widths[1]}}"
    rest = (f"{cell:>{width}}" for cell, width in zip(cells[2:], widths[2:], strict=True))
    return "  ".join([first, *rest]).rstrip()


def _quantity(value: float | int, unit: str = "") -> str:
    """Returns a number with a decimal prefix: 12.3 MB, 1.2 G."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000 or prefix == "T":
            break
        value /= 1000
    text = f"{value:.3g}" if prefix else f"{value:.0f}"
    return f"{text} {prefix}{unit}".rstrip()
