"""Layers made of plain functions: (init_fn, apply_fn, kernel_fn), and perhaps mask_fn."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from widelimit._pytree import pytree, static
from widelimit.covariance.covariances import Covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.signal import Signal
from widelimit.kernel.conversion import kernel_from_covariances
from widelimit.kernel.kernel import Kernel
from widelimit.layers.base import Layer, Site
from widelimit.layers.context import Context
from widelimit.layers.developer import Requirements
from widelimit.layers.returned import covariances_of, output_axes
from widelimit.layers.shapes import as_shape
from widelimit.typing import (
    ApplyFunction,
    Arrays,
    Covs,
    Function,
    InitFunction,
    Key,
    Masks,
    Moduli,
    Needs,
    Params,
    Shapes,
    Signals,
)


@pytree
class Foreign(Layer):
    """A layer made of functions (init_fn, apply_fn, kernel_fn), and perhaps mask_fn.

    `init_fn` returns the shape of the output. The arrays of the Kernel that `kernel_fn` returns
    must fit it, whether its `shape1` and `shape2` are new or not. Batch and channel axis keep their
    places before or behind the spatial axes. The output counts as made by fresh weights if it is
    Gaussian and the input is not; else it is correlated with the same branches as the input.
    `kernel_fn` gets Kernels with all pairs of positions, or with equal positions only if its
    requirements say that they suffice and no others are needed.
    """

    called_anew = True

    init_function: InitFunction = static()
    apply_function: ApplyFunction = static()
    kernel_function: Function = static()
    mask_function: Function | None = static(default=None)

    @property
    def requirements(self) -> Requirements:
        """The requirements of `kernel_fn` on its argument."""
        return Requirements.of(self.kernel_function)

    @property
    def name(self) -> str:
        return getattr(self.init_function, "__name__", "Foreign")

    @property
    def label(self) -> str:
        return "Foreign" if self.name in ("init_fn", "<lambda>") else self.name

    def input_axes(self) -> tuple[int, int] | None:
        stated = self.requirements
        if stated.batch_axis is None and stated.channel_axis is None:
            return None
        channel = -1 if stated.channel_axis is None else stated.channel_axis
        return stated.batch_axis or 0, channel

    def output_shape(self, shape: Shapes) -> Shapes:
        # Foreign init functions accept a batch size of -1, as ours do.
        key = jax.ShapeDtypeStruct((2,), "uint32")
        static_shape: list[Shapes] = []

        def init(k: Array) -> Params:
            out, params = self.init_function(k, shape)
            static_shape.append(out)
            return params

        jax.eval_shape(init, key)
        return as_shape(static_shape[0])

    def output_signal(self, signal: Signals) -> Signals:
        first = _leaves(signal)[0]
        shape1, shape2 = (self.output_shape(_shapes(signal, s)) for s in ("shape1", "shape2"))
        return _signals(shape1, shape2, first)

    def mask(self, mask: Masks, shape: Shapes) -> Masks:
        if mask is None:
            return None
        out = self.output_shape(shape)
        if self.mask_function is not None:
            return _fitting_mask(self.mask_function(mask, shape), out)
        if out != shape:
            raise NotImplementedError(
                f"expected a layer that keeps its shape {shape} when inputs are masked, or one "
                f"with masks (see stax.supports_masking), got {self.label}, made of functions"
            )
        return mask

    def init(self, key: Key, shape: Shapes) -> Params:
        return self.init_function(key, shape)[1]

    def apply(self, params: Params, x: Arrays, context: Context) -> Arrays:
        kwargs = {} if context.pattern is None else {"pattern": context.pattern}
        if context.mask is not None and self.mask_function is not None:
            kwargs["mask"] = context.mask
        return self.apply_function(params, x, rng=context.rng, **kwargs)

    def needs(self, need: Needs, signal: Signals) -> Needs:
        if not self.requirements.diagonal_batch:
            raise NotImplementedError(
                "expected a layer that keeps samples apart, got one made of functions that "
                "requires diagonal_batch=False"
            )
        equal = self._equal_positions(need)
        if isinstance(signal, tuple):
            return tuple(_all_pairs(s, equal) for s in signal)
        return _all_pairs(signal, equal)

    def _equal_positions(self, need: Needs) -> bool:
        """Returns whether equal positions of the input are enough for the offsets needed."""
        zero = all(not set(axis) - {0} for n in _leaves(need) for axis in (n.cross | n.own).axes)
        return zero and self.requirements.equal_positions

    def moduli(self, moduli: Moduli, signal: Signals) -> Moduli:
        return None

    def mixes_samples(self, signal: Signals) -> bool:
        before, after = (
            {(s.n1, s.n2) for s in _leaves(t)} for t in (signal, self.output_signal(signal))
        )
        return before != after

    def propagate(self, cov: Covs, site: Site) -> Covs:
        kernel = _to_kernel(cov, site.masks_in, self._equal_positions(site.need_out))
        kwargs = {} if all(p is None for p in site.patterns) else {"pattern": site.patterns}
        out = self.kernel_function(kernel, **kwargs)
        return _Returned(_leaves(cov), _leaves(kernel)).part(
            out, site.signal_out, site.need_out, site.masks_out[0], site.path
        )

    def __repr__(self) -> str:
        return f"{self.label}(...)"


def _all_pairs(signal: Signal, equal: bool) -> Need:
    return Need.zero(len(signal.spatial)) if equal else Need.full(signal.spatial)


def _fitting_mask(mask: Masks, shape: Shapes) -> Masks:
    """Returns the masks of a `mask_fn`, or raises if they do not fit outputs of `shape`."""
    if mask is None:
        return None
    if any(isinstance(part, tuple) for part in shape):
        return tuple(map(_fitting_mask, mask, shape))
    sizes = jnp.shape(mask)
    fits = len(sizes) == len(shape) and all(
        size in (1, out) for size, out in zip(sizes, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"expected a mask for outputs of shape {shape}, got one of shape {sizes}: return a "
            "fourth function mask_fn(mask, input_shape)"
        )
    return jnp.asarray(mask)


def _to_kernel(cov: Covs, masks: Masks, equal: bool) -> PyTree[Kernel]:
    if isinstance(cov, Covariances):
        return kernel_from_covariances(
            cov, diagonal_spatial=equal, share=cov.symmetric, masks=masks
        )
    branches = ((None,) * len(cov) if m is None else m for m in masks)
    parts = zip(cov, *branches, strict=True)
    return type(cov)(_to_kernel(c, (m1, m2), equal) for c, m1, m2 in parts)


def _leaves(tree: PyTree) -> list[PyTree]:
    """Returns the covariances or signals of a tree of branches."""
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree]


def _shapes(signal: Signals, side: str) -> Shapes:
    if isinstance(signal, Signal):
        return getattr(signal, side)
    return tuple(_shapes(part, side) for part in signal)


def _signals(shape1: Shapes, shape2: Shapes, like: Signal) -> Signals:
    """Returns signals of shapes `shape1` and `shape2` with the axes of `like`."""
    if any(isinstance(part, tuple) for part in shape1):
        return tuple(_signals(a, b, like) for a, b in zip(shape1, shape2, strict=True))
    return Signal(shape1, shape2, *output_axes(like, len(shape1)))


@dataclasses.dataclass(frozen=True)
class _Returned:
    """The arguments of a foreign function, to check its result against.

    Attributes:
      inputs: covariances of its input, branch by branch.
      kernels: the same as Kernels.
    """

    inputs: list[Covariances]
    kernels: list[Kernel]

    def part(self, kernel: PyTree, signal: Signals, need: Needs, mask: Masks, path: str) -> Covs:
        """Returns the result of a foreign function as covariances by offset."""
        branches = len(kernel) if isinstance(kernel, list | tuple) else None
        expected = None if isinstance(signal, Signal) else len(signal)
        if branches != expected:
            raise ValueError(
                f"expected {_count(expected)} from kernel_fn, as from init_fn, got "
                f"{_count(branches)}"
            )
        if branches is not None:
            masks = (None,) * branches if mask is None else mask
            parts = enumerate(zip(kernel, signal, need, masks, strict=True))
            return type(kernel)(self.part(*part, f"{path}<{i}>") for i, part in parts)
        symmetric = self.inputs[0].symmetric
        cov = covariances_of(kernel, signal, need, mask is not None, self.kernels, symmetric)
        fresh = kernel.is_gaussian and not all(part.gaussian for part in self.inputs)
        origins = {path} if fresh else set().union(*(part.origins for part in self.inputs))
        return cov.replace(origins=frozenset(origins))


def _count(branches: int | None) -> str:
    return "one Kernel" if branches is None else f"a list or tuple of {branches} Kernels"


LayerLike: TypeAlias = Layer | tuple[Function, ...] | list[Function]
"""A layer, or its functions (init_fn, apply_fn, kernel_fn), and perhaps mask_fn."""


def as_layer(layer: LayerLike) -> Layer:
    """Returns a layer; functions (init_fn, apply_fn, kernel_fn), and perhaps mask_fn, become one.

    Three functions unpacked from one network give that network back.

    Raises:
      TypeError: `layer` is neither.
    """
    if isinstance(layer, Layer):
        return layer
    if isinstance(layer, tuple | list) and len(layer) in (3, 4) and all(map(callable, layer)):
        init, apply, kernel = layer[:3]
        net = getattr(kernel, "net", None)
        if isinstance(net, Layer) and (init, apply) == (net.init_fn, net.apply_fn):
            return net
        return Foreign(*layer)
    if isinstance(layer, type) and issubclass(layer, Layer):
        raise TypeError(
            f"expected a layer, got the class {layer.__name__}: write {layer.__name__}()"
        )
    raise TypeError(
        "expected a layer or a triple of functions (init_fn, apply_fn, kernel_fn), got "
        f"{type(layer).__name__}"
    )


def layer(layer_fn: Function) -> Callable[..., Layer]:
    """Returns a constructor of layers; a decorator of functions that return a layer's functions.

    Args:
      layer_fn: returns `(init_fn, apply_fn, kernel_fn)` with `kernel_fn` from Kernel to Kernel, and
        optionally a fourth function `mask_fn(mask, input_shape)` from masks to masks; see also
        `requires` and `supports_masking`. `init_fn` returns the shape of the output, and the
        arrays of the Kernel must fit it; its `shape1`, `shape2` and axes may be left unchanged.

    Raises:
      TypeError: the constructor, if `layer_fn` does not return three or four functions.
      ValueError: the network, if the arrays of a Kernel do not fit the shape from `init_fn`.

    Example:
      >>> from widelimit import stax
      >>> @stax.layer
      ... @stax.supports_masking(remask_kernel=False)
      ... def Scale(factor):
      ...     init_fn = lambda rng, input_shape: (input_shape, ())
      ...     apply_fn = lambda params, x, **kwargs: factor * x
      ...     kernel_fn = stax.requires(diagonal_spatial=stax.Diagonal())(
      ...         lambda k, **kwargs: k * factor
      ...     )
      ...     return init_fn, apply_fn, kernel_fn
      >>> net = stax.serial(stax.Dense(512), Scale(2.0), stax.Relu(), stax.Dense(1))
    """

    @functools.wraps(layer_fn)
    def constructor(*args: object, **kwargs: object) -> Layer:
        parts = tuple(layer_fn(*args, **kwargs))
        if len(parts) not in (3, 4) or not all(map(callable, parts)):
            raise TypeError(
                f"expected three or four functions from {layer_fn.__name__} (init_fn, apply_fn, "
                f"kernel_fn, mask_fn), got {len(parts)} objects"
            )
        functions = []
        for function in parts:
            named = functools.wraps(function)(functools.partial(function))
            named.__name__ = layer_fn.__name__
            functions.append(named)
        return Foreign(*functions)

    return constructor
