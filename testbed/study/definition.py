"""A study written in Python: the sections of a study file, validated by the same models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from testbed import notebook, plugin_files, toml
from testbed.components.base import Component
from testbed.study import plugins as study_plugins
from testbed.study import study_file
from testbed.study.plan import distinguishing_options, variant
from testbed.study.study_file import Invocation, StudyFile
from testbed.trial.specs import ComponentSpec


@dataclass(frozen=True, repr=False)
class Study:
    """A study: what a study file says, written in Python.

    Every argument is a section of the file. A value is what TOML has (a string, a number, a truth
    value, a list, a mapping), a model of a setting such as `testbed.Training(steps=500)`, or a
    component of the registry, which stands for its name and options.

    Args:
        name: the study's name, and that of its folder in runs/.
        base: settings of every trial, by key.
        grid: lists of values by dotted key; all combinations are variants.
        arms: settings by the name of an arm; every case runs in every arm.
        cases: mappings with a `name` and the settings of the case, usually one data set each.
        fixed: mappings with a `name`, a `path` and what else `[[fixed]]` has: models of other
            codebases that are measured beside the trials.
        report: the keys of `[report]`, such as `{"baseline": "edm"}`.
        executor: the keys of `[executor]`, such as `{"name": "slurm"}`.
        title: heading of the report; without one it is the name.
        note: text below the heading of the report.
        budgets: other lengths at which every variant is trained on its own, besides
            training.steps: numbers of steps or fractions of it.
        plugins: plugin files and modules to load, and "no:NAME" to leave one out; a path is
            relative to the working directory, and kept as an absolute one.

    Raises:
        InputError: with every problem found, as for a study file.
    """

    name: str
    base: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cases: Sequence[Mapping[str, Any]] = ()
    report: Mapping[str, Any] | BaseModel = field(default_factory=dict)
    executor: Mapping[str, Any] | BaseModel = field(default_factory=dict)
    title: str = ""
    note: str = ""
    budgets: Sequence[int | float] = ()
    plugins: Sequence[str | Path] = ()
    fixed: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        words = tuple(plugin_files.absolute(str(word)) for word in self.plugins)
        object.__setattr__(self, "plugins", words)
        for name in ("base", "grid", "arms", "cases", "fixed", "executor", "report", "budgets"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        self.content  # noqa: B018  mistakes are reported where the study is written

    @classmethod
    def read(cls, file: str | Path) -> Study:
        """The study of a file, or the bundled one of that name.

        Raises:
            InputError: the file does not exist, or with every problem found in it.
        """
        read = study_file.read(Path(file))
        return dataclasses.replace(cls.from_toml(read.text), plugins=tuple(read.plugins))

    @classmethod
    def from_toml(cls, text: str) -> Study:
        """The study that the text of a study file says.

        Raises:
            InputError: with every problem found.
        """
        study_file.parse(text, Path("study"), Invocation("study"))
        raw = toml.read(text)
        sections = {name: content for name, content in raw.items() if name != "study"}
        return cls(**raw["study"], **sections)

    def to_toml(self) -> str:
        """The text of the study file that says the same; `from_toml` reads it."""
        header = {name: getattr(self, name) for name in ("name", "title", "note", "budgets")}
        parts = []
        if self.plugins:
            parts.append(f"{study_plugins.KEY} = {toml.value(self.plugins, study_plugins.KEY)}\n")
        parts.append(toml.table("study", {key: value for key, value in header.items() if value}))
        for name in ("base", "arms", "grid"):
            if content := getattr(self, name):
                parts.append(toml.table(name, content))
        parts += [toml.entry("cases", case) for case in self.cases]
        parts += [toml.entry("fixed", one) for one in self.fixed]
        for name in ("executor", "report"):
            if content := getattr(self, name):
                parts.append(toml.table(name, plain(content)))
        return "\n".join(parts)

    @cached_property
    def content(self) -> StudyFile:
        """The validated study, with the settings of each of its trials."""
        return study_file.parse(self.to_toml(), Path("study"), Invocation("study"))

    @property
    def table(self) -> list[dict[str, str]]:
        """Case, arm, variant and seeds of each row of the report."""
        distinguishing = distinguishing_options(self.content)
        return [
            {
                "case": template.case,
                "arm": template.arm,
                "variant": variant(template, distinguishing),
                "seeds": ", ".join(map(str, template.settings.seeds)),
            }
            for template in self.content.templates
            if template.budget is None
        ]

    def __repr__(self) -> str:
        templates = self.content.templates
        trials = sum(len(template.settings.seeds) for template in templates)
        counts = [
            _count(len(names), word)
            for word, names in (
                ("case", {template.case for template in templates}),
                ("arm", {template.arm for template in templates}),
                ("variant", {row["variant"] for row in self.table}),
            )
        ]
        return f"<Study {self.name!r}: {', '.join(counts)}, {_count(trials, 'trial')}>"

    def _repr_html_(self) -> str:
        head = ["case", "arm", "variant", "seeds"]
        rows = [list(row.values()) for row in self.table]
        return notebook.table(head, rows, repr(self)[1:-1])


def plain(value: Any) -> Any:
    """A value as TOML has it: models as what was set of them, components as name and options."""
    if isinstance(value, ComponentSpec | Component):
        return {"name": value.name, **plain(value.options)}
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in sorted(value.model_fields_set)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((one, getattr(value, one.name)) for one in dataclasses.fields(value) if one.init)
        return {one.name: plain(found) for one, found in pairs if found != one.default}
    if isinstance(value, Mapping):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    # A number of numpy or torch is one of Python with a method.
    return value.item() if getattr(value, "shape", None) == () else value


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"
