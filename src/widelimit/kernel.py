"""kernel_fn: from inputs to kernels in the layout that the user sees."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax

from widelimit._pytree import is_concrete
from widelimit.conversion import covariances_from_kernel, kernel_from_covariances
from widelimit.covariance import KERNEL, Covariances
from widelimit.inputs import (
    as_inputs,
    as_patterns,
    same_inputs,
    same_patterns,
    shares_x1,
    stored_diagonal,
)
from widelimit.layers.base import Layer, NetFunction, Site, located, tree_shapes
from widelimit.layers.reshape import Identity
from widelimit.layers.step import Trio, join_trio, mask_covariances, step
from widelimit.layout import input_covariances
from widelimit.masking import split_mask
from widelimit.nt_kernel import Kernel, kernel_signal
from widelimit.offsets import Need
from widelimit.plan import (
    check_unmixed,
    input_axes,
    input_signal,
    leading_flatten,
    make_site,
    mixing_layer,
    output_need,
)
from widelimit.selection import parse_get, select
from widelimit.signal import Signal, is_branches
from widelimit.tiles import NetworkTiler

_ARRAYS = ("nngp", "ntk", "cov1", "cov2", "x1_is_x2", "mask1", "mask2")


class Request(NamedTuple):
    """What is asked of one call; static under jit.

    Attributes:
      fields: arrays of `Kernel` to compute.
      symmetric: whether x2 is x1.
      share: whether x2 was not given.
      diagonal_spatial: keep equal positions only.
      axes: (batch, channel) axes of the input, None where not given.
    """

    fields: tuple[str, ...]
    symmetric: bool
    share: bool
    diagonal_spatial: bool
    axes: tuple[int | None, int | None]


class Options(NamedTuple):
    """What a call asks for beside its inputs.

    Attributes:
      mask_constant: entries of the inputs equal to it are masked.
      diagonal_batch: False asks for cov1 and cov2 between all samples.
      diagonal_spatial: keep equal positions only.
      axes: (batch, channel) axes of the inputs, None where not given.
    """

    mask_constant: Any
    diagonal_batch: bool | None
    diagonal_spatial: bool
    axes: tuple[int | None, int | None]


class Choice(NamedTuple):
    """The engine that runs a network, and why.

    Attributes:
      name: 'reference'.
      reason: one line for people.
    """

    name: str
    reason: str


def choose_engine(net: Layer, shape: Any) -> Choice:
    """Returns the engine that will compute the kernel of `net` on inputs of `shape`.

    Args:
      net: the network.
      shape: shape of an input, batch size included.
    """
    if _is_flat(net, shape):
        why = "no spatial axes: one product and one fused loop, compiled whole by XLA"
    else:
        why = "plain JAX, compiled layer by layer"
    return Choice("reference", why)


def _is_flat(net: Layer, shape: Any) -> bool:
    """Returns whether no activation of the network has spatial axes."""
    if leading_flatten(net)[1] is not None:
        return True
    if is_branches(shape) and any(is_branches(s) for s in shape):
        return all(_is_flat(Identity(), s) for s in shape)
    return len(shape) == 2


class KernelFn(NetFunction):
    """The kernels of a network at infinite width, as a function of inputs."""

    def __call__(
        self,
        x1: Any,
        x2: Any = None,
        get: Any = None,
        *,
        pattern: Any = None,
        mask_constant: Any = None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Returns the kernels between x1 and x2.

        K (NNGP) is the covariance of outputs over random networks, per channel; T (NTK) is the
        limit of J(x1) J(x2)^T. Inputs enter as K = mean over channels of x1 x2, uncentred. Can
        be traced by jit, vmap and grad. Traced x1 and x2 are never taken as equal: pass
        x2=None, or the same object, for the kernel of x1 with itself.

        Args:
          x1: array [n1, ..., channels] of any real dtype, or a `Kernel`, or a list or tuple of
            them for networks with parallel inputs. Computed in float32, or float64 with x64 on.
          x2: array [n2, ..., channels], or None for x1; must be None with a `Kernel`.
          get: 'nngp', 'ntk' or another field of `Kernel` for that array; a tuple of names for a
            named tuple; None for the whole `Kernel`.
          pattern: pair of graph patterns (for x1, for x2).
          mask_constant: entries of the inputs equal to it are masked.
          diagonal_batch: False asks for cov1 and cov2 between all samples.
          diagonal_spatial: True keeps equal positions only; None does so for a `Kernel` that
            holds no others.
          **kwargs: `batch_axis` and `channel_axis` of the inputs, where the network states none
            or the same; `rng` is ignored; others are refused.

        Raises:
          ValueError: shapes, masks or layers that do not fit, NaN in the inputs, unknown `get`.
          TypeError: inputs that are not arrays, unknown keywords.
        """
        parse_get(get)
        axes = _keywords(kwargs)
        with located(self.net.label):
            x1, x2 = as_inputs(x1, x2, mask_constant)
        patterns = as_patterns(pattern)
        # Equal inputs on two graphs are two inputs.
        symmetric = same_inputs(x1, x2) and same_patterns(patterns, shared=x2 is None)
        if diagonal_spatial is None:
            diagonal_spatial = stored_diagonal(x1)
        options = Options(mask_constant, diagonal_batch, bool(diagonal_spatial), axes)
        return self.evaluate(x1, x2, get, patterns, symmetric, options)

    def evaluate(
        self, x1: Any, x2: Any, get: Any, patterns: Any, symmetric: bool, options: Options
    ) -> Any:
        """Returns the kernels between inputs that `as_inputs` has converted.

        Args:
          x1: inputs, as `as_inputs` returns them.
          x2: likewise, or None.
          get: as for a call.
          patterns: pair of graph patterns.
          symmetric: whether x2 is x1, on the same graphs.
          options: what else was asked for.
        """
        fields = parse_get(get)
        request = Request(
            fields=tuple(f for f in _ARRAYS if f in fields),
            symmetric=symmetric,
            share=symmetric and shares_x1(x1, x2),
            diagonal_spatial=options.diagonal_spatial,
            axes=options.axes,
        )
        mask_constant = options.mask_constant
        by_layer = not _holds_kernels(x1) and not _is_flat(self.net, tree_shapes(x1))
        by_layer = by_layer and is_concrete(self.net, x1, x2, mask_constant, patterns)
        run = _propagate if by_layer else _propagate_whole
        compute = functools.partial(_compute, run, self.net, mask_constant=mask_constant)
        other = None if symmetric else x1 if x2 is None else x2
        result = compute(x1, other, patterns=patterns, request=request)
        if options.diagonal_batch is False and {"cov1", "cov2", "diagonal_batch"} & set(fields):
            result = _full_batch(compute, result, x1, x2, patterns, request)
        return select(result, get)

    def fields(self, get: Any) -> tuple[str, ...]:
        """Returns the names of the `Kernel` fields that `get` asks for; see `parse_get`."""
        return parse_get(get)

    def select(self, kernels: Any, get: Any) -> Any:
        """Returns what `get` asks for of whole kernels; see `selection.select`."""
        return select(kernels, get)

    def tiler(
        self,
        x1: Any,
        x2: Any,
        get: Any,
        devices: Any,
        *,
        pattern: Any = None,
        mask_constant: Any = None,
        diagonal_batch: bool | None = None,
        diagonal_spatial: bool | None = None,
        **kwargs: Any,
    ) -> NetworkTiler:
        """Returns what computes the kernels between concrete x1 and x2 tile by tile.

        Args:
          x1: arrays, as for a call.
          x2: likewise, or None for x1.
          get: as for a call.
          devices: the devices to compute on, a list.
          pattern: as for a call, as all keywords that follow.
          mask_constant: see above.
          diagonal_batch: see above.
          diagonal_spatial: see above.
          **kwargs: see above.

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
        options = Options(mask_constant, None, bool(diagonal_spatial), _keywords(kwargs))
        with located(self.net.label):
            return NetworkTiler(self, (x1, x2), get, as_patterns(pattern), options, devices)

    def check_tiles(self, kernels: Any) -> None:
        """Raises if kernels of x1 and x2, as inputs, cannot be cut into tiles of samples.

        Raises:
          ValueError: a layer combines samples; the message names it.
        """
        signal = _map_kernels(kernel_signal, kernels)
        need = output_need(self.net.output_signal(signal), diagonal_spatial=False, own=False)
        site = make_site(self.net, signal, need, (None, None), (None, None))
        check_unmixed(mixing_layer(site))


def _keywords(kwargs: dict[str, Any]) -> tuple[int | None, int | None]:
    axes = kwargs.pop("batch_axis", None), kwargs.pop("channel_axis", None)
    kwargs.pop("rng", None)  # networks have no randomness left; callers pass it to any kernel_fn
    if kwargs:
        raise TypeError(
            "expected the keywords pattern, mask_constant, diagonal_batch, diagonal_spatial, "
            f"batch_axis, channel_axis or rng, got {', '.join(kwargs)}"
        )
    return axes


def _compute(run: Any, net: Layer, x1: Any, x2: Any, *, request: Request, **inputs: Any) -> Any:
    """Returns a `Kernel` (or a tree of them) that holds the requested arrays.

    The conversion is compiled apart: XLA would compute an entry once for either triangle of a
    symmetric kernel, rounded in two ways.
    """
    out, site = run(net, x1, x2, request=request, **inputs)
    return _leave(out, site, site.masks_out, request)


def _propagate(
    net: Layer, x1: Any, x2: Any, *, mask_constant: Any, patterns: Any, request: Request
) -> tuple[Any, Site]:
    """Returns the covariances of the output, and what is to be known of the site of the network."""
    with located(net.label):
        if _holds_kernels(x1):
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
    signal = _map_kernels(kernel_signal, kernels)
    masks1 = _map_kernels(lambda k: k.mask1, kernels)
    masks2 = _map_kernels(lambda k: k.mask2, kernels)
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


def _leave(cov: Any, site: Site, masks: Any, request: Request) -> Any:
    """Returns covariances as public kernels that hold the requested arrays and no others."""
    if isinstance(cov, list | tuple):
        parts = []
        for i, part in enumerate(cov):
            inner = tuple(None if m is None else m[i] for m in masks)
            parts.append(_leave(part, site, inner, request))
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
    return kernel.replace(**{f: None for f in _ARRAYS if f not in request.fields})


def _holds_kernels(x: Any) -> bool:
    leaves = jax.tree.leaves(x, is_leaf=lambda v: isinstance(v, Kernel))
    return any(isinstance(leaf, Kernel) for leaf in leaves)


def _map_kernels(function: Any, tree: Any) -> Any:
    """Returns the function of every kernel of a tree; branches become tuples."""
    if isinstance(tree, Kernel):
        return function(tree)
    return tuple(_map_kernels(function, part) for part in tree)


def _full_batch(
    compute: Any, result: Any, x1: Any, x2: Any, patterns: Any, request: Request
) -> Any:
    """Returns the result with covariances between all samples of each side in cov1 and cov2."""
    if _holds_kernels(x1):
        raise NotImplementedError(
            "expected arrays with diagonal_batch=False, got a Kernel: pass the inputs instead"
        )
    own = request._replace(fields=("nngp",), symmetric=True, share=True)

    def square(x: Any, pattern: Any) -> Any:
        return compute(x, None, patterns=(pattern, pattern), request=own)

    full1 = square(x1, patterns[0])
    full2 = full1 if request.symmetric else square(x2, patterns[1])

    def join(kernel: Any, first: Any, second: Any) -> Any:
        if not isinstance(kernel, Kernel):
            return type(kernel)(map(join, kernel, first, second))
        return kernel.replace(
            cov1=first.nngp, cov2=None if request.share else second.nngp, diagonal_batch=False
        )

    return join(result, full1, full2)
