"""Formulas as MathML, made when the site is built: they need no script, font or network."""

from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

PRIME = "\N{PRIME}"
NAMESPACE = "http://www.w3.org/1998/Math/MathML"

ElementTree.register_namespace("", NAMESPACE)


def mathml(formula: str, display: str) -> str:
    """Returns a formula of LaTeX as MathML."""
    root = ElementTree.fromstring(convert(formula, display=display))
    for element in list(root.iter()):
        lower_prime(element)
    return ElementTree.tostring(root, encoding="unicode")


def lower_prime(element: ElementTree.Element) -> None:
    """Puts a prime beside what it belongs to: as a superscript it would be raised twice."""
    parts = list(element)
    kind = element.tag.rpartition("}")[2]
    if kind not in ("msup", "msubsup") or parts[-1].text != PRIME:
        return
    element.clear()
    element.tag = f"{{{NAMESPACE}}}mrow"
    if kind == "msubsup":
        below = ElementTree.SubElement(element, f"{{{NAMESPACE}}}msub")
        below.extend(parts[:2])
    else:
        element.append(parts[0])
    prime = ElementTree.SubElement(element, f"{{{NAMESPACE}}}mo", {"lspace": "0", "rspace": "0"})
    prime.text = PRIME


def inline(self: HTML5Translator, node: nodes.Element) -> None:
    """Writes a formula in a line of text."""
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def displayed(self: HTML5Translator, node: nodes.Element) -> None:
    """Writes a formula of its own."""
    self.body.append(f'<div class="formula">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the renderer."""
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
