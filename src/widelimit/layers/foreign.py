"""Layers given as plain functions: (init_fn, apply_fn, kernel_fn)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from widelimit._pytree import pytree, static
from widelimit.covariance import Covariances
from widelimit.layers.base import ApplyFn, InitFn, Layer, Site, as_shape
from widelimit.nt_kernel import (
    covariances_from_kernel,
    kernel_from_covariances,
    kernel_signal,
)
from widelimit.offsets import Need
from widelimit.signal import Signal


@pytree
class Foreign(Layer):
    """A layer written as three functions, the third from Kernel to Kernel.

    It must keep the number of axes, and the batch and channel axes. Its output counts as made by
    fresh weights if it is Gaussian and the input is not; else it stays correlated with whatever
    its input is correlated with.
    """

    init_function: Callable[..., Any] = static()
    apply_function: Callable[..., Any] = static()
    kernel_function: Callable[..., Any] = static()

    @property
    def name(self) -> str:
        return getattr(self.init_function, "__name__", "Foreign")

    @property
    def label(self) -> str:
        return "Foreign" if self.name in ("init_fn", "<lambda>") else self.name

    def output_shape(self, shape: Any) -> Any:
        # A foreign init accepts -1 as a batch size as ours does.
        key = jax.ShapeDtypeStruct((2,), "uint32")
        static_shape: list[Any] = []

        def init(k: Array) -> Any:
            out, params = self.init_function(k, shape)
            static_shape.append(out)
            return params

        jax.eval_shape(init, key)
        return as_shape(static_shape[0])

    def output_signal(self, signal: Any) -> Any:
        first = _leaves(signal)[0]
        shape1, shape2 = (self.output_shape(_shapes(signal, s)) for s in ("shape1", "shape2"))
        return _signals(shape1, shape2, first)

    def mask(self, mask: Any, shape: Any) -> Any:
        if mask is not None and self.output_shape(shape) != shape:
            raise NotImplementedError(
                f"expected a layer that keeps its shape {shape} when inputs are masked, got "
                f"{self.label}, given as functions: put it where nothing is masked"
            )
        return mask

    def init(self, key: Array, shape: Any) -> Any:
        return self.init_function(key, shape)[1]

    def apply(
        self, params: Any, x: Any, *, rng: Any = None, mask: Any = None, pattern: Any = None
    ) -> Any:
        kwargs = {} if pattern is None else {"pattern": pattern}
        return self.apply_function(params, x, rng=rng, **kwargs)

    def needs(self, need: Any, signal: Any) -> Any:
        if isinstance(signal, tuple):
            return tuple(Need.full(s.spatial) for s in signal)
        return Need.full(signal.spatial)

    def moduli(self, moduli: Any, signal: Any) -> Any:
        return None

    def propagate(self, cov: Any, site: Site) -> Any:
        kernel = _to_kernel(cov, site.masks_in)
        kwargs = {} if site.patterns == (None, None) else {"pattern": site.patterns}
        out = self.kernel_function(kernel, **kwargs)
        return _from_kernel(out, site.signal_out, site.need_out, _leaves(cov), site.path)

    def __repr__(self) -> str:
        return f"{self.label}(...)"


def _to_kernel(cov: Any, masks: Any) -> Any:
    if isinstance(cov, Covariances):
        return kernel_from_covariances(
            cov, diagonal_spatial=False, share=cov.symmetric, masks=masks
        )
    parts = (_to_kernel(c, (m1, m2)) for c, m1, m2 in zip(cov, *_branches(masks, cov), strict=True))
    return type(cov)(parts)


def _branches(masks: Any, cov: Any) -> Any:
    return tuple((None,) * len(cov) if m is None else m for m in masks)


def _leaves(tree: Any) -> list[Any]:
    """Returns the covariances or signals of a tree of branches."""
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree]


def _shapes(signal: Any, side: str) -> Any:
    if isinstance(signal, Signal):
        return getattr(signal, side)
    return tuple(_shapes(part, side) for part in signal)


def _signals(shape1: Any, shape2: Any, like: Signal) -> Any:
    """Returns signals of the given shapes with the axes of `like`."""
    if any(isinstance(part, tuple) for part in shape1):
        return tuple(_signals(a, b, like) for a, b in zip(shape1, shape2, strict=True))
    if len(shape1) != like.ndim:
        raise NotImplementedError(
            f"expected a layer given as functions to keep {like.ndim} axes, got {shape1}"
        )
    return Signal(shape1, shape2, like.batch_axis, like.channel_axis)


def _from_kernel(kernel: Any, signal: Any, need: Any, inputs: list[Covariances], path: str) -> Any:
    """Returns what a foreign function gave by offset."""
    if isinstance(kernel, list | tuple):
        parts = enumerate(zip(kernel, signal, need, strict=True))
        branches = (_from_kernel(k, s, n, inputs, f"{path}<{i}>") for i, (k, s, n) in parts)
        return type(kernel)(branches)
    got = kernel_signal(kernel)
    if (got.spatial, got.batch_axis) != (signal.spatial, signal.batch_axis):
        raise ValueError(f"expected a kernel of {signal} from the given function, got {got}")
    cov = covariances_from_kernel(kernel, need, inputs[0].symmetric)
    fresh = kernel.is_gaussian and not all(part.gaussian for part in inputs)
    origins = {path} if fresh else set().union(*(part.origins for part in inputs))
    return cov.replace(origins=frozenset(origins), signal=signal)


def as_layer(layer: Any) -> Layer:
    """Returns a layer, or a triple of functions as a layer.

    A triple unpacked from a network gives that network back if all three functions are its own.

    Raises:
      TypeError: `layer` is neither.
    """
    if isinstance(layer, Layer):
        return layer
    if isinstance(layer, tuple | list) and len(layer) == 3 and all(map(callable, layer)):
        init, apply, kernel = layer
        if isinstance(init, InitFn) and isinstance(apply, ApplyFn):
            net = init.net
            if apply.net is net and getattr(kernel, "net", None) is net:
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


def layer(layer_fn: Callable[..., Any]) -> Callable[..., Layer]:
    """Returns a constructor of layers from a function that returns three functions.

    Args:
      layer_fn: returns `(init_fn, apply_fn, kernel_fn)` with `kernel_fn` from Kernel to Kernel.
    """

    @functools.wraps(layer_fn)
    def constructor(*args: Any, **kwargs: Any) -> Layer:
        init_fn, apply_fn, kernel_fn = layer_fn(*args, **kwargs)[:3]
        functions = []
        for function in (init_fn, apply_fn, kernel_fn):
            named = functools.wraps(function)(functools.partial(function))
            named.__name__ = layer_fn.__name__
            functions.append(named)
        return Foreign(*functions)

    return constructor
