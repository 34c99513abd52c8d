"""The functions of a network: init_fn, apply_fn and kernel_fn."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from widelimit._pytree import is_concrete
from widelimit.engines.choose import choose
from widelimit.engines.engine import Engine, EngineMaker, NetworkEngine, answer
from widelimit.engines.inputs import (
    as_inputs,
    as_patterns,
    same_inputs,
    same_patterns,
    shares_x1,
    stored_diagonal,
)
from widelimit.engines.plan import (
    bare_site,
    check_same_shapes,
    check_unmixed,
    make_site,
    mixing_layer,
    output_need,
)
from widelimit.engines.request import Options
from widelimit.engines.tiles import NetworkTiler, batch_axes, traced_size
from widelimit.kernel.get import parse_get, select_fields
from widelimit.kernel.kernel import Kernel, holds_kernels, kernel_signal, map_kernels
from widelimit.kernel.masking import MaskedArray, split_mask
from widelimit.layers.base import Layer, located, run_layer
from widelimit.layers.context import Context
from widelimit.layers.functions import as_now, is_concrete_network
from widelimit.layers.shapes import as_shape, tree_shapes
from widelimit.tracing.varying import varying_axes
from widelimit.typing import (
    Arrays,
    Get,
    GivenAxes,
    Inputs,
    Key,
    Masks,
    Params,
    Pattern,
    Scalar,
    Shapes,
)


class NetFunction:
    """Base class of the three functions of a network; equal if of the same kind and network.

    Attributes:
      net: the network.
    """

    def __init__(self, net: Layer) -> None:
        self.net = net
        self.__name__ = net.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.net!r})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NetFunction) and type(self) is type(other) and self.net is other.net
        )

    def __hash__(self) -> int:
        return hash((type(self), id(self.net)))


class InitFn(NetFunction):
    """The function `init_fn(rng, input_shape)` of a network: it initialises finite networks."""

    def __call__(self, rng: Key, input_shape: Shapes) -> tuple[Shapes, Params]:
        """Returns the output shape and the parameters of a random finite network.

        Args:
          rng: a JAX random key.
          input_shape: shape of the input, or a list or tuple of shapes for parallel networks;
            the batch size may be -1.

        Raises:
          ValueError: a shape does not fit; the message names the layer.
        """
        shape = as_shape(input_shape)
        with located(self.net.label):
            return self.net.output_shape(shape), self.net.init(rng, shape)


class ApplyFn(NetFunction):
    """The function `apply_fn(params, inputs)` of a network: it evaluates finite networks."""

    def __call__(
        self,
        params: Params,
        inputs: Inputs,
        *,
        rng: Key | None = None,
        pattern: Pattern = None,
        mask_constant: Scalar | None = None,
        **kwargs: object,
    ) -> Arrays:
        """Returns the outputs of the finite network.

        Args:
          params: parameters from `init_fn`.
          inputs: an array, a `MaskedArray`, or a list or tuple of them for parallel networks.
          rng: random key, needed by Dropout in training.
          pattern: graph patterns.
          mask_constant: entries of `inputs` equal to it are masked; the result is then a
            `MaskedArray`.
          **kwargs: ignored, so that the same call works for networks of other libraries too.

        Returns:
          An array, a `MaskedArray` if the inputs are masked, or a list or tuple of them.

        Raises:
          ValueError: inputs or parameters that do not fit; the message names the layer.
        """
        with located(self.net.label):
            x, mask = split_mask(inputs, mask_constant)
            shape = tree_shapes(x)
            out = run_layer(self.net, params, x, Context(rng, mask, pattern))
            if not jax.tree.leaves(mask):
                return out
            return _pair_masks(out, self.net.mask(mask, shape))


def _pair_masks(out: Arrays, mask: Masks) -> Arrays:
    if isinstance(out, list | tuple):
        return type(out)(_pair_masks(o, m) for o, m in zip(out, mask, strict=True))
    return MaskedArray(out, mask)


class KernelFn(NetFunction):
    """The function `kernel_fn(x1, x2, get)` of a network: its kernels at infinite width.

    Example:
      >>> import jax.numpy as jnp
      >>> from widelimit import stax
      >>> _, _, kernel_fn = stax.serial(stax.Dense(512), stax.Relu(), stax.Dense(1))
      >>> x1, x2 = jnp.ones((3, 8)), jnp.zeros((2, 8))
      >>> kernel_fn(x1, x2, "nngp").shape
      (3, 2)
      >>> kernels = kernel_fn(x1, None, ("nngp", "ntk"))
      >>> kernels.nngp.shape, kernels.ntk.shape
      ((3, 3), (3, 3))
    """

    @property
    def is_concrete(self) -> bool:
        """Whether all hyper-parameters of the network are concrete (not traced)."""
        return is_concrete_network(self.net)

    def __call__(
        self,
        x1: Inputs,
        x2: Inputs = None,
        get: Get = None,
        *,
        pattern: Pattern = None,
        mask_constant: Scalar | None = None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        engine: str | EngineMaker = "auto",
        **kwargs: object,
    ) -> PyTree:
        """Returns the kernels between x1 and x2.

        K (NNGP) is the covariance of outputs over random networks, per channel; T (NTK) is the
        limit of J(x1) J(x2)^T. Inputs enter as K = mean over channels of x1 x2, uncentred. Calls
        can be traced by jit, vmap and grad. Traced x1 and x2 always count as different: pass
        x2=None, or the same object, for the kernel of x1 with itself.

        Args:
          x1: array [n1, ..., channels] of any real dtype, or a `Kernel`, or a list or tuple of
            them for networks with parallel inputs. Computed in float32, or float64 with x64 on.
          x2: array [n2, ..., channels], or None for x1; must be None with a `Kernel`.
          get: 'nngp', 'ntk' or another field of `Kernel` for that array; a tuple of names for a
            named tuple; None for the whole `Kernel`.
          pattern: pair of graph patterns (for x1, for x2).
          mask_constant: entries of the inputs equal to it are masked.
          diagonal_batch: False returns cov1 and cov2 between all samples.
          diagonal_spatial: True returns equal positions only; None does so for a `Kernel` that
            holds no others.
          engine: 'auto' takes the engine of `choose_engine`, but the reference engine for masks,
            graph patterns and Kernels; 'reference' takes plain JAX, with derivatives in forward and
            reverse mode; 'fused' raises if the fused engine does not support the call. Or your own
            class: see `Engine`.
          **kwargs: `batch_axis` and `channel_axis` of the inputs, if the network has none or the
            same; `rng` is ignored; others are refused.

        Returns:
          An array [n1, n2, ...] for a name, a named tuple of arrays for a tuple of names, or a
          `Kernel`; a tuple of these for a network with several outputs.

        Raises:
          ValueError: shapes, masks or layers that do not fit, NaN in the inputs, unknown `get`.
          TypeError: inputs that are not arrays, unknown keywords.
        """
        parse_get(get)
        axes = _keywords(kwargs)
        if diagonal_spatial is None:
            diagonal_spatial = stored_diagonal(x1)
        options = Options(mask_constant, diagonal_batch, bool(diagonal_spatial), axes, engine)
        with located(self.net.label):
            x1, x2 = as_inputs(x1, x2, mask_constant)
            if x2 is not None:
                check_same_shapes(self.net, tree_shapes(x1), tree_shapes(x2), axes)
        return _evaluate(as_now(self.net), x1, x2, get, as_patterns(pattern), options)

    def fields(self, get: Get) -> tuple[str, ...]:
        """Returns the names of the `Kernel` fields in `get`; see `parse_get`.

        Args:
          get: as for a call.
        """
        return parse_get(get)

    def select(self, kernels: PyTree, get: Get) -> PyTree:
        """Returns the fields of whole kernels that `get` names; see `get.select_fields`.

        Args:
          kernels: a `Kernel`, or a tree of Kernels.
          get: as for a call.
        """
        return select_fields(kernels, get)

    def tiler(
        self,
        x1: Inputs,
        x2: Inputs,
        get: Get,
        devices: list[jax.Device],
        *,
        pattern: Pattern = None,
        mask_constant: Scalar | None = None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        engine: str | EngineMaker = "auto",
        **kwargs: object,
    ) -> NetworkTiler:
        """Returns a tiler, which computes the kernels between concrete x1 and x2 tile by tile.

        Args:
          x1: arrays, as for a call.
          x2: arrays, or None for x1.
          get: as for a call.
          devices: the devices to compute on, a list.
          pattern: as for a call.
          mask_constant: as for a call.
          diagonal_batch: as for a call, but not False.
          diagonal_spatial: as for a call.
          engine: as for a call.
          **kwargs: as for a call.

        Raises:
          ValueError: as for a call.
          TypeError: as for a call, or traced inputs.
          NotImplementedError: `diagonal_batch=False`.
        """
        parse_get(get)
        if diagonal_batch is False:
            raise NotImplementedError(
                "expected diagonal_batch=None or True for kernels computed in tiles, got False: "
                "covariances between all samples of a batch do not follow from tiles of x1 and x2"
            )
        axes = _keywords(kwargs)
        options = Options(mask_constant, None, bool(diagonal_spatial), axes, engine)
        with located(self.net.label):
            net = as_now(self.net)
            return NetworkTiler(net, (x1, x2), get, as_patterns(pattern), options, devices)

    def batch_axes(self, x: Inputs, **axes: int | None) -> tuple[int, ...]:
        """Returns the batch axis of every array of the inputs.

        Args:
          x: the inputs.
          **axes: `batch_axis` and `channel_axis`, as for a call.
        """
        return batch_axes(self.net, x, _keywords(axes))

    def traced_size(self, x: Inputs, get: Get, most: int, **axes: int | None) -> int:
        """Returns how many samples a side of a tile of traced arrays should have.

        Args:
          x: the inputs.
          get: as for a call.
          most: the largest number.
          **axes: `batch_axis` and `channel_axis`, as for a call.
        """
        return traced_size(self.net, x, get, _keywords(axes), most)

    def check_tiles(self, x: Inputs, **axes: int | None) -> None:
        """Raises if inputs, arrays or kernels of x1 and x2, cannot be cut into tiles of samples.

        Args:
          x: the inputs; they may be traced.
          **axes: `batch_axis` and `channel_axis`, as for a call.

        Raises:
          ValueError: a layer combines samples; the message names it.
        """
        if not holds_kernels(x):
            shapes = tree_shapes(x)
            _, site = bare_site(self.net, (shapes, shapes), _keywords(axes))
        else:
            signal = map_kernels(kernel_signal, x)
            need = output_need(self.net.output_signal(signal), diagonal_spatial=False, own=False)
            site = make_site(self.net, signal, need, (None, None), (None, None))
        check_unmixed(mixing_layer(site))


class _Query(NamedTuple):
    """A network and a request for its kernels, without the samples.

    Attributes:
      net: the network.
      shape: shape of x1, or a tree of shapes.
      options: the options of the call.
      unusual: the reason why only the reference engine can compute it; or None.
      traced: shape of x2 (of x1 without one) where inputs or hyper-parameters are traced; or None.
    """

    net: Layer
    shape: Shapes
    options: Options
    unusual: str | None
    traced: Shapes | None = None

    def engine(self, get: Get) -> Engine:
        """Returns the engine that computes the fields in `get`."""
        request = self.options.request(get)
        return choose(self.net, self.shape, request, self.options.engine, self.unusual, self.traced)

    def prepared(self, engine: Engine, side: _Input | None) -> object:
        """Returns samples prepared by an engine, None for None."""
        if side is None:
            return None
        if isinstance(engine, NetworkEngine):
            return engine.prepare(side.x, side.pattern, self.options.mask_constant)
        return engine.prepare(side.x)


class _Input(NamedTuple):
    """The samples of x1 or x2, and their graph pattern."""

    x: Inputs
    pattern: Pattern


def _evaluate(
    net: Layer, x1: Inputs, x2: Inputs, get: Get, patterns: Pattern, options: Options
) -> PyTree:
    """Returns the kernels between inputs that `as_inputs` has converted."""
    query = _query(net, x1, x2, patterns, options)
    # Equal inputs with different graphs are different inputs.
    symmetric = same_inputs(x1, x2) and same_patterns(patterns, shared=x2 is None)
    share = symmetric and shares_x1(x1, x2)
    first, second = _Input(x1, patterns[0]), _Input(x1 if x2 is None else x2, patterns[1])
    other = None if symmetric else second
    if options.diagonal_batch is False and {"cov1", "cov2", "diagonal_batch"} & {*parse_get(get)}:
        return select_fields(_full_batch(query, get, first, other, share), get)
    engine = query.engine(get)
    sides = query.prepared(engine, first), query.prepared(engine, other)
    return jax.tree.map(_to_jax, answer(engine, *sides, get, share))


def _to_jax(value: object) -> object:
    """Returns an array of JAX, without a copy of a writeable array from an engine."""
    if not isinstance(value, np.ndarray):
        return value
    return jnp.from_dlpack(value) if value.flags.writeable else jnp.array(value)


def _query(net: Layer, x1: Inputs, x2: Inputs, patterns: Pattern, options: Options) -> _Query:
    if holds_kernels(x1):
        return _Query(net, (), options, "the inputs are Kernels")
    unusual = options.unusual(patterns)
    if is_concrete_network(net) and is_concrete(x1, x2):
        return _Query(net, tree_shapes(x1), options, unusual)
    if varying_axes((net, x1, x2)):
        unusual = "samples are spread over devices"
    traced = tree_shapes(x1 if x2 is None else x2)
    return _Query(net, tree_shapes(x1), options, unusual, traced)


def _full_batch(
    query: _Query, get: Get, first: _Input, second: _Input | None, share: bool
) -> PyTree[Kernel]:
    """Returns kernels with covariances between all samples of each side in cov1 and cov2."""
    if holds_kernels(first.x):
        raise NotImplementedError(
            "expected arrays with diagonal_batch=False, got a Kernel: pass the inputs instead"
        )
    engine, square = query.engine(get), query.engine("nngp")
    if not (isinstance(engine, NetworkEngine) and isinstance(square, NetworkEngine)):
        raise NotImplementedError(
            f"expected an engine of widelimit with diagonal_batch=False, got {engine.name!r}"
        )
    result = engine.kernels(query.prepared(engine, first), query.prepared(engine, second), share)
    full1 = square.kernels(query.prepared(square, first), None, True)
    full2 = full1 if second is None else square.kernels(query.prepared(square, second), None, True)

    def join(kernel: PyTree[Kernel], one: PyTree[Kernel], two: PyTree[Kernel]) -> PyTree[Kernel]:
        if not isinstance(kernel, Kernel):
            return type(kernel)(map(join, kernel, one, two))
        return kernel.replace(cov1=one.nngp, cov2=None if share else two.nngp, diagonal_batch=False)

    return join(result, full1, full2)


def _keywords(kwargs: Mapping[str, object]) -> GivenAxes:
    if not kwargs:
        return None, None
    # Infinite networks are not random, but callers pass rng to any kernel_fn.
    others = [name for name in kwargs if name not in ("batch_axis", "channel_axis", "rng")]
    if others:
        raise TypeError(
            "expected the keywords pattern, mask_constant, diagonal_batch, diagonal_spatial, "
            f"batch_axis, channel_axis or rng, got {', '.join(others)}"
        )
    return _axis(kwargs, "batch_axis"), _axis(kwargs, "channel_axis")


def _axis(kwargs: Mapping[str, object], name: str) -> int | None:
    """Returns an axis from the keywords, None if missing."""
    value = kwargs.get(name)
    if value is None:
        return None
    if not isinstance(value, SupportsIndex):
        raise TypeError(f"expected an int for {name}, got {value!r}")
    return operator.index(value)


Layer.functions = InitFn, ApplyFn, KernelFn
