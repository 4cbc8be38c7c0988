"""The report's table of contents, and the numbers of its figures."""

from __future__ import annotations

import re

SECTION = re.compile(r"<h2>(.*?)</h2>")
PLACE = '<nav id="contents"></nav>'
"""Where the table of contents goes."""


def numbered(page: str) -> str:
    """Returns the page with a link to every section at `PLACE`, and `Figure 1.` before captions.

    Args:
        page: HTML in which each section begins with a bare `<h2>`, and each caption of a figure
            with a title in bold.
    """
    titles = SECTION.findall(page)
    links = (f'<li><a href="#{_anchor(title)}">{title}</a></li>' for title in titles)
    page = page.replace(PLACE, f'<nav id="contents"><ol>{"".join(links)}</ol></nav>', 1)
    page = SECTION.sub(lambda found: f'<h2 id="{_anchor(found[1])}">{found[1]}</h2>', page)
    first, *others = page.split("<figcaption><b>")
    captions = (f"<figcaption><b>Figure {n}. {text}" for n, text in enumerate(others, start=1))
    return "".join([first, *captions])


def _anchor(title: str) -> str:
    """The name of a section in a link: lower-case words with hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
