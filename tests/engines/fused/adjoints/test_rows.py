"""Cotangents of networks without spatial axes, against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engines.fused.adjoints.differences import along, close
from widelimit import stax
from widelimit.engines.fused.adjoints.cotangents import Cotangents
from widelimit.engines.fused.adjoints.rows import RowAdjoints
from widelimit.engines.fused.bridge import network_kernel
from widelimit.engines.fused.flat import RowKernels
from widelimit.engines.request import Request
from widelimit.stax import Dense, serial

RNG = np.random.default_rng(0)
BRANCH = serial(stax.Relu(), Dense(1, 1.1, 0.2))
NETS = {
    "kinks": serial(Dense(1, 1.3, 0.4), stax.Relu(), Dense(1, 1.1, 0.2), stax.LeakyRelu(0.2)),
    "smooth": serial(Dense(1, 1.3, 0.4), stax.Erf(), Dense(1, 1.1), stax.Gelu(), Dense(1)),
    "exponentials": serial(Dense(1, 0.9), stax.Rbf(0.3), Dense(1, 1.1), stax.Sin(), Dense(1)),
    "norms": serial(stax.RMSNorm(eps=0.1), Dense(1, 1.3, 0.4), stax.LayerNorm(), stax.Gaussian()),
    "sum": serial(
        Dense(1), stax.FanOut(2), stax.parallel(BRANCH, stax.Identity()), stax.FanInSum(), BRANCH
    ),
    "product": serial(
        stax.FanOut(2), stax.parallel(serial(Dense(1), stax.Relu()), Dense(1)), stax.FanInProd()
    ),
    "frozen": serial(
        Dense(8, 1.2, 0.3, parameterization="standard"), stax.Relu(), Dense(1, trainable=False)
    ),
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_finite_differences(name: str, symmetric: bool) -> None:
    net = NETS[name]
    shape = (9, 4)
    kernel: Any = network_kernel(net, shape, Request(("nngp", "ntk", "cov1", "cov2")))[0]
    adjoint = RowAdjoints(kernel._program, net)
    x1, x2 = RNG.standard_normal((2, *shape))
    x2 = x2[:7]
    if name == "kinks":
        x1[3] = x1[4]  # equal samples
    n2 = 9 if symmetric else 7
    given = Cotangents(
        RNG.standard_normal((9, n2)),
        RNG.standard_normal((9, n2)),
        RNG.standard_normal(9),
        None if symmetric else RNG.standard_normal(7),
    )

    def value(x1: Any, x2: Any, numbers: Any = adjoint.kernels.numbers) -> float:
        bound = RowKernels(kernel._program, net, np.float64, False)
        bound.numbers = numbers
        first, second = bound.prepare(x1), None if symmetric else bound.prepare(x2)
        k, t = bound.kernels(first, second, (True, True))
        found = (k * given.nngp).sum() + (t * given.ntk).sum() + first.variances @ given.cov1
        return float(found + (0 if second is None else second.variances @ given.cov2))

    prepare = adjoint.kernels.prepare
    found = adjoint.pull(prepare(x1), None if symmetric else prepare(x2), given, True)
    d1, d2 = RNG.standard_normal(x1.shape), RNG.standard_normal(x2.shape)
    if name == "kinks":
        d1[3] = d1[4]
    assert close((found.x1 * d1).sum(), along(lambda x: value(x, x2), x1, d1))
    if not symmetric:
        assert close((found.x2 * d2).sum(), along(lambda x: value(x1, x), x2, d2))
    layers = np.array([placed is None for placed in kernel._program.activations])
    d = RNG.standard_normal(found.numbers.shape) * layers[:, None]
    d[:, 4:] = 0
    d *= adjoint.kernels.numbers != 0
    numbers = adjoint.kernels.numbers
    expected = along(lambda numbers: value(x1, x2, numbers), numbers, d)
    assert close((found.numbers * d).sum(), expected)


def test_the_sum_does_not_depend_on_threads_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    net = NETS["sum"]
    kernel: Any = network_kernel(net, (300, 4), Request(("nngp", "ntk")))[0]
    adjoint = RowAdjoints(kernel._program, net)
    x = RNG.standard_normal((300, 4))
    given = Cotangents(*RNG.standard_normal((2, 300, 300)))
    first = adjoint.kernels.prepare(x)
    found = adjoint.pull(first, None, given, True)
    monkeypatch.setattr("widelimit.engines.fused.flat.count_threads", lambda: 1)
    adjoint._chunk = 64
    other = adjoint.pull(first, None, given, True)
    np.testing.assert_allclose(found.numbers, other.numbers, 1e-10, 1e-8)
    np.testing.assert_allclose(found.x1, other.x1, 1e-10, 1e-8)
