"""Convolutions: their base class, Conv and ConvLocal."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array

from widelimit._pytree import pytree, static
from widelimit.covariance.covariances import Covariances, embed, transpose_space
from widelimit.covariance.offsets import Need
from widelimit.covariance.signal import Signal
from widelimit.covariance.stencil import Stencil, needed_offsets
from widelimit.covariance.verbs import affine, stencils
from widelimit.layers.affine import AffineLayer, checked_width
from widelimit.layers.base import Site
from widelimit.layers.context import Context
from widelimit.layers.dimension_numbers import DimensionNumbers
from widelimit.layers.shapes import check_one_input
from widelimit.layers.windows import PaddingLike, Windows, as_padding, as_sizes, wrap
from widelimit.typing import (
    Arrays,
    Key,
    Masks,
    Moduli,
    Needs,
    Params,
    Scalar,
    Shapes,
    Signals,
    Size,
    Sizes,
)


class _Settings(TypedDict):
    """Arguments that all convolutions of `jax.lax` take."""

    rhs_dilation: tuple[int, ...]
    dimension_numbers: tuple[str, str, str]


@pytree
class ConvolutionLayer(AffineLayer):
    """Base class of convolutions."""

    out_chan: Size = static()
    filter_shape: Sizes = static()
    strides: Sizes | None = static(default=None)
    padding: PaddingLike = static(default="VALID")
    W_std: Scalar = 1.0
    b_std: Scalar | None = None
    dimension_numbers: Sequence[str] | None = static(default=None)
    parameterization: str = static(default="ntk")
    s: Sequence[Scalar] = static(default=(1, 1))
    rhs_dilation: Sizes | None = static(default=None, kw_only=True)
    trainable: bool = static(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        put = functools.partial(object.__setattr__, self)
        put("out_chan", checked_width("out_chan", self.out_chan))
        put("filter_shape", as_sizes("filter_shape", self.filter_shape))
        ndim = len(self.filter_shape)
        if self.strides is not None:
            put("strides", as_sizes("strides", self.strides, ndim))
        if self.rhs_dilation is not None:
            put("rhs_dilation", as_sizes("rhs_dilation", self.rhs_dilation, ndim))
        put("padding", as_padding(self.padding, ndim, "filter"))
        numbers = self.dimension_numbers
        put("dimension_numbers", tuple(numbers) if isinstance(numbers, list) else numbers)
        self._check_parameters()
        DimensionNumbers.parse(self.dimension_numbers, ndim)

    @property
    def axes(self) -> DimensionNumbers:
        return DimensionNumbers.parse(self.dimension_numbers, len(self.filter_shape))

    @property
    def windows(self) -> Windows:
        """The window, per spatial axis of the input."""
        axes, ndim = self.axes, len(self.filter_shape)
        padding = as_padding(self.padding, ndim, "filter")
        return Windows(
            axes.from_filter(self.filter_shape),
            axes.from_filter(as_sizes("strides", self.strides, ndim)),
            axes.from_filter(as_sizes("rhs_dilation", self.rhs_dilation, ndim)),
            axes.from_filter(padding) if isinstance(padding, tuple) else padding,
        )

    def input_axes(self) -> tuple[int, int]:
        return self.axes.lhs.index("N"), self.axes.lhs.index("C")

    def output_axes(self, signal: Signal) -> tuple[int, int]:
        return self.axes.out.index("N"), self.axes.out.index("C")

    def _spatial_out(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the sizes of the output, in the order of the input's axes."""
        return self.windows.output(spatial)

    def _stencils(self, spatial: tuple[int, ...]) -> tuple[Stencil, ...]:
        return self.windows.stencils(spatial, tied=True)

    def output_shape(self, shape: Shapes) -> Shapes:
        check_one_input(shape)
        axes = self.axes
        if len(shape) != len(axes.lhs):
            raise ValueError(
                f"expected an input with axes {axes.lhs} for a filter of shape "
                f"{self.filter_shape}, got shape {shape}"
            )
        sizes = dict(zip(axes.lhs, shape, strict=True))
        spatial = self._spatial_out(tuple(sizes[c] for c in axes.space("lhs")))
        sizes.update(zip(axes.space("lhs"), spatial, strict=True))
        sizes["C"] = self._scaled_width(self.out_chan)
        return tuple(sizes[c] for c in axes.out)

    def fan_in(self, channels: int) -> int:
        """Returns the number of inputs of an output.

        Args:
          channels: number of input channels.
        """
        return channels * math.prod(self.filter_shape)

    def _filter(self, channels: int) -> tuple[int, ...]:
        """Returns the shape of the weights."""
        sizes = dict(zip(self.axes.space("rhs"), self.filter_shape, strict=True))
        sizes |= {"I": channels, "O": self._scaled_width(self.out_chan)}
        return tuple(sizes[c] for c in self.axes.rhs)

    def _bias(self, shape: Shapes) -> tuple[int, ...]:
        """Returns the shape of the biases."""
        width = self._scaled_width(self.out_chan)
        return tuple(width if c == "C" else 1 for c in self.axes.out)

    def init(self, key: Key, shape: Shapes) -> Params:
        self.output_shape(shape)
        channels = shape[self.axes.lhs.index("C")]
        weights = self._weights_shape(channels, shape)
        return self._draw(key, weights, self._bias(shape), self.fan_in(channels))

    def _weights_shape(self, channels: int, shape: Shapes) -> tuple[int, ...]:
        return self._filter(channels)

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        weights, bias = self._parameters(params)
        self.output_shape(x.shape)
        channels = x.shape[self.axes.lhs.index("C")]
        axis, expected = self.axes.rhs.index("O"), self._weights_shape(channels, x.shape)
        if weights.ndim == len(expected):  # any number of outputs
            expected = (*expected[:axis], weights.shape[axis], *expected[axis + 1 :])
        if weights.shape != expected:
            raise ValueError(
                f"expected weights of shape {expected} for an input of shape {x.shape}, got "
                f"{weights.shape}: pass an input of the shape that init_fn got"
            )
        dtype = jnp.result_type(x, weights)  # jax.lax does not promote
        out = self._convolve(jnp.asarray(x, dtype), jnp.asarray(weights, dtype))
        return self._scale(out, bias, self.fan_in(channels))

    def _convolve(self, x: Array, weights: Array) -> Array:
        """Returns the plain convolution."""
        raise NotImplementedError

    def _settings(self) -> _Settings:
        """Returns arguments that all convolutions of `jax.lax` take."""
        axes, windows = self.axes, self.windows
        return {
            "rhs_dilation": axes.to_filter(windows.dilation),
            "dimension_numbers": (axes.lhs, axes.rhs, axes.out),
        }

    def _padded(self, x: Array) -> tuple[Array, tuple[tuple[int, int], ...]]:
        """Returns the input, wrapped if space is circular, and the padding still to be done."""
        windows, spatial = self.windows, self.axes.spatial
        pads = windows.pads(tuple(x.shape[axis] for axis in spatial))
        if not windows.circular:
            return x, self.axes.to_filter(pads)
        return wrap(x, pads, spatial), ((0, 0),) * len(pads)

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        if mask is None:
            return None
        axes = self.axes
        full = [1 if c == "C" else size for c, size in zip(axes.lhs, shape, strict=True)]
        one = jnp.broadcast_to(mask.all(axes.lhs.index("C"), keepdims=True), full)
        return self._mask_space(one).transpose([axes.lhs.index(c) for c in axes.out])

    def _mask_space(self, mask: Array) -> Array:
        return self.windows.centres(mask, self.axes.spatial)

    def needs(self, need: Needs, signal: Signals) -> Needs:
        taps = self._stencils(signal.spatial)
        back = tuple(self.axes.order.index(i) for i in range(len(taps)))
        return need.map(lambda offsets: needed_offsets(taps, offsets.permute(back)))

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        rows = self.windows.moduli(moduli)
        return tuple(rows[i] for i in self.axes.order)

    def operations(self, site: Site) -> int:
        return 6 + 4 * sum(self.filter_shape)  # one axis at a time

    def temporaries(self, site: Site) -> tuple[float, int]:
        return self.windows.temporaries(site.need_in)

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        order = self.axes.order
        back = tuple(order.index(i) for i in range(len(order)))
        taps = self._stencils(site.signal_in.spatial)
        signal, need = site.signal_out, site.need_out
        # First in the axes of the input, then in those of the output.
        inner = need.map(lambda offsets: offsets.permute(back))
        mean = stencils(cov, taps, 1 / math.prod(self.filter_shape), signal, inner)
        mean = transpose_space(mean, order, tuple(t.size_out for t in taps), need)
        out = affine(mean, self.numbers(self.fan_in(site.signal_in.channels)), signal)
        return out.replace(origins=frozenset({site.path}))


