"""A network as a list of instructions on slots: what both kinds of programs share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from widelimit.engines.fused import instructions as m
from widelimit.engines.fused.activations.base import FusedActivation, RefusedError, activation_of
from widelimit.layers.affine import Dense
from widelimit.layers.base import Layer, Site
from widelimit.layers.branching import FanInConcat, FanInProd, FanInSum, FanOut
from widelimit.layers.combine import Parallel, Repeat, Serial
from widelimit.layers.dropout import Dropout
from widelimit.layers.reshape import Identity

Path = tuple[int, ...]
INPUT = 0  # stands for the input among origins
Source = Callable[[Layer], Any]


class NoKernelError(RefusedError):
    """A network that the reference engine refuses too, with the path of the layer."""


class Placed(NamedTuple):
    """An activation, and where its layer stands in the network."""

    activation: type[FusedActivation]
    path: Path


Activations = tuple[Placed | None, ...]


def at_path(net: Layer, path: Path) -> Layer:
    """Returns the layer at a path."""
    for step in path:
        net = net.layer if isinstance(net, Repeat) else net.layers[step]  # type: ignore[attr-defined]
    return net


@dataclasses.dataclass(frozen=True)
class Value:
    """Covariances in a slot.

    Attributes:
      slot: where they are.
      level: the grid of their positions.
      has_t: whether there is a tangent kernel, or none yet.
      gaussian: whether channels are Gaussian given the inputs.
      origins: numbers of the layers with weights that they stem from, without any in between.
    """

    slot: int
    level: int
    has_t: bool
    gaussian: bool
    origins: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Reach:
    """A window of a convolution, for rows and columns; that of Dense is a point."""

    taps: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    strides: tuple[int, int] = (1, 1)
    steps: tuple[int, int] = (1, 1)
    around: bool = False  # space closes on itself


class Tape:
    """Collects instructions.

    Args:
      tangent: whether the NTK is wanted.
    """

    def __init__(self, tangent: bool) -> None:
        self.tangent = tangent
        self.room = 0
        self.weighted = 0
        self.clear()

    def clear(self) -> None:
        """Forgets instructions and slots."""
        self.code: list[np.ndarray] = []
        self.sources: list[Source | None] = []
        self.activations: list[Placed | None] = []
        self.uses: dict[int, int] = {}

    def lower(self, layer: Layer, path: Path, site: Site, value: Any) -> Any:
        """Returns the value (or branches of values) after a layer.

        Raises:
          RefusedError: the layer is not known, or does not fit its input.
        """
        activation = activation_of(layer)
        if activation is not None:
            return self._activate(activation, layer, path, site, value)
        match layer:
            case Serial(layers=layers):
                for i, (inner, child) in enumerate(zip(layers, site.children, strict=True)):
                    value = self.lower(inner, (*path, i), child, value)
                return value
            case Parallel(layers=layers):
                parts = zip(layers, site.children, value, strict=True)
                return tuple(
                    self.lower(inner, (*path, i), child, v)
                    for i, (inner, child, v) in enumerate(parts)
                )
            case Repeat(layer=body, n=n):
                for i in range(n):
                    value = self.lower(body, (*path, 0), site.children[min(i, 1)], value)
                return value
            case Identity() | Dropout(mode="test"):
                return value
            case FanOut(num=num):
                self.uses[value.slot] += num - 1
                return (value,) * num
            case FanInSum():
                return self._sum(value)
            case FanInProd():
                return self._product(value)
            case FanInConcat():
                return self._concatenation(layer, site, value)
            case Dense():
                return self.window(layer, path, site, value, Reach())
        return self.other(layer, path, site, value)

    def other(self, layer: Layer, path: Path, site: Site, value: Any) -> Value:
        """Returns the value after a layer that not all programs know."""
        raise RefusedError(f"{layer.label} is not among its layers")

    def target(self, site: Site, value: Value, window: Reach) -> int:
        """Returns the grid of the output of a window."""
        return value.level

    def place_records(self, planes: Sequence[int]) -> None:
        """Gives every nonlinearity a place for what it records of a sample.

        Args:
          planes: by grid, how many numbers are recorded at a time.
        """
        for op in self.code:
            if op[m.CODE] == m.NONLINEAR:
                op[m.PLACE] = self.room
                self.room += int(op[m.PLANES]) * planes[op[m.LEVEL]]

    def window(self, layer: Any, path: Path, site: Site, value: Value, window: Reach) -> Value:
        """Returns the value after a layer with weights."""
        level = self.target(site, value, window)
        has_t = value.has_t or (self.tangent and layer.trainable)
        self.weighted += 1  # layers may come again, with other weights
        out = Value(self.slot(), level, has_t, True, frozenset({self.weighted}))
        channels, tangent = site.signal_in.channels, self.tangent
        self.emit(
            m.WINDOW,
            out,
            value,
            source=lambda net: _affine_numbers(at_path(net, path), channels, window, tangent),
            columns=_columns(window, flat=level == value.level),
        )
        self._release(value)
        return out

    def _activate(
        self,
        activation: type[FusedActivation],
        layer: Layer,
        path: Path,
        site: Site,
        value: Value,
    ) -> Value:
        if activation.needs_gaussian and not value.gaussian:
            raise NoKernelError(f"{layer.label} stands on a non-Gaussian input")
        average = activation.averages(layer, site.signal_in)
        value = self._owned(value)
        out = dataclasses.replace(value, gaussian=activation.keeps_gaussian and value.gaussian)
        columns = {m.PLANES: activation.planes_of(layer), m.AVERAGE: int(average)}
        self.emit(
            m.NONLINEAR, out, out, lambda net: activation.numbers(at_path(net, path)), columns
        )
        self.activations[-1] = Placed(activation, path)
        return out

    def _sum(self, values: tuple[Value, ...]) -> Value:
        if len(values) > 1 and not all(value.gaussian for value in values):
            raise NoKernelError("a branch of a sum is not Gaussian")
        self._check_independent(values)
        return self._joined(m.ADD, values)

    def _product(self, values: tuple[Value, ...]) -> Value:
        self._check_independent(values)
        joined = self._joined(m.MULTIPLY, values)
        return dataclasses.replace(joined, gaussian=joined.gaussian and len(values) == 1)

    def _concatenation(self, layer: FanInConcat, site: Site, values: tuple[Value, ...]) -> Value:
        """Returns the mean of branches, weighted by their channels."""
        if len(values) == 1:
            return values[0]
        signal = site.signal_out
        if layer.axis % signal.ndim != signal.channel_axis:
            raise RefusedError("branches are concatenated along batch or space")
        parts = zip(values, site.signal_in, strict=True)
        scaled = tuple(self._scaled(value, s.channels / signal.channels) for value, s in parts)
        return dataclasses.replace(self._joined(m.ADD, scaled), gaussian=False)

    def _scaled(self, value: Value, factor: float) -> Value:
        """Returns covariances times a number."""
        value = self._owned(value)
        columns = _columns(Reach(), flat=True)
        self.emit(m.WINDOW, value, source=lambda _: (factor, 0.0, 0.0, 0.0), columns=columns)
        return value

    def _check_independent(self, values: tuple[Value, ...]) -> None:
        """Raises if branches depend on the same weights, or on the input without any."""
        origins = [origin for value in values for origin in value.origins]
        if len(set(origins)) < len(origins):
            raise NoKernelError("branches of a sum or a product are correlated")

    def _joined(self, code: int, values: tuple[Value, ...]) -> Value:
        """Returns the sum or the product of branches."""
        if len({value.level for value in values}) > 1:
            raise RefusedError("branches that are joined have other strides")
        first = self._owned(values[0])
        for value in values[1:]:
            self.emit(code, first, value)
            self._release(value)
        has_t = any(value.has_t for value in values)
        origins = frozenset().union(*(value.origins for value in values))
        return dataclasses.replace(first, has_t=has_t, origins=origins)

    def _owned(self, value: Value) -> Value:
        """Returns the value in a slot that nothing else reads."""
        if self.uses[value.slot] == 1:
            return value
        copy = dataclasses.replace(value, slot=self.slot())
        self.emit(m.COPY, copy, value)
        self._release(value)
        return copy

    def slot(self) -> int:
        """Returns a free slot, used once from now on."""
        free = [i for i, uses in self.uses.items() if uses == 0]
        slot = free[0] if free else len(self.uses)
        self.uses[slot] = 1
        return slot

    def _release(self, value: Value) -> None:
        self.uses[value.slot] -= 1

    def emit(
        self,
        code: int,
        target: Value,
        value: Value | None = None,
        source: Source | None = None,
        columns: dict[int, int] | None = None,
    ) -> None:
        """Adds an instruction that reads `value` (or its target alone) and numbers of `source`."""
        op = np.zeros(m.COLUMNS, np.int64)
        value = target if value is None else value
        op[m.CODE], op[m.SOURCE], op[m.TARGET] = code, value.slot, target.slot
        op[m.LEVEL], op[m.LEVEL_OUT], op[m.HAS_T] = value.level, target.level, value.has_t
        for column, number in (columns or {}).items():
            op[column] = number
        self.code.append(op)
        self.sources.append(source)
        self.activations.append(None)


def _columns(window: Reach, *, flat: bool) -> dict[int, int]:
    """Returns the columns of a window; `flat` if its outputs lie on the grid of its inputs."""
    return {
        m.TAPS_Y: window.taps[0],
        m.TAPS_X: window.taps[1],
        m.PAD_Y: window.pads[0],
        m.PAD_X: window.pads[1],
        m.STRIDE_Y: window.strides[0],
        m.STRIDE_X: window.strides[1],
        m.STEP_Y: window.steps[0],
        m.STEP_X: window.steps[1],
        m.FLAT: int(flat),
        m.AROUND: int(window.around),
    }


def _affine_numbers(layer: Any, channels: int, window: Reach, tangent: bool) -> Any:
    """Returns w, b, u, v, with the mean over the window put into w and u."""
    taps = math.prod(window.taps)
    w, b, u, v = (0.0 if x is None else x for x in layer.numbers(channels * taps))
    if not tangent:
        u = v = 0.0
    return w / taps, b, u / taps, v


def has_smooth(activations: Activations) -> bool:
    """Returns whether an activation needs float64: see `FusedActivation`."""
    return any(placed is not None and placed.activation.smooth for placed in activations)


def has_counted(activations: Activations) -> bool:
    """Returns whether an activation records numbers that are counted: see `FusedSeries`."""
    return any(placed is not None and placed.activation.counts for placed in activations)


def with_addresses(
    code: np.ndarray,
    activations: Activations,
    net: Layer,
    dtype: np.dtype,
    *,
    space: bool,
    single: bool,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns instructions with the addresses of loops and tables, and the tables, to be held.

    Args:
      code: instructions [ops, COLUMNS].
      activations: of them.
      net: the network.
      dtype: what is computed in.
      space: whether the loops are those of networks with spatial axes.
      single: whether results are rounded to float32.

    Raises:
      RefusedError: an activation has no table.
    """
    from widelimit.engines.fused.loops import address, is_compiled_in

    code, held = code.copy(), []
    for op, placed in zip(code, activations, strict=True):
        if placed is None:
            continue
        activation = placed.activation
        op[m.RECORD] = address(activation, dtype, "record")
        op[m.OWN] = address(activation, dtype, "own")
        if not (space and is_compiled_in(activation)):
            op[m.LOOP] = address(activation, dtype, "pairs" if space else "rows")
        table = activation.table(at_path(net, placed.path), single)
        if table is not None:
            held.append(table.astype(dtype, copy=False))
            op[m.TABLE], op[m.COUNTED] = held[-1].ctypes.data, activation.counted(table)
    return code, held


def numbers_of(sources: tuple[Source | None, ...], net: Layer, dtype: np.dtype) -> np.ndarray:
    """Returns the hyper-parameters of instructions [ops, NUMBERS]."""
    out = np.zeros((len(sources), m.NUMBERS), dtype)
    for row, source in zip(out, sources, strict=True):
        if source is not None:
            values = source(net)
            row[: len(values)] = [float(value) for value in values]
    return out


def affine_rows(
    sources: tuple[Source | None, ...], activations: Activations, net: Layer, dtype: np.dtype
) -> jax.Array:
    """Returns the same with zeros for nonlinearities, of a network that may be traced."""
    rows = []
    for source, placed in zip(sources, activations, strict=True):
        values = () if source is None or placed is not None else source(net)
        filled = [*values, *[0.0] * (m.NUMBERS - len(values))]
        rows.append(jnp.stack([jnp.asarray(value, dtype) for value in filled]))
    return jnp.stack(rows)
