"""What a notebook shows of an object: a table of texts as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STYLES = {
    "good": "color:#00875a;font-weight:600",
    "bad": "color:#d3314a;font-weight:600",
    "best": "font-weight:700",
    "quiet": "opacity:.75",
}
"""What a cell's style looks like, on a light page and on a dark one."""


@dataclass(frozen=True)
class Cell:
    """A cell's text and its style: "good", "bad", "best", "quiet" or none."""

    text: str
    style: str = ""


def table(head: Sequence[str], rows: Iterable[Sequence[str | Cell]], caption: str = "") -> str:
    """A table as HTML; every text is escaped.

    Args:
        head: the names of the columns; none where it is empty.
        rows: the cells of each row; where they are fewer than the columns, the last spans the rest.
        caption: a line above the table.
    """
    parts = ["<table>"]
    if caption:
        parts.append(f"<caption>{html.escape(caption)}</caption>")
    if head:
        parts.append(f"<thead>{_row('th', head, len(head))}</thead>")
    body = (_row("td", row, len(head)) for row in rows)
    parts += ["<tbody>", *body, "</tbody></table>"]
    return "".join(parts)


def _row(tag: str, cells: Sequence[str | Cell], columns: int) -> str:
    made = [one if isinstance(one, Cell) else Cell(one) for one in cells]
    spans = [1] * (len(made) - 1) + [max(1, columns - len(made) + 1)]
    return f"<tr>{''.join(_cell(tag, *pair) for pair in zip(made, spans, strict=True))}</tr>"


def _cell(tag: str, cell: Cell, span: int) -> str:
    style = ";".join(filter(None, ["text-align:left", STYLES.get(cell.style)]))
    more = f' colspan="{span}"' if span > 1 else ""
    return f'<{tag} style="{style}"{more}>{html.escape(cell.text)}</{tag}>'
