import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.scale.stores import chunk, inputs, net, overflowing_store, small_store
from widelimit import scale
from widelimit.engines.choose import Choice
from widelimit.scale import fill as filling
from widelimit.scale.maker import TileMaker
from widelimit.scale.stored_tiles import StoredTiles


def test_a_second_fill_computes_what_is_missing(tmp_path):
    store = small_store(tmp_path)
    calls = []
    assert store.fill(progress=False, stop=lambda: len(calls.append(0) or calls) == 3).left == 7
    chunk(store, 0, 0).unlink()
    report = small_store(tmp_path).fill(progress=False)
    assert report[:4] == (8, 2, 0, 0)


@pytest.mark.parametrize("size", [0, 10])
def test_wrong_sizes_are_computed_again(tmp_path, size):
    store = small_store(tmp_path)
    store.fill(progress=False)
    before = chunk(store, 1, 2).read_bytes()
    chunk(store, 1, 2).write_bytes(before[:size])
    assert store.fill(progress=False)[:4] == (1, 9, 1, 0)
    assert chunk(store, 1, 2).read_bytes() == before


def test_one_kernel_of_two_may_be_missing(tmp_path):
    store = small_store(tmp_path, get=("nngp", "ntk"))
    store.fill(progress=False)
    chunk(store, 0, 1, "nngp").unlink()
    assert store.fill(progress=False)[:2] == (1, 9)


def test_kernels_that_are_not_finite_are_not_written(tmp_path):
    store = overflowing_store(tmp_path)
    with pytest.raises(ValueError, match=r"finite kernels, got others in 4 of 10 tiles.*16:32"):
        store.fill(progress=False)
    assert store.plan.done == 6
    assert not chunk(store, 1, 1).exists()


def test_a_full_disk_stops_and_loses_nothing(tmp_path, monkeypatch):
    store = small_store(tmp_path)
    write, left = StoredTiles.write, [3]

    def limited(self, place, tile):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        write(self, place, tile)

    monkeypatch.setattr(StoredTiles, "write", limited)
    with pytest.raises(OSError, match=r"no space for a tile of 1028 bytes .*store.fill\(\)"):
        store.fill(progress=False)
    left[0] = 100
    assert store.fill(progress=False)[:2] == (7, 3)


@pytest.mark.skipif(
    not os.environ.get("WIDELIMIT_SMALL_DISK"),
    reason="needs a folder on a file system with 1 MB, in WIDELIMIT_SMALL_DISK",
)
def test_a_disk_that_is_full():
    folder = Path(os.environ["WIDELIMIT_SMALL_DISK"])
    store = scale.gram(net(), inputs(2000), store=folder / "k.zarr", tile=100)
    assert not store.plan.fits
    with pytest.raises(OSError, match=r"no space"):
        store.fill(progress=False)
    done = store.plan.done
    assert 0 < done < 210
    assert len(store.verify(progress=False).damaged) == 0


def test_an_interrupt_says_how_far_it_came(tmp_path, monkeypatch):
    store = small_store(tmp_path)
    tile, left = TileMaker.tile, [4]

    def interrupted(self, place):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return tile(self, place)

    monkeypatch.setattr(TileMaker, "tile", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"has 4 of 10 tiles, which are kept"):
        store.fill(progress=False)


def test_two_drivers_do_the_work_once(tmp_path):
    """The second driver starts while the first is at it: tiles are written once."""
    first, second = small_store(tmp_path), small_store(tmp_path)
    reports = []

    def meanwhile() -> bool:
        if not reports:
            reports.append(None)
            reports[0] = second.fill(progress=False)
        return False

    report = first.fill(progress=False, stop=meanwhile)
    assert report[:3] == (1, 9, 0)
    assert reports[0][:2] == (9, 1)


def test_the_scan_of_many_tiles_reads_names_alone(tmp_path, monkeypatch):
    store = small_store(tmp_path, tile=1)
    for i in range(50):
        for j in range(i, 50):
            path = chunk(store, i, j)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(8))
    monkeypatch.setattr(StoredTiles, "read", None)
    complete, wrong = filling.scan(store.tiles.values())
    assert (len(complete), wrong) == (1275, set())


def test_the_log_tells_what_happened(tmp_path):
    store = small_store(tmp_path)
    store.fill(progress=False)
    lines = (Path(store.path) / "log.jsonl").read_text().splitlines()
    assert len(lines) == 10
    assert '"event": "tile", "place": [0, 0], "state": "done"' in lines[0]


def test_a_store_that_was_replaced_is_not_mixed_with_another(tmp_path):
    old = small_store(tmp_path)
    old.fill(progress=False)
    shutil.rmtree(old.path)
    with pytest.raises(ValueError, match=r"expected the store with the fingerprint .*got none"):
        old.fill(progress=False)
    new = scale.gram(net(), inputs(seed=1), store=old.path, tile=16)
    with pytest.raises(ValueError, match=r"got one with .*moved, removed or replaced"):
        old.fill(progress=False)
    new.fill(progress=False)
    expected = net().kernel_fn(inputs(seed=1), None, "ntk")
    np.testing.assert_array_equal(new.export(tmp_path / "new.npy"), expected)


def test_another_engine_does_not_go_on(tmp_path, monkeypatch):
    store = small_store(tmp_path)
    choice = Choice("reference", "numba is not installed")
    monkeypatch.setattr("widelimit.scale.maker.choose_engine", lambda *_: choice)
    with pytest.raises(ValueError, match=r"engine 'fused', which began this store.*numba"):
        store.fill(progress=False)
