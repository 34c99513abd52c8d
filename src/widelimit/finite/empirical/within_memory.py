"""Tangent kernels within a memory budget, by the implementation with the fewest operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from widelimit.finite.empirical.blocks import BlockWork
from widelimit.finite.empirical.chunks import Work
from widelimit.finite.empirical.implementations import NtkImplementation
from widelimit.finite.empirical.outputs import Call, Output

CutWork: TypeAlias = Work | BlockWork
"""The work of one kernel, cut so that it fits."""

_WAYS: dict[NtkImplementation, Callable[[Call, Call | None, Output, int], CutWork]] = {
    NtkImplementation.JACOBIAN_CONTRACTION: Work.of,
    NtkImplementation.STRUCTURED_DERIVATIVES: BlockWork.of,
}
CUT = (NtkImplementation.AUTO, *_WAYS)
"""Implementations that support a memory budget."""


def work_within(
    first: Call,
    second: Call | None,
    output: Output,
    memory: int,
    implementation: NtkImplementation,
) -> CutWork | None:
    """Returns the work with the fewest operations; None for an output without entries.

    Args:
      first: the network on x1.
      second: the network on x2; None for x1.
      output: the output.
      memory: budget of derivatives in bytes.
      implementation: one of `CUT`.

    Raises:
      TypeError: no derivative exists.
      ValueError: nothing fits.
    """
    if not all(map(math.prod, output.shapes)):
        return None
    ways = [*_WAYS] if implementation is NtkImplementation.AUTO else [implementation]
    works: list[CutWork] = []
    failures: list[Exception] = []
    for way in ways:
        try:
            works.append(_WAYS[way](first, second, output, memory))
        except (TypeError, ValueError) as error:
            failures.append(error)
    if not works:
        raise failures[0]
    return min(works, key=lambda work: work.cost) if len(works) > 1 else works[0]
