"""Discovery of plugins and look-up of components by name, with provenance."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar, cast

import pluggy

import testbed.ext
from testbed import hookspecs
from testbed.components.base import Component
from testbed.components.dataset import Dataset
from testbed.components.density import Density
from testbed.components.guidance import Guidance
from testbed.components.loss import Loss
from testbed.components.metric import Metric
from testbed.components.network import Network
from testbed.components.sampler import Sampler
from testbed.components.schedule import Schedule
from testbed.components.weighting import Weighting
from testbed.diffusion.correlated import Noise
from testbed.diffusion.noise_tables import NoiseTable
from testbed.diffusion.parameterization import Parameterization
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.errors import InputError, PluginError, UnknownName, said, unknown

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
    Metric: "testbed_metrics",
}
AXES = {kind.axis: kind for kind in HOOKS}
BUILTIN = (
    "testbed.data.files",
    "testbed.data.synthetic",
    "testbed.networks.mlp",
    "testbed.sampling.solvers",
    "testbed.sampling.ancestral",
    "testbed.sampling.schedules",
    "testbed.sampling.guidance_methods",
    "testbed.diffusion.noise_tables",
    "testbed.diffusion.correlated",
    "testbed.metrics.samples",
)
PATH_VARIABLE = "TESTBED_PLUGIN_PATH"
ELSEWHERE = "Is it in a file? Add -p FILE."
REFUSED = {
    ("metric", "fid"): "It needs the weights of an Inception network, which testbed neither ships "
    "nor downloads: a plugin that has them on disk can register it (docs/reference/metrics.md, "
    "FID), or compare by energy, mmd or coverage_gap, which need none."
}
"""What to do instead, for names that are often asked for and are not here."""


@dataclass(frozen=True)
class Provenance:
    """Where a plugin came from. `version` is a distribution's version or a file's sha256."""

    plugin: str
    kind: str
    origin: str
    version: str
    error: str = ""
    trace: str = ""


@dataclass(frozen=True)
class _Entry:
    component: Component
    source: Provenance


def bundled(folder: str) -> Path:
    """The shipped `plugins` or `studies`: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "_bundled" / folder
    return inside if inside.is_dir() else package.parent / folder


