"""A traced function as a flat list of steps, and its evaluation with shifts added inside.

Calls that are equivalent to their bodies are inlined; a function with a custom derivative rule
is one step; a `scan` has its body as a program.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from widelimit.tracing.jaxprs import Equation, Equations, Literal, Value

# Calls that may be replaced by their bodies, and the parameter that holds the body.
INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}

_V = TypeVar("_V")

# The path of a step: the numbers of the scans around it, from the outermost.
Path = tuple[int, ...]
# A value inside the program: the path of the scans around it, and its number there.
Place = tuple[Path, int]


@dataclasses.dataclass(frozen=True)
class Step:
    """One primitive operation.

    Attributes:
      name: name of the primitive.
      params: parameters of the primitive.
      inputs: numbers of its input values.
      outputs: numbers of its output values.
      run: function of the input values that returns the list of results.
      body: body of a scan, else None.
    """

    name: str
    params: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    run: Callable[..., list[ArrayLike]]
    body: Program | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced function; every value in it has a number.

    Attributes:
      inputs: numbers of the arguments.
      outputs: numbers of the results.
      steps: the steps in the order of evaluation.
      constants: values other than arguments, by number: literals, arrays that were closed over.
      types: type of every value, with `shape` and `dtype`.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: tuple[Step, ...]
    constants: Mapping[int, ArrayLike]
    types: Mapping[int, Any]


def program_of(function: Callable[..., PyTree], *args: PyTree) -> Program:
    """Returns the program of a function of arrays."""
    return _Flattener().program(Equations.of(function, *args))


class _Flattener:
    """Numbers the values of equations, and replaces calls by their bodies."""

    def __init__(self) -> None:
        self.numbers: Iterator[int] = itertools.count()
        self.steps: list[Step] = []
        self.constants: dict[int, ArrayLike] = {}
        self.types: dict[int, Any] = {}

    def program(self, equations: Equations) -> Program:
        """Returns the whole program."""
        inputs = tuple(self.new(v.aval) for v in equations.inputs)
        outputs = self.inline(equations, inputs)
        steps = _needed(self.steps, outputs)
        return Program(inputs, outputs, steps, self.constants, self.types)

    def new(self, aval: Any) -> int:
        number = next(self.numbers)
        self.types[number] = aval
        return number

    def constant(self, value: Any, aval: Any) -> int:
        number = self.new(aval)
        self.constants[number] = value
        return number

    def inline(self, equations: Equations, inputs: Sequence[int]) -> tuple[int, ...]:
        """Adds the steps of equations; returns the numbers of their results."""
        number_of = dict(zip(equations.inputs, inputs, strict=True))
        for variable, value in zip(equations.constants, equations.values, strict=True):
            number_of[variable] = self.constant(value, variable.aval)

        def number(value: Value) -> int:
            if isinstance(value, Literal):
                return self.constant(value.val, value.aval)
            return number_of[value]

        for equation in equations:
            arguments = tuple(map(number, equation.inputs))
            body = equation.body(INLINED.get(equation.name))
            if body is not None and len(body.values) == len(body.constants):
                results = self.inline(body, arguments)
            else:
                results = tuple(self.new(v.aval) for v in equation.outputs)
                self.steps.append(_step(equation, arguments, results))
            number_of.update(zip(equation.outputs, results, strict=True))
        return tuple(map(number, equations.outputs))


def _needed(steps: Sequence[Step], outputs: Sequence[int]) -> tuple[Step, ...]:
    """Returns the steps on which these values depend."""
    needed, ordered = set(outputs), []
    for step in reversed(steps):
        if not needed.isdisjoint(step.outputs):
            needed.update(step.inputs)
            ordered.append(step)
    return tuple(reversed(ordered))


def _step(equation: Equation, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Step:
    """Returns an equation as a step."""
    body = equation.body("jaxpr") if equation.name == "scan" else None
    program = None if body is None else _Flattener().program(body)
    return Step(equation.name, equation.params, inputs, outputs, equation.runner(), program)


def evaluate(
    program: Program,
    args: Sequence[ArrayLike],
    shifts: Mapping[Place, Array],
    reads: Collection[Place],
    path: Path = (),
) -> tuple[list[ArrayLike], dict[Place, Array]]:
    """Returns the results of a program, and values inside it.

    Args:
      program: the program.
      args: its arguments.
      shifts: arrays to add to values once these are computed. Inside scans they have one more
        leading axis per scan, over its rounds, the outermost first.
      reads: places of values to return too, with the same axes inside scans.
      path: path of this program.
    """
    values = {**program.constants, **dict(zip(program.inputs, args, strict=True))}
    inside: dict[Place, Array] = {}
    for index, step in enumerate(program.steps):
        arguments = [values[number] for number in step.inputs]
        deeper = (*path, index)
        if step.body is not None and any(p[: len(deeper)] == deeper for p, _ in (*shifts, *reads)):
            results, read = _run_scan(step, arguments, shifts, reads, deeper)
            inside.update(read)
        else:
            results = step.run(*arguments)
        for number, value in zip(step.outputs, results, strict=True):
            shift = shifts.get((path, number))
            values[number] = value if shift is None else value + shift
    inside.update({(p, number): jnp.asarray(values[number]) for p, number in reads if p == path})
    return [values[number] for number in program.outputs], inside


def _run_scan(
    step: Step,
    arguments: Sequence[ArrayLike],
    shifts: Mapping[Place, Array],
    reads: Collection[Place],
    path: Path,
) -> tuple[list[ArrayLike], dict[Place, Array]]:
    """Returns the same as `evaluate`, for the body of one scan."""
    consts, carry, over = split_scan(step, arguments)
    inner = {place: shift for place, shift in shifts.items() if place[0][: len(path)] == path}
    body = step.body
    assert body is not None

    places = list(inner)
    needed = [place for place in reads if place[0][: len(path)] == path]

    def one_round(
        carry: list[ArrayLike], over: tuple[list[ArrayLike], list[Array]]
    ) -> tuple[list[ArrayLike], PyTree]:
        shifted = dict(zip(places, over[1], strict=True))
        results, read = evaluate(body, [*consts, *carry, *over[0]], shifted, needed, path)
        return results[: len(carry)], (results[len(carry) :], [read[place] for place in needed])

    params = step.params
    carry, (results, read) = jax.lax.scan(
        one_round,
        carry,
        (over, [inner[place] for place in places]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *results], dict(zip(needed, read, strict=True))


def split_scan(step: Step, values: Sequence[_V]) -> tuple[list[_V], list[_V], list[_V]]:
    """Returns the arguments of a scan: constants, initial carry, and scanned arrays."""
    first = step.params["num_consts"]
    second = first + step.params["num_carry"]
    return list(values[:first]), list(values[first:second]), list(values[second:])
