"""Which networks the fused engine runs, and what it says of the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cases import CASES, SPATIAL
from widelimit import choose_engine, stax
from widelimit.engines.fused.activations.base import RefusedError
from widelimit.engines.fused.lowering import lower
from widelimit.engines.fused.stages import SpatialProgram
from widelimit.engines.plan import input_axes, input_signal
from widelimit.stax import Conv, Dense, serial

# The networks of the zoo that do not run, and what is said of them; docs/engines.md lists them.
REFUSED = {
    "Elementwise(fn=<lambda>, nngp_fn=<lambda>)": "formulas of its own",
    "dilated_padded": "offsets differ",
    "transposed": "ConvTranspose",
    "transposed_circular": "ConvTranspose",
    "local": "ConvLocal",
    "other_axes": "permutes",
    "three_axes_standard": "3 spatial axes",
    "resized_indexed_contracted": "ImageResize",
    "normalised_concatenated": "offsets differ",
    "attention": "GlobalSelfAttention",
}
SHAPE = (1, 6, 6, 2)


def program(*layers: Any, shape: Any = SHAPE, tangent: bool = True) -> SpatialProgram:
    net = serial(*layers)
    return lower(net, input_signal(shape, shape, input_axes(net, shape, (None, None))), tangent)


def test_which_networks_of_the_zoo_run() -> None:
    found = {}
    for case in CASES + SPATIAL:
        choice = choose_engine(case.net, (1, *case.shape))
        if choice.name != "fused":
            found[case.name] = choice.reason
    assert found.keys() == REFUSED.keys()
    for name, why in REFUSED.items():
        assert why in found[name]


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        ([Conv(3, (3, 3))], "spatial axes"),
        ([Conv(3, (3, 3)), stax.Relu(), stax.Relu(), stax.Flatten()], "Gaussian"),
        ([stax.LayerNorm((1, 3)), stax.Flatten()], "LayerNorm"),
        ([Conv(3, (3, 3)), stax.LayerNorm((1, 3)), stax.Flatten()], "some of the axes"),
        ([stax.ConvTranspose(3, (3, 3)), stax.Flatten()], "ConvTranspose"),
        ([Dense(3), stax.Dropout(0.5), stax.Flatten()], "Dropout"),
        ([Conv(3, (3, 3)), stax.Relu(), stax.FanOut(2)], "several outputs"),
        (
            [
                stax.FanOut(2),
                stax.parallel(Conv(3, (3, 3)), serial(Conv(3, (3, 3)), stax.Relu())),
                stax.FanInSum(),
                stax.Flatten(),
            ],
            "Gaussian",
        ),
        (
            [
                Conv(3, (3, 3)),
                stax.FanOut(2),
                stax.parallel(stax.Identity(), stax.Identity()),
                stax.FanInSum(),
                stax.Flatten(),
            ],
            "correlated",
        ),
        (
            [
                Conv(3, (3, 3)),
                stax.FanOut(2),
                stax.parallel(serial(stax.AvgPool((2, 2)), Conv(3, (1, 1))), Conv(3, (2, 2))),
                stax.FanInSum(),
                stax.Flatten(),
            ],
            "AvgPool",
        ),
    ],
)
def test_refusals(layers: list[Any], why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        program(*layers)


def test_a_user_is_told_why() -> None:
    net = serial(stax.ConvTranspose(3, (2, 2)), stax.Relu(), stax.Flatten())
    with pytest.raises(ValueError, match="the fused engine computes, but ConvTranspose"):
        net.kernel_fn(np.ones((1, 3, 3, 1)), None, "nngp", engine="fused")


def test_pools_end_stages_and_layers_behind_stay() -> None:
    dense = Dense(3)
    found = program(
        Conv(3, (3, 3), padding="SAME"),
        serial(stax.Relu(), stax.AvgPool((2, 2), (2, 2))),
        Conv(3, (3, 3), padding="SAME"),
        stax.GlobalAvgPool(),
        dense,
        stax.Relu(),
    )
    assert len(found.stages) == 2
    assert found.behind == ((4,), (5,))
    assert found.tangent
    assert found.signal_out.shape1 == (1, 3)


def test_without_trainable_layers_there_is_no_tangent_kernel() -> None:
    layers = [Conv(3, (3, 3), trainable=False), stax.Relu(), stax.Flatten()]
    assert not program(*layers).tangent
    net = serial(*layers)
    kernel = net.kernel_fn(np.ones(SHAPE, np.float32), None, None, engine="fused")
    reference = net.kernel_fn(np.ones(SHAPE, np.float32), None, None, engine="reference")
    np.testing.assert_array_equal(kernel.ntk, reference.ntk)


def test_only_the_offsets_that_are_needed() -> None:
    found = program(Conv(3, (3, 3), padding="SAME"), stax.Relu(), stax.Flatten())
    assert found.stages[0].cross_offsets == ((0,), (0,))
    strided = program(Conv(3, (3, 3), (2, 2), "SAME"), stax.Relu(), stax.GlobalAvgPool())
    assert strided.stages[0].cross_offsets == ((-4, -2, 0, 2, 4),) * 2
