"""Formulas as MathML, which browsers lay out themselves: no script and no font is loaded."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display(translator: HTML5Translator, node: nodes.math_block) -> None:
    attributes = {"CLASS": "formula"}
    if node["number"]:
        attributes["ids"] = node["ids"]
    translator.body.append(translator.starttag(node, "div", **attributes))
    for part in node.astext().split("\n\n"):
        translator.body.append(convert(part.strip(), display="block"))
    translator.body.append("</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
