"""Recordings: the computation of a kernel, recorded at its first call and run without the layers.

Layers decide what to compute from shapes alone. So a later call with the same shapes skips these
decisions: it runs the compiled steps of the first call, in order, on other arrays.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias, TypeVar, TypeVarTuple

import jax
from jaxtyping import Array, ArrayLike, PyTreeDef

from widelimit._cache import Cache
from widelimit.typing import Arrays, Function

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

Leaf: TypeAlias = ArrayLike | None
"""An array or a number; None once it is not needed any more."""

_STEPS = 1024  # most compiled steps in the cache

_current: contextvars.ContextVar[Recording | None] = contextvars.ContextVar(
    "recording", default=None
)


class _CompiledStep:
    """A function of trees, compiled as a function of flat arrays for one structure of arguments.

    Attributes:
      run: the function of a tuple of arrays, which returns a list of arrays.
      out: structure of the result, known after the first call.
    """

    def __init__(self, function: Function, structure: PyTreeDef) -> None:
        self._function, self._structure = function, structure
        self.out: PyTreeDef | None = None
        self.run = jax.jit(self._flat)

    def _flat(self, leaves: tuple[Leaf, ...]) -> list[Array]:
        out, self.out = jax.tree.flatten(
            self._function(*jax.tree.unflatten(self._structure, leaves))
        )
        return out


_steps = Cache(_STEPS)


class _Entry(NamedTuple):
    """A step of a recording.

    Attributes:
      run: the compiled function.
      arguments: places of its arguments.
      start: place of its first result.
      dead: places that no later step reads.
    """

    run: Callable[[tuple[Leaf, ...]], list[Array]]
    arguments: tuple[int, ...]
    start: int
    dead: tuple[int, ...]


@contextlib.contextmanager
def recorded(inputs: Arrays, constants: Arrays) -> Iterator[Recording]:
    """Records the compiled steps inside; see `Recording`."""
    recording = Recording(inputs, constants)
    token = _current.set(recording)
    try:
        yield recording
    finally:
        _current.reset(token)


def run_compiled(function: Callable[[*_Args], _T], *args: *_Args) -> _T:
    """Returns the result of a function of trees of concrete arrays, run compiled and recorded.

    Args:
      function: a function of a module, so that it is the same object at every call.
      *args: trees of arrays; their static parts are in their structure.
    """
    recording = _current.get()
    if recording is not None:
        return recording.call(function, *args)
    leaves, structure = jax.tree.flatten(args)
    step = _step_of(function, structure)
    out = step.run(tuple(leaves))
    return jax.tree.unflatten(step.out, out)


def _step_of(function: Function, structure: PyTreeDef) -> _CompiledStep:
    return _steps.get((function, structure), lambda: _CompiledStep(function, structure))


class Recording:
    """The steps of a computation, from inputs to results.

    Attributes:
      complete: whether every argument of a step was an input, a constant, or the result of an
        earlier step. If not, part of the computation was not recorded.
    """

    def __init__(self, inputs: Arrays, constants: Arrays) -> None:
        """Begins a recording.

        Args:
          inputs: tree of the arrays that differ in later calls.
          constants: tree of arrays that do not change, such as hyper-parameters.
        """
        self.complete = True
        self._values: list[Leaf] = []
        self._places: dict[int, int] = {}
        self._constants = list(jax.tree.leaves(constants))
        self._fixed = {id(value) for value in self._constants}
        self._entries: list[_Entry] = []
        self._results: tuple[int, ...] = ()
        self._add(jax.tree.leaves(inputs))

    def call(self, function: Callable[[*_Args], _T], *args: *_Args) -> _T:
        """Returns the result of a function of trees, run compiled, and records the step."""
        leaves, structure = jax.tree.flatten(args)
        step = _step_of(function, structure)
        arguments = tuple(map(self._place, leaves))
        out = step.run(tuple(leaves))
        self._entries.append(_Entry(step.run, arguments, len(self._values), ()))
        self._add(out)
        return jax.tree.unflatten(step.out, out)

    def end(self, results: Arrays) -> None:
        """Ends the recording: later calls return the places of `results`. Arrays are dropped."""
        self._results = tuple(map(self._place, jax.tree.leaves(results)))
        self._values = [value if id(value) in self._fixed else None for value in self._values]
        self._places = {}
        last = {p: i for i, entry in enumerate(self._entries) for p in entry.arguments}
        needed = {*self._results, *(p for p, value in enumerate(self._values) if value is not None)}
        self._entries = [
            entry._replace(dead=tuple(p for p in {*entry.arguments} - needed if last[p] == i))
            for i, entry in enumerate(self._entries)
        ]

    def run(self, inputs: Arrays) -> list[Leaf]:
        """Returns the results for other inputs of the same shapes and dtypes."""
        values = self._values.copy()
        leaves = jax.tree.leaves(inputs)
        values[: len(leaves)] = leaves
        for run, arguments, start, dead in self._entries:
            out = run(tuple([values[p] for p in arguments]))
            values[start : start + len(out)] = out
            for place in dead:
                values[place] = None
        return [values[p] for p in self._results]

    def _add(self, values: Iterable[ArrayLike]) -> None:
        for value in values:
            self._places[id(value)] = len(self._values)
            self._values.append(value)

    def _place(self, value: ArrayLike) -> int:
        if id(value) not in self._places:
            is_fixed = id(value) in self._fixed or not isinstance(value, jax.Array)
            self.complete = self.complete and is_fixed
            self._fixed.add(id(value))
            self._add([value])
        return self._places[id(value)]
