"""From a network to a program for the compiled interpreter.

A program is a list of stages, up to the end of the spatial axes. What follows has none and is left
to the reference engine, and so is what stands behind a layer that is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from widelimit.covariance.signal import Signal
from widelimit.engines.fused.activations.base import RefusedError
from widelimit.engines.fused.stages import ENDS, CircularError, SpatialProgram, StageTape
from widelimit.engines.fused.tape import NoKernelError, Path
from widelimit.engines.plan import make_site, output_need
from widelimit.layers.base import Layer
from widelimit.layers.combine import Serial
from widelimit.layers.elementwise import ElementwiseLayer
from widelimit.layers.functions import layers_of


def lower(net: Layer, signal: Signal, tangent: bool) -> SpatialProgram:
    """Returns the program of a network.

    Args:
      net: the network.
      signal: description of its input.
      tangent: whether the NTK is wanted.

    Raises:
      RefusedError: the network holds something that the fused engine does not run.
    """
    if len(signal.spatial) not in (1, 2):
        raise RefusedError(f"images have {len(signal.spatial)} spatial axes, not one or two")
    if not isinstance(net.output_signal(signal), Signal):
        raise RefusedError("the network has several outputs")
    chain = list(_chain(net, ()))
    ends = [i + 1 for i, (layer, _) in enumerate(chain) if isinstance(layer, ENDS)]
    count = ends[0] if ends else len(chain)
    if not ends and not _worthwhile(chain, count):
        raise RefusedError("the output has spatial axes, and nothing is nonlinear")
    refused: RefusedError | None = None
    while True:
        found = _lowered(signal, chain, count, tangent)
        if isinstance(found, SpatialProgram):
            return found
        refused = refused or found.error
        if isinstance(found.error, NoKernelError):
            raise refused
        count = _last_single(signal, chain, found.at)
        if not _worthwhile(chain, count):
            raise refused


class _Stopped(NamedTuple):
    """A layer that is refused.

    Attributes:
      at: which one of the chain.
      error: why.
    """

    at: int
    error: RefusedError


def _lowered(signal: Signal, chain: Any, count: int, tangent: bool) -> SpatialProgram | _Stopped:
    """Returns the program of the first layers of a chain; the others are left to plain JAX."""
    head, tail = chain[:count], chain[count:]
    nothing = (None, None)
    inner, behind = (Serial(tuple(layer for layer, _ in part)) for part in (head, tail))
    between = inner.output_signal(signal)
    last = output_need(behind.output_signal(between), diagonal_spatial=False, own=False)
    widest = output_need(behind.output_signal(between), diagonal_spatial=False, own=True)
    rest = make_site(behind, between, last, nothing, nothing)
    site = make_site(inner, signal, rest.need_in, nothing, nothing)
    if site.mixes or rest.mixes:
        raise RefusedError("a layer combines samples of a batch")
    stopped = _Stopped(-1, RefusedError(""))
    for circular in (False, True):
        builder, at = StageTape(signal, site, tangent, circular), 0
        try:
            for (layer, path), child in zip(head, site.children, strict=True):
                builder.top(layer, path, child)
                at += 1
            if not isinstance(head[-1][0], ENDS):
                builder.keep(site, behind.needs(widest, between).own)
            behind_paths = tuple(path for _, path in tail)
            return builder.program(site.signal_out, rest.need_in.own.wanted, behind_paths)
        except RefusedError as error:
            if at > stopped.at:
                stopped = _Stopped(min(at, count - 1), error)
            if not isinstance(error, CircularError):
                break
    return stopped


def _last_single(signal: Signal, chain: Any, count: int) -> int:
    """Returns how many of the first layers there are before branches that are open at `count`."""
    singles = [0]
    for i, (layer, _) in enumerate(chain[:count]):
        signal = layer.output_signal(signal)
        if isinstance(signal, Signal):
            singles.append(i + 1)
    return singles[-1]


def _worthwhile(chain: Any, count: int) -> bool:
    """Returns whether most nonlinearities among positions stand in the first layers."""
    numbers = [0, 0]
    for i, (layer, _) in enumerate(chain):
        if isinstance(layer, ENDS):
            break
        inner = layers_of(layer)
        numbers[i >= count] += sum(isinstance(part, ElementwiseLayer) for part in inner)
    return numbers[0] > 0 and numbers[0] >= numbers[1]


def _chain(layer: Layer, path: Path) -> Any:
    """Yields the layers of nested `serial`s, with where they stand."""
    if isinstance(layer, Serial):
        for i, inner in enumerate(layer.layers):
            yield from _chain(inner, (*path, i))
    else:
        yield layer, path
