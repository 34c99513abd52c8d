"""Properties of kernel_fn that hold for every network of the zoo."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import quick
from tests.cases import ACTIVATIONS, CASES, NETWORKS, Case, sweep
from tests.tolerance import assert_close
from widelimit import Kernel, plan, stax
from widelimit._pytree import pytree
from widelimit.stax import Dense, serial

BOTH = ("nngp", "ntk")
# Their float32 and their symmetry are those of the code that users run.
OPTIMISED = ("Relu()", "Gelu()", "Tanh()", "deep_relu", "layer_norm", "residual")
zoo = pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, id=case.name, marks=[pytest.mark.optimised] if case.name in OPTIMISED else []
        )
        for case in CASES
    ],
)


@functools.cache
def kernels(name: str, dtype: str) -> dict[str, Any]:
    """Kernels of a case between its two batches joined, computed once for many tests."""
    case = next(c for c in CASES if c.name == name)
    joined = np.concatenate(case.inputs())
    with jax.enable_x64(dtype == "float64"):
        k = case.net.kernel_fn(joined, None)
        return {"kernel": k, **{get: np.asarray(getattr(k, get)) for get in BOTH}}


@zoo
def test_float32_and_float64_agree(case: Case) -> None:
    for get in BOTH:
        single, double = (kernels(case.name, d)[get] for d in ("float32", "float64"))
        assert single.dtype == np.float32
        assert double.dtype == np.float64
        assert_close(single, double, rtol=3e-5)


@zoo
def test_symmetric_to_the_bit_and_positive_semidefinite(case: Case) -> None:
    for get in BOTH:
        k = kernels(case.name, "float64")[get]
        if k.ndim != 2:
            if not k.ndim:
                continue  # no parametric layer: a scalar zero
            size = int(np.prod(case.shape[:-1])) * len(k)
            k = np.moveaxis(k, range(1, k.ndim, 2), range(k.ndim // 2, k.ndim)).reshape(size, size)
        np.testing.assert_array_equal(k, k.T)
        assert np.linalg.eigvalsh(k).min() >= -1e-9 * np.abs(k).max()


@zoo
@pytest.mark.usefixtures("x64")
def test_blocks_of_two_batches_equal_the_joint_kernel(case: Case) -> None:
    x1, x2 = case.inputs()
    forward = case.net.kernel_fn(x1, x2, BOTH)
    backward = case.net.kernel_fn(x2, x1, BOTH)
    for get in BOTH:
        k, joint = getattr(forward, get), kernels(case.name, "float64")[get]
        if not joint.ndim:
            continue
        assert_close(k, joint[: len(x1), len(x1) :])
        mirrored = jnp.swapaxes(getattr(backward, get), 0, 1)
        for axis in range(2, k.ndim, 2):
            mirrored = jnp.swapaxes(mirrored, axis, axis + 1)
        assert_close(k, mirrored)


@zoo
def test_variances_are_the_diagonal(case: Case) -> None:
    kernel = kernels(case.name, "float32")["kernel"]
    n = jnp.arange(len(kernel.cov1))
    assert_close(kernel.nngp[n, n], kernel.cov1, rtol=3e-7)
    assert kernel.cov2 is None
    assert bool(kernel.x1_is_x2)


@zoo
def test_plan_and_shapes_are_those_of_the_finite_network(case: Case) -> None:
    kernel = kernels(case.name, "float32")["kernel"]
    n = 8
    shape, params = case.net.init_fn(jax.random.PRNGKey(0), (n, *case.shape))
    if "ExpNormalized" not in case.name:
        outputs = jax.eval_shape(case.net.apply_fn, params, jnp.zeros((n, *case.shape)))
        assert outputs.shape == shape
    assert kernel.shape1 == kernel.shape2 == shape
    table = plan(case.net, (n, *case.shape))
    assert table.rows[-1].shape == shape
    assert table.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert repr(case.net).split("(")[0] in ("serial",)


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_network_as_an_argument_of_jit(case: Case) -> None:
    x1, x2 = case.inputs()

    @quick.jit
    def tangent(net: Any, x1: Any, x2: Any) -> Any:
        return net.kernel_fn(x1, x2, "ntk")

    jitted = tangent(case.net, x1.astype(np.float32), x2.astype(np.float32))
    assert_close(jitted, case.net.kernel_fn(x1, x2, "ntk"))


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
@pytest.mark.usefixtures("x64")
def test_kernel_of_a_kernel_equals_the_serial_network(case: Case) -> None:
    x1, x2 = case.inputs()
    kernel = case.net.kernel_fn(x1, x2, None)
    tail = serial(Dense(4, 1.2, 0.1), stax.Relu())
    assert isinstance(kernel, Kernel)
    composed = tail.kernel_fn(kernel, None, BOTH)
    whole = serial(case.net, tail).kernel_fn(x1, x2, BOTH)
    for get in BOTH:
        assert_close(getattr(composed, get), getattr(whole, get), rtol=1e-9)


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_masks_hide_samples_and_change_nothing_else(case: Case) -> None:
    x1, x2 = case.inputs()
    x1, x2 = x1.astype(np.float32), x2.astype(np.float32)
    plain = case.net.kernel_fn(x1, x2, BOTH)
    nothing = case.net.kernel_fn(x1, x2, BOTH, mask_constant=100.0)
    x1[1] = 100.0
    hidden = case.net.kernel_fn(x1, x2, BOTH, mask_constant=100.0)
    for get in BOTH:
        reference = np.array(getattr(plain, get))
        assert_close(getattr(nothing, get), reference)
        if reference.ndim:
            reference[1] = 0
        assert_close(getattr(hidden, get), reference)


DERIVATIVES = ACTIVATIONS + [
    case for case in NETWORKS if case.name in ("repeat", "layer_norm", "flatten_later", "deep_relu")
]


def _total(case: Case) -> Any:
    # Without bias a zero input meets the nonlinearity at zero variance.
    net = case.net if case in NETWORKS else serial(Dense(6, 1.2), case.net.layers[1], Dense(3))

    def total(x: Any) -> Any:
        k = net.kernel_fn(x, None, BOTH)
        return k.nngp.sum() + k.ntk.sum()

    return total


def _identical_and_zero(case: Case) -> Any:
    return jnp.asarray(np.stack([*case.inputs(1, 1)[0][[0, 0]], np.zeros(case.shape)]), jnp.float32)


@pytest.mark.parametrize("case", sweep(DERIVATIVES))
def test_gradients_are_finite_at_identical_and_at_zero_inputs(case: Case) -> None:
    gradient = quick.jit(jax.grad(_total(case)))(_identical_and_zero(case))
    assert jnp.all(jnp.isfinite(gradient))


# A kink, a smooth one, a series, a layer with a quotient; tests/activations/test_duals.py has all.
TWICE = ("Relu()", "Gelu()", "Tanh()", "layer_norm")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.name in TWICE else pytest.mark.slow)
        for case in DERIVATIVES
    ],
)
def test_second_derivatives_are_finite_at_identical_and_at_zero_inputs(case: Case) -> None:
    x, gradient = _identical_and_zero(case), jax.grad(_total(case))
    second = quick.jit(lambda x: jax.jvp(gradient, (x,), (jnp.ones_like(x),))[1])(x)
    assert jnp.all(jnp.isfinite(second))


@pytest.mark.optimised
def test_float32_of_a_deep_relu_network_with_copies() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 30)).astype(np.float32)
    near = x[:4] + 1e-3 * rng.standard_normal((4, 30)).astype(np.float32)
    x = np.concatenate([x, x[:4], near])
    net = serial(stax.repeat(serial(Dense(30, 2**0.5), stax.Relu()), 20), Dense(1, 2**0.5))
    single = net.kernel_fn(x, None, "ntk")
    with jax.enable_x64(True):
        double = net.kernel_fn(x, None, "ntk")
    np.testing.assert_allclose(single, double, rtol=5e-6, atol=0)


@pytree
class CountTraces(stax.Identity):
    """An identity that counts how often its kernel is traced."""

    count = 0

    def propagate(self, cov: Any, site: Any) -> Any:
        type(self).count += 1
        return cov


def _counted(W_std: Any) -> Any:
    return serial(Dense(8, W_std, 0.1), stax.Relu(), CountTraces(), Dense(1, W_std))


@pytest.mark.usefixtures("reference_engine")
@pytest.mark.parametrize("how", ["called as is", "network as an argument of jit"])
def test_hyperparameters_share_one_trace(how: str) -> None:
    x = np.ones((3, 4 if how == "called as is" else 5), np.float32)
    tangent = jax.jit(lambda net, x: net.kernel_fn(x, None, "ntk"))
    CountTraces.count = 0
    for W_std in (1, 1.5, np.sqrt(2)):
        net = _counted(W_std)
        net.kernel_fn(x, None, "ntk") if how == "called as is" else tangent(net, x)
    assert CountTraces.count == 1


def test_a_repeated_call_retraces_nothing() -> None:
    x = np.ones((3, 6), np.float32)
    kernel_fn = _counted(1.0).kernel_fn
    kernel_fn(x, None, "ntk")
    CountTraces.count = 0
    for _ in range(3):
        kernel_fn(x, None, "ntk")
    assert CountTraces.count == 0


@pytest.mark.optimised
def test_zeros_in_both_inputs_whatever_xla_computes_twice():
    # Compiled whole, one copy of q1 q2 - c^2 was exactly 0 and the other was not: sqrt gave 1.
    erf, relu, leaky = stax.Erf(), stax.Relu(), stax.LeakyRelu(0.2)
    layers = [Dense(1, 1.2, 0.1), erf, Dense(1, 1.3, 0.2), relu, Dense(1, 1.3), leaky]
    rng = np.random.default_rng(0)
    x1, x2 = rng.standard_normal((2, 3, 20)).astype(np.float32)
    x1[1] = x2[2] = 0
    for depth in (5, 6):
        kernel_fn = serial(*layers[:depth]).kernel_fn
        single = jax.jit(lambda a, b, f=kernel_fn: f(a, b, ("nngp", "ntk")))(x1, x2)
        with jax.enable_x64(True):
            double = kernel_fn(x1.astype(np.float64), x2.astype(np.float64), ("nngp", "ntk"))
        for got, expected in zip(single, double, strict=True):
            np.testing.assert_allclose(got, np.asarray(expected), rtol=1e-5)
