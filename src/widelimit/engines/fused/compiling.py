"""Compilation of loops by numba, cached on disk between processes."""

from __future__ import annotations

import functools
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cfunc, njit
from numba.core import cgutils, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

# Contraction gives fused multiply-adds; the sign of zero matters nowhere. Sums keep their order.
_FAST = {"contract", "nsz"}
_ARITHMETIC: dict[str, Any] = {"error_model": "numpy", "fastmath": _FAST}
_OPTIONS: dict[str, Any] = {"nogil": True, **_ARITHMETIC}
INLINED: Any = {"forceinline": True, **_OPTIONS}


def loop(function: Callable[..., Any]) -> Any:
    """Returns a function compiled into the entries that use it.

    A call would copy every field of every array to the stack, which takes as long as a short loop.
    """
    # Type checkers of tests wrap every function; numba compiles the function inside.
    return njit(**INLINED)(inspect.unwrap(function))


def piece(function: Callable[..., Any]) -> Any:
    """Returns a compiled function that entries call, for work that outweighs a call.

    The time to compile an entry grows faster than what is compiled into it.
    """
    return njit(**_OPTIONS)(inspect.unwrap(function))


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


def called_by_address(signature: Any, function: Callable[..., Any], kept: bool) -> Any:
    """Returns a compiled function of pointers and numbers, for `call`; its code is at `.address`.

    Args:
      signature: types of numba.
      function: what to compile.
      kept: whether its machine code is kept on disk, where that can be written.
    """
    inner = inspect.unwrap(function)
    if kept:
        try:
            _drop_stale(pathlib.Path(FunctionCache(inner).cache_path))
            return cfunc(signature, cache=True, **_ARITHMETIC)(inner)
        except RuntimeError:  # no folder to write to
            pass
    return cfunc(signature, **_ARITHMETIC)(inner)


@functools.lru_cache(maxsize=8)
def _drop_stale(cache: pathlib.Path) -> None:
    """Removes compiled code older than any source: numba watches the file of the entry only."""
    sources = pathlib.Path(__file__).parent.rglob("*.py")
    newest = max(source.stat().st_mtime for source in sources)
    for index in cache.glob("*.nbi"):
        try:
            if index.stat().st_mtime < newest:
                index.unlink()
        except OSError:  # another process was faster, or the folder is read-only
            continue


def _pointer(_: Any, array: Any, index: Any) -> Any:
    """Returns a pointer to an entry of a contiguous array of one axis."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = make_array(signature.args[0])(context, builder, arguments[0])
        return builder.gep(struct.data, [arguments[1]])

    return types.CPointer(array.dtype)(array, index), generate


pointer: Any = intrinsic(_pointer)


def _pointer_at(_: Any, address: Any, array: Any) -> Any:
    """Returns a pointer to an address, to numbers like those of an array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(array.dtype)(address, array), generate


pointer_at: Any = intrinsic(_pointer_at)


def _moved(_: Any, pointer: Any, count: Any) -> Any:
    """Returns a pointer to a later entry."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, count), generate


moved: Any = intrinsic(_moved)


def _scope(module: Any) -> Any:
    """Returns the metadata of what is only read in a loop: nothing that is written lies there.

    Without it a loop that reads many places would have to compare all of them with what it writes,
    and is not vectorised.
    """
    domain = module.add_metadata(["widelimit"])
    return module.add_metadata([module.add_metadata(["read", domain])])


def _read(_: Any, pointer: Any, index: Any) -> Any:
    """Returns an entry of what is only read: nothing that `write` writes lies there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(builder.gep(arguments[0], [arguments[1]]))
        value.set_metadata("alias.scope", _scope(builder.module))
        return value

    return pointer.dtype(pointer, index), generate


read: Any = intrinsic(_read)


def _write(_: Any, pointer: Any, index: Any, value: Any) -> Any:
    """Writes an entry that no `read` reads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        stored = builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]]))
        stored.set_metadata("noalias", _scope(builder.module))
        return context.get_dummy_value()

    return types.void(pointer, index, pointer.dtype), generate


write: Any = intrinsic(_write)


def _call(_: Any, address: Any, arguments: Any) -> Any:
    """Calls the code at an address on a tuple of pointers and numbers."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values = cgutils.unpack_tuple(builder, given[1])
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(builder.inttoptr(given[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(address, arguments), generate


call: Any = intrinsic(_call)


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
