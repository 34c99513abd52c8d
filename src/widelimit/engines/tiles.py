"""Kernels of a network tile by tile: each sample is prepared once and read by many tiles."""

from __future__ import annotations

import itertools

import jax
import numpy as np
from jaxtyping import PyTree

from widelimit._cache import kept_with
from widelimit._samples import Rows, Samples, place
from widelimit.covariance.signal import is_branches
from widelimit.engines.choose import choose
from widelimit.engines.engine import Engine, NetworkEngine, answer
from widelimit.engines.inputs import (
    cast_inputs,
    check_inputs,
    same_inputs,
    same_patterns,
    working_dtype,
)
from widelimit.engines.plan import (
    bare_site,
    check_same_shapes,
    check_unmixed,
    input_axes,
    mixing_layer,
)
from widelimit.engines.reference import ReferenceEngine
from widelimit.engines.request import Options
from widelimit.layers.base import Layer
from widelimit.layers.functions import is_concrete_network
from widelimit.layers.shapes import tree_shapes
from widelimit.typing import Get, GivenAxes, InputAxes, Inputs, Pattern


class NetworkTiler:
    """Tiles of the kernels of a network, by an engine; see `widelimit.gram.tiler`.

    Attributes:
      same: whether x2 is x1, on the same graphs.
      given_x2: whether x2 was not None.
    """

    def __init__(
        self,
        net: Layer,
        inputs: tuple[Inputs, Inputs],
        get: Get,
        patterns: tuple[Pattern, Pattern],
        options: Options,
        devices: list[jax.Device],
    ) -> None:
        """Checks the inputs; nothing is computed.

        Args:
          net: the network.
          inputs: concrete x1 and x2, or None for x1.
          get: the fields to return.
          patterns: pair of concrete graph patterns.
          options: options of the call; concrete.
          devices: the devices to compute on.

        Raises:
          TypeError: inputs that are not arrays, or a traced network.
          ValueError: non-finite values, shapes that do not fit the network.
        """
        x1, x2 = inputs
        x2 = x2 if jax.tree.leaves(x2) else None
        if not is_concrete_network(net):
            raise TypeError(
                "expected a concrete network to compute kernels in tiles, got a traced one: call "
                "kernel_fn inside jit, vmap or grad"
            )
        check_inputs(x1, x2, options.mask_constant)
        self._shape = tree_shapes(x1)
        if x2 is not None:
            check_same_shapes(net, self._shape, tree_shapes(x2), options.axes)
        self.given_x2 = x2 is not None
        self._net, self._get, self._options, self._devices = net, get, options, devices
        axes = batch_axes(net, x1, options.axes)
        first = Samples.of(x1, axes, {"pattern": patterns[0]}, "x1")
        second = first
        if x2 is not None:
            second = Samples.of(x2, axes, {"pattern": patterns[1]}, "x2")
        elif patterns[1] is not None:
            second = Samples.of(x1, axes, {"pattern": patterns[1]}, "x2")
        self._sides = first, second
        self.same = second is first or (
            same_patterns(patterns, shared=False) and _same(first.x, second.x)
        )
        self._engine: Engine = choose(
            *(net, self._shape, options.request(get), options.engine),
            unusual=options.unusual(patterns),
        )

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of samples of x1 and x2."""
        return self._sides[0].count, self._sides[1].count

    @property
    def target_bytes(self) -> int:
        """Bytes beyond which larger tiles are not faster."""
        return self._engine.target_bytes * (len(self._devices) if self._on_devices else 1)

    @property
    def halves(self) -> bool:
        """Whether tiles are quick, and a tile of samples with themselves takes half the work."""
        return self._engine.halves

    def check(self) -> None:
        """Raises if the network combines samples, so that its kernel cannot be computed in tiles.

        Raises:
          ValueError: the network combines samples; the message names the layer.
        """
        if not self.counts[0]:
            return
        shapes, axes = self._shape, self._options.axes

        def find() -> str | None:
            return mixing_layer(bare_site(self._net, (shapes, shapes), axes)[1])

        check_unmixed(kept_with(self._net, ("mixing layer", shapes, axes), find))

    def layout(self) -> None:
        """Returns None: results are fields of a `Kernel`, whose axes of samples are known."""

    def tile_bytes(self, n1: int, n2: int) -> int:
        """Returns the bytes of computing a tile of n1 x n2 samples, without the samples."""
        return self._engine.pair_bytes(n1, n2)

    @property
    def prepared_bytes(self) -> int:
        """Bytes that `prepare` stores per sample, on all devices of a tile."""
        copies = 1 if len(self._devices) == 1 or not self._on_devices else len(self._devices) + 1
        return copies * (
            self._engine.sample_bytes() or self._sides[0].sample_bytes(working_dtype().itemsize)
        )

    def outline(self) -> PyTree:
        """Returns the shapes and dtypes of a tile of one sample with itself."""
        handle = self.prepare(self.rows(0, 0, 1, 1))
        if not self._on_devices:
            return self.tile(handle, None)
        return jax.eval_shape(lambda h: self.tile(h, None), handle)

    def rows(self, side: int, start: int, stop: int, size: int) -> Rows:
        """Returns samples start to stop of x1 (0) or x2 (1), the last repeated up to `size`."""
        return self._sides[side].cut(start, stop, size)

    def prepare(self, rows: Rows) -> object:
        """Returns the samples prepared by the engine."""
        rows = Rows(cast_inputs(rows.x, self._options.mask_constant), rows.extras)
        return self._placed(rows, split=False) if self._on_devices else self._prepared(rows)

    def tile(self, first: object, second: object) -> PyTree:
        """Returns the kernels between two sets of samples, or of one with itself (None).

        The samples of the first are split over the devices.
        """
        share = second is None and not self.given_x2
        if self._on_devices:
            first, second = self._read(first, len(self._devices) > 1), self._read(second, False)
        return answer(self._engine, first, second, self._get, share)

    @property
    def _on_devices(self) -> bool:
        """Whether samples are on JAX devices, and tiles are split over these."""
        return isinstance(self._engine, ReferenceEngine)

    def _prepared(self, rows: Rows) -> object:
        if isinstance(self._engine, NetworkEngine):
            pattern = rows.extras["pattern"]
            return self._engine.prepare(rows.x, pattern, self._options.mask_constant)
        return self._engine.prepare(rows.x)

    def _read(self, rows: object, split: bool) -> object:
        """Returns the samples on devices, prepared by the engine; None for None."""
        if not isinstance(rows, Rows):
            return rows
        return self._prepared(self._placed(rows, split=True) if split else rows)

    def _placed(self, rows: Rows, split: bool) -> Rows:
        return place(rows, self._sides[0].axes, self._devices, split)

    @property
    def diagonal_spatial(self) -> bool:
        """Whether results hold equal positions only."""
        return self._options.diagonal_spatial


def traced_size(net: Layer, x: Inputs, get: Get, axes: GivenAxes, most: int) -> int:
    """Returns how many samples a side of a tile should have inside a trace, `most` or fewer.

    There the reference engine computes a tile in one piece, and larger tiles are not faster.

    Args:
      net: the network.
      x: inputs, which may be traced.
      get: the fields to return.
      axes: (batch, channel) axes from the keywords of the user.
      most: the largest number.
    """
    request = Options(None, None, False, axes).request(get)
    engine, size = ReferenceEngine(net, tree_shapes(x), request, ""), most
    while size > 1 and engine.pair_bytes(size, size) > engine.traced_target_bytes:
        size = -(-size // 2)
    return size


def _same(x1: Inputs, x2: Inputs) -> bool:
    """Returns whether `same_inputs` holds for the inputs in the working dtype."""
    if tree_shapes(x1) != tree_shapes(x2):
        return False
    dtype = working_dtype()
    with np.errstate(over="ignore"):  # masked entries may overflow
        return same_inputs(*jax.tree.map(lambda v: v.astype(dtype, copy=False), (x1, x2)))


def batch_axes(net: Layer, x: Inputs, chosen: GivenAxes) -> tuple[int, ...]:
    """Returns the batch axis of every array of the inputs of a network.

    Args:
      net: the network.
      x: inputs.
      chosen: (batch, channel) axes from the keywords of the user.
    """

    def batch(part: Inputs, axes: InputAxes) -> tuple[int, ...]:
        if is_branches(part):
            return tuple(itertools.chain.from_iterable(map(batch, part, axes)))
        return (axes[0],)

    shapes = tree_shapes(x)
    axes = kept_with(net, ("input axes", shapes, chosen), lambda: input_axes(net, shapes, chosen))
    return batch(x, axes)
