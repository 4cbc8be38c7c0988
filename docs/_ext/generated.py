"""Pages, or parts of them, that are written from the code: a line `% generated: NAME [ARGUMENT]`
of a page is replaced by what the function NAME returns, as Markdown.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import testbed
from testbed.bundled import bundled
from testbed.components.recipe import STATED
from testbed.diffusion.predictions import slope
from testbed.registry import default_registry
from testbed.study.executors.settings import ExecutorSettings
from testbed.study.settings import Header, ReportSettings
from testbed.trial.config import TrialSettings
from testbed.trial.fixed_model import FixedModel
from testbed.trial.recipes import UNSTATED
from testbed.trial.recipes import objective as recipe_objective

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LINE = re.compile(r"^% generated: (\w+) ?(\S*)$", re.MULTILINE)
SECTIONS = {
    "study": Header,
    "executor": ExecutorSettings,
    "report": ReportSettings,
    "fixed": FixedModel,
    "": TrialSettings,
}
APART = {(TrialSettings, "fixed"), (FixedModel, "digest")}
"""Keys that a study writes, and no file."""
COMPONENT = TrialSettings.model_fields["dataset"].annotation
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


# --- study keys ---------------------------------------------------------------------------------


def study_keys(section: str) -> str:
    """One table of the keys of a section, and one for each table in it."""
    prefix = "" if section == "base" else f"{section}."
    return "\n\n".join(_tables(SECTIONS["" if section == "base" else section], prefix))


def _tables(model: type, prefix: str) -> Iterator[str]:
    nested: list[tuple[str, type]] = []
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, info in _fields(model).items():
        lines.append(_row(f"{prefix}{name}", info, _says(model, name, info)))
        nested += [(f"{prefix}{name}.", one) for one in _models(info.annotation)]
    yield "\n".join(lines)
    for path, one in nested:
        summary = " ".join(inspect.cleandoc(one.__doc__ or "").split("\n\n")[0].split())
        yield f"### `{path[:-1]}`\n\n{_plain(summary)}"
        yield from _tables(one, path)


def _fields(model: type) -> dict[str, FieldInfo]:
    if issubclass(model, BaseModel):
        found = model.model_fields
        return {name: info for name, info in found.items() if (model, name) not in APART}
    hints = typing.get_type_hints(model, include_extras=True)
    return {
        field.name: FieldInfo.from_annotated_attribute(hints[field.name], field.default)
        for field in dataclasses.fields(model)
    }


def _says(model: type, name: str, info: FieldInfo) -> str:
    """The sentence of a field: its metadata, its description, or the docstring of its model."""
    for one in info.metadata:
        if getattr(one, "says", ""):
            return str(one.says)
    if info.description:
        return info.description
    entry = re.search(rf"^    {name}: (.*?)(?=^    \w+: |^\S|\Z)", _doc(model), re.M | re.S)
    return " ".join(entry[1].split()) if entry else ""


def _doc(model: type) -> str:
    return inspect.cleandoc(model.__doc__ or "").partition("Args:")[2]


def _row(key: str, info: FieldInfo, says: str) -> str:
    bounds = [
        f"{word} {getattr(one, name):g}"
        for one in info.metadata
        for name, word in LIMITS.items()
        if isinstance(getattr(one, name, None), int | float)
    ]
    kind = ", ".join([_type(info.annotation), *bounds])
    default = "" if info.is_required() else f"`{_default(info)}`"
    cells = [f"`{key}`", kind, default.replace("|", r"\|"), _plain(says)]
    return "| " + " | ".join(cells) + " |"


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        return "{}" if not isinstance(value, COMPONENT) else _toml(value)
    return _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, COMPONENT):
        return f'"{value.name}"'
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value)


def _type(hint: Any) -> str:
    """A type in the words of TOML."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is typing.Literal:
        return " or ".join(f'`"{word}"`' for word in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in inner if one is not types.NoneType)
    if origin is tuple or origin is list:
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"table of {_type(inner[1])}"
    if hint is COMPONENT:
        return "[component](#components)"
    words = {int: "integer", float: "number", str: "string", bool: "boolean"}
    return words.get(hint, "table")


