"""Shapes of inputs, and trees of shapes for branches."""

from __future__ import annotations

import jax

from widelimit.covariance.offsets import Need
from widelimit.typing import Inputs, Needs, Shapes


def as_shape(shape: Shapes) -> Shapes:
    """Returns a shape as a tuple of ints, or a tree of shapes as a tuple of such trees."""
    if isinstance(shape, list | tuple) and any(isinstance(s, list | tuple) for s in shape):
        return tuple(as_shape(s) for s in shape)
    if not isinstance(shape, list | tuple):
        raise TypeError(f"expected a shape (a tuple of ints), got {type(shape).__name__}")
    return tuple(int(s) for s in shape)


def check_one_input(tree: object) -> None:
    """Raises if a shape or signal has several branches."""
    if isinstance(tree, tuple) and any(not isinstance(part, int) for part in tree):
        raise ValueError(f"expected one input, got {len(tree)} branches: join them first")


def checked_axis(axis: int, shape: Shapes) -> int:
    """Returns an axis of an input as a non-negative number.

    Raises:
      ValueError: several branches, fewer than two axes, or an axis out of range.
    """
    check_one_input(shape)
    if len(shape) < 2:
        raise ValueError(f"expected an input with batch and channel axes, got shape {shape}")
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"expected an axis of an input of shape {shape}, got {axis}")
    return axis % len(shape)


def tree_shapes(x: Inputs) -> Shapes:
    """Returns the shape of an array, or a tuple of shapes for a list or tuple."""
    if isinstance(x, list | tuple):
        return tuple(tree_shapes(part) for part in x)
    return tuple(jax.numpy.shape(x))


def same_need(need: Needs, other: Needs) -> Needs:
    """Returns the union of two needs, branch by branch."""
    if isinstance(need, Need):
        return need | other
    return tuple(same_need(a, b) for a, b in zip(need, other, strict=True))
