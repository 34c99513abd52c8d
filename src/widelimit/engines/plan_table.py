"""wl.plan: the cost of a kernel before it is computed, as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from widelimit.covariance.offsets import Need
from widelimit.covariance.signal import Signal, is_branches
from widelimit.engines.choose import Choice, choose_engine
from widelimit.engines.cost import (
    Workload,
    all_entries,
    entries,
    kept_arrays,
    peak_bytes,
)
from widelimit.engines.inputs import working_dtype
from widelimit.engines.operations import operations
from widelimit.engines.plan import bare_site, check_unmixed, mixing_layer
from widelimit.kernel.get import parse_get
from widelimit.layers.base import Layer, Site, inner_layers, located
from widelimit.layers.combine import Repeat
from widelimit.layers.shapes import as_shape
from widelimit.typing import Get, Needs, Shapes, Signals

Counts: TypeAlias = PyTree[int]
"""Stored rows of offsets per spatial axis, or a tuple of these for branches."""

# Number of float64 arrays [n_train, n_test] and [n_test, n_test] that are alive while a posterior
# covariance is computed: kernels, solutions, products, and the difference.
_SOLUTIONS = 5


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer of a plan.

    Attributes:
      layer: the layer, indented by its depth.
      shape: output shape of the finite layer.
      parameters: number of parameters of the finite layer.
      offsets: stored rows of offsets per spatial axis; a tuple of these for branches.
      entries: numbers stored at the output per pair of samples (for the NNGP, and for the NTK).
      all_entries: the same for the full covariance, all pairs of positions.
      operations: floating-point operations per pair of samples, for NNGP and NTK together.
    """

    layer: str
    shape: Shapes
    parameters: int
    offsets: Counts
    entries: int
    all_entries: int
    operations: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cost of the kernel of a network; `print` it.

    Attributes:
      rows: one per layer.
      load: number of samples, arrays and bytes per number.
      memory: estimated peak memory of covariances in bytes, for all pairs at once.
      mixes_samples: path of the first layer that combines samples of a batch, so that the kernel
        cannot be computed in tiles; None if no layer does.
      engine: the engine that will run, and the reason.
    """

    rows: tuple[Row, ...]
    load: Workload
    memory: int
    mixes_samples: str | None
    engine: Choice

    @property
    def pairs(self) -> int:
        """Number of pairs of samples."""
        return self.load.pairs

    @property
    def parameters(self) -> int:
        """Number of parameters of the finite network."""
        return sum(row.parameters for row in self.rows)

    @property
    def operations(self) -> int:
        """Floating-point operations of the whole kernel."""
        return self.pairs * sum(row.operations for row in self.rows)

    @property
    def bytes(self) -> int:
        """Bytes of the covariances of the largest layer, for all pairs."""
        largest = max((row.entries for row in self.rows), default=0)
        return self._bytes(largest)

    def _bytes(self, entries: int) -> int:
        return self.pairs * self.load.arrays * self.load.itemsize * entries

    def ensemble_bytes(
        self, n_train: int, n_test: int = 0, inference: str = "gradient_descent"
    ) -> int:
        """Returns the peak bytes of an `InfiniteEnsemble`, beside its inputs and its `memory`.

        They are those of the Gram matrices, of one float64 factor ("bayes") or a float64 eigenbasis
        and a workspace of twice its size ("gradient_descent"), and, for predictions with
        covariances at n_test inputs, of the kernels with these inputs and of the solutions. Tiles
        of kernels are freed before the factorisation, and count in `memory` only.

        Args:
          n_train: number of training samples.
          n_test: number of samples that are predicted at once.
          inference: "gradient_descent" or "bayes".

        Raises:
          ValueError: an unknown `inference`.
        """
        if inference not in ("gradient_descent", "bayes"):
            raise ValueError(f"expected inference 'gradient_descent' or 'bayes', got {inference!r}")
        bayes = inference == "bayes"
        outputs = math.isqrt(self.rows[-1].all_entries)
        train, test = n_train * outputs, n_test * outputs
        kernels = (1 if bayes else 2) * self.load.itemsize * train * (train + test)
        factors = 8 * (1 if bayes else 3) * train**2
        return kernels + factors + _SOLUTIONS * 8 * test * (train + test)

    def check_tiles(self) -> None:
        """Raises if the kernel of this network cannot be computed in tiles of samples.

        Raises:
          ValueError: a layer combines samples of a batch; the message names it.
        """
        check_unmixed(self.mixes_samples)

    def __str__(self) -> str:
        header = (
            "layer",
            "output shape",
            "parameters",
            "offsets",
            "entries/pair",
            "of all",
            "bytes",
            "operations",
        )
        body = [
            (
                row.layer,
                str(row.shape),
                f"{row.parameters:,}",
                _rows_of(row.offsets),
                f"{row.entries:,}",
                _share(row),
                _quantity(self._bytes(row.entries), "B"),
                _quantity(self.pairs * row.operations),
            )
            for row in self.rows
        ]
        total = ("total", "", f"{self.parameters:,}", "", "", "", "", _quantity(self.operations))
        table = [header, *body, total]
        widths = [max(len(line[i]) for line in table) for i in range(len(header))]
        lines = [_line(line, widths) for line in table]
        lines.insert(1, "-" * len(lines[0]))
        lines.insert(-1, lines[1])
        mixing = (
            []
            if self.mixes_samples is None
            else [f"samples are combined by {self.mixes_samples}: no tiles"]
        )
        # The fused engine stores almost no covariances.
        where = " on the reference engine" if self.engine.name == "fused" else ""
        return "\n".join(
            [
                *lines,
                f"pairs of samples: {self.pairs:,}; covariances of the largest layer: "
                f"{_quantity(self.bytes, 'B')}; peak{where}: about {_quantity(self.memory, 'B')}",
                *mixing,
                self._ensemble_line(),
                f"engine: {self.engine.name} ({self.engine.reason})",
            ]
        )

    def _ensemble_line(self) -> str:
        """Returns a line of text on the memory of ensembles trained on these samples."""
        n = self.load.samples
        bayes, trained = (
            _quantity(self.ensemble_bytes(n, 0, kind), "B")
            for kind in ("bayes", "gradient_descent")
        )
        return (
            f"ensemble of {n:,} training samples, beside the memory for tiles: {bayes} (bayes), "
            f"{trained} (gradient descent)"
        )

    __repr__ = __str__


def plan(net: Layer, shape: Shapes, get: Get = ("nngp", "ntk")) -> Plan:
    """Returns the cost of the kernel of `net` between n samples and themselves.

    No kernel is computed, but every check of the network runs.

    Args:
      net: the network.
      shape: shape of the input, batch size included (-1 counts as 1); a list or tuple of shapes
        for networks with parallel inputs.
      get: the argument `get` of `kernel_fn`.

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
        inner, site = bare_site(net, (shape, shape))
    first = site.signal_in
    while not isinstance(first, Signal):
        first = first[0]
    load = Workload(first.n1, kept_arrays(parse_get(get), first), dtype.itemsize)
    rows = (_input_row(site), *_walk(inner, site, 0))
    memory = peak_bytes(inner, site, load)
    return Plan(rows, load, memory, mixing_layer(site), choose_engine(net, shape))


