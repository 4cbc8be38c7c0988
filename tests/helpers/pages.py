"""The pages of docs/: their text, their blocks of code and their tables."""

import re

from helpers.paths import DOCS

PAGES = {file.stem: file for file in sorted(DOCS.rglob("*.md")) if "api" not in file.parts}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def text(page: str) -> str:
    return PAGES[page].read_text()


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code of a page in one language; "" is of those that name none."""
    return [body for found, body in BLOCK.findall(text(page)) if found == language]


def settings(page: str) -> list[str]:
    """What the page's studies say under [base], where a block begins with it."""
    return [
        body.removeprefix("[base]\n")
        for body in blocks(page, "toml")
        if body.startswith("[base]\n")
    ]


def rows(page: str) -> dict[str, str]:
    """The second cells of the page's tables by the name in the first."""
    found = re.finditer(r"^\| `(\w+)` \| (.*?) \|", text(page), re.MULTILINE)
    return {row[1]: row[2] for row in found}
