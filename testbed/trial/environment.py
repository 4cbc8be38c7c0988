"""What the numbers of trials depend on besides their settings, compared where a worker runs.

A worker on another machine may have another version of torch, other sources or another plugin of
the same name. The driver records what it has, and the worker refuses what differs.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence

from testbed import __version__
from testbed.errors import InputError
from testbed.registry import Registry
from testbed.trial import build, sources
from testbed.trial.config import TrialConfig

NUMBERS = ("torch", "numpy", "scipy", "scikit-learn")
"""The packages that compute what a trial is and how it is measured."""


class OtherSources(InputError):
    """A worker has other sources, plugins, data or packages than the driver of the study."""


def versions(packages: Iterable[str] = NUMBERS) -> dict[str, str]:
    """The versions of testbed, Python and these packages, those that are installed."""
    found = {"testbed": __version__, "python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def record(registry: Registry) -> dict[str, str]:
    """The versions of packages, and the digests of the core's modules that make numbers."""
    components = [one.origin for one in registry.provenance if one.kind == "built in"]
    return {**versions(), **sources.digests(components)}


def check(recorded: Mapping[str, str], configs: Sequence[TrialConfig], registry: Registry) -> None:
    """Compares what a driver recorded, and the plugins and data of its trials, with those here.

    Raises:
        OtherSources: with every difference by name.
        InputError: the data cannot be read here.
    """
    differing = [*differences(recorded, record(registry))]
    loaded = {one.plugin: one.version for one in registry.provenance if one.kind != "built in"}
    for config in configs:
        used = {f"plugin {name}": version for name, version in config.plugins.items()}
        here = {f"plugin {name}": loaded.get(name, "") for name in config.plugins}
        differing += differences(used, here)
        digest = build.data_of(config, registry).digest
        name = f"the data {config.dataset.name}"
        differing += differences({name: config.data_digest}, {name: digest})
    if differing:
        raise OtherSources(
            f"the worker on {socket.gethostname()} differs from the study's driver: "
            f"{'; '.join(dict.fromkeys(differing))}. Give it the same sources, packages and files."
        )


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each name whose value is another in the driver than here."""
    for name in sorted({*there, *here}):
        before, after = there.get(name) or "none", here.get(name) or "none"
        if before != after:
            yield f"{name} is {before[:12]} in the driver and {after[:12]} here"
