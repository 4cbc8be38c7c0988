"""Docstrings as they are written here, to reStructuredText.

They are plain text with names in single backticks and formulas in any place, which the markup
would take for emphasis (`F*`), substitutions (`|D - x0|`) or references (`x_`). A paragraph
with indented lines that is no section such as `Args:` is a formula or a table: it stays as it is.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes|Note|Example):$")
MARKUP = re.compile(r"[\\*|]|(?<=\w)_(?!\w)")


def glued(character: str) -> bool:
    return character.isalnum() or character == "_"


def escaped(line: str) -> str:
    """Names in backticks are code; every other character stands for itself."""
    parts, end = [], 0
    for code in re.finditer(r"(`{1,2})([^`]+)\1", line):
        before, after = line[end : code.start()][-1:], line[code.end() :][:1]
        parts += [MARKUP.sub(r"\\\g<0>", line[end : code.start()]), r"\ " * glued(before)]
        parts += [f"``{code[2]}``", r"\ " * glued(after)]
        end = code.end()
    return "".join(parts) + MARKUP.sub(r"\\\g<0>", line[end:])


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    for _, group in itertools.groupby(lines, lambda line: not line.strip()):
        yield [line.rstrip() for line in group]


def rewritten(lines: list[str]) -> Iterator[str]:
    section = False
    for paragraph in paragraphs(lines):
        first, indented = paragraph[0], [line.startswith(" ") for line in paragraph]
        if first and not indented[0]:
            section = bool(SECTION.match(first))
        if section or not any(indented) or first.startswith("- "):
            yield from (line if SECTION.match(line) else escaped(line) for line in paragraph)
        else:
            yield from ("::", "", *(f"    {line}" for line in paragraph))


def process(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = list(rewritten(lines))
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")  # napoleon takes the words before a colon in the first line for a type


def signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, arguments: str, returns: str
) -> tuple[str, str] | None:
    """The default of a dataclass's field as a name that can be parsed."""
    return arguments and (arguments.replace("<factory>", "..."), returns)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
