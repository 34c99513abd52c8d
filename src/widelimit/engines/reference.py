"""The reference engine: covariances through the layers' own rules, in plain JAX."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from widelimit._pytree import is_concrete
from widelimit.covariance.covariances import KERNEL, Covariances
from widelimit.covariance.layout import input_covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.signal import Signal
from widelimit.engines.inputs import working_dtype
from widelimit.engines.plan import input_axes, input_signal, leading_flatten, make_site, output_need
from widelimit.engines.request import Request, requested
from widelimit.kernel.conversion import covariances_from_kernel, kernel_from_covariances
from widelimit.kernel.kernel import Kernel, kernel_signal
from widelimit.kernel.masking import split_mask
from widelimit.layers.base import Layer, Site, located, tree_shapes
from widelimit.layers.functions import evaluates_functions, layers_of
from widelimit.layers.numerical import SeriesLayer
from widelimit.layers.step import Trio, join_trio, mask_covariances, step

_LARGE = 100.0  # squares of entries from which on smooth duals lose more than 1e-5 in float32


def compute(whole: bool, net: Layer, x1: Any, x2: Any, *, request: Request, **inputs: Any) -> Any:
    """Returns a `Kernel` (or a tree of them) that holds the requested arrays.

    The conversion is compiled apart: XLA would compute an entry once for either triangle of a
    symmetric kernel, rounded in two ways. Where float32 is too short for concrete inputs, all is
    computed in float64.
    """
    if _wants_float64(net, x1, x2):
        return _in_float64(compute, whole, net, x1, x2, request=request, **inputs)
    found = _compute(whole, net, x1, x2, request=request, **inputs)
    if any(isinstance(layer, SeriesLayer) for layer in layers_of(net)) and is_concrete(found):
        _check_series(found)
    return found


def _check_series(found: Any) -> None:
    """Raises if a series was cut where that shows.

    Raises:
      ValueError: there is NaN among the results.
    """
    leaves = jax.tree.leaves(found)
    if any(np.isnan(v).any() for v in leaves if jnp.issubdtype(v.dtype, jnp.floating)):
        raise ValueError(
            "expected inputs and weights that give the series of a nonlinearity (Tanh, "
            "Elementwise, ...) variances of at most 100, or correlations of at most 0.9, got "
            "larger ones: the kernel would be off by more than 1e-8 (1e-5 in float32). Scale the "
            "inputs, or take Erf, Gelu or another nonlinearity with a formula"
        )


def _compute(whole: bool, net: Layer, x1: Any, x2: Any, *, request: Request, **inputs: Any) -> Any:
    run = _propagate_whole if whole and not evaluates_functions(net) else _propagate
    out, site = run(net, x1, x2, request=request, **inputs)
    return leave(out, site, site.masks_out, request)


def _wants_float64(net: Layer, x1: Any, x2: Any) -> bool:
    """Returns whether float32 would lose the result: smooth nonlinearities and large inputs."""
    if working_dtype() == np.float64 or holds_kernels(x1) or not is_concrete(net, x1, x2):
        return False
    if not any(getattr(layer, "subtracts", False) for layer in layers_of(net)):
        return False
    values = (np.asarray(leaf) for leaf in jax.tree.leaves((x1, x2)))
    sizes = [np.square(v, dtype=np.float64) for v in values if np.issubdtype(v.dtype, np.floating)]
    return any(square[np.isfinite(square)].max(initial=0) > _LARGE for square in sizes)


def _in_float64(
    function: Any, whole: bool, net: Layer, *xs: Any, mask_constant: Any, **keywords: Any
) -> Any:
    """Returns results of float32 inputs, computed in float64 and rounded at the end."""

    def cast(tree: Any, old: Any, new: Any) -> Any:
        return jax.tree.map(lambda v: v.astype(new) if v.dtype == old else v, tree)

    with jax.enable_x64(True):
        if mask_constant is not None:
            mask_constant = np.float32(mask_constant)  # as the inputs were rounded
        wide = (cast(x, np.float32, np.float64) for x in xs)
        found = function(whole, net, *wide, mask_constant=mask_constant, **keywords)
        return cast(found, np.float64, np.float32)


def _propagate(
    net: Layer, x1: Any, x2: Any, *, mask_constant: Any, patterns: Any, request: Request
) -> tuple[Any, Site]:
    """Returns the covariances of the output, and what is to be known of the site of the network."""
    with located(net.label):
        if holds_kernels(x1):
            cov, site, net = _enter_kernels(net, x1, patterns, request)
        else:
            cov, site, net = _enter_arrays(net, x1, x2, mask_constant, patterns, request)
        out = step(net, cov, site)
    nothing = (None, None)
    return out, dataclasses.replace(site, children=(), masks_in=nothing, patterns=nothing)


_propagate_whole = jax.jit(_propagate, static_argnames="request")


def _enter_arrays(
    net: Layer, x1: Any, x2: Any, mask_constant: Any, patterns: Any, request: Request
) -> tuple[Any, Any, Layer]:
    """Returns the covariances of the inputs, the site of the network, and what is left of it."""
    x1, mask1 = split_mask(x1, mask_constant)
    x2, mask2 = split_mask(x2, mask_constant)
    net, flatten = leading_flatten(net)
    axes = request.axes
    if flatten is not None:
        flatten.check_input(tree_shapes(x1), axes[0])
        x1, mask1 = flatten.apply((), x1), flatten.mask(mask1, x1.shape)
        if x2 is not None:
            x2, mask2 = flatten.apply((), x2), flatten.mask(mask2, x2.shape)
        batch = flatten.batch_axis_out % 2
        axes = batch, 1 - batch
    shape1 = tree_shapes(x1)
    shape2 = shape1 if x2 is None else tree_shapes(x2)
    signal = input_signal(shape1, shape2, input_axes(net, shape1, axes))
    masks = tuple(m if jax.tree.leaves(m) else None for m in (mask1, mask2))
    need = _output_need(net, signal, request)
    site = make_site(net, signal, need, masks, patterns)
    tangent = "ntk" in request.fields
    cov = _inputs(x1, x2, signal, site.need_in, masks, tangent)
    if site.pairs and x2 is not None:
        alone = site.side(0), site.side(1)
        first, second = (
            _inputs(x, None, at.signal_in, site.need_in, at.masks_in, tangent)
            for x, at in zip((x1, x2), alone, strict=True)
        )
        cov = join_trio(first, second, cov)
    return cov, site, net


def _output_need(net: Layer, signal: Any, request: Request) -> Any:
    own = bool({"cov1", "cov2"} & set(request.fields))
    return output_need(net.output_signal(signal), request.diagonal_spatial, own)


def _inputs(x1: Any, x2: Any, signal: Any, need: Any, masks: Any, tangent: bool) -> Any:
    """Returns the covariances of arrays or of trees of arrays."""
    if isinstance(signal, Signal):
        return _masked_inputs(x1, x2, masks, signal, need, tangent)
    parts = []
    for i, part in enumerate(signal):
        inner = tuple(None if m is None else m[i] for m in masks)
        parts.append(_inputs(x1[i], None if x2 is None else x2[i], part, need[i], inner, tangent))
    return type(x1)(parts)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _masked_inputs(
    x1: Any, x2: Any, masks: Any, signal: Signal, need: Need, tangent: bool
) -> Covariances:
    return mask_covariances(input_covariances(x1, x2, signal, need, tangent), masks)


_public = jax.jit(kernel_from_covariances, static_argnames=("diagonal_spatial", "share"))


def _enter_kernels(
    net: Layer, kernels: Any, patterns: Any, request: Request
) -> tuple[Any, Any, Layer]:
    """Returns the same as `_enter_arrays` for public kernels."""
    signal = map_kernels(kernel_signal, kernels)
    masks1 = map_kernels(lambda k: k.mask1, kernels)
    masks2 = map_kernels(lambda k: k.mask2, kernels)
    masks = tuple(m if jax.tree.leaves(m) else None for m in (masks1, masks2))
    need = _output_need(net, signal, request)
    site = make_site(net, signal, need, masks, patterns)

    def enter(kernel: Any, part: Any, origin: str) -> Any:
        if not isinstance(kernel, Kernel):
            pairs = enumerate(zip(kernel, part, strict=True))
            return type(kernel)(enter(k, n, f"{origin}[{i}]") for i, (k, n) in pairs)
        cov = covariances_from_kernel(kernel, part, kernel.cov2 is None or request.symmetric)
        # Kernels given side by side are taken as independent: nothing tells where they come from.
        # For the same reason a kernel is not taken as raw input.
        tangent = cov.tangent and "ntk" in request.fields
        return cov.replace(origins=frozenset({origin}), tangent=tangent)

    cov = enter(kernels, site.need_in, KERNEL)
    if site.pairs and not request.symmetric:
        first, second = (enter(_map_sides(kernels, i), site.need_in, KERNEL) for i in (0, 1))
        cov = join_trio(first, second, cov)
    return cov, site, net


def _map_sides(kernels: Any, index: int) -> Any:
    """Returns kernels of one batch with itself."""
    if not isinstance(kernels, Kernel):
        return type(kernels)(_map_sides(k, index) for k in kernels)
    return kernels.side(index)


def leave(cov: Any, site: Site, masks: Any, request: Request) -> Any:
    """Returns covariances as public kernels that hold the requested arrays and no others."""
    if isinstance(cov, list | tuple):
        parts = []
        for i, part in enumerate(cov):
            inner = tuple(None if m is None else m[i] for m in masks)
            parts.append(leave(part, site, inner, request))
        return type(cov)(parts)
    if request.symmetric:
        masks = masks[0], masks[0]
    public = functools.partial(_public, diagonal_spatial=request.diagonal_spatial)
    cross = cov.cross if isinstance(cov, Trio) else cov
    kernel = public(cross, share=request.share, masks=masks)
    if site.pairs and kernel.cov1 is not None:
        sides = (cov.first, cov.second) if isinstance(cov, Trio) else (cov, cov)
        full1, full2 = (public(side, share=True, masks=masks).nngp for side in sides)
        cov2 = None if request.share else full2
        kernel = kernel.replace(cov1=full1, cov2=cov2, diagonal_batch=False)
    return requested(kernel, request)


def holds_kernels(x: Any) -> bool:
    """Returns whether there are kernels in a tree of inputs."""
    leaves = jax.tree.leaves(x, is_leaf=lambda v: isinstance(v, Kernel))
    return any(isinstance(leaf, Kernel) for leaf in leaves)


def map_kernels(function: Any, tree: Any) -> Any:
    """Returns the function of every kernel of a tree; branches become tuples."""
    if isinstance(tree, Kernel):
        return function(tree)
    return tuple(map_kernels(function, part) for part in tree)
