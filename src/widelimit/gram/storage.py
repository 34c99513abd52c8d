"""Storage of results: arrays in memory, or files that get their names when complete."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import warnings
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from widelimit.gram.sizes import human_bytes

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK = 2**24


@runtime_checkable
class Storage(Protocol):
    """A store of arrays by key, while they are being filled."""

    reserves: bool
    """Whether space is reserved before anything is computed."""

    def check(self, keys: list[str]) -> None:
        """Raises unless the arrays of these keys can be stored."""

    def allocate(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an array to be filled."""

    def finish(self) -> dict[str, np.ndarray]:
        """Returns the complete arrays."""

    def abandon(self) -> str:
        """Discards the arrays; returns in words what remains."""


class Memory:
    """Arrays in memory."""

    reserves = False

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def check(self, keys: list[str]) -> None:
        """Does nothing: any arrays can be stored."""

    def allocate(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an array to be filled."""
        self._arrays[key] = np.empty(shape, dtype)
        return self._arrays[key]

    def finish(self) -> dict[str, np.ndarray]:
        """Returns the arrays."""
        return self._arrays

    def abandon(self) -> str:
        """Discards the arrays."""
        return "nothing was kept"


class Disk:
    """Files in NumPy's format: written as NAME.partial without a header, renamed when complete."""

    reserves = True

    def __init__(self, paths: dict[str, Path]) -> None:
        """Checks the paths, and opens and locks the partial files.

        Args:
          paths: file of each array.

        Raises:
          FileExistsError: the file exists, or another process is writing it.
          FileNotFoundError: a folder does not exist.
          ValueError: a name does not end in .npy.
        """
        self._files: dict[str, _PartialFile] = {}
        for path in paths.values():
            check_path(path)
        try:
            for key, path in paths.items():
                self._files[key] = _PartialFile(path)
        except BaseException:
            self.abandon()
            raise

    def check(self, keys: list[str]) -> None:
        """Raises unless files and arrays match.

        Raises:
          ValueError: a file or an array is missing.
        """
        if set(keys) != set(self._files):
            raise ValueError(
                "expected one array of pairs of samples for every file in out, "
                f"{sorted(file.path.name for file in self._files.values())}, got a result with "
                f"arrays at {sorted(keys)}"
            )

    def allocate(self, key: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an array in a file with reserved space.

        Raises:
          OSError: the disk is full.
        """
        return self._files[key].allocate(shape, np.dtype(dtype))

    def finish(self) -> dict[str, np.ndarray]:
        """Returns the arrays, read-only, from the files under their final names.

        Raises:
          FileExistsError: another file has got the name in the meantime.
        """
        for file in self._files.values():
            file.complete()
        for file in self._files.values():
            file.publish()
        return {key: np.load(f.path, mmap_mode="r") for key, f in self._files.items()}

    def abandon(self) -> str:
        """Removes incomplete files; returns in words what remains."""
        removed = [file.partial.name for file in self._files.values() if file.remove()]
        return f"{', '.join(removed)} removed, nothing was kept" if removed else "nothing was kept"


class _PartialFile:
    """A file of one array, while it is written.

    Attributes:
      path: path of the complete file.
      partial: path until then.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self._array: np.memmap | None = None
        self._header = b""
        self._descriptor = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock()
            left = os.fstat(self._descriptor).st_size
            if left:
                warnings.warn(
                    f"found {self.partial} ({human_bytes(left)}), left incomplete by a run that "
                    "was killed: it is discarded, and the computation starts again "
                    "(use out=NAME.zarr for a computation that can be resumed)",
                    stacklevel=2,
                )
                os.ftruncate(self._descriptor, 0)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(
                f"expected no other process at work on {self.path}, got one that is writing "
                f"{self.partial}"
            ) from None

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        self._header = _header(shape, dtype)
        size = len(self._header) + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        try:
            reserve(self._descriptor, size)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            free = shutil.disk_usage(self.partial.parent).free
            raise OSError(
                error.errno,
                f"expected {size} bytes ({human_bytes(size)}) of space for {self.path}, got "
                f"{free} ({human_bytes(free)}): {os.strerror(error.errno)}",
            ) from None
        offset = len(self._header)
        self._array = (
            np.memmap(self.partial, dtype, "r+", offset, shape) if 0 not in shape else None
        )
        return np.empty(shape, dtype) if self._array is None else self._array

    def complete(self) -> None:
        """Completes the file: data first, then the header."""
        if self._array is not None:
            self._array.flush()
            self._array = None
        os.fsync(self._descriptor)
        os.pwrite(self._descriptor, self._header, 0)
        os.fsync(self._descriptor)

    def publish(self) -> None:
        """Gives the file its name."""
        _check_free(self.path)
        os.replace(self.partial, self.path)
        os.close(self._descriptor)
        self._descriptor = -1
        with contextlib.suppress(OSError):  # some file systems do not support it
            folder = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def remove(self) -> bool:
        """Removes the file unless it is published; returns whether it did."""
        if self._descriptor < 0:
            return False
        self._array = None
        self.partial.unlink(missing_ok=True)  # before the lock is released
        os.close(self._descriptor)
        self._descriptor = -1
        return True


def reserve(descriptor: int, size: int) -> None:
    """Reserves the space of a file on the disk, not only in its file table.

    Otherwise a write to a mapped file on a full disk would kill the process.

    Raises:
      OSError: not enough space.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    zeros = bytes(min(_CHUNK, size))
    for start in range(0, size, _CHUNK):
        os.pwrite(descriptor, zeros[: size - start], start)


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Returns the first bytes of a file in NumPy's format."""
    text = io.BytesIO()
    description = np.lib.format.dtype_to_descr(dtype)
    fields = {"descr": description, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(text, fields)
    return text.getvalue()


def check_path(path: Path) -> None:
    """Raises unless a result may be written to a file.

    Raises:
      FileExistsError: it exists.
      FileNotFoundError: its folder does not exist.
      ValueError: its name does not end in .npy.
    """
    if path.suffix != ".npy":
        raise ValueError(
            f"expected out to end in .npy or .zarr, the formats that are written, got {path}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"expected a folder for {path}, got none at {path.parent}")
    _check_free(path)


def _check_free(path: Path) -> None:
    if path.exists():
        raise FileExistsError(
            f"expected a new file, got {path}, which exists ({human_bytes(path.stat().st_size)}): "
            "remove it or choose another name"
        )
