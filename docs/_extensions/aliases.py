"""`.. aliases:: A B`: types of `widelimit.typing` with docstrings, as the source defines them."""

import ast
import itertools
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import widelimit.typing

ENTRY = """\
.. py:type:: {name}

   {docstring}

   .. code-block:: python

      {definition}

"""


def definitions() -> dict[str, tuple[str, str]]:
    """Returns the docstring and the definition of every alias."""
    body = ast.parse(Path(widelimit.typing.__file__).read_text(encoding="utf-8")).body
    # Static checkers see other definitions, in the first branch of an `if`.
    flat = [x for node in body for x in (node.orelse if isinstance(node, ast.If) else [node])]
    found = {}
    for node, after in itertools.pairwise(flat):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            assert node.value is not None
            name, value = ast.unparse(target), ast.unparse(node.value).replace("'", '"')
            found[name] = ast.literal_eval(after.value), f"{name} = {value}"
    return found


class Aliases(SphinxDirective):
    """Writes an entry for each name."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Returns the parsed entries."""
        known = definitions()
        text = "".join(
            ENTRY.format(name=name, docstring=known[name][0], definition=known[name][1])
            for name in self.arguments[0].split()
        )
        self.content = StringList(text.splitlines(), source=widelimit.typing.__file__)
        return self.parse_content_to_nodes()


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("aliases", Aliases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
