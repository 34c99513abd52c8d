"""The reference engine: covariances through the layers' own rules, in plain JAX."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree, PyTreeDef

from widelimit._cache import kept_with
from widelimit._pytree import is_concrete, pytree, static
from widelimit.covariance.covariances import KERNEL, Covariances
from widelimit.covariance.layout import input_covariances
from widelimit.covariance.offsets import Need
from widelimit.covariance.signal import Signal, is_branches
from widelimit.engines.cost import Workload, kept_arrays, peak_bytes
from widelimit.engines.engine import NetworkEngine
from widelimit.engines.inputs import working_dtype
from widelimit.engines.plan import (
    bare_site,
    behind_flatten,
    input_axes,
    is_flat,
    make_site,
    output_need,
)
from widelimit.engines.request import Request, requested
from widelimit.kernel.conversion import covariances_from_kernel, kernel_from_covariances
from widelimit.kernel.kernel import Kernel, holds_kernels, kernel_signal, map_kernels
from widelimit.kernel.masking import split_mask
from widelimit.layers.base import Layer, Site, located
from widelimit.layers.context import Context
from widelimit.layers.elementwise import ElementwiseLayer
from widelimit.layers.functions import evaluates_functions, is_concrete_network, layers_of
from widelimit.layers.numerical import SeriesLayer
from widelimit.layers.recording import Recording, recorded, run_compiled
from widelimit.layers.reshape import Flatten
from widelimit.layers.shapes import tree_shapes
from widelimit.layers.step import Trio, join_trio, mask_covariances, step
from widelimit.typing import Covs, InputAxes, Inputs, Masks, Needs, Pattern, Scalar, Shapes, Signals

_T = TypeVar("_T")

# Bytes beyond which larger tiles are not faster, per device. On a CPU, page faults cost more than
# calls: without spatial axes 0.36 us per pair at 2**24, 1.6 us at 2**30 (5 layers).
_FLAT_TILE, _SPATIAL_TILE = 2**26, 2**28
_ACCELERATOR_TILE = 2**30
_LARGE = 100.0  # squares of entries above which smooth duals lose more than 1e-5 in float32


class Operand(NamedTuple):
    """Prepared samples of the reference engine.

    Attributes:
      x: arrays with zeros at masked entries, or kernels.
      mask: True where an entry is masked; None without masks.
      pattern: graph pattern, or None.
    """

    x: Inputs
    mask: Masks = None
    pattern: Pattern = None


class ReferenceEngine(NetworkEngine[Operand]):
    """Plain JAX, compiled layer by layer, or whole if inputs are traced or have no spatial axes.

    Attributes:
      why: the reason for which no other engine was chosen.
    """

    name = "reference"

    def __init__(self, net: Layer, shape: Shapes, request: Request, reason: str) -> None:
        """Makes an engine.

        Args:
          net: the network.
          shape: shape of x1, or a tree of shapes; ignored if inputs are kernels.
          request: the requested arrays.
          reason: the reason for which no other engine was chosen.
        """
        self._net, self._shape, self._request = net, shape, request
        self._flat = is_flat(net, shape)
        self._anew = evaluates_functions(net)
        self._series = any(isinstance(layer, SeriesLayer) for layer in layers_of(net))
        kinked = {x.kinked for x in layers_of(net) if isinstance(x, ElementwiseLayer)}
        self._mixed = len(kinked) == 2
        self._smooth = any(getattr(layer, "subtracts", False) for layer in layers_of(net))
        self.why = reason
        self.reason = f"plain JAX, compiled {'whole' if self._flat else 'layer by layer'}: {reason}"

    @functools.cached_property
    def plan(self) -> tuple[Layer, Site]:
        """The network behind a leading Flatten, and its site for one sample per side."""
        axes = input_axes(self._net, self._shape, self._request.axes)
        one = _one_sample(self._shape, axes)
        return bare_site(
            *(self._net, (one, one), self._request.axes),
            diagonal_spatial=self._request.diagonal_spatial,
            own=self._request.variances,
        )

    @property
    def target_bytes(self) -> int:  # type: ignore[override]
        """Bytes beyond which larger tiles are not faster, on one device."""
        if jax.default_backend() != "cpu":
            return _ACCELERATOR_TILE
        return (
            _FLAT_TILE if self._arrays(self.plan[1]) > 1 + self._request.tangent else _SPATIAL_TILE
        )

    @property
    def traced_target_bytes(self) -> int:
        """Bytes beyond which larger tiles are not faster, inside a trace."""
        return _FLAT_TILE if jax.default_backend() == "cpu" else _ACCELERATOR_TILE

    def pair_bytes(self, n1: int, n2: int) -> int:
        """Returns the peak bytes of `pairs` for n1 and n2 samples, result included."""
        net, site = self.plan
        itemsize = 8 if self._mixed else working_dtype().itemsize
        workload = Workload(n1, self._arrays(site), itemsize, n2)
        return peak_bytes(net, site, workload)

    def _arrays(self, site: Site) -> int:
        return kept_arrays(self._request.fields, site.signal_in)

    def prepare(
        self, x: Inputs, pattern: Pattern = None, mask_constant: Scalar | None = None
    ) -> Operand:
        """Returns samples with their masks."""
        if holds_kernels(x):
            return Operand(x, None, pattern)
        values, mask = split_mask(x, mask_constant)
        return Operand(values, mask if jax.tree.leaves(mask) else None, pattern)

    def kernels(self, first: Operand, second: Operand | None, share: bool) -> PyTree[Kernel]:
        """Returns a `Kernel` (or a tree of them); if float32 is not accurate, through float64."""
        if self._wants_float64(first, second):
            with jax.enable_x64(True):
                one, two = _cast((first, second), np.float32, np.float64)
                kernels = _cast(self._kernels(one, two, share), np.float64, np.float32)
        else:
            kernels = self._kernels(first, second, share)
        if self._series and is_concrete(kernels):
            check_series(kernels)
        return kernels

    def _wants_float64(self, first: Operand, second: Operand | None) -> bool:
        """Returns whether float32 is not accurate enough.

        That is so for networks of smooth nonlinearities and kinks if samples are close, and for
        smooth nonlinearities if entries are large.
        """
        xs = first.x, None if second is None else second.x
        if working_dtype() == np.float64 or holds_kernels(xs) or not is_concrete(xs):
            return False
        if self._mixed and is_concrete_network(self._net):
            return True
        values = (np.asarray(leaf) for leaf in jax.tree.leaves(xs) if self._smooth)
        return any(np.square(v, dtype=np.float64).max(initial=0) > _LARGE for v in values)

    def _kernels(self, first: Operand, second: Operand | None, share: bool) -> PyTree[Kernel]:
        request = self._request._replace(symmetric=second is None, share=share)
        by_layer = not (self._flat or holds_kernels(first.x))
        if not (by_layer and is_concrete_network(self._net) and is_concrete(first, second)):
            propagate = _propagate if self._anew else _propagate_whole
            out, site = propagate(self._net, first, second, request=request)
            return leave(out, site, request)
        if self._anew or jax.tree.leaves((first[1:], None if second is None else second[1:])):
            out, site = _propagate(self._net, first, second, request=request)
            return leave(out, site, request)
        key = "reference", tree_shapes(first.x), second and tree_shapes(second.x), request
        run = kept_with(self._net, (*key, working_dtype()), lambda: _Run(self._net, request))
        return run(first, second)


def _one_sample(shape: Shapes, axes: InputAxes) -> Shapes:
    """Returns a shape, or a tree of shapes, with one sample."""
    if is_branches(shape) and shape and is_branches(shape[0]):
        return tuple(map(_one_sample, shape, axes))
    return tuple(1 if axis == axes[0] else size for axis, size in enumerate(shape))


class _Run:
    """Kernels of a network at inputs of fixed shapes, recorded at the first call."""

    def __init__(self, net: Layer, request: Request) -> None:
        self._net, self._request = net, request
        self._recorded: tuple[Recording, PyTreeDef] | None = None

    def __call__(self, first: Operand, second: Operand | None) -> PyTree[Kernel]:
        inputs = first.x, None if second is None else second.x
        if self._recorded is None:
            return self._record(inputs, first, second)
        recording, structure = self._recorded
        if recording.complete:
            return jax.tree.unflatten(structure, recording.run(inputs))
        return self._anew(first, second)

    def _anew(self, first: Operand, second: Operand | None) -> PyTree[Kernel]:
        out, site = _propagate(self._net, first, second, request=self._request)
        return leave(out, site, self._request)

    def _record(self, inputs: Inputs, first: Operand, second: Operand | None) -> PyTree[Kernel]:
        with recorded(inputs, self._net) as recording:
            result = self._anew(first, second)
            leaves, structure = jax.tree.flatten(result)
            recording.end(leaves)
        self._recorded = recording, structure
        return result


def check_series(kernels: PyTree[Kernel]) -> None:
    """Raises if a truncated series is not accurate.

    Raises:
      ValueError: results hold NaN.
    """
    leaves = jax.tree.leaves(kernels)
    if any(np.isnan(v).any() for v in leaves if jnp.issubdtype(v.dtype, jnp.floating)):
        raise ValueError(
            "expected inputs and weights that give the series of a nonlinearity (Tanh, "
            "Elementwise, ...) variances of at most 100, or correlations of at most 0.9, got "
            "larger ones: the kernel would be off by more than 1e-8 (1e-5 in float32). Scale the "
            "inputs, or use Erf, Gelu or another nonlinearity with a formula"
        )


def _cast(tree: _T, old: DTypeLike, new: DTypeLike) -> _T:
    return jax.tree.map(lambda v: v.astype(new) if v.dtype == old else v, tree)


def _propagate(
    net: Layer, first: Operand, second: Operand | None, *, request: Request
) -> tuple[Covs, Site]:
    """Returns the covariances of the output, and the static part of the site of the network."""
    with located(net.label):
        enter = _enter_kernels if holds_kernels(first.x) else _enter_arrays
        cov, site, net = enter(net, first, second, request)
        out = step(net, cov, site)
    nothing = (None, None)
    return out, dataclasses.replace(site, children=(), masks_in=nothing, patterns=nothing)


_propagate_whole = jax.jit(_propagate, static_argnames="request")


def _enter_arrays(
    net: Layer, first: Operand, second: Operand | None, request: Request
) -> tuple[Covs, Site, Layer]:
    """Returns the covariances of the inputs, the site of the network, and its remaining layers."""
    other = Operand(None) if second is None else second
    shape1 = tree_shapes(first.x)
    shape2 = shape1 if second is None else tree_shapes(second.x)
    net, flatten, signal = behind_flatten(net, (shape1, shape2), request.axes)
    if flatten is not None:
        first, other = (_flattened(flatten, operand) for operand in (first, other))
    x1, x2 = first.x, other.x
    masks, patterns = (first.mask, other.mask), _patterns(first, second)
    site = make_site(net, signal, _output_need(net, signal, request), masks, patterns)
    cov = _inputs(x1, x2, signal, site.need_in, masks, request.tangent)
    if site.pairs and x2 is not None:
        alone = site.side(0), site.side(1)
        parts = (
            _inputs(x, None, at.signal_in, site.need_in, at.masks_in, request.tangent)
            for x, at in zip((x1, x2), alone, strict=True)
        )
        cov = join_trio(next(parts), next(parts), cov)
    return cov, site, net


def _patterns(first: Operand, second: Operand | None) -> tuple[Pattern, Pattern]:
    return first.pattern, first.pattern if second is None else second.pattern


def _flattened(flatten: Flatten, operand: Operand) -> Operand:
    """Returns samples behind a Flatten."""
    if operand.x is None:
        return operand
    x, mask = flatten.apply((), operand.x, Context()), flatten.mask(operand.mask, operand.x.shape)
    return Operand(x, mask, operand.pattern)


def _output_need(net: Layer, signal: Signals, request: Request) -> Needs:
    return output_need(net.output_signal(signal), request.diagonal_spatial, request.variances)


def _inputs(
    x1: Inputs, x2: Inputs, signal: Signals, need: Needs, masks: Masks, tangent: bool
) -> Covs:
    """Returns the covariances of arrays or of trees of arrays."""
    if isinstance(signal, Signal):
        return run_compiled(_masked_inputs, x1, x2, masks, _Entrance(signal, need, tangent))
    parts = []
    for i, part in enumerate(signal):
        inner = tuple(None if m is None else m[i] for m in masks)
        parts.append(_inputs(x1[i], None if x2 is None else x2[i], part, need[i], inner, tangent))
    return type(x1)(parts)


@pytree
class _Entrance:
    """The static arguments of the conversion of inputs to covariances.

    Attributes:
      signal: description of the inputs.
      need: offsets needed.
      tangent: whether the NTK is requested.
    """

    signal: Signal = static()
    need: Need = static()
    tangent: bool = static()


def _masked_inputs(x1: Inputs, x2: Inputs, masks: Masks, entry: _Entrance) -> Covariances:
    cov = input_covariances(x1, x2, entry.signal, entry.need, entry.tangent)
    return mask_covariances(cov, masks)


def _enter_kernels(
    net: Layer, first: Operand, second: Operand | None, request: Request
) -> tuple[Covs, Site, Layer]:
    """Returns the same as `_enter_arrays` for public kernels, all of which are in `first`."""
    kernels, patterns = first.x, _patterns(first, second)
    signal = map_kernels(kernel_signal, kernels)
    masks1 = map_kernels(lambda k: k.mask1, kernels)
    masks2 = map_kernels(lambda k: k.mask2, kernels)
    masks = tuple(m if jax.tree.leaves(m) else None for m in (masks1, masks2))
    need = _output_need(net, signal, request)
    site = make_site(net, signal, need, masks, patterns)

    def enter(kernel: PyTree[Kernel], part: Needs, origin: str) -> Covs:
        if not isinstance(kernel, Kernel):
            pairs = enumerate(zip(kernel, part, strict=True))
            return type(kernel)(enter(k, n, f"{origin}[{i}]") for i, (k, n) in pairs)
        cov = covariances_from_kernel(kernel, part, kernel.cov2 is None or request.symmetric)
        # Kernels passed side by side count as independent, since their origins are unknown. For
        # the same reason a kernel does not count as raw input.
        tangent = cov.tangent and request.tangent
        return cov.replace(origins=frozenset({origin}), tangent=tangent)

    cov = enter(kernels, site.need_in, KERNEL)
    if site.pairs and not request.symmetric:
        parts = (enter(_map_sides(kernels, i), site.need_in, KERNEL) for i in (0, 1))
        cov = join_trio(next(parts), next(parts), cov)
    return cov, site, net


def _map_sides(kernels: PyTree[Kernel], index: int) -> PyTree[Kernel]:
    """Returns kernels of one batch with itself."""
    if not isinstance(kernels, Kernel):
        return type(kernels)(_map_sides(k, index) for k in kernels)
    return kernels.side(index)


@pytree
class _Exit:
    """The static arguments of the conversion to public kernels; see `kernel_from_covariances`."""

    diagonal_spatial: bool = static()
    share: bool = static()


def _public(cov: Covariances, masks: Masks, form: _Exit) -> Kernel:
    return kernel_from_covariances(
        cov, diagonal_spatial=form.diagonal_spatial, share=form.share, masks=masks
    )


def leave(cov: Covs, site: Site, request: Request) -> PyTree[Kernel]:
    """Returns covariances as public kernels that hold the requested arrays and no others.

    The conversion is compiled separately: otherwise XLA may compute the two triangles of a
    symmetric kernel with different rounding.
    """
    return _leave(cov, site.pairs, site.masks_out, request)


def _leave(cov: Covs, pairs: bool, masks: Masks, request: Request) -> PyTree[Kernel]:
    if isinstance(cov, list | tuple):
        parts = []
        for i, part in enumerate(cov):
            inner = tuple(None if m is None else m[i] for m in masks)
            parts.append(_leave(part, pairs, inner, request))
        return type(cov)(parts)
    if request.symmetric:
        masks = masks[0], masks[0]
    cross = cov.cross if isinstance(cov, Trio) else cov
    kernel = run_compiled(_public, cross, masks, _Exit(request.diagonal_spatial, request.share))
    if pairs and kernel.cov1 is not None:
        sides = (cov.first, cov.second) if isinstance(cov, Trio) else (cov, cov)
        alone = _Exit(request.diagonal_spatial, True)
        full1, full2 = (run_compiled(_public, side, masks, alone).nngp for side in sides)
        cov2 = None if request.share else full2
        kernel = kernel.replace(cov1=full1, cov2=cov2, diagonal_batch=False)
    return requested(kernel, request)
