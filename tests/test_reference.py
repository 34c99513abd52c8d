"""Kernels against stored values of neural-tangents, entry by entry."""

import json
import pathlib

import numpy as np
import pytest

from widelimit import stax

STORED = np.load(pathlib.Path(__file__).parent / "data" / "reference_kernels.npz")
NAMES = sorted({key.split("/")[0] for key in STORED.files})


def test_all_stored_cases_are_run() -> None:
    assert len(NAMES) == 32


# Compilation of these takes seconds; the fused engine runs them.
LONG = {"cnn_avgpool_flatten", "cnn_circular_gap", "cnn_flatten", "cnn_gap", "myrtle5_small"}
LONG |= {"cnn_strided_gap", "no_readout_cnn", "wrn_small"}


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        pytest.param(
            name, engine, marks=[pytest.mark.slow] if name in LONG and engine != "auto" else []
        )
        for name in NAMES
        for engine in ("auto", "reference")
    ],
)
@pytest.mark.usefixtures("x64")
def test_stored_values(name: str, engine: str) -> None:
    net = eval(str(STORED[f"{name}/expr"]), {"stax": stax, "np": np})
    x2 = STORED[f"{name}/x2"] if f"{name}/x2" in STORED.files else None
    kwargs = json.loads(str(STORED[f"{name}/kwargs"])) if f"{name}/kwargs" in STORED.files else {}
    kernel = net[2](STORED[f"{name}/x1"], x2, ("nngp", "ntk"), engine=engine, **kwargs)
    for get in ("nngp", "ntk"):
        np.testing.assert_allclose(getattr(kernel, get), STORED[f"{name}/{get}"], rtol=1e-9, atol=0)
