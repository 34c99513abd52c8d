"""Plans of blocks of samples whose stored derivatives fit a memory budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from widelimit.finite.empirical.auto import multiply_adds
from widelimit.finite.empirical.budget import SPARE, USED_SHARE
from widelimit.finite.empirical.network import Network
from widelimit.finite.empirical.outputs import Output
from widelimit.finite.empirical.slot_factors import (
    SLOT,
    NetworkArguments,
    SlotFactors,
    slot_counts,
    slot_factors,
)
from widelimit.finite.empirical.structured.derivatives import Values
from widelimit.gram.liveness import live_bytes
from widelimit.gram.sizes import human_bytes
from widelimit.tracing.jaxprs import Equations, bytes_of

# One call differentiates as many samples as fit into this fraction of the budget.
_MOST_CALLED = 32
_CALLED_SHARE = 8


class Blocks(NamedTuple):
    """The blocks into which samples are cut.

    Attributes:
      traces: trace indices at a time.
      diagonals: diagonal indices at a time.
      samples: samples of a block, on both sides.
      called: samples that one call differentiates, on both sides.
      blocks: number of held blocks, one after another.
      passing: number of blocks that pass each held block; fewer if both sides are the same.
      computed_at_most: how often any block is computed, for each set of indices.
      bytes: estimated memory of all of these.
    """

    traces: int
    diagonals: int
    samples: tuple[int, int]
    called: tuple[int, int]
    blocks: int
    passing: int
    computed_at_most: int
    bytes: int


class PlannedBlocks(NamedTuple):
    """Blocks, the factors computed for them, and the cost in multiply-adds."""

    factors: SlotFactors
    blocks: Blocks
    cost: float


class _Effort(NamedTuple):
    """The cost of a function: multiply-adds, and bytes beside its arguments."""

    cost: float
    bytes: int

    @classmethod
    def of(cls, function: Callable[..., PyTree], *args: PyTree) -> _Effort:
        equations = Equations.of(function, *args)
        return cls(multiply_adds(equations), live_bytes(equations) - bytes_of(equations.inputs))


def choose_blocks(
    network: Network,
    output: Output,
    held: NetworkArguments,
    passing: NetworkArguments | None,
    memory: int,
) -> PlannedBlocks:
    """Returns the plan with the fewest operations: large blocks, or smaller ones of more slots.

    Args:
      network: the function.
      output: the output.
      held: samples whose blocks are held.
      passing: samples whose blocks pass them, at least as many; None for the same samples.
      memory: the budget in bytes.

    Raises:
      ValueError: nothing fits; the message gives a sufficient budget.
    """
    slots = slot_counts(output)
    single = _sample_bytes(slot_factors(output, held, network, (1, 1)), held)
    best: PlannedBlocks | None = None
    least = math.inf
    for samples in _halves((passing or held).size):
        block = min(samples, held.size), samples
        rows = block[0] if passing is None and samples == held.size else sum(block)
        for sizes in _divisors(*slots):
            number = math.prod(sizes)
            if number > 1 and rows * single.least(number) > USED_SHARE * memory:
                continue
            factors = slot_factors(output, held, network, sizes)
            plan = _plan(factors, slots, (held, passing), block, memory)
            least = min(least, plan.blocks.bytes)
            if plan.blocks.bytes > memory:
                continue
            if best is not None and plan.cost >= best.cost:
                return best
            best = plan
            if sizes == slots:
                return best
            break
    if best is None:
        raise ValueError(
            f"expected memory of at least about {int(least)} bytes ({human_bytes(least)}), for "
            f"the derivatives of two samples, got {memory} ({human_bytes(memory)})"
        )
    return best


class _SampleBytes(NamedTuple):
    """Bytes of the values of one sample: cotangents and others; and of values of all samples."""

    cotangents: int
    varying: int
    fixed: int

    def least(self, slots: int) -> int:
        """Returns an estimate of the bytes for this number of slots at a time."""
        return slots * self.cotangents + self.varying

    def of(self, samples: int) -> int:
        """Returns the bytes for this number of samples."""
        return samples * self.least(1) + self.fixed


def _sample_bytes(factors: SlotFactors, arguments: NetworkArguments) -> _SampleBytes:
    def size(tree: PyTree) -> int:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    return _SampleBytes(*map(size, factors.values_types(arguments, 1)))


def _plan(
    factors: SlotFactors,
    slots: tuple[int, int],
    sides: tuple[NetworkArguments, NetworkArguments | None],
    block: tuple[int, int],
    memory: int,
) -> PlannedBlocks:
    """Returns the plan for blocks of this size, whether it fits or not."""
    held, same = sides[0], sides[1] is None
    counts = held.size, (sides[1] or held).size
    number = -(-counts[0] // block[0]), -(-counts[1] // block[1])
    alone = same and number[0] == 1
    one, two = (factors.values_types(held, n) for n in block)
    tiles = [_tile(factors, one, None)] * same + [_tile(factors, one, two)] * (not alone)
    crossed = number[0] * (number[0] - 1) // 2 if same else math.prod(number)
    met = [number[0]] * same + [crossed] * (not alone)
    most = max(tile.bytes for tile in tiles)
    call, called = _call(factors, held, block, max(memory // _CALLED_SHARE, most))
    values = sum(_sample_bytes(factors, held).of(n) for n in (block[:1] if alone else block))
    bytes_ = int((values + SPARE * max(call.bytes, most)) / USED_SHARE)
    cost = (block[0] * number[0] + crossed * block[1]) * call.cost
    cost += sum(n * tile.cost for n, tile in zip(met, tiles, strict=True))
    traces, diagonals = factors.shape[:2]
    rounds = slots[0] // traces * (slots[1] // diagonals)
    often = 1 if alone else number[0]
    blocks = Blocks(traces, diagonals, block, called, *number, often, bytes_)
    return PlannedBlocks(factors, blocks, rounds * cost)


def _tile(factors: SlotFactors, first: Values, second: Values | None) -> _Effort:
    """Returns the cost of the kernel of two blocks, parameter by parameter."""
    parts = [
        _Effort.of(lambda a, b, leaf=leaf: factors.kernel(leaf, a, b), first, second)
        for leaf in factors.factors.uses
    ]
    return _Effort(
        sum((w.cost for w in parts), start=0.0), max((w.bytes for w in parts), default=0)
    )


def _call(
    factors: SlotFactors, arguments: NetworkArguments, block: tuple[int, int], room: int
) -> tuple[_Effort, tuple[int, int]]:
    """Returns the cost per sample and the bytes of calls that fit, and their numbers of samples.

    Args:
      factors: the factors to compute.
      arguments: samples.
      block: samples of the blocks of both sides, which calls fill.
      room: budget of a call in bytes.
    """
    one, two = (_Effort.of(factors.values, arguments.of_samples(n), SLOT) for n in (1, 2))
    more = max(two.bytes - one.bytes, 1)
    most = max(1, min(_MOST_CALLED, 1 + (room - one.bytes) // more))
    called = _even(block[0], most), _even(block[1], most)
    return _Effort(two.cost / 2, one.bytes + (max(called) - 1) * more), called


def _halves(count: int) -> Iterator[int]:
    """Yields the sizes of 1, 2, 4, ... equal parts, down to 1."""
    parts = 1
    while True:
        yield -(-count // parts)
        if parts >= count:
            return
        parts *= 2


def _divisors(traces: int, diagonals: int) -> Iterator[tuple[int, int]]:
    """Yields decreasing numbers of trace and diagonal indices to compute at a time."""
    for size in range(traces, 0, -1):
        if traces % size == 0:
            yield size, diagonals
    for size in range(diagonals - 1, 0, -1):
        if diagonals % size == 0:
            yield 1, size


def _even(count: int, most: int) -> int:
    """Returns the size of the fewest equal parts of at most `most`."""
    return -(-count // -(-count // most))
