"""Functions of many samples, computed a few samples at a time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree

from widelimit.typing import ApplyFunction, Inputs, Params, Size


@dataclasses.dataclass(frozen=True)
class InChunks:
    """A function f(params, x) that treats samples independently, on `batch_size` of them at a time.

    Derivatives, of any order, are summed chunk by chunk, too: a reverse pass computes the
    intermediate values of a chunk again.

    Attributes:
      f: the function, with samples along the first axes of x and of its output.
      batch_size: number of samples.
    """

    f: ApplyFunction
    batch_size: int

    def __call__(self, params: Params, x: Inputs) -> PyTree:
        """Returns f(params, x).

        Raises:
          ValueError: inputs or outputs without a common number of samples.
        """
        count = _count("x", x)
        size = max(min(self.batch_size, count), 1)
        whole = count // size * size
        call = jax.checkpoint(lambda rows: self._call(params, rows))
        chunks = jax.tree.map(lambda a: a[:whole].reshape(whole // size, size, *a.shape[1:]), x)
        out = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), lax.map(call, chunks))
        if whole == count:
            return out
        rest = call(jax.tree.map(lambda a: a[whole:], x))
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, rest)

    def _call(self, params: Params, rows: Inputs) -> PyTree:
        out = self.f(params, rows)
        count, expected = _count("outputs of f", out), _count("x", rows)
        if count != expected:
            raise ValueError(
                f"expected outputs of f with samples first, {expected} in a chunk of {expected}, "
                f"got {count}"
            )
        return out


def in_chunks(f: ApplyFunction, batch_size: Size | None) -> ApplyFunction:
    """Returns f, computed in chunks unless `batch_size` is None.

    Raises:
      TypeError: f is not a function.
      ValueError: `batch_size` is not an int of at least 1.
    """
    if not callable(f):
        raise TypeError(f"expected a function f(params, x), got {type(f).__name__}")
    if batch_size is None:
        return f
    is_count = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
    if not is_count or batch_size < 1:
        raise ValueError(f"expected batch_size of at least 1, or None, got {batch_size!r}")
    return InChunks(f, int(batch_size))


def _count(name: str, tree: PyTree) -> int:
    """Returns the number of samples."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"expected {name} with one number of samples along first axes, got shapes "
            f"{[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]}"
        )
    return sizes.pop()[0]
