"""Tables as LaTeX, with the rules of the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    "−": "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "→": r"$\to$",
    "‖": r"$\|$",
    "∫": r"$\int$",
    "√": r"$\surd$",
    "·": r"$\cdot$",
    "σ": r"$\sigma$",
    "ε": r"$\varepsilon$",
    "λ": r"$\lambda$",
    "²": "$^2$",
    "³": "$^3$",
    "⁴": "$^4$",
    "₂": "$_2$",
    "–": "--",
    "’": "'",
    "“": "``",
    "”": "''",
    "†": r"$^\dagger$",
    "‑": "-",
}
"""What stands for a letter in LaTeX's text; any other letter stands for itself."""
POWER = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)e(-?\d+)\b")
NEGATIVE = re.compile(r"(?<![\w.)])-(?=\d)")


def escape(text: str) -> str:
    """Returns text as LaTeX prints it: special letters escaped, 1.2e-5 as a power, -1 as a minus.

    What is left of other alphabets needs a document in UTF-8, as LaTeX reads since 2018.
    """
    parts, end = [], 0
    for found in POWER.finditer(text):
        parts.append(_letters(text[end : found.start()]))
        parts.append(rf"${found[1]}\times10^{{{int(found[2])}}}$")
        end = found.end()
    return "".join([*parts, _letters(text[end:])])


def _letters(text: str) -> str:
    return "".join(SPECIAL.get(letter, letter) for letter in NEGATIVE.sub("−", text))


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", label: str = ""
) -> str:
    r"""Returns a table of plain texts, which are escaped.

    The document needs `\usepackage{booktabs}`.

    Args:
        head: The names of the columns.
        rows: The cells of each row, as many as the head has.
        caption: A sentence above the table; with one, or a label, it is a float.
        label: What `\ref` calls it.
    """
    lines = [rf"\begin{{tabular}}{{@{{}}{'l' * len(head)}@{{}}}}", r"\toprule"]
    lines += [_row(head), r"\midrule", *map(_row, rows), r"\bottomrule", r"\end{tabular}"]
    if caption or label:
        above = [rf"\caption{{{escape(caption)}}}"] if caption else []
        above += [rf"\label{{{label}}}"] if label else []
        lines = [r"\begin{table}", r"\centering", *above, *lines, r"\end{table}"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, cells)) + r" \\"
