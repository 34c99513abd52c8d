"""Pages of the documentation are run, block by block, and what they print is compared."""

import contextlib
import doctest
import io
import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
BLOCK = re.compile(r"^```(python|output)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def run_blocks(name: str, count: int | None = None) -> dict[str, Any]:
    """Runs the blocks of Python of a page in order and returns the names that they define.

    A block of `output` is what the block before prints, but for what `...` stands for.
    """
    blocks = BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
    if count is not None:
        assert sum(kind == "python" for kind, _ in blocks) == count
    names: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for kind, text in blocks:
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as caught:
                exec(compile(text, name, "exec"), names)
            printed = caught.getvalue()
        else:
            same = doctest.OutputChecker().check_output(text, printed, FLAGS)
            assert same, f"expected in {name}\n{text}got\n{printed}"
    return names
