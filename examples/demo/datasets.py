"""Small image data sets for the demonstration and for experiments.

No file is ever trusted with code: .npz files are read without pickles, and the pickles of the
Python distribution of CIFAR-10 pass through `examples.demo.pickles`, which calls nothing they name.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.demo.pickles import load_plain_pickle

_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
_Reader = Callable[[Path], tuple[NDArray, NDArray]]
_CIFAR10_RECORD = 1 + 3 * 32 * 32
_SUPPORTED = (
    "an .npz file with x_train, y_train, x_test and y_test, or a folder with the binary "
    "(data_batch_1.bin, ..., test_batch.bin) or the Python (data_batch_1, ..., test_batch) "
    "distribution of CIFAR-10"
)


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes, split into training and test points.

    Attributes:
      name: what to call the data in text.
      x_train: images [n, ...], uint8 or floating point.
      y_train: classes [n], integers from 0.
      x_test: images [t, ...], shaped like those of `x_train` and of their dtype.
      y_test: classes [t].
    """

    name: str
    x_train: NDArray
    y_train: NDArray[np.int64]
    x_test: NDArray
    y_test: NDArray[np.int64]

    @property
    def classes(self) -> int:
        """The number of classes: one more than the largest label."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def load_images(path: str | Path | None = None, *, seed: int = 0) -> LabelledImages:
    """The images at `path`, or scikit-learn's handwritten digits without a path.

    Args:
      path: an .npz file with x_train, y_train, x_test and y_test; or a folder with the binary or
        the Python distribution of CIFAR-10, complete or with some of its training batches.
      seed: the split of the digits into training and test images; unused with a path.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if what is there is not one of these, or is malformed.
    """
    if path is None:
        return load_digits(seed=seed)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if path.is_dir():
        if (path / "test_batch.bin").is_file():
            return load_cifar10_binary(path)
        if (path / "test_batch").is_file():
            return load_cifar10_python(path)
    elif path.suffix == ".npz":
        return load_npz(path)
    raise ValueError(f"expected {_SUPPORTED}; got {path}")


def load_digits(*, test_fraction: float = 0.5, seed: int = 0) -> LabelledImages:
    """The 1,797 handwritten digits of 8 x 8 pixels inside scikit-learn, values 0 to 16.

    Args:
      test_fraction: the fraction of the images held out for testing.
      seed: the random split.

    Raises:
      ModuleNotFoundError: without scikit-learn, saying how to install it.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits are part of scikit-learn; install it with: pip install scikit-learn",
            name=error.name,
        ) from error
    images, labels = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images = images.reshape(-1, 8, 8, 1)[order]
    labels = labels[order]
    tests = round(test_fraction * len(labels))
    return _checked("digits", images[tests:], labels[tests:], images[:tests], labels[:tests])


