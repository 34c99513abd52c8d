"""The function wl.gram: kernels between many samples, tile by tile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from widelimit.gram.compute import compute, kernel_fn_of, make_tiler, unwrapped
from widelimit.gram.devices import resolve_devices
from widelimit.gram.sizes import DEFAULT_MEMORY, choose_grid, parse_memory
from widelimit.gram.storage import Disk, Memory, Storage, check_path
from widelimit.kernel.get import KERNELS, parse_get
from widelimit.typing import Bytes, Devices, Get, Inputs, Keywords, NetworkLike


def gram(
    net_or_kernel_fn: NetworkLike,
    x1: Inputs,
    x2: Inputs | None = None,
    get: Get = "ntk",
    *,
    memory: Bytes = DEFAULT_MEMORY,
    progress: bool = True,
    devices: Devices = None,
    out: str | os.PathLike | Mapping[str, str | os.PathLike] | None = None,
    **kernel_kwargs: object,
) -> PyTree:
    """Returns the kernels between x1 and x2 as arrays of NumPy, computed tile by tile.

    The result is that of `kernel_fn(x1, x2, get)`, but computations take no more than `memory`
    beside the inputs and the result, and for x1 with itself each unordered pair of tiles is
    computed once. The size of tiles follows from the memory that `wl.plan` predicts. All tiles have
    the same shape.

    Args:
      net_or_kernel_fn: a network, a triple `(init_fn, apply_fn, kernel_fn)`, or a function
        `kernel_fn(x1, x2, get)` of arrays. The memory of such a function is estimated from its
        trace, and the axes of samples in its result by calls with few samples (see `wl.batch`).
      x1: array [n1, ...], or a list or tuple of them; a `numpy.memmap` is read piece by piece.
      x2: array [n2, ...], or None for x1.
      get: "nngp", "ntk", or a tuple of both for a named tuple.
      memory: bytes, or text like "4GiB" or "500MB", for all devices together.
      progress: whether to show a bar with the time left (needs tqdm, the extra `progress`).
      devices: None for all local devices of the default backend, a number of them, or a list. Rows
        of each tile are split over them.
      out: path of a new .npy file for the result, or for a tuple a dict of paths by name. Its space
        is reserved at the start, and its name is NAME.partial until it is complete; the result is
        a read-only `numpy.memmap` of it. A computation that ends early removes its file. If it was
        killed, the next computation warns and starts again. Or a path NAME.zarr, for a computation
        that can be killed and resumed: the result is then the filled `widelimit.scale.Store`, see
        `widelimit.scale.gram`.
      **kernel_kwargs: keywords of `kernel_fn`. `pattern` and other pairs of arrays are cut along
        their first axes, with x1 and x2.

    Returns:
      An array [n1, n2, ...] for a name, a named tuple of arrays for a tuple of names.

    Raises:
      ValueError: values that are not finite; a budget too small for one entry (the message gives
        the smallest sufficient one); a network that combines samples of a batch; a function whose
        result is a sum over samples; a wrong number of devices; an unknown `get`.
      TypeError: inputs that are traced, or not arrays.
      FileExistsError: `out` exists, or another process is writing it.
      OSError: no space for `out`.

    Example:
      >>> import numpy as np
      >>> import widelimit as wl
      >>> net = wl.models.fcn(2)
      >>> x = np.random.default_rng(0).standard_normal((100, 8))
      >>> kernels = wl.gram(net, x, get=("nngp", "ntk"), memory="100MB")
      >>> kernels.ntk.shape, bool((kernels.ntk == kernels.ntk.T).all())
      ((100, 100), True)
    """
    if isinstance(out, str | os.PathLike) and os.fspath(out).endswith(".zarr"):
        return _filled_store(net_or_kernel_fn, x1, x2, get, memory, progress, out, kernel_kwargs)
    try:
        names = parse_get(get, KERNELS, default=())
    except ValueError as error:
        error.add_note("wl.batch computes whole Kernels in tiles")
        raise
    budget, where = parse_memory(memory), resolve_devices(devices)
    files = None if out is None else _paths(out, get, names)
    kernel_fn, kernel_kwargs = unwrapped(kernel_fn_of(net_or_kernel_fn), kernel_kwargs)
    with jax.ensure_compile_time_eval():  # concrete data remain concrete inside the user's jit
        tiler = make_tiler(kernel_fn, x1, x2, (get,), where, kernel_kwargs)
        tiler.check()
        grid = choose_grid(tiler, budget, len(where))
        storage: Storage = Memory() if files is None else Disk(files)
        return compute(tiler, grid, get, storage, progress)


def _filled_store(
    net: Any,
    x1: Any,
    x2: Any,
    get: Get,
    memory: Bytes,
    progress: bool,
    out: str | os.PathLike,
    kernel_kwargs: Keywords,
) -> object:
    """Returns a store with the kernels.

    Raises:
      ValueError: keywords of `kernel_fn`, which a store does not keep; or as `scale.gram`.
    """
    from widelimit.scale.store import gram as make_store

    if kernel_kwargs:
        raise ValueError(
            f"expected no keywords of kernel_fn with out=NAME.zarr, got {sorted(kernel_kwargs)}"
        )
    store = make_store(net, x1, x2, get, store=out, memory=memory)
    store.fill(progress)
    return store


def _paths(out: object, get: object, names: tuple[str, ...]) -> dict[str, Path]:
    """Returns the file of every array of the result.

    Raises:
      TypeError: neither a path nor a dict of paths.
      ValueError: files that do not fit the names of the kernels, or bad names.
      FileExistsError: a file exists.
      FileNotFoundError: a folder does not exist.
    """
    if isinstance(get, str) and isinstance(out, str | os.PathLike):
        check_path(Path(out))
        return {"": Path(out)}
    if isinstance(get, str) or not isinstance(out, Mapping):
        raise TypeError(
            "expected out to be a path for one kernel, or a dict of paths by name for a tuple, got "
            f"{type(out).__name__} for get={get!r}"
        )
    files = {str(name).lower(): Path(path) for name, path in out.items()}
    if set(files) != set(names) or len(set(files.values())) < len(files):
        raise ValueError(f"expected different files for {names} in out, got {dict(out)}")
    for path in files.values():
        check_path(path)
    return {f".{name}": path for name, path in files.items()}
