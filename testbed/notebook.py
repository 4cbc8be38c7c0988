"""What a notebook shows of an object: a table of texts as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table as HTML; every text is escaped.

    Args:
        head: the names of the columns; none where it is empty.
        rows: the cells of each row.
        caption: a line above the table.
    """
    parts = ["<table>"]
    if caption:
        parts.append(f"<caption>{html.escape(caption)}</caption>")
    if head:
        parts.append(f"<thead>{_row('th', head)}</thead>")
    parts += ["<tbody>", *(_row("td", row) for row in rows), "</tbody></table>"]
    return "".join(parts)


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
