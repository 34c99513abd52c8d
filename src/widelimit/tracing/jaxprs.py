"""Traced functions as their equations: how they are read, and how one of them is run."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr as ClosedJaxpr
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import JaxprEqn as JaxprEqn
from jax.extend.core import Literal as Literal
from jax.extend.core import Var as Var
from jax.extend.core import jaxpr_as_fun as jaxpr_as_fun

Value: TypeAlias = Var | Literal
"""What an equation takes: a variable, or a number that is known."""


class Equations:
    """The equations of a traced function.

    Attributes:
      inputs: its arguments.
      constants: arrays that it read besides them.
      values: of the constants, as far as they are known.
      outputs: its results.
    """

    def __init__(self, jaxpr: ClosedJaxpr | Jaxpr) -> None:
        """Reads what JAX has traced."""
        self.values: Sequence[Any] = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
        inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
        self.inputs: Sequence[Var] = inner.invars
        self.constants: Sequence[Var] = inner.constvars
        self.outputs: Sequence[Value] = inner.outvars
        self._equations = inner.eqns

    @classmethod
    def of(cls, function: Callable[..., object], *args: object) -> Equations:
        """Returns the equations of a function of arrays, for arrays or shapes like these."""
        return cls(jax.make_jaxpr(function)(*args))

    def __iter__(self) -> Iterator[Equation]:
        return map(Equation, self._equations)

    def walk(self) -> Iterator[Equation]:
        """Yields all equations, and those of the functions that they call."""
        for equation in self:
            yield equation
            for body in equation.bodies:
                yield from body.walk()


@dataclasses.dataclass(frozen=True)
class Equation:
    """One operation."""

    _equation: JaxprEqn

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self._equation.primitive.name

    @property
    def params(self) -> Mapping[str, Any]:
        """What is static about it."""
        return self._equation.params

    @property
    def inputs(self) -> Sequence[Value]:
        """What it takes."""
        return self._equation.invars

    @property
    def outputs(self) -> Sequence[Var]:
        """What it returns."""
        return self._equation.outvars

    @property
    def bodies(self) -> list[Equations]:
        """The functions that it calls."""
        found = []
        for value in self.params.values():
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, ClosedJaxpr | Jaxpr):
                    found.append(Equations(one))
        return found

    def body(self, name: str | None) -> Equations | None:
        """Returns the function that it calls by this parameter, if there is one."""
        value = self.params.get(name) if name else None
        return Equations(value) if isinstance(value, ClosedJaxpr | Jaxpr) else None

    def runner(self) -> Callable[..., list[Any]]:
        """Returns what takes values of the inputs to those of the outputs."""
        variables = list(dict.fromkeys(variables_of(self.inputs)))
        alone = _empty(len(variables), len(self.outputs)).replace(
            invars=variables,
            outvars=list(self.outputs),
            eqns=[self._equation],
            effects=self._equation.effects,
        )
        run = jaxpr_as_fun(ClosedJaxpr(alone, []))
        places = [self.inputs.index(variable) for variable in variables]
        return lambda *values: list(run(*(values[place] for place in places)))


@functools.cache
def _empty(inputs: int, outputs: int) -> Jaxpr:
    """Returns a function of so many numbers with so many results, to be filled in."""
    return jax.make_jaxpr(lambda *_: (0.0,) * outputs)(*(0.0,) * inputs).jaxpr


def variables_of(values: Sequence[Value]) -> list[Var]:
    """Returns the variables among values, which are no numbers."""
    return [value for value in values if isinstance(value, Var)]


def shape_of(value: Value) -> tuple[int, ...]:
    """Returns the shape of a value; that of a token is empty."""
    return tuple(getattr(value.aval, "shape", ()))


def bytes_of(values: Sequence[Value]) -> int:
    """Returns the bytes that values take together."""
    return sum(
        math.prod(shape_of(v)) * getattr(getattr(v.aval, "dtype", None), "itemsize", 0)
        for v in values
    )
