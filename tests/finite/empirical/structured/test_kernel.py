import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.tolerance import assert_close
from widelimit.finite.empirical.jacobian import jacobian_contraction
from widelimit.finite.empirical.kernel_axes import KernelAxes
from widelimit.finite.empirical.structured import explain, structured

TRACE = KernelAxes((1,))


def on(f, x):
    return lambda params: f(params, x)


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)
    is_shape = {"is_leaf": lambda s: isinstance(s, tuple)}
    return jax.tree.map(
        lambda s: jnp.asarray(rng.standard_normal(s), jnp.float32), shapes, **is_shape
    )


def mlp(p, x):
    return jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]


SHAPES = {"w": (5, 8), "b": (8,), "v": (8, 3)}


def explained(f, params):
    return explain(lambda way, p: way(f, None, p, TRACE), params)


def reports(f, params, x):
    return {report.name: report for report in explained(on(f, x), params)}


def test_explain_says_rule_and_reason():
    found = reports(mlp, draw(SHAPES), jnp.ones((2, 5)))
    assert list(found) == ["['b']", "['v']", "['w']"]
    assert found["['w']"].rules == ("dot_general",)
    assert not found["['w']"].reason
    assert found["['b']"].whole
    assert found["['b']"].reason == "enters add"
    assert str(found["['w']"]).startswith("['w'] [5, 8]: factors (dot_general)")
    assert str(found["['b']"]).startswith("['b'] [8]: Jacobian (no rule: enters add)")


def test_explain_computes_nothing():
    structs = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
        SHAPES,
        is_leaf=lambda s: isinstance(s, tuple),
    )
    with jax.ensure_compile_time_eval():
        assert len(reports(mlp, structs, jnp.ones((2, 5)))) == 3


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda w, x: x @ jnp.exp(w), "enters exp"),
        (lambda w, x: x[:, :2] @ w[:2] @ w[1:].T, "different parts of it overlap"),
        (
            lambda w, x: jax.lax.fori_loop(0, 2, lambda _, c: (c[0] @ c[1], c[1] / 2), (x, w))[0],
            "carried by a scan",
        ),
        (lambda w, x: w, "part of the result"),
        (lambda w, x: jnp.abs((x + 2j) @ w) ** 2, "enters dot_general"),
        (lambda w, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x), "enters cond"),
    ],
)
def test_without_a_rule_the_number_is_the_same(f, reason):
    w, x = draw((3, 3)), draw((2, 3), 1)
    (report,) = explained(on(f, x), w)
    assert report.reason == reason
    assert report.whole
    expected = jacobian_contraction(on(f, x), None, w, TRACE)
    assert_close(structured(on(f, x), None, w, TRACE), expected)


def test_disjoint_parts_keep_their_structure():
    def f(w, x):
        q, k = jnp.split(w, 2, axis=1)
        return jnp.tanh(x @ q) * (x @ k)

    w, x = draw((3, 4)), draw((2, 3), 1)
    (report,) = explained(on(f, x), w)
    assert report.rules == ("dot_general",)
    assert_close(
        structured(on(f, x), None, w, TRACE), jacobian_contraction(on(f, x), None, w, TRACE)
    )


def test_wide_layers_never_form_their_jacobian():
    params = {"w": jnp.zeros((300, 400)), "v": jnp.zeros((400, 2))}
    x = jnp.zeros((3, 300))
    f = on(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], x)
    jaxpr = jax.make_jaxpr(lambda p: structured(f, None, p, TRACE))(params)
    largest = max(v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars)
    assert largest < 300 * 400
    assert not any(report.whole for report in explained(f, params))


def test_many_positions_form_the_jacobian():
    f = on(lambda w, x: jnp.tanh(x @ w).sum(1), jnp.zeros((1, 500, 3)))
    (report,) = explained(f, jnp.zeros((3, 4)))
    assert report.rules == ("dot_general",)
    assert report.whole


def test_functions_that_use_a_parameter_in_different_ways():
    w, x = draw((3, 3)), draw((2, 3), 1)
    f1, f2 = on(lambda w, x: x @ w, x), on(lambda w, x: jnp.tanh(x @ w[::-1]), x)
    assert_close(structured(f1, f2, w, TRACE), jacobian_contraction(f1, f2, w, TRACE))


def test_custom_rules_of_derivatives_hold():
    @jax.custom_vjp
    def doubled(w, x):
        return x @ w

    doubled.defvjp(lambda w, x: (x @ w, (w, x)), lambda s, t: (2 * s[1].T @ t, t @ s[0].T))
    w, x = draw((3, 2)), draw((2, 3), 1)
    found = structured(on(doubled, x), None, w, TRACE)
    assert_close(found, 4 * structured(on(lambda w, x: x @ w, x), None, w, TRACE))


def test_low_precision_adds_up_in_float32():
    w, x = draw((256, 4)).astype(jnp.bfloat16), draw((2, 256), 1).astype(jnp.bfloat16)
    f = on(lambda w, x: x @ w, x)
    found = structured(f, None, w, TRACE)
    assert found.dtype == jnp.float32
    rows = x.astype(jnp.float32)
    assert_close(found, 4 * rows @ rows.T, rtol=1e-5)


def test_derivatives_and_maps_of_the_kernel():
    params, x = draw(SHAPES), draw((2, 5), 1)

    def total(compute, params, x):
        return (compute(on(mlp, x), None, params, TRACE) ** 2).sum()

    by_structure = jax.jit(jax.grad(lambda p: total(structured, p, x)))(params)
    by_jacobians = jax.jit(jax.grad(lambda p: total(jacobian_contraction, p, x)))(params)
    for a, b in zip(jax.tree.leaves(by_structure), jax.tree.leaves(by_jacobians), strict=True):
        assert_close(a, b, rtol=1e-4)
    batch = draw((3, 2, 5), 2)
    mapped = jax.vmap(lambda x: structured(on(mlp, x), None, params, TRACE))(batch)
    assert_close(mapped[1], structured(on(mlp, batch[1]), None, params, TRACE))


def test_the_public_function_explains():
    params, x = draw({"layer": SHAPES}), draw((4, 5), 1)

    def f(p, x):
        return {"out": mlp(p["layer"], x), "norms": (x @ p["layer"]["w"]) ** 2}

    explanation = wl.empirical_ntk_fn(f, vmap_axes=0, explain=True)(x, None, params)
    assert [report.name for report in explanation["out"]] == ["layer/b", "layer/v", "layer/w"]
    assert str(explanation["out"]).splitlines()[0].startswith("layer/b [8]: Jacobian (no rule")
    assert explanation["norms"][1].rules == ()
    assert "unused" in str(explanation["norms"][1])
    only = wl.empirical_ntk_fn(f, vmap_axes=0, subset="*/w").explain(x, x[:2], params)
    assert [report.name for report in only["out"]] == ["layer/w"]
