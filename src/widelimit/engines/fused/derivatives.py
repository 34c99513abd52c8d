"""Values of traced code with their derivatives: programs run backwards, else plain JAX.

JAX asks for tangents, and transposes what is linear in them. A callback has no transpose, so the
tangents are the solution of a linear system: of (d, e) -> (d, e - J d) with J the Jacobian of plain
JAX. What JAX transposes is then how the system is solved, which may be said in any way, and is a
callback. Higher derivatives are those of the system, which plain JAX knows.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.experimental.buffer_callback import buffer_callback
from jax.flatten_util import ravel_pytree

from widelimit.engines.fused.callbacks import PullHost, TracedCall, ValuesHost
from widelimit.engines.plan import leading_flatten
from widelimit.engines.reference import ReferenceEngine
from widelimit.engines.request import Request
from widelimit.layers.context import Context

Values = dict[str, Any]


def call_back(call: TracedCall, numbers: Any, x1: Any, x2: Any) -> Values:
    """Returns the values between samples, by name, without derivatives.

    Args:
      call: what is static.
      numbers: hyper-parameters that are traced.
      x1: samples.
      x2: likewise, or None for x1.
    """
    template, (one, two) = call.template(), _flattened(call, x1, x2)
    host = ValuesHost(call, (1, one.ndim, one.ndim), template)
    with jax.enable_x64(template.dtype == jnp.float64):  # layers behind space may want float64
        outline = template.outline(call.sizes(x1, x2), x2 is None)
        called = buffer_callback(host, outline, vmap_method="expand_dims")
        found: Values = called(_stacked(call, numbers), one, two)
        return found


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def values_of(call: TracedCall, numbers: Any, x1: Any, x2: Any) -> Values:
    """Returns the same, with derivatives."""
    return call_back(call, numbers, x1, x2)


@functools.partial(values_of.defjvp, symbolic_zeros=True)
def _derivative(call: TracedCall, primals: Any, tangents: Any) -> tuple[Values, Values]:
    values = values_of(call, *primals)
    point = _Point.of(call, primals, tangents)
    given = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
    directions = [given[i] for i in point.varied]
    if call.template().undifferentiable or not point.pulled():
        return values, point.push(directions)
    return values, _transposable(point, directions, values)


def _transposable(point: _Point, directions: list[Any], values: Values) -> Values:
    """Returns tangents by plain JAX, whose transpose is a callback."""
    # One array: JAX transposes a system by all that it is given, or not at all.
    given, apart = ravel_pytree((directions, jax.tree.map(jnp.zeros_like, values)))

    def apply(given: Any) -> Any:
        directions, found = apart(given)
        return joined(directions, jax.tree.map(jnp.subtract, found, point.push(directions)))

    def solve(_: Any, given: Any) -> Any:
        directions, found = apart(given)
        return joined(directions, jax.tree.map(jnp.add, found, point.push(directions)))

    def solve_transposed(_: Any, given: Any) -> Any:
        directions, found = apart(given)
        return joined(jax.tree.map(jnp.add, directions, point.pull(found)), found)

    def joined(directions: list[Any], values: Values) -> jax.Array:
        return ravel_pytree((directions, values))[0]

    found: Values = apart(lax.custom_linear_solve(apply, given, solve, solve_transposed))[1]
    return found


@dataclasses.dataclass(frozen=True)
class _Point:
    """Where a call is differentiated.

    Attributes:
      call: what is static.
      leaves: hyper-parameters that are traced, x1, and x2 if there is one.
      structure: of (numbers, x1, x2).
      varied: places of the leaves that derivatives are taken by.
    """

    call: TracedCall
    leaves: list[Any]
    structure: Any
    varied: list[int]

    @classmethod
    def of(cls, call: TracedCall, primals: Any, tangents: Any) -> _Point:
        """Returns the point of a rule."""
        leaves, structure = jax.tree.flatten(primals)
        given = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
        varied = [i for i, tangent in enumerate(given) if not isinstance(tangent, SymbolicZero)]
        return cls(call, leaves, structure, varied)

    def _with(self, values: Any) -> Any:
        """Returns numbers, x1 and x2, with other values where they are varied."""
        known = dict(zip(self.varied, values, strict=True))
        leaves = [known.get(i, v) for i, v in enumerate(self.leaves)]
        return jax.tree.unflatten(self.structure, leaves)

    @property
    def _values(self) -> list[Any]:
        return [self.leaves[i] for i in self.varied]

    def _numbers_varied(self) -> list[int]:
        """Returns which of the hyper-parameters are varied."""
        count = len(self._with(self._values)[0])
        return [i for i in self.varied if i < count]

    def pulled(self) -> bool:
        """Returns whether programs know the derivatives by all that is varied."""
        return not set(self._numbers_varied()) & self.call.activation_numbers()

    def push(self, directions: list[Any]) -> Values:
        """Returns the tangents of values, by plain JAX."""

        def reference(*values: Any) -> Values:
            return _by_plain_jax(self.call, *self._with(values))

        found: Values = jax.jvp(reference, self._values, directions)[1]
        return found

    def pull(self, cotangents: Values) -> list[Any]:
        """Returns the cotangents of what is varied, by the program run backwards."""
        call, template = self.call, self.call.template()
        numbers, x1, x2 = self._with(self._values)
        of_numbers = self._numbers_varied()
        inputs = len(of_numbers) < len(self.varied)
        one, two = _flattened(call, x1, x2)
        host = PullHost(call, (1, one.ndim, one.ndim), template, inputs)
        sides = {"x1": one, "x2": two} if inputs else {}
        outline = {"numbers": template.rows_outline()} | {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype)
            for name, x in sides.items()
            if x is not None
        }
        called = buffer_callback(host, outline, vmap_method="expand_dims")
        found = called(_stacked(call, numbers), one, two, cotangents)

        def rows(*values: Any) -> jax.Array:
            known = [*values, *self._values[len(values) :]]
            return template.rows(leading_flatten(call.network(self._with(known)[0]))[0])

        by_numbers = jax.vjp(rows, *self._values[: len(of_numbers)])[1](found["numbers"])
        by_inputs = [
            jax.linear_transpose(lambda x: _flattened(call, x, None)[0], x)(found[name])[0]
            for place, name, x in ((len(numbers), "x1", x1), (len(numbers) + 1, "x2", x2))
            if place in self.varied
        ]
        return [*by_numbers, *by_inputs]


def _by_plain_jax(call: TracedCall, numbers: Any, x1: Any, x2: Any) -> Values:
    """Returns the values between samples, by the reference engine."""
    template, symmetric = call.template(), x2 is None
    names = template.names(symmetric)
    request = Request(names, axes=call.request.axes)
    net = template.head(call.network(numbers))
    engine = ReferenceEngine(net, call.shape, request, "derivatives")
    second = None if x2 is None else engine.prepare(x2)
    kernel = engine.kernels(engine.prepare(x1), second, False)
    return {name: getattr(kernel, name) for name in names}


def _flattened(call: TracedCall, x1: Any, x2: Any) -> tuple[Any, Any]:
    """Returns samples behind a Flatten that the network begins with."""
    flatten = call.flatten()
    if flatten is None:
        return x1, x2
    one, two = (None if x is None else flatten.apply((), x, Context()) for x in (x1, x2))
    return one, two


def _stacked(call: TracedCall, numbers: Any) -> Any:
    """Returns hyper-parameters in one array; None without any."""
    return jnp.stack([jnp.asarray(v, call.dtype) for v in numbers]) if numbers else None