def _models(hint: Any) -> list[type]:
    """The tables that a key may hold."""
    if isinstance(hint, type):
        table = issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint)
        return [hint] if table and hint is not COMPONENT else []
    return [model for one in typing.get_args(hint) for model in _models(one)]


# --- recipes ------------------------------------------------------------------------------------

SIGMAS = (0.01, 0.05, 0.2, 1.0, 5.0, 50.0)
SIGMA_DATA = 0.5
OURS = tomllib.loads((bundled("studies") / "default.toml").read_text())["arms"]["equal"]


def recipes_by_paper(_: str) -> str:
    """Every recipe: where its paper has each choice, what it is here, beside the arm `equal`."""
    registry = default_registry()
    return "\n\n".join(
        _recipe(registry.recipe(name), registry) for name in registry.names("recipe")
    )


def _recipe(recipe: testbed.Recipe, registry: testbed.Registry) -> str:
    lines = [f"## `{recipe.name}`", f"{_plain(recipe.reference)}."]
    own = [name for name in registry.names("parameterization")
           if registry.parameterization(name).recipe == recipe.name]  # fmt: skip
    whose = f"It trains the parameterization `{recipe.parameterization}`"
    lines[-1] += f" {whose}" + (f", and is the own recipe of {_all(own)}." if own else ".")
    columns = ("choice", "here", "ours (`equal`)", "in the paper", "read in")
    rows = [columns, ("---",) * len(columns)]
    for choice in STATED:
        said = _plain(recipe.equations.get(choice, ""))
        source = str(recipe.sources.get(choice, ""))
        rows.append((choice, *_choice(recipe, choice), said, source))
    lines.append(_table(rows))
    lines.append(_implied(recipe, registry))
    deviations = "\n".join(f"- {_plain(one)}" for one in recipe.deviations)
    lines.append(f"Deviations from the paper:\n\n{deviations}")
    return "\n\n".join(lines)


