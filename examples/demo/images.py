"""Which infinite network suits images: fully connected, convolutional or residual.

Each kernel is computed once, between all images; every split into training and test images is then
a selection of its rows and columns, and a solve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.demo.datasets import LabelledImages, subset
from widelimit import predict, stax
from widelimit.engines.inputs import working_dtype
from widelimit.engines.plan_table import plan

Array = NDArray[np.floating]
Progress = Callable[[int], object]

BAYES, DESCENT = "Bayesian", "gradient descent"
# Covariance entries computed at once: a few arrays of them fit the caches of a processor.
_ENTRIES_AT_ONCE = 2**20
_RELU_STD = math.sqrt(2.0)


@dataclass(frozen=True)
class ImagesTask:
    """How many images, in which form, and how they are split.

    Attributes:
      images: at most so many training images are used; no test image is.
      side: larger images are averaged over blocks of pixels until no side is longer.
      splits: parts of equal size, each of which is the test set once.
      ridges: candidates for what is added to the diagonal, in units of its mean.
    """

    images: int = 1000
    side: int = 16
    splits: int = 10
    ridges: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)

    def used(self, available: int) -> int:
        """How many of the available images are used."""
        return min(self.images, available) // self.splits * self.splits

    def work(self, available: int) -> int:
        """The sum of what `compare_networks` passes to its `progress`."""
        return len(image_networks()) * self.used(available)


class Accuracy(NamedTuple):
    """How one network did.

    Attributes:
      network: its name.
      inference: how it was conditioned on the training images.
      fraction: fraction [splits] of the test images with the right class.
    """

    network: str
    inference: str
    fraction: Array


@dataclass(frozen=True)
class ImagesResult:
    """Everything that the figure and the table of the comparison show.

    Attributes:
      name: what the data are called.
      classes: number of classes.
      shape: height, width and channels of the images as they were.
      block: sides of the blocks of pixels over which they were averaged.
      train, test: number of images in the two parts of each split.
      rows: accuracies, network by network.
    """

    name: str
    classes: int
    shape: tuple[int, ...]
    block: int
    train: int
    test: int
    rows: list[Accuracy]

    def standard_error(self, values: Array) -> float:
        r"""The standard error of the mean of one value for each split.

        Training sets overlap, so values vary less over splits than over new images. With J splits
        and s their standard deviation it is taken as :math:`s \sqrt{1/J + test/train}`; see Nadeau
        and Bengio, Inference for the Generalization Error, Machine Learning 52 (2003).
        """
        return float(values.std(ddof=1) * np.sqrt(1 / len(values) + self.test / self.train))

    def difference(self, row: Accuracy) -> tuple[float, float]:
        """Accuracy minus that of the first network, inference alike, with its standard error.

        The splits are the same for all networks: what makes one of them hard cancels.
        """
        first = next(other for other in self.rows if other.inference == row.inference)
        apart = row.fraction - first.fraction
        return float(apart.mean()), self.standard_error(apart)


def image_networks() -> dict[str, Any]:
    """Infinite ReLU networks by name, the fully-connected one first.

    All have weights of standard deviation sqrt(2), biases of 0.1, windows of 3 x 3 and two strides
    of 2. Strides come early before global pooling, which needs all pairs of positions: of those of
    the input only pairs a multiple of 4 apart are left.
    """
    dense, relu = stax.Dense(1, _RELU_STD, 0.1), stax.Relu()
    strides = (1, 1, 2, 1, 2, 1)
    deep = [layer for stride in strides for layer in (_conv(stride), relu)]
    early = [layer for stride in (2, 2, 1) for layer in (_conv(stride), relu)]
    blocks = [_conv(2), _block(2), _block(1), relu]
    return {
        "fully connected": stax.serial(stax.Flatten(), *[dense, relu] * 3, dense),
        "convolutional": stax.serial(*deep, stax.Flatten(), dense),
        "convolutional, global pooling": stax.serial(*early, stax.GlobalAvgPool(), dense),
        "wide residual, global pooling": stax.serial(*blocks, stax.GlobalAvgPool(), dense),
    }


def _conv(stride: int = 1) -> Any:
    """A convolution with a window of 3 x 3."""
    return stax.Conv(1, (3, 3), (stride, stride), "SAME", _RELU_STD, 0.1)


def _block(stride: int) -> Any:
    """A residual block; its shortcut is a convolution, so that it may change the size."""
    main = stax.serial(stax.Relu(), _conv(stride), stax.Relu(), _conv())
    return stax.serial(stax.FanOut(2), stax.parallel(main, _conv(stride)), stax.FanInSum())


def compare_networks(
    data: LabelledImages,
    task: ImagesTask,
    *,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> ImagesResult:
    """The accuracy of each network of `image_networks`, by both kinds of inference.

    Some training images are drawn and split into equal parts at random. Each part is the test set
    once, and the rest is trained on: one-hot vectors minus 1 / classes are regressed on, and the
    largest output is the class. Bayesian inference uses the NNGP kernel, gradient descent the NTK,
    at infinite time and from outputs of mean zero. The ridge of each fit has the least squared
    error when one training image at a time is left out.

    Args:
      data: images [n, height, width] or [n, height, width, channels].
      task: sizes and splits.
      seed: draws the images and the splits.
      progress: called with numbers of images done, `task.work(n)` in all.

    Raises:
      ValueError: if the images have no height and width, or are fewer than 2 for each split.
    """
    available = len(data.x_train)
    if not has_pixels(data) or available < 2 * task.splits:
        raise ValueError(
            f"expected images [n, height, width] or [n, height, width, channels], n at least "
            f"{2 * task.splits} for {task.splits} splits, got an array {data.x_train.shape}"
        )
    drawn = subset(data, task.used(available), seed=seed)
    images, block = prepared(drawn.x_train, task.side)
    labels = drawn.y_train
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = order.reshape(task.splits, -1)
    rows = []
    for name, net in image_networks().items():
        nngp, ntk = kernels(net, images, progress)
        for inference, kernel in ((BAYES, nngp), (DESCENT, ntk)):
            fractions = [
                _score(kernel, labels, part, data.classes, inference, task.ridges) for part in parts
            ]
            rows.append(Accuracy(name, inference, np.asarray(fractions)))
    return ImagesResult(
        name=data.name,
        classes=data.classes,
        shape=drawn.x_train.shape[1:],
        block=block,
        train=len(labels) - parts.shape[1],
        test=parts.shape[1],
        rows=rows,
    )


def has_pixels(data: LabelledImages) -> bool:
    """Whether the data have a height and a width, with or without channels."""
    return data.x_train.ndim in (3, 4)


def prepared(images: NDArray, side: int) -> tuple[Array, int]:
    """Images [n, h, w, channels] of mean 0 and mean square 1 each, and the side of their blocks.

    Larger images than `side` are averaged over square blocks of pixels; what is left over on the
    right and below is cut off. Each image is normalised by itself, so that nothing passes between
    training and test images. Images of one colour become zero.
    """
    images = images.astype(np.float64)
    if images.ndim == 3:
        images = images[..., None]
    n, height, width, _ = images.shape
    block = math.ceil(max(height, width) / side)
    high, wide = max(1, height // block), max(1, width // block)
    images = images[:, : high * block, : wide * block]
    blocks = images.reshape(n, high, images.shape[1] // high, wide, images.shape[2] // wide, -1)
    images = blocks.mean(axis=(2, 4))
    images = images - images.mean(axis=(1, 2, 3), keepdims=True)
    scale = np.sqrt(np.mean(images**2, axis=(1, 2, 3), keepdims=True))
    images = np.divide(images, scale, out=np.zeros_like(images), where=scale > 0)
    return images, block


def kernels(net: Any, images: Array, progress: Progress = lambda _: None) -> tuple[Array, Array]:
    """NNGP kernel and NTK [n, n] between all images, tile by tile.

    Tiles bound the memory: inside a network, a pair of images has many covariances. Those below the
    diagonal are mirrored.
    """
    n = len(images)
    entries = max(row.entries for row in plan(net, (1, *images.shape[1:])).rows)
    tile = min(n, max(1, math.isqrt(_ENTRIES_AT_ONCE // entries)))
    # Tiles of one size, of which the last may overlap the one before, are compiled once.
    starts = [min(start, n - tile) for start in range(0, n, tile)]
    both = np.empty((2, n, n), working_dtype())
    done = 0
    for i in starts:
        for k in starts:
            if k < i:
                continue
            a, b = slice(i, i + tile), slice(k, k + tile)
            block = np.stack(net.kernel_fn(images[a], images[b], ("nngp", "ntk")))
            both[:, a, b] = block
            both[:, b, a] = block.swapaxes(1, 2)
        progress(i + tile - done)
        done = i + tile
    # Mirrored entries may differ in the last bit.
    nngp, ntk = (both + both.swapaxes(1, 2)) / 2
    return nngp, ntk


def _score(
    kernel: Array,
    labels: NDArray[np.int64],
    test: NDArray[np.int64],
    classes: int,
    inference: str,
    ridges: tuple[float, ...],
) -> float:
    """The accuracy on the images `test` after training on all others."""
    train = np.setdiff1d(np.arange(len(labels)), test)
    targets = np.eye(classes)[labels[train]] - 1 / classes
    k_dd, k_td = kernel[np.ix_(train, train)], kernel[np.ix_(test, train)]
    ridge = chosen_ridge(k_dd, targets, ridges)
    if inference == BAYES:
        outputs = predict.gp_inference(k_dd, targets, ridge)("nngp", k_td)
    else:
        descent = predict.gradient_descent_mse(k_dd, targets, diag_reg=ridge)
        outputs = descent(None, None, 0.0, k_td)
    return float(np.mean(np.argmax(outputs, axis=1) == labels[test]))


def chosen_ridge(kernel: Array, targets: Array, ridges: tuple[float, ...]) -> float:
    r"""The ridge, in units of the mean diagonal, of the least squared error on images left out.

    With A the inverse of kernel plus ridge, the error on image i when it is left out is
    :math:`(A y)_i / A_{ii}`.
    """
    kernel = kernel.astype(np.float64)
    unit = kernel.diagonal().mean() * np.eye(len(kernel))

    def error(ridge: float) -> float:
        inverse = np.linalg.inv(kernel + ridge * unit)
        left_out = inverse @ targets / inverse.diagonal()[:, None]
        return float(np.mean(left_out**2))

    return min(ridges, key=error)
