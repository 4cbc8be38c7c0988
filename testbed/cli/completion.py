"""What a shell completes: names that are found in files, so that no key waits for torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from testbed.bundled import bundled

MADE = re.compile(r"testbed\.(\w+)\(\s*(?:name=)?[\"'](\w+)[\"']")
"""A component in a plugin file: its class and its name."""
EXPLAINED = ("Parameterization", "Weighting", "Loss", "Density", "Recipe")


def study_files(incomplete: str) -> list[str]:
    """The bundled studies, and the TOML files and folders that begin so."""
    names = (file.stem for file in bundled("studies").glob("*.toml"))
    return _beginning(incomplete, names) + _files(incomplete, ".toml")


def study_folders(incomplete: str) -> list[str]:
    """The folders of studies below ./runs."""
    return _beginning(incomplete, (str(at.parent) for at in Path("runs").glob("*/trials")))


def trials(incomplete: str) -> list[str]:
    """The ids of the trials below ./runs."""
    return _beginning(incomplete, (at.name for at in Path("runs").glob("*/trials/*")))


def axes(incomplete: str) -> list[str]:
    """The axes that `testbed new` has a template for."""
    files = (Path(__file__).parents[1] / "templates").glob("[a-z]*.py")
    return _beginning(incomplete, (file.stem for file in files))


def parameterizations(incomplete: str) -> list[str]:
    """The parameterizations of the bundled plugins and of those in ./plugins."""
    return _beginning(incomplete, _components("Parameterization"))


def explained(incomplete: str) -> list[str]:
    """The components that have formulas, and plugin files."""
    return _beginning(incomplete, _components(*EXPLAINED)) + _files(incomplete, ".py")


def _components(*classes: str) -> set[str]:
    """The names of the components of these classes in plugin files."""
    folders = {bundled("plugins").resolve(), Path("plugins").resolve()}
    texts = [
        file.read_text(encoding="utf-8", errors="replace")
        for folder in folders
        for file in folder.glob("*.py")
    ]
    return {name for text in texts for kind, name in MADE.findall(text) if kind in classes}


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    return sorted(word for word in set(words) if word.startswith(incomplete))


def _files(incomplete: str, suffix: str) -> list[str]:
    """The files of a suffix and the folders whose path begins so."""
    folder = incomplete[: incomplete.rfind("/") + 1]
    found = [path for path in Path(folder).iterdir()] if Path(folder).is_dir() else []
    words = [
        f"{folder}{path.name}{'/' if path.is_dir() else ''}"
        for path in found
        if path.suffix == suffix or (path.is_dir() and not path.name.startswith("."))
    ]
    return _beginning(incomplete, words)
