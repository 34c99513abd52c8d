import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.finite.empirical.small import (
    flat_jacobian,
    full_kernel,
    inputs,
    mlp,
    mlp_params,
    reduced,
)
from tests.tolerance import assert_close

x64 = pytest.mark.usefixtures("x64")
IMPLEMENTATIONS = ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS")


@x64
@pytest.mark.parametrize("vmap_axes", [None, 0])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("same", [False, True])
def test_ntk_is_the_product_of_jacobians(implementation, vmap_axes, same):
    params, x1, x2 = mlp_params(), inputs(5), None if same else inputs(3, 2)
    full = full_kernel(mlp, params, x1, x2)
    cases = [((0, -1), (1,)), ((2,), (0,)), ((), (2,))] if same else [((), (1,)), ((2, 1), ())]
    for trace, diagonal in cases:
        ntk_fn = wl.empirical_ntk_fn(mlp, trace, diagonal, vmap_axes, implementation)
        expected = reduced(full, {a % 3 for a in trace}, {a % 3 for a in diagonal})
        assert_close(ntk_fn(x1, x2, params), expected)
    assert_close(jax.jit(ntk_fn)(x1, x2, params), expected)


@x64
def test_nngp_and_get():
    params, x1, x2 = mlp_params(), inputs(4), inputs(3, 2)
    kernel_fn = wl.empirical_kernel_fn(mlp, vmap_axes=0)
    both = kernel_fn(x1, x2, None, params)
    assert type(both).__name__ == "EmpiricalKernel"
    assert both._fields == ("nngp", "ntk")
    full = np.tensordot(mlp(params, x1)[..., None], mlp(params, x2)[..., None], (-1, -1))
    assert_close(both.nngp, reduced(full, (2,)))
    assert_close(wl.empirical_nngp_fn(mlp)(x1, x2, params), both.nngp)
    assert_close(wl.empirical_ntk_fn(mlp)(x1, x2, params), both.ntk)
    assert_close(kernel_fn(x1, x2, "NTK", params), both.ntk)
    assert kernel_fn(x1, x2, ("ntk", "nngp"), params)._fields == ("ntk", "nngp")
    jitted = jax.jit(kernel_fn, static_argnames="get")
    assert_close(jitted(x1, x2, "ntk", params), both.ntk)
    for get in ("cov1", (), ("ntk", "ntk")):
        with pytest.raises(ValueError, match="expected get to be"):
            kernel_fn(x1, x2, get, params)


def trees(params, x, scale=1.0):
    """Two outputs of two inputs: {"sum": [n, 3], "rest": ([n, 4, 2],)}."""
    h = jnp.tanh(x["a"] @ params[0][0]) * scale
    images = jnp.tensordot(x["b"][0], params[1], 1).transpose(1, 0, 2)
    return {"sum": h * h + 1, "rest": (jnp.sin(images),)}


