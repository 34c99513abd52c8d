"""Circular windows against the definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engines.fused import oracle
from tests.engines.fused.test_engine import error, refusal
from widelimit import stax
from widelimit.stax import Conv, Dense, serial

GET = ("nngp", "ntk", "cov1", "cov2")


def around(window: Any, strides: Any = None, dilation: Any = None, b_std: Any = 0.3) -> Any:
    return Conv(3, window, strides, "CIRCULAR", b_std=b_std, rhs_dilation=dilation)


def residual() -> Any:
    branch = serial(stax.Relu(), around((3, 3)), stax.Relu(), around((2, 3)))
    return serial(stax.FanOut(2), stax.parallel(branch, stax.Identity()), stax.FanInSum())


NETWORKS = {
    "plain": (
        serial(around((3, 3)), stax.Relu(), around((3, 3)), stax.Relu(), stax.GlobalAvgPool()),
        (5, 4),
    ),
    "flatten": (serial(around((3, 2)), stax.Relu(), around((2, 5)), stax.Flatten()), (4, 6)),
    "strided": (
        serial(
            around((3, 3), (2, 1)), stax.Erf(), around((4, 3), (1, 3)), stax.Cos(),
            around((2, 2)), stax.GlobalSumPool(), Dense(1), stax.Relu(),
        ),
        (6, 6),
    ),
    "dilated": (
        serial(
            around((3, 2), None, (2, 3)), stax.LayerNorm(-1), stax.Gelu(), around((1, 1)),
            stax.GlobalAvgPool(), Dense(1, b_std=0.1),
        ),
        (5, 7),
    ),
    "residual": (serial(around((3, 3)), residual(), residual(), stax.GlobalAvgPool()), (6, 5)),
    "larger blocks": (serial(around((3, 3)), stax.Sin(), stax.GlobalAvgPool()), (17, 18)),
    "line": (serial(around((3,)), stax.Relu(), around((4,), (2,)), stax.GlobalAvgPool()), (8,)),
    "frozen": (
        serial(
            Conv(3, (3,), None, "CIRCULAR", trainable=False), stax.Rbf(0.3), around((3,)),
            stax.Relu(), stax.Flatten(), Dense(1),
        ),
        (6,),
    ),
}  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NETWORKS)
def test_circular_windows(name: str) -> None:
    net, shape = NETWORKS[name]
    rng = np.random.default_rng(0)
    x1, x2 = (rng.standard_normal((n, *shape, 2)) for n in (2, 3))
    assert refusal(net, x1.shape) is None
    kernel = net.kernel_fn(x1, x2, GET, engine="fused")
    true = oracle.kernels(net, x1, x2)
    for field in GET:
        assert error(getattr(kernel, field), getattr(true, field)) < 1e-12, field
    own = net.kernel_fn(x1, None, ("nngp", "ntk"), engine="fused")
    true = oracle.kernels(net, x1, None)
    assert error(own.nngp, true.nngp) < 1e-12
    assert error(own.ntk, true.ntk) < 1e-12
    np.testing.assert_array_equal(own.nngp, own.nngp.T)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((around((3, 3)), Conv(3, (3, 3), padding="SAME"), stax.Relu()), "other windows"),
        ((around((3, 3)), stax.AvgPool((2, 2))), "a pool does not divide a circular image"),
        ((around((3, 3), (2, 2)),), "other windows"),
        ((around((3, 3), None, (4, 4)),), "other windows"),
    ],
)
def test_what_does_not_fit_is_refused(layers: Any, reason: str) -> None:
    net = serial(*layers, stax.GlobalAvgPool())
    why = refusal(net, (1, 5, 5, 2))
    assert why is not None
    assert reason in why
