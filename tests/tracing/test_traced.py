"""What functions read besides their arguments may change between two calls."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.tolerance import assert_close
from widelimit import stax
from widelimit.tracing.traced import Snapshot, TracedFunction, trace

X = jnp.arange(6.0).reshape(3, 2) / 5 + 0.1
PARAMS = jnp.array([[0.5], [-0.25]])


def from_closure():
    scale = 1.0

    def change(value):
        nonlocal scale
        scale = value

    return lambda z: scale * z, change


SCALE = 1.0


def from_global():
    def change(value):
        globals()["SCALE"] = value

    change(1.0)
    return lambda z: SCALE * z, change


def from_attribute():
    state = types.SimpleNamespace(scale=1.0)
    return lambda z: state.scale * z, functools.partial(setattr, state, "scale")


def from_default():
    def f(z, scale=[1.0]):  # noqa: B006
        return scale[0] * z

    return f, functools.partial(f.__defaults__[0].__setitem__, 0)


def from_nested_function():
    inner, change = from_closure()

    def f(z):
        def g(u):
            return inner(u)

        return g(z)

    return f, change


def from_partial():
    state = {"scale": 1.0}
    return (
        functools.partial(lambda state, z: state["scale"] * z, state),
        functools.partial(state.__setitem__, "scale"),
    )


class Scaled:
    def __init__(self):
        self.scale = 1.0

    def __call__(self, z):
        return self.scale * z

    def method(self, z):
        return self.scale * z

    def change(self, value):
        self.scale = value


def from_method():
    model = Scaled()
    return model.method, model.change


def from_callable_object():
    model = Scaled()
    return model, model.change


def from_numpy_array():
    scale = np.ones((), np.float32)
    return lambda z: scale * z, functools.partial(scale.__setitem__, ())


def from_jax_array():
    state = {"scale": jnp.ones(())}
    change = functools.partial(state.__setitem__, "scale")
    return lambda z: state["scale"] * z, lambda value: change(jnp.asarray(value))


def from_derivative_rule():
    inner, change = from_closure()

    @jax.custom_jvp
    def f(z):
        return jnp.asarray(z)

    f.defjvp(lambda p, t: (f(*p), inner(t[0])))
    return f, change


def from_reverse_rule():
    inner, change = from_closure()

    @jax.custom_vjp
    def f(z):
        return jnp.asarray(z)

    f.defvjp(lambda z: (z, None), lambda _, g: (inner(g),))
    return f, change


def from_function_attribute():
    def f(z):
        return f.scale * z

    f.scale = 1.0
    return f, functools.partial(setattr, f, "scale")


def from_control_flow():
    state = {"deep": False}

    def f(z):
        return 3.0 * z if state["deep"] else z

    return f, lambda value: state.update(deep=value == 3.0)


def from_rule_of_a_function_of_jax():
    inner, change = from_closure()
    f = jax.custom_jvp(jnp.tanh)
    f.defjvp(lambda p, t: (p[0], inner(t[0])))
    return f, change


def from_rules_of_a_function_of_jax():
    inner, change = from_closure()
    f = jax.custom_jvp(jax.nn.relu)
    f.defjvps(lambda t, _, z: inner(t))
    return f, change


def from_reverse_rule_of_a_function_of_jax():
    inner, change = from_closure()
    f = jax.custom_vjp(jax.nn.silu)
    f.defvjp(lambda z: (z, None), lambda _, g: (inner(g),))
    return f, change


def from_custom_gradient():
    inner, change = from_closure()
    return jax.custom_gradient(lambda z: (z, lambda g: (inner(g),))), change


def from_rule_that_calls_its_function():
    inner, change = from_closure()

    @jax.custom_jvp
    def f(z):
        return jnp.sin(z)

    f.defjvp(lambda p, t: (f(*p), inner(t[0])))
    return f, change


WAYS = [value for name, value in list(globals().items()) if name.startswith("from_")]
RULES = (
    from_derivative_rule,
    from_reverse_rule,
    from_rule_of_a_function_of_jax,
    from_rules_of_a_function_of_jax,
    from_reverse_rule_of_a_function_of_jax,
    from_custom_gradient,
    from_rule_that_calls_its_function,
)
KERNELS = {
    "ntk": lambda f: (lambda: wl.empirical_ntk_fn(f), lambda k: k(X, None, PARAMS)),
    "mapped": lambda f: (lambda: wl.empirical_ntk_fn(f, vmap_axes=0), lambda k: k(X, None, PARAMS)),
    "x2": lambda f: (lambda: wl.empirical_ntk_fn(f), lambda k: k(X, X[:2], PARAMS)),
    "structured": lambda f: (
        lambda: wl.empirical_ntk_fn(f, implementation=3),
        lambda k: k(X, None, PARAMS),
    ),
    "memory": lambda f: (
        lambda: wl.empirical_ntk_fn(f, memory=10**6),
        lambda k: k(X, None, PARAMS),
    ),
    "both": lambda f: (lambda: wl.empirical_kernel_fn(f), lambda k: k(X, None, "ntk", PARAMS)),
    "product": lambda f: (
        lambda: f,
        lambda f: wl.empirical_ntk_vp_fn(f, X, None, PARAMS)(jnp.ones((3, 1))),
    ),
    "operator": lambda f: (lambda: f, lambda f: wl.NTKOperator(f, PARAMS, X) @ jnp.ones(3)),
    "operator in batches": lambda f: (
        lambda: f,
        lambda f: wl.NTKOperator(f, PARAMS, X, batch_size=2) @ jnp.ones(3),
    ),
    "projection": lambda f: (
        lambda: f,
        lambda f: wl.projected_gradients(f, PARAMS, X, jax.random.key(0), 4).features ** 2,
    ),
}


PAIRS = [
    (way, kernel)
    for way in WAYS
    for kernel in KERNELS
    if kernel in ("ntk", "operator") or way in (from_closure, from_jax_array, *RULES[:2])
]


@pytest.mark.parametrize(("way", "kernel"), PAIRS, ids=lambda v: getattr(v, "__name__", v))
def test_kernels_of_networks_that_read_what_changes(way, kernel):
    inner, change = way()
    make, call = KERNELS[kernel](lambda p, x: inner(x @ p))
    kept = make()
    before = call(kept)
    assert np.abs(before).max() > 0
    change(3.0)
    assert_close(call(kept), 9 * before)
    assert_close(call(make()), 9 * before)
    change(1.0)
    assert_close(call(kept), before)


@pytest.mark.parametrize("way", [w for w in WAYS if w not in RULES], ids=lambda w: w.__name__)
def test_products_of_outputs_that_read_what_changes(way):
    inner, change = way()
    nngp_fn = wl.empirical_nngp_fn(lambda p, x: inner(x @ p))
    before = nngp_fn(X, None, PARAMS)
    change(3.0)
    assert_close(nngp_fn(X, None, PARAMS), 9 * before)


@pytest.mark.parametrize("engine", ["reference", "auto"])
@pytest.mark.parametrize("way", [w for w in WAYS if w not in RULES], ids=lambda w: w.__name__)
def test_nonlinearities_that_read_what_changes(way, engine):
    inner, change = way()
    nets = [
        stax.serial(stax.Dense(1), layer, stax.Dense(1))
        for layer in (
            stax.Elementwise(lambda z: jnp.tanh(inner(z))),
            stax.Elementwise(nngp_fn=lambda c, q1, q2: inner(inner(c))),
            stax.ElementwiseNumerical(lambda z: jnp.tanh(inner(z)), deg=5),
        )
    ]
    tanh = stax.serial(stax.Dense(1), stax.Elementwise(lambda z: jnp.tanh(3 * z)), stax.Dense(1))
    linear = stax.serial(stax.Dense(1), stax.Dense(1)).kernel_fn(X, None, "nngp")
    expected = [tanh.kernel_fn(X, None, "nngp"), 9 * linear, tanh.kernel_fn(X, None, "nngp")]
    before = [net.kernel_fn(X, None, "nngp", engine=engine) for net in nets]
    change(3.0)
    for net, old, right in zip(nets, before, expected, strict=True):
        assert np.abs(net.kernel_fn(X, None, "nngp", engine=engine) / old - 1).max() > 0.1
        assert_close(net.kernel_fn(X, None, "nngp", engine=engine), right)
        assert_close(wl.gram(net, X, get="nngp", memory="8MiB"), right)


@pytest.mark.parametrize("shape", [(3, 2), (3, 4, 2)])
def test_layers_of_functions_that_read_what_changes(shape):
    state = {"scale": 1.0}

    def kernel_fn(k, **_):
        return k * state["scale"]

    layer = (lambda _, shape: (shape, ()), lambda _, x, **__: state["scale"] * x, kernel_fn)
    x = jnp.linspace(-1, 1, np.prod(shape)).reshape(shape)
    more = () if len(shape) == 2 else (stax.GlobalAvgPool(), stax.Dense(1), layer)
    net = stax.serial(stax.Dense(1), stax.Relu(), stax.Dense(1), layer, *more)
    before = net.kernel_fn(x, None, ("nngp", "ntk"))
    state["scale"] = 3.0
    factor = 9.0 ** (1 + bool(more))
    for old, new in zip(before, net.kernel_fn(x, None, ("nngp", "ntk")), strict=True):
        assert_close(new, factor * old)


def test_losses_that_read_what_changes():
    pytest.importorskip("diffrax")
    state = {"scale": 1.0}
    kernel, y = jnp.eye(3) + 0.1, jnp.ones((3, 1))

    def loss(fx, y):
        return state["scale"] * jnp.mean((fx - y) ** 2) / 2

    predict_fn = wl.predict.gradient_descent(loss, kernel, y)
    late = predict_fn(t=4.0)
    predict_fn(t=2.0)
    state["scale"] = 2.0
    assert_close(predict_fn(t=2.0), late)
    assert_close(wl.predict.gradient_descent(loss, kernel, y)(t=2.0), late)


def test_initialisers_that_read_what_changes():
    state = {"scale": 1.0}

    def init_fn(key, shape):
        return (shape[0], 1), state["scale"] * jax.random.normal(key, (shape[1], 1))

    kernel_fn = wl.monte_carlo_kernel_fn(init_fn, lambda p, x: x @ p, jax.random.key(0), 3)
    before = kernel_fn(X, None, "nngp")
    state["scale"] = 2.0
    assert_close(kernel_fn(X, None, "nngp"), 4 * before)


def test_diagnostics_of_networks_that_read_what_changes():
    state = {"scale": 1.0}

    def f(p, x):
        return jnp.tanh(state["scale"] * (x @ p))

    def path():
        yield PARAMS
        state["scale"] = 2.0
        yield PARAMS + 0.5

    found = wl.diagnostics.report(f, path(), X)
    state["scale"] = 2.0
    late = wl.diagnostics.report(f, [PARAMS, PARAMS + 0.5], X)
    assert_close(found.output_movement[1], late.output_movement[1])
    assert_close(found.linearization_gap[1], late.linearization_gap[1])


def test_batch_statistics_of_a_training_loop():
    stats = {"mean": jnp.zeros(2)}

    def f(p, x):
        return jnp.tanh((x - stats["mean"][None]) @ p)

    ntk_fn = wl.empirical_ntk_fn(f)
    for step in range(3):
        stats["mean"] = jnp.full(2, 0.3 * step)
        jacobian = jax.jacrev(lambda p: f(p, X))(PARAMS).reshape(3, -1)
        assert_close(ntk_fn(X, None, PARAMS), jacobian @ jacobian.T)


@pytest.mark.usefixtures("reference_engine")
@pytest.mark.parametrize("shape", [(), (1, 1)])
def test_arrays_and_numbers_that_change_compile_nothing(shape):
    scale = np.ones(shape, np.float32)
    ntk_fn = wl.empirical_ntk_fn(lambda p, x: jnp.tanh(scale * (x @ p)) * 0.5)
    sizes = []
    for value in (1.0, 2.0, 3.0, 1.0, 4.0):
        scale[...] = value
        jacobian = jax.jacrev(lambda p: jnp.tanh(scale * (X @ p)) / 2)(PARAMS).reshape(3, -1)
        assert_close(ntk_fn(X, None, PARAMS), jacobian @ jacobian.T)
        sizes.append(ntk_fn._kernels._compiled._cache_size())
    assert sizes == ([1, 1, 1, 1, 1] if shape else [1, 2, 2, 2, 2])


@pytest.mark.parametrize("way", ["fold_in", "key", "index", "power"])
def test_whole_numbers_that_change_compile_nothing(way):
    state = {"step": 0}

    def f(p, x):
        step = state["step"]
        if way == "fold_in":
            x = x * jax.random.uniform(jax.random.fold_in(jax.random.key(0), step), x.shape)
        elif way == "key":
            x = x * jax.random.uniform(jax.random.key(step), x.shape)
        elif way == "index":
            x = x * jax.lax.dynamic_index_in_dim(x, step % 3, keepdims=True)
        else:
            x = x * jnp.arange(3)[:, None] ** jnp.int32(step)
        return x @ p

    ntk_fn = wl.empirical_ntk_fn(f)
    for state["step"] in range(5):
        jacobian = jax.jacrev(lambda p: f(p, X))(PARAMS).reshape(3, -1)
        assert_close(ntk_fn(X, None, PARAMS), jacobian @ jacobian.T)
    assert ntk_fn._kernels._compiled._cache_size() <= 2


def from_docs_of_jax(stats):
    @jax.custom_jvp
    def f(z):
        return jnp.sin(z)

    @f.defjvp
    def _(primals, tangents):
        return f(*primals), jnp.cos(primals[0]) * tangents[0]

    return lambda p, x: f((x - stats["mean"][None]) @ p)


def from_docs_of_jax_in_reverse(stats):
    @jax.custom_vjp
    def f(z):
        return jnp.sin(z)

    f.defvjp(lambda z: (f(z), z), lambda z, g: (jnp.cos(z) * g,))
    return lambda p, x: f((x - stats["mean"][None]) @ p)


def with_two_rules(stats):
    inner = from_docs_of_jax({"mean": jnp.zeros(2)})

    @jax.custom_jvp
    def f(p, x):
        return inner(p, x)

    f.defjvp(lambda v, t: jax.jvp(inner, v, t))
    return lambda p, x: f(p, x - stats["mean"][None])


@pytest.mark.usefixtures("reference_engine")
@pytest.mark.parametrize("make", [from_docs_of_jax, from_docs_of_jax_in_reverse, with_two_rules])
def test_rules_that_call_functions_with_rules_compile_once(make):
    stats = {"mean": jnp.zeros(2)}
    f = make(stats)
    ntk_fn = wl.empirical_ntk_fn(f)
    for step in range(4):
        stats["mean"] = jnp.full(2, 0.3 * step)
        jacobian = jax.jacrev(lambda p: f(p, X))(PARAMS).reshape(3, -1)
        assert_close(ntk_fn(X, None, PARAMS), jacobian @ jacobian.T)
    assert ntk_fn._kernels._compiled._cache_size() == 1


def test_operators_of_functions_with_other_rules():
    def product(scale):
        f = jax.custom_jvp(jnp.sign)
        f.defjvp(lambda p, t: (jnp.sign(*p), scale * t[0]))
        return wl.NTKOperator(lambda p, x: f(x @ p), PARAMS, X) @ jnp.ones(3)

    assert_close(product(3.0), 9 * product(1.0))


def test_keywords_of_both_sides_that_differ_in_sign_alone():
    ntk_fn = wl.empirical_ntk_fn(lambda p, x, s: jnp.copysign(1.0, s) * (x @ p))
    for zero in (0.0, np.float32(0), jnp.zeros(())):
        assert_close(ntk_fn(X, None, PARAMS, s=(zero, -zero)), -X @ X.T)


def test_traced_values_that_functions_read():
    def kernel(scale):
        return wl.empirical_ntk_fn(lambda p, x: scale * (x @ p))(X, None, PARAMS)

    assert_close(jax.jacfwd(kernel)(3.0), 6 * kernel(1.0))
    assert_close(jax.jacrev(kernel)(3.0), 6 * kernel(1.0))
    assert_close(jax.jit(kernel)(2.0), 4 * kernel(1.0))
    assert_close(jax.vmap(kernel)(jnp.array([1.0, 2.0])), jnp.stack([kernel(1.0), 4 * kernel(1.0)]))

    def nngp(scale):
        net = stax.serial(stax.Dense(1), stax.Elementwise(lambda z: jnp.tanh(scale * z)))
        return net.kernel_fn(X, None, "nngp")[0, 1]

    step = 1e-2
    assert_close(jax.grad(nngp)(1.0), (nngp(1 + step) - nngp(1 - step)) / 2 / step, rtol=1e-3)
    assert_close(jax.jit(nngp)(2.0), nngp(2.0))


class TestPrograms:
    def test_are_equal_for_equal_equations(self):
        def program(f):
            return trace(f, X)[0]

        other = 2 * PARAMS
        assert program(lambda x: jax.nn.relu(x) @ PARAMS) == program(
            lambda y: jax.nn.relu(y) @ other
        )
        assert program(lambda x: 2.0 * x) != program(lambda x: 3.0 * x)
        assert program(lambda x: x * jnp.nan) == program(lambda x: x * jnp.nan)
        assert program(jnp.sin) != program(jnp.cos)
        assert program(lambda x: jnp.linalg.solve(x @ x.T + jnp.eye(3), x)) == program(
            lambda x: jnp.linalg.solve(x @ x.T + jnp.eye(3), x)
        )
        assert program(lambda x: x.sum(0)) != program(lambda x: x.sum(1))

    def test_loops_and_branches_count_by_what_they_do(self):
        def loop(n, slope):
            return lambda x: jax.lax.scan(lambda c, _: (slope * c, None), x, None, length=n)[0]

        def branch(slope):
            return lambda x: jax.lax.cond(x.sum() > 0, lambda v: slope * v, jnp.negative, x)

        for make in (lambda v: loop(3, v), lambda v: loop(int(v), 1.0), branch):
            assert trace(make(2.0), X)[0] == trace(make(2.0), X)[0]
            assert trace(make(2.0), X)[0] != trace(make(3.0), X)[0]

    def test_give_what_the_function_gives(self):
        program, constants = trace(lambda p, x: {"out": jax.nn.silu(x @ p) + X[:, :1]}, PARAMS, X)
        assert isinstance(program, TracedFunction)
        assert_close(program(constants, PARAMS, X)["out"], jax.nn.silu(X @ PARAMS) + X[:, :1])


class TestSnapshots:
    def test_tell_constants_apart_by_their_entries(self):
        def snapshot(scale):
            return Snapshot(lambda z: scale * z, ())

        assert snapshot(np.ones(2)) == snapshot(np.ones(2))
        assert snapshot(np.ones(2)) != snapshot(np.array([1.0, 1 + 1e-12]))
        assert hash(snapshot(np.ones(2))) == hash(snapshot(np.ones(2)))

    def test_of_functions_that_fail_are_equal_to_themselves_alone(self):
        def fails(_):
            raise RuntimeError

        one = Snapshot(fails, ())
        assert one == one
        assert one != Snapshot(fails, ())


@pytest.mark.parametrize("vmap_axes", [None, 0])
def test_trees_of_outputs_that_change(vmap_axes):
    x, p = jnp.eye(2), jnp.ones((2, 1))
    trees = [
        lambda a, b: {"a": a, "b": b},
        lambda a, b: {"c": a, "d": b},
        lambda a, b: [a, b],
        lambda a, b: (a, b),
    ]
    tree = trees[0]

    def f(p, x):
        return tree(x @ p, 3 * x @ p)

    ntk_fn, nngp_fn = wl.empirical_ntk_fn(f, vmap_axes=vmap_axes), wl.empirical_nngp_fn(f)
    for tree in trees:
        for kernel_fn, one in ((ntk_fn, jnp.eye(2)), (nngp_fn, jnp.ones((2, 2)))):
            found, right = kernel_fn(x, None, p), tree(one, 9 * one)
            assert jax.tree.structure(found) == jax.tree.structure(right)
            jax.tree.map(assert_close, found, right)


def test_keywords_that_change_compile_nothing():
    ntk_fn = wl.empirical_ntk_fn(lambda p, x, scale=1.0, name=None: jnp.tanh(scale * (x @ p)))
    for scale in (1.0, 2.0, -0.0, 0.5, 3):
        jacobian = jax.jacrev(lambda p, s=scale: jnp.tanh(s * (X @ p)))(PARAMS).reshape(3, -1)
        kernel = ntk_fn(X, None, PARAMS, scale=scale, name=object())
        assert_close(kernel, jacobian @ jacobian.T)
    assert ntk_fn._kernels._compiled._cache_size() <= 2
    assert_close(ntk_fn(X, X + 0, PARAMS, scale=(0.0, 1.0)), np.zeros((3, 3)))


def test_parameters_that_are_no_arrays():
    def f(p, x):
        return p["act"](p["scale"] * (x @ p["w"]))

    ntk_fn = wl.empirical_ntk_fn(f, subset="w")
    for act, scale in ((jnp.tanh, 1.0), (jnp.sin, 1.0), (jnp.sin, 2.0), (jnp.tanh, 1)):
        jacobian = jax.jacrev(lambda w, act=act, scale=scale: act(scale * (X @ w)))(PARAMS).reshape(
            3, -1
        )
        found = ntk_fn(X, None, {"act": act, "scale": scale, "w": PARAMS})
        assert_close(found, jacobian @ jacobian.T)
