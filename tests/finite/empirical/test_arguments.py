import jax
import jax.numpy as jnp
import numpy as np
import pytest

from widelimit.finite.empirical.arguments import join_arrays, mapped_axes, split_arrays, two_sides


def test_arrays_and_the_rest_are_told_apart():
    tree = {"a": np.ones(2), "flag": True, "none": None, "f": (len, "text", jnp.zeros(1))}
    arrays, constants = split_arrays(tree)
    assert [a.shape for a in arrays] == [(2,), (1,)]
    joined = join_arrays(arrays, constants)
    assert jax.tree.structure(joined) == jax.tree.structure(tree)
    assert joined["f"][:2] == (len, "text")
    assert split_arrays(tree)[1] == constants
    assert hash(split_arrays(tree)[1]) == hash(constants)
    assert split_arrays({**tree, "flag": 1})[1] != constants  # 1 == True
    assert split_arrays({**tree, "flag": False})[1] != constants


def test_axes_of_every_leaf():
    x = {"a": np.ones((2, 3)), "b": [np.ones((3, 2)), None, "text"]}
    assert mapped_axes(-1, {"a": x["a"]}, "x") == [1]
    assert mapped_axes({"a": 0, "b": -1}, {**x, "b": x["b"][:2]}, "x") == [0, 1]
    assert mapped_axes({"a": None, "b": [1, None, None]}, x, "x") == [None, 1, None]
    for wrong, error in (({"a": 0}, ValueError), (2, ValueError), ("ab", TypeError)):
        with pytest.raises(error, match="vmap_axes"):
            mapped_axes(wrong, x, "x")


def test_one_side_where_nothing_differs():
    x, pattern = np.ones((2, 2)), np.eye(2)
    for kwargs in ({}, {"pattern": pattern}, {"pattern": (pattern, pattern + 0)}, {"m": (1, None)}):
        assert two_sides(x, None, kwargs)[1] is None
    first, second = two_sides(x, None, {"pattern": (pattern, 2 * pattern), "n": (1, 1.0)})
    assert first.kwargs["n"] == 1
    assert second.x is x
    assert second.kwargs["pattern"][0, 0] == 2
    assert two_sides(x, x, {})[1].x is x


def test_equal_inputs_with_padding_share_their_noise():
    x = np.array([[1.0, np.nan], [np.nan, 2.0]], np.float32)
    key = jax.random.key(0)
    for a, equal in [(x, True), (np.nan_to_num(x), False), (np.arange(4).reshape(2, 2), False)]:
        first, second = two_sides(x, a.copy(), {"rng": key})
        assert (first.kwargs["rng"] == second.kwargs["rng"]) == equal
        traced = jax.jit(lambda b: two_sides(x, b, {"rng": key})[1].kwargs["rng"])(a)
        assert (traced == key) == equal
