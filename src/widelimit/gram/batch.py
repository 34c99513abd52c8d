"""The function `batch`: kernel functions in tiles of a fixed size."""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from widelimit._pytree import is_concrete
from widelimit.gram.compute import (
    TracedTileError,
    compute,
    make_tiler,
    make_traced_tiler,
    unwrapped,
)
from widelimit.gram.devices import resolve_devices
from widelimit.gram.sizes import DEFAULT_MEMORY, choose_grid, fixed_grid, parse_memory
from widelimit.gram.storage import Memory
from widelimit.gram.tiler import Tiler
from widelimit.gram.traced import compute_traced
from widelimit.kernel.kernel import is_kernel
from widelimit.typing import Inputs, KernelFunction, Keywords, Size

_TILED = {"nngp", "ntk"}


def batch(
    kernel_fn: KernelFunction,
    batch_size: Size = 0,
    device_count: Size = -1,
    store_on_device: bool = True,
) -> KernelFunction:
    """Returns a function with the signature of `kernel_fn` that computes in tiles of samples.

    Sizes need not divide the number of samples: the last tile of a side is padded, and its result
    cut. For x1 with itself each pair of tiles is computed once. `wl.gram` chooses the size of tiles
    itself, and can write to disk.

    The function takes arrays, lists and tuples of them, or a `Kernel`, and returns the same as
    `kernel_fn`: arrays, named tuples, a `Kernel`, or lists and tuples of those. Keywords whose
    values are pairs of arrays, such as `pattern`, belong to x1 and x2 and are cut along their first
    axes; a random key `rng` differs from tile to tile, as if networks were drawn for each tile.

    The axes of samples in the result of your own function are determined by two or three more calls
    with 2 to 7 samples (more if it does not take such numbers), which are traced if JAX can trace
    the function. Samples may be on any axes. An array of equal samples only, such as an empirical
    kernel with `diagonal_axes=(0,)`, is assembled as such; sums and means over samples are refused.

    Inside `jax.jit`, `grad` or `vmap`, with a `batch_size`, tiles are computed on one device by a
    loop of JAX in the memory of one tile; derivatives compute each tile again.

    Args:
      kernel_fn: a function `kernel_fn(x1, x2=None, get=None, ...)`, such as that of a network.
      batch_size: number of samples of x2, and of x1 per device, in a tile; 0 takes as many as fit
        into 4 GiB, by the plan of the network or by a trace of the function.
      device_count: number of devices; -1 for all local ones, 0 for the first alone.
      store_on_device: whether results are JAX arrays; otherwise they are NumPy arrays in host
        memory.

    Raises:
      TypeError: `kernel_fn` is not a function, or a count is not an int.
      ValueError: a negative `batch_size`, or a wrong number of devices. The function returned
        raises it for networks that combine samples of a batch, and for results without axes of
        samples of both x1 and x2, or of equal samples.
      NotImplementedError: raised by the function returned, for kernels with covariances between all
        samples (`diagonal_batch=False`).

    Example:
      >>> import numpy as np
      >>> import widelimit as nt
      >>> from widelimit import stax
      >>> _, _, kernel_fn = stax.serial(stax.Dense(64), stax.Relu(), stax.Dense(1))
      >>> kernel_fn = nt.batch(kernel_fn, batch_size=4)
      >>> kernel_fn(np.ones((10, 3)), None, "ntk").shape
      (10, 10)
    """
    if not callable(kernel_fn):
        raise TypeError(f"expected a kernel_fn to batch, got {type(kernel_fn).__name__}")
    for name, value in (("batch_size", batch_size), ("device_count", device_count)):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"expected {name} to be an int, got {value!r}")
    if batch_size < 0:
        raise ValueError(f"expected batch_size of at least 0, got {batch_size}")
    if device_count < -1:
        raise ValueError(f"expected device_count of at least -1, got {device_count}")
    resolve_devices(None if device_count == -1 else max(device_count, 1))

    # Attributes of the original, such as its name, are copied.
    @functools.wraps(kernel_fn)
    def batched(x1: Inputs, x2: Inputs | None = None, *args: object, **kwargs: object) -> PyTree:
        devices = resolve_devices(None if device_count == -1 else max(device_count, 1))
        function, keywords = unwrapped(kernel_fn, kwargs)
        job = _Job(function, devices, int(batch_size), store_on_device)
        return job.run(x1, x2, args, keywords)

    batched.works_in_tiles = True  # type: ignore[attr-defined]
    return batched


