"""Rectangles of positions in blocks: every pair once, and nothing beside its own place."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from widelimit.covariance.offsets import Offsets
from widelimit.engines.fused import geometry as g
from widelimit.engines.fused import instructions as m


def full(n: int) -> tuple[int, ...]:
    return tuple(range(-n + 1, n))


def places(geometry: g.Geometry, level: int) -> Any:
    """Per block, the places of all positions, with the pairs of positions that stand there."""
    _, blocks, block_levels, rect_levels = geometry.tables
    for b, block in enumerate(blocks):
        info = block_levels[b, level]
        found = {}
        for r in range(block[m.RECTS_FROM], block[m.RECTS_TO]):
            rect = rect_levels[r, level]
            for y, x in itertools.product(range(rect[m.HEIGHT]), range(info[m.WIDTH])):
                at = (rect[m.FIRST_ROW] + y) * info[m.ROW] + x
                first = rect[m.P_Y] + y, info[m.P_X] + x
                assert at not in found
                assert at < info[m.COUNT] <= geometry.length - geometry.front - geometry.back
                found[int(at)] = first, (first[0] + rect[m.D_Y], first[1] + info[m.D_X])
        yield b, found


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 16), (5, 4), (17, 3), (33, 2)])
def test_every_pair_of_positions_once(height: int, width: int) -> None:
    level = g.Level((height, width), (1, 1), (1, 2))
    geometry = g.make_geometry((level,), (full(height), full(width)))
    grid = list(itertools.product(range(height), range(width)))
    pairs = [pair for _, found in places(geometry, 0) for pair in found.values()]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == set(itertools.product(grid, grid))


def test_zeros_between_rectangles_are_as_wide_as_windows_reach() -> None:
    level = g.Level((6, 5), (1, 1), (2, 1))
    geometry = g.make_geometry((level,), (full(6), full(5)))
    for b, found in places(geometry, 0):
        row = geometry.tables[2][b, 0, m.ROW]
        for at in found:
            y, x = divmod(at, int(row))
            for dy, dx in itertools.product(range(-2, 3), range(-1, 2)):
                near = (y + dy) * row + x + dx
                if near in found:  # then it is the neighbour, of the same rectangle
                    (p, q), (other, last) = found[at], found[near]
                    assert (other[0] - p[0], other[1] - p[1]) == (dy, dx)
                    assert (last[0] - q[0], last[1] - q[1]) == (dy, dx)


def test_offset_zero_stands_alone_and_first() -> None:
    level = g.Level((4, 3), (1, 1), (1, 1))
    geometry = g.make_geometry((level,), (full(4), full(3)))
    zero = geometry.tables[1][:, m.ZERO_BLOCK]
    assert zero[0] == 1
    assert zero.sum() == 1
    rects = geometry.tables[1][0]
    assert rects[m.RECTS_TO] - rects[m.RECTS_FROM] == 1


def test_strided_levels_hold_the_offsets_that_divide() -> None:
    first = g.Level((8, 6), (1, 1), (1, 1))
    second = g.Level((4, 3), (2, 2), (0, 0))
    offsets = tuple(range(-6, 7, 2)), tuple(range(-4, 5, 2))
    geometry = g.make_geometry((first, second), offsets)
    grid = list(itertools.product(range(4), range(3)))
    pairs = [pair for _, found in places(geometry, 1) for pair in found.values()]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == set(itertools.product(grid, grid))


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("pool", [(2, 2, 0), (3, 1, 1), (2, 3, 0), (5, 2, 3), (1, 1, 0)])
def test_pools_sum_over_both_windows(size: int, pool: tuple[int, int, int]) -> None:
    window, stride, pad = pool
    out = (size + 2 * pad - window) // stride + 1
    if out < 1:
        return
    axis = g.PoolAxis(window, stride, pad)
    offsets, targets = full(size), full(out)
    k = np.random.default_rng(0).standard_normal((size, size))
    matrix = np.zeros((out, size))
    for o, tap in itertools.product(range(out), range(window)):
        position = o * stride - pad + tap
        if 0 <= position < size:
            matrix[o, position] += 1
    inner, outer = g.Line(size, False), g.Line(out, False)
    items = g.pool_items(axis, offsets, targets, (inner, outer))
    starts, runs = g.pool_runs(axis, offsets, inner, items)
    found = np.zeros((out, out))
    for i, d in enumerate(offsets):
        row = k.diagonal(d)  # the covariances at offset d, by first position
        for run in runs[starts[i] : starts[i + 1]]:
            target = targets[run[m.RUN_TARGET]]
            for step in range(run[m.RUN_COUNT]):
                source = run[m.RUN_FROM] + step * stride
                first = max(0, -target) + run[m.RUN_TO] + step
                value = row[source : source + run[m.RUN_TAPS]]
                assert len(value) == run[m.RUN_TAPS]
                found[first, first + target] += value.sum()
    np.testing.assert_allclose(found, matrix @ k @ matrix.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "pool"),
    [(6, (3, 2, 1)), (6, (6, 3, 2)), (4, (2, 1, 1)), (4, (2, 2, 0)), (1, (1, 1, 0))],
)
def test_pools_in_circular_space(size: int, pool: tuple[int, int, int]) -> None:
    window, stride, pad = pool
    inner, outer = g.Line(size, True), g.Line(size // stride, True)
    offsets, targets = tuple(range(size)), tuple(range(outer.size))
    k = np.random.default_rng(0).standard_normal((size, size))
    matrix = np.zeros((outer.size, size))
    for o, tap in itertools.product(range(outer.size), range(window)):
        matrix[o, (o * stride - pad + tap) % size] += 1
    items = g.pool_items(g.PoolAxis(*pool), offsets, targets, (inner, outer))
    starts, runs = g.pool_runs(g.PoolAxis(*pool), offsets, inner, items)
    found = np.zeros((outer.size, outer.size))
    for i, d in enumerate(offsets):
        row = np.array([k[p, (p + d) % size] for p in range(size)])
        for run in runs[starts[i] : starts[i + 1]]:
            for step in range(run[m.RUN_COUNT]):
                source = run[m.RUN_FROM] + step * stride
                first = run[m.RUN_TO] + step
                value = row[source : source + run[m.RUN_TAPS]]
                found[first, (first + targets[run[m.RUN_TARGET]]) % outer.size] += value.sum()
    np.testing.assert_allclose(found, matrix @ k @ matrix.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_stored_pairs_are_found_again(circular: bool, turned: bool) -> None:
    shape = 3, 4
    level = g.Level(shape, (1, 1), (0, 0), circular)
    offsets = tuple(tuple(range(n)) if circular else full(n) for n in shape)
    partners = Offsets.full(shape).fold(shape, shape).partners(shape)
    places, room = g.store_places(level, offsets)
    found = g.stored_pairs(level, offsets, partners, turned=turned)
    store = np.full((room, 4), -1)
    for (j, dx), (i, dy) in itertools.product(enumerate(offsets[1]), enumerate(offsets[0])):
        height, width = level.extent(dy, 0), level.extent(dx, 1)
        for y, x in itertools.product(range(height), range(width)):
            p = y + level.first(dy), x + level.first(dx)
            q = (p[0] + dy) % 3, (p[1] + dx) % 4
            store[places[j, i] + y * width + x] = *p, *q
    rows, columns = partners
    for (d, p), place in np.ndenumerate(found):
        first = p // 4, p % 4
        second = rows[d // len(columns), first[0]], columns[d % len(columns), first[1]]
        pair = (*second, *first) if turned else (*first, *second)
        assert tuple(store[place]) == tuple(map(int, pair))


def test_the_store_has_a_place_for_every_rectangle() -> None:
    offsets = (full(4), (-1, 0, 1))
    starts, total = g.store_places(g.Level((4, 3), (1, 1), (0, 0)), offsets)
    taken = np.zeros(total, int)
    for j, dx in enumerate(offsets[1]):
        for i, dy in enumerate(offsets[0]):
            area = (4 - abs(dy)) * (3 - abs(dx))
            taken[starts[j, i] : starts[j, i] + area] += 1
    assert (taken == 1).all()
