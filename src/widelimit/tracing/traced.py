"""A user's function as it is now: what it reads besides its arguments is read at every call.

JAX compiles a function once and takes it for the same as long as it is one object: closures,
globals and attributes that change later are not seen. Here a function is traced at every call, and
what is compiled belongs to the equations that came out. Arrays that it reads are arguments of what
is compiled, and so are numbers that have been seen to change.
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
        """Keeps the equations and what tells them from others."""
        self._jaxpr, self.outputs, self._key = jaxpr, outputs, key
        self._hash = hash(key)

    def __call__(self, constants: Sequence[AnyArray], *args: PyTree) -> PyTree:
        """Returns the results, given the arrays that the function read and its arguments."""
        run = jaxpr_as_fun(ClosedJaxpr(self._jaxpr, constants))
        results = run(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(self.outputs), results)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedFunction) and (self is other or self._key == other._key)


class Untraced(TracedFunction):
    """A function that is called wherever it stands; equal to itself alone."""

    def __init__(self, function: Callable[..., PyTree], outputs: PyTree) -> None:
        """Keeps the function."""
        self._function, self.outputs = function, outputs
        self._key: Hashable = _Same(self)
        self._hash = id(self)

    def __call__(self, constants: Sequence[AnyArray], *args: PyTree) -> PyTree:  # noqa: ARG002
        """Returns the results; there are no constants."""
        return self._function(*args)


def trace(function: Callable[..., PyTree], *args: PyTree) -> tuple[TracedFunction, list[AnyArray]]:
    """Returns the equations of a function, and copies of the arrays that it read besides arguments.

    Inside `jax.shard_map` values have a type beside their shape that says how they vary over the
    devices, and that derivatives change: there the function is called as it is.

    Args:
      function: function of trees of arrays; it is called once.
      args: its arguments, or their shapes and dtypes.
    """

    def anew(*values: PyTree) -> PyTree:  # JAX would know the function itself again
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

    Only those that change: compilers make use of numbers that they know.
    """
    found = [
        (i, j, atom)
        for i, equation in enumerate(closed.jaxpr.eqns)
        for j, atom in enumerate(equation.invars)
        if isinstance(atom, Literal)
    ]
    if not found:
        return closed
    key = _Key(_Reader(hidden={id(atom) for *_, atom in found}).jaxpr(closed.jaxpr))
    changing = _changing(key, [_array_key(atom.val) for *_, atom in found])
    return _hoisted(closed, [found[n] for n in changing])


def _changing(key: _Key, values: list[Hashable]) -> list[int]:
    """Returns which numbers have changed since the first trace of the same other equations."""
    with _lock:
        first, changing = _numbers.pop(key, (values, set()))
        changing |= {n for n, value in enumerate(values) if value != first[n]}
        _numbers[key] = first, changing
        if len(_numbers) > _MOST_NUMBERS:
            del _numbers[next(iter(_numbers))]
        return sorted(changing)


# Numbers of the first trace of such equations, and which have changed.
_numbers: dict[_Key, tuple[list[Hashable], set[int]]] = {}
_MOST_NUMBERS = 1024
_lock = threading.Lock()


def _hoisted(closed: ClosedJaxpr, found: list[tuple[int, int, Literal]]) -> ClosedJaxpr:
    """Returns the equations with some numbers as constants.

    Args:
      closed: the equations.
      found: equation, place among what it takes, and number.
    """
    equations = list(closed.jaxpr.eqns)
    variables = [Var(atom.aval) for _, _, atom in found]
    for (i, j, _), variable in zip(found, variables, strict=True):
        taken = list(equations[i].invars)
        taken[j] = variable
        equations[i] = equations[i].replace(invars=taken)
    constants = [np.asarray(atom.val, getattr(atom.aval, "dtype", None)) for _, _, atom in found]
    jaxpr = closed.jaxpr
    jaxpr = jaxpr.replace(constvars=[*variables, *jaxpr.constvars], eqns=equations)
    return ClosedJaxpr(jaxpr, [*constants, *closed.consts])


def compiled(function: Callable[..., PyTree], *examples: PyTree) -> Callable[..., PyTree]:
    """Returns a function as it is now, compiled once for equal equations.

    Args:
      function: function of trees of arrays.
      examples: arguments of the shapes that it will be given.
    """
    program, constants = trace(function, *examples)
    return lambda *args: _run(program, constants, args)


