"""Convolutions with strides as convolutions without: on a CPU their derivatives are faster.

XLA pulls cotangents back through strides by a slow path of its own: here it takes 2 to 4 times as
long as through the plain convolution that is left if blocks of the image become channels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from widelimit.empirical.structured.program import Program, Step


def without_strides(program: Program) -> Program:
    """Returns a program with the same values but for rounding, and faster derivatives.

    The numbers of values and steps stay. Elsewhere than on a CPU it is the same program.
    """
    if jax.default_backend() != "cpu":
        return program
    return dataclasses.replace(program, steps=tuple(map(_without, program.steps)))


def _without(step: Step) -> Step:
    """Returns a step that does the same, without strides."""
    if step.body is not None:
        return dataclasses.replace(step, body=without_strides(step.body))
    if step.name != "conv_general_dilated" or not _applies(step.params):
        return step
    return dataclasses.replace(step, run=lambda x, w: [convolve_blocks(x, w, step.params)])


def _applies(params: Mapping[str, Any]) -> bool:
    """Returns whether there are strides, and nothing that blocks cannot have."""
    dilations = (*params["lhs_dilation"], *params["rhs_dilation"])
    return (
        max(params["window_strides"], default=1) > 1
        and all(dilation == 1 for dilation in dilations)
        and params["batch_group_count"] == 1
    )


class _Axis(NamedTuple):
    """One spatial axis, cut into blocks as long as the stride.

    Attributes:
      stride: of the windows.
      low: padding before the image; may be negative.
      taps: of the kernel.
      size: of the output.
    """

    stride: int
    low: int
    taps: int
    size: int

    @property
    def phases(self) -> int:
        """Positions in a block that any window reads."""
        return min(self.stride, self.taps)

    @property
    def reach(self) -> int:
        """Blocks that a window reads."""
        return -(-self.taps // self.stride)


def convolve_blocks(x: Array, kernel: Array, params: Mapping[str, Any]) -> Array:
    """Returns a convolution with strides, computed as one of blocks without strides.

    Args:
      x: images, as the primitive takes them.
      kernel: likewise.
      params: of the primitive; without dilations and groups of samples.
    """
    numbers = params["dimension_numbers"]
    batch, channel, *space = numbers.lhs_spec
    out_axis, in_axis, *taps = numbers.rhs_spec
    rank = len(space)
    x = x.transpose((batch, *space, channel))
    kernel = kernel.transpose((*taps, in_axis, out_axis))
    each = zip(
        params["window_strides"],
        params["padding"],
        kernel.shape[:rank],
        x.shape[1:-1],
        strict=True,
    )
    axes = [
        _Axis(stride, low, window, max((low + n + high - window) // stride + 1, 0))
        for stride, (low, high), window, n in each
    ]
    last = lax.ConvDimensionNumbers(
        (0, rank + 1, *range(1, rank + 1)),
        (rank + 1, rank, *range(rank)),
        (0, rank + 1, *range(1, rank + 1)),
    )
    result = lax.conv_general_dilated(
        _image_blocks(x, axes, params["feature_group_count"]),
        _kernel_blocks(kernel, axes),
        (1,) * rank,
        "VALID",
        dimension_numbers=last,
        feature_group_count=params["feature_group_count"],
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    batch, channel, *space = numbers.out_spec
    order = {batch: 0, channel: rank + 1, **{a: 1 + i for i, a in enumerate(space)}}
    return result.transpose([order[a] for a in range(rank + 2)])


def _image_blocks(x: Array, axes: list[_Axis], groups: int) -> Array:
    """Returns [batch, *blocks, (group, *phases, channel)] of images [batch, *space, channel]."""
    rank, channels = len(axes), x.shape[-1] // groups
    lengths = [axis.stride * (axis.size - 1 + axis.reach) for axis in axes]
    sides = [
        (a.low, length - n - a.low, 0)
        for a, length, n in zip(axes, lengths, x.shape[1:-1], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *sides, (0, 0, 0)])
    cut = [n for a in axes for n in (a.size - 1 + a.reach, a.stride)]
    x = x.reshape(x.shape[0], *cut, groups, channels)
    for i, axis in enumerate(axes):
        x = lax.slice_in_dim(x, 0, axis.phases, axis=2 + 2 * i)
    blocks, phases = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    x = x.transpose((0, *blocks, 2 * rank + 1, *phases, 2 * rank + 2))
    return x.reshape(*x.shape[: rank + 1], math.prod(x.shape[rank + 1 :]))


def _kernel_blocks(kernel: Array, axes: list[_Axis]) -> Array:
    """Returns [*blocks, (*phases, channel), out] of a kernel [*taps, channel, out]."""
    rank = len(axes)
    whole = [(0, a.reach * a.phases - a.taps) for a in axes]
    kernel = jnp.pad(kernel, [*whole, (0, 0), (0, 0)])
    cut = [n for a in axes for n in (a.reach, a.phases)]
    kernel = kernel.reshape(*cut, *kernel.shape[rank:])
    blocks, phases = range(0, 2 * rank, 2), range(1, 2 * rank, 2)
    kernel = kernel.transpose((*blocks, *phases, 2 * rank, 2 * rank + 1))
    window = math.prod(kernel.shape[rank:-1])
    return kernel.reshape(*kernel.shape[:rank], window, kernel.shape[-1])
