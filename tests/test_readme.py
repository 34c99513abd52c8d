"""The code of the README, and of a page of the documentation, runs as it stands."""

import jax
import numpy as np
import pytest

from tests.pages import run_blocks


def test_code_of_the_readme_runs() -> None:
    names = run_blocks("README.md", 7)
    assert names["mean"].shape == (8, 1)
    assert names["covariance"].shape == (8, 8)
    assert names["loss"].mean.shape == ()
    assert np.isfinite(names["gradient"].layers[0].W_std)
    assert names["tangent_kernel"].shape == (4, 4)
    assert names["gram"].shape == (60, 60)
    assert names["finite"].shape == (8, 8)
    assert float(abs(names["last"]).max()) < float(abs(names["finite"]).max())
    assert names["operator"].shape == (8, 8)


@pytest.mark.slow
def test_code_about_finite_networks_runs() -> None:
    with jax.numpy_rank_promotion("allow"):  # written as people write
        names = run_blocks("docs/finite_networks.md", 7)
    assert names["kernel"].shape == (8, 4)
    assert names["per_output"].shape == (8, 8, 2, 2)
    assert names["mean"].shape == (8, 8)
    assert names["fx_test"].shape == (4, 2)
    losses = [
        float(names["cross_entropy"](s.fx_train, names["y"]))
        for s in (names["start"], names["half"], names["state"])
    ]
    assert losses[0] > losses[1] > losses[2]
    assert names["report"].kernel_drift[0] == 0.0
