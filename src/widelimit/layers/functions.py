"""Networks with functions of users, as these functions are now."""

from __future__ import annotations

import dataclasses
import operator
import weakref
from collections.abc import Callable, Iterator

import jax

from widelimit._cache import kept_with
from widelimit._pytree import is_concrete
from widelimit.layers.base import Layer, inner_layers
from widelimit.tracing.traced import Snapshot
from widelimit.typing import Function


def as_now(net: Layer) -> Layer:
    """Returns the network with its functions as they are now.

    It returns the same object while the functions do the same. So whatever is compiled for the
    network and cached with it is valid for the values that its functions read, too.
    """
    before = _latest.get(net)
    if before == (None,):
        return net
    snapshots: dict[tuple[int, int], Snapshot] = {}

    def snapshot(function: Function, arguments: int = 1) -> Snapshot:
        key = id(function), arguments
        if key not in snapshots:
            snapshots[key] = Snapshot(function, *[()] * arguments)
        return snapshots[key]

    now = _map_layers(net, snapshot)
    last = None if before is None else before[0]
    if last is not None and operator.eq(*map(jax.tree.structure, (now, last))):
        return last
    _latest[net] = (None if now is net else now,)
    _latest[now] = (None,)
    return now


# Networks as they were at the last call; None for those without functions.
_latest: weakref.WeakKeyDictionary[Layer, tuple[Layer | None]] = weakref.WeakKeyDictionary()


def is_concrete_network(net: Layer) -> bool:
    """Returns whether all hyper-parameters of the network are concrete (not traced)."""
    concrete: bool = kept_with(net, "concrete", lambda: is_concrete(net))
    return concrete


def evaluates_functions(net: Layer) -> bool:
    """Returns whether the network has functions that must be called anew for every kernel."""
    return any(layer.called_anew for layer in layers_of(net))


def layers_of(net: Layer) -> Iterator[Layer]:
    """Yields a network and all layers inside it."""
    yield net
    for layer in inner_layers(net):
        yield from layers_of(layer)


def _map_layers(net: Layer, snapshot: Callable[..., Snapshot]) -> Layer:
    """Returns the network with every layer as it is now, or itself if none changes."""
    changed: dict[str, object] = {}
    for field in dataclasses.fields(net):
        value = getattr(net, field.name)
        if isinstance(value, Layer):
            new: object = _map_layers(value, snapshot)
        elif isinstance(value, tuple) and any(isinstance(part, Layer) for part in value):
            new = tuple(_map_layers(p, snapshot) if isinstance(p, Layer) else p for p in value)
            new = value if all(a is b for a, b in zip(new, value, strict=True)) else new
        else:
            continue
        if new is not value:
            changed[field.name] = new
    return (dataclasses.replace(net, **changed) if changed else net).as_now(snapshot)
