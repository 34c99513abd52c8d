"""Data sets: every format round-trips, and what is malformed is refused with a reason."""

import pickle

import numpy as np
import pytest

from examples.demo import datasets
from examples.demo.datasets import LabelledImages


@pytest.fixture
def cifar() -> LabelledImages:
    """Random images in the shape of CIFAR-10."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 30)
    return LabelledImages("CIFAR-10", images[:20], labels[:20], images[20:], labels[20:])


def batches(data):
    """File stems of the distributions of CIFAR-10, with their images as planes and their labels."""
    for stem, x, y in (
        ("data_batch_1", data.x_train[:10], data.y_train[:10]),
        ("data_batch_2", data.x_train[10:], data.y_train[10:]),
        ("test_batch", data.x_test, data.y_test),
    ):
        yield stem, x.transpose(0, 3, 1, 2).reshape(len(x), -1), y


def assert_same(a, b):
    for part in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
        assert getattr(a, part).dtype == getattr(b, part).dtype


def write_python(folder, data, **changes):
    for stem, planes, labels in batches(data):
        batch = {b"data": planes, b"labels": labels.tolist(), b"batch_label": b"one"} | changes
        (folder / stem).write_bytes(pickle.dumps(batch, protocol=2))


def test_npz_round_trip(tmp_path, cifar):
    path = tmp_path / "images.npz"
    np.savez(
        path,
        x_train=cifar.x_train,
        y_train=cifar.y_train.astype(np.uint8),
        x_test=cifar.x_test,
        y_test=cifar.y_test,
    )
    loaded = datasets.load_images(path)
    assert_same(loaded, cifar)
    assert loaded.name == "images"


def test_binary_round_trip(tmp_path, cifar):
    for stem, planes, labels in batches(cifar):
        np.column_stack([labels.astype(np.uint8), planes]).tofile(tmp_path / f"{stem}.bin")
    assert_same(datasets.load_images(tmp_path), cifar)


def test_python_round_trip(tmp_path, cifar):
    write_python(tmp_path, cifar)
    assert_same(datasets.load_images(tmp_path), cifar)


def test_python_with_text_keys(tmp_path, cifar):
    for stem, planes, labels in batches(cifar):
        batch = {"data": planes, "labels": labels.tolist()}
        (tmp_path / stem).write_bytes(pickle.dumps(batch))
    assert_same(datasets.load_images(tmp_path), cifar)


def test_colour_planes():
    planes = np.repeat([[1, 2, 3]], 1024, axis=1).astype(np.uint8)
    planes[0, 1] = 9  # red, first row, second column
    image = datasets._planes_to_images(planes)[0]
    np.testing.assert_array_equal(image[0, 1], [9, 2, 3])
    np.testing.assert_array_equal(image[1, 0], [1, 2, 3])


def test_digits():
    data = datasets.load_images(seed=3)
    assert data.x_train.shape[1:] == (8, 8, 1)
    assert len(data.x_train) + len(data.x_test) == 1797
    assert data.classes == 10
    assert_same(data, datasets.load_digits(seed=3))
    assert not np.array_equal(data.y_test, datasets.load_digits(seed=4).y_test)


def test_subset_keeps_pairs(cifar):
    tagged = LabelledImages(
        "tagged", cifar.y_train[:, None] + 0.0, cifar.y_train, cifar.y_test[:, None], cifar.y_test
    )
    part = datasets.subset(tagged, 7, 100)
    assert part.x_train.shape == (7, 1)
    np.testing.assert_array_equal(part.x_train[:, 0], part.y_train)
    assert part.x_test is tagged.x_test


def test_standardised(cifar):
    data = datasets.standardised(cifar)
    assert data.x_train.shape == (20, 3072)
    np.testing.assert_allclose(data.x_train.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.mean(data.x_train**2), 1)
    # The test images move with the training images, not by their own mean.
    gap = data.x_test[0] - data.x_train[0]
    raw = cifar.x_test[0].reshape(-1) - cifar.x_train[0].reshape(-1).astype(float)
    np.testing.assert_allclose(gap / raw.clip(1), raw / raw.clip(1) * (gap[5] / raw[5]))


def test_standardised_needs_differences(cifar):
    same = LabelledImages("same", np.ones((4, 2)), np.arange(4), np.ones((1, 2)), np.zeros(1, int))
    with pytest.raises(ValueError, match="differ"):
        datasets.standardised(same)


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        datasets.load_images(tmp_path / "nothing.npz")


@pytest.mark.parametrize("name", ["images.csv", "folder"])
def test_unknown_format(tmp_path, name):
    path = tmp_path / name
    if path.suffix:
        path.write_text("1,2")
    else:
        path.mkdir()
    with pytest.raises(ValueError, match=r"expected an \.npz file .* got .*" + name):
        datasets.load_images(path)


def test_npz_refuses_pickles(tmp_path, cifar):
    path = tmp_path / "images.npz"
    objects = np.array([print], dtype=object)
    np.savez(path, x_train=objects, y_train=objects, x_test=objects, y_test=objects)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        datasets.load_images(path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_npz_broken(tmp_path, content):
    path = tmp_path / "images.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*images\.npz"):
        datasets.load_images(path)


def test_npz_single_array(tmp_path):
    path = tmp_path / "images.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="single array"):
        datasets.load_images(path)


def test_npz_missing_array(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, x_train=np.zeros((2, 2)), labels=np.zeros(2))
    with pytest.raises(ValueError, match=r"expected arrays .*y_test, got x_train, labels"):
        datasets.load_images(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": np.zeros(3, int)}, "label .* each of the 4 images in the training set"),
        ({"y_test": np.zeros(2)}, "one integer label"),
        ({"y_test": np.array([0, -1])}, "one integer label from 0"),
        ({"x_train": np.zeros(4)}, r"images \[n, ...\]"),
        ({"x_train": np.full((4, 3), "a")}, "of numbers"),
        ({"x_test": np.full((2, 3), np.nan)}, "finite"),
        ({"x_test": np.zeros((2, 5))}, "of one shape"),
        ({"x_test": np.zeros((0, 3)), "y_test": np.zeros(0, int)}, "of numbers"),
    ],
)
def test_npz_wrong_arrays(tmp_path, changes, message):
    path = tmp_path / "images.npz"
    arrays = {
        "x_train": np.zeros((4, 3)),
        "y_train": np.zeros(4, int),
        "x_test": np.zeros((2, 3)),
        "y_test": np.zeros(2, int),
    }
    np.savez(path, **(arrays | changes))
    with pytest.raises(ValueError, match=message):
        datasets.load_images(path)


@pytest.mark.parametrize("suffix", ["", ".bin"])
def test_cifar_without_training_batches(tmp_path, suffix):
    (tmp_path / f"test_batch{suffix}").write_bytes(b"")
    with pytest.raises(ValueError, match="data_batch_"):
        datasets.load_images(tmp_path)


@pytest.mark.parametrize("size", [0, 3072, 3073 * 2 + 1])
def test_binary_of_wrong_size(tmp_path, size):
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"got {size} bytes"):
        datasets.load_images(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({b"data": np.zeros((4, 9), np.uint8)}, r"uint8 array of shape \[n, 3072\]"),
        ({b"data": np.zeros((4, 3072))}, "uint8 array"),
        ({b"data": [1, 2]}, "uint8 array"),
        ({b"labels": [b"cat"]}, "list of integers"),
        ({b"labels": 3}, "list of integers"),
        ({b"labels": [1]}, "one integer label"),
    ],
)
def test_python_with_wrong_contents(tmp_path, cifar, changes, message):
    for stem, planes, labels in batches(cifar):
        batch = {b"data": planes, b"labels": labels.tolist()} | changes
        (tmp_path / stem).write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=message):
        datasets.load_images(tmp_path)


def test_python_batch_is_no_dictionary(tmp_path):
    for stem in ("data_batch_1", "test_batch"):
        (tmp_path / stem).write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="expected a dictionary"):
        datasets.load_images(tmp_path)
