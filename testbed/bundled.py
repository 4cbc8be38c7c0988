"""Where the plugins and the studies that are shipped with testbed lie."""

from __future__ import annotations

from pathlib import Path


def bundled(folder: str) -> Path:
    """The shipped `plugins` or `studies`: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "_bundled" / folder
    return inside if inside.is_dir() else package.parent / folder
