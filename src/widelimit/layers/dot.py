"""Products with a constant array: DotGeneral."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from widelimit._pytree import pytree, static
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.linear_maps import Contraction, contract
from widelimit.covariance.offsets import Offsets
from widelimit.covariance.signal import Signal
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.shapes import check_one_input
from widelimit.typing import (
    Arrays,
    Masks,
    Moduli,
    Needs,
    Params,
    Shapes,
    Signals,
    Sizes,
)

Constant: TypeAlias = float | Array | np.ndarray
AxisPairs: TypeAlias = tuple[tuple[int, ...], ...]

_FREE = 1000  # first label of the axes of the constant that are not paired with the input's


@pytree
class DotGeneral(Layer):
    """Returns a layer that multiplies its input with a constant, as `jax.lax.dot_general`.

    z = C x, so K' = C K C^T and T' = C T C^T on both copies. Axes of the output are those of
    dot_general: the batch dimensions, then the free axes of the left, then of the right factor.
    Free axes of the constant become spatial axes. If the samples are summed over, the first free
    axis becomes the batch axis.

    Batch and channel axis follow from the layers before it; `batch_axis` and `channel_axis` are
    those of the input if the layer is the first of a network.

    Args:
      lhs: constant array or number, the left factor.
      rhs: constant array or number, the right factor. With neither, the layer is the identity.
      dimension_numbers: ((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)).
      precision: precision of the products, as in `jax.lax.dot_general`.
      batch_axis: axis of the samples.
      channel_axis: axis of the channels.

    Raises:
      ValueError: both constants, or dimension numbers that do not fit; at kernel time, dimension
        numbers that name the channel axis, or that leave no axis for the samples.
      TypeError: a constant that is not made of real numbers.
    """

    _: dataclasses.KW_ONLY
    lhs: ArrayLike | None = None
    rhs: ArrayLike | None = None
    dimension_numbers: Sequence[Sequence[Sizes]] = static(
        default=(((), ()), ((), ())), kw_only=True
    )
    precision: jax.lax.PrecisionLike = static(default=None, kw_only=True)
    batch_axis: int = static(default=0, kw_only=True)
    channel_axis: int = static(default=-1, kw_only=True)

    def __post_init__(self) -> None:
        if self.lhs is not None and self.rhs is not None:
            raise ValueError("expected lhs or rhs, got both: the other factor is the input")
        object.__setattr__(self, "lhs", _as_constant(self.lhs))
        object.__setattr__(self, "rhs", _as_constant(self.rhs))
        object.__setattr__(self, "dimension_numbers", _as_numbers(self.dimension_numbers))

    def _repr_fields(self) -> Iterator[str]:
        for name in ("lhs", "rhs"):
            value = getattr(self, name)
            if value is not None:
                shown = value if isinstance(value, float) else f"{value.dtype}{list(value.shape)}"
                yield f"{name}={shown}"
        if self._constant is not None:
            yield f"dimension_numbers={self.dimension_numbers}"

    @property
    def _constant(self) -> ArrayLike | None:
        return self.lhs if self.rhs is None else self.rhs

    @property
    def _is_lhs(self) -> bool:
        """Whether the input is the left factor."""
        return self.rhs is not None

    def input_axes(self) -> tuple[int, int]:
        return self.batch_axis, self.channel_axis

    def _check_axes(self, signal: Signal) -> None:
        """Accepts any axes: the dimension numbers define what happens to them."""

    def _labels(self, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns labels of the axes of the constant and of the output.

        An axis of the input is its own label.
        """
        assert self._constant is not None
        rank = jnp.ndim(self._constant)
        met = []  # pairs of an axis of the input and one of the constant
        for lhs, rhs in self.dimension_numbers:
            mine, its = (lhs, rhs) if self._is_lhs else (rhs, lhs)
            met.append(list(zip(_axes(mine, ndim), _axes(its, rank), strict=True)))
        contracted, batched = met
        for axes in zip(*contracted, *batched, strict=True):
            if len(set(axes)) < len(axes):
                raise ValueError(
                    "expected dimension_numbers that name each axis at most once, got "
                    f"{self.dimension_numbers}"
                )
        labels = [_FREE + axis for axis in range(rank)]
        for axis, here in contracted + batched:
            labels[here] = axis
        free = [axis for axis in range(ndim) if axis not in labels]
        new = [label for label in labels if label >= _FREE]
        first = [axis for axis, _ in batched]
        return tuple(labels), (*first, *free, *new) if self._is_lhs else (*first, *new, *free)

    def output_shape(self, shape: Shapes) -> Shapes:
        check_one_input(shape)
        if self._constant is None:
            return shape
        constant, out = self._labels(len(shape))
        sizes = dict(enumerate(shape))
        for label, size in zip(constant, np.shape(self._constant), strict=True):
            present = sizes.setdefault(label, size)
            if present not in (-1, size):
                raise ValueError(
                    f"expected {size} entries along axis {label} of the input, as the constant "
                    f"has, got {present} in shape {shape}"
                )
        return tuple(sizes[label] for label in out)

    def output_axes(self, signal: Signal) -> tuple[int, int]:
        if self._constant is None:
            return signal.batch_axis, signal.channel_axis
        constant, out = self._labels(signal.ndim)
        if signal.channel_axis in constant:
            raise ValueError(
                f"expected dimension_numbers without the channel axis {signal.channel_axis} in a "
                f"kernel, got {self.dimension_numbers}: put a Dense layer there"
            )
        samples = [signal.batch_axis] if signal.batch_axis in out else []
        samples += [label for label in constant if label >= _FREE]
        if not samples:
            raise ValueError(
                "expected a constant with a free axis where it sums over the samples, got "
                f"dimension_numbers={self.dimension_numbers}: no axis is left for the samples"
            )
        return out.index(samples[0]), out.index(signal.channel_axis)

    def _plan(self, signal: Signal) -> Contraction:
        constant, out = self._labels(signal.ndim)
        samples, channels = self.output_axes(signal)
        return Contraction(
            constant=constant,
            samples=signal.batch_axis,
            space=signal.spatial_axes,
            samples_out=out[samples],
            space_out=tuple(out[i] for i in range(len(out)) if i not in (samples, channels)),
        )

    def _dot(self, constant: Array, x: Array) -> Array:
        lhs, rhs = (x, constant) if self._is_lhs else (constant, x)
        (c1, c2), (b1, b2) = self.dimension_numbers
        contracted = _axes(c1, lhs.ndim), _axes(c2, rhs.ndim)
        batched = _axes(b1, lhs.ndim), _axes(b2, rhs.ndim)
        return jax.lax.dot_general(lhs, rhs, (contracted, batched), self.precision)

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        if self._constant is None:
            return x
        self.output_shape(x.shape)
        dtype = jnp.result_type(x, jnp.float32) if x.dtype.kind in "iub" else x.dtype
        return self._dot(jnp.asarray(self._constant, dtype), x.astype(dtype))

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        if mask is None or self._constant is None:
            return mask
        met = self._labels(len(shape))[0]
        pairs = enumerate(zip(shape, mask.shape, strict=True))
        full = [size if axis in met else m for axis, (size, m) in pairs]
        visible = (~jnp.broadcast_to(mask, full)).astype(jnp.float32)
        return self._dot((jnp.asarray(self._constant) != 0).astype(jnp.float32), visible) == 0

    def needs(self, need: Needs, signal: Signals) -> Needs:
        if self._constant is None:
            return need
        plan, full = self._plan(signal), Offsets.full(signal.spatial)

        def grow(offsets: Offsets) -> Offsets:
            if not offsets.wanted:
                return Offsets.none(len(signal.spatial))
            axes_of = dict(zip(plan.space_out, offsets.axes, strict=True))
            pairs = zip(plan.space, full.axes, strict=True)
            return Offsets(tuple(axes_of.get(label, axis) for label, axis in pairs))

        return need.map(grow)

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        if self._constant is None:
            return moduli
        plan = self._plan(signal)
        axes_of = dict(zip(plan.space, moduli, strict=True))
        return tuple(axes_of.get(label) for label in plan.space_out)

    def pairs_samples(self, signal: Signals) -> bool:
        return self._constant is not None and self._plan(signal).mixes_samples

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        if self._constant is None:
            return cov
        constant = jnp.asarray(self._constant, cov.nngp.dtype)
        plan = self._plan(site.signal_in)
        return contract(cov, constant, plan, site.signal_out, site.need_out)


def _as_constant(value: ArrayLike | None) -> Constant | None:
    """Returns a number as a float, or an array as a copy that later writes do not change."""
    if value is None or isinstance(value, float | jax.Array):
        return value
    if isinstance(value, numbers.Real):
        return float(value)
    array = np.array(value)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise TypeError(f"expected a constant of real numbers, got dtype {array.dtype}")
    return array if array.ndim else float(array)


def _as_numbers(numbers_: Sequence[Sequence[Sizes]]) -> tuple[AxisPairs, ...]:
    """Returns dimension numbers as tuples of ints.

    Raises:
      ValueError: the structure is wrong, or an axis has no partner.
    """
    try:
        pairs = tuple(tuple(tuple(map(int, axes)) for axes in pair) for pair in numbers_)
        fits = len(pairs) == 2 and all(len(lhs) == len(rhs) for lhs, rhs in pairs)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            "expected dimension_numbers ((lhs_contracting, rhs_contracting), (lhs_batch, "
            f"rhs_batch)) with a partner for every axis, got {numbers_!r}"
        )
    return pairs


def _axes(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Returns axes of a factor as non-negative numbers."""
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError(f"expected axes of a factor with {rank} axes, got {axes}")
    return tuple(axis % rank for axis in axes)
