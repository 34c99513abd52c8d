import numpy as np
import pytest

from tests.scale.stores import chunk, flip, small_store


@pytest.fixture
def filled(tmp_path):
    store = small_store(tmp_path)
    store.fill(progress=False)
    return store


def test_a_chunk_is_raw_numbers_and_a_checksum(filled):
    raw = np.fromfile(chunk(filled, 0, 1), np.float32, count=16 * 16).reshape(16, 16)
    np.testing.assert_array_equal(raw, filled.tiles["ntk"].read((0, 1)))
    edge = np.fromfile(chunk(filled, 0, 3), np.float32, count=16 * 16).reshape(16, 16)
    assert np.isnan(edge[:, 2:]).all()
    assert np.isfinite(edge[:, :2]).all()


def test_mapped_equals_read(filled):
    chunks = filled.tiles["ntk"]
    for _ in range(2):  # verified, then mapped
        np.testing.assert_array_equal(chunks.mapped((1, 3)), chunks.read((1, 3)))
    assert isinstance(chunks.mapped((1, 3)), np.memmap)


def test_a_flipped_bit_is_an_error(filled):
    flip(chunk(filled, 0, 1))
    with pytest.raises(ValueError, match=r"rows 0:16 of x1, 16:32 of x1.*damaged.*repair"):
        filled.tiles["ntk"].mapped((0, 1))
    assert not filled.tiles["ntk"].is_intact((0, 1))


@pytest.mark.parametrize("size", [0, 100])
def test_a_truncated_chunk_does_not_exist(filled, size):
    path = chunk(filled, 0, 1)
    path.write_bytes(path.read_bytes()[:size])
    chunks = filled.tiles["ntk"]
    assert not chunks.exists((0, 1))
    complete, wrong = chunks.complete()
    assert wrong == {(0, 1)}
    assert (0, 1) not in complete
    with pytest.raises(ValueError, match=r"got none of 1028 bytes"):
        chunks.read((0, 1))


def test_a_missing_chunk_is_not_read_as_nan(filled):
    chunk(filled, 1, 1).unlink()
    with pytest.raises(ValueError, match=r"got none"):
        filled.tiles["ntk"].read((1, 1))


def test_what_killed_writers_left_is_swept(filled):
    left = chunk(filled, 0, 0).with_name("0.abc.partial")
    left.write_bytes(b"x")
    chunks = filled.tiles["ntk"]
    assert chunks.sweep() == 0  # it may be at work
    import os

    os.utime(left, (0, 0))
    assert chunks.sweep() == 1
    assert chunk(filled, 0, 0).exists()


def test_the_scan_ignores_other_files(filled):
    (chunk(filled, 0, 0).parent / "7").write_bytes(b"")
    (chunk(filled, 0, 0).parent.parent / "notes").mkdir()
    complete, wrong = filled.tiles["ntk"].complete()
    assert len(complete) == 10
    assert not wrong
