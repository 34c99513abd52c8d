"""Users' functions as they are now: values that they read besides arguments are read at each call.

JAX compiles a function once per object: later changes of closures, globals and attributes have no
effect. Here a function is traced at every call, and compiled once per distinct equations. Arrays
that it reads become arguments of the compiled function, and so do numbers once they have changed.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence, Set
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from widelimit._pytree import AnyArray, Outline, is_concrete
from widelimit.tracing.derivative_rules import has_rule, places
from widelimit.tracing.jaxprs import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Value,
    Var,
    jaxpr_as_fun,
)
from widelimit.tracing.varying import varying_axes, varying_like


class TracedFunction:
    """The equations of a traced function, a static argument of compiled functions.

    Two are equal if they do the same with their arguments and constants.

    Attributes:
      outputs: tree of the shapes and dtypes of the results.
    """

    def __init__(self, jaxpr: Jaxpr, outputs: PyTree, key: Hashable) -> None:
        """Stores the equations and the key by which they are compared."""
        self._jaxpr, self.outputs, self._key = jaxpr, outputs, key
        self._hash = hash(key)

    def __call__(self, constants: Sequence[AnyArray], *args: PyTree) -> PyTree:
        """Returns the results for the arrays that the function reads, and its arguments."""
        run = jaxpr_as_fun(ClosedJaxpr(self._jaxpr, constants))
        results = run(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(self.outputs), results)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedFunction) and (self is other or self._key == other._key)


class Untraced(TracedFunction):
    """A function that is called directly, without equations; equal only to itself."""

    def __init__(self, function: Callable[..., PyTree], outputs: PyTree) -> None:
        """Stores the function."""
        self._function, self.outputs = function, outputs
        self._key: Hashable = _Same(self)
        self._hash = id(self)

    def __call__(self, constants: Sequence[AnyArray], *args: PyTree) -> PyTree:  # noqa: ARG002
        """Returns the results; `constants` are empty."""
        return self._function(*args)


def trace(function: Callable[..., PyTree], *args: PyTree) -> tuple[TracedFunction, list[AnyArray]]:
    """Returns the equations of a function, and copies of the arrays that it reads.

    Inside `jax.shard_map` the type of a value includes the axes of devices along which it varies,
    which derivatives change: there the function is called directly.

    Args:
      function: function of trees of arrays; it is called once.
      args: its arguments, or their shapes and dtypes.
    """

    def anew(*values: PyTree) -> PyTree:  # a new object, since JAX caches by function
        return function(*varying_like(values, args))

    if jax.sharding.get_abstract_mesh().manual_axes:
        return Untraced(function, jax.eval_shape(anew, *args)), []
    closed, outputs = jax.make_jaxpr(anew, return_shape=True)(*args)
    closed = _with_changing_numbers(closed)
    reader = _Reader()
    key = reader.jaxpr(closed.jaxpr), reader.param(jax.tree.structure(outputs))
    if reader.rules:
        key = key, _derivative_key(closed, reader.rules)
    constants = [c if isinstance(c, jax.Array) else np.array(c) for c in closed.consts]
    return TracedFunction(closed.jaxpr, outputs, _Key(key)), [*constants]


def _with_changing_numbers(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Returns the equations with numbers as constants that differ from those of an earlier trace.

    Other numbers remain in the equations, for compilers to use.
    """
    numbers = [
        (i, j, atom)
        for i, equation in enumerate(closed.jaxpr.eqns)
        for j, atom in enumerate(equation.invars)
        if isinstance(atom, Literal)
    ]
    if not numbers:
        return closed
    key = _Key(_Reader(hidden={id(atom) for *_, atom in numbers}).jaxpr(closed.jaxpr))
    changing = _changing(key, [_array_key(atom.val) for *_, atom in numbers])
    return _hoisted(closed, [numbers[n] for n in changing])


def _changing(key: _Key, values: list[Hashable]) -> list[int]:
    """Returns which numbers have changed since the first trace of the same other equations."""
    with _lock:
        first, changing = _numbers.pop(key, (values, set()))
        changing |= {n for n, value in enumerate(values) if value != first[n]}
        _numbers[key] = first, changing
        if len(_numbers) > _MOST_NUMBERS:
            del _numbers[next(iter(_numbers))]
        return sorted(changing)


