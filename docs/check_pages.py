"""Checks built pages: every link and anchor within the site leads somewhere, and no page loads a
script, a style, a font or an image from another server.

    python docs/check_pages.py docs/_build/html
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
STYLES = {
    "stylesheet",
    "preload",
    "prefetch",
    "icon",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
}
ELSEWHERE = re.compile(r"^(https?:)?//")


class Page(HTMLParser):
    """The links, anchors and loaded files of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])
        if tag in LOADED and found.get(LOADED[tag]):
            self.loaded.add(found[LOADED[tag]])
        if tag == "link" and STYLES & set(found.get("rel", "").split()):
            self.loaded.add(found.get("href", ""))


def problems(root: Path) -> list[str]:
    """What is wrong with the site in `root`, a line each."""
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in sorted(root.rglob("*.html"))}
    found = [] if pages else [f"{root} has no pages"]
    for file, page in pages.items():
        name = file.relative_to(root)
        for address in sorted(page.loaded | page.links):
            if ELSEWHERE.match(address):
                if address in page.loaded:
                    found.append(f"{name} loads {address}")
                continue
            path, anchor = urldefrag(address)
            if re.match(r"^(mailto|data|javascript):", path):
                continue
            target = (file.parent / unquote(path.partition("?")[0])).resolve() if path else file
            if not target.is_file():
                found.append(f"{name} links to {address}, which does not exist")
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                found.append(f"{name} links to {address}, which has no such anchor")
    for style in root.rglob("*.css"):
        for address in re.findall(r"""(?:url\(|@import )\s*["']?([^"')\s]+)""", style.read_text()):
            if ELSEWHERE.match(address):
                found.append(f"{style.relative_to(root)} loads {address}")
    return found


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]).resolve())
    print(
        "\n".join(found)
        or "Every link within the pages holds, and nothing is loaded from elsewhere."
    )
    raise SystemExit(bool(found))
