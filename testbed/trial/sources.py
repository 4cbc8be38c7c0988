"""The digest of the sources that a trial's numbers come from, by the import graph of the core.

It covers what trains and measures every trial, the modules that the trial's own components are
written in, and what all of these import. A network, sampler or data set that the trial does not use
is not in it: adding one leaves the ids of other trials alone. Nor are docstrings: a sentence that
is put better makes no trial stale.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from testbed import errors

WORKER = "testbed.trial.worker"
"""Trains and measures every trial."""
APART = (
    "testbed",
    "testbed.errors",
    "testbed.hookspecs",
    "testbed.registry",
    "testbed.trial.folders",
    "testbed.trial.storage",
    "testbed.trial.study_folder",
    "testbed.trial.usage",
)
"""What finds components, words messages and keeps files: no number comes from it."""


def digest(modules: Iterable[str] = ()) -> str:
    """sha256 over the worker, `modules`, and all of the package that they import.

    Args:
        modules: those of the trial's components; what is not of this package is left out.
    """
    return _digest(frozenset(name for name in modules if name in _files()))


def digests(modules: Iterable[str] = ()) -> dict[str, str]:
    """The digest of each module that `digest` covers, by its dotted name."""
    return {
        name: hashlib.sha256(parsed(name).code).hexdigest()[:16]
        for name in _reached(frozenset(name for name in modules if name in _files()))
    }


@functools.cache
def _digest(modules: frozenset[str]) -> str:
    # A process has read its modules once; thousands of variants have few different sets of them.
    sha = hashlib.sha256()
    for name in _reached(modules):
        sha.update(name.encode() + parsed(name).code)
    return sha.hexdigest()[:16]


def _reached(modules: frozenset[str]) -> list[str]:
    """The worker, `modules` and all of the package that they import, by name."""
    roots, found = [WORKER, *modules], set[str]()
    while roots:
        name = roots.pop()
        if name not in found:
            found.add(name)
            roots += parsed(name).imports
    return sorted(found)


@functools.cache
def _files() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    folder = Path(errors.__file__).parent
    names = {}
    for file in folder.rglob("*.py"):
        parts = ("testbed", *file.relative_to(folder).with_suffix("").parts)
        names[".".join(parts).removesuffix(".__init__")] = file
    return names


class Parsed(NamedTuple):
    """A module's source without its docstrings, and the modules of the package that it imports.

    They are those that it imports when it runs, anywhere in its source.
    """

    code: bytes
    imports: tuple[str, ...]


@functools.cache
def parsed(name: str) -> Parsed:
    """What of a module counts for the trials that use it."""
    source = _files()[name].read_bytes()
    tree = ast.parse(source)
    return Parsed(without_docstrings(source, tree), tuple(dict.fromkeys(_imports(tree))))


def without_docstrings(source: bytes, tree: ast.AST) -> bytes:
    """The source without the lines of statements that are strings, those of attributes included."""
    lines = source.splitlines(keepends=True)
    for node in reversed([*_docstrings(tree)]):
        assert node.end_lineno is not None
        first, last = node.lineno - 1, node.end_lineno - 1
        before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        lines[first : last + 1] = [b""] * (last + 1 - first)
        if (before + after).strip():  # something else stands on its lines
            lines[first] = before + after
    return b"".join(lines)


def _docstrings(tree: ast.AST) -> Iterator[ast.Expr]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                yield node
        elif not isinstance(node, ast.expr):
            yield from _docstrings(node)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr) or (isinstance(node, ast.If) and _for_types(node.test)):
            continue  # an expression holds no import, and is most of a module
        if isinstance(node, ast.ImportFrom) and node.module:
            within = (f"{node.module}.{alias.name}" for alias in node.names)
            for imported in (node.module, *within):
                if imported in _files() and imported not in APART:
                    yield imported
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in _files() and a.name not in APART)
        yield from _imports(node)


def _for_types(test: ast.expr) -> bool:
    """Whether a condition asks for `TYPE_CHECKING` or `typing.TYPE_CHECKING`."""
    names = (getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(test))
    return "TYPE_CHECKING" in names
