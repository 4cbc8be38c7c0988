"""One-file plugins to start from: each passes its checks, and says in comments what to edit.

A template is an ordinary plugin file, named after its axis, whose component is called NAME.
"""

from __future__ import annotations

import keyword
from pathlib import Path

from testbed.errors import InputError, UnknownName, unknown
from testbed.registry import AXES, Registry

EXPLAINED = ("parameterization", "weighting", "loss", "density")
SETTINGS = {
    "parameterization": """'grid.parameterization=["NAME","edm"]'""",
    "sampler": "evaluation.sampler=NAME",
    "metric": """'evaluation.metrics=["NAME"]'""",
}
"""What a study is told to use NAME; for any other axis it is `AXIS=NAME`."""


def write(name: str, axis: str, out: Path | None, registry: Registry) -> Path:
    """Writes the template of an axis as a plugin called `name`.

    Args:
        name: of the component, an identifier that the axis does not have yet.
        axis: "parameterization", "weighting", ... in the singular.
        out: the file; NAME.py in the current folder by default.
        registry: what is there already.

    Returns:
        the file.

    Raises:
        InputError: no such axis, a name that is no identifier or is taken, a file that exists or
            whose folder does not.
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
    file = out or Path(f"{name}.py")
    if file.suffix != ".py":
        raise InputError(f"--out {file}: expected a file that ends in .py.")
    if file.exists():
        raise InputError(f"{file} exists already and is left as it is: give another --out.")
    if not file.parent.is_dir():
        raise InputError(f"--out {file}: the folder {file.parent} does not exist.")
    file.write_text(source_of(axis, name), encoding="utf-8")
    return file


def source_of(axis: str, name: str) -> str:
    """The template of an axis, with its component called `name`."""
    template = Path(__file__).parent / f"{axis}.py"
    return template.read_text(encoding="utf-8").replace("NAME", name)


def commands(name: str, axis: str, file: Path) -> list[str]:
    """What to type next: check, explain (where there is something to explain) and a study."""
    setting = SETTINGS.get(axis, f"{axis}=NAME").replace("NAME", name)
    explain = [f"testbed explain {name} -p {file}"] if axis in EXPLAINED else []
    return [
        f"testbed check {file}",
        *explain,
        f"testbed study default -p {file} --set {setting} --only mixture",
    ]
