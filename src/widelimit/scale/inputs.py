"""Inputs, some samples at a time: they are cut along their first axes."""

from collections.abc import Iterator

import jax
import numpy as np

from widelimit.typing import Inputs, KernelFunction


def check_samples_first(kernel_fn: KernelFunction, x: Inputs) -> None:
    """Raises ValueError unless samples are along the first axis of every array of x.

    Args:
      kernel_fn: of a network, which knows its batch axes; others have it first.
      x: the inputs.
    """
    batch_axes = getattr(kernel_fn, "batch_axes", None)
    if batch_axes is None:
        return
    axes, leaves = batch_axes(x), jax.tree.leaves(x)
    if any(axis % np.ndim(leaf) for axis, leaf in zip(axes, leaves, strict=True)):
        raise ValueError(
            f"expected a network with its samples along axis 0, got batch axes {axes}: transpose "
            "the inputs, and leave batch_axis and channel_axis of the layers out"
        )


def sample_count(x: Inputs) -> int:
    """Returns the number of samples."""
    return len(jax.tree.leaves(x)[0])


def in_batches(x: Inputs, size: int) -> Iterator[Inputs]:
    """Yields so many samples at a time, in order; one empty batch of no samples."""
    for start in range(0, max(sample_count(x), 1), max(size, 1)):
        batch = slice(start, start + max(size, 1))
        yield jax.tree.map(lambda leaf, batch=batch: leaf[batch], x)