class Registry:
    """The components of all plugins, by axis and name.

    Args:
        plugins: `-p` words: a module, a file, or "no:NAME" to leave a plugin out. One that is
            missing or broken is fatal.
        plugin_dirs: further folders of plugin files, after the bundled one and those in
            TESTBED_PLUGIN_PATH. A broken file there is kept in `failures` and the rest still loads.
        strict: a broken plugin is fatal wherever it was found.

    Raises:
        PluginError: as above; two components of one axis and name, naming both sources.
    """

    def __init__(
        self,
        plugins: Sequence[str] = (),
        plugin_dirs: Iterable[str | Path] = (),
        strict: bool = False,
    ) -> None:
        self.plugins = tuple(_from_anywhere(word) for word in plugins)
        self.plugin_dirs = tuple(os.path.realpath(folder) for folder in plugin_dirs)
        self.provenance: list[Provenance] = []
        self.failures: list[Provenance] = []
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._manager = pluggy.PluginManager("testbed")
        self._manager.add_hookspecs(hookspecs)
        self._blocked = {word[3:] for word in plugins if word.startswith("no:")}
        self._used_blocks: set[str] = set()

        for module in BUILTIN:
            self._load(module.rpartition(".")[2], "built in", module, _import, fatal=True)
        folders = [bundled("plugins").resolve(), *_path_folders(), *map(Path, self.plugin_dirs)]
        for folder in dict.fromkeys(folders):
            self._load_folder(folder, strict)
        for entry in importlib.metadata.entry_points(group="testbed"):
            self._load_entry_point(entry, strict)
        for word in plugins:
            if not word.startswith("no:"):
                self._load_named(word)
        for name in self._blocked - self._used_blocks:
            known = [source.plugin for source in (*self.provenance, *self.failures)]
            raise PluginError(f"-p no:{name}: {unknown('plugin', name, known)}")

    # -- loading -------------------------------------------------------------------------------

    def _load_folder(self, folder: Path, strict: bool) -> None:
        if not os.path.isdir(folder):
            raise PluginError(f"plugin folder {folder} does not exist or is not a folder.")
        if str(folder) not in testbed.ext.__path__:
            testbed.ext.__path__.append(str(folder))
        for file in sorted(folder.glob("*.py")):
            if not file.name.startswith("_"):
                self._load(file.stem, "file", str(file), import_file, fatal=strict)

    def _load_entry_point(self, entry: importlib.metadata.EntryPoint, strict: bool) -> None:
        version = f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
        self._load(entry.name, "entry point", entry.value, lambda _: entry.load(), strict, version)

    def _load_named(self, word: str) -> None:
        path = Path(word)
        if is_file(word):
            if not os.path.isfile(path):
                raise PluginError(f"-p {missing(word)}")
            self._load(path.stem, "file", os.path.realpath(path), import_file, fatal=True)
        else:
            self._load(word, "module", word, _import, fatal=True)

    def _load(
        self,
        name: str,
        kind: str,
        origin: str,
        importer: Callable[[str], Any],
        fatal: bool,
        version: str = "",
    ) -> None:
        if name in self._blocked:
            self._used_blocks.add(name)
            return
        if any(source.origin == origin for source in self.provenance):
            return
        source = Provenance(name, kind, origin, version)
        try:
            if kind == "file":
                source = Provenance(name, kind, origin, _sha256(Path(origin)))
            plugin = importer(origin)
            if kind in ("module", "built in"):
                source = Provenance(name, kind, origin, _module_version(plugin))
            _reject_unknown_hooks(plugin)
            registered = self._manager.register(plugin, name=f"{name} ({origin})")
            components = list(self._components(plugin))
        except (Exception, SystemExit) as problem:
            if self._manager.has_plugin(f"{name} ({origin})"):
                self._manager.unregister(name=f"{name} ({origin})")
            message = said(problem, origin)
            failure = Provenance(
                name, kind, origin, source.version, message, traceback.format_exc()
            )
            if fatal:
                raise PluginError(f"plugin {name!r} ({origin}) is broken: {message}") from problem
            self.failures.append(failure)
            return
        assert registered is not None
        self.provenance.append(source)
        for component in components:
            key = (component.axis, component.name)
            if key in self._entries:
                first = self._entries[key].source
                raise PluginError(
                    f"{component.label} is registered twice: by {first.plugin!r} ({first.origin}) "
                    f"and by {name!r} ({origin}). Rename one, or leave one out with "
                    f"-p no:{first.plugin}."
                )
            self._entries[key] = _Entry(component, source)

    def _components(self, plugin: Any) -> Iterable[Component]:
        """What this plugin yields, hook by hook; checked for type."""
        for kind, hook in HOOKS.items():
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if implementation.plugin is not plugin:
                    continue
                yielded = implementation.function()
                if isinstance(yielded, Component) or not isinstance(yielded, Iterable):
                    what = "nothing" if yielded is None else f"a {type(yielded).__name__}"
                    raise PluginError(
                        f"{hook} must yield components, it returned {what}: write "
                        f"`yield testbed.{kind.__name__}(...)`."
                    )
                for component in yielded:
                    if not isinstance(component, kind):
                        raise PluginError(
                            f"{hook} must yield testbed.{kind.__name__}, got {component!r}."
                        )
                    yield component

    def of_file(self, word: str) -> list[Component]:
        """The components that a plugin file registered, by axis and name.

        Raises:
            InputError: none.
        """
        origin = os.path.realpath(word)
        found = [one.component for one in self._entries.values() if one.source.origin == origin]
        if not found:
            raise InputError(f"{word} registers no component.")
        order = list(AXES)
        return sorted(found, key=lambda one: (order.index(one.axis), one.name))

    # -- look-up -------------------------------------------------------------------------------

    def names(self, axis: str) -> list[str]:
        """The names on an axis, sorted; `axis` is singular or plural ("density", "densities")."""
        plural = {hook.removeprefix("testbed_"): kind.axis for kind, hook in HOOKS.items()}
        singular = plural.get(axis, axis)
        if singular not in AXES:
            raise UnknownName(unknown("axis", axis, AXES))
        return sorted(name for (found, name) in self._entries if found == singular)

    def source(self, component: Component) -> Provenance:
        """The provenance of the plugin that registered `component`."""
        return self._entries[component.axis, component.name].source

    def _find(self, kind: type[C], name: str, options: dict[str, Any]) -> C:
        entry = self._entries.get((kind.axis, name))
        if entry is None:
            message = unknown(kind.axis, name, self.names(kind.axis))
            if (kind.axis, name) in REFUSED:
                message = f"No {kind.axis} {name!r}. {REFUSED[kind.axis, name]}"
            for failure in self.failures:
                message += f" Not loaded: {failure.plugin} ({failure.origin}): {failure.error}"
            raise UnknownName(message)
        try:
            return cast(C, entry.component.bound(options))
        except InputError:
            raise
        except Exception as problem:
            raise PluginError(f"{entry.component.label} raised {said(problem)}") from problem

    def parameterization(self, name: str, **options: Any) -> Parameterization:
        """The parameterization of that name with its options bound.

        Raises (as every look-up here does):
            UnknownName: with the nearest name and the plugins that failed to load.
            InputError: an unknown option or one of the wrong type.
        """
        return self._find(Parameterization, name, options)

    def weighting(self, name: str, **options: Any) -> Weighting:
        """The weighting lambda(sigma) of that name."""
        return self._find(Weighting, name, options)

    def loss(self, name: str, **options: Any) -> Loss:
        """The loss of that name; `space` is an option of every loss."""
        found = self._find(Loss, name, options)
        if found.space not in (spaces := ["F", *PREDICTION_TYPES]):
            raise UnknownName(f"{found.label}: {unknown('space', found.space, spaces)}")
        return found

    def density(self, name: str, **options: Any) -> Density:
        """The density of sigma of that name; `sigma_min`, `sigma_max` are options of each."""
        return self._find(Density, name, options)

    def dataset(self, name: str, **options: Any) -> Dataset:
        """The data set of that name, not yet built: call it for its `Data`."""
        return self._find(Dataset, name, options)

    def network(self, name: str, **options: Any) -> Network:
        """The network of that name: call it with (shape, labels, seed) for a module."""
        return self._find(Network, name, options)

    def sampler(self, name: str, **options: Any) -> Sampler:
        """The sampler of that name, for `testbed.sample`."""
        return self._find(Sampler, name, options)

    def schedule(self, name: str, **options: Any) -> Schedule:
        """The schedule of that name: the levels of a sampler's run."""
        return self._find(Schedule, name, options)

    def table(self, name: str, **options: Any) -> NoiseTable:
        """The table of that name: the levels of a discrete denoiser."""
        return self._find(NoiseTable, name, options)

    def noise(self, name: str, **options: Any) -> Noise:
        """The noise of that name: what is added to eps in training."""
        return self._find(Noise, name, options)

    def guidance(self, name: str, **options: Any) -> Guidance:
        """The guidance of that name: how a sampler's denoiser is bent towards a condition."""
        return self._find(Guidance, name, options)

    def metric(self, name: str, **options: Any) -> Metric:
        """The sample metric of that name."""
        return self._find(Metric, name, options)

    def study_finished(self, study: Any, results: Any) -> None:
        """Calls every plugin's `testbed_study_finished`."""
        self._manager.hook.testbed_study_finished(study=study, results=results)


