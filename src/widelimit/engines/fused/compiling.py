"""Compilation of loops by numba, cached on disk between processes."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

# Contraction gives fused multiply-adds; the sign of zero matters nowhere. Sums keep their order.
_FAST = {"contract", "nsz"}
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _FAST}


def loop(function: Callable[..., Any]) -> Any:
    """Returns a function compiled into the entries that use it.

    A call would copy every field of every array to the stack, which takes as long as a short loop.
    """
    # Type checkers of tests wrap every function; numba compiles the function inside.
    return njit(forceinline=True, **_OPTIONS)(inspect.unwrap(function))


def entry(function: Callable[..., Any]) -> Any:
    """Returns a compiled function whose machine code is kept on disk, where that can be written.

    It runs without Python's global lock, and starts no threads itself.
    """
    inner = inspect.unwrap(function)
    try:
        compiled = njit(cache=True, **_OPTIONS)(inner)
    except RuntimeError:  # no folder to write to
        return loop(inner)
    _drop_stale(pathlib.Path(compiled.stats.cache_path))
    return compiled


def _drop_stale(cache: pathlib.Path) -> None:
    """Removes compiled code older than any source: numba watches the file of the entry only."""
    sources = pathlib.Path(__file__).parent.glob("*.py")
    newest = max(source.stat().st_mtime for source in sources)
    for index in cache.glob("*.nbi"):
        try:
            if index.stat().st_mtime < newest:
                index.unlink()
        except OSError:  # another process was faster, or the folder is read-only
            continue


def _borrowed(_: Any, array: Any) -> Any:
    """Returns an array (or a tuple of some) whose references are not counted.

    Counting is atomic and happens wherever an array is passed on, which takes as long as a short
    loop. The caller of an entry holds its arguments.
    """

    def strip(context: Any, builder: Any, kind: Any, value: Any) -> Any:
        if isinstance(kind, types.BaseTuple):
            parts = cgutils.unpack_tuple(builder, value)
            kinds: Any = kind
            values = [strip(context, builder, kinds[i], part) for i, part in enumerate(parts)]
            return context.make_tuple(builder, kind, values)
        struct = make_array(kind)(context, builder, value)
        struct.meminfo = cgutils.get_null_value(struct.meminfo.type)
        return struct._getvalue()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return strip(context, builder, signature.args[0], arguments[0])

    return array(array), generate


borrowed: Any = intrinsic(_borrowed)
