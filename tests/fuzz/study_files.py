"""Study files: the bundled ones, changed until they are wrong."""

import copy
import functools
import tomllib
from collections.abc import Iterator
from dataclasses import is_dataclass
from random import Random
from typing import Any, get_args

from fuzz import hostile
from fuzz.inputs import Input
from pydantic import BaseModel

from testbed import settings
from testbed.bundled import bundled
from testbed.registry import AXES, default_registry
from testbed.study.settings import Header, ReportSettings
from testbed.trial.config import TrialSettings
from testbed.trial.specs import Evaluation

SECTIONS = ("study", "base", "arms", "grid", "cases", "fixed", "executor", "report")
SMALL = {"mixture": {"n": 300, "test": 60}}
WITHIN = ("sigma_data.assumed", "conditions.label", "variance.vlb")
"""Keys of tables that are no settings of their own."""


def _keys(model: type[Any], prefix: str = "") -> Iterator[str]:
    """The keys of a model's settings, those of the models within it and of its components."""
    for field in settings.fields(model):
        key = prefix + field.name
        yield key
        inner = [one for one in (field.type, *get_args(field.type)) if isinstance(one, type)]
        if axis := field.setting.axis:
            yield from (f"{key}.{option}" for option in _options(axis))
            continue
        for one in inner:
            if is_dataclass(one) or issubclass(one, BaseModel):
                yield from _keys(one, f"{key}.")


def _options(axis: str) -> list[str]:
    """The options that any bundled component of an axis has."""
    registry = default_registry()
    every = (getattr(registry, axis)(name).defaults for name in registry.names(axis))
    return sorted({option for defaults in every for option in defaults})


def _places_of_axes(model: type[Any], prefix: str = "") -> dict[str, str]:
    """The key of a study file that names a component of each axis."""
    return {
        field.setting.axis: f"{prefix}{field.name}"
        for field in settings.fields(model)
        if field.setting.axis
    }


KEYS = (*_keys(TrialSettings), *_keys(Header), *_keys(ReportSettings), *WITHIN)
PLACES = {
    **_places_of_axes(TrialSettings),
    **_places_of_axes(Evaluation, "evaluation."),
    "recipe": "recipe",
}
TEXTS = (
    "x = " + "[" * 3000 + "]" * 3000,
    "x = " + "{a = " * 800 + "1" + "}" * 800,
    "x = " + "9" * 5000,
    "x = 0x" + "f" * 6000,
    "[" + ".".join("a" * 600) + "]",
    "x = 2024-13-45",
    "x = 1979-05-27T07:32:00Z",
    "x = 07:32:00",
    "[base]\nsigma_min = 1979-05-27",
    'x = "\\ud800"',
    'x = """',
    "[study]\n[study]",
    "\ufeff",
    "[[study]]",
    "study.name = 'a'\n[study]",
    "[cases]",
    "[grid]\n[grid.a]\n[grid.a.b]",
)


@functools.cache
def originals() -> tuple[dict[str, Any], ...]:
    """The bundled studies with little data, and one that names nothing twice."""
    found = []
    for file in sorted(bundled("studies").glob("*.toml")):
        study = tomllib.loads(file.read_text(encoding="utf-8"))
        study["base"] |= {"network": {"name": "mlp", "width": 8, "depth": 1}}
        study["base"]["training"]["batch"] = 8
        study.setdefault("cases", [{"name": "all"}])
        for case in study["cases"]:
            case.pop("network", None)
            case["seeds"] = 1
            if isinstance(case.get("encoder"), dict):  # which a plan trains
                case["encoder"]["steps"] = 2
        for part in (study["base"], *study["cases"]):
            named = part.get("dataset")
            if isinstance(named, dict):
                named |= SMALL.get(named["name"], {})
        study["grid"] = {axis: values[:2] for axis, values in study["grid"].items()}
        found.append(study)
    (default,) = (study for study in found if study["study"]["name"] == "default")
    small = copy.deepcopy(default)
    small["cases"] = [case for case in small["cases"] if case["name"] == "mixture"]
    small["grid"] = {"parameterization": ["v", "edm"]}
    return (*found, small, small, small)