@functools.partial(jax.jit, static_argnums=0)
def _run(program: TracedFunction, constants: list[AnyArray], args: tuple[PyTree, ...]) -> PyTree:
    return program(constants, *args)


class Snapshot:
    """A function as a static argument, equal to another one that computes the same now.

    Unlike a `TracedFunction` it takes arguments of any shape, and arrays that it reads count by
    their entries: for small functions of few constants, such as nonlinearities and losses.
    """

    def __init__(self, function: Callable[..., PyTree], *shapes: tuple[int, ...]) -> None:
        """Traces the function, in float64: whatever it reads then keeps its digits.

        Args:
          function: the function.
          shapes: shapes of arguments that it takes.
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
        except Exception:  # it raises again where it is called
            return _Same(self)

    def __call__(self, *args: PyTree) -> PyTree:
        """Returns what the function does."""
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
    """Stands for one object, and is equal for no other."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value


class _Reader:
    """Turns equations into nested tuples.

    Attributes:
      rules: functions with derivative rules that are not JAX's own, and where these are written.
        Rules are functions themselves, made anew by every trace.
    """

    def __init__(self, hidden: Collection[int] = ()) -> None:
        """Keeps the ids of numbers whose value is left out."""
        self.rules: set[Rule] = set()
        self._hidden = hidden

    def jaxpr(self, jaxpr: Jaxpr) -> Hashable:
        """Returns a tuple that says what a jaxpr does."""
        numbers: dict[Var, int] = {}

        def number(variable: Var) -> int:
            return numbers.setdefault(variable, len(numbers))

        def atom(value: Value) -> Hashable:
            if isinstance(value, Literal):
                return value.aval, None if id(value) in self._hidden else _array_key(value.val)
            return number(value)

        given = [*jaxpr.constvars, *jaxpr.invars]
        head = len(jaxpr.constvars), tuple(variable.aval for variable in given)
        for variable in given:
            number(variable)
        body = []
        for equation in jaxpr.eqns:
            taken = tuple(map(atom, equation.invars))
            made = tuple(map(number, equation.outvars))
            body.append((equation.primitive, taken, made, self._params(equation)))
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
        """Returns what tells a parameter of an equation from others."""
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
        """Returns the key of a jaxpr inside, which JAX keeps for calls of the same function."""
        if closed not in _inner:
            reader = _Reader()
            constants = tuple(map(_array_key, closed.consts))
            _inner[closed] = _Key((reader.jaxpr(closed.jaxpr), constants)), reader.rules
        key, rules = _inner[closed]
        self.rules |= rules
        return key


Rule: TypeAlias = tuple[tuple[str, ...], _Key]
"""Where a function with a derivative rule is written, and what else tells it from others."""

_inner: weakref.WeakKeyDictionary[ClosedJaxpr, tuple[_Key, set[Rule]]] = weakref.WeakKeyDictionary()


def _derivative_key(closed: ClosedJaxpr, rules: Set[Rule]) -> Hashable:
    """Returns what tells functions with derivative rules of their own apart: the rules, applied.

    Rules may call functions with rules: they are applied until those have been seen before.
    """
    seen: set[Rule] = set()
    keys: list[Hashable] = []
    while not rules <= seen:
        seen |= rules
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

    def derivative(given: list[jax.Array]) -> PyTree:
        chosen = [i for i, v in enumerate(given) if _is_inexact(v)]

        def f(values: list[jax.Array]) -> list[jax.Array]:
            filled = list(given)
            for i, value in zip(chosen, values, strict=True):
                filled[i] = value
            run = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, filled[:count]))
            return [out for out in run(*filled[count:]) if _is_inexact(out)]

        out, pull = jax.vjp(f, [given[i] for i in chosen])
        return pull(out)

    return jax.make_jaxpr(derivative)([variable.aval for variable in variables])


def _is_inexact(value: jax.Array) -> bool:
    return bool(jnp.issubdtype(value.dtype, np.inexact))


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _array_key(value: object) -> Hashable:
    """Returns what tells an array or a number from others: its entries, where they are known."""
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
    """Returns all that JAX knows of the type of an array; what is equal has equal traces."""
    weak = getattr(array, "weak_type", False)
    return array.shape, array.dtype, weak, varying_axes(array)
