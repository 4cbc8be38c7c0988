"""Functions of other people's files and modules, imported by name."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from testbed import plugin_files
from testbed.errors import InputError, one_line, unknown


@contextlib.contextmanager
def beside(file: str) -> Iterator[None]:
    """Puts the folder of a file first on the path of imports, while the block runs.

    What was imported from there is forgotten afterwards, so that a module of the same name beside
    another factory is not taken for it.
    """
    folder, before = str(Path(file).resolve().parent), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before:
            source = getattr(sys.modules[name], "__file__", None)
            mine = source and Path(source).resolve().is_relative_to(folder)
            if mine and not name.startswith("testbed."):
                del sys.modules[name]


def attribute_of(module: str, attribute: str) -> Any:
    """The attribute of a module, or of a Python file that `module` is the path of.

    The factory of a file is called with the file's folder on the path too.

    Raises:
        InputError: The module cannot be imported, or has no such attribute.
    """
    of_file = module.endswith(".py")
    try:
        if of_file:
            with beside(module):
                namespace = plugin_files.import_file(str(Path(module).resolve()))
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")
            namespace = importlib.import_module(module)
    except InputError:
        raise
    except Exception as problem:
        gone = problem.filename if isinstance(problem, FileNotFoundError) else ""
        if of_file and gone == str(Path(module).resolve()):
            raise InputError(plugin_files.missing(module)) from None
        raise InputError(f"{module} cannot be imported: {one_line(problem)}") from problem
    if not hasattr(namespace, attribute):
        members = vars(namespace).items()
        names = [name for name, member in members if callable(member) and name[:1] != "_"]
        raise InputError(f"{module}: {unknown('factory', attribute, names)}")
    return getattr(namespace, attribute)


def beside_source(function: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """`beside` the file that a function comes from, where `attribute_of` imported it from one."""
    namespace = sys.modules.get(getattr(function, "__module__", ""))
    source = getattr(namespace, "__testbed_source__", None)
    return beside(source[0]) if source else contextlib.nullcontext()
