"""The registry: it loads the plugins and looks components up by axis and name."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shlex
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partialmethod
from pathlib import Path
from typing import Any, TypeVar, cast

import pluggy

import testbed.ext
from testbed import hookspecs, plugin_files
from testbed.bundled import bundled
from testbed.components.base import Component
from testbed.components.dataset import Dataset
from testbed.components.density import Density
from testbed.components.guidance import Guidance
from testbed.components.loss import Loss
from testbed.components.metric import Metric
from testbed.components.network import Network
from testbed.components.recipe import Recipe
from testbed.components.sampler import Sampler
from testbed.components.schedule import Schedule
from testbed.components.weighting import Weighting
from testbed.diffusion.correlated import Noise
from testbed.diffusion.noise_tables import NoiseTable
from testbed.diffusion.parameterization import Parameterization
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.errors import InputError, PluginError, UnknownName, one_line, unknown
from testbed.plugin_files import Provenance

C = TypeVar("C", bound=Component)

HOOKS: dict[type[Component], str] = {
    Parameterization: "testbed_parameterizations",
    Weighting: "testbed_weightings",
    Loss: "testbed_losses",
    Density: "testbed_densities",
    Dataset: "testbed_datasets",
    Network: "testbed_networks",
    Sampler: "testbed_samplers",
    Schedule: "testbed_schedules",
    Guidance: "testbed_guidances",
    NoiseTable: "testbed_tables",
    Noise: "testbed_noises",
    Recipe: "testbed_recipes",
    Metric: "testbed_metrics",
}
"""The class of the components of each axis, and the hook that yields them."""
AXES = {component.axis: component for component in HOOKS}
BUILTIN = (
    "testbed.data.captions",
    "testbed.data.files",
    "testbed.data.image_sets",
    "testbed.data.level_files",
    "testbed.data.synthetic",
    "testbed.networks.mlp",
    "testbed.networks.dit",
    "testbed.networks.unet",
    "testbed.networks.convnet",
    "testbed.sampling.solvers",
    "testbed.sampling.ancestral",
    "testbed.sampling.schedules",
    "testbed.sampling.guidance_methods",
    "testbed.diffusion.noise_tables",
    "testbed.diffusion.correlated",
    "testbed.metrics.samples",
    "testbed.metrics.conditional",
    "testbed.metrics.feature_distances",
)
FILE_HINT = "Is it in a file? Add -p FILE."
UNAVAILABLE = {
    ("loss", "lpips"): "A loss here is elementwise, so that training can take it in any space and "
    "weigh it by sample; LPIPS compares whole images. Measure by it instead: metric lpips."
}
"""Common names that no plugin registers, each with an alternative."""


@dataclass(frozen=True)
class _Entry:
    component: Component
    source: Provenance


class Registry:
    """The components of all plugins, by axis and name.

    Each axis has a method of its name, `registry.weighting("min_snr", gamma=5)`, which returns the
    component with its options bound. It raises

        UnknownName: no component has that name; the message has the nearest name and the plugins
            that could not be loaded,
        InputError: an unknown option, or one of the wrong type.

    Args:
        plugins: the words of `-p`: a module, a file, or "no:NAME" or "no:FILE" to leave a plugin
            out. A plugin of this list that is missing or broken is fatal.
        plugin_dirs: further folders of plugin files, after the bundled one and those in
            TESTBED_PLUGIN_PATH. A broken file there is listed in `failures`; the rest still loads.
        strict: whether a broken plugin is fatal wherever it lies.
        places: where a word of `plugins` stands, for messages; `-p WORD` for one that has none.

    Raises:
        PluginError: a fatal plugin, a folder or a plugin to leave out that does not exist, or two
            components of one axis and name; the message names both sources.
    """

    def __init__(
        self,
        plugins: Sequence[str] = (),
        plugin_dirs: Iterable[str | Path] = (),
        strict: bool = False,
        places: Mapping[str, str] | None = None,
    ) -> None:
        self._places = places or {}
        self.plugins = tuple(map(plugin_files.absolute, plugins))
        self.plugin_dirs = tuple(os.path.realpath(folder) for folder in plugin_dirs)
        self.provenance: list[Provenance] = []
        self.failures: list[Provenance] = []
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._manager = pluggy.PluginManager("testbed")
        self._manager.add_hookspecs(hookspecs)
        self._blocked = {
            plugin_files.left_out(word): word
            for word in plugins
            if word.startswith(plugin_files.LEAVE_OUT)
        }
        self._used_blocks: set[str] = set()

        for module in BUILTIN:
            self._load(
                module.rpartition(".")[2], "built in", module, importlib.import_module, fatal=True
            )
        folders = [
            bundled("plugins").resolve(),
            *plugin_files.path_folders(),
            *map(Path, self.plugin_dirs),
        ]
        for folder in dict.fromkeys(folders):
            self._load_folder(folder, strict)
        for entry in importlib.metadata.entry_points(group="testbed"):
            self._load_entry_point(entry, strict)
        for word in plugins:
            if not word.startswith(plugin_files.LEAVE_OUT):
                self._load_named(word)
        for name in self._blocked.keys() - self._used_blocks:
            word, seen = self._blocked[name], (*self.provenance, *self.failures)
            known = {
                one.origin if plugin_files.is_file(name) else one.plugin
                for one in seen
                if one.kind == "file" or not plugin_files.is_file(name)
            }
            place = self._places.get(word, f"-p {word}")
            raise PluginError(f"{place}: {unknown('plugin', name, known)}")

    # -- loading -------------------------------------------------------------------------------

    def _load_folder(self, folder: Path, strict: bool) -> None:
        if not os.path.isdir(folder):
            raise PluginError(f"plugin folder {folder} does not exist or is not a folder.")
        if str(folder) not in testbed.ext.__path__:
            testbed.ext.__path__.append(str(folder))
        for file in sorted(folder.glob("*.py")):
            if not file.name.startswith("_"):
                self._load(file.stem, "file", str(file), plugin_files.import_file, fatal=strict)

    def _load_entry_point(self, entry: importlib.metadata.EntryPoint, strict: bool) -> None:
        version = f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
        self._load(entry.name, "entry point", entry.value, lambda _: entry.load(), strict, version)

    def _load_named(self, word: str) -> None:
        if plugin_files.is_file(word):
            if not os.path.isfile(word):
                place = f"{self._places[word]}:" if word in self._places else "-p"
                raise PluginError(f"{place} {plugin_files.missing(word)}")
            name, kind, origin = Path(word).stem, "file", os.path.realpath(word)
            importer: Callable[[str], Any] = plugin_files.import_file
        else:
            name, kind, origin, importer = word, "module", word, importlib.import_module
        try:
            self._load(name, kind, origin, importer, fatal=True)
        except PluginError as problem:
            if word not in self._places:
                raise
            raise PluginError(f"{self._places[word]}: {problem}") from problem.__cause__

    def _load(
        self,
        name: str,
        kind: str,
        origin: str,
        importer: Callable[[str], Any],
        fatal: bool,
        version: str = "",
    ) -> None:
        if blocks := {name, origin} & self._blocked.keys():
            self._used_blocks |= blocks
            return
        if any(source.origin == origin for source in self.provenance):
            return
        title = f"{name} ({origin})"
        try:
            if kind == "file":
                version = plugin_files.sha256(Path(origin))
            plugin = importer(origin)
            if kind in ("module", "built in"):
                version = plugin_files.module_version(plugin)
            plugin_files.check_hooks(plugin)
            self._manager.register(plugin, name=title)
            components = list(self._components(plugin))
        except (Exception, SystemExit) as problem:
            if self._manager.has_plugin(title):
                self._manager.unregister(name=title)
            message = one_line(problem, origin)
            if fatal:
                raise PluginError(f"plugin {name!r} ({origin}) is broken: {message}") from problem
            trace = traceback.format_exc()
            self.failures.append(Provenance(name, kind, origin, version, message, trace))
            return
        self._add(components, Provenance(name, kind, origin, version))

    def _add(self, components: Iterable[Component], source: Provenance) -> None:
        """Enters the components of a plugin; PluginError where one of that name is there."""
        self.provenance.append(source)
        for component in components:
            key = (component.axis, component.name)
            if key in self._entries:
                first = self._entries[key].source
                raise PluginError(
                    f"{component.label} is registered twice: by {first.plugin!r} ({first.origin}) "
                    f"and by {source.plugin!r} ({source.origin}). Rename one, or leave one out "
                    f"with -p {self._leaving_out(first, source)}."
                )
            self._entries[key] = _Entry(component, source)

    def _leaving_out(self, first: Provenance, second: Provenance) -> str:
        """The word that leaves out one of two plugins: its name, or its file where others have it.

        Quoted for a shell.
        """
        names = [one.plugin for one in self.provenance]
        name = first.plugin
        if names.count(name) > 1:
            name = next((one.origin for one in (first, second) if one.kind == "file"), first.origin)
        return shlex.quote(f"{plugin_files.LEAVE_OUT}{name}")

    def _components(self, plugin: Any) -> Iterable[Component]:
        """The components of this plugin, hook by hook; PluginError for one of the wrong type."""
        for component_type, hook in HOOKS.items():
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if implementation.plugin is not plugin:
                    continue
                yielded = implementation.function()
                if isinstance(yielded, Component) or not isinstance(yielded, Iterable):
                    what = "nothing" if yielded is None else f"a {type(yielded).__name__}"
                    raise PluginError(
                        f"{hook} must yield components, it returned {what}: write "
                        f"`yield testbed.{component_type.__name__}(...)`."
                    )
                for component in yielded:
                    if not isinstance(component, component_type):
                        raise PluginError(
                            f"{hook} must yield testbed.{component_type.__name__}, "
                            f"got {component!r}."
                        )
                    yield component

    def of_file(self, word: str) -> list[Component]:
        """The components that a plugin file registered, by axis and name.

        Raises:
            InputError: the file registers none.
        """
        origin = os.path.realpath(word)
        components = [
            entry.component for entry in self._entries.values() if entry.source.origin == origin
        ]
        if not components:
            raise InputError(f"{word} registers no component.")
        order = list(AXES)
        return sorted(components, key=lambda one: (order.index(one.axis), one.name))

    def called(
        self, name: str, options: Mapping[str, Any], axes: Collection[str]
    ) -> list[Component]:
        """The components of a name on these axes that take the options, with these bound.

        Raises:
            UnknownName: no component of that name.
            InputError: none of them takes the options, or a value is of the wrong type.
        """
        named = [axis for axis in axes if name in self.names(axis)]
        if not named:
            others = [axis for axis in AXES if name in self.names(axis)]
            if others:
                wanted = ", ".join(axes)
                raise UnknownName(f"{name!r} is a {others[0]}; expected one of these: {wanted}.")
            known = {known for axis in axes for known in self.names(axis)}
            raise UnknownName(f"{unknown('component', name, known)} {FILE_HINT}")
        found: list[Component] = [getattr(self, axis)(name) for axis in named]
        taking = [one for one in found if set(options) <= set(one.defaults)]
        # Without any the first says what its options are.
        return [getattr(self, one.axis)(name, **options) for one in taking or found[:1]]

    # -- look-up -------------------------------------------------------------------------------

    def names(self, axis: str) -> list[str]:
        """The names on an axis, sorted; `axis` is singular or plural ("density", "densities").

        Raises:
            UnknownName: an unknown axis.
        """
        plural = {hook.removeprefix("testbed_"): one.axis for one, hook in HOOKS.items()}
        singular = plural.get(axis, axis)
        if singular not in AXES:
            raise UnknownName(unknown("axis", axis, AXES))
        return sorted(name for entry_axis, name in self._entries if entry_axis == singular)

    def source(self, component: Component) -> Provenance:
        """The provenance of the plugin that registered `component`."""
        return self._entries[component.axis, component.name].source

    def _find(self, axis: type[C], name: str, /, **options: Any) -> C:
        """The component of that axis and name with its options bound."""
        entry = self._entries.get((axis.axis, name))
        if entry is None:
            message = unknown(axis.axis, name, self.names(axis.axis))
            if (axis.axis, name) in UNAVAILABLE:
                message = f"No {axis.axis} {name!r}. {UNAVAILABLE[axis.axis, name]}"
            for failure in self.failures:
                message += f" Not loaded: {failure.plugin} ({failure.origin}): {failure.error}"
            raise UnknownName(message)
        try:
            return cast(C, entry.component.bound(options))
        except InputError:
            raise
        except Exception as problem:
            raise PluginError(f"{entry.component.label} raised {one_line(problem)}") from problem

    parameterization: partialmethod[Parameterization] = partialmethod(_find, Parameterization)
    weighting: partialmethod[Weighting] = partialmethod(_find, Weighting)
    density: partialmethod[Density] = partialmethod(_find, Density)
    dataset: partialmethod[Dataset] = partialmethod(_find, Dataset)
    """The data set is not built yet: call it for its `Data`."""
    network: partialmethod[Network] = partialmethod(_find, Network)
    """The network is not built yet: call it with (shape, labels, seed) for a module."""
    sampler: partialmethod[Sampler] = partialmethod(_find, Sampler)
    schedule: partialmethod[Schedule] = partialmethod(_find, Schedule)
    table: partialmethod[NoiseTable] = partialmethod(_find, NoiseTable)
    noise: partialmethod[Noise] = partialmethod(_find, Noise)
    recipe: partialmethod[Recipe] = partialmethod(_find, Recipe)
    guidance: partialmethod[Guidance] = partialmethod(_find, Guidance)
    metric: partialmethod[Metric] = partialmethod(_find, Metric)

    def loss(self, name: str, **options: Any) -> Loss:
        """The loss of that name; `space`, an option of every loss, must be a prediction type."""
        loss = self._find(Loss, name, **options)
        if loss.space not in (spaces := ["F", *PREDICTION_TYPES]):
            raise UnknownName(f"{loss.label}: {unknown('space', loss.space, spaces)}")
        return loss

    def recipe_of(self, p: Parameterization) -> Recipe | None:
        """The recipe with which a parameterization was published; None where it states none."""
        return self.recipe(p.recipe) if isinstance(p.recipe, str) else p.recipe

    def study_finished(self, study: Any, results: Any) -> None:
        """Calls the hook `testbed_study_finished` of every plugin."""
        self._manager.hook.testbed_study_finished(study=study, results=results)


@cache
def default_registry() -> Registry:
    """The registry of the bundled plugins, the plugin path and the entry points."""
    return Registry()