def is_file(word: str) -> bool:
    """Whether a word of the command line means a plugin file rather than a name or a module."""
    return word.endswith(".py") or os.sep in word


def missing(word: str) -> str:
    """`WORD: no such file.`, with the file of that folder whose name is nearest."""
    path = Path(word)
    stems = [file.stem for file in path.parent.glob("*.py") if os.path.isfile(file)]
    near = difflib.get_close_matches(path.stem, stems, n=1)
    return f"{word}: no such file." + "".join(
        f" Did you mean {str(path.parent / stem) + '.py'!r}?" for stem in near
    )


@functools.cache
def default_registry() -> Registry:
    """The registry of the bundled plugins, the plugin path and the entry points."""
    return Registry()


def _from_anywhere(word: str) -> str:
    """A `-p` word that means the same in any working directory."""
    return str(Path(word).absolute()) if is_file(word) else word


def _path_folders() -> list[Path]:
    words = os.environ.get(PATH_VARIABLE, "").split(os.pathsep)
    return [Path(os.path.realpath(word)) for word in words if word]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _module_version(module: ModuleType) -> str:
    top = module.__name__.partition(".")[0]
    if top == "testbed":
        return testbed.__version__
    for distribution in importlib.metadata.packages_distributions().get(top, []):
        return f"{distribution} {importlib.metadata.version(distribution)}"
    file = getattr(module, "__file__", None)
    return _sha256(Path(file)) if file else ""


def _import(module: str) -> ModuleType:
    return importlib.import_module(module)


class _FromSource(importlib.machinery.SourceFileLoader):
    """Runs what the file holds now: a .pyc may be of an edit within the same second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def import_file(origin: str) -> ModuleType:
    """The plugin file as `testbed.ext.<stem>`: importable, inspectable, picklable.

    A second file of the same stem, or the same file after a change, gets the first letters of a
    digest of its path and content behind its name, so that neither replaces the other.
    """
    file = Path(origin)
    digest = _sha256(file)
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
    spec = importlib.util.spec_from_file_location(name, file, loader=_FromSource(name, origin))
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


def _reject_unknown_hooks(plugin: Any) -> None:
    known = [hook for hook in dir(hookspecs) if hook.startswith("testbed_")]
    # The mark is a dict; an object that has every attribute (torch.ops, a mock) has no such mark.
    implemented = [
        word
        for word in dir(plugin)
        if isinstance(getattr(getattr(plugin, word, None), "testbed_impl", None), dict)
    ]
    for word in implemented:
        if word not in known:
            raise PluginError(unknown("hook", word, known))
    for word in dir(plugin):
        bare = word.startswith("testbed_") and word not in implemented
        if bare and (word in known or not implemented):
            raise PluginError(f"{word} lacks the decorator @testbed.hookimpl.")
    if not implemented:
        raise InputError(f"it implements no hook. Hooks: {', '.join(known)}.")
