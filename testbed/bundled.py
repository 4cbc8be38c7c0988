"""Where what is shipped with testbed lies, and where testbed keeps what it can make anew."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def bundled(folder: str) -> Path:
    """The shipped `plugins` or `studies`: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "_bundled" / folder
    return inside if inside.is_dir() else package.parent / folder


def cache() -> Path:
    """The folder `testbed` in the user's cache, where the platform has it."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "testbed"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "testbed"
