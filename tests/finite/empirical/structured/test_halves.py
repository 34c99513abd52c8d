"""Products of derivatives with themselves from their upper halves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests import quick
from tests.finite.empirical.small import full_kernel, inputs, reduced
from tests.finite.empirical.zoo import CASES
from tests.tolerance import assert_close
from widelimit.finite.empirical.structured import halves
from widelimit.finite.empirical.structured.factors import Factor, factor_order, product

STRUCTURED = wl.NtkImplementation.STRUCTURED_DERIVATIVES


@pytest.fixture
def always(monkeypatch, x64):
    monkeypatch.setattr(halves, "_LEAST_GAIN", -np.inf)


def both_copies(seed, shape, axes):
    """The same array as a factor of each side; `axes` of the output, the others summed over."""
    array = jnp.asarray(np.random.default_rng(seed).standard_normal(shape))

    def labels(side):
        return tuple(x if isinstance(x, str) else ("out", x, side) for x in axes)

    return [Factor(array, labels(1)), Factor(array, labels(2))]


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_product_is_that_of_all_entries(always, n, rank):
    axes, sizes = (0, 1)[:rank], (n, 2)[:rank]
    factors = [
        *both_copies(0, (*sizes, 4), (*axes, "s")),
        *both_copies(1, (n, 4), (0, "s")),
    ]
    kept = tuple(("out", a, side) for a in axes for side in (1, 2))
    upper = halves.upper_half(factors, kept, factor_order(factors, kept).cost)
    assert upper is not None
    assert upper.cut == (n + 1) // 2
    assert_close(upper.product(kept), product(factors, kept), rtol=1e-12)


def test_other_axes_stay_where_they_are(always):
    factors = both_copies(0, (3, 4, 5), ("d", 1, "s"))
    kept = ("d", ("out", 1, 1), ("out", 1, 2))
    upper = halves.upper_half(factors, kept, factor_order(factors, kept).cost)
    assert upper is not None
    assert_close(upper.product(kept), product(factors, kept), rtol=1e-12)


def test_nothing_is_split_without_rows_or_gain(x64):
    factors = both_copies(0, (3, 4), (0, "s"))
    kept = ("out", 0, 1), ("out", 0, 2)
    assert halves.upper_half(factors, kept, factor_order(factors, kept).cost) is None
    assert halves.upper_half(factors, (), 1e12) is None
    large = both_copies(0, (512, 512), (0, "s"))
    assert halves.upper_half(large, kept, factor_order(large, kept).cost) is not None


def shared(params, x):
    """One matrix in uses whose factors have different shapes."""
    w = params["w"]
    h = jnp.tanh(x.reshape(len(x), 2, 4) @ w).sum(1)
    return (h @ w * params["s"][None]).reshape(len(x), 2, 2)


@pytest.mark.parametrize("axes", [((), ()), ((2,), ()), ((), (1,)), ((1,), (0,))], ids=str)
@pytest.mark.parametrize("mapped", [0, None])
def test_uses_that_differ_count_both_ways(always, axes, mapped):
    params = {"w": inputs(4), "s": inputs(1)[0]}
    x = inputs(3, 2, size=8)
    ntk_fn = wl.empirical_ntk_fn(shared, *axes, vmap_axes=mapped, implementation=STRUCTURED)
    assert_close(
        quick.jit(lambda p: ntk_fn(x, None, p))(params),
        reduced(full_kernel(shared, params, x), *axes),
        rtol=1e-11,
    )


# All of them run among the slow tests.
@pytest.mark.parametrize("name", list(CASES)[1::3])
def test_the_zoo_by_halves(always, name):
    compare_by_halves(CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_of_the_zoo_by_halves(always, name):
    compare_by_halves(CASES[name])


def compare_by_halves(case):
    params, x, _ = case.draw()
    axes = 0 if case.vmap else None

    def compute(params, x, implementation):
        ntk_fn = wl.empirical_ntk_fn(
            case.f, case.trace, case.diagonal, vmap_axes=axes, implementation=implementation
        )
        return ntk_fn(x, None, params)

    base = wl.NtkImplementation.JACOBIAN_CONTRACTION
    expected, found = quick.jit(
        lambda params, x: [compute(params, x, way) for way in (base, STRUCTURED)]
    )(params, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(a, b, rtol=1e-10)