@runtime_checkable
class _NetworkKernelFn(Protocol):
    """The methods of the kernel function of a network that are used here."""

    def fields(self, get: Any) -> tuple[str, ...]:
        """Returns the names of the `Kernel` fields in `get`."""

    def select(self, kernels: PyTree, get: Any) -> PyTree:
        """Returns the fields of whole kernels in `get`."""


class _Job(NamedTuple):
    """The arguments of `batch`.

    Attributes:
      kernel_fn: the function of a tile.
      devices: the devices to compute on.
      batch_size: samples of a tile, 0 for as many as fit into memory.
      on_device: whether results are JAX arrays.
    """

    kernel_fn: KernelFunction
    devices: list[jax.Device]
    batch_size: int
    on_device: bool

    def run(self, x1: Inputs, x2: Inputs, args: tuple[object, ...], kwargs: Keywords) -> PyTree:
        """Returns the same as `kernel_fn(x1, x2, *args, **kwargs)`."""
        if "get" in kwargs and not args:
            args = (kwargs["get"],)
            kwargs = {name: value for name, value in kwargs.items() if name != "get"}
        # For networks, all fields but plain kernels are selected from whole Kernels.
        get = args[0] if args else None
        network = self.kernel_fn if isinstance(self.kernel_fn, _NetworkKernelFn) else None
        if network is None or set(network.fields(get)) <= _TILED:
            return self._compute(x1, x2, args, kwargs)
        kernels = self._compute(x1, x2, (None, *args[1:]), kwargs)
        return network.select(kernels, get)

    def _compute(
        self, x1: Inputs, x2: Inputs, args: tuple[object, ...], kwargs: Keywords
    ) -> PyTree:
        """Returns the whole Kernels of a network, or the result of any other function."""
        if is_concrete(x1, x2, args, kwargs, getattr(self.kernel_fn, "net", None)):
            with contextlib.suppress(TracedTileError):  # the function depends on a traced value
                return self._compute_concrete(x1, x2, args, kwargs)
        return self._compute_traced(x1, x2, args, kwargs)

    def _compute_concrete(
        self, x1: Inputs, x2: Inputs, args: tuple[object, ...], kwargs: Keywords
    ) -> PyTree:
        tiler = make_tiler(self.kernel_fn, x1, x2, args, self.devices, kwargs)
        count = len(self.devices)
        if self.batch_size:
            grid = fixed_grid(tiler, self.batch_size, count)
        else:
            grid = choose_grid(tiler, parse_memory(DEFAULT_MEMORY), count)
        if grid.sizes != grid.counts:
            tiler.check()
        get = args[0] if args else None
        result = compute(tiler, grid, get, Memory(), progress=False)
        whole = jax.tree.map(self._stored, result)
        return jax.tree.map(lambda k: _second_side(k, tiler), whole, is_leaf=is_kernel)

    def _compute_traced(
        self, x1: Inputs, x2: Inputs, args: tuple[object, ...], kwargs: Keywords
    ) -> PyTree:
        if self.batch_size:
            tiler = make_traced_tiler(self.kernel_fn, x1, x2, args, kwargs)
            if max(tiler.counts) > self.batch_size and min(tiler.counts):
                tiler.check()
                grid = fixed_grid(tiler, tiler.traced_size(self.batch_size), 1)
                result = compute_traced(tiler, grid, args[0] if args else None)
                return jax.tree.map(lambda k: _second_side(k, tiler), result, is_leaf=is_kernel)
        return self.kernel_fn(x1, x2, *args, **kwargs)

    def _stored(self, value: object) -> object:
        is_array = isinstance(value, np.ndarray | jax.Array)
        return (jnp.asarray if self.on_device else np.asarray)(value) if is_array else value


def _second_side(kernel: PyTree, tiler: Tiler) -> PyTree:
    """Returns a kernel with fields of x2 if and only if the user passed an x2."""
    if not is_kernel(kernel) or not tiler.same:
        return kernel
    out = copy.copy(kernel)
    sides = (("cov1", "cov2"), ("mask1", "mask2"))
    for first, second in sides:
        # Not by `replace`: the constructor does not accept NumPy arrays as fields.
        object.__setattr__(out, second, getattr(kernel, first) if tiler.given_x2 else None)
    return out
