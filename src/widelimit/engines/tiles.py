"""Kernels of a network tile by tile: each image is prepared once, then read by many tiles."""

from __future__ import annotations

import functools
import itertools
import weakref
from typing import Any

import jax
import numpy as np

from widelimit._pytree import is_concrete
from widelimit._samples import Rows, Samples, place, to_host
from widelimit.covariance.signal import is_branches
from widelimit.engines.choose import FusedCall
from widelimit.engines.cost import Workload, kept_arrays, peak_bytes
from widelimit.engines.fused.parallel import count_threads
from widelimit.engines.inputs import (
    as_inputs,
    check_inputs,
    same_inputs,
    same_patterns,
    working_dtype,
)
from widelimit.engines.plan import bare_site, check_alike, check_unmixed, input_axes, mixing_layer
from widelimit.engines.request import ARRAYS, Request
from widelimit.kernel.get import parse_get, select
from widelimit.layers.base import Layer, Site, tree_shapes

# Bytes of tiles beyond which larger ones are no faster, per device. On a processor, pages cost
# more than calls: without spatial axes 0.36 us per pair at 2**24, 1.6 us at 2**30 (5 layers).
_FLAT_TILE, _SPATIAL_TILE = 2**26, 2**28
_ACCELERATOR_TILE = 2**30
# Without spatial axes the fused engine takes any tile in strips; for each it packs all of x2 anew.
_FUSED_FLAT_TILE, _FUSED_TILE = 2**30, 2**27
_SCRATCH = 2**21  # bytes of a thread's slices, and of what it has pooled


