"""Signatures and docstrings of the reference, as they are written in the source.

Annotations are shown by the names in `widelimit.typing` and with the shapes of jaxtyping, instead
of the long unions that they stand for. Docstrings are plain text with code in backticks.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.inspect import stringify_signature
from sphinx.util.nodes import make_refnode

import widelimit

# Where a name without a module is looked for.
ROOMS = ("", "stax.", "predict.", "typing.", "diagnostics.", "models.", "extend.")

# Code that is a name and no argument: it has a capital, an underscore or a dot.
NAME = r"(?=.*[A-Z_.])[A-Za-z][\w.]*\w"

# What reStructuredText takes for markup; not the stars of `*args:` in a list of arguments.
MARKUP = re.compile(r"^( *\*{1,2})(?=\w+:)|[*|]|_(?!\w)", re.MULTILINE)


def function_of(thing: object) -> Callable | None:
    """Returns the function that holds the annotations of a function or a class."""
    if inspect.isclass(thing):
        own = vars(thing).get("__init__")
        return (
            own if inspect.isfunction(own) and "__dataclass_fields__" not in vars(thing) else None
        )
    return inspect.unwrap(thing) if callable(thing) else None


def annotations_of(thing: object) -> dict[str, str]:
    """Returns the annotations of arguments, and of `return`, as text."""
    function = function_of(thing)
    if function is None:
        return fields_of(thing)
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return {}
    return dict(written(node)) if isinstance(node, ast.FunctionDef) else {}


def fields_of(thing: object) -> dict[str, str]:
    """Returns the annotations of the fields of a class as text, inherited ones too."""
    found = {}
    for base in reversed(getattr(thing, "__mro__", ())):
        for name, annotation in vars(base).get("__annotations__", {}).items():
            text = getattr(annotation, "__forward_arg__", annotation)
            if isinstance(text, str):
                found[name] = text
    return found


def written(node: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Yields names and annotations of a function in the source."""
    a = node.args
    for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg):
        if arg is not None and arg.annotation is not None:
            yield arg.arg, ast.unparse(arg.annotation)
    if node.returns is not None:
        yield "return", ast.unparse(node.returns)


def readable(annotation: str) -> str:
    """Returns an annotation without modules and with shapes in plain brackets."""
    text = annotation.strip("'\"")
    text = re.sub(r"\b(?:moments|np|os|jax|nt)\.(?=[A-Z]\w|ndarray|number|bool_)", "", text)
    return text.replace("'", '"')


def signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, args: str | None, returned: str
) -> tuple[str, str | None] | None:
    """Returns the signature with the annotations of the source."""
    texts = annotations_of(thing)
    if not texts or args is None:
        return None
    try:
        signed = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    parameters = [
        p.replace(annotation=readable(texts[p.name]) if p.name in texts else p.empty)
        for p in signed.parameters.values()
        if not (what == "method" and p.name == "self")
    ]
    text = stringify_signature(
        signed.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    )
    returns = texts.get("return")
    shown = None if what == "class" or returns in (None, "None") else readable(returns)
    return text, shown


def plain_text(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Escapes what reStructuredText would take for markup, outside of code and doctests."""
    text, chunks = "\n".join(lines), []
    for chunk in re.split(r"(^ *>>>.*(?:\n *\S.*)*)", text, flags=re.MULTILINE):
        chunks.append(chunk if chunk.lstrip().startswith(">>>") else escaped(chunk))
    lines[:] = "".join(chunks).split("\n")


def escaped(text: str) -> str:
    """Returns text with escaped markup; code that may name something public stays a link."""
    parts = text.split("`")
    parts[::2] = [MARKUP.sub(lambda m: m[0] if m[1] else rf"\{m[0]}", part) for part in parts[::2]]
    parts[1::2] = [f"`{p}`" if re.fullmatch(NAME, p) else f"``{p}``" for p in parts[1::2]]
    # A letter right behind code must be set apart: `Kernel`s.
    parts[2::2] = [rf"\ {part}" if part[:1].isalnum() else part for part in parts[2::2]]
    return "".join(parts)


def typed(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Adds the types of the source to the list of arguments."""
    texts = fields_of(thing) | annotations_of(thing)
    for i in range(len(lines) - 1, -1, -1):
        match = re.match(r":(param|ivar) ([\\*\w]+):", lines[i])
        name = match and match[2].replace("\\", "").lstrip("*")
        if match and name in texts:
            field = "type" if match[1] == "param" else "vartype"
            lines.insert(i, f":{field} {match[2]}: {readable(texts[name])}".replace("*", r"\*"))


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """Returns the link of a name that is written short: `wl.gram`, `Dense`, `Inputs`."""
    if node.get("refdomain") != "py":
        return None
    target = re.sub(r"^(wl|nt|widelimit)\.", "", node["reftarget"].split("(")[0])
    objects = env.domains.python_domain.objects
    for room in ROOMS:
        entry = objects.get(f"{widelimit.__name__}.{room}{target}")
        if entry is not None:
            return make_refnode(
                app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, target
            )
    return None


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the hooks, before and after napoleon's."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", plain_text, priority=400)
    app.connect("autodoc-process-docstring", typed, priority=600)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
