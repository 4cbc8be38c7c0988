"""The variant that the others of its case and arm are compared with, from the name a study gives.

The name of a variant means that variant. The name of a parameterization means its first variant in
the order of the grid, since a comparison needs one; `note` says so where there are several.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def chosen(asked: str, variants: Sequence[str]) -> str:
    """The one baseline among the variants of a case and arm; the first where `asked` is not one."""
    return next(iter([*fitting(asked, variants), *variants]))


def fitting(asked: str, variants: Sequence[str]) -> list[str]:
    """The variant called `asked`, or all of the parameterization called so."""
    if asked in variants:
        return [asked]
    return [name for name in variants if name.partition(" ")[0] == asked]


def note(asked: str, variants: Sequence[str]) -> str:
    """What was chosen where the name alone does not say it, or nothing."""
    found = fitting(asked, variants)
    if not asked or len(found) == 1:
        return ""
    if not found:
        return f"The baseline {asked} is not among them: {variants[0]}, the first, takes its place."
    other = shlex.join(["--set", f'report.baseline="{found[1]}"'])
    return (
        f"The baseline {asked} fits {len(found)} variants ({', '.join(found)}): the first, "
        f"{found[0]}, is taken. {other} takes another."
    )
