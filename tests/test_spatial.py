"""Properties of networks with spatial axes: offsets found backwards lose nothing."""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.cases import SPATIAL, Case, sweep
from tests.tolerance import assert_close
from widelimit import plan, stax
from widelimit._pytree import pytree
from widelimit.covariance.offsets import Need
from widelimit.stax import Dense, serial

BOTH = ("nngp", "ntk")
spatial = pytest.mark.parametrize("case", SPATIAL, ids=lambda case: case.name)
swept = pytest.mark.parametrize("case", sweep(SPATIAL))


@functools.cache
def kernels(name: str, dtype: str) -> dict[str, np.ndarray]:
    """Kernels of a case of its two batches joined, computed once for many tests."""
    case = next(c for c in SPATIAL if c.name == name)
    joined = np.concatenate(case.inputs(3, 2))
    with jax.enable_x64(dtype == "float64"):
        k = case.net.kernel_fn(joined, None, BOTH)
        return {get: np.asarray(getattr(k, get)) for get in BOTH}


def _full(need: Any, signal: Any, moduli: Any) -> Any:
    """Every layer holds every pair of positions, one row per true offset."""
    if isinstance(signal, tuple):
        return tuple(_full(*parts) for parts in zip(need, signal, moduli, strict=True))
    return Need.full(signal.spatial)


@spatial
@pytest.mark.usefixtures("x64", "reference_engine")
@pytest.mark.optimised
def test_all_offsets_give_the_same_kernels(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = kernels(case.name, "float64")
    # `widelimit.engines.plan` is the function of that name
    monkeypatch.setattr(importlib.import_module("widelimit.engines.plan"), "_folded", _full)
    everything = case.net.kernel_fn(np.concatenate(case.inputs(3, 2)), None, BOTH)
    for get in BOTH:
        assert_close(planned[get], getattr(everything, get), rtol=1e-12)


@swept
@pytest.mark.usefixtures("x64")
def test_blocks_of_two_batches_under_jit_equal_the_joint_kernel(case: Case) -> None:
    """One compilation for the whole network, x2 given; layer by layer, x2=None."""
    x1, x2 = case.inputs(3, 2)
    forward = quick.kernels(case.net, x1, x2)
    for get in BOTH:
        joint = kernels(case.name, "float64")[get]
        assert_close(getattr(forward, get), joint[: len(x1), len(x1) :], rtol=1e-12)


@pytest.mark.optimised
@swept
def test_float32_symmetry_and_positive_semidefiniteness(case: Case) -> None:
    for get in BOTH:
        single, double = (kernels(case.name, d)[get] for d in ("float32", "float64"))
        assert single.dtype == np.float32
        assert_close(single, double, rtol=3e-5)
        k = double
        if k.ndim > 2:
            size = len(k) * k.shape[2]
            k = k.swapaxes(1, 2).reshape(size, size)
        np.testing.assert_array_equal(k, k.T)
        assert np.linalg.eigvalsh(k).min() >= -1e-9 * np.abs(k).max()


@pytree
class CountTraces(stax.Relu):
    """A ReLU that counts how often its kernel is traced."""

    count = 0

    def propagate(self, cov: Any, site: Any) -> Any:
        type(self).count += 1
        return super().propagate(cov, site)


def test_equal_layers_and_other_hyperparameters_compile_nothing() -> None:
    x = np.ones((2, 5, 3), np.float32)
    CountTraces.count = 0
    for W_std in (1.0, 2**0.5):
        conv = stax.Conv(4, (3,), padding="SAME", W_std=W_std, b_std=0.1)
        net = serial(*[conv, CountTraces()] * 5, stax.GlobalAvgPool(), Dense(1))
        net.kernel_fn(x, None, "ntk")
        # one for all but the last, behind which no variances are needed, and one for the last
        assert CountTraces.count == 2


@spatial
def test_plan_and_shapes_are_those_of_the_finite_network(case: Case) -> None:
    key = jax.random.PRNGKey(0)
    params = jax.eval_shape(lambda key: case.net.init_fn(key, (2, *case.shape))[1], key)
    outputs = jax.eval_shape(case.net.apply_fn, params, jnp.zeros((2, *case.shape)))
    table = plan(case.net, (2, *case.shape))
    assert table.rows[-1].shape == outputs.shape
    assert table.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
