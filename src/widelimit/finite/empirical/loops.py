"""Python loops for concrete arrays, and compiled loops for traced ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from widelimit.typing import Integer

_C = TypeVar("_C")


@runtime_checkable
class ForLoop(Protocol):
    """A loop of Python, or a compiled one."""

    def __call__(self, count: Integer, body: Callable[[Integer, _C], _C], carry: _C, /) -> _C:
        """Returns the carry after `count` rounds."""


def python_loop(count: Integer, body: Callable[[Integer, _C], _C], carry: _C) -> _C:
    """Returns the carry after a loop of Python."""
    for i in range(int(count)):
        carry = body(i, carry)
    return carry


def compiled_loop(count: Integer, body: Callable[[Integer, _C], _C], carry: _C) -> _C:
    """Returns the carry after a compiled loop."""

    def step(i: Array, carry: _C) -> _C:
        return body(lax.convert_element_type(i, jnp.int32), carry)

    return lax.fori_loop(jnp.int32(0), jnp.asarray(count, jnp.int32), step, carry)
