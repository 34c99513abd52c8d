"""Kernels that functions from Kernel to Kernel return: checked, and as covariances by offset.

Authors of layers replace the arrays of a Kernel and often leave its shapes as they were. So shapes
are those of `init_fn`; the arrays must fit them, and what the Kernel says of its shapes may be new
or old, but nothing else.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from widelimit._pytree import is_concrete
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.signal import Signal
from widelimit.kernel.conversion import covariances_from_kernel
from widelimit.kernel.kernel import Kernel

Shape = tuple[int, ...]


def output_axes(signal: Signal, ndim: int) -> tuple[int, int]:
    """Returns the batch and channel axis of an output with another number of spatial axes.

    What stands before all spatial axes is counted from the front, what stands behind from the end.

    Raises:
      ValueError: fewer than two axes.
      NotImplementedError: another number of axes, and a batch or channel axis between spatial ones.
    """
    given = signal.batch_axis, signal.channel_axis
    if ndim == signal.ndim:
        return given
    if ndim < 2:
        raise ValueError(
            f"expected an output with a batch and a channel axis from init_fn, got {ndim} axes"
        )
    first, last = min(signal.spatial_axes, default=1), max(signal.spatial_axes, default=0)
    if any(first < axis < last for axis in given):
        raise NotImplementedError(
            f"expected a layer given as functions to keep {signal.ndim} axes where batch or "
            f"channel axis {given} stand between others, got {ndim}"
        )
    batch, channel = (axis if axis < first else axis - signal.ndim + ndim for axis in given)
    return batch, channel


def covariances_of(
    kernel: object, signal: Signal, need: Need, masked: bool, given: list[Kernel], symmetric: bool
) -> Covariances:
    """Returns a Kernel that a given function returned by offset.

    Args:
      kernel: what the function returned.
      signal: description of the output.
      need: offsets to keep.
      masked: whether the output has masks.
      given: the Kernels that the function got.
      symmetric: whether x2 is x1.

    Raises:
      TypeError: no Kernel.
      ValueError: arrays that are missing, or shapes and axes that contradict each other.
      NotImplementedError: masks that only the Kernel knows of.
    """
    if not isinstance(kernel, Kernel):
        raise TypeError(f"expected a Kernel from the given function, got {type(kernel).__name__}")
    _check_stated(kernel, signal, given)
    if kernel.mask1 is not None and not masked and all(k.mask1 is None for k in given):
        raise NotImplementedError(
            "expected masks from a fourth function mask_fn(mask, input_shape), got some in the "
            "Kernel only: finite networks and later layers would not know of them"
        )
    kernel = kernel.replace(
        shape1=signal.shape1,
        shape2=signal.shape2,
        batch_axis=signal.batch_axis,
        channel_axis=signal.channel_axis,
    )
    unchanged = any(kernel.ntk is k.ntk for k in given)
    ntk, nngp = kernel.ntk, kernel.nngp
    if ntk is not None and nngp is not None and _is_one_number(ntk) and not unchanged:
        kernel = kernel.replace(ntk=jnp.full_like(nngp, ntk))
    if symmetric and any(kernel.cov1 is k.cov1 for k in given):
        kernel = _with_own(kernel)
    return covariances_from_kernel(kernel, need, symmetric, "init_fn says")


def _is_one_number(ntk: Array) -> bool:
    """Returns whether an NTK is one number for all entries that may be other than zero."""
    if jnp.ndim(ntk):
        return False
    return not is_concrete(ntk) or bool(np.any(ntk))


def _with_own(kernel: Kernel) -> Kernel:
    """Returns a Kernel with the self-covariances that its NNGP holds, if they are of one shape.

    Where they were left as they were, though the NNGP may be new, they would spoil its diagonal.
    """
    if kernel.nngp is None or kernel.cov1 is None or not kernel.diagonal_batch:
        return kernel
    same = jnp.arange(len(kernel.nngp))
    own = kernel.nngp[same, same]
    return kernel.replace(cov1=own) if own.shape == kernel.cov1.shape else kernel


def _check_stated(kernel: Kernel, signal: Signal, given: list[Kernel]) -> None:
    """Raises unless shapes and axes that a Kernel states are those of the output or the input."""
    axes = signal.batch_axis, signal.channel_axis
    stated = kernel.batch_axis, kernel.channel_axis
    old_axes = {(k.batch_axis, k.channel_axis) for k in given}
    if stated not in old_axes and tuple(axis % signal.ndim for axis in stated) != axes:
        raise ValueError(
            f"expected a Kernel with batch and channel axes {axes} from the given function, for "
            f"outputs of shape {signal.shape1} as init_fn says, got {stated} and {kernel.shape1}"
        )
    for name in ("shape1", "shape2"):
        shape, out = tuple(getattr(kernel, name)), getattr(signal, name)
        old = {getattr(k, name) for k in given}
        widths = {-1, signal.channels, *(k.shape1[k.channel_axis] for k in given)}
        # Methods of Kernel keep the number of channels.
        if shape not in old and not any(shape == _with_width(out, axes[1], w) for w in widths):
            raise ValueError(
                f"expected a Kernel of {name}={out} from the given function, as init_fn says, got "
                f"{shape}"
            )


def _with_width(shape: Shape, axis: int, width: int) -> Shape:
    return (*shape[:axis], width, *shape[axis + 1 :])