@pytree
class Conv(ConvolutionLayer):
    """Returns a convolution over any number of spatial axes.

    With A[M] the mean over the filter of M, both positions of a pair shifted by the same tap,
    K' = W_std^2 A[K] + b_std^2 and T' = K' + W_std^2 A[T] (NTK parameterisation);
    T' = (C_in F / s0) A[K] + W_std^2 A[T] + 1[b_std is not None] (standard), F the number of filter
    entries. Positions in the padding are zero and count in the mean, or wrap around ('CIRCULAR').

    Source: arXiv:1810.05148, arXiv:1904.11955.

    Args:
      out_chan: number of output channels.
      filter_shape: sizes of the filter, in the order of the spatial letters of the filter.
      strides: steps between outputs, in the same order; None means ones.
      padding: 'SAME', 'VALID', 'CIRCULAR', or a pair (before, behind) per filter axis.
      W_std: standard deviation of the weights.
      b_std: standard deviation of the biases; None means no bias.
      dimension_numbers: letters of the axes of input, filter and output, as in
        `jax.lax.conv_general_dilated`; None means channels last.
      parameterization: 'ntk' or 'standard'.
      s: scale factors (s_in, s_out) of the widths; see `Dense`.
      rhs_dilation: steps between the taps of the filter; None means ones.
      trainable: False freezes the layer: it adds nothing to the NTK.

    Raises:
      ValueError: strides, padding, dilation or axes that do not fit the filter; when a shape is
        known, a window that is larger than the padded image.
      TypeError: sizes that are not ints, or `W_std` or `b_std` is not a number.

    Example:
      >>> from widelimit import stax
      >>> net = stax.serial(
      ...     stax.Conv(64, (3, 3), padding="SAME"), stax.Relu(), stax.Flatten(), stax.Dense(10)
      ... )
      >>> net.output_shape((8, 32, 32, 3))
      (8, 10)
    """

    def _convolve(self, x: Array, weights: Array) -> Array:
        x, padding = self._padded(x)
        strides = self.axes.to_filter(self.windows.strides)
        return jax.lax.conv_general_dilated(x, weights, strides, padding, **self._settings())