def _all(names: list[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _choice(recipe: testbed.Recipe, choice: str) -> tuple[str, str]:
    """A choice of the recipe, and of the arm `equal`, in a cell each."""
    if choice == "prediction":
        return f"`{recipe.parameterization}`", "each one's own"
    if choice == "levels":
        ends = recipe.sigma_min, recipe.sigma_max
        low, high = UNSTATED
        usual, here = f"{low:g} to {high:g}", _plain(f"{ends[0]} to {ends[1]}")
        if None in ends:
            here = "those of the table" if recipe.table else usual
        return here, usual
    default = {"table": None, "output": "F"}.get(choice)
    here, ours = (
        "none" if value is None else f"`{COMPONENT.model_validate(value)}`"
        for value in (getattr(recipe, choice), OURS.get(choice, default))
    )
    return here, ours


def _implied(recipe: testbed.Recipe, registry: testbed.Registry) -> str:
    """lambda and p at a few levels, at sigma_data = 1/2."""
    p = registry.parameterization(recipe.parameterization)
    equal = testbed.Recipe(**{one: OURS[one] for one in ("weighting", "loss", "density")})
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    head = ["at sigma_data = 0.5, sigma =", *(f"{one:g}" for one in SIGMAS)]
    rows = []
    for whose, one in (("", recipe), (", ours", equal)):
        objective = recipe_objective(one, p, registry, SIGMA_DATA).with_states(0)
        with torch.no_grad():
            weight = objective.k(sigma) * slope(objective.space, sigma, SIGMA_DATA) ** 2
        density = objective.density.pdf_over_log_sigma(sigma)
        rows.append([f"lambda(sigma){whose}", *(f"{one:.4g}" for one in weight.tolist())])
        rows.append([f"p(log sigma){whose}", *(f"{one:.3g}" for one in density.tolist())])
    return _table([head, ["---"] * len(head), *rows])


def _table(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# --- the command line ---------------------------------------------------------------------------


def commands(_: str) -> str:
    """Every command with its arguments and options, from the application itself."""
    from testbed.cli.app import app

    root = typer.main.get_command(app)
    parts = [_options(root.params)]
    for name, command in sorted(root.commands.items()):
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join([f"testbed {name}", *(_argument(p) for p in arguments), "[OPTIONS]"])
        parts.append(
            f"## testbed {name}\n\n{_options_as_code(inspect.cleandoc(command.help or ''))}"
        )
        parts.append(f"```text\n{usage}\n```")
        parts.append(_options(command.params))
    return "\n\n".join(parts)


def _argument(parameter: Any) -> str:
    word = parameter.metavar or parameter.name.upper()
    return word if parameter.required else f"[{word}]"


def _options(parameters: list[Any]) -> str:
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for one in parameters:
        if one.name == "help" or getattr(one, "hidden", False):
            continue
        names = [*one.opts, *one.secondary_opts]
        if one.param_type_name == "argument":
            names = [one.metavar or one.name.upper()]
        name = ", ".join(f"`{word}`" for word in names).replace("|", r"\|")
        default = one.default
        blank = default is None or default is False or default == "" or callable(default)
        said = "" if blank or one.required else f"`{default}`"
        lines.append(f"| {name} | {said} | {_plain(one.help or '')} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _options_as_code(text: str) -> str:
    return re.sub(r"(?<![`\w-])--[a-z][a-z-]*", r"`\g<0>`", text)


# --- the programming interface ------------------------------------------------------------------


def room(name: str) -> str:
    """The modules of one package below testbed, or of the files beside them, by autodoc."""
    folder = Path(testbed.__file__).parent
    if name == "root":
        names = ["bundled", "errors", "notebook", "plugin_files", "random", "registry", "settings"]
        names.append("tensors")
        return "\n\n".join(_module(f"testbed.{one}") for one in names)
    package = importlib.import_module(f"testbed.{name}")
    found = pkgutil.walk_packages([str(folder / name)], f"testbed.{name}.")
    inner = [one.name for one in found if not one.name.rpartition(".")[2].startswith("_")]
    return "\n\n".join([_package(package), *map(_module, inner)])


def _package(package: types.ModuleType) -> str:
    name = package.__name__
    return f"```{{eval-rst}}\n.. automodule:: {name}\n   :no-members:\n```"


def _module(name: str) -> str:
    package = hasattr(importlib.import_module(name), "__path__")
    members = "   :no-members:\n" if package else ""
    return f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n{members}```"


def public_names(_: str) -> str:
    """The names of `testbed` itself, with the first sentence of each and where it is explained."""
    lines = ["| name | meaning |", "|---|---|"]
    for name in testbed.__all__:
        thing = getattr(testbed, name)
        first = " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())
        lines.append(f"| {_link(name, thing)} | {_plain(first)} |")
    return "\n".join(lines)


def _link(name: str, thing: Any) -> str:
    if inspect.ismodule(thing):
        return f"{{py:mod}}`testbed.{name} <{thing.__name__}>`"
    home = getattr(thing, "__module__", "")
    if not home.startswith("testbed."):
        return f"`testbed.{name}`"
    return f"{{py:obj}}`testbed.{name} <{home}.{thing.__qualname__}>`"


def _plain(text: str) -> str:
    """Text of a docstring in a cell: what is not in backticks stands for itself."""
    parts = re.split(r"(`[^`]+`)", text)
    cells = [
        part if i % 2 else re.sub(r"([\\*_<>$])", r"\\\1", part) for i, part in enumerate(parts)
    ]
    return "".join(cells).replace("|", r"\|")


GENERATORS = {
    "study_keys": study_keys,
    "recipes": recipes_by_paper,
    "commands": commands,
    "room": room,
    "public_names": public_names,
}


def replace(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = LINE.sub(lambda found: GENERATORS[found[1]](found[2]), source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    # It reads the defaults of functions, which autodoc replaces by their text.
    default_registry()
    app.connect("source-read", replace)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
