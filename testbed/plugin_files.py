"""The files and modules of plugins: where they are found, their import and their provenance."""

from __future__ import annotations

import difflib
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import testbed.ext
from testbed import hookspecs
from testbed.errors import InputError, PluginError, unknown

PATH_VARIABLE = "TESTBED_PLUGIN_PATH"
LEAVE_OUT = "no:"
"""What a `-p` word begins with that leaves a plugin out."""


@dataclass(frozen=True)
class Provenance:
    """The origin of a plugin.

    Args:
        plugin: its name.
        kind: "built in", "file", "module" or "entry point".
        origin: the path of the file, or the name of the module or entry point.
        version: the version of a distribution, or the sha256 of a file.
        error, trace: the message and the traceback of a plugin that could not be loaded.
    """

    plugin: str
    kind: str
    origin: str
    version: str
    error: str = ""
    trace: str = ""


def path_folders() -> list[Path]:
    """The plugin folders that the environment variable TESTBED_PLUGIN_PATH lists."""
    words = os.environ.get(PATH_VARIABLE, "").split(os.pathsep)
    return [Path(os.path.realpath(word)) for word in words if word]


def is_file(word: str) -> bool:
    """Whether a word of the command line means a plugin file, not a name, a table or a module."""
    return not word.lstrip().startswith("{") and (word.endswith(".py") or os.sep in word)


def absolute(word: str, folder: str | Path = "") -> str:
    """A `-p` word that means the same in any working directory; a path is relative to `folder`."""
    mark = LEAVE_OUT if word.startswith(LEAVE_OUT) else ""
    path = word.removeprefix(mark)
    return f"{mark}{Path(folder, path).absolute()}" if is_file(path) else word


def left_out(word: str) -> str:
    """The name, or the path without links, of the plugin that `no:NAME` or `no:FILE` leaves out."""
    name = word.removeprefix(LEAVE_OUT)
    return os.path.realpath(name) if is_file(name) else name


def missing(word: str) -> str:
    """`WORD: no such file.`, with the file of that folder whose name is nearest."""
    path = Path(word)
    stems = [file.stem for file in path.parent.glob("*.py") if os.path.isfile(file)]
    near = difflib.get_close_matches(path.stem, stems, n=1)
    return f"{word}: no such file." + "".join(
        f" Did you mean {str(path.parent / stem) + '.py'!r}?" for stem in near
    )


def sha256(file: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def module_version(module: ModuleType) -> str:
    """The version of a module's distribution; without one the sha256 of its file."""
    top = module.__name__.partition(".")[0]
    if top == "testbed":
        return testbed.__version__
    for distribution in importlib.metadata.packages_distributions().get(top, []):
        return f"{distribution} {importlib.metadata.version(distribution)}"
    file = getattr(module, "__file__", None)
    return sha256(Path(file)) if file else ""


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the file at every import: a .pyc may be of an edit within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def import_file(origin: str) -> ModuleType:
    """The plugin file as `testbed.ext.<stem>`: importable, inspectable, picklable.

    A second file of the same stem, or the same file after a change, gets the first letters of a
    digest of its path and content behind its name, so that neither replaces the other.

    Raises:
        PluginError: the file cannot be imported, or its names are taken by other files.
    """
    file = Path(origin)
    digest = sha256(file)
    name = f"testbed.ext.{file.stem}"
    suffix = hashlib.sha256(f"{file}\0{digest}".encode()).hexdigest()[:8]
    for candidate in (name, f"{name}_{suffix}"):
        loaded = sys.modules.get(candidate)
        if loaded is None:
            name = candidate
            break
        if getattr(loaded, "__testbed_source__", None) == (str(file), digest):
            return loaded
    else:
        raise PluginError(f"module names {name} and {candidate} are taken by other files.")
    spec = importlib.util.spec_from_file_location(name, file, loader=_SourceLoader(name, origin))
    if spec is None or spec.loader is None:
        raise PluginError(f"{file} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__testbed_source__"] = (str(file), digest)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def check_hooks(plugin: Any) -> None:
    """InputError unless the plugin implements hooks, known ones only, each with its decorator."""
    hooks = [name for name in dir(hookspecs) if name.startswith("testbed_")]
    # The mark is a dict; an object that has every attribute (torch.ops, a mock) has no such mark.
    implemented = [
        name
        for name in dir(plugin)
        if isinstance(getattr(getattr(plugin, name, None), "testbed_impl", None), dict)
    ]
    for name in implemented:
        if name not in hooks:
            raise PluginError(unknown("hook", name, hooks))
    for name in dir(plugin):
        bare = name.startswith("testbed_") and name not in implemented
        if bare and (name in hooks or not implemented):
            raise PluginError(f"{name} lacks the decorator @testbed.hookimpl.")
    if not implemented:
        raise InputError(f"it implements no hook. Hooks: {', '.join(hooks)}.")
