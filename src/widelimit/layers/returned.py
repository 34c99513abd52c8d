"""Kernels returned by functions from Kernel to Kernel: checks, and conversion to covariances.

Authors of layers replace the arrays of a Kernel and often leave its shapes unchanged. So shapes
are those of `init_fn`, and the arrays must fit them; the shapes in the Kernel may be those of the
output or of the input, but no others.
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

    Axes before all spatial axes are counted from the front, axes behind them from the end.

    Raises:
      ValueError: fewer than two axes.
      NotImplementedError: the number of axes changes, and a batch or channel axis is between
        spatial ones.
    """
    ends = signal.batch_axis, signal.channel_axis
    if ndim == signal.ndim:
        return ends
    if ndim < 2:
        raise ValueError(
            f"expected an output with a batch and a channel axis from init_fn, got {ndim} axes"
        )
    first, last = min(signal.spatial_axes, default=1), max(signal.spatial_axes, default=0)
    if any(first < axis < last for axis in ends):
        raise NotImplementedError(
            f"expected a layer made of functions to keep {signal.ndim} axes where the batch or "
            f"channel axes {ends} are between others, got {ndim}"
        )
    batch, channel = (axis if axis < first else axis - signal.ndim + ndim for axis in ends)
    return batch, channel


def covariances_of(
    kernel: object, signal: Signal, need: Need, masked: bool, inputs: list[Kernel], symmetric: bool
) -> Covariances:
    """Returns a Kernel from a foreign function as covariances by offset.

    Args:
      kernel: the result of the function.
      signal: description of the output.
      need: offsets to keep.
      masked: whether the output has masks.
      inputs: the Kernels that were passed to the function.
      symmetric: whether x2 is x1.

    Raises:
      TypeError: `kernel` is not a Kernel.
      ValueError: arrays that are missing, or shapes and axes that contradict each other.
      NotImplementedError: masks that only the Kernel has.
    """
    if not isinstance(kernel, Kernel):
        raise TypeError(f"expected a Kernel from kernel_fn, got {type(kernel).__name__}")
    _check_stated(kernel, signal, inputs)
    if kernel.mask1 is not None and not masked and all(k.mask1 is None for k in inputs):
        raise NotImplementedError(
            "expected masks from a fourth function mask_fn(mask, input_shape), got some in the "
            "Kernel only: finite networks and later layers do not get these"
        )
    kernel = kernel.replace(
        shape1=signal.shape1,
        shape2=signal.shape2,
        batch_axis=signal.batch_axis,
        channel_axis=signal.channel_axis,
    )
    unchanged = any(kernel.ntk is k.ntk for k in inputs)
    ntk, nngp = kernel.ntk, kernel.nngp
    if ntk is not None and nngp is not None and _is_one_number(ntk) and not unchanged:
        kernel = kernel.replace(ntk=jnp.full_like(nngp, ntk))
    if symmetric and any(kernel.cov1 is k.cov1 for k in inputs):
        kernel = _with_own(kernel)
    return covariances_from_kernel(kernel, need, symmetric, "init_fn says")


def _is_one_number(ntk: Array) -> bool:
    """Returns whether an NTK is a scalar that may differ from zero."""
    if jnp.ndim(ntk):
        return False
    return not is_concrete(ntk) or bool(np.any(ntk))


def _with_own(kernel: Kernel) -> Kernel:
    """Returns a Kernel with self-covariances from the diagonal of its NNGP, if the shapes agree.

    The function may have replaced the NNGP and left the self-covariances unchanged; these would
    then make its diagonal wrong.
    """
    if kernel.nngp is None or kernel.cov1 is None or not kernel.diagonal_batch:
        return kernel
    same = jnp.arange(len(kernel.nngp))
    own = kernel.nngp[same, same]
    return kernel.replace(cov1=own) if own.shape == kernel.cov1.shape else kernel


def _check_stated(kernel: Kernel, signal: Signal, inputs: list[Kernel]) -> None:
    """Raises unless the shapes and axes of a Kernel are those of the output or of the input."""
    axes = signal.batch_axis, signal.channel_axis
    stated = kernel.batch_axis, kernel.channel_axis
    old_axes = {(k.batch_axis, k.channel_axis) for k in inputs}
    if stated not in old_axes and tuple(axis % signal.ndim for axis in stated) != axes:
        raise ValueError(
            f"expected a Kernel with batch and channel axes {axes} from kernel_fn, for outputs of "
            f"shape {signal.shape1} as from init_fn, got {stated} and {kernel.shape1}"
        )
    for name in ("shape1", "shape2"):
        shape, out = tuple(getattr(kernel, name)), getattr(signal, name)
        old = {getattr(k, name) for k in inputs}
        widths = {-1, signal.channels, *(k.shape1[k.channel_axis] for k in inputs)}
        # Methods of Kernel keep the number of channels.
        if shape not in old and not any(shape == _with_width(out, axes[1], w) for w in widths):
            raise ValueError(
                f"expected a Kernel of {name}={out} from kernel_fn, as from init_fn, got {shape}"
            )


def _with_width(shape: Shape, axis: int, width: int) -> Shape:
    return (*shape[:axis], width, *shape[axis + 1 :])
