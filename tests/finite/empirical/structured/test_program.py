import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from widelimit.finite.empirical.structured.program import evaluate, program_of


def names(program):
    return [step.name for step in program.steps]


def test_calls_are_inlined_but_those_with_their_own_derivative():
    @jax.checkpoint
    @jax.jit
    def inner(w, x):
        return jax.nn.relu(jnp.sin(x @ w))

    program = program_of(lambda w, x: inner(w, x) + 1.0, jnp.ones((3, 3)), jnp.ones((2, 3)))
    assert names(program) == ["dot_general", "sin", "custom_jvp_call", "add"]
    args = [jnp.eye(3), jnp.arange(6.0).reshape(2, 3)]
    (found,), _ = evaluate(program, args, {}, ())
    np.testing.assert_allclose(found, inner(*args) + 1.0, rtol=1e-6)


def test_what_no_result_needs_is_left_out():
    program = program_of(lambda x: (jnp.cos(x), jnp.sin(x))[1], jnp.ones(3))
    assert names(program) == ["sin"]


def test_shifts_and_reads_inside_of_scans():
    x = jnp.arange(1.0, 4.0)

    def f(x):
        def step(h, x):
            y = 2.0 * x
            return h + y * y, h

        h, hs = lax.scan(step, 0.0, x)
        return h, hs

    program = program_of(f, x)
    (index,) = (i for i, step in enumerate(program.steps) if step.body is not None)
    doubled = next(s for s in program.steps[index].body.steps if s.name == "mul").outputs[0]
    place = ((index,), doubled)
    outputs, found = evaluate(program, [x], {}, [place])
    np.testing.assert_allclose(found[place], 2 * x)
    for a, b in zip(outputs, f(x), strict=True):
        np.testing.assert_allclose(a, b)
    slopes = jax.grad(lambda d: evaluate(program, [x], {place: d}, ())[0][0])(jnp.zeros(3))
    np.testing.assert_allclose(slopes, 4 * x)
