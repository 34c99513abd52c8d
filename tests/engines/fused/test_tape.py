"""Joins of branches on the fused engine against the reference engine."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from tests.engines.fused.test_engine import error, refusal
from widelimit import stax
from widelimit.stax import Conv, Dense, serial

BOTH = ("nngp", "ntk")


def conv(width: int = 3, *options: Any) -> Any:
    return Conv(width, (3, 3), *options, padding="SAME", W_std=1.3, b_std=0.2)


def joined(join: Any, *branches: Any) -> Any:
    return serial(stax.FanOut(len(branches)), stax.parallel(*branches), join)


NETS = {
    "product": serial(
        conv(),
        joined(stax.FanInProd(), serial(conv(), stax.Relu()), serial(conv(), stax.Erf())),
        conv(),
        stax.Relu(),
        stax.GlobalAvgPool(),
    ),
    "product of three": serial(
        joined(stax.FanInProd(), conv(2), stax.Identity(), serial(conv(2), stax.Sign())),
        conv(3, (2, 2)),
        stax.Relu(),
        stax.AvgPool((2, 2)),
        stax.Flatten(),
    ),
    "concatenation": serial(
        conv(),
        joined(stax.FanInConcat(-1), serial(conv(2), stax.Relu()), stax.Relu(), conv(5)),
        Dense(4),
        stax.Relu(),
        stax.GlobalAvgPool(),
    ),
    "strides": serial(
        conv(),
        joined(stax.FanInConcat(3), conv(2, (2, 2)), serial(stax.Relu(), conv(1, (2, 2)))),
        stax.RMSNorm(),
        conv(),
        stax.Relu(),
        stax.Flatten(),
    ),
    "repeated": serial(
        conv(),
        stax.repeat(joined(stax.FanInSum(), stax.Identity(), serial(stax.Relu(), conv())), 3),
        stax.Relu(),
        stax.GlobalAvgPool(),
    ),
    "one branch": serial(
        conv(), joined(stax.FanInProd(), stax.Identity()), stax.Relu(), stax.Flatten()
    ),
}


@pytest.mark.optimised
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-12), (False, 5e-6)])
def test_joins(name: str, x64: bool, tolerance: float) -> None:
    net, images = NETS[name], np.random.default_rng(0).standard_normal((5, 5, 6, 2))
    with jax.enable_x64(x64):
        x1, x2 = images[:3].astype(np.float32), images[3:].astype(np.float32)
        for other in (None, x2):
            fused = net.kernel_fn(x1, other, BOTH, engine="fused")
            right = net.kernel_fn(x1, other, BOTH, engine="reference")
            for a, b in zip(fused, right, strict=True):
                assert error(a, b) < tolerance
        alone = net.kernel_fn(x1[1:2], x2[:1], "ntk", engine="fused")
        assert alone[0, 0] == net.kernel_fn(x1, x2, "ntk", engine="fused")[1, 0]


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (serial(conv(), joined(stax.FanInProd(), stax.Relu(), stax.Erf())), "correlated"),
        (joined(stax.FanInConcat(1), conv(), conv()), "batch or space"),
        (
            joined(stax.FanInConcat(-1), serial(conv(3, (2, 2)), conv(3)), Conv(3, (1, 1), (2, 2))),
            None,
        ),
    ],
)
def test_what_does_not_join(net: Any, why: str | None) -> None:
    found = refusal(serial(net, stax.Flatten()), (1, 5, 6, 2))
    assert (found is None) if why is None else (found is not None and why in found)
