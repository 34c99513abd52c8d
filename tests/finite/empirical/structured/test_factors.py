import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerance import assert_close
from widelimit.finite.empirical.structured.factors import (
    Factor,
    OneHot,
    factor_order,
    product,
    without_one_hots,
)

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 1}


def draw(*labels):
    rng = np.random.default_rng(0)
    shapes = [tuple(SIZES[x] for x in names) for names in labels]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return [Factor(jnp.asarray(a), tuple(x)) for a, x in zip(arrays, labels, strict=True)]


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        (["ab"], "b"),
        (["ab", "bc"], "ac"),
        (["ab", "ab"], ""),
        (["abc", "cab"], "ab"),
        (["abe", "bce", "cd"], "da"),
        (["ab", "a", "b", "abc"], "cb"),
        (["a", "b"], "ba"),
        (["ab", "b"], "ab"),
        (["ab", "bc", "cd", "da", "ac", "bd"], "ae"),
    ],
)
def test_products_are_those_of_einsum(labels, kept):
    labels = [*labels, "e"] if "e" in kept else labels
    factors = draw(*labels)
    expected = np.einsum(",".join(labels) + "->" + kept, *(f.array for f in factors))
    assert_close(product(factors, tuple(kept)), expected)


def test_the_plan_avoids_large_products():
    # Two activations and two cotangents of a wide layer: inner products first.
    sizes = {"n": 2, "m": 3, "i": 500, "o": 400}
    factors = [
        Factor(jnp.zeros([sizes[x] for x in names]), tuple(names))
        for names in ("no", "ni", "mo", "mi")
    ]
    order = factor_order(factors, ("n", "m"))
    assert order.pairs[0] in ((0, 2), (1, 3))
    assert order.cost < 500 * 400


@pytest.mark.parametrize("other", ["factor", "one-hot", "none"])
def test_one_hots_pick_and_drop_what_is_outside(other):
    where = jnp.array([1, 4, -1, 9])
    hot = OneHot(where, ("p",), "v", 5)
    (table,) = draw("dc")
    table = Factor(table.array, ("v", "c"))
    second = OneHot(jnp.array([4, 1, -1]), ("q",), "v", 5)
    parts = {"factor": [hot, table], "one-hot": [second, hot], "none": [hot]}[other]
    kept = {"factor": ("p", "c"), "one-hot": ("p", "q"), "none": ("p",)}[other]
    dense = [part.dense(jnp.float32) if isinstance(part, OneHot) else part for part in parts]
    arrays = [arg for f in dense for arg in (f.array, ["pqvc".index(x) for x in f.labels])]
    expected = np.einsum(*arrays, ["pqvc".index(x) for x in kept])
    extra = [Factor(jnp.ones(()), ())]
    assert_close(product(without_one_hots([*parts, *extra]), kept), expected)
