"""Derivatives of traced code: programs run backwards, plain JAX where they do not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import widelimit as wl
from tests.cases import CASES, SPATIAL
from tests.engines.fused.test_engine import error
from widelimit import choose_engine, stax
from widelimit.engines.fused.callbacks import PullHost
from widelimit.stax import Conv, Dense, serial

RNG = np.random.default_rng(0)
ROWS, OTHERS = RNG.standard_normal((2, 70, 3, 2))
IMAGES = RNG.standard_normal((3, 6, 5, 2))
WEIGHTS = RNG.standard_normal((70, 70))


@pytest.fixture
def pulls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every program that runs backwards."""
    made: list[int] = []
    run = PullHost.__call__

    def counted(self: Any, *args: Any) -> None:
        made.append(len(args))
        run(self, *args)

    monkeypatch.setattr(PullHost, "__call__", counted)
    return made


def fcn(W_std: Any, b_std: Any = 0.4) -> Any:
    layers = [Dense(1, W_std, b_std), stax.Relu(), Dense(1, 1.1), stax.LeakyRelu(0.1)]
    return serial(stax.Flatten(), *layers, Dense(1, W_std))


def cnn(W_std: Any, b_std: Any = 0.3) -> Any:
    conv = Conv(3, (3, 3), padding="SAME", W_std=W_std, b_std=b_std)
    pool = stax.AvgPool((2, 2), (2, 2))
    behind = [stax.GlobalAvgPool(), Dense(1, W_std), stax.Relu(), Dense(1, b_std)]
    return serial(conv, stax.Relu(), pool, Conv(3, (2, 2), W_std=1.2), stax.Erf(), *behind)


def loss(make: Any, engine: str, given: bool = True) -> Any:
    """Returns a function of W_std, b_std, x1, x2 that is not linear in the kernels."""

    def total(W_std: Any, b_std: Any, x1: Any, x2: Any) -> Any:
        found = make(W_std, b_std).kernel_fn(
            x1, x2 if given else None, ("nngp", "ntk", "cov1"), engine=engine
        )
        n1, n2 = found.nngp.shape
        weighted = (found.nngp**2 * WEIGHTS[:n1, :n2]).sum() + jnp.sin(found.ntk).sum()
        return weighted + found.cov1.sum()

    return total


