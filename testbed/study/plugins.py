"""The plugins that a study file names: `plugins = ["mine.py", "package.module", "no:NAME"]`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from testbed import plugin_files

KEY = "plugins"
"""The key; it stands above every section of the file."""


def take(path: Path, tables: dict[str, Any], problems: list[str]) -> dict[str, str]:
    """Takes the plugins out of a study file's tables.

    Args:
        path: the study file; a plugin's path is relative to its folder.
        tables: what the file says; changed in place.
        problems: a line is added for each mistake.

    Returns:
        The plugins as words of `-p`, with absolute paths, and where each of them stands.
    """
    for section, table in tables.items():
        last = table[-1] if isinstance(table, list) and table else table
        if section != KEY and isinstance(last, dict) and KEY in last:
            problems.append(
                f"{path}: {section}.{KEY} = {last.pop(KEY)!r}: expected {KEY} at the top of the "
                "file, above every section."
            )
    words = tables.pop(KEY, [])
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        problems.append(
            f"{path}: {KEY} = {words!r} must be a list of files, modules and no:NAME, for example "
            '["mine.py"].'
        )
        return {}
    places = {word: f"{path}: {KEY} = {word!r}" for word in words}
    for word, place in places.items():
        file = path.parent / f"{word}.py"
        if word.isidentifier() and file.is_file() and importlib.util.find_spec(word) is None:
            problems.append(f"{place}: there is no such module. Did you mean {file.name!r}?")
    return {plugin_files.absolute(word, path.parent): place for word, place in places.items()}
