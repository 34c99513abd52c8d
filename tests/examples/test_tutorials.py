"""Every tutorial runs by itself, as the gallery of the site runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "tutorials"
QUICK = {"plot_03_evidence.py"}
TUTORIALS = [
    pytest.param(path, marks=() if path.name in QUICK else pytest.mark.slow, id=path.stem)
    for path in sorted(FOLDER.glob("plot_*.py"))
]

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")


@pytest.mark.parametrize("path", TUTORIALS)
def test_tutorial(path: Path, tmp_path: Path) -> None:
    if "widelimit.scale" in path.read_text(encoding="utf-8"):
        pytest.importorskip("zarr")
    environment = {**os.environ, "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-W", "error", path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout


def test_tutorials_have_what_the_gallery_reads() -> None:
    assert (FOLDER / "GALLERY_HEADER.rst").is_file()
    assert len(TUTORIALS) >= 7
    for path in sorted(FOLDER.glob("plot_*.py")):
        text = path.read_text(encoding="utf-8")
        title, line = text.lstrip("r").removeprefix('"""\n').splitlines()[:2]
        assert len(title) == len(line), path.name
        assert set(line) == {"="}, path.name
        assert text.count("# %%\n") >= 5, path.name
        assert "wl.plot." in text, path.name
