"""Traced functions as equations, to read them and to run single ones."""

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
"""An input of an equation: a variable, or a known number."""


class Equations:
    """The equations of a traced function.

    Attributes:
      inputs: its arguments.
      constants: arrays that it read besides them.
      values: values of the constants, if known.
      outputs: its results.
    """

    def __init__(self, jaxpr: ClosedJaxpr | Jaxpr) -> None:
        """Reads a jaxpr."""
        self.values: Sequence[Any] = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
        inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
        self.inputs: Sequence[Var] = inner.invars
        self.constants: Sequence[Var] = inner.constvars
        self.outputs: Sequence[Value] = inner.outvars
        self._equations = inner.eqns

    @classmethod
    def of(cls, function: Callable[..., object], *args: object) -> Equations:
        """Returns the equations of a function, traced for these arrays or shapes."""
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
    """One operation of a trace."""

    _equation: JaxprEqn

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self._equation.primitive.name

    @property
    def params(self) -> Mapping[str, Any]:
        """Its static parameters."""
        return self._equation.params

    @property
    def inputs(self) -> Sequence[Value]:
        """Its inputs."""
        return self._equation.invars

    @property
    def outputs(self) -> Sequence[Var]:
        """Its outputs."""
        return self._equation.outvars

    @property
    def bodies(self) -> list[Equations]:
        """The functions that it calls."""
        bodies = []
        for value in self.params.values():
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, ClosedJaxpr | Jaxpr):
                    bodies.append(Equations(one))
        return bodies

    def body(self, name: str | None) -> Equations | None:
        """Returns the function in this parameter, or None."""
        value = self.params.get(name) if name else None
        return Equations(value) if isinstance(value, ClosedJaxpr | Jaxpr) else None

    def runner(self) -> Callable[..., list[Any]]:
        """Returns a function from the values of the inputs to those of the outputs."""
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
    """Returns a jaxpr with these numbers of inputs and outputs, to be filled in."""
    return jax.make_jaxpr(lambda *_: (0.0,) * outputs)(*(0.0,) * inputs).jaxpr


def variables_of(values: Sequence[Value]) -> list[Var]:
    """Returns the variables among values, without numbers."""
    return [value for value in values if isinstance(value, Var)]


def shape_of(value: Value) -> tuple[int, ...]:
    """Returns the shape of a value; that of a token is empty."""
    return tuple(getattr(value.aval, "shape", ()))


def bytes_of(values: Sequence[Value]) -> int:
    """Returns the total bytes of values."""
    return sum(
        math.prod(shape_of(v)) * getattr(getattr(v.aval, "dtype", None), "itemsize", 0)
        for v in values
    )
