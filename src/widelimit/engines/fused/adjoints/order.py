"""Which values instructions read, where every instruction writes a value of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from widelimit.engines.fused import instructions as m
from widelimit.engines.fused.tape import Activations

# Columns: the values that an instruction reads, and whether it is the last one that reads each, so
# that backwards it is the first to write its cotangent. JOINED is what stands in its target before.
# HOME is a slot for the cotangent of what it writes, beside one slot for the value of each.
READ, JOINED, LAST_READ, LAST_JOINED, HOME = range(5)
_JOINS = (m.ADD, m.MULTIPLY)


def values_read(code: np.ndarray) -> np.ndarray:
    """Returns for every instruction [ops, 5] which instructions wrote what it reads; -1 for none.

    Args:
      code: instructions [ops, COLUMNS], which write into slots, one after another.
    """
    reads = np.full((len(code), 5), -1, np.int64)
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
    _house(reads)
    return reads


def _house(reads: np.ndarray) -> None:
    """Gives the cotangent of every value a slot, which is free again once it is passed on."""
    ops, free, count = len(reads), list[int](), 0
    for i in reversed(range(ops)):
        wanted = [i, *(int(v) for v in reads[i, [READ, JOINED]] if v >= 0)]
        for value in wanted:
            if reads[value, HOME] < 0:
                if not free:
                    free.append(ops + count)
                    count += 1
                reads[value, HOME] = free.pop()
        free.append(int(reads[i, HOME]))


def is_read_up(code: np.ndarray, final: int) -> bool:
    """Returns whether the last instruction writes the result, and all others something read."""
    reads = values_read(code)
    read = {int(value) for value in reads[:, [READ, JOINED]].ravel()}
    return int(code[-1, m.TARGET]) == final and read >= set(range(len(code) - 1))


def slots_of(reads: np.ndarray) -> int:
    """Returns how many slots values and cotangents take."""
    return 1 + int(reads[:, HOME].max())


def in_own_slots(code: np.ndarray, numbers: np.ndarray, reads: np.ndarray) -> Any:
    """Returns instructions, and their numbers, that write every value into a slot of its own.

    What works in place gets a copy first.
    """
    ops, rows = [], []
    for i, op in enumerate(code):
        target = op.copy()
        target[m.TARGET] = i
        if reads[i, READ] >= 0:
            target[m.SOURCE] = reads[i, READ]
        if op[m.CODE] == m.NONLINEAR or reads[i, JOINED] >= 0:
            first = np.zeros_like(op)
            first[[m.CODE, m.TARGET, m.LEVEL, m.LEVEL_OUT]] = m.COPY, i, *op[[m.LEVEL] * 2]
            first[m.SOURCE] = reads[i, JOINED] if reads[i, JOINED] >= 0 else reads[i, READ]
            ops.append(first)
            rows.append(np.zeros_like(numbers[i]))
        if op[m.CODE] == m.NONLINEAR:
            target[m.SOURCE] = i
        ops.append(target)
        rows.append(numbers[i])
    return np.stack(ops), np.stack(rows)


def missing_partials(activations: Activations) -> str | None:
    """Returns which activation has no partials, as a reason; None if all have."""
    for placed in activations:
        if placed is not None and placed.activation.partials is None:
            layers = ", ".join(layer.__name__ for layer in placed.activation.layers)
            return f"the fused engine has no derivatives of {layers}"
    return None
