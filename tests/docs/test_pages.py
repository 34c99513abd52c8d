"""The code of every page of docs/ runs as it stands, and prints what the page says."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tests.pages import ROOT, run_blocks

DOCS = ROOT / "docs"
# Run by tests of their own, which look at what the code makes.
ELSEWHERE = {"extending.md", "finite_networks.md", "guide_overview.md"}
PAGES = [
    str(path.relative_to(ROOT))
    for path in sorted(DOCS.rglob("*.md"))
    if "```python" in path.read_text(encoding="utf-8")
    and path.name not in ELSEWHERE
    and "_build" not in path.parts
]


@pytest.fixture
def as_users_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ranks broadcast, files go to a folder of their own, and a page may turn x64 on."""
    x64 = jax.config.read("jax_enable_x64")
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_enable_x64", x64)


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_runs(page: str) -> None:
    run_blocks(page)


def test_a_wrong_output_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```output\n3\n```\n")
    with pytest.raises(AssertionError, match="expected in"):
        run_blocks(str(page))
