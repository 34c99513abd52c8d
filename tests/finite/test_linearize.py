import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as nt
from tests.tolerance import assert_close
from widelimit.finite.linearize import linearize, taylor_expand

X = np.random.default_rng(1).standard_normal((5, 3))


def network(params, x, scale=1.0):
    """Trees of parameters, a tuple of outputs, a keyword."""
    hidden = jnp.tanh(x @ params["layers"][0] + params["b"])
    return {"out": scale * hidden @ params["layers"][1], "norm": (hidden**2).sum()}


def parameters(seed):
    rng = np.random.default_rng(seed)
    layers = [jnp.asarray(rng.standard_normal(shape)) for shape in ((3, 4), (4, 2))]
    return {"layers": layers, "b": jnp.asarray(rng.standard_normal((1, 4)))}


@pytest.mark.usefixtures("x64")
def test_it_is_the_polynomial_along_the_line_between_both():
    params0, params = parameters(0), parameters(2)

    def on_line(s):
        moved = jax.tree.map(lambda p0, p: p0 + s * (p - p0), params0, params)
        return network(moved, X, scale=2.0)

    on_line = jax.jit(on_line)
    total, derivative, factorial = None, on_line, 1.0
    for degree in range(4):
        term = jax.tree.map(lambda d, k=factorial: d / k, derivative(0.0))
        total = term if total is None else jax.tree.map(jnp.add, total, term)
        got = taylor_expand(network, params0, degree)(params, X, scale=2.0)
        assert jax.tree.structure(got) == jax.tree.structure(total)
        jax.tree.map(lambda g, t: assert_close(g, t, rtol=1e-12), got, total)
        if degree == 1:
            linear = linearize(network, params0)(params, X, scale=2.0)
            jax.tree.map(np.testing.assert_array_equal, linear, got)
        derivative, factorial = jax.jacfwd(derivative), factorial * (degree + 1)


@pytest.mark.usefixtures("x64")
def test_error_falls_with_the_power_of_the_distance():
    params0, params = parameters(0), parameters(2)
    for degree in range(4):
        errors = []
        for s in (0.02, 0.01):
            near = jax.tree.map(lambda p0, p, s=s: p0 + s * (p - p0), params0, params)
            gap = taylor_expand(network, params0, degree)(near, X)["out"] - network(near, X)["out"]
            errors.append(float(jnp.abs(gap).max()))
        order = np.log2(errors[0] / errors[1])
        assert abs(order - (degree + 1)) < 0.2, (degree, order)


@pytest.mark.usefixtures("x64")
def test_a_polynomial_is_its_own_expansion():
    def f(params, x):
        return (params["a"] * x + params["b"]) ** 3

    rng = np.random.default_rng(0)
    params0, params = ({k: rng.standard_normal(4) for k in "ab"} for _ in range(2))
    x = rng.standard_normal(4)
    for degree in (3, np.int64(5)):
        assert_close(taylor_expand(f, params0, degree)(params, x), f(params, x), rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_linear_functions_and_jacobians():
    params0, params = parameters(0), parameters(2)
    jacobian = jax.jacobian(network)(params0, X)["out"]
    parts = jax.tree.map(
        lambda j, p, p0: jnp.tensordot(j, p - p0, p.ndim), jacobian, params, params0
    )
    expected = network(params0, X)["out"] + sum(jax.tree.leaves(parts))
    f_lin = linearize(network, params0)
    assert_close(f_lin(params, X)["out"], expected, rtol=1e-12)
    # Linear in its parameters: its own linearisation anywhere else, with that Jacobian everywhere.
    assert_close(linearize(f_lin, params)(params0, X)["out"], f_lin(params0, X)["out"])
    moved = jax.jit(jax.jacobian(f_lin))(params, X)["out"]
    jax.tree.map(assert_close, moved, jacobian)


@pytest.mark.usefixtures("x64")
def test_complex_parameters():
    rng = np.random.default_rng(0)
    p0, p = (rng.standard_normal(3) + 1j * rng.standard_normal(3) for _ in range(2))

    def f(p):  # not holomorphic: the real polynomial along p - p0
        return jnp.abs(p) ** 2 + p**2

    d = p - p0
    first = f(p0) + 2 * np.real(np.conj(p0) * d) + 2 * p0 * d
    assert_close(linearize(f, p0)(p), first, rtol=1e-13)
    assert_close(taylor_expand(f, p0, 2)(p), f(p), rtol=1e-13)


def test_custom_derivatives_are_kept():
    @jax.custom_jvp
    def f(p):
        return p

    f.defjvp(lambda primals, tangents: (f(*primals), 5 * tangents[0]))
    assert float(linearize(f, 1.0)(2.0)) == 6.0
    assert float(taylor_expand(f, 1.0, 3)(2.0)) == 6.0


def test_dtypes_and_transformations():
    params0 = {"w": np.ones(3, np.float32), "h": jnp.ones(3, jnp.bfloat16)}
    params = {"w": np.full(3, 2.0), "h": np.full(3, 2.0, np.float32)}

    def f(params, x):
        return params["w"] * x + (params["h"] ** 2).sum()

    f_lin = linearize(f, params0)
    out = f_lin(params, jnp.ones(3))
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.full(3, 2.0 + 3 + 6))
    np.testing.assert_array_equal(jax.jit(f_lin)(params, jnp.ones(3)), out)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    np.testing.assert_array_equal(jax.vmap(f_lin, (0, None))(many, jnp.ones(3))[1], out)
    # A network without parameters is constant in them.
    assert float(linearize(lambda p, x: 2 * x, ())((), 3.0)) == 6.0


def test_names_of_the_package():
    assert nt.linearize is linearize
    assert nt.taylor_expand is taylor_expand


def test_errors():
    params = {"w": jnp.ones(3), "b": [jnp.ones(2)]}

    def f(p):
        return p["w"].sum() + p["b"][0].sum()

    with pytest.raises(TypeError, match="expected a function f"):
        linearize(3, params)
    with pytest.raises(TypeError, match=r"floating-point numbers at params0\['n'\], got int32"):
        linearize(f, {"n": jnp.arange(3)})
    with pytest.raises(TypeError, match=r"expected params0\['n'\] to be an array, got str"):
        linearize(f, {"n": "relu"})
    with pytest.raises(ValueError, match="expected degree of at least 0, got -1"):
        taylor_expand(f, params, -1)
    for degree in (1.5, True):
        with pytest.raises(TypeError, match="expected degree to be an int"):
            taylor_expand(f, params, degree)
    f_lin = linearize(f, params)
    with pytest.raises(ValueError, match="expected params of the structure of params0"):
        f_lin({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"expected params\['b'\]\[0\] of shape \(2,\), .*\(1,\)"):
        f_lin({"w": jnp.ones(3), "b": [jnp.ones(1)]})
    with pytest.raises(TypeError, match=r"expected real params\['w'\], .* got complex64"):
        f_lin({"w": 1j * jnp.ones(3), "b": [jnp.ones(2)]})
    with pytest.raises(TypeError, match="floating-point numbers at outputs of f, got int32"):
        linearize(lambda p: jnp.argmax(p["w"]), params)(params)


def test_parameters_of_numpy_are_copied():
    params0 = np.array([1.0, 2.0], np.float32)
    f_lin = linearize(lambda p, x: (p * x) ** 2, params0)
    params0[:] = 7
    assert_close(f_lin(jnp.array([1.0, 2.0]), 1.0), jnp.array([1.0, 4.0]))