class NetworkTiler:
    """Tiles of the kernels of a network, by the engine "reference".

    It keeps the inputs of each image, converted and on the device, and calls `kernel_fn` on them.
    An engine that can do more with single images (their self-covariances at all layers, say)
    overrides `prepare`, `prepared_bytes`, `tile`, and `tile_bytes`. See `widelimit.gram.tiler` for
    what each of them promises.

    Attributes:
      counts: number of samples of x1 and x2.
      same: whether x2 is x1, on the same graphs.
      given_x2: whether an x2 was given.
      target_bytes: a tile that takes more is no faster.
    """

    def __init__(
        self,
        kernel_fn: Any,
        inputs: tuple[Any, Any],
        get: Any,
        patterns: tuple[Any, Any],
        options: Any,
        devices: list[Any],
    ) -> None:
        """Checks the inputs; nothing is computed.

        Args:
          kernel_fn: `KernelFn` of the network.
          inputs: concrete x1 and x2, or None for x1.
          get: what to return of each tile.
          patterns: pair of graph patterns.
          options: `kernel.Options`.
          devices: where to compute.

        Raises:
          TypeError: inputs that are not arrays, or traced ones.
          ValueError: non-finite values, shapes that do not fit the network.
        """
        x1, x2 = inputs
        x2 = x2 if jax.tree.leaves(x2) else None
        check_inputs(x1, x2, options.mask_constant)
        if x2 is not None:
            check_alike(kernel_fn.net, tree_shapes(x1), tree_shapes(x2), options.axes)
        if not is_concrete(kernel_fn.net, patterns):
            raise TypeError(
                "expected a concrete network and concrete patterns to compute kernels in tiles, "
                "got traced ones: call kernel_fn inside jit, vmap or grad"
            )
        x1, x2 = to_host((x1, x2))
        self.given_x2 = x2 is not None
        self.same = _same(x1, x2) and same_patterns(patterns, shared=x2 is None)
        self._kernel_fn, self._get, self._options = kernel_fn, get, options
        self._devices = devices
        axes = batch_axes(kernel_fn.net, x1, options.axes)
        second = patterns[0] if patterns[1] is None and x2 is None else patterns[1]
        self._sides = (
            Samples.of(x1, axes, {"pattern": patterns[0]}, "x1"),
            Samples.of(x1 if x2 is None else x2, axes, {"pattern": second}, "x2"),
        )
        self._net, self._site = _planned(kernel_fn.net, *self._sides, get, options)

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of samples of x1 and x2."""
        return self._sides[0].count, self._sides[1].count

    @property
    def target_bytes(self) -> int:
        """Bytes of a tile beyond which it is no faster."""
        if self._devices[0].platform != "cpu":
            return _ACCELERATOR_TILE * len(self._devices)
        flat = kept_arrays("nngp", self._site.signal_in) > 1
        return (_FLAT_TILE if flat else _SPATIAL_TILE) * len(self._devices)

    @property
    def halves(self) -> bool:
        """Whether a tile of samples with themselves takes half the work of another."""
        return False

    def check(self) -> None:
        """Raises if the network combines samples, so that its kernel has no tiles.

        Raises:
          ValueError: it does; the message names the layer.
        """
        check_unmixed(mixing_layer(self._site))

    def layout(self) -> None:
        """Returns None: names of kernels tell where samples are in them."""

    def tile_bytes(self, n1: int, n2: int) -> int:
        """Returns what computing a tile of n1 x n2 samples takes, without the samples."""
        itemsize = working_dtype().itemsize
        arrays = kept_arrays(self._get, self._site.signal_in)
        return peak_bytes(self._net, self._site, Workload(n1, arrays, itemsize, n2))

    @property
    def prepared_bytes(self) -> int:
        """Bytes of what `prepare` keeps of one sample, over all devices of a tile."""
        copies = 1 if len(self._devices) == 1 else len(self._devices) + 1
        return copies * self._sides[0].sample_bytes(working_dtype().itemsize)

    def outline(self) -> Any:
        """Returns the shapes and dtypes of a tile of one sample with itself, uncomputed."""
        handle = self.prepare(self.rows(0, 0, 1, 1))
        return jax.eval_shape(lambda h: self.tile(h, None), handle)

    def rows(self, side: int, start: int, stop: int, size: int) -> Rows:
        """Returns samples start to stop of x1 (0) or x2 (1), the last repeated up to `size`."""
        return self._sides[side].cut(start, stop, size)

    def prepare(self, rows: Rows) -> Rows:
        """Returns samples in the working dtype, on every device."""
        x, _ = as_inputs(rows.x, None, self._options.mask_constant)
        return self._placed(Rows(x, rows.extras), split=False)

    def tile(self, first: Rows, second: Rows | None) -> Any:
        """Returns the kernels between two sets of samples, or of one with itself (None).

        The samples of the first are split over the devices.
        """
        if len(self._devices) > 1:
            first = self._placed(first, split=True)
        x2 = None if second is None else second.x
        patterns = tuple(rows.extras["pattern"] for rows in (first, second or first))
        return self._kernel_fn.evaluate(
            *(first.x, x2, self._get, patterns, second is None, self._options)
        )

    def _placed(self, rows: Rows, split: bool) -> Rows:
        return place(rows, self._sides[0].axes, self._devices, split)

    @property
    def diagonal_spatial(self) -> bool:
        """Whether results keep equal positions only."""
        return self._options.diagonal_spatial


def traced_size(
    net: Layer, x: Any, get: Any, axes: tuple[int | None, int | None], most: int
) -> int:
    """Returns how many samples a side of a tile should have inside a trace, `most` or fewer.

    There the reference engine computes a tile at once, and larger ones are no faster.

    Args:
      net: the network.
      x: inputs, which may be traced.
      get: what to return of each tile.
      axes: (batch, channel) axes from elsewhere.
      most: the largest number.
    """
    shapes = tree_shapes(x)
    inner, site = bare_site(net, (shapes, shapes), axes)
    arrays = kept_arrays(get, site.signal_in)
    enough = _FLAT_TILE if jax.local_devices()[0].platform == "cpu" else _ACCELERATOR_TILE
    itemsize, size = working_dtype().itemsize, most
    while size > 1 and peak_bytes(inner, site, Workload(size, arrays, itemsize, size)) > enough:
        size = -(-size // 2)
    return size


def _same(x1: Any, x2: Any) -> bool:
    """Returns whether `same_inputs` holds for the inputs in the working dtype."""
    if x2 is None or x2 is x1:
        return True
    if tree_shapes(x1) != tree_shapes(x2):
        return False
    with np.errstate(over="ignore"):  # masked entries may
        first, second = jax.tree.map(lambda v: v.astype(working_dtype()), (x1, x2))
    return same_inputs(first, second)


def batch_axes(net: Layer, x: Any, given: tuple[int | None, int | None]) -> tuple[int, ...]:
    """Returns the batch axis of every array of the inputs of a network.

    Args:
      net: the network.
      x: inputs.
      given: (batch, channel) axes from elsewhere.
    """

    def batch(part: Any, axes: Any) -> tuple[int, ...]:
        if is_branches(part):
            return tuple(itertools.chain.from_iterable(map(batch, part, axes)))
        return (axes[0],)

    return batch(x, input_axes(net, tree_shapes(x), given))


# Plans of networks that are still in use, by shapes and options.
_plans: weakref.WeakKeyDictionary[Layer, dict[Any, tuple[Layer, Site]]] = (
    weakref.WeakKeyDictionary()
)


def _planned(net: Layer, x1: Samples, x2: Samples, get: Any, options: Any) -> tuple[Layer, Site]:
    """Returns the network and its site for one sample of each input, from the cache if there."""
    shapes = tuple(tree_shapes(side.cut(0, min(side.count, 1), 1).x) for side in (x1, x2))
    names = None if get is None else (get,) if isinstance(get, str) else tuple(get)
    own = names is None or any(str(name).lower() in ("cov1", "cov2") for name in names)
    key = shapes, options.axes, options.diagonal_spatial, own
    plans = _plans.setdefault(net, {})
    if key not in plans:
        plans[key] = bare_site(
            *(net, shapes, options.axes),
            diagonal_spatial=options.diagonal_spatial,
            own=own,
        )
    return plans[key]


class FusedTiler(NetworkTiler):
    """Tiles of the kernels of a network, by the fused engine.

    What nonlinearities need of the variances of an image is computed and kept once per image.
    """

    @functools.cached_property
    def _call(self) -> FusedCall:
        x1 = self._sides[0].x
        tangent = self._get is None or "ntk" in parse_get(self._get)
        return FusedCall.of(
            self._kernel_fn.net, tree_shapes(x1), self._options.axes, tangent=tangent
        )

    @property
    def target_bytes(self) -> int:
        """Bytes of a tile beyond which it is no faster."""
        return _FUSED_FLAT_TILE if self._call.flat else _FUSED_TILE

    @property
    def halves(self) -> bool:
        """Whether a tile of samples with themselves takes half the work, and little time."""
        return self._call.flat

    def tile_bytes(self, n1: int, n2: int) -> int:
        """Returns what computing a tile of n1 x n2 samples takes, without the samples."""
        itemsize = self._call.itemsize
        # Products of inputs or sums of pairs in float64, K and T, and their public copies.
        return n1 * n2 * (16 + 6 * itemsize) + _SCRATCH * count_threads()

    @property
    def prepared_bytes(self) -> int:
        """Bytes of what `prepare` keeps of one sample."""
        return self._call.sample_bytes

    def outline(self) -> Any:
        """Returns the kernels of one sample with itself."""
        return self.tile(self.prepare(self.rows(0, 0, 1, 1)), None)

    def prepare(self, rows: Rows) -> Any:
        """Returns samples with their variances at all layers."""
        x, _ = as_inputs(rows.x, None, None)
        (prepared,) = self._call.prepare(x)
        return prepared

    def tile(self, first: Any, second: Any) -> Any:
        """Returns the kernels between two sets of samples, or of one with itself (None)."""
        fields = tuple(f for f in ARRAYS if f in parse_get(self._get))
        request = Request(
            fields, second is None, second is None and not self.given_x2,
            self._options.diagonal_spatial, self._options.axes,
        )  # fmt: skip
        return select(self._call.kernel(first, second, request), self._get)


def tiler_class(kernel_fn: Any, x1: Any, patterns: Any, get: Any, options: Any) -> Any:
    """Returns the tiler of the engine that computes a kernel."""
    if options.engine == "reference":
        return NetworkTiler
    why = kernel_fn.why_not_fused(x1, patterns, parse_get(get), options, concrete=True)
    return NetworkTiler if why else FusedTiler
