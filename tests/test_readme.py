"""The code of the README and of pages of the documentation runs; claims are checked."""

import re

import jax
import numpy as np
import pytest

from tests.pages import ROOT, run_blocks

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_code_of_the_readme_runs() -> None:
    pytest.importorskip("sklearn")
    with jax.numpy_rank_promotion("allow"):  # written as people write
        names = run_blocks("README.md", 4)
    assert names["ensemble"].mean(names["x_test"]).shape == (3, 1)
    assert names["limit"].shape == names["finite"].shape == (8, 8)
    assert names["gram"].shape == (20, 20)
    assert "GlobalAvgPool" in str(names["plan"])
    assert names["prediction"].shape == names["error"].shape == (221,)


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 120
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 10
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing, f"expected files of the project behind links of the README, got {missing}"
    pictures = [link for link in links if link.endswith((".png", ".svg"))]
    assert pictures
    assert all((ROOT / link).stat().st_size < 150_000 for link in pictures)


def test_times_in_the_readme_are_those_of_the_benchmarks() -> None:
    measured = {}
    for line in (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[2:4] == ["NTK", "float32"]:
            key = cells[0].replace("**", ""), cells[1]
            measured.setdefault(key, (cells[5].split(" (")[0], cells[7], cells[8]))
    rows = re.findall(
        r"^\| (\D.*?) \| (.*?) \| (.*? ms) \| (.*?) \| (.*?) \|$", README, re.MULTILINE
    )
    assert len(rows) == 6
    for network, inputs, *numbers in rows:
        assert tuple(numbers) == measured[network, inputs], network


def test_code_of_the_overview_runs() -> None:
    names = run_blocks("docs/guide_overview.md", 7)
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
