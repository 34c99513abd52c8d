"""Public signatures say what they take: hardly ever `Any`, and of arrays the axes, too."""

import collections.abc
import enum
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype.door import is_bearable
from jaxtyping import jaxtyped

from widelimit import stax
from widelimit import typing as names

MODULES = [
    "widelimit",
    "widelimit.diagnostics",
    "widelimit.extend",
    "widelimit.finite.empirical",
    "widelimit.models",
    "widelimit.predict",
    "widelimit.stax",
]
MOST_UNTYPED = 0.05


class Parameter(NamedTuple):
    """One argument of a public callable."""

    where: str
    hint: Any


def public_objects() -> dict[str, Any]:
    """Functions and classes by the first name that they have."""
    found: dict[int, tuple[str, Any]] = {}
    for module in MODULES:
        for name, value in vars(importlib.import_module(module)).items():
            ours = getattr(value, "__module__", "").startswith("widelimit")
            if callable(value) and ours and not name.startswith("_"):
                found.setdefault(id(value), (f"{module}.{name}", value))
    return dict(found.values())


def callables() -> Iterator[tuple[str, Callable[..., Any], dict[str, Any]]]:
    """Functions, constructors and public methods, with the types in their signatures."""
    for name, value in public_objects().items():
        if not inspect.isclass(value):
            yield name, value, typing.get_type_hints(value)
            continue
        if not issubclass(value, enum.Enum) and not getattr(value, "_is_protocol", False):
            yield name, value, constructor_hints(value)
        for key, member in vars(value).items():
            method = getattr(member, "__func__", member)
            if inspect.isfunction(method) and (not key.startswith("_") or key == "__call__"):
                yield f"{name}.{key}", method, typing.get_type_hints(method)


def constructor_hints(cls: type) -> dict[str, Any]:
    """Those of the fields, for classes whose constructors follow from fields."""
    init = inspect.unwrap(cls.__init__)
    written = inspect.isfunction(init) and init.__code__.co_filename != "<string>"
    return typing.get_type_hints(init if written else cls)


def parameters() -> list[Parameter]:
    return [
        Parameter(f"{name}({key})", hints.get(key, Any))
        for name, function, hints in callables()
        for key in inspect.signature(function).parameters
        if key not in ("self", "cls")
    ]


def parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in hint if isinstance(hint, list) else typing.get_args(hint):
        yield from parts(part)


def is_untyped(hint: Any) -> bool:
    return any(part is Any for part in parts(hint))


def test_few_arguments_are_untyped():
    found = parameters()
    assert len(found) > 700
    untyped = [where for where, hint in found if is_untyped(hint)]
    share = len(untyped) / len(found)
    assert share <= MOST_UNTYPED, f"{len(untyped)} of {len(found)}:\n" + "\n".join(untyped)


def test_arrays_have_shapes():
    bare = [where for where, hint in parameters() if has_bare_array(hint)]
    # Of the shape of a random key nothing can be said.
    assert [where for where in bare if not where.endswith("(key)")] == []


def has_bare_array(hint: Any) -> bool:
    """Whether it is an array of which no axes are told; numbers of any shape may broadcast."""
    if typing.get_origin(hint) is collections.abc.Callable:
        return False
    options = typing.get_args(hint)
    if {jax.Array, float} <= set(options):
        return False
    return hint in (jax.Array, np.ndarray) or any(map(has_bare_array, options))


@pytest.mark.parametrize(
    ("hint", "legal", "illegal"),
    [
        (names.Scalar, [1, 1.5, np.float32(2), np.ones(()), jnp.ones(())], ["1", np.ones(2)]),
        (names.TargetsLike, [np.ones((2, 1)), jnp.ones(2, bool), [[1.0], [2]]], [1.0, "y"]),
        (names.Key, [jax.random.key(0), np.zeros(2, np.uint32)], [0, np.zeros(2)]),
        (names.Size, [3, np.int32(3)], [3.0, "3"]),
        (names.Shapes, [(-1, 3), [(2, np.int64(3)), [4, 5]]], ["ab", (1.5,)]),
        (names.Axes, [-1, (0, 1), [0], np.array([0, 1])], [1.5, "ab"]),
        (names.Inputs, [np.ones(2), [jnp.ones(2), (1.0, {"a": np.ones(3)})]], ["x", len]),
        (names.Masks, [None, np.ones(2, bool), (None, jnp.ones(2, bool))], [np.ones(2)]),
        (names.Get, [None, "ntk", ("nngp", "ntk")], [3, (1,)]),
        (names.SquareKernel, [np.ones((3, 3)), jnp.ones((3, 3, 2, 2))], [np.ones((3, 2)), 1.0]),
        (names.NetworkLike, [stax.Relu(), tuple(stax.Relu()), len], [3, "net"]),
        (names.Subset, [None, "a/*", ["a", "b"], {"a": True}, len], [3, np.ones(2)]),
    ],
)
def test_names_hold_what_is_legal(hint, legal, illegal):
    assert [value for value in legal if not fits(value, hint)] == []
    assert [value for value in illegal if fits(value, hint)] == []


def fits(value: Any, hint: Any) -> bool:
    with jaxtyped("context"):
        return bool(is_bearable(value, hint))
