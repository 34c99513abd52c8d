"""Plans of chunks of a Jacobian that fit a memory budget.

Rows of a Jacobian are derivatives of single outputs of single samples. Some rows are resident while
others stream past them a few at a time; each pair of rows meets once. If not even a few rows fit,
parameters are cut into groups, whose kernels are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from widelimit.gram.sizes import human_bytes

# The memory of a call is estimated from its trace, and may be higher; compiled programs and gaps
# between arrays take memory as well.
SPARE = 1.25
USED_SHARE = 13 / 16
# Products of fewer rows are slow; products of more are not faster.
_MOST_STREAMED = 32
_STREAMED_SHARE = 3


class Chunks(NamedTuple):
    """The chunks into which the Jacobians of two sets of rows are cut.

    Attributes:
      groups: indices of the parameters of each group.
      resident: rows that are held.
      streamed: rows that meet them at a time.
      called: rows that one call computes.
      blocks: number of sets of resident rows, one after another.
      computed_at_most: how often any block of the Jacobian is computed.
      bytes: estimated memory of all of these.
    """

    groups: tuple[tuple[int, ...], ...]
    resident: int
    streamed: int
    called: int
    blocks: int
    computed_at_most: int
    bytes: int


def choose_chunks(
    rows: tuple[int, int | None],
    leaf_bytes: Sequence[int],
    slots: int,
    memory: int,
    call: Callable[[tuple[int, ...]], tuple[int, int]],
) -> Chunks:
    """Returns the chunks that fit with the fewest computations; groups of parameters come last.

    Args:
      rows: number of rows of both sides; None for the second if it is the first.
      leaf_bytes: bytes of a row for each parameter.
      slots: number of separate contractions of these rows, one for each index of trace and diagonal
        axes.
      memory: the budget in bytes.
      call: function from a group of parameters to the bytes of one call and its number of rows.

    Raises:
      ValueError: nothing fits; the message gives a sufficient budget.
    """
    total = sum(leaf_bytes) * slots * (rows[0] + (rows[1] or 0))
    limit = max(math.ceil(total / memory), 1)
    plans: list[Chunks] = []
    least = math.inf
    count = 1
    while True:
        groups = _grouped(leaf_bytes, count)
        heaviest = max(groups, key=lambda group: sum(leaf_bytes[i] for i in group))
        row = max(sum(leaf_bytes[i] for i in heaviest), 1)
        work, called = call(heaviest)
        # Products of rows with s others slice out and copy s rows of a leaf.
        leaf = max(leaf_bytes[i] for i in heaviest)
        fixed = Fixed(row, 2 * leaf, int(SPARE * work), called)
        least = min(least, (fixed.work + 2 * row + 2 * leaf) / USED_SHARE)
        chunks = _cut(rows, groups, fixed, int(USED_SHARE * memory))
        if chunks is not None:
            plans.append(chunks)
            if chunks.computed_at_most <= limit:
                return chunks
        if len(groups) < count or count >= len(leaf_bytes):
            break
        count = min(2 * count, len(leaf_bytes))
    if not plans:
        raise ValueError(
            f"expected memory of at least about {int(least)} bytes ({human_bytes(least)}), for "
            f"two rows of the Jacobian, got {memory} ({human_bytes(memory)})"
        )
    return min(plans, key=lambda c: c.computed_at_most)


class Fixed(NamedTuple):
    """Sizes that do not depend on how rows are cut.

    Attributes:
      row: bytes of a row of the largest group.
      product: bytes of a product per streamed row.
      work: bytes of a call.
      called: rows that a call computes.
    """

    row: int
    product: int
    work: int
    called: int


def _cut(
    rows: tuple[int, int | None], groups: tuple[tuple[int, ...], ...], fixed: Fixed, memory: int
) -> Chunks | None:
    """Returns the chunks for these groups of parameters, None if they do not fit."""
    held, other = (rows[0], None) if rows[1] is None else sorted((rows[0], rows[1]))
    room = memory - fixed.work
    most = min(
        _MOST_STREAMED, room // _STREAMED_SHARE // (fixed.row + fixed.product), other or held
    )
    most = max(1, most)
    called = min(fixed.called, most)
    plans = []
    for streamed in range(called, most + 1, called):
        used = _streaming(held, other is None, room, streamed, fixed)
        if used is None:
            continue
        resident, blocks, size = used
        often = 1 if blocks == 1 and other is None else 1 + blocks // 2 if other is None else blocks
        plans.append(Chunks(groups, resident, streamed, called, blocks, often, fixed.work + size))
    return min(plans, key=_effort, default=None)


def _effort(chunks: Chunks) -> float:
    """Returns a rough estimate of the time: products of few rows are slow."""
    return (1 + chunks.blocks) * (1 + 4 / chunks.streamed)


def _streaming(
    held: int, same: bool, room: int, streamed: int, fixed: Fixed
) -> tuple[int, int, int] | None:
    """Returns resident rows, blocks and bytes for `streamed` rows, or None if nothing fits."""
    row, product = fixed.row, streamed * fixed.product
    whole = _up(held, streamed)
    if same and whole * row + product <= room:
        return whole, 1, whole * row + product
    most = (room - streamed * row - product) // row // streamed * streamed
    if most < 1:
        return None
    resident = _up(-(-held // -(-held // most)), streamed)
    return resident, -(-held // resident), (resident + streamed) * row + product


def _grouped(leaf_bytes: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """Returns at most `count` groups of neighbouring leaves of similar size."""
    goal = sum(leaf_bytes) / count
    groups: list[list[int]] = [[]]
    size = 0.0
    for i, leaf in enumerate(leaf_bytes):
        if groups[-1] and size + leaf / 2 > goal and len(groups) < count:
            groups.append([])
            size = 0.0
        groups[-1].append(i)
        size += leaf
    return tuple(map(tuple, groups))


def _up(count: int, step: int) -> int:
    """Returns the next multiple of a step, at least one."""
    return max(-(-count // step), 1) * step


class Schedule(NamedTuple):
    """The order in which rows stream past resident ones.

    Attributes:
      starts: array [blocks, most], the first streamed row of every chunk.
      counts: number of chunks of each block.
      known: bools [blocks, blocks], whether a block of the kernel of rows with themselves is
        computed and not mirrored; None for two sets of rows.
    """

    starts: np.ndarray
    counts: np.ndarray
    known: np.ndarray | None

    @classmethod
    def of(cls, chunks: Chunks, rows: int, same: bool) -> Schedule:
        """Returns the schedule; for rows with themselves each pair of blocks meets once.

        Args:
          chunks: the chunks of rows.
          rows: number of streamed rows.
          same: whether the resident rows are the same.
        """
        if not same:
            starts = np.arange(0, max(rows, 1), chunks.streamed, dtype=np.int32)
            counts = np.full(chunks.blocks, len(starts), np.int32)
            return cls(np.tile(starts, (chunks.blocks, 1)), counts, None)
        known = np.eye(chunks.blocks, dtype=bool)
        rows_of: list[list[int]] = []
        for i in range(chunks.blocks):
            # In circular order, so that all blocks are computed equally often.
            others = [(i + step) % chunks.blocks for step in range(1, chunks.blocks // 2 + 1)]
            others = [j for j in others if not known[j, i]]
            known[i, others] = True
            spans = [range(j * chunks.resident, (j + 1) * chunks.resident) for j in others]
            rows_of.append([s for span in spans for s in span[:: chunks.streamed] if s < rows])
        most = max(1, *map(len, rows_of))
        starts = np.array([s + [0] * (most - len(s)) for s in rows_of], np.int32)
        return cls(
            starts.reshape(chunks.blocks, most), np.array([*map(len, rows_of)], np.int32), known
        )
