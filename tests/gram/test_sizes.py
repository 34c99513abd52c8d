"""Tiles fit into their budget, and cover everything once."""

import dataclasses
from typing import Any

import pytest

from widelimit.gram.sizes import choose_grid, fixed_grid, human_bytes, parse_memory


@dataclasses.dataclass
class Tiles:
    """Tiles that take 10 bytes per pair and 4 per sample."""

    counts: tuple[int, int]
    same: bool = False
    given_x2: bool = True
    target_bytes: int = 10**5
    halves: bool = False
    prepared_bytes: int = 2
    diagonal_spatial: bool = False
    check: Any = print
    outline: Any = print
    rows: Any = print
    prepare: Any = print
    tile: Any = print

    def layout(self) -> None:
        """Names of kernels tell."""

    def tile_bytes(self, n1: int, n2: int) -> int:
        return 10 * n1 * n2 + 4 * (n1 + n2)


@pytest.mark.parametrize("counts", [(1, 1), (7, 7), (50, 3), (3, 1000), (400, 401)])
@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("memory", [300, 2_000, 10**6])
def test_tiles_fit_and_cover(counts: tuple[int, int], devices: int, memory: int) -> None:
    for same in {False, counts[0] == counts[1]}:
        tiles = Tiles(counts, same)
        grid = choose_grid(tiles, memory, devices)
        rows, columns = grid.sizes
        assert rows % devices == 0
        used = tiles.tile_bytes(rows, columns) + 2 * (rows + columns)
        assert used <= min(memory, tiles.target_bytes)
        assert used + 2 * grid.spare <= memory
        for side, count in enumerate(counts):
            spans = grid.spans(side)
            assert [i for span in spans for i in range(*span)] == list(range(count))
            assert len(spans) * grid.sizes[side] - count < len(spans) * devices
        if same:
            assert rows == columns


def test_large_symmetric_problems_are_cut_further() -> None:
    assert choose_grid(Tiles((90, 90), same=True), 10**6, 1).single
    grid = choose_grid(Tiles((400, 400), same=True), 10**6, 1)
    assert len(grid.spans(0)) >= 8
    assert len(choose_grid(Tiles((180, 180), same=True, halves=True), 10**6, 1).spans(0)) == 2


def test_a_budget_below_one_entry_says_the_least() -> None:
    with pytest.raises(ValueError, match=r"memory of at least 22 bytes \(22 B\), for one entry"):
        choose_grid(Tiles((5, 5)), 21, 1)
    assert choose_grid(Tiles((5, 5)), 22, 1).sizes == (1, 1)
    with pytest.raises(ValueError, match="one entry on each of 2 devices"):
        choose_grid(Tiles((5, 5)), 22, 2)


def test_fixed_sizes() -> None:
    grid = fixed_grid(Tiles((7, 5)), 3, 2)
    assert grid.spans(0) == [(0, 4), (4, 7)]
    assert grid.spans(1) == [(0, 3), (3, 5)]


def test_memory_in_words() -> None:
    values = {"4GiB": 2**32, "4 gb": 4 * 10**9, "1.5MiB": 3 * 2**19, "8e9": 8 * 10**9, 17: 17}
    for text, value in values.items():
        assert parse_memory(text) == value
    for wrong in ("4 GiBs", "many", "", "1.2.3GB", 0, -1, float("inf"), float("nan"), "0"):
        with pytest.raises(ValueError, match="expected"):
            parse_memory(wrong)
    for wrong in (None, True, [1]):
        with pytest.raises(TypeError, match="expected memory"):
            parse_memory(wrong)
    assert [human_bytes(n) for n in (0, 1023, 1536, 2**50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "1024.0 TiB",
    ]
