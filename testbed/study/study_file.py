"""Study files: TOML and overrides to validated settings, one for each trial.

    plugins    files, modules and "no:NAME" to load, as -p takes them; above every section
    [study]    name, title, budgets: other lengths of training, each trained on its own
    [base]     settings of every trial
    [arms]     named overrides, one line each; every case runs in every arm
    [grid]     dotted.key = [values]: all combinations
    [[cases]]  name and overrides: usually one data set each
    [[fixed]]  models of other codebases that are measured beside the trials, not trained
    [executor] where the trials run
    [report]   baseline, primary metric

Later ones win: base, case, arm, grid, and last what `--set` says. A baseline is the name of a
variant, or of a parameterization: its first variant in the order of the grid.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from testbed import toml
from testbed.bundled import bundled
from testbed.errors import InputError, did_you_mean, unknown
from testbed.study import layers
from testbed.study import plugins as study_plugins
from testbed.study.executors.settings import ExecutorSettings
from testbed.study.layers import NOWHERE, Layers
from testbed.study.settings import LONGEST, Header, ReportSettings
from testbed.study.validation import validated
from testbed.trial.config import TrialSettings
from testbed.trial.fixed_model import NAME, FixedModel
from testbed.trial.specs import numbers_of_steps

SECTIONS = ("study", "base", "arms", "grid", "cases", "fixed", "executor", "report")

APART = {"study": Header, "report": ReportSettings, "executor": ExecutorSettings}
"""The sections that are of the study itself, no part of a trial."""


@dataclass(frozen=True)
class TrialTemplate:
    """One trial before resolution: its labels and its settings, still without a seed.

    `budget` is its number of steps where that is one of the study's budgets, else None.
    """

    case: str
    arm: str
    grid_point: tuple[tuple[str, Any], ...]
    settings: TrialSettings
    budget: int | None = None
    layers: Layers = NOWHERE
    """Where its settings stand in the file; without any for a fixed model."""

    @property
    def fixed(self) -> str:
        """The name of the model that is measured without training; "" for a trial that trains."""
        return self.settings.fixed.name if self.settings.fixed is not None else ""


@dataclass(frozen=True)
class Invocation:
    """The arguments of `read`: what of which file, with which changes."""

    file: str
    overrides: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seeds: int | None = None
    at_most: int | None = None
    """Most seeds of a variant, where seeds are added until all is decided; else None."""


@dataclass(frozen=True)
class StudyFile:
    """A validated study file; `replaced` says which settings of it have no effect.

    `plugins` has the plugins that it names, as words of `-p`, and where each of them stands.
    """

    file: str
    header: Header
    report: ReportSettings
    templates: tuple[TrialTemplate, ...]
    text: str
    asked: Invocation
    executor: ExecutorSettings
    replaced: tuple[str, ...] = ()
    plugins: Mapping[str, str] = field(default_factory=dict)


def read(
    file: Path,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: int | None = None,
    at_most: int | None = None,
) -> StudyFile:
    """Reads and validates a study file.

    Args:
        file: a TOML file, or the name of a bundled study.
        overrides: `dotted.path=value`, the value read as TOML (a bare word is a string). A path
            that starts with a section changes the file; any other applies to every trial.
        only: names of parameterizations, cases or arms to keep.
        seeds: run this many seeds in every case.
        at_most: add seeds until every comparison with a baseline is decided, up to this many.

    Raises:
        InputError: with every problem found: file, key, value, what was expected.
    """
    path = find(file)
    asked = Invocation(str(file), tuple(overrides), tuple(only), seeds, at_most)
    return parse(_text(path), path, asked)


def plugins(file: Path) -> dict[str, str]:
    """The plugins that a study file names, as words of `-p`, and where each of them stands.

    A path is made absolute; in the file it is relative to the file's folder.

    Args:
        file: as for `read`; nothing else of it is validated.

    Raises:
        InputError: the file cannot be read, or its `plugins` are not a list of words.
    """
    path = find(file)
    problems: list[str] = []
    found = study_plugins.take(path, _tables(_text(path), path), problems)
    if problems:
        raise InputError("\n".join(problems))
    return found


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:
        raise InputError(f"{path}: cannot be read as TOML: {problem}") from None
    if not text.strip():
        raise InputError(f'{path}: the file is empty: begin with [study] and name = "...".')
    return text


def _tables(text: str, path: Path) -> dict[str, Any]:
    try:
        return toml.read(text)
    except (ValueError, RecursionError) as problem:
        raise InputError(f"{path}: cannot be read as TOML: {problem}") from None


def parse(text: str, path: Path, asked: Invocation) -> StudyFile:
    """Validates the text of a study file; messages name it `path`.

    Raises:
        InputError: as `read` does.
    """
    raw = _tables(text, path)
    problems: list[str] = []
    plugins = study_plugins.take(path, raw, problems)
    everywhere: dict[str, Any] = {}
    if isinstance(raw.get("grid"), dict):
        raw["grid"] = dict(layers.axes(raw["grid"]))
    overridden = [_override(raw, everywhere, word) for word in asked.overrides]
    if asked.seeds is not None:
        if asked.seeds < 1:
            raise InputError(f"--seeds {asked.seeds} must be at least 1.")
        everywhere["seeds"] = asked.seeds
    known = (*SECTIONS, study_plugins.KEY)
    problems += [
        f"{path}: {unknown('section', name, known)}" for name in raw if name not in SECTIONS
    ]
    _check_kinds(path, raw, problems)
    header, report, executor = (
        validated(
            model,
            raw.get(name, {}),
            lambda key, of=name: layers.set_(f"{of}.{key}", overridden),
            path,
            problems,
        )
        for name, model in APART.items()
    )
    found = _templates(path, raw, everywhere, overridden, problems)
    if header is not None:
        found = [*found, *_of_budgets(path, header.budgets, found, problems)]
    if not problems:
        found += _of_fixed(path, raw, everywhere, problems)
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    kept = tuple(_kept(found, asked.only))
    replaced = tuple(layers.replaced(raw, everywhere, dict.fromkeys(a.arm for a in kept)))
    return StudyFile(str(path), header, report, kept, text, asked, executor, replaced, plugins)


def find(file: Path) -> Path:
    """The file itself, or the bundled study of that name.

    Raises:
        InputError: neither exists, or it is a folder.
    """
    if file.is_file():
        return file
    studies = {path.stem: path for path in bundled("studies").glob("*.toml")}
    if str(file) in studies:
        return studies[str(file)]
    if file.is_dir():
        raise InputError(f"study file {file} is a folder: name a TOML file in it.")
    near = [*studies, *map(str, file.parent.glob("*.toml"))]
    hint = did_you_mean(str(file), near) or f" Bundled studies: {', '.join(sorted(studies))}."
    raise InputError(f"study file {file} does not exist.{hint}")


def _override(raw: dict[str, Any], everywhere: dict[str, Any], word: str) -> str:
    """Puts a value where a word of `--set` wants it, and returns its dotted key."""
    path, equals, text = word.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise InputError(f"--set {word}: expected dotted.path=value.")
    try:
        value = toml.read(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    except (ValueError, RecursionError) as problem:  # too long a number, too deep a nesting
        raise InputError(f"--set {path}: cannot be read as TOML: {problem}") from None
    if keys[0] == study_plugins.KEY:
        raise InputError(f"--set {word}: a plugin is named in the study file, or with -p.")
    if keys[0] not in SECTIONS:
        _put(everywhere, keys, value, f"--set {word}")
    elif keys[0] == "cases":
        listed = raw.get("cases")
        tables = [c for c in listed if isinstance(c, dict)] if isinstance(listed, list) else []
        names = {str(case.get("name")): case for case in tables}
        if len(keys) < 3 or keys[1] not in names:
            raise InputError(f"--set {word}: {unknown('case', '.'.join(keys[1:2]), names)}")
        _put(names[keys[1]], keys[2:], value, f"--set {word}")
    elif keys[0] == "grid" and len(keys) > 1 and isinstance(raw.setdefault("grid", {}), dict):
        raw["grid"][".".join(keys[1:])] = value
    else:
        _put(raw, keys, value, f"--set {word}")
    return ".".join(keys)


def _put(table: dict[str, Any], keys: list[str], value: Any, where: str) -> None:
    for i, key in enumerate(keys[:-1]):
        inner = table.setdefault(key, {})
        if isinstance(inner, str) and i == len(keys) - 2:
            # An option of a component that was given by its bare name.
            inner = table[key] = {"name": inner}
        if not isinstance(inner, dict):
            raise InputError(f"{where}: {'.'.join(keys[: i + 1])} = {inner!r} is not a table.")
        table = inner
    table[keys[-1]] = value


def _check_kinds(path: Path, raw: dict[str, Any], problems: list[str]) -> None:
    """A section of the wrong kind is a problem, and left out of what follows."""
    kinds = {name: list if name in ("cases", "fixed") else dict for name in SECTIONS}
    for name, kind in kinds.items():
        if not isinstance(raw.get(name, kind()), kind):
            wanted = f"a list of tables, [[{name}]]" if kind is list else f"a table, [{name}]"
            problems.append(f"{path}: {name} = {raw.pop(name)!r} must be {wanted}.")


def _templates(
    path: Path,
    raw: Mapping[str, Any],
    everywhere: Mapping[str, Any],
    overridden: Sequence[str],
    problems: list[str],
) -> list[TrialTemplate]:
    grid = _grid(path, raw.get("grid", {}), overridden, problems)
    axes = dict(layers.axes(raw.get("grid", {})))
    arms = {str(name): arm for name, arm in (raw.get("arms") or {"": {}}).items()}
    for arm, settings in arms.items():
        if not isinstance(settings, dict):
            problems.append(f"{path}: arms.{arm} = {settings!r} must be a table, for example {{}}.")
    found = []
    # What is missing may be missing because of a problem that is already known.
    known = bool(problems)
    cases = raw.get("cases") or [{"name": ""}]
    names = [case.get("name") if isinstance(case, dict) else None for case in cases]
    for index, case in enumerate(cases):
        if not isinstance(case, dict) or not isinstance(case.get("name"), str):
            problems.append(f"{path}: cases[{index}] = {case!r} needs a name, a string.")
            continue
        if case["name"] in names[:index]:
            problems.append(
                f"{path}: cases[{index}].name = {case['name']!r} is that of a case before: give "
                "each a name of its own."
            )
            continue
        if "/" in case["name"] or not case["name"].isprintable() or len(case["name"]) > LONGEST:
            problems.append(
                f"{path}: cases[{index}].name = {case['name']!r} becomes the name of files: "
                f"expected up to {LONGEST} letters and no /."
            )
            continue
        own = {key: value for key, value in case.items() if key != "name"}
        for (arm, settings), indices in itertools.product(arms.items(), grid):
            point = [(key, axes[key][index]) for key, index in indices.items()]
            stated = {
                "base": raw.get("base", {}),
                f"cases.{case['name']}": own,
                f"arms.{arm}": settings if isinstance(settings, dict) else {},
                "grid": _nested(point, path),
                "--set": everywhere,
            }
            of_trial = Layers(stated, indices, overridden)
            if NAME in of_trial.merged:
                problems.append(f"{path}: {of_trial.origin(NAME)}: write [[fixed]].")
            trial = validated(
                TrialSettings,
                of_trial.merged,
                of_trial.origin,
                path,
                problems,
                missing=not known,
            )
            if trial is not None:
                labels = case["name"], arm, tuple(point)
                found.append(TrialTemplate(*labels, trial, layers=of_trial))
    return found


def _of_budgets(
    path: Path,
    budgets: Sequence[int | float],
    found: Sequence[TrialTemplate],
    problems: list[str],
) -> Iterable[TrialTemplate]:
    """Each trial with every other budget as its number of steps, measured at its end alone."""
    for template in found:
        settings = template.settings
        for steps in numbers_of_steps(budgets, settings.training.steps):
            try:
                training = replace(settings.training, steps=steps)
            except InputError as problem:
                where = f"study.budgets = {list(budgets)!r}"
                problems.append(f"{path}: {where}: with {steps} steps {problem}")
                continue
            evaluation = settings.evaluation.model_copy(update={"points": (), "widths": ()})
            shorter = settings.model_copy(update={"training": training, "evaluation": evaluation})
            yield replace(template, settings=shorter, budget=steps)


def _of_fixed(
    path: Path, raw: Mapping[str, Any], everywhere: Mapping[str, Any], problems: list[str]
) -> list[TrialTemplate]:
    """Every model of [[fixed]] in every case and arm, measured as the trials there are."""
    if not raw.get("fixed"):
        return []
    from testbed.trial import fixed  # torch, which a study without such models is read without

    found = []
    cases = raw.get("cases") or [{"name": ""}]
    arms = raw.get("arms") or {"": {}}
    for index, table in enumerate(raw.get("fixed", ())):
        where = f"fixed[{index}]"
        one = validated(
            FixedModel, table, lambda key, at=where: f"{at}.{key}".rstrip("."), path, problems
        )
        if one is None:
            continue
        for case, (arm, settings) in itertools.product(cases, arms.items()):
            own = {key: value for key, value in case.items() if key != "name"}
            merged: dict[str, Any] = {}
            for layer in (raw.get("base", {}), own, settings, everywhere):
                merged = layers.merge(merged, layer)
            try:
                stated = fixed.stated(one, merged)
            except InputError as problem:
                problems.append(f"{path}: {where} {one.name!r}: {problem}")
                break
            trial = validated(
                TrialSettings, stated, lambda key, at=where: f"{at}: {key}", path, problems
            )
            if trial is not None:
                found.append(TrialTemplate(case["name"], str(arm), (), trial))
    return found


def _grid(
    path: Path, table: Mapping[str, Any], overridden: Sequence[str], problems: list[str]
) -> list[dict[str, int]]:
    """The points of the grid: which value of each axis, by the axis's dotted key."""
    axes = {}
    for key, values in layers.axes(table):
        where = layers.set_(f"grid.{key}", overridden)
        if not isinstance(values, list) or not values:
            problems.append(f"{path}: {where} = {values!r} must be a list of values.")
            continue
        axes[key] = range(len(values))
        for index in axes[key]:
            if values.index(values[index]) < index:
                twice = f"{where}[{index}] = {values[index]!r}"
                problems.append(f"{path}: {twice} is in the list before: name each value once.")
    return [dict(zip(axes, indices, strict=True)) for indices in itertools.product(*axes.values())]


def _nested(point: Iterable[tuple[str, Any]], path: Path) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in point:
        _put(table, key.split("."), value, f"{path}: grid.{key}")
    return table


def _kept(found: list[TrialTemplate], only: Sequence[str]) -> list[TrialTemplate]:
    """Those whose labels match: within parameterizations, cases and arms any, across them all."""
    if not only:
        return found
    groups: list[dict[str, Any]] = [
        {"of": {_contestant(a) for a in found}},
        {"of": {a.case for a in found}},
        {"of": {a.arm for a in found}},
    ]
    known = set().union(*(group["of"] for group in groups)) - {""}
    for word in only:
        if word not in known:
            raise InputError(f"--only: {unknown('parameterization, case or arm', word, known)}")
    chosen = [set(only) & group["of"] or group["of"] for group in groups]
    kept = [
        a
        for a in found
        if _contestant(a) in chosen[0] and a.case in chosen[1] and a.arm in chosen[2]
    ]
    if all(a.fixed for a in kept):
        raise InputError(f"--only {','.join(only)} leaves no trial.")
    return kept


def _contestant(template: TrialTemplate) -> str:
    """What a word of --only calls it: a fixed model's name, or the parameterization."""
    return template.fixed or template.settings.parameterization.name
