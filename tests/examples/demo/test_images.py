"""Infinite networks on small images: kernels by tiles, splits, standard errors, what is shown."""

import numpy as np
import pytest

from examples.demo import figures, images, report
from examples.demo.datasets import LabelledImages
from examples.demo.images import (
    BAYES,
    DESCENT,
    Accuracy,
    ImagesResult,
    ImagesTask,
    chosen_ridge,
    compare_networks,
    image_networks,
    kernels,
    prepared,
)
from widelimit import stax

TASK = ImagesTask(images=45, side=4, splits=5)


@pytest.fixture(scope="module")
def bars():
    """Two classes of 8 x 8 images: a bright row or a bright column anywhere."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1], 30))
    pictures = 0.3 * rng.normal(size=(60, 8, 8))
    for picture, label, place in zip(pictures, labels, rng.integers(8, size=60), strict=True):
        (picture.T if label else picture)[place] += 2
    return LabelledImages("bars", pictures, labels, pictures[:1], labels[:1])


def small_networks():
    """Two networks that compile quickly, the fully-connected one first."""
    dense = stax.Dense(1, 1.4, 0.1)
    conv = stax.Conv(1, (3, 3), None, "SAME", 1.4, 0.1)
    flat = stax.serial(stax.Flatten(), stax.Dense(1, 1.4, 0.1), stax.Relu(), dense)
    return {"dense": flat, "conv": stax.serial(conv, stax.Relu(), stax.GlobalAvgPool(), dense)}


@pytest.fixture(scope="module")
def done():
    return []


@pytest.fixture(scope="module")
def result(bars, done):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "image_networks", small_networks)
        result = compare_networks(bars, TASK, seed=1, progress=done.append)
        assert sum(done) == TASK.work(60)
    return result


def test_accuracies(result):
    names = [(row.network, row.inference) for row in result.rows]
    assert names == [(n, i) for n in ("dense", "conv") for i in (BAYES, DESCENT)]
    assert (result.train, result.test, result.block, result.shape) == (36, 9, 2, (8, 8))
    assert all(row.fraction.shape == (5,) for row in result.rows)
    assert all(row.fraction.mean() > 0.9 for row in result.rows)


def test_differences_are_paired():
    rows = [
        Accuracy(name, inference, np.array(fraction))
        for name, inference, fraction in (
            ("first", BAYES, [0.1, 0.5, 0.9]),
            ("first", DESCENT, [0.0, 0.0, 0.0]),
            ("second", BAYES, [0.2, 0.6, 1.0]),
            ("second", DESCENT, [0.1, 0.2, 0.3]),
        )
    ]
    result = ImagesResult("some", 2, (8, 8), 1, train=200, test=100, rows=rows)
    np.testing.assert_allclose(result.difference(rows[0]), 0)
    np.testing.assert_allclose(result.difference(rows[2]), (0.1, 0), atol=1e-12)
    np.testing.assert_allclose(result.difference(rows[3]), (0.2, 0.1 * np.sqrt(1 / 3 + 1 / 2)))
    lines = report.images_text(result).splitlines()
    assert lines[0].startswith("some: 2 classes, images of 8 x 8 pixels; 3 splits of 300 images")
    assert lines[3].split() == ["first", "Bayesian", "50.0", "+-", "36.5"]
    assert lines[5].endswith("+10.0 +- 0.0")
    assert lines[-1].endswith("two standard errors: none")
    same = ImagesResult("some", 2, (8, 8), 1, 200, 100, [*rows[:3], rows[1]._replace(network="x")])
    assert report.images_text(same).endswith("two standard errors: x (gradient descent)")


def test_shown(result, tmp_path):
    text = report.images_text(result)
    assert "8 x 8 pixels, averaged over 2 x 2; 5 splits of 45 images into 36" in text
    assert "minus dense" in text
    path = figures.images_figure(result, tmp_path / "images.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_tiles_do_not_show(monkeypatch):
    x = np.random.default_rng(0).normal(size=(7, 3, 3, 1))
    net = small_networks()["conv"]
    monkeypatch.setattr(images, "_ENTRIES_AT_ONCE", 9 * 81)
    steps = []
    tiled = kernels(net, x, steps.append)
    assert steps == [3, 3, 1]
    for kernel, whole in zip(tiled, net.kernel_fn(x, None, ("nngp", "ntk")), strict=True):
        np.testing.assert_allclose(kernel, whole, rtol=1e-5)
        np.testing.assert_array_equal(kernel, kernel.T)


def test_prepared():
    x = np.arange(2 * 5 * 7 * 3).reshape(2, 5, 7, 3)
    y, block = prepared(x, 4)
    assert (y.shape, block) == ((2, 2, 3, 3), 2)
    np.testing.assert_allclose(y.mean(axis=(1, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(np.mean(y**2, axis=(1, 2, 3)), 1)
    np.testing.assert_allclose(np.diff(y[0, 0, :, 0]), np.diff(y[0, 0, :, 1]))
    flat, block = prepared(np.ones((2, 4, 4), np.uint8), 4)
    assert block == 1
    np.testing.assert_array_equal(flat, np.zeros((2, 4, 4, 1)))


def test_ridge_is_that_of_leaving_one_out():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 2)), rng.normal(size=(12, 1))
    kernel = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1))
    ridges = (1e-3, 1e-1, 1.0)

    def error(ridge):
        total = 0
        for i in range(12):
            k = np.delete(np.arange(12), i)
            weights = np.linalg.solve(kernel[np.ix_(k, k)] + ridge * np.eye(11), y[k])
            total += ((kernel[i, k] @ weights - y[i]) ** 2).item()
        return total

    assert chosen_ridge(kernel, y, ridges) == min(ridges, key=error)
    assert chosen_ridge(kernel, kernel @ y, ridges) == 1e-3


@pytest.mark.parametrize("size", [8, 9])
def test_networks_fit_images(size):
    names = list(image_networks())
    assert names[0] == "fully connected"
    for net in image_networks().values():
        assert net.output_shape((2, size, size, 3)) == (2, 1)


@pytest.mark.parametrize("shape", [(60, 64), (9, 8, 8)])
def test_what_is_no_image(shape):
    labels = np.arange(shape[0]) % 2
    data = LabelledImages("bad", np.zeros(shape), labels, np.zeros(shape), labels)
    with pytest.raises(ValueError, match=r"expected images \[n, height"):
        compare_networks(data, TASK)