def check(found: Any, expected: Any, tolerance: float) -> None:
    """Fails where leaves differ."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        assert a.dtype == b.dtype
        assert error(a, b) < tolerance


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("make", [fcn, cnn])
def test_gradients(make: Any, given: bool, pulls: list[int]) -> None:
    arguments = (1.3, 0.4, ROWS, OTHERS[:66]) if make is fcn else (1.3, 0.4, IMAGES, IMAGES + 1)
    places = (0, 1, 2, 3) if given else (0, 1, 2)
    with jax.enable_x64(True):
        found = jax.jit(jax.grad(loss(make, "fused", given), places))(*arguments)
        assert len(pulls) == 1
        check(found, jax.jit(jax.grad(loss(make, "reference", given), places))(*arguments), 1e-8)
        partly = jax.value_and_grad(loss(make, "fused", given), (0, 1))(*arguments)[1]
        check(partly, found[:2], 1e-12)
    single = jax.grad(loss(make, "fused", given), places)(*arguments)
    assert all(v.dtype == np.float32 for v in single)
    assert max(map(error, single, found)) < 1e-4


def test_forward_mode_and_higher_derivatives(pulls: list[int]) -> None:
    arguments = (1.3, 0.4, ROWS[:5], OTHERS[:4])
    with jax.enable_x64(True):
        ours, theirs = loss(fcn, "fused"), loss(fcn, "reference")
        tangents = (1.0, 0.5, OTHERS[:5], ROWS[:4])
        check(jax.jvp(ours, arguments, tangents), jax.jvp(theirs, arguments, tangents), 1e-9)
        assert not pulls
        check(jax.hessian(ours, (0, 1))(*arguments), jax.hessian(theirs, (0, 1))(*arguments), 1e-8)
        assert pulls
        twice = jax.jit(jax.jacrev(jax.jacrev(ours)))(*arguments)
        check(twice, jax.grad(jax.grad(theirs))(*arguments), 1e-8)


def test_vmap(pulls: list[int]) -> None:
    W_std, x1, x2 = np.array([1.1, 1.3]), ROWS[:5], OTHERS[:4]
    with jax.enable_x64(True):
        mapped = jax.vmap(jax.grad(loss(fcn, "fused"), (0, 2)), (0, None, None, None))
        found = mapped(W_std, 0.4, x1, x2)
        assert pulls
        outside = jax.grad(
            lambda W: jax.vmap(loss(fcn, "fused"), (0, None, None, None))(W, 0.4, x1, x2).sum()
        )(W_std)
        for i in range(2):
            alone = jax.grad(loss(fcn, "fused"), (0, 2))(W_std[i], 0.4, x1, x2)
            check([v[i] for v in found], alone, 1e-12)
            check(outside[i], alone[0], 1e-12)


def test_what_is_not_finite_has_no_gradient() -> None:
    x = ROWS[:5].astype(np.float32)
    x[1] = np.nan
    found = jax.grad(loss(fcn, "fused", given=False), (0, 2))(1.3, 0.4, x, x)
    assert all(np.isnan(v).all() for v in found)


def test_networks_as_arguments(pulls: list[int]) -> None:
    net = serial(Dense(1, 1.2, 0.3), stax.Relu(), Dense(1, 1.1, 0.1))
    rows = ROWS[:, 0]
    grads = jax.grad(lambda net: net.kernel_fn(rows, None, "ntk").sum())(net)
    assert len(pulls) == 1
    assert grads.layers[0].W_std > 0
    assert error(grads.layers[2].b_std, 0.1 * 2 * 70**2) < 1e-3


def test_what_plain_jax_differentiates(pulls: list[int]) -> None:
    reason = choose_engine(serial(Dense(1), stax.Sign(), Dense(1)), (70, 3), traced=True).reason
    assert "plain JAX differentiates" in reason
    assert "Sign" in reason
    assert "plain JAX" not in choose_engine(fcn(1.2), ROWS.shape, traced=True).reason
    leaky = serial(Dense(1), stax.LeakyRelu(0.2), Dense(1))
    jax.grad(lambda net: net.kernel_fn(ROWS[:, 0], None, "nngp", engine="fused").sum())(leaky)
    circular = serial(Conv(1, (3, 3), padding="CIRCULAR"), stax.Relu(), stax.GlobalAvgPool())
    assert "circular" in choose_engine(circular, IMAGES.shape, traced=True).reason
    jax.grad(lambda x: circular.kernel_fn(x, None, "nngp", engine="fused").sum())(IMAGES)
    assert not pulls


@pytest.mark.parametrize("make", [fcn, cnn])
def test_marginal_likelihood(make: Any, pulls: list[int]) -> None:
    x = ROWS if make is fcn else RNG.standard_normal((12, 6, 5, 2))
    y = np.sin(x.reshape(len(x), -1)[:, :1])

    def evidence(W_std: Any, noise: Any, engine: str) -> Any:
        net = make(W_std)
        kernel_fn = net.kernel_fn if engine == "fused" else _reference(net)
        ensemble = wl.InfiniteEnsemble(kernel_fn, x, y, inference="bayes", noise=noise)
        return ensemble.log_marginal_likelihood()

    with jax.enable_x64(True):
        found = jax.value_and_grad(evidence, (0, 1))(1.3, 0.1, "fused")
        assert pulls
        check(found, jax.value_and_grad(evidence, (0, 1))(1.3, 0.1, "reference"), 1e-7)


def _reference(net: Any) -> Any:
    def kernel_fn(x1: Any, x2: Any = None, get: Any = None) -> Any:
        return net.kernel_fn(x1, x2, get, engine="reference")

    return kernel_fn


RUNNING = [
    case
    for case in CASES + SPATIAL
    if choose_engine(case.net, (64, *case.shape), traced=True).name == "fused"
]


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNNING, ids=lambda c: c.name)
def test_the_zoo(case: Any) -> None:
    x1, x2 = case.inputs(3, 2)
    with jax.enable_x64(True):

        def total(net: Any, x1: Any, x2: Any, engine: str) -> Any:
            found = net.kernel_fn(x1, x2, ("nngp", "ntk"), engine=engine)
            return (found.nngp**2).sum() + (found.ntk**2).sum()

        gradient = jax.jit(jax.grad(total, (0, 1, 2)), static_argnums=3)
        check(gradient(case.net, x1, x2, "fused"), gradient(case.net, x1, x2, "reference"), 1e-8)
