"""Which values instructions read, where every instruction writes a value of its own."""

from __future__ import annotations

import numpy as np

from widelimit.engines.fused import instructions as m
from widelimit.engines.fused.tape import Activations

# Columns: the values that an instruction reads, and whether it is the last one that reads each, so
# that backwards it is the first to write its cotangent. JOINED is what stands in its target before.
READ, JOINED, LAST_READ, LAST_JOINED = range(4)
_JOINS = (m.ADD, m.MULTIPLY)


def values_read(code: np.ndarray) -> np.ndarray:
    """Returns for every instruction [ops, 4] which instructions wrote what it reads; -1 for none.

    Args:
      code: instructions [ops, COLUMNS], which write into slots, one after another.
    """
    reads = np.full((len(code), 4), -1, np.int64)
    writer: dict[int, int] = {}
    for i, op in enumerate(code):
        if op[m.CODE] not in (m.INPUT, m.LOAD):
            reads[i, READ] = writer[int(op[m.SOURCE])]
        if op[m.CODE] in _JOINS:
            reads[i, JOINED] = writer[int(op[m.TARGET])]
        writer[int(op[m.TARGET])] = i
    last: set[int] = set()
    for i in reversed(range(len(code))):
        for column, mark in ((READ, LAST_READ), (JOINED, LAST_JOINED)):
            value = int(reads[i, column])
            reads[i, mark] = value >= 0 and value not in last
            last.add(value)
    return reads


def missing_partials(activations: Activations) -> str | None:
    """Returns which activation has no partials, as a reason; None if all have."""
    for placed in activations:
        if placed is not None and placed.activation.partials is None:
            layers = ", ".join(layer.__name__ for layer in placed.activation.layers)
            return f"the fused engine has no derivatives of {layers}"
    return None