# Numbers of the first trace of such equations, and the indices of those that have changed.
_numbers: dict[_Key, tuple[list[Hashable], set[int]]] = {}
_MOST_NUMBERS = 1024
_lock = threading.Lock()


def _hoisted(closed: ClosedJaxpr, numbers: list[tuple[int, int, Literal]]) -> ClosedJaxpr:
    """Returns the equations with some numbers as constants.

    Args:
      closed: the equations.
      numbers: equation, place among its inputs, and number.
    """
    equations = list(closed.jaxpr.eqns)
    variables = [Var(atom.aval) for _, _, atom in numbers]
    for (i, j, _), variable in zip(numbers, variables, strict=True):
        inputs = list(equations[i].invars)
        inputs[j] = variable
        equations[i] = equations[i].replace(invars=inputs)
    constants = [np.asarray(atom.val, getattr(atom.aval, "dtype", None)) for _, _, atom in numbers]
    jaxpr = closed.jaxpr
    jaxpr = jaxpr.replace(constvars=[*variables, *jaxpr.constvars], eqns=equations)
    return ClosedJaxpr(jaxpr, [*constants, *closed.consts])


def compiled(function: Callable[..., PyTree], *examples: PyTree) -> Callable[..., PyTree]:
    """Returns a function as it is now, compiled once for equal equations.

    Args:
      function: function of trees of arrays.
      examples: arguments with the shapes of later calls.
    """
    program, constants = trace(function, *examples)
    return lambda *args: _run(program, constants, args)


@functools.partial(jax.jit, static_argnums=0)
def _run(program: TracedFunction, constants: list[AnyArray], args: tuple[PyTree, ...]) -> PyTree:
    return program(constants, *args)


class Snapshot:
    """A function as a static argument, equal to any function that computes the same now.

    Unlike a `TracedFunction` it takes arguments of any shape, and the arrays that it reads are
    compared by their entries: it is meant for small functions, such as nonlinearities and losses.
    """

    def __init__(self, function: Callable[..., PyTree], *shapes: tuple[int, ...]) -> None:
        """Traces the function in float64, so that the values that it reads are not rounded.

        Args:
          function: the function.
          shapes: example shapes of its arguments.
        """
        self._function: Callable[..., PyTree] = function
        self._key = _Key(self._read(shapes))

    def _read(self, shapes: tuple[tuple[int, ...], ...]) -> Hashable:
        function = self._function
        if isinstance(function, Snapshot):
            return function._key
        try:
            with jax.enable_x64(True):
                examples = [jax.ShapeDtypeStruct(shape, np.float64) for shape in shapes]
                program, constants = trace(function, *examples)
                return program._key, tuple(map(_array_key, constants))
        except Exception:  # the error is raised again by the call
            return _Same(self)

    def __call__(self, *args: PyTree) -> PyTree:
        """Returns the result of the function."""
        return self._function(*args)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and self._key == other._key


class _Key:
    """A nested tuple with its hash."""

    def __init__(self, value: Hashable) -> None:
        self._value, self._hash = value, hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._hash == other._hash and self._value == other._value


