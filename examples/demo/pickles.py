"""Read pickles that hold plain data, without calling anything that the file names.

A pickle is a program: it names functions and classes, calls them, and sets their state. Here every
name outside a list of six is refused, and those six are replaced by stand-ins written here: not
even numpy's own reconstruction code runs on the file's words, since a crafted dtype state can make
numpy read raw bytes as pointers to objects.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_NUMBERS = frozenset(
    order + code
    for order in "<>|="
    for code in ("b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
)


def load_plain_pickle(path: str | Path) -> Any:
    """The contents of a pickle of numpy arrays, bytes, str, int, list and dict.

    Strings of Python 2 become bytes. Arrays hold numbers or booleans, and are read-only.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is no pickle, or names or holds anything else.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            return _plain(_PlainUnpickler(file, encoding="bytes").load())
        # A broken file can fail in any opcode, with almost any exception; MemoryError comes from
        # sizes that were made up.
        except Exception as error:
            raise ValueError(f"cannot read the pickle {path}: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler to which only the names of plain data mean anything."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                "expected only numpy arrays, bytes, str, int, list and dict, "
                f"got {module}.{name}, which is refused"
            ) from None


class _Call:
    """A stand-in for a function: can be called by the file, but not given attributes by it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("expected no state for a function, got some")


class _DType:
    """What the file says of a dtype: a code such as 'u1' and a byte order."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: str | bytes, *_: object) -> None:
        self._code = code.decode("ascii") if isinstance(code, bytes) else code
        self._order = "|"

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        self._order = order.decode("ascii") if isinstance(order, bytes) else order

    def value(self) -> np.dtype:
        """The dtype, if it is one of plain numbers."""
        # Bytes have no order, whatever the file says of them.
        name = str(self._order) + str(self._code)
        if name not in _NUMBERS:
            raise pickle.UnpicklingError(f"expected an array of numbers, got dtype {name!r}")
        return np.dtype(name)


class _Array:
    """What the file says of an array: shape, dtype, memory order and raw bytes."""

    __slots__ = ("_state",)

    def __init__(self, *_: object) -> None:
        self._state: tuple | None = None

    def __setstate__(self, state: tuple) -> None:
        self._state = state

    def value(self) -> np.ndarray:
        """The array, if its bytes fill its shape."""
        if self._state is None:
            raise pickle.UnpicklingError("expected an array with contents, got one without")
        _, shape, dtype, is_fortran, raw = self._state
        if not isinstance(dtype, _DType) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("expected an array of numbers stored as bytes")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise pickle.UnpicklingError(f"expected the shape of an array, got {shape}")
        entries = np.frombuffer(raw, dtype.value())
        if entries.size != math.prod(shape):
            raise pickle.UnpicklingError(
                f"expected {math.prod(shape)} entries for the shape {shape}, got {entries.size}"
            )
        return entries.reshape(shape, order="F" if is_fortran else "C")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """The bytes that Python 3 writes as text when asked for an old protocol."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"expected text in latin1, got {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """The empty bytes, for which old protocols call `bytes`."""
    return b""


_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Call(_Array),
    ("numpy._core.multiarray", "_reconstruct"): _Call(_Array),
    ("numpy", "dtype"): _Call(_DType),
    ("_codecs", "encode"): _Call(_encode),
    ("__builtin__", "bytes"): _Call(_no_bytes),
    # Only ever an argument of _reconstruct.
    ("numpy", "ndarray"): "ndarray",
}


def _plain(value: Any) -> Any:
    """The same value with its stand-ins replaced by what they stand for."""
    # Exact types: a subclass could only have come from a name in the file.
    if type(value) in (bytes, str, int):
        return value
    if type(value) is list:
        return [_plain(item) for item in value]
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) is _Array:
        return value.value()
    raise pickle.UnpicklingError(
        "expected numpy arrays, bytes, str, int, list and dict, "
        f"got a value of type {type(value).__name__.lstrip('_')}"
    )
