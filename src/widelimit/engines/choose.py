"""Which engine computes a kernel."""

from __future__ import annotations

from typing import NamedTuple

import jax

from widelimit._cache import kept_with
from widelimit.engines.engine import Engine, EngineMaker
from widelimit.engines.fused.activations.base import RefusedError, registered
from widelimit.engines.fused.bridge import FusedEngine, refusal
from widelimit.engines.fused.traced import TracedEngine, few_pairs
from widelimit.engines.inputs import working_dtype
from widelimit.engines.plan import behind_flatten
from widelimit.engines.reference import ReferenceEngine
from widelimit.engines.request import Request
from widelimit.layers.base import Layer, located
from widelimit.layers.shapes import as_shape
from widelimit.typing import Shapes


class Choice(NamedTuple):
    """The engine that runs a network, and why.

    Attributes:
      name: 'reference' or 'fused'.
      reason: one line for people.
    """

    name: str
    reason: str


ENGINES = ("auto", "fused", "reference")


def choose_engine(net: Layer, shape: Shapes, traced: bool = False) -> Choice:
    """Returns the engine that computes the kernel of `net` on inputs of `shape`.

    Args:
      net: the network.
      shape: shape of an input, batch size included.
      traced: whether inputs or hyper-parameters are traced, as inside `jax.jit`, `jax.vmap` and
        `jax.grad`.
    """
    sizes, request = as_shape(shape), Request(("nngp", "ntk"))
    engine = choose(net, sizes, request, traced=sizes if traced else None)
    return Choice(engine.name, engine.reason)


def choose(
    net: Layer,
    shape: Shapes,
    request: Request,
    engine: str | EngineMaker = "auto",
    unusual: str | None = None,
    traced: Shapes | None = None,
) -> Engine:
    """Returns the engine that computes the kernels of a network; it is kept with the network.

    Args:
      net: the network.
      shape: shape of x1, or a tree of shapes, in tuples.
      request: what is asked for.
      engine: 'auto', 'fused', 'reference', or what makes one of the caller's own.
      unusual: what only plain JAX computes about the call, in words; None if nothing.
      traced: shape of x2 (of x1 without one) where inputs or hyper-parameters are traced; or None.

    Raises:
      ValueError: an unknown engine, or the fused one where it does not run.
      TypeError: what is made is no engine.
    """
    if callable(engine):
        why = unusual if traced is None else "the network or its inputs are traced"
        return _own(net, shape, request, engine, why)
    if engine not in ENGINES:
        raise ValueError(f"expected engine to be one of {', '.join(ENGINES)}, got {engine!r}")
    key = "engine", engine, shape, request, unusual, traced, working_dtype(), registered()
    chosen: Engine = kept_with(
        net,
        (*key, jax.default_backend()),
        lambda: _chosen(net, shape, request, engine, unusual, traced),
    )
    if engine == "fused" and isinstance(chosen, ReferenceEngine):
        raise ValueError(f"expected a kernel that the fused engine computes, but {chosen.why}")
    return chosen


def _chosen(
    net: Layer,
    shape: Shapes,
    request: Request,
    engine: str,
    unusual: str | None,
    traced: Shapes | None,
) -> Engine:
    """Returns the fused engine where it runs, and unless plain JAX is asked for."""
    why = "asked for" if engine == "reference" else unusual or _why_not_fused(net, shape, request)
    if why is None and engine == "auto" and traced is not None:
        why = few_pairs(net, (shape, traced), request)
    if why is None:
        try:
            return (FusedEngine if traced is None else TracedEngine)(net, shape, request)
        except RefusedError as error:
            why = str(error)
    return ReferenceEngine(net, shape, request, why)


def _own(
    net: Layer, shape: Shapes, request: Request, kind: EngineMaker, unusual: str | None
) -> Engine:
    """Returns an engine of the caller's own."""
    if unusual is not None:
        raise ValueError(f"expected a call that {kind.__name__} computes, but {unusual}")
    engine = kind(net, shape, request)
    if not isinstance(engine, Engine):
        raise TypeError(f"expected engine to make an Engine, got {type(engine).__name__}")
    return engine


def _why_not_fused(net: Layer, shape: Shapes, request: Request) -> str | None:
    """Returns why the fused engine does not run a network on inputs of `shape`."""
    with located(net.label):
        inner, _, signal = kept_with(
            net, (shape, request.axes), lambda: behind_flatten(net, (shape, shape), request.axes)
        )
        return refusal(inner, signal, request.tangent, request.diagonal_spatial)
