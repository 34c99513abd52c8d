"""Transposed convolutions: ConvTranspose."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from widelimit._pytree import pytree
from widelimit.covariance.stencil import Stencil, out_size, same_padding, transposed_stencil
from widelimit.layers.convolution import ConvolutionLayer
from widelimit.layers.windows import wrap
from widelimit.typing import Moduli, Signals


@pytree
class ConvTranspose(ConvolutionLayer):
    """Returns a transposed convolution: inputs are spread out by the strides, then convolved.

    The kernels are those of `Conv`, with A the mean over the filter of the inputs of each output.
    'SAME' and 'VALID' are those of `jax.lax.conv_transpose`; 'CIRCULAR' is the adjoint of the
    circular convolution, with outputs of strides times the size of the input.

    Args:
      out_chan: number of output channels.
      filter_shape: sizes of the filter.
      strides: distances between inputs; None means ones.
      padding: 'SAME', 'VALID', 'CIRCULAR', or a pair per filter axis, of the input spread out.
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

    def _pads(self, spatial: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Returns the padding of the input spread out, per axis."""
        windows = self.windows
        parts = zip(windows.shape, windows.strides, windows.dilation, strict=True)
        if isinstance(windows.padding, tuple):
            return windows.padding
        return tuple(
            _transposed_padding((k - 1) * d + 1, s, windows.padding == "SAME") for k, s, d in parts
        )

    def _spatial_out(self, spatial: tuple[int, ...]) -> tuple[int, ...]:
        windows = self.windows
        if len(spatial) != len(windows.shape) or any(size < 1 for size in spatial):
            return windows.output(spatial)  # raises
        if windows.circular:
            return tuple(n * s for n, s in zip(spatial, windows.strides, strict=True))
        parts = zip(
            spatial, windows.shape, windows.strides, windows.dilation, self._pads(spatial),
            strict=True,
        )  # fmt: skip
        sizes = tuple(out_size((n - 1) * s + 1, k, 1, d, pad) for n, k, s, d, pad in parts)
        if any(size < 1 for size in sizes):
            raise ValueError(
                f"expected a window that fits the image, got a window of shape {windows.shape} and "
                f"an image of sizes {spatial} with padding {windows.padding!r}"
            )
        return sizes

    def _stencils(self, spatial: tuple[int, ...]) -> tuple[Stencil, ...]:
        windows, out = self.windows, self._spatial_out(spatial)
        parts = zip(spatial, out, windows.shape, windows.strides, windows.dilation, strict=True)
        if windows.circular:
            return tuple(
                transposed_stencil(n, m, k, s, d, same_padding(m, k, s, d)[0], circular=True)
                for n, m, k, s, d in parts
            )
        pads = self._pads(spatial)
        return tuple(
            transposed_stencil(*part, pad[0]) for part, pad in zip(parts, pads, strict=True)
        )

    def _convolve(self, x: Array, weights: Array) -> Array:
        if self.windows.circular:
            return self._adjoint(x, weights)
        spatial = tuple(x.shape[axis] for axis in self.axes.spatial)
        ones = (1,) * len(spatial)
        return jax.lax.conv_general_dilated(
            x,
            weights,
            ones,
            self.axes.to_filter(self._pads(spatial)),
            lhs_dilation=self.axes.to_filter(self.windows.strides),
            **self._settings(),
        )

    def _adjoint(self, x: Array, weights: Array) -> Array:
        """Returns the adjoint of the circular convolution with the same filter."""
        axes, windows = self.axes, self.windows
        sizes = dict(zip(axes.out, self.output_shape(x.shape), strict=True))
        sizes["C"] = weights.shape[axes.rhs.index("O")]
        shape = tuple(sizes[c] for c in axes.out)
        swapped = axes.rhs.translate(str.maketrans("IO", "OI"))
        spatial = tuple(axes.out.index(c) for c in axes.space("lhs"))
        pads = windows.pads(tuple(shape[axis] for axis in spatial))

        def forward(y: Array) -> Array:
            return jax.lax.conv_general_dilated(
                wrap(y, pads, spatial),
                weights,
                axes.to_filter(windows.strides),
                ((0, 0),) * len(pads),
                rhs_dilation=axes.to_filter(windows.dilation),
                dimension_numbers=(axes.out, swapped, axes.lhs),
            )

        return jax.linear_transpose(forward, jax.ShapeDtypeStruct(shape, x.dtype))(x)[0]

    def _mask_space(self, mask: Array) -> Array:
        """Returns the mask of the outputs: masked if any input that they read is."""
        axes = self.axes.spatial
        for axis, stencil in zip(
            axes, self._stencils(tuple(mask.shape[a] for a in axes)), strict=True
        ):
            read = jnp.take(mask, jnp.maximum(stencil.table, 0), axis=axis)
            shape = [1] * read.ndim
            shape[axis : axis + 2] = stencil.table.shape
            mask = (read & (stencil.table >= 0).reshape(shape)).any(axis)
        return mask

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        rows = tuple(m * s for m, s in zip(moduli, self.windows.strides, strict=True))
        return tuple(rows[i] for i in self.axes.order)


def _transposed_padding(window: int, stride: int, same: bool) -> tuple[int, int]:
    """Returns the padding that `jax.lax.conv_transpose` documents for 'SAME' and 'VALID'."""
    if not same:
        return window - 1, stride - 1 + max(window - stride, 0)
    total = window + stride - 2
    before = window - 1 if stride > window - 1 else -(-total // 2)
    return before, total - before
