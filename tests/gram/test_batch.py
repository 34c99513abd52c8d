"""NT's batch: any kernel function in tiles of a given size."""

from typing import Any

import jax
import numpy as np
import pytest

import widelimit as nt
from widelimit import stax
from widelimit.stax import Dense, serial

FLAT = serial(Dense(4, 1.4, 0.1), stax.Relu(), Dense(1, 1.2))
CNN = serial(stax.Conv(4, (2,), b_std=0.3), stax.Relu(), stax.GlobalAvgPool(), Dense(1))


def inputs(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same(result: Any, whole: Any) -> None:
    """Equal trees, static fields of kernels included, arrays up to their last bits."""
    assert jax.tree.structure(result) == jax.tree.structure(whole)
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(whole), strict=True):
        assert np.shape(one) == np.shape(other)
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_allclose(one, other, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("second", ["none", "other", "equal"])
@pytest.mark.parametrize("get", [None, "ntk", ("nngp", "ntk"), ("cov1", "NNGP", "shape2"), "cov2"])
def test_every_kind_of_result(second: str, get: Any) -> None:
    x1 = inputs(5, 6)
    x2 = {"none": None, "other": inputs(3, 6, seed=1), "equal": x1.copy()}[second]
    result = nt.batch(FLAT.kernel_fn, batch_size=2)(x1, x2, get)
    assert_same(result, FLAT.kernel_fn(x1, x2, get))


def test_masks() -> None:
    x1, x2 = inputs(4, 3, 2), inputs(3, 3, 2, seed=1)
    x1[0, 1:] = x2[2, 0] = 7.0
    for second in (None, x2):
        for get in (None, "ntk", ("mask1", "mask2")):
            result = nt.batch(CNN.kernel_fn, 2)(x1, second, get=get, mask_constant=7.0)
            assert_same(result, CNN.kernel_fn(x1, second, get, mask_constant=7.0))


def test_branches_and_kernels_as_inputs() -> None:
    x1, x2 = inputs(5, 6), inputs(3, 6, seed=1)
    branches = stax.parallel(FLAT, Dense(2))
    for second in (None, (x2, x2)):
        result = nt.batch(branches.kernel_fn, 2)((x1, x1), second)
        assert_same(result, branches.kernel_fn((x1, x1), second))
    rest = serial(stax.Relu(), stax.Dropout(0.5), Dense(1))
    for second in (None, x2, x1.copy()):
        kernel = FLAT.kernel_fn(x1, second)
        for get in (None, "ntk"):
            result = nt.batch(rest.kernel_fn, 2)(kernel, None, get)
            assert_same(result, rest.kernel_fn(kernel, None, get))
    pair = (kernel, kernel)
    assert_same(
        nt.batch(branches.kernel_fn, 2)(pair, None, "nngp"), branches.kernel_fn(pair, None, "nngp")
    )
    with pytest.raises(ValueError, match="expected x2=None with a Kernel"):
        nt.batch(rest.kernel_fn)(kernel, x2)


def test_graphs() -> None:
    net = serial(stax.Aggregate(), Dense(4), stax.Relu(), stax.GlobalSumPool(), Dense(1))
    x1, x2 = inputs(3, 3, 2), inputs(5, 3, 2, seed=1)
    pattern = abs(inputs(3, 3, 3, seed=2)), abs(inputs(5, 3, 3, seed=3))
    result = nt.batch(net.kernel_fn, 2)(x1, x2, "ntk", pattern=pattern)
    assert_same(result, net.kernel_fn(x1, x2, "ntk", pattern=pattern))


def test_where_results_are_stored() -> None:
    x = inputs(5, 6)
    assert isinstance(nt.batch(FLAT.kernel_fn, 2)(x, None, "ntk"), jax.Array)
    kernel = nt.batch(FLAT.kernel_fn, 2, store_on_device=False)(x)
    assert isinstance(kernel.ntk, np.ndarray)
    assert kernel.cov2 is None
    assert kernel.shape1 == (5, 1)


def test_without_a_size_memory_decides() -> None:
    x = inputs(5, 6)
    for count in (-1, 0, 1):
        result = nt.batch(FLAT.kernel_fn, device_count=count)(x, None, "ntk")
        assert_same(result, FLAT.kernel_fn(x, None, "ntk"))
    assert nt.batch(FLAT.kernel_fn).__name__ == "serial"


def test_other_functions_get_their_arguments() -> None:
    def kernel_fn(x1: Any, x2: Any, params: Any, *, scale: float, rng: Any) -> Any:
        kernel = params["a"] * (x1 @ (x1 if x2 is None else x2).T)
        return scale * kernel, kernel * 0 + jax.random.normal(rng, ()), scale

    x1, key = inputs(5, 6), jax.random.key(0)
    kernel, draws, scale = nt.batch(kernel_fn, 2)(x1, x1, {"a": 2.0}, scale=3.0, rng=key)
    np.testing.assert_allclose(kernel, 6 * x1 @ x1.T, rtol=1e-5)
    assert len(set(np.asarray(draws).ravel().tolist())) == 9
    assert scale == 3.0


@pytest.mark.parametrize("get", [None, "ntk", ("nngp", "ntk"), ("cov1", "NNGP")])
def test_inside_jit(get: Any) -> None:
    x1 = inputs(5, 6)
    batched = nt.batch(FLAT.kernel_fn, 2)
    for x2 in (None, inputs(3, 6, seed=1)):
        whole = jax.jit(lambda a, b: FLAT.kernel_fn(a, b, get))(x1, x2)
        assert_same(jax.jit(lambda a, b: batched(a, b, get))(x1, x2), whole)


def test_inside_jit_the_size_decides_and_a_small_input_is_one_call() -> None:
    seen = []

    def kernel_fn(x1: Any, x2: Any = None) -> Any:
        seen.append((len(x1), None if x2 is None else len(x2)))
        return x1 @ (x1 if x2 is None else x2).T

    x = inputs(5, 6)
    np.testing.assert_allclose(jax.jit(nt.batch(kernel_fn, 2))(x), x @ x.T, rtol=1e-5, atol=1e-6)
    assert (5, None) not in seen
    assert {(2, None), (2, 2)} <= set(seen)
    seen.clear()
    jax.jit(nt.batch(kernel_fn, 5))(x)
    jax.jit(nt.batch(kernel_fn))(x)
    assert seen == [(5, None)] * 2


def test_bad_input() -> None:
    x = inputs(4, 6)
    for wrong in ({"batch_size": -1}, {"device_count": -2}, {"device_count": 99}):
        with pytest.raises(ValueError, match="expected"):
            nt.batch(FLAT.kernel_fn, **wrong)
    for wrong in ({"batch_size": 1.5}, {"device_count": True}):
        with pytest.raises(TypeError, match="int"):
            nt.batch(FLAT.kernel_fn, **wrong)
    with pytest.raises(TypeError, match="kernel_fn"):
        nt.batch(3)
    with pytest.raises(NotImplementedError, match="diagonal_batch"):
        nt.batch(FLAT.kernel_fn, 2)(x, diagonal_batch=False)
    full = FLAT.kernel_fn(x, diagonal_batch=False)
    with pytest.raises(NotImplementedError, match="diagonal_batch=False"):
        nt.batch(serial(stax.Relu(), Dense(1)).kernel_fn, 2)(full)
    mixing = serial(Dense(3), stax.LayerNorm((0, -1)), Dense(2))
    for given in (x, Dense(3).kernel_fn(x)):
        rest = mixing if given is x else serial(stax.LayerNorm((0, -1)), Dense(2))
        with pytest.raises(ValueError, match="which combines samples"):
            nt.batch(rest.kernel_fn, 2)(given)
    assert_same(nt.batch(mixing.kernel_fn, 4)(x), mixing.kernel_fn(x))
    with pytest.raises(ValueError, match=r"x1 to be finite, got 1 of .* index \(1, 0\)"):
        nt.batch(FLAT.kernel_fn, 1)(np.where(np.arange(24).reshape(4, 6) == 6, np.nan, x))
    with pytest.raises(ValueError, match="expected get to be None"):
        nt.batch(FLAT.kernel_fn, 1)(x, None, "nothing")