def load_npz(path: str | Path) -> LabelledImages:
    """The images of an .npz file with arrays x_train, y_train, x_test and y_test.

    Raises:
      ValueError: if an array is missing, pickled, or of the wrong shape.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("expected an archive of arrays, got a single array")
            missing = [key for key in _NPZ_KEYS if key not in arrays]
            if missing:
                raise ValueError(
                    f"expected arrays {', '.join(_NPZ_KEYS)}, got {', '.join(arrays.files)}"
                )
            x_train, y_train, x_test, y_test = (arrays[key] for key in _NPZ_KEYS)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    return _checked(path.stem, x_train, y_train, x_test, y_test)


def load_cifar10_binary(folder: str | Path) -> LabelledImages:
    """CIFAR-10 [n, 32, 32, 3] in uint8 from its binary distribution.

    A record has 3,073 bytes: the class, then the red, the green and the blue 32 x 32 plane.

    Args:
      folder: holds test_batch.bin and at least one data_batch_*.bin.

    Raises:
      ValueError: if a file is missing or no whole number of records.
    """
    return _cifar10(Path(folder), ".bin", _read_binary_batch)


def load_cifar10_python(folder: str | Path) -> LabelledImages:
    """CIFAR-10 [n, 32, 32, 3] in uint8 from its Python distribution, read without running any code.

    Args:
      folder: holds test_batch and at least one data_batch_*.

    Raises:
      ValueError: if a file is missing, is no such batch, or holds anything but plain data.
    """
    return _cifar10(Path(folder), "", _read_python_batch)


def subset(
    data: LabelledImages, train: int | None = None, test: int | None = None, *, seed: int = 0
) -> LabelledImages:
    """The same data with at most `train` training and `test` test images, drawn at random.

    Sets that are small enough already are left as they are.
    """
    rng = np.random.default_rng(seed)

    def draw(x: NDArray, y: NDArray, size: int | None) -> tuple[NDArray, NDArray]:
        if size is None or size >= len(y):
            return x, y
        chosen = np.sort(rng.permutation(len(y))[:size])
        return x[chosen], y[chosen]

    return LabelledImages(
        data.name, *draw(data.x_train, data.y_train, train), *draw(data.x_test, data.y_test, test)
    )


def standardised(data: LabelledImages) -> LabelledImages:
    """The same data as float64 rows [n, features] minus their mean, of unit mean square.

    Both the mean image and the one scale are those of the training images, so the average squared
    input of a network is one.

    Raises:
      ValueError: if all training images are equal.
    """
    train = data.x_train.reshape(len(data.x_train), -1).astype(np.float64)
    test = data.x_test.reshape(len(data.x_test), -1).astype(np.float64)
    mean = train.mean(axis=0)
    scale = float(np.sqrt(np.mean((train - mean) ** 2)))
    if not scale > 0:
        raise ValueError("expected training images that differ, got copies of one")
    return LabelledImages(
        data.name, (train - mean) / scale, data.y_train, (test - mean) / scale, data.y_test
    )


def _cifar10(folder: Path, suffix: str, read: _Reader) -> LabelledImages:
    """All training batches of `folder` in one array, and the test batch."""
    train = sorted(folder.glob(f"data_batch_[0-9]{suffix}"))
    test = folder / f"test_batch{suffix}"
    if not train or not test.is_file():
        raise ValueError(f"expected data_batch_*{suffix} and test_batch{suffix} in {folder}")
    batches = [read(path) for path in train]
    labels = np.concatenate([y for _, y in batches])
    return _checked("CIFAR-10", np.concatenate([x for x, _ in batches]), labels, *read(test))


def _read_binary_batch(path: Path) -> tuple[NDArray, NDArray]:
    """Images [n, 32, 32, 3] and classes [n] of one file of the binary distribution."""
    raw = np.fromfile(path, np.uint8)
    if not raw.size or raw.size % _CIFAR10_RECORD:
        raise ValueError(
            f"expected a whole number of records of {_CIFAR10_RECORD} bytes in {path}, "
            f"got {raw.size} bytes"
        )
    records = raw.reshape(-1, _CIFAR10_RECORD)
    return _planes_to_images(records[:, 1:]), records[:, 0]


def _read_python_batch(path: Path) -> tuple[NDArray, NDArray]:
    """Images [n, 32, 32, 3] and classes [n] of one file of the Python distribution."""
    batch = load_plain_pickle(path)
    if not isinstance(batch, dict):
        raise ValueError(f"expected a dictionary in {path}, got {type(batch).__name__}")
    # Python 2 wrote the keys as what Python 3 calls bytes; a converted file has str.
    data, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise ValueError(f"expected 'data' in {path} to be a uint8 array of shape [n, 3072]")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(f"expected 'labels' in {path} to be a list of integers")
    return _planes_to_images(data), np.asarray(labels, np.int64)


def _planes_to_images(planes: NDArray) -> NDArray:
    """Images [n, 32, 32, 3] of the rows [n, 3072]: three colour planes one after the other."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _checked(
    name: str, x_train: NDArray, y_train: NDArray, x_test: NDArray, y_test: NDArray
) -> LabelledImages:
    """The data with int64 labels, or a ValueError that says what is wrong with them."""
    for part, x, y in (("training", x_train, y_train), ("test", x_test, y_test)):
        where = f"in the {part} set of {name}"
        if x.ndim < 2 or not x.size or x.dtype.kind not in "uif":
            raise ValueError(
                f"expected images [n, ...] of numbers {where}, got {x.dtype} of shape {x.shape}"
            )
        if not np.all(np.isfinite(x)):
            raise ValueError(f"expected finite images {where}, got NaN or infinity")
        if y.shape != x.shape[:1] or y.dtype.kind not in "ui" or y.min() < 0:
            raise ValueError(
                f"expected one integer label from 0 for each of the {len(x)} images {where}, "
                f"got {y.dtype} of shape {y.shape}"
            )
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(
            f"expected training and test images of {name} of one shape, "
            f"got {x_train.shape[1:]} and {x_test.shape[1:]}"
        )
    return LabelledImages(name, x_train, y_train.astype(np.int64), x_test, y_test.astype(np.int64))
