"""Networks as text: `to_json` describes a network, `from_json` builds it again."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from widelimit._pytree import is_concrete
from widelimit._text import shown
from widelimit.layers.attention import AttentionMechanism, PositionalEmbedding
from widelimit.layers.base import Layer
from widelimit.layers.foreign import Foreign
from widelimit.layers.graph import AggregateImplementation
from widelimit.layers.indexing import HashableSlice
from widelimit.layers.windows import Padding

SCHEMA = 1

_Json: TypeAlias = bool | int | float | str | list["_Json"] | dict[str, "_Json"] | None
_Names: TypeAlias = dict[str, Callable[..., object]]

_ENUMS = {
    kind.__name__: kind
    for kind in (
        *(AggregateImplementation, AttentionMechanism, PositionalEmbedding, Padding),
        *(jax.lax.Precision, jax.image.ResizeMethod),
    )
}


def to_json(net: Layer) -> str:
    """Returns a description of a network, hyper-parameters included, as JSON.

    Networks with the same structure and equal hyper-parameters have equal descriptions. Numbers are
    written in full: the network that `from_json` builds has the same kernels to the last bit.

    Args:
      net: a network. Its functions (those of `Elementwise`, for instance) and your own layers are
        written by name, as "module:name".

    Raises:
      TypeError: traced hyper-parameters, layers made from a triple of functions, or functions that
        cannot be imported by name (lambdas and local functions); the message gives the place.

    Example:
      >>> import widelimit as wl
      >>> from widelimit import stax
      >>> text = wl.to_json(stax.serial(stax.Dense(1, W_std=1.5), stax.Relu()))
      >>> wl.from_json(text).layers[0]
      Dense(1, W_std=1.5)
    """
    if not isinstance(net, Layer):
        raise TypeError(f"expected a network to describe, got {type(net).__name__}")
    described = {"schema": SCHEMA, "network": _encode(net, "network")}
    return json.dumps(described, allow_nan=False)


def from_json(text: str, known: Sequence[type[Layer] | Callable[..., object]] = ()) -> Layer:
    """Returns the network described by the output of `to_json`.

    Only constructors of layers are run, and nothing is imported: text from others is safe to read.

    Args:
      text: the description.
      known: layer classes and functions from outside this package that the text names.

    Raises:
      ValueError: the text is not a description, comes from a later version of this package, names
        an unknown layer, function or argument, or has arguments that the layer refuses.

    Example:
      >>> import widelimit as wl
      >>> from widelimit import stax
      >>> text = wl.to_json(stax.Elementwise(fn=abs))
      >>> wl.from_json(text, known=[abs])
      Elementwise(fn=abs)
    """
    try:
        described = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a network as JSON, got {shown(text)}: {error}") from None
    if not isinstance(described, dict) or set(described) != {"schema", "network"}:
        raise ValueError(f"expected JSON with 'schema' and 'network', got {shown(text)}")
    if described["schema"] != SCHEMA:
        raise ValueError(
            f"expected a description with schema {SCHEMA}, got {shown(described['schema'])}: this "
            "version of widelimit does not read it"
        )
    names: _Names = {kind.__name__: kind for kind in _own_layers(Layer)}
    names |= {_name(value): value for value in known}
    try:
        net = _decode(described["network"], "network", names)
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected the output of to_json, got {shown(text)}: {error}") from error
    if not isinstance(net, Layer):
        raise ValueError(f"expected the description of a network, got {shown(net)}")
    return net


def _own_layers(kind: type[Layer]) -> Iterator[type[Layer]]:
    """Yields the layers of this package that are built from their fields."""
    for inner in kind.__subclasses__():
        if _is_own(inner) and inner is not Foreign:
            yield inner
        yield from _own_layers(inner)


def _is_own(kind: type) -> bool:
    return kind.__module__.startswith("widelimit.")


def _name(value: type | Callable[..., object]) -> str:
    """Returns the name of a class or function from outside this package, "module:name"."""
    return f"{value.__module__}:{value.__qualname__}"


def _encode(value: object, where: str) -> _Json:
    """Returns a value of a field of a layer as JSON.

    Args:
      value: the value.
      where: its place in the network, for errors.

    Raises:
      TypeError: a value without a description.
    """
    if isinstance(value, Layer):
        return _encode_layer(value, where)
    if isinstance(value, HashableSlice):
        return {"slice": list(value)}
    if isinstance(value, tuple | list):
        return [_encode(part, f"{where}[{i}]") for i, part in enumerate(value)]
    if isinstance(value, EllipsisType):
        return {"ellipsis": True}
    if isinstance(value, enum.Enum) and type(value).__name__ in _ENUMS:
        return {"enum": type(value).__name__, "member": value.name}
    if isinstance(value, np.ndarray | jax.Array) and is_concrete(value):
        if not value.ndim:
            return _encode(value.item(), where)
        return {"array": _encode(value.tolist(), where), "dtype": value.dtype.name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if callable(value) and "<" not in getattr(value, "__qualname__", "<"):
        return {"function": _name(value)}
    raise TypeError(
        f"expected numbers, arrays, text, layers and functions of a module in a network to "
        f"describe, got {shown(value)} at {where}"
    )


def _encode_layer(layer: Layer, where: str) -> _Json:
    kind = type(layer)
    if isinstance(layer, Foreign):
        raise TypeError(
            f"expected layers with fields in a network to describe, got {layer.label}, made from "
            f"functions, at {where}: write it as a class, see docs/extending.md"
        )
    described: dict[str, _Json] = {"type": kind.__name__ if _is_own(kind) else _name(kind)}
    for field in dataclasses.fields(layer):
        if field.init:
            value = getattr(layer, field.name)
            described[field.name] = _encode(value, f"{where}.{field.name}")
    return described


def _decode(value: _Json, where: str, names: _Names) -> object:
    """Returns the value of a field of a layer.

    Args:
      value: the result of `_encode`.
      where: its place in the network, for errors.
      names: layers and functions by name.

    Raises:
      ValueError: a value that `_encode` does not return, or an unknown name.
    """
    if isinstance(value, list):
        return tuple([_decode(part, f"{where}[{i}]", names) for i, part in enumerate(value)])
    if not isinstance(value, dict):
        return value
    match value:
        case {"type": str(name)}:
            fields = {key: part for key, part in value.items() if key != "type"}
            return _decode_layer(_named(name, where, names), fields, where, names)
        case {"function": str(name)}:
            return _named(name, where, names)
        case {"array": numbers, "dtype": str(dtype)}:
            return np.asarray(_decode(numbers, where, names), jnp.dtype(dtype))
        case {"float": str(number)}:
            return float(number)
        case {"slice": [start, stop, step]}:
            return slice(start, stop, step)
        case {"ellipsis": True}:
            return ...
        case {"enum": str(kind), "member": str(member)} if kind in _ENUMS:
            return _ENUMS[kind].__members__[member]
    raise ValueError(f"expected the output of to_json, got {shown(value)} at {where}")


def _named(name: str, where: str, names: _Names) -> Callable[..., object]:
    if name not in names:
        raise ValueError(
            f"expected layers of widelimit, or those in `known`, got {name!r} at {where}: "
            f"from_json(text, known=[{name.rpartition(':')[2]}]) builds it"
        )
    return names[name]


def _decode_layer(
    kind: Callable[..., object],
    fields: dict[str, _Json],
    where: str,
    names: _Names,
) -> object:
    arguments = {key: _decode(v, f"{where}.{key}", names) for key, v in fields.items()}
    try:
        return kind(**arguments)
    except Exception as error:
        text = f"expected arguments that {kind.__name__} takes at {where}, got {shown(arguments)}"
        raise ValueError(f"{text}: {error}") from error