def _positive(shape: Shapes) -> Shapes:
    if is_branches(shape[0]):
        return tuple(_positive(s) for s in shape)
    return tuple(1 if size == -1 else size for size in shape)


def _input_row(site: Site) -> Row:
    numbers = entries(site.need_in, site.signal_in)
    channels = _total(lambda s: s.channels, site.signal_in)
    return Row(
        "input",
        _shape(site.signal_in),
        0,
        _offsets(site.need_in),
        numbers,
        all_entries(site.signal_in),
        2 * channels * numbers,
    )


def _walk(layer: Layer, site: Site, depth: int) -> Iterator[Row]:
    """Yields a row per layer that computes something, after the rows of the layers inside it."""
    if isinstance(layer, Repeat) and layer.n > 0:
        yield from _repeated(layer, site, depth)
        return
    layers = inner_layers(layer)
    for child, inside in zip(site.inside, site.children, strict=True):
        deeper = depth + (child.branch is not None or not layer.structural)
        yield from _walk(layers[child.place], inside, deeper)
    if layer.structural and site.inside:
        return
    yield Row(
        layer="  " * depth + repr(layer),
        shape=_shape(site.signal_out),
        parameters=0 if site.inside else _count_parameters(layer, _shape(site.signal_in)),
        offsets=_offsets(site.need_out),
        entries=_stored(layer, site),
        all_entries=all_entries(site.signal_in if layer.structural else site.signal_out),
        operations=operations(layer, site),
    )


def _repeated(layer: Repeat, site: Site, depth: int) -> Iterator[Row]:
    for row in _walk(layer.layer, site.children[1], depth + 1):
        yield dataclasses.replace(
            row,
            layer=f"{row.layer} x {layer.n}",
            parameters=layer.n * row.parameters,
            operations=layer.n * row.operations,
        )


def _stored(layer: Layer, site: Site) -> int:
    if layer.structural:  # branches share their input
        return entries(site.need_in, site.signal_in)
    return entries(site.need_out, site.signal_out)


def _count_parameters(layer: Layer, shape: Shapes) -> int:
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    params = jax.eval_shape(lambda k: layer.init(k, shape), key)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _offsets(need: Needs) -> Counts:
    """Returns the stored rows per spatial axis, or a tuple of these for branches."""
    return need.cross.counts if isinstance(need, Need) else tuple(map(_offsets, need))


def _rows_of(counts: Counts) -> str:
    """Returns rows of offsets as text: 7x7."""
    if counts and not isinstance(counts[0], int):
        return ", ".join(map(_rows_of, counts))
    return "x".join(map(str, counts)) or "1"


def _share(row: Row) -> str:
    """Returns the fraction of all pairs of positions that is stored, as text."""
    ratio = row.all_entries / row.entries if row.entries else 1
    return "all" if ratio <= 1 else f"1/{ratio:,.1f}".removesuffix(".0")


def _shape(signal: Signals) -> Shapes:
    return signal.shape1 if isinstance(signal, Signal) else tuple(_shape(s) for s in signal)


def _total(function: Callable[[Signal], int], signal: Signals) -> int:
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
