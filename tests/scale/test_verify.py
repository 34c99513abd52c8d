import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.scale.stores import chunk, flip, inputs, net, small_store


def test_damage_of_every_kind_is_found_and_repaired(tmp_path):
    store = small_store(tmp_path)
    store.fill(progress=False)
    assert store.verify(progress=False) == (10, (), ())
    before = store.export(tmp_path / "before.npy")
    flip(chunk(store, 0, 1))
    flip(chunk(store, 3, 3), byte=-1)
    chunk(store, 1, 2).write_bytes(b"")
    chunk(store, 2, 2).write_bytes(chunk(store, 2, 2).read_bytes()[:-1])
    chunk(store, 1, 3).unlink()
    report = store.verify(progress=False)
    assert report.intact == 5
    assert report.missing == ((1, 3),)
    assert set(report.damaged) == {(0, 1), (1, 2), (2, 2), (3, 3)}
    assert not report
    assert store.repair(progress=False)[:4] == (5, 5, 4, 0)
    assert store.verify(progress=False)
    np.testing.assert_array_equal(before, store.export(tmp_path / "after.npy"))
    np.testing.assert_array_equal(before, net().kernel_fn(inputs(), None, "ntk"))


def test_damage_of_one_kernel_of_two(tmp_path):
    store = small_store(tmp_path, get=("nngp", "ntk"))
    store.fill(progress=False)
    flip(chunk(store, 0, 1, "nngp"))
    assert store.verify(progress=False).damaged == ((0, 1),)
    assert store.repair(progress=False).recomputed == 1
    assert store.verify(progress=False)


def test_damaged_inputs_are_not_computed_with(tmp_path):
    store = small_store(tmp_path)
    path = Path(store.path) / "x1" / "c" / "0" / "0"
    flip(path)
    with pytest.raises(ValueError, match=r"crc32c|checksum"):
        store.fill(progress=False)


def test_a_store_can_be_moved(tmp_path):
    from widelimit import scale

    store = small_store(tmp_path)
    store.fill(progress=False)
    shutil.move(store.path, tmp_path / "other.zarr")
    assert scale.open_store(tmp_path / "other.zarr").verify(progress=False)
