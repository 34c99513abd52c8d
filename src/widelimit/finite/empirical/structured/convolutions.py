"""Convolutions in forms whose derivatives are faster on a CPU.

XLA pulls cotangents back through strides by a slow special path: it takes 2 to 4 times as long as
the plain convolution that remains if blocks of the image become channels. It computes depthwise
convolutions 3 to 60 times slower than the equivalent sum over taps.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from widelimit.finite.empirical.structured.patches import padded_image
from widelimit.finite.empirical.structured.program import Program, Step

# Sums over more taps take long to compile.
_MOST_TAPS = 64


def fast_to_derive(program: Program) -> Program:
    """Returns a program with the same values up to rounding, and faster derivatives.

    The numbers of values and steps do not change. On other backends than CPU it is the same
    program.
    """
    if jax.default_backend() != "cpu":
        return program
    steps = tuple(_fast(step, program.types) for step in program.steps)
    return dataclasses.replace(program, steps=steps)


def _fast(step: Step, types: Mapping[int, Any]) -> Step:
    """Returns an equivalent step, with faster derivatives if one of the forms applies."""
    if step.body is not None:
        return dataclasses.replace(step, body=fast_to_derive(step.body))
    if step.name != "conv_general_dilated" or step.params["batch_group_count"] != 1:
        return step
    if _is_depthwise(step, types):
        return dataclasses.replace(step, run=lambda x, w: [sum_of_taps(x, w, step.params)])
    if _has_strides_alone(step.params):
        return dataclasses.replace(step, run=lambda x, w: [convolve_blocks(x, w, step.params)])
    return step


def _is_depthwise(step: Step, types: Mapping[int, Any]) -> bool:
    """Returns whether it is a small depthwise convolution, with dtypes of at least 4 bytes."""
    image, kernel = (types[number] for number in step.inputs)
    output = types[step.outputs[0]]
    out_axis, in_axis, *taps = step.params["dimension_numbers"].rhs_spec
    groups = step.params["feature_group_count"]
    return (
        groups == kernel.shape[out_axis] > 1
        and kernel.shape[in_axis] == 1
        and 0 < math.prod(kernel.shape[a] for a in taps) <= _MOST_TAPS
        and math.prod(output.shape) > 0
        and image.dtype == output.dtype
        and jnp.issubdtype(image.dtype, jnp.floating)
        and image.dtype.itemsize >= 4
    )


def sum_of_taps(x: Array, kernel: Array, params: Mapping[str, Any]) -> Array:
    """Returns a depthwise convolution as a sum over taps of shifted images times weights.

    Args:
      x: images, in the layout of the primitive.
      kernel: kernels, one per channel, in the layout of the primitive.
      params: parameters of the primitive; without groups of samples.
    """
    numbers = params["dimension_numbers"]
    out_axis, in_axis, *taps = numbers.rhs_spec
    window = tuple(kernel.shape[a] for a in taps)
    kernel = kernel.transpose((*taps, in_axis, out_axis))
    kernel = kernel.reshape(*window, *(1,) * (len(taps) + 1), kernel.shape[-1])
    x = padded_image(x, params)
    strides, dilations = params["window_strides"], params["rhs_dilation"]
    spans = [(k - 1) * d for k, d in zip(window, dilations, strict=True)]
    reach = [
        (n - 1 - span) // stride * stride + 1
        for n, span, stride in zip(x.shape[1:-1], spans, strides, strict=True)
    ]
    total: Any = 0
    for tap in itertools.product(*map(range, window)):
        starts = [i * d for i, d in zip(tap, dilations, strict=True)]
        ends = [start + n for start, n in zip(starts, reach, strict=True)]
        cut = lax.slice(x, (0, *starts, 0), (x.shape[0], *ends, x.shape[-1]), (1, *strides, 1))
        total = total + cut * kernel[tap]
    return _as_stated(total, numbers)


def _as_stated(result: Array, numbers: lax.ConvDimensionNumbers) -> Array:
    """Returns [batch, *space, channel] with the axes in the order of the primitive's results."""
    batch, channel, *space = numbers.out_spec
    order = {batch: 0, channel: len(space) + 1, **{a: 1 + i for i, a in enumerate(space)}}
    return result.transpose([order[a] for a in range(len(space) + 2)])


def _has_strides_alone(params: Mapping[str, Any]) -> bool:
    """Returns whether the convolution has strides, and no dilations."""
    dilations = (*params["lhs_dilation"], *params["rhs_dilation"])
    return max(params["window_strides"], default=1) > 1 and max(dilations) == 1


class _Axis(NamedTuple):
    """One spatial axis, cut into blocks as long as the stride.

    Attributes:
      stride: stride of the windows.
      low: padding before the image; may be negative.
      taps: size of the kernel.
      size: size of the output.
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
    """Returns a convolution with strides, computed as one without strides on blocks.

    Args:
      x: images, in the layout of the primitive.
      kernel: kernel, in the layout of the primitive.
      params: parameters of the primitive; without dilations and groups of samples.
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
    return _as_stated(result, numbers)


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