@x64
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_trees_of_everything_and_mapped_axes(implementation):
    key = jax.random.split(jax.random.key(0), 2)
    params = [(jax.random.normal(key[0], (4, 3)),), jax.random.normal(key[1], (5, 2))]

    def batch(n):
        return {"a": inputs(n), "b": [jnp.stack([inputs(n, s, 5) for s in range(4)])]}

    x1, x2 = batch(3), batch(2)
    axes = ({"a": 0, "b": [1]}, {"sum": 0, "rest": (0,)}, {"scale": None})
    for vmap_axes in (None, axes):
        ntk_fn = wl.empirical_ntk_fn(trees, (-1,), (), vmap_axes, implementation)
        ntk = ntk_fn(x1, x2, params, scale=(2.0, 3.0))
        for index, leaf in enumerate(jax.tree.leaves(ntk)):
            j1, j2 = (
                flat_jacobian(
                    lambda p, x, i=index, s=s: jax.tree.leaves(trees(p, x, s))[i], params, x
                )
                for x, s in ((x1, 2.0), (x2, 3.0))
            )
            full = np.tensordot(j1, j2, (-1, -1))
            assert_close(leaf, reduced(full, (full.ndim // 2 - 1,)))
    kernel_fn = wl.empirical_kernel_fn(trees, vmap_axes=axes)
    found = kernel_fn(x1, {"a": None, "b": [None]}, ("ntk", "nngp"), params, scale=2.0)
    assert found["rest"][0]._fields == ("ntk", "nngp")
    assert found["rest"][0].ntk.shape == (3, 3, 4, 4)


@x64
@pytest.mark.parametrize("vmap_axes", [None, 0])
def test_complex_numbers(vmap_axes):
    key = jax.random.split(jax.random.key(0), 4)
    real = {n: jax.random.normal(k, (4, 2)) for n, k in zip("ab", key, strict=False)}
    x1, x2 = inputs(3), inputs(2, 2)

    def f(params, x):
        z = x @ params["w"]
        return jnp.abs(z) ** 2 * (1 + 0.5j) + z**2

    def parts(part):
        return lambda r, x: part(f({"w": r["a"] + 1j * r["b"]}, x))

    def jacobian(x):
        return sum(c * flat_jacobian(parts(p), real, x) for c, p in ((1, jnp.real), (1j, jnp.imag)))

    params = {"w": real["a"] + 1j * real["b"]}
    expected = reduced(np.tensordot(jacobian(x1), jacobian(x2).conj(), (-1, -1)), (1,))
    for implementation in IMPLEMENTATIONS:
        ntk_fn = wl.empirical_ntk_fn(f, (-1,), (), vmap_axes, implementation)
        assert_close(ntk_fn(x1, x2, params), expected)
    within = wl.empirical_ntk_fn(f, vmap_axes=vmap_axes, memory="10KB")
    assert_close(within(x1, x2, params), expected)
    y1, y2 = np.asarray(f(params, x1)), np.asarray(f(params, x2))
    assert_close(wl.empirical_nngp_fn(f)(x1, x2, params), y1 @ y2.conj().T / 2)
    # Of a holomorphic function: twice the product of complex derivatives.
    ntk = wl.empirical_ntk_fn(lambda p, x: x @ p, ())(x1, x2, params["w"][:, :1])
    assert_close(ntk[..., 0, 0], 2 * (x1 @ x2.T).astype(complex))


def noisy(params, x, rng=None, flag=True, factor=None):
    assert flag is True
    y = x @ params
    if rng is not None:
        y = y * jax.random.bernoulli(rng, 0.5, y.shape)
    return y if factor is None else y * factor


def test_keys_are_shared_by_equal_inputs():
    params, x, other, key = jnp.ones((4, 8)), inputs(3), inputs(3, 5), jax.random.key(3)
    ntk_fn = wl.empirical_ntk_fn(noisy, ())

    def jacobian(x, key):
        return flat_jacobian(lambda p, x: noisy(p, x, key), params, x)

    own = reduced(np.tensordot(jacobian(x, key), jacobian(x, key), (-1, -1)))
    for second in (None, x, x + 0):
        assert_close(ntk_fn(x, second, params, rng=key, flag=True), own)
    assert_close(jax.jit(ntk_fn)(x, x + 0, params, rng=key), own)
    j2 = jacobian(other, jax.random.fold_in(key, 1))
    cross = reduced(np.tensordot(jacobian(x, key), j2, (-1, -1)))
    assert_close(ntk_fn(x, other, params, rng=key), cross)
    assert_close(jax.jit(ntk_fn)(x, other, params, rng=key), cross)
    pair = (key, jax.random.fold_in(key, 1))
    assert_close(ntk_fn(x, other, params, rng=pair), cross)
    with pytest.warns(UserWarning, match="one random key"):
        assert_close(ntk_fn(x, None, params, rng=pair), own)


def test_pairs_of_keywords_belong_to_x1_and_x2():
    params, x = jnp.ones((4, 2)), inputs(3)
    ntk_fn = wl.empirical_ntk_fn(noisy)
    assert_close(ntk_fn(x, None, params, factor=(2.0, 5.0)), 10 * (x @ x.T))
    assert_close(ntk_fn(x, None, params, factor=(2.0, 2.0)), 4 * (x @ x.T))
    factors = jnp.arange(3.0)[:, None], jnp.ones((3, 1))
    assert_close(ntk_fn(x, x, params, factor=factors), jnp.diag(jnp.arange(3.0)) @ x @ x.T)


@x64
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scalars_empty_batches_and_zero_leaves(implementation):
    params = {"a": jnp.array(2.0), "none": jnp.zeros((0, 3)), "b": 3.0}

    def scalar(params, x):
        return params["a"] ** 2 * x + params["b"] + params["none"].sum()

    ntk_fn = wl.empirical_ntk_fn(scalar, (), implementation=implementation)
    assert_close(ntk_fn(2.0, 3.0, params), 4 * 2 * 4 * 3 + 1.0)
    empty = wl.empirical_ntk_fn(mlp, (-1,), (), None, implementation)
    assert empty(inputs(0), inputs(2), mlp_params()).shape == (0, 2, 2, 2)
    mapped = wl.empirical_ntk_fn(mlp, (-1,), (), 0, implementation)
    assert mapped(inputs(0), None, mlp_params()).shape == (0, 0, 2, 2)
    assert wl.empirical_ntk_fn(mlp, memory=1e5)(inputs(0), None, mlp_params()).shape == (0, 0, 2, 2)


def test_low_precision_adds_up_in_float32():
    params = jnp.full((300, 1), 1, jnp.bfloat16)
    x = jnp.ones((1, 300), jnp.bfloat16)
    ntk = wl.empirical_ntk_fn(lambda p, x: x @ p)(x, None, params)
    assert ntk.dtype == jnp.float32
    assert ntk[0, 0] == 300.0


@x64
@pytest.mark.parametrize("vmap_axes", [None, 0])
@pytest.mark.parametrize("narrow", ["params", "inputs"])
def test_all_ways_have_the_digits_of_outputs_and_parameters(narrow, vmap_axes):
    params, x = mlp_params(), inputs(3)
    if narrow == "params":
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    else:
        x = x.astype(jnp.float32)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, x))
    expected = reduced(full_kernel(mlp, *wide))
    ways = [{"implementation": way} for way in wl.NtkImplementation]
    for options in [*ways, {"memory": 1e5}]:
        found = wl.empirical_ntk_fn(mlp, (), vmap_axes=vmap_axes, **options)(x, None, params)
        assert found.dtype == jnp.float64, options
        # Gradients by float32 parameters have no more digits than these.
        assert_close(found, expected, rtol=1e-6 if narrow == "params" else 1e-12)


@x64
def test_subsets_add_up():
    params, x = mlp_params(), inputs(3)
    first = wl.empirical_ntk_fn(mlp, subset="*w1")(x, None, params)
    rest = wl.empirical_ntk_fn(mlp, subset={"w1": False, "w2": True, "b": True})(x, None, params)
    assert_close(first + rest, wl.empirical_ntk_fn(mlp)(x, None, params))
    counted = {**params, "step": jnp.array(3)}
    ntk_fn = wl.empirical_ntk_fn(mlp, subset=lambda path, _: path != "step")
    assert_close(ntk_fn(x, None, counted), first + rest)


def test_compiled_once_per_shape():
    def f(params, x, flag=True):
        return x @ params if flag else 2 * x @ params

    ntk_fn = wl.empirical_ntk_fn(f)
    first = ntk_fn(inputs(3), None, jnp.ones((4, 2)))
    compiled = ntk_fn._kernels._compiled._cache_size()
    ntk_fn(inputs(3, 7), None, 2 * jnp.ones((4, 2)))
    assert ntk_fn._kernels._compiled._cache_size() == compiled
    assert_close(ntk_fn(inputs(3), None, jnp.ones((4, 2)), flag=False), 4 * first)


MISTAKES = {
    "unused": (lambda p, x: x, {}, ValueError, "depends on the chosen parameters"),
    "stopped": (lambda p, x: x @ jax.lax.stop_gradient(p), {}, ValueError, "depends on the chosen"),
    "text": (lambda p, x: "no", {}, TypeError, "arrays as outputs of f, got str"),
    "nothing": (lambda p, x: None, {}, TypeError, "arrays as outputs of f, got None"),
    "number": (lambda p, x: {"a": 1.0}, {}, TypeError, r"got float at \['a'\]"),
    "integers": (lambda p, x: (x @ p).astype(int), {}, TypeError, "got int32 numbers"),
    "trace": (lambda p, x: x @ p, {"trace_axes": 2}, ValueError, "trace_axes of an output"),
    "both": (lambda p, x: x @ p, {"diagonal_axes": 1}, ValueError, "share axis 1"),
    "sizes": (lambda p, x: x @ p, {"trace_axes": 0}, ValueError, "same size along trace axis 0"),
    "mapped": (lambda p, x: x @ p, {"vmap_axes": 2}, ValueError, "as vmap_axes say"),
    "mapped tree": (lambda p, x: x @ p, {"vmap_axes": (0, 0)}, ValueError, "vmap_axes for x like"),
    "mixed": (lambda p, x: x @ p, {"vmap_axes": (0, 1, {})}, ValueError, "one sample with size 1"),
    "not mapped": (lambda p, x: x @ p, {"vmap_axes": (None, 0, {})}, ValueError, "no mapped input"),
    "keywords": (lambda p, x: x @ p, {"vmap_axes": (0, 0, {"m": 0})}, ValueError, "for keywords"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    f, options, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        wl.empirical_ntk_fn(f, **options)(inputs(3), inputs(2), jnp.ones((4, 2)))


def test_wrong_parameters_and_options():
    ntk_fn = wl.empirical_ntk_fn(lambda p, x: x @ p["w"])
    with pytest.raises(TypeError, match="int32 numbers at 'n/0'"):
        ntk_fn(inputs(2), None, {"w": jnp.ones((4, 1)), "n": [jnp.array([1])]})
    with pytest.raises(ValueError, match="without leaves"):
        ntk_fn(inputs(2), None, ())
    with pytest.raises(ValueError, match="same tree of arrays"):
        ntk_fn(inputs(2), [inputs(2)], {"w": jnp.ones((4, 1))})
    with pytest.raises(TypeError, match="expected a function"):
        wl.empirical_ntk_fn("f")
    for wrong in (4, "jacobian", True, 1.5):
        with pytest.raises(KeyError, match="expected implementation"):
            wl.empirical_ntk_fn(mlp, implementation=wrong)
    with pytest.raises(ValueError, match="with a budget of memory"):
        wl.empirical_ntk_fn(mlp, implementation=2, memory="1GB")
    # The NNGP asks for no derivatives.
    y = wl.empirical_nngp_fn(lambda p, x: x * p)(inputs(2), None, jnp.array(2))
    assert_close(y, (inputs(2) @ inputs(2).T))


def test_axes_that_change():
    axes = [-1]
    ntk_fn = wl.empirical_ntk_fn(lambda p, x: x @ p, trace_axes=axes)
    axes.clear()
    assert ntk_fn(inputs(3), None, jnp.ones((4, 2))).shape == (3, 3)
