"""Masked inputs: entries equal to a constant are ignored by the network."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, Shaped

from widelimit._pytree import pytree
from widelimit.covariance.signal import Signal
from widelimit.typing import Arrays, Function, Inputs, Masks, Scalar


@pytree
class MaskedArray:
    """An array with a mask of the same rank; True means masked.

    Attributes:
      masked_value: array of values; masked ones are ignored.
      mask: array of bools of the same rank, with axes of the same size or 1.
    """

    masked_value: Shaped[Array, "..."]
    mask: Bool[Array, "..."] | None


def is_masked_array(value: object) -> bool:
    """Returns whether `value` is a `MaskedArray` (usable as `is_leaf`)."""
    return isinstance(value, MaskedArray)


def split_mask(x: Inputs, mask_constant: Scalar | None) -> tuple[Arrays, Masks]:
    """Returns inputs with masked entries set to 0, and their masks (None without masks).

    Args:
      x: array, MaskedArray, or a list or tuple of them.
      mask_constant: entries equal to it (or NaN, if it is NaN) are masked; None masks nothing.

    Raises:
      ValueError: a mask that does not fit its values.
    """
    if isinstance(x, list | tuple):
        pairs = [split_mask(part, mask_constant) for part in x]
        return type(x)(p[0] for p in pairs), tuple(p[1] for p in pairs)
    if isinstance(x, MaskedArray):
        _check_shape(x)
        return hide(x.masked_value, x.mask), x.mask
    if x is None:
        return None, None
    x = jnp.asarray(x)
    if mask_constant is None:
        return x, None
    mask = jnp.where(jnp.isnan(mask_constant), jnp.isnan(x), x == mask_constant)
    return hide(x, mask), mask


def _check_shape(x: MaskedArray) -> None:
    """Raises unless the mask has the axes of the values, each of the same size or 1."""
    if x.mask is None:
        return
    value, mask = jnp.shape(x.masked_value), jnp.shape(x.mask)
    if len(value) != len(mask) or any(m not in (1, n) for n, m in zip(value, mask, strict=True)):
        raise ValueError(f"expected a mask that fits values of shape {value}, got shape {mask}")


def hide(x: Array, mask: Array | None) -> Array:
    """Returns the array with zeros under the mask."""
    return x if mask is None else jnp.where(jnp.broadcast_to(mask, x.shape), 0, x)


def collapse(mask: Array | None, channel_axis: int) -> Array | None:
    """Returns the mask with one channel: masked only where every channel is."""
    return None if mask is None else jnp.all(mask, axis=channel_axis, keepdims=True)


def one_channel(mask: Array | None, signal: Signal, label: str) -> Array | None:
    """Returns a mask that is the same for all channels as [n, p].

    Raises:
      NotImplementedError: a mask per channel.
    """
    if mask is None:
        return None
    if mask.shape[signal.channel_axis] != 1:
        raise NotImplementedError(
            f"expected masks equal on all channels for {label}, got a mask per channel: put a "
            "Dense or Conv layer before it"
        )
    rows = mask.transpose(signal.to_canonical())
    n = mask.shape[signal.batch_axis]
    return jnp.broadcast_to(rows[..., 0], (n, *signal.spatial)).reshape(n, signal.positions)


def all_masked(masks: Iterable[Array | None]) -> Array | None:
    """Returns the intersection of the masks of branches; branches without one are skipped."""
    present = [m for m in masks if m is not None]
    return functools.reduce(jnp.logical_and, present) if present else None


def unmask_fn(fn: Function) -> Function:
    """Returns `fn` with masked results replaced by arrays that are zero where masked.

    Args:
      fn: a function such as `apply_fn` whose results may be `MaskedArray`s, or trees of them.
    """

    @functools.wraps(fn)
    def unmasked(*args: object, **kwargs: object) -> PyTree:
        out = fn(*args, **kwargs)
        return jax.tree.map(
            lambda v: hide(v.masked_value, v.mask) if is_masked_array(v) else v,
            out,
            is_leaf=is_masked_array,
        )

    return unmasked