def make(chance: Random) -> Input:
    """A wrong study file, and the command that reads it."""
    content = written(chance)
    name = chance.choice(["a.toml", "a.toml", "a b.toml", "σ.toml", "plain"])
    words = ["plan", name]
    if chance.random() < 0.5:
        words += ["--seeds", "1"]
    if chance.random() < 0.01:
        words[0] = "study"
        words += ["--jobs", "0", "--no-mlflow", "--set", "training.steps=2"]
        words += ["--set", "evaluation={levels=2, draws=8, samples=4, steps=1}"]
    return Input((*words, "--out", "out"), {name: content})


def written(chance: Random) -> bytes:
    """The content of a wrong study file."""
    if chance.random() < 0.06:
        extra = chance.choice(TEXTS)
        body = hostile.toml(chance.choice(originals())) if chance.random() < 0.5 else ""
        return f"{body}{extra}\n".encode(errors="surrogatepass")
    study = copy.deepcopy(chance.choice(originals()))
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        change(chance, study)
    content = hostile.toml(study).encode()
    if chance.random() < 0.25:
        content = chance.choice(hostile.EDITS)(chance, content)
    return content


def change(chance: Random, study: dict[str, Any]) -> None:
    """One change of a study, in place."""
    places = list(_places(study))
    how = chance.randrange(10)
    if not places or how == 0:
        _put(study, f"base.{chance.choice(KEYS)}", hostile.value(chance))
    elif how == 1:
        axis = chance.choice(list(AXES))
        _put(study, f"base.{PLACES[axis]}", component(chance, axis))
    elif how == 2:
        where = chance.choice(["base", "arms.published", "grid", "report", "study", "cases.0"])
        _put(study, f"{where}.{chance.choice(KEYS)}", hostile.value(chance))
    else:
        table, key = chance.choice(places)
        _change_at(chance, study, table, key)


def _change_at(chance: Random, study: dict[str, Any], table: Any, key: Any) -> None:
    inner = table[key]
    how = chance.randrange(8)
    if how == 0:
        del table[key]
    elif how == 1 and isinstance(table, dict):
        table[hostile.typo(chance, key)] = table.pop(key)
    elif how == 2 and isinstance(table, dict):
        table[chance.choice([*KEYS, *hostile.STRINGS])] = inner
    elif how == 3:
        table[key] = [inner]
    elif how == 4:
        table[key] = {chance.choice(["name", "assumed", "x", ""]): inner}
    elif how == 5 and isinstance(inner, str):
        table[key] = hostile.typo(chance, inner)
    elif how == 6:
        study[chance.choice([*SECTIONS, "x", ""])] = copy.deepcopy(inner)
    else:
        table[key] = hostile.value(chance)


def _places(found: Any) -> Any:
    """Every (container, key) of a nested value."""
    pairs = found.items() if isinstance(found, dict) else enumerate(found)
    for key, inner in list(pairs):
        yield found, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _put(study: dict[str, Any], path: str, found: Any) -> None:
    *way, last = path.split(".")
    table: Any = study
    for key in way:
        if isinstance(table, list):
            table = table[0] if table else {}
            continue
        if not isinstance(table, dict):
            return
        if not isinstance(table.get(key), dict | list):
            table[key] = {"name": table[key]} if isinstance(table.get(key), str) else {}
        table = table[key]
    if isinstance(table, dict):
        table[last] = found


def component(chance: Random, axis: str) -> Any:
    """A component by name, with options that it has at values that it may not like."""
    registry = default_registry()
    name = chance.choice(registry.names(axis))
    defaults = getattr(registry, axis)(name).defaults
    table = {"name": name}
    for option, default in defaults.items():
        if chance.random() < 0.4:
            table[option] = hostile.value(chance) if chance.random() < 0.6 else default
    named = table if len(table) > 1 else name
    return [named] if axis == "metric" else named
