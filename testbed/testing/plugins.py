"""A plugin for the length of a block."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import testbed.ext
from testbed.components.base import Component
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.registry import HOOKS, Registry, default_registry
from testbed.testing.processes import SYNTHETIC

_numbers = itertools.count()


@contextmanager
def plugin(*sources: ModuleType | str | Path | Component) -> Iterator[Registry]:
    """A registry with the bundled plugins and `sources`, which leaves no trace behind.

        with testbed.testing.plugin("flow.py") as registry:
            flow = registry.parameterization("flow")

    Args:
        sources: modules, files, names of modules, or components themselves.

    Raises:
        PluginError: a source that is missing or broken, or a component registered twice.
        InputError: nothing given, or something else.
    """
    if not sources:
        raise InputError("plugin(...) needs a module, a file, the name of a module or components.")
    path, modules = list(testbed.ext.__path__), dict(sys.modules)
    cached = default_registry.cache_info().currsize
    try:
        words = []
        loose = [source for source in sources if isinstance(source, Component)]
        for source in sources:
            if isinstance(source, ModuleType):
                sys.modules.setdefault(source.__name__, source)
                if sys.modules[source.__name__] is not source:
                    raise InputError(f"another module is named {source.__name__}.")
                words.append(source.__name__)
            elif isinstance(source, str | Path):
                words.append(str(source))
            elif not isinstance(source, Component):
                raise InputError(f"plugin(...): {source!r} is no module, file or component.")
        if loose:
            words.append(_module(loose).__name__)
        yield Registry(words)
    finally:
        testbed.ext.__path__[:] = path
        for name in set(sys.modules) - set(modules):
            if name.startswith(("testbed.ext.", SYNTHETIC)):
                del sys.modules[name]
        for source in sources:
            if isinstance(source, ModuleType) and source.__name__ not in modules:
                sys.modules.pop(source.__name__, None)
        if default_registry.cache_info().currsize != cached:
            default_registry.cache_clear()


def _module(components: list[Component]) -> ModuleType:
    """A module whose hooks yield the components."""
    module = ModuleType(f"{SYNTHETIC}{next(_numbers)}")
    for kind, hook in HOOKS.items():
        mine = [component for component in components if isinstance(component, kind)]
        if mine:
            setattr(module, hook, hookimpl(_yielding(mine)))
    sys.modules[module.__name__] = module
    return module


def _yielding(components: list[Component]) -> Callable[[], Iterable[Component]]:
    def hook() -> Iterable[Component]:
        return components

    return hook
