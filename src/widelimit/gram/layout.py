"""The axes of samples in the results of any kernel function, determined by calls with few samples.

The shape of one result is ambiguous: a kernel of 3 classes looks like one of 3 samples. So axes of
samples are those that grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.tree_util import KeyPath
from jaxtyping import PyTree

from widelimit._pytree import same_values
from widelimit.gram.fields import (
    COLUMNS,
    FLAG,
    PAIRS,
    ROWS,
    SIDES,
    Layout,
    SampleAxes,
    at,
    name_of,
)
from widelimit.kernel.kernel import is_kernel

Example = Callable[[int, int | None, bool], PyTree]
"""Function (n1, n2, values) -> the result for n1 and n2 samples, or only its shapes and dtypes if
not `values`."""

Leaves = dict[str, tuple[KeyPath, PyTree]]
"""Path and value of every array or kernel of a result, by the path as text."""

Counts = tuple[int, int | None]
"""Numbers of samples of x1 and of x2, None for x1 alone."""

# Pairs of numbers of samples to try: a function may accept only equal numbers, or only multiples.
_COUNTS: tuple[tuple[Counts, Counts], ...] = (
    ((2, 3), (5, 7)),
    ((2, 2), (5, 5)),
    ((16, 48), (80, 112)),
    ((16, 16), (80, 80)),
)


def find_layout(example: Example, get: object, given_x2: bool) -> Layout:
    """Returns the axes of samples of every array of a result that is not a field of a `Kernel`.

    A function that takes equal numbers of samples only, and returns one axis for both, returns
    equal samples; so does one whose axis is as long as the smaller number. Shapes cost a trace; if
    JAX cannot trace the function, or an array has no axis of samples, the function is evaluated.

    Args:
      example: calls the function.
      get: the requested fields; a single name is the name of a single array.
      given_x2: whether x2 is not None.

    Raises:
      ValueError: an array with samples along one axis that is not a field such as cov1, along more
        than two axes, or along none although its values depend on samples; a structure that depends
        on samples; no samples at all.
      Exception: any error of the function for few samples.
    """
    counts, few, more = _examples(example, given_x2)
    if few.keys() != more.keys():
        raise ValueError(
            "expected a kernel function whose result has the same structure for any number of "
            f"samples, to assemble it from tiles, got {sorted(few)} and {sorted(more)}"
        )
    layout: Layout = {}
    for key, (path, leaf) in few.items():
        if is_kernel(leaf) or name_of(path, get) == FLAG:
            continue
        samples = _sample_axes(key, counts, (np.shape(leaf), np.shape(more[key][1])))
        sides = SIDES.get(name_of(path, get))
        if len(samples.sides) == 1 and samples.diagonal and sides:
            samples = SampleAxes(sides, samples.axes)
        elif len(samples.sides) == 1 and not samples.diagonal and samples.sides != sides:
            n1, n2 = counts[1]
            swapped = _leaves(example(n2 or n1, n1, False))
            samples = _shorter(key, samples, n1, np.shape(swapped[key][1]))
        layout[key] = samples
    constants = [key for key, samples in layout.items() if not samples.sides]
    if constants and len(constants) == len(few):
        raise totals_refused(constants[0], few[constants[0]][1])
    if constants:
        _check_constants(constants, *(_leaves(example(n1, n2, True)) for n1, n2 in counts))
    return layout


def _examples(example: Example, given_x2: bool) -> tuple[tuple[Counts, Counts], Leaves, Leaves]:
    """Returns two pairs of numbers of samples, and the arrays of the results for them.

    Raises:
      Exception: the error of the function for the first pair.
    """
    errors = []
    for first, second in _COUNTS:
        if first[0] == first[1] and not given_x2:
            first, second = (first[0], None), (second[0], None)
        try:
            few, more = (_leaves(example(n1, n2, False)) for n1, n2 in (first, second))
            return (first, second), few, more
        except Exception as error:  # the function may refuse these numbers of samples
            errors.append(error)
    errors[0].add_note(
        "To assemble its result from tiles, the function was called with few samples, to "
        "determine the axes of x1 and of x2"
    )
    raise errors[0]


def _leaves(result: PyTree) -> Leaves:
    """Returns path and value of every array or kernel, by the path as text."""
    return {
        jax.tree_util.keystr(path): (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(result, is_leaf=is_kernel)
    }


def _sample_axes(
    key: str, counts: tuple[Counts, Counts], shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> SampleAxes:
    """Returns the axes of samples, from the shapes for two pairs of numbers of samples.

    Raises:
      ValueError: axes that grow differently from both numbers, or too many.
    """
    few, more = shapes
    (n1, n2), (m1, m2) = counts
    grown = [i for i, sizes in enumerate(zip(few, more, strict=False)) if len(set(sizes)) > 1]
    rows = tuple(i for i in grown if (few[i], more[i]) == (n1, m1))
    equal = n2 in (None, n1)
    columns = rows[1:] if equal else tuple(i for i in grown if (few[i], more[i]) == (n2, m2))
    rows = rows[:1] if equal else rows
    unambiguous = sorted({*rows, *columns}) == grown and len(few) == len(more)
    if not unambiguous or len(rows) > 1 or len(columns) > 1:
        raise ValueError(
            "expected a kernel function whose result has one axis of samples of x1 and one of x2, "
            f"to assemble it from tiles, got{at(key)} shape {few} for {_words(counts[0])} and "
            f"{more} for {_words(counts[1])}: pass all samples to the function at once"
        )
    sides = PAIRS if rows and columns else ROWS if rows else COLUMNS if columns else ()
    return SampleAxes(sides, rows + columns, diagonal=equal and sides == ROWS)


def _shorter(key: str, samples: SampleAxes, least: int, shape: tuple[int, ...]) -> SampleAxes:
    """Returns an axis as that of equal samples if its size is the smaller of n1 and n2.

    Args:
      key: path of the array in the result.
      samples: the axes for fewer samples in x1 than in x2.
      least: the number of samples of x2 in a call with fewer in x2 than in x1.
      shape: shape of the array in that call.

    Raises:
      ValueError: the axis belongs to one side.
    """
    if samples.sides == ROWS and shape[samples.axes[0]] == least:
        return samples._replace(diagonal=True)
    side = samples.sides[0]
    raise ValueError(
        "expected a kernel function whose result has axes of samples of both x1 and x2, or of "
        f"equal samples, to assemble it from tiles, got{at(key)} an array with samples of "
        f"x{side + 1} only, which may have summed over x{2 - side}: pass all samples to the "
        f"function at once, or return values of single samples as the field cov{side + 1} of a "
        "named tuple"
    )


def _check_constants(keys: list[str], few: Leaves, more: Leaves) -> None:
    """Raises unless arrays without axes of samples have the same values for any samples.

    Raises:
      ValueError: they differ, or are unknown.
    """
    for key in keys:
        if not same_values(few[key][1], more[key][1]):
            raise totals_refused(key, few[key][1])


def totals_refused(key: str, value: PyTree) -> ValueError:
    """Returns the error for an array that has no axis of samples but depends on them."""
    return ValueError(
        "expected a kernel function whose result has axes of samples of x1 and x2, to assemble "
        f"it from tiles, got{at(key)} shape {np.shape(value)} for any numbers of samples: a sum "
        "or mean over samples, such as a trace over axis 0 of an empirical kernel, differs from "
        "tile to tile. Pass all samples to the function at once (memory=... of empirical_ntk_fn "
        "bounds its memory), or reduce the kernel of all samples afterwards"
    )


def _words(counts: Counts) -> str:
    n1, n2 = counts
    return f"{n1} samples" if n2 is None else f"{n1} and {n2} samples"
