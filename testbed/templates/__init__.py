"""One-file plugins to start from: each passes its checks, and says in comments what to edit.

A template is an ordinary plugin file, named after its axis, whose component is called NAME.
"""

from __future__ import annotations

import importlib.util
import keyword
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from testbed.errors import InputError, UnknownName, unknown
from testbed.registry import AXES, Registry

EXPLAINED = ("parameterization", "weighting", "loss", "density")
EDM = 'grid.parameterization=["edm"]'
SETTINGS = {
    "parameterization": ['grid.parameterization=["NAME","edm"]'],
    "weighting": [EDM, 'grid.weighting=["edm","NAME"]'],
    "loss": [EDM, 'grid.loss=["l2","NAME"]'],
    "density": [EDM, 'grid.density=["lognormal","NAME"]'],
    "network": [EDM, 'grid.network=[{name="mlp",width=64,depth=2},"NAME"]'],
    "dataset": ["dataset=NAME"],
    "sampler": ["evaluation.sampler=NAME"],
    "schedule": ["evaluation.schedule=NAME"],
    "guidance": ["conditions.label=0.1", "evaluation.guidance=NAME"],
    "table": ["table=NAME", "density=table"],
    "noise": [EDM, 'grid.noise=["white","NAME"]'],
    "recipe": [EDM, 'grid.recipe=["own","NAME"]'],
    "metric": ['evaluation.metrics=["NAME"]'],
}
"""What sets NAME beside what a study has anyway, or in its place where that is no grid.

The variant that stands first is the baseline, where edm itself is not one.
"""


def write(name: str, axis: str, file: Path, registry: Registry) -> None:
    """Writes the template of an axis as a plugin called `name`.

    Args:
        name: of the component, an identifier that the axis does not have yet.
        axis: "parameterization", "weighting", ... in the singular.
        file: the file to write, which ends in .py.
        registry: what is there already.

    Raises:
        InputError: no such axis, a name that is no identifier or is taken, a file that exists,
            whose folder does not, or that would hide a module.
    """
    if axis not in AXES:
        raise UnknownName(f"--axis {axis}: {unknown('axis', axis, AXES)}")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(
            f"{name!r} is no name for a plugin: expected an identifier, letters, digits and _ "
            "and no digit first."
        )
    if name in registry.names(axis):
        source = registry.source(getattr(registry, axis)(name))
        raise InputError(
            f"{axis} {name!r} is there already, from {source.origin}: take another name."
        )
    if file.suffix != ".py":
        raise InputError(f"--out {file}: expected a file that ends in .py.")
    if file.exists() or file.is_symlink():
        raise InputError(f"--out {file}: exists already and is left as it is: name another.")
    if not file.parent.is_dir():
        raise InputError(f"--out {file}: the folder {file.parent} does not exist.")
    if file.parent.resolve() == Path.cwd() and _importable(file.stem):
        raise InputError(
            f"--out {file}: {file.name} in this folder would be imported in place of the module "
            f"{file.stem!r}: name another."
        )
    file.write_text(source_of(axis, name), encoding="utf-8")


def _importable(name: str) -> bool:
    """Whether `import name` finds a module already."""
    if name in sys.modules:
        return True
    found = importlib.util.find_spec(name)
    return found is not None and found.loader is not None


def source_of(axis: str, name: str) -> str:
    """The template of an axis, with its component called `name`."""
    template = Path(__file__).parent / f"{axis}.py"
    return template.read_text(encoding="utf-8").replace("NAME", name)


def commands(name: str, axis: str, file: Path) -> list[str]:
    """What to type next: check, explain (where there is something to explain) and a study."""
    explain = [["explain", name, "-p", str(file)]] if axis in EXPLAINED else []
    study = study_words(name, axis, ["-p", str(file)])
    return [shlex.join(["testbed", *words]) for words in (["check", str(file)], *explain, study)]


def study_words(
    name: str, axis: str, plugins: Sequence[str] = (), case: str = "mixture"
) -> list[str]:
    """The command, after `testbed`, of a study that has the component `name` of an axis.

    `plugins` are the words that bring its plugin, such as `-p mine.py`; `case` is that of the
    default study, "mixture" of vectors or "digits" of images.
    """
    texts = [text.replace("NAME", name) for text in SETTINGS[axis]]
    # A component that stands on the grid already, such as white noise, is there once.
    texts = [text.replace(f'"{name}","{name}"', f'"{name}"') for text in texts]
    settings = [word for text in texts for word in ("--set", text)]
    return ["study", "default", *plugins, *settings, "--only", case]
