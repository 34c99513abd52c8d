"""Layers given as plain functions: (init_fn, apply_fn, kernel_fn)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from widelimit._pytree import pytree, static
from widelimit.covariance import INPUT, Covariances
from widelimit.layers.base import Layer, Site
from widelimit.nt_kernel import covariances_from_kernel, kernel_from_covariances, stored_need
from widelimit.offsets import Need


@pytree
class Foreign(Layer):
    """A layer written as three functions, the third from Kernel to Kernel."""

    init_function: Callable[..., Any] = static()
    apply_function: Callable[..., Any] = static()
    kernel_function: Callable[..., Any] = static()

    @property
    def name(self) -> str:
        return getattr(self.init_function, "__name__", "Foreign")

    @property
    def label(self) -> str:
        return self.name

    def output_shape(self, shape: Any) -> Any:
        # A foreign init accepts -1 as a batch size as ours does.
        key = jax.ShapeDtypeStruct((2,), "uint32")
        static_shape: list[Any] = []

        def init(k: Array) -> Any:
            out, params = self.init_function(k, shape)
            static_shape.append(out)
            return params

        jax.eval_shape(init, key)
        return static_shape[0]

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

    def propagate(self, cov: Any, site: Site) -> Any:
        kernel = _to_kernel(cov, site.masks_in)
        kwargs = {} if site.patterns == (None, None) else {"pattern": site.patterns}
        out = self.kernel_function(kernel, **kwargs)
        return _from_kernel(out, _symmetric(cov), site.path)

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


def _symmetric(cov: Any) -> bool:
    while not isinstance(cov, Covariances):
        cov = cov[0]
    return cov.symmetric


def _from_kernel(kernel: Any, symmetric: bool, path: str) -> Any:
    """Returns what a foreign function gave by offset, with an origin of its own if it is random.

    A Gaussian output is taken as made by fresh weights.
    """
    if isinstance(kernel, list | tuple):
        parts = (_from_kernel(k, symmetric, f"{path}<{i}>") for i, k in enumerate(kernel))
        return type(kernel)(parts)
    cov = covariances_from_kernel(kernel, stored_need(kernel), symmetric)
    origin = path if kernel.is_gaussian else INPUT
    return cov.replace(origins=frozenset({origin}))


def as_layer(layer: Any) -> Layer:
    """Returns a layer, or a triple of functions as a layer.

    A triple unpacked from a network gives that network back if all three functions are its own.

    Raises:
      TypeError: `layer` is neither.
    """
    if isinstance(layer, Layer):
        return layer
    if isinstance(layer, tuple | list) and len(layer) == 3 and all(map(callable, layer)):
        nets = [getattr(function, "net", None) for function in layer]
        if nets[0] is not None and nets[0] is nets[1] and nets[1] is nets[2]:
            return nets[0]
        return Foreign(*layer)
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
            named.__name__ = layer_fn.__name__  # type: ignore[attr-defined]
            functions.append(named)
        return Foreign(*functions)

    return constructor
