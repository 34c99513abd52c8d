"""Patches: the inputs of the windows of convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax


def padded_image(x: Any, params: Mapping[str, Any]) -> Any:
    """Returns padded and dilated images [sample, *space, channel] for the windows of a convolution.

    Args:
      x: images, in the layout of the convolution.
      params: parameters of the primitive.
    """
    batch, channel, *space = params["dimension_numbers"].lhs_spec
    x = x.transpose((batch, *space, channel))
    low_high = zip(params["padding"], params["lhs_dilation"], strict=True)
    padding = [(0, 0, 0), *((lo, hi, inner - 1) for (lo, hi), inner in low_high), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), padding)


def image_patches(
    x: Any, params: Mapping[str, Any], window: tuple[int, ...], spatial: tuple[int, ...]
) -> Any:
    """Returns the patch that each output position of a convolution reads.

    Args:
      x: images, in the layout of the convolution.
      params: parameters of the primitive.
      window: size of the kernel along each spatial axis.
      spatial: size of the output along each spatial axis.

    The result is [sample, *positions, *taps, (group,) channel].
    """
    x = padded_image(x, params)
    dilation, strides = params["rhs_dilation"], params["window_strides"]
    for i, (taps, size) in enumerate(zip(window, spatial, strict=True)):
        reach = (size - 1) * strides[i] + 1
        starts = [tap * dilation[i] for tap in range(taps)]
        cuts = [lax.slice_in_dim(x, s, s + reach, strides[i], axis=1 + i) for s in starts]
        x = jnp.stack(cuts, axis=-2)
    groups = params["feature_group_count"]
    if groups > 1:
        x = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return x
