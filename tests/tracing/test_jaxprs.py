"""Equations of traced functions: what they are made of, and one of them run."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from widelimit.tracing.jaxprs import Equations, bytes_of, shape_of, variables_of

X = jnp.arange(6.0).reshape(2, 3)


def names(equations: Equations) -> list[str]:
    return [equation.name for equation in equations]


def test_equations_of_a_function() -> None:
    offset = jnp.ones((2, 3))
    found = Equations.of(lambda x: (jnp.sin(x) * 2.0 + offset).sum(), X)
    assert names(found) == ["sin", "mul", "add", "reduce_sum"]
    assert [shape_of(v) for v in found.inputs] == [(2, 3)]
    assert [shape_of(v) for v in found.constants] == [(2, 3)]
    np.testing.assert_array_equal(found.values[0], offset)
    assert bytes_of([*found.inputs, *found.outputs]) == 4 * 7
    product = list(found)[1]
    assert len(product.inputs) == 2
    assert len(variables_of(product.inputs)) == 1


def test_functions_inside() -> None:
    def f(x: jax.Array) -> jax.Array:
        x = jax.jit(jnp.sin)(x)
        x = lax.scan(lambda c, _: (jnp.cos(c), None), x, length=2)[0]
        return lax.cond(x.sum() > 0, jnp.tan, jnp.tanh, x)

    found = Equations.of(f, X)
    assert {"sin", "cos", "tan", "tanh"} <= {equation.name for equation in found.walk()}
    assert not {"sin", "cos", "tan", "tanh"} & {*names(found)}
    scan = next(equation for equation in found if equation.name == "scan")
    body = scan.body("jaxpr")
    assert body is not None
    assert names(body) == ["cos"]
    assert scan.body("call_jaxpr") is None
    assert scan.body(None) is None


def test_one_equation_is_run() -> None:
    found = Equations.of(lambda x: (x * x, x - 1.0, jnp.sort(x)), X)
    for equation, expected in zip(found, [X * X, X - 1.0, jnp.sort(X)], strict=True):
        values = [X] * len(equation.inputs)  # those of numbers are not read
        (out,) = equation.runner()(*values)
        np.testing.assert_array_equal(out, expected)
    power = next(iter(Equations.of(lambda x: x**3, X)))
    slope = jax.grad(lambda x: power.runner()(x)[0].sum())(X)
    np.testing.assert_allclose(slope, 3 * X**2)


def test_equations_are_run_where_jax_checks_all_it_does() -> None:
    with jax.enable_checks(True):
        (out,) = next(iter(Equations.of(jnp.sin, X))).runner()(X)
    np.testing.assert_array_equal(out, jnp.sin(X))
