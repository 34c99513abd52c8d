"""Where things lie in the scratch of a stage: slots of covariances, and regions beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused.compiling import loop, pointer, pointer_at
from widelimit.engines.fused.instructions import (
    FRONT,
    LENGTH,
    SLOTS,
    VECTOR,
)


@loop
def u(x: Any) -> Any:
    """Returns a place or a count as loops want it: unsigned."""
    return np.uint64(x)


@loop
def whole(n: Any) -> Any:
    """Returns a number of entries, rounded up to whole vectors."""
    return u((n + VECTOR - 1) // VECTOR * VECTOR)


@loop
def parameters(table: Any, i: Any, numbers: Any) -> Any:
    """Returns a pointer to the numbers of an instruction: its row of a table, or its own table."""
    if table != 0:
        return pointer_at(table, numbers)
    return pointer(numbers, i * numbers.shape[1])


@loop
def slot(sizes: Any, index: Any, tangent: Any) -> Any:
    """Returns the place of position 0 of a slot: K, or T."""
    return sizes[FRONT] + sizes[LENGTH] * (2 * index + tangent)


@loop
def region(sizes: Any, index: Any) -> Any:
    """Returns the place of a region beside the slots."""
    return sizes[FRONT] + sizes[LENGTH] * (2 * sizes[SLOTS] + index)
