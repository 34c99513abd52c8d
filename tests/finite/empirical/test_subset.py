import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.tolerance import assert_close
from widelimit.finite.empirical.subset import choose_leaves

PARAMS = {
    "layers": [{"kernel": jnp.ones((2, 2)), "lora_a": jnp.ones(2)}, {"kernel": jnp.ones(2)}],
    "step": jnp.array(1),
}
# In the order layers/0/kernel, layers/0/lora_a, layers/1/kernel, step.


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        ("*/lora_*", (False, True, False, False)),
        (["layers/1/*", "*lora_a"], (False, True, True, False)),
        (
            lambda path, leaf: "kernel" in path and leaf.ndim == 2,
            (True, False, False, False),
        ),
        ({"layers": True, "step": False}, (True, True, True, False)),
        ({"layers": [False, {"kernel": True}], "step": False}, (False, False, True, False)),
        (
            {"layers": [np.bool_(False), {"kernel": np.True_}], "step": np.False_},
            (False, False, True, False),
        ),
    ],
)
def test_leaves_are_chosen(subset, expected):
    assert choose_leaves(PARAMS, subset) == expected


@pytest.mark.parametrize(
    ("subset", "error", "message"),
    [
        (None, TypeError, "int32 numbers at 'step'"),
        ("*bias", ValueError, "pattern of some path among layers/0/kernel"),
        (lambda path, leaf: False, ValueError, "expected subset to choose some"),
        (
            {"layers": True},
            ValueError,
            r"booleans in a tree like PyTreeDef\(.*'step': \*.*a tree like PyTreeDef\(.*'layers'",
        ),
        (
            {"layers": 1, "step": False},
            TypeError,
            "booleans in subset, got 1 for 'layers/0/kernel'",
        ),
    ],
)
def test_wrong_subsets(subset, error, message):
    with pytest.raises(error, match=message):
        choose_leaves(PARAMS, subset)


def test_leaves_that_are_no_numbers():
    with pytest.raises(TypeError, match="got str at 'name'"):
        choose_leaves({"name": "dense", "w": jnp.ones(1)}, None)
    with pytest.raises(ValueError, match="without leaves"):
        choose_leaves({}, None)


class Callable:
    """A tree of two parts that can be called, whatever they are."""

    def __init__(self, w, v):
        self.w, self.v = w, v

    def __call__(self, x, key=None):
        return jnp.tanh(x @ self.w) @ self.v


class Silent(Callable):
    """Takes anything."""

    def __call__(self, x, key=None):
        return x


class Chooser:
    """A function of path and leaf with a number of its own, kept in a tree."""

    def __init__(self, least):
        self.least = least

    def __call__(self, path, leaf):
        return leaf.size >= self.least


for kind, names in ((Callable, ("w", "v")), (Silent, ("w", "v")), (Chooser, ("least",))):
    jax.tree_util.register_pytree_with_keys(
        kind,
        lambda tree, names=names: (
            [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in names],
            None,
        ),
        lambda _, parts, kind=kind: kind(*parts),
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", [Callable, Silent])
@pytest.mark.parametrize("chosen", [(False, True), (True, False), (np.True_, np.False_)])
def test_booleans_in_a_tree_that_can_be_called(kind, chosen):
    random = np.random.default_rng(0)
    x, w, v = (random.standard_normal(shape) for shape in ((4, 3), (3, 5), (5, 2)))

    def f(params, x):
        return jnp.tanh(x @ params.w) @ params.v

    params = kind(jnp.asarray(w), jnp.asarray(v))
    kernel = wl.empirical_ntk_fn(f, trace_axes=(), subset=kind(*chosen))(x, None, params)
    hidden = np.tanh(x @ w)
    if chosen[1]:  # f_c = sum_h tanh_h v_hc
        expected = np.einsum("ah,bh,cd->abcd", hidden, hidden, np.eye(2))
    else:
        slope = 1 - hidden**2
        rows = np.einsum("ah,hc->ahc", slope, v)
        expected = np.einsum("ahc,bhd,ai,bi->abcd", rows, rows, x, x)
    assert_close(kernel, expected)


def test_callable_trees_inside_others():
    params = Callable({"a": jnp.ones(2), "b": jnp.ones(2)}, jnp.ones(2))
    assert choose_leaves(params, Callable(True, False)) == (True, True, False)
    assert choose_leaves([params, params], [Callable(True, False), False]) == (
        *(True, True, False),
        *(False,) * 3,
    )
    with pytest.raises(TypeError, match=r"expected booleans in subset, got .*tanh.* for 'v'"):
        choose_leaves(params, Callable(True, jnp.tanh))


@pytest.mark.parametrize(
    "subset",
    [
        functools.partial(lambda name, path, leaf: name in path, "lora"),
        jax.tree_util.Partial(lambda flag, path, leaf: flag and "lora" in path, True),
        jax.tree_util.Partial(lambda path, leaf: "lora" in path),
        type("NoParts", (), {"__call__": lambda self, path, leaf: "lora" in path})(),
    ],
)
def test_functions_that_are_objects(subset):
    assert choose_leaves(PARAMS, subset) == (False, True, False, False)


def test_functions_that_are_trees():
    assert choose_leaves(PARAMS, Chooser(jnp.array(4))) == (True, False, False, False)
    # Parameters of a function with arguments filled in.
    params = jax.tree_util.Partial(jnp.dot, jnp.ones(2), jnp.ones(2))
    assert choose_leaves(params, jax.tree_util.Partial(jnp.dot, False, True)) == (False, True)


@pytest.mark.parametrize("params", [PARAMS, Silent(jnp.ones(2), jnp.ones(2)), jnp.ones(2)])
def test_booleans_in_a_tree_of_something_else(params):
    with pytest.raises(ValueError, match=r"a tree like PyTreeDef.*got .*, a tree like .*Callable"):
        choose_leaves(params, Callable(False, True))


def test_equinox_modules():
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    none = jax.tree.map(lambda _: False, net)
    last = eqx.tree_at(lambda m: (m.layers[-1].weight, m.layers[-1].bias), none, (True, True))
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)

    def f(params, x):
        return jax.vmap(params)(x)

    kernel = wl.empirical_ntk_fn(f, subset=last)(x, None, net)
    hidden = np.maximum(x @ np.asarray(net.layers[0].weight).T + np.asarray(net.layers[0].bias), 0)
    assert_close(kernel, hidden @ hidden.T + 1)
