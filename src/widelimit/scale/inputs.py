"""Inputs, some samples at a time."""

from collections.abc import Iterator

import jax

from widelimit.typing import Inputs


def sample_count(x: Inputs) -> int:
    """Returns the number of samples."""
    return len(jax.tree.leaves(x)[0])


def in_batches(x: Inputs, size: int) -> Iterator[Inputs]:
    """Yields so many samples at a time, in order; one empty batch of no samples."""
    for start in range(0, max(sample_count(x), 1), max(size, 1)):
        batch = slice(start, start + max(size, 1))
        yield jax.tree.map(lambda leaf, batch=batch: leaf[batch], x)
