"""Components in another process: what a study's workers must be able to load."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from testbed.components.base import Component
from testbed.errors import InputError, one_line
from testbed.registry import Registry
from testbed.testing.failures import CheckFailed, Skipped
from testbed.testing.options import OptionPoints
from testbed.testing.probes import probe

SYNTHETIC = "testbed_testing_plugin_"
"""How the name of a module begins that `plugin` makes for loose components."""


def _only_here(word: str) -> bool:
    """Whether a plugin word is a module that was never imported from anywhere."""
    return word in sys.modules and sys.modules[word].__spec__ is None


def _options(component: Component) -> dict[str, Any]:
    """The options that a component was bound to; every kind of component has them."""
    options: dict[str, Any] = vars(component)["options"]
    return options


def _modules(components: Sequence[Component]) -> set[str]:
    """The names of the modules in which the functions of the components are written."""
    functions = (value for one in components for value in vars(one).values() if callable(value))
    return {getattr(function, "__module__", None) or "" for function in functions}


def _search_path(modules: Sequence[str]) -> list[str]:
    """The entries of sys.path, without the current folder where nothing is asked of it.

    What needs it: testbed itself, one of these modules, or PYTHONPATH, which names it.
    """
    here = os.path.realpath(os.getcwd())
    files = (
        getattr(sys.modules.get(name), "__file__", None) for name in ("testbed", *modules) if name
    )
    named = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    needed = here in map(os.path.realpath, named) or any(
        Path(os.path.realpath(file)).is_relative_to(here) for file in files if file
    )
    entries = [entry or here for entry in sys.path]
    return [entry for entry in entries if needed or os.path.realpath(entry) != here]


class Courier:
    """Takes components to one new process, at the first question, and keeps the answers.

    A component that the registry knows goes as a study sends it, by plugin words, axis, name and
    options; another is pickled. With each component go those that differ from it in the values of
    options, as `points` gives them.
    """

    def __init__(
        self, components: Sequence[Component], registry: Registry, points: OptionPoints
    ) -> None:
        self.components, self.registry, self.points = list(components), registry, points
        self._answers: dict[int, Any] | None = None

    def answer(self, component: Component) -> list[Tensor]:
        """What `probe(component)` gives there.

        Raises:
            CheckFailed: it cannot go there, or fails there.
            Skipped: it was defined in a session that no other process can import.
        """
        if not any(one is component for one in self._everyone()):
            self.components.append(component)
            self._answers = None
        if self._answers is None:
            self._answers = self._ask()
        found = self._answers[id(component)]
        if isinstance(found, Exception):
            raise found
        values: list[Tensor] = found
        return values

    def _everyone(self) -> list[Component]:
        return [point.component for one in self.components for point in self.points(one)]

    def _ask(self) -> dict[int, Any]:
        answers: dict[int, Any] = {}
        parcels: list[Any] = []
        for component in self._everyone():
            try:
                parcels.append(self._parcel(component))
                answers[id(component)] = None
            except (CheckFailed, Skipped) as problem:
                answers[id(component)] = problem
        if not parcels:
            return answers
        sent = [key for key, value in answers.items() if value is None]
        words = [word for word in self.registry.plugins if not _only_here(word)]
        load = (words, self.registry.plugin_dirs, torch.get_num_threads(), parcels)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "parcels"
            file.write_bytes(pickle.dumps(load))
            # With -P, and without the folder's own entry: a file of the folder may have the name
            # of a module that a library imports.
            path = os.pathsep.join(_search_path([*words, *_modules(self.components)]))
            done = subprocess.run(
                [sys.executable, "-P", "-m", "testbed.testing.processes", str(file)],
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                failure = CheckFailed(f"the other process ended with {done.returncode}: {last}")
                return {key: answers[key] or failure for key in answers}
            returned = pickle.loads((Path(folder) / "answers").read_bytes())
        for key, found in zip(sent, returned, strict=True):
            answers[key] = CheckFailed(found) if isinstance(found, str) else found
        return answers

    def _parcel(self, component: Component) -> tuple[str, Any]:
        if self._registered(component):
            return "name", (component.axis, component.name, _options(component))
        try:
            return "pickle", pickle.dumps(component)
        except Exception as problem:
            if "__main__" in str(problem):
                raise Skipped("defined in __main__, which no other process imports") from None
            raise CheckFailed(
                f"it is in no plugin and cannot be pickled ({type(problem).__name__}: {problem}). "
                "Register it from a plugin, or define its functions at the top of a module."
            ) from None

    def _registered(self, component: Component) -> bool:
        try:
            known = getattr(self.registry, component.axis)(component.name, **_options(component))
            source, same = self.registry.source(known), component.bound(_options(component))
        except (InputError, KeyError):
            return False
        return same == known and not _only_here(source.origin)


def _answers(load: Any) -> list[Any]:
    """For every parcel the component's numbers, or what went wrong in words."""
    words, plugin_dirs, threads, parcels = load
    torch.set_num_threads(threads)
    registry = Registry(words, plugin_dirs)
    found: list[Any] = []
    for how, what in parcels:
        try:
            if how == "name":
                axis, name, options = what
                component = getattr(registry, axis)(name, **options)
            else:
                component = pickle.loads(what)
            found.append(probe(component))
        except Exception as problem:
            found.append(f"the other process raised {one_line(problem)}")
    return found


if __name__ == "__main__":
    parcels = Path(sys.argv[1])
    answer = _answers(pickle.loads(parcels.read_bytes()))
    (parcels.parent / "answers").write_bytes(pickle.dumps(answer))
    gc.freeze()  # else the interpreter looks once more through all that was imported