@pytree
class ConvLocal(ConvolutionLayer):
    """Returns a convolution whose weights and biases differ from position to position.

    The kernels are those of `Conv` at equal positions, and zero at unequal ones.

    Args:
      out_chan: number of output channels.
      filter_shape: sizes of the filter.
      strides: steps between outputs; None means ones.
      padding: 'SAME', 'VALID', 'CIRCULAR', or a pair per filter axis.
      W_std: standard deviation of the weights.
      b_std: standard deviation of the biases; None means no bias.
      dimension_numbers: see `Conv`.
      parameterization: 'ntk' or 'standard'.
      s: scale factors (s_in, s_out) of the widths; see `Dense`.
      rhs_dilation: steps between the taps of the filter; None means ones.
      trainable: False freezes the layer: it adds nothing to the NTK.

    Raises:
      ValueError: see `Conv`.
    """

    def _bias(self, shape: Shapes) -> tuple[int, ...]:
        return tuple(
            1 if c == "N" else n
            for c, n in zip(self.axes.out, self.output_shape(shape), strict=True)
        )

    def _weights_shape(self, channels: int, shape: Shapes) -> tuple[int, ...]:
        out = dict(zip(self.axes.out, self.output_shape(shape), strict=True))
        sizes = {**out, "I": self.fan_in(channels), "O": out["C"]}
        return tuple(sizes[c] for c in self.axes.rhs)

    def _convolve(self, x: Array, weights: Array) -> Array:
        x, padding = self._padded(x)
        axes = self.axes
        return jax.lax.conv_general_dilated_local(
            x,
            weights,
            axes.to_filter(self.windows.strides),
            padding,
            self.filter_shape,
            **self._settings(),
        )

    def needs(self, need: Needs, signal: Signals) -> Needs:
        return super().needs(_equal_positions(need), signal)

    def propagate(self, cov: Covariances, site: Site) -> Covariances:
        equal = dataclasses.replace(site, need_out=_equal_positions(site.need_out))
        return embed(super().propagate(cov, equal), site.need_out)


def _equal_positions(need: Need) -> Need:
    return Need.zero(len(need.cross.axes), own=need.own.wanted)
