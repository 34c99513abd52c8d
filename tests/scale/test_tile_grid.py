import pytest

from widelimit.scale.tile_grid import TileGrid


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("n", "size"), [(10, 3), (9, 3), (1, 4), (3, 8)])
def test_tiles_cover_the_matrix_once(n, size, symmetric):
    grid = TileGrid((n, n), size, symmetric)
    every = list(grid.all())
    assert len(every) == len(grid) == len(set(every))
    entries = sum(rows * columns for rows, columns in map(grid.shape, every))
    below = sum(rows * columns for i, j in every if i < j for rows, columns in [grid.shape((i, j))])
    assert entries + (below if symmetric else 0) == n * n
    assert all(map(grid.contains, every))


def test_tiles_of_a_block_share_samples():
    every = list(TileGrid((300, 300), 8, True).all())
    for block in (every[36:100], every[100:164]):  # after the first diagonal block
        assert len({piece for place in block for piece in place}) == 16


def test_places_outside_are_not_contained():
    grid = TileGrid((10, 20), 4, False)
    assert grid.contains((2, 4))
    assert not any(map(grid.contains, [(3, 0), (0, 5), (-1, 0)]))
    assert not TileGrid((10, 10), 4, True).contains((1, 0))


def test_words_name_the_samples():
    assert TileGrid((10, 10), 4, True).words((0, 2)) == "rows 0:4 of x1, 8:10 of x1"
    assert TileGrid((10, 6), 4, False).words((2, 1)) == "rows 8:10 of x1, 4:6 of x2"
