"""Cotangents of networks of images, against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engines.fused.adjoints.differences import along, close
from widelimit import stax
from widelimit.engines.fused.adjoints.cotangents import Cotangents
from widelimit.engines.fused.adjoints.images import ImageAdjoints
from widelimit.engines.fused.bridge import network_kernel
from widelimit.engines.fused.engine import ImageKernels, pair_order
from widelimit.engines.request import Request
from widelimit.stax import Conv, serial

RNG = np.random.default_rng(0)
SHAPE = (2, 7, 6)  # channels, rows, columns


def conv(window: Any = (3, 3), strides: Any = None, padding: Any = "SAME", **options: Any) -> Any:
    return Conv(1, window, strides, padding, W_std=1.2, b_std=0.3, **options)


BRANCH = serial(stax.Relu(), conv())
NETS = {
    "same": serial(conv(), stax.Relu(), conv(), stax.Erf(), stax.GlobalAvgPool()),
    "valid": serial(conv(padding="VALID"), stax.Erf(), conv((2, 3), None, "VALID"), stax.Flatten()),
    "strides": serial(
        conv(), stax.Relu(), conv((3, 3), (2, 2)), stax.Gelu(), conv((1, 3), (1, 2), "VALID"),
        stax.Relu(), stax.GlobalSumPool(),
    ),
    "padded": serial(
        conv(padding=((2, 1), (0, 2)), rhs_dilation=(2, 1)), stax.Relu(), stax.Flatten()
    ),
    "pools": serial(
        conv(), stax.Relu(), stax.AvgPool((2, 2), (2, 2)), conv(), stax.Sin(),
        stax.SumPool((2, 2), (1, 1), "SAME"), conv(), stax.Relu(), stax.GlobalAvgPool(),
    ),
    "residual": serial(
        conv(), stax.FanOut(2), stax.parallel(BRANCH, stax.Identity()), stax.FanInSum(),
        stax.LayerNorm(-1), stax.Relu(), conv((1, 1)), stax.Relu(), stax.Flatten(),
    ),
    "product": serial(
        conv(), stax.FanOut(2), stax.parallel(BRANCH, serial(stax.Erf(), conv())),
        stax.FanInProd(), stax.GlobalAvgPool(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_finite_differences(name: str, symmetric: bool) -> None:
    net = NETS[name]
    kernel: Any = network_kernel(net, (3, 7, 6, 2), Request(("nngp", "ntk")))[0]
    adjoint = ImageAdjoints(kernel._program, net)
    x1, x2 = RNG.standard_normal((2, 3, *SHAPE))
    x2 = x2[:2]
    x1[1] = x1[0]  # equal images
    n2 = 3 if symmetric else 2
    given = Cotangents(*RNG.standard_normal((2, 3, n2)))
    pairs = pair_order(3, n2, symmetric)

    def value(x1: Any, x2: Any, numbers: Any = None) -> float:
        bound = ImageKernels(kernel._program, net, np.float64, False)
        if numbers is not None:
            ends = np.cumsum([len(stage.numbers) for stage in bound.cross])[:-1]
            for side in (bound.cross, bound.own):
                for stage, rows in zip(side, np.split(numbers, ends), strict=False):
                    stage.numbers[:] = rows
        first = bound.prepare(x1)
        second = first if symmetric else bound.prepare(x2)
        out = np.zeros((2, 3, n2))
        out[:, pairs[:, 0], pairs[:, 1]] = bound.kernels(first, second, pairs).T
        if symmetric:
            out[:, pairs[:, 1], pairs[:, 0]] = out[:, pairs[:, 0], pairs[:, 1]]
        return float((out[0] * given.nngp).sum() + (out[1] * given.ntk).sum())

    prepare = adjoint.kernels.prepare
    found = adjoint.pull(prepare(x1), None if symmetric else prepare(x2), given, True)
    d1, d2 = RNG.standard_normal(x1.shape), RNG.standard_normal(x2.shape)
    d1[1] = d1[0]
    assert close((found.x1 * d1).sum(), along(lambda x: value(x, x2), x1, d1))
    if not symmetric:
        assert close((found.x2 * d2).sum(), along(lambda x: value(x1, x), x2, d2))
    numbers = np.concatenate([stage.numbers for stage in adjoint.kernels.cross])
    placed = [p for stage in kernel._program.stages for p in stage.activations]
    d = RNG.standard_normal(numbers.shape) * np.array([p is None for p in placed])[:, None]
    d *= numbers != 0
    expected = along(lambda numbers: value(x1, x2, numbers), numbers, d)
    assert close((found.numbers * d).sum(), expected)


def test_one_spatial_axis_and_several_blocks() -> None:
    net = serial(
        Conv(1, (5,), padding="SAME", W_std=1.2), stax.Relu(), Conv(1, (3,), (2,)), stax.Relu(),
        stax.GlobalAvgPool(),
    )  # fmt: skip
    kernel: Any = network_kernel(net, (2, 90, 3), Request(("nngp", "ntk")))[0]
    adjoint = ImageAdjoints(kernel._program, net)
    assert adjoint.kernels.cross[0].geometry.blocks > 2
    x = RNG.standard_normal((2, 3, 1, 90))
    given = Cotangents(*RNG.standard_normal((2, 2, 2)))
    found = adjoint.pull(adjoint.kernels.prepare(x), None, given, True)
    pairs, d = pair_order(2, 2, symmetric=False), RNG.standard_normal(x.shape)

    def value(x: Any) -> float:
        first = adjoint.kernels.prepare(x)
        k, t = adjoint.kernels.kernels(first, first, pairs).T
        i, j = pairs.T
        return float((k * given.nngp[i, j]).sum() + (t * given.ntk[i, j]).sum())

    assert close((found.x1 * d).sum(), along(value, x, d))
