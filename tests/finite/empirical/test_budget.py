import math

import numpy as np
import pytest

from widelimit.finite.empirical.budget import Chunks, Schedule, choose_chunks

ROW = 1000


def call(group):
    return 500 * len(group), 2


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 40, 101])
@pytest.mark.parametrize("memory", [15_000, 30_000, 60_000, 200_000])
@pytest.mark.parametrize("other", [None, 3, 50])
def test_chunks_fit_and_repeat_little(rows, memory, other):
    leaves = [ROW // 4] * 4
    chunks = choose_chunks((rows, other), leaves, 1, memory, call)
    assert sorted(i for group in chunks.groups for i in group) == [0, 1, 2, 3]
    assert chunks.bytes <= memory
    assert chunks.resident % chunks.streamed == chunks.streamed % chunks.called == 0
    assert chunks.blocks * chunks.resident >= min(rows, other or rows)
    total = ROW * (rows + (other or 0))
    assert chunks.computed_at_most <= math.ceil(total / memory)


def test_what_fits_is_computed_once():
    chunks = choose_chunks((10, None), [400, 600], 1, 10**6, call)
    assert chunks.blocks == chunks.computed_at_most == len(chunks.groups) == 1


def test_parameters_are_cut_where_two_rows_do_not_fit():
    chunks = choose_chunks((8, None), [10**6] * 8, 1, 6 * 10**6, lambda g: (10**5 * len(g), 1))
    assert len(chunks.groups) > 1
    assert chunks.bytes <= 6 * 10**6
    with pytest.raises(ValueError, match="memory of at least about"):
        choose_chunks((8, None), [10**6] * 8, 1, 10**6, lambda g: (10**5 * len(g), 1))


@pytest.mark.parametrize("blocks", range(1, 8))
def test_all_pairs_of_rows_meet_once(blocks):
    rows, resident, streamed = 4 * blocks - 1, 4, 2
    chunks = Chunks(((0,),), resident, streamed, 1, blocks, 1 + blocks // 2, 0)
    schedule = Schedule.of(chunks, rows, True)
    met = np.kron(np.eye(blocks, dtype=int), np.ones((4, 4), int))
    computed = np.ones(blocks, int)
    for i in range(blocks):
        for start in schedule.starts[i, : schedule.counts[i]]:
            met[4 * i : 4 * i + 4, start : start + 2] += 1
            computed[start // 4] += start % 4 == 0
    either = np.maximum(met, met.T)[:rows, :rows]
    assert (either == 1).all()
    assert (np.kron(schedule.known, np.ones((4, 4)))[:rows, :rows] <= met[:rows, :rows]).all()
    assert computed.max() <= 1 + blocks // 2


def test_two_sets_of_rows():
    schedule = Schedule.of(Chunks(((0,),), 4, 2, 1, 3, 3, 0), 5, False)
    assert schedule.starts.tolist() == [[0, 2, 4]] * 3
    assert schedule.counts.tolist() == [3, 3, 3]