class _Same:
    """A key of one object by identity."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value


class _Reader:
    """Turns equations into nested tuples.

    Attributes:
      rules: functions with derivative rules that are not JAX's own, and the source lines of these.
        Rules are function objects that every trace makes anew.
    """

    def __init__(self, hidden: Collection[int] = ()) -> None:
        """Stores the ids of numbers whose values are left out."""
        self.rules: set[Rule] = set()
        self._hidden = hidden

    def jaxpr(self, jaxpr: Jaxpr) -> Hashable:
        """Returns a tuple that describes a jaxpr: equal ones compute the same."""
        numbers: dict[Var, int] = {}

        def number(variable: Var) -> int:
            return numbers.setdefault(variable, len(numbers))

        def atom(value: Value) -> Hashable:
            if isinstance(value, Literal):
                return value.aval, None if id(value) in self._hidden else _array_key(value.val)
            return number(value)

        values = [*jaxpr.constvars, *jaxpr.invars]
        head = len(jaxpr.constvars), tuple(variable.aval for variable in values)
        for variable in values:
            number(variable)
        body = []
        for equation in jaxpr.eqns:
            inputs = tuple(map(atom, equation.invars))
            outputs = tuple(map(number, equation.outvars))
            body.append((equation.primitive, inputs, outputs, self._params(equation)))
        return head, tuple(body), tuple(map(atom, jaxpr.outvars))

    def _params(self, equation: JaxprEqn) -> Hashable:
        params = equation.params
        if not has_rule(equation):
            return tuple((name, self.param(value)) for name, value in params.items())
        params = {k: v for k, v in params.items() if _is_jaxpr(v) or isinstance(v, int)}
        key = tuple((name, self.param(value)) for name, value in params.items())
        where = places(equation)
        if where is not None:
            self.rules.add((where, _Key(key)))
        return where, key

    def param(self, value: object) -> Hashable:
        """Returns the key of a parameter of an equation."""
        if isinstance(value, ClosedJaxpr):
            return self._closed(value)
        if isinstance(value, Jaxpr):
            return self.jaxpr(value)
        if isinstance(value, tuple | list):
            return type(value).__name__, *map(self.param, value)
        if isinstance(value, Mapping):
            return tuple((name, self.param(part)) for name, part in value.items())
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return _array_key(value)
        try:
            hash(value)
        except TypeError:
            return _Same(value)
        return type(value), value

    def _closed(self, closed: ClosedJaxpr) -> _Key:
        """Returns the key of an inner jaxpr, which JAX caches for calls of the same function."""
        if closed not in _inner:
            reader = _Reader()
            constants = tuple(map(_array_key, closed.consts))
            _inner[closed] = _Key((reader.jaxpr(closed.jaxpr), constants)), reader.rules
        key, rules = _inner[closed]
        self.rules |= rules
        return key


Rule: TypeAlias = tuple[tuple[str, ...], _Key]
"""The source lines of a function with a derivative rule, and the rest of its key."""

_inner: weakref.WeakKeyDictionary[ClosedJaxpr, tuple[_Key, set[Rule]]] = weakref.WeakKeyDictionary()


def _derivative_key(closed: ClosedJaxpr, rules: Set[Rule]) -> Hashable:
    """Returns the key of functions with custom derivative rules: the equations of the derivatives.

    Rules may call functions with rules: derivatives are taken until no new rules appear.
    """
    earlier: set[Rule] = set()
    keys: list[Hashable] = []
    while not rules <= earlier:
        earlier |= rules
        if len(keys) == _MOST_ORDERS:
            return _Same(closed)
        try:
            closed = _derivative(closed)
        except (TypeError, ValueError, NotImplementedError):
            return _Same(closed)
        reader = _Reader()
        keys.append((reader.jaxpr(closed.jaxpr), tuple(map(_array_key, closed.consts))))
        rules = reader.rules
    return tuple(keys)


_MOST_ORDERS = 4


def _derivative(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Returns the equations of the derivative in reverse mode; constants become arguments."""
    variables = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
    count = len(closed.consts)

    def derivative(arguments: list[jax.Array]) -> PyTree:
        chosen = [i for i, v in enumerate(arguments) if _is_inexact(v)]

        def f(values: list[jax.Array]) -> list[jax.Array]:
            filled = list(arguments)
            for i, value in zip(chosen, values, strict=True):
                filled[i] = value
            run = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, filled[:count]))
            return [out for out in run(*filled[count:]) if _is_inexact(out)]

        out, pull = jax.vjp(f, [arguments[i] for i in chosen])
        return pull(out)

    return jax.make_jaxpr(derivative)([variable.aval for variable in variables])


def _is_inexact(value: jax.Array) -> bool:
    return bool(jnp.issubdtype(value.dtype, np.inexact))


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _array_key(value: object) -> Hashable:
    """Returns the key of an array or a number: its entries if known, else the object."""
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.extended)
    if is_key or not is_concrete(value):
        return _Same(value)
    entries = np.asarray(value)
    return entries.dtype, entries.shape, entries.tobytes()


def shape_like(array: Outline, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Returns a shape with the dtype of an array."""
    weak = getattr(array, "weak_type", False)
    return jax.ShapeDtypeStruct(shape, array.dtype, weak_type=weak)


def type_of(array: Outline) -> Hashable:
    """Returns the full type of an array in JAX; arrays of equal types have equal traces."""
    weak = getattr(array, "weak_type", False)
    return array.shape, array.dtype, weak, varying_axes(array)
