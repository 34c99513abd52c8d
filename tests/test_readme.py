"""The code of the README runs as it stands, block after block."""

import pathlib
import re
from typing import Any

import numpy as np

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_code_blocks_run_in_order() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["mean"].shape == (8, 1)
    assert names["covariance"].shape == (8, 8)
    assert names["loss"].mean.shape == ()
    assert np.isfinite(names["gradient"].layers[0].W_std)
    assert names["tangent_kernel"].shape == (4, 4)
    assert names["gram"].shape == (60, 60)
    assert names["finite"].shape == (8, 8)
    assert float(abs(names["last"]).max()) < float(abs(names["finite"]).max())
    assert names["operator"].shape == (8, 8)
