"""What a fixed linear layer does to a kernel, from its finite form applied to both copies."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from widelimit.kernel.kernel import Kernel

PLAIN = (0, -1)


def operator(layer: Any, shape: tuple[int, ...], axes: Any, axes_out: Any) -> np.ndarray:
    """Matrix of the layer on inputs of `shape`: its action on every basis vector, as channels.

    Rows and columns run over samples and positions, samples first.
    """
    batch, channel = (axis % len(shape) for axis in axes)
    rest = [shape[batch], *(s for i, s in enumerate(shape) if i not in (batch, channel))]
    size = int(np.prod(rest))
    basis = np.eye(size).reshape(*rest, size)
    out = np.asarray(layer.apply_fn((), _from_canonical(basis, batch, channel)))
    batch, channel = (axis % out.ndim for axis in axes_out)
    order = [i for i in range(out.ndim) if i not in (batch, channel)]
    return out.transpose(batch, *order, channel).reshape(-1, size)


def _from_canonical(x: np.ndarray, batch: int, channel: int) -> np.ndarray:
    """x, its axes (samples, positions, channels), with samples and channels where they belong."""
    order: list[int] = list(range(1, x.ndim - 1))
    for axis, source in sorted([(batch, 0), (channel, x.ndim - 1)]):
        order.insert(axis, source)
    return x.transpose(order)


def _matrix(value: Any, count: int) -> np.ndarray:
    """[n1, n2, H, H, W, W] as [n1 H W, n2 H W]."""
    value = np.asarray(value)
    order = [*range(0, value.ndim, 2), *range(1, value.ndim, 2)]
    return value.transpose(order).reshape(count, -1)


def _zipped(matrix: np.ndarray, rest1: Any, rest2: Any) -> np.ndarray:
    pairs = matrix.reshape(*rest1, *rest2)
    return pairs.transpose([i for k in range(len(rest1)) for i in (k, k + len(rest1))])


def through(layer: Any, before: Kernel, axes_out: Any = PLAIN) -> Kernel:
    """The kernel after the layer, of one with covariances between all samples.

    Args:
      layer: a linear layer without parameters.
      before: kernel with diagonal_batch=False.
      axes_out: batch and channel axes of the output.
    """
    axes = before.batch_axis, before.channel_axis
    shapes = before.shape1, before.shape2
    maps = [operator(layer, shape, axes, axes_out) for shape in shapes]
    shapes_out = [layer.output_shape(shape) for shape in shapes]
    batch, channel = (axis % len(shapes_out[0]) for axis in axes_out)
    rests = [
        (shape[batch], *(s for i, s in enumerate(shape) if i not in (batch, channel)))
        for shape in shapes_out
    ]

    def cross(value: Any, i: int, j: int) -> Any:
        out = maps[i] @ _matrix(value, maps[i].shape[1]) @ maps[j].T
        return jnp.asarray(_zipped(out, rests[i], rests[j]))

    return before.replace(
        nngp=cross(before.nngp, 0, 1),
        ntk=before.ntk
        if before.ntk is None or not np.ndim(before.ntk)
        else cross(before.ntk, 0, 1),
        cov1=cross(before.cov1, 0, 0),
        cov2=None if before.cov2 is None else cross(before.cov2, 1, 1),
        shape1=shapes_out[0],
        shape2=shapes_out[1],
        batch_axis=batch,
        channel_axis=channel,
    )


def same_samples(value: Any) -> np.ndarray:
    """The entries [n, n, ...] of equal samples."""
    return np.asarray(value)[np.arange(len(value)), np.arange(len(value))]
