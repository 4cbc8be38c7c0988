"""From validated settings to trials with an identity, and what of them is already on disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed import settings
from testbed.errors import ComponentError, InputError, one_line, unknown
from testbed.registry import Registry
from testbed.study import baseline, grids, looks
from testbed.study.grids import Variant
from testbed.study.problems import Problems
from testbed.study.study_file import StudyFile, TrialTemplate
from testbed.trial import build, data_notes, devices, points, recipes
from testbed.trial.config import TrialConfig
from testbed.trial.encoder import Encoder
from testbed.trial.folders import ENDED, TrialFolder
from testbed.trial.resolve import resolve
from testbed.trial.specs import ComponentSpec, canonical
from testbed.trial.study_folder import StudyFolder

REWRITTEN = {
    "study.json": "It is written anew, without what the study took so far.",
    "plan.json": "What trains as one is chosen anew: in a batch, last digits may differ.",
    "mlflow.json": "MLflow is asked what it has.",
}
"""The files that a study can do without, and what it does then."""
ENCODERS = (
    "encoder: the variants of a case have different ones, and losses of different latents, or of "
    "latents and pixels, cannot be compared: give each encoder a case of its own."
)
NOT_TRAINED = looks.NOT_TRAINED
DESCRIBED = "The study writes it anew; of a trial that is not in this study, delete the folder."


@dataclass
class Trial:
    """One training: its resolved configuration, its identity, and the labels it stands under.

    A label has a case, an arm and a variant, and where the trial is one of the study's budgets, its
    number of steps as `budget`. That of a fixed model has `NOT_TRAINED`.
    """

    id: str
    config: TrialConfig
    labels: list[dict[str, str]] = field(default_factory=list)
    state: str = "new"
    changed: list[str] = field(default_factory=list)
    training: str = ""
    """The id of an ended trial whose training it takes over, or `NOT_TRAINED` for a fixed model;
    empty where it trains."""

    @property
    def title(self) -> str:
        """`eps · digits · published · seed 0`."""
        arms = "+".join(dict.fromkeys(label["arm"] for label in self.labels if label["arm"]))
        first = self.labels[0]
        budget = f"{first['budget']} steps" if "budget" in first else ""
        seed = "not trained" if NOT_TRAINED in first else f"seed {self.config.seed}"
        parts = [first["variant"], first["case"], arms, budget, seed]
        return " · ".join(part for part in parts if part)


@dataclass
class Plan:
    """The trials of a study, each once, and where they live; `chosen` ids alone run, or all.

    `device` is a word of `trial.devices.device_of`. `damaged` says which files are, and what is
    done about it; `data_notes` what was recognised in the data of each case, or does not fit, and
    whose recipe trains another parameterization.
    """

    study: StudyFile
    folder: Path
    device: str
    trials: list[Trial]
    chosen: frozenset[str] | None = None
    damaged: list[str] = field(default_factory=list)
    data_notes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def main_device(self) -> str:
        """The device that stands for those of the plan: the first of several."""
        return devices.first(self.device)

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of the workers, one for each slot, in turn."""
        return devices.each(self.device)

    @property
    def files(self) -> StudyFolder:
        """What the study keeps in its folder."""
        return StudyFolder.at(self.folder)

    def seeds(self) -> dict[looks.Label, tuple[int, ...]]:
        """The seeds of each case, arm and variant, in order."""
        found: dict[looks.Label, set[int]] = {}
        for trial in self.trials:
            for label in (label for label in trial.labels if NOT_TRAINED not in label):
                key = label["case"], label["arm"], label["variant"]
                found.setdefault(key, set()).add(trial.config.seed)
        return {label: tuple(sorted(seeds)) for label, seeds in found.items()}

    def pending(self) -> list[Trial]:
        """Those that still have to run; one that was cancelled waits for `testbed retry`."""
        return [
            one
            for one in self.trials
            if one.state not in (*ENDED, "cancelled")
            and (self.chosen is None or one.id in self.chosen)
        ]


def make(study: StudyFile, registry: Registry, folder: Path, device: str) -> Plan:
    """Resolves every trial, checks that its parts fit, and looks up its state on disk.

    Args:
        study: the study.
        registry: its plugins.
        folder: the study's folder.
        device: a word of `trial.devices.device_of`.

    Raises:
        InputError: names, options or combinations that cannot work, all of them at once.
    """
    problems = Problems(study.file, study.templates)
    said: dict[str, dict[str, None]] = {}
    variants = list(_variants(study, registry, devices.first(device), problems, said))
    twice: dict[str, None] = {}
    trials = _trials(variants, registry, looks.read(StudyFolder.at(folder)).extra, twice)
    lines = [*_baseline_problems(study, registry), *_name_problems(study)]
    lines += _folder_problems(folder)
    refused = looks.conflicts(StudyFolder.at(folder), study.report.looks, study.asked.at_most)
    lines += [f"{study.file}: {line}" for line in refused]
    lines += [f"{study.file}: {title}: asked for twice." for title in twice]
    if lines := [*lines, *problems.lines()]:
        raise InputError("\n".join(lines))
    for case, note in _of_recipes(variants, registry):
        said[case][note] = None
    of_data = {case: list(notes) for case, notes in said.items() if notes}
    plan = Plan(study, folder, device, trials, data_notes=of_data)
    _look_up(plan)
    _build(plan, registry, problems)
    if lines := problems.lines():
        raise InputError("\n".join(lines))
    return plan


def _build(plan: Plan, registry: Registry, problems: Problems) -> None:
    """One network of each kind, since only building it tells whether its options can be.

    A plugin's mistake is no bad input: its trial itself will fail and say why.
    """
    distinguishing = distinguishing_options(plan.study)
    templates = {
        (one.case, one.arm, variant(one, distinguishing)): one for one in plan.study.templates
    }
    kinds: dict[str, InputError | None] = {}
    for trial in plan.pending():
        config, label = trial.config, trial.labels[0]
        kind = canonical([config.data_digest, config.network.text, config.conditions])
        if kind not in kinds:
            kinds[kind] = None
            try:
                build.assemble(config, registry, build.data_of(config, registry))
            except InputError as found:
                if not isinstance(found, ComponentError):
                    kinds[kind] = found
            except Exception:
                continue
        if problem := kinds[kind]:
            problems.add(problem, templates[label["case"], label["arm"], label["variant"]])


def _variants(
    study: StudyFile,
    registry: Registry,
    device: str,
    problems: Problems,
    said: dict[str, dict[str, None]],
) -> Iterator[Variant]:
    """The variants of a study that can work, each resolved alone.

    Args:
        problems: gets what is wrong with the others, and where.
        said: gets the sentences on the data of each case.
    """
    distinguishing = distinguishing_options(study)
    encoders: dict[str, Encoder | None] = {}
    for template in study.templates:
        try:
            config = resolve(template.settings, registry, device)
            data = build.data_of(config, registry)
            # A fixed model is compared with nothing, and may be of latents of its own.
            trained = not template.fixed
            network = build.component(registry, "network", config.network) if trained else None
            notes = data_notes.notes(config, data, network)
            said.setdefault(template.case, {}).update(dict.fromkeys(notes))
            if trained and encoders.setdefault(template.case, config.encoder) != config.encoder:
                raise InputError(ENCODERS)
        except Exception as found:
            if not isinstance(found, InputError):  # a plugin's own function raised
                found = InputError(one_line(found))
            problems.add(found, template)
            continue
        labels = template.case, template.arm, variant(template, distinguishing)
        yield Variant(*labels, config, template.settings, template.budget)


def _of_recipes(variants: Sequence[Variant], registry: Registry) -> Iterator[tuple[str, str]]:
    """The cases that train a parameterization by another one's recipe, each with a sentence."""
    trained: dict[tuple[str, str], list[str]] = {}
    for one in variants:
        by = trained.setdefault((one.case, one.stated.recipe), [])
        by.append(one.config.parameterization.name)
    for (case, recipe), names in trained.items():
        if note := recipes.note(recipe, names, registry):
            yield case, note


def _trials(
    variants: Sequence[Variant],
    registry: Registry,
    extra: Mapping[looks.Label, Sequence[int]],
    twice: dict[str, None],
) -> list[Trial]:
    """The trials of the variants, each once; `twice` gets those that are asked for twice."""
    trials: dict[str, Trial] = {}
    seen: set[tuple[Any, ...]] = set()
    for one, shared in zip(variants, grids.measured(variants, registry), strict=True):
        label = {"case": one.case, "arm": one.arm, "variant": one.name}
        if one.budget is not None:
            label["budget"] = str(one.budget)
        if one.config.fixed is not None:
            label[NOT_TRAINED] = "yes"
        added = extra.get((one.case, one.arm, one.name), ())
        for id_, config in shared.of_seeds(dict.fromkeys((*one.stated.seeds, *added))):
            trial = trials.setdefault(id_, Trial(id_, config))
            key = (*label.values(), config.seed)
            if key in seen:
                where = " ".join(word for word in map(str, key) if word)
                twice[where] = None
            seen.add(key)
            trial.labels.append(dict(label))
    return list(trials.values())


def _folder_problems(folder: Path) -> list[str]:
    """A study needs a folder that is there or that can be made."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if there.is_dir():
        return []
    where = "" if there == folder else f"{folder}: "
    return [f"{where}{there} is a file, and a study needs a folder: name another with --out."]


def _baseline_problems(study: StudyFile, registry: Registry) -> list[str]:
    """A baseline may be one that --only or --set has left out, but it must exist."""
    asked, names = study.report.baseline, registry.names("parameterization")
    distinguishing = distinguishing_options(study)
    trained = [template for template in study.templates if not template.fixed]
    known = list(dict.fromkeys(variant(a, distinguishing) for a in trained))
    first = asked.partition(" ")[0]
    left_out = first in names and not baseline.fitting(first, known)
    if not asked or asked in known or asked in names or left_out:
        return []
    message = unknown("variant", asked, {*known, *names})
    return [f"{study.file}: report.baseline: {message}"]


def _name_problems(study: StudyFile) -> list[str]:
    """A fixed model may not be called as a variant is."""
    distinguishing = distinguishing_options(study)
    names = {variant(one, distinguishing) for one in study.templates if not one.fixed}
    taken = dict.fromkeys(one.fixed for one in study.templates if one.fixed in names)
    return [f"{study.file}: fixed {name!r}: a variant has this name." for name in taken]


def notes(plan: Plan) -> list[str]:
    """What one may not expect: of the data, settings, baseline, another look, damaged files."""
    variants: dict[tuple[str, str], dict[str, None]] = {}
    for one in plan.trials:
        for label in (label for label in one.labels if NOT_TRAINED not in label):
            variants.setdefault((label["case"], label["arm"]), {})[label["variant"]] = None
    asked = plan.study.report.baseline
    chosen = [baseline.note(asked, list(names)) for names in variants.values()]
    of_data = [
        f"{case}: {note}" if case else note
        for case, notes in plan.data_notes.items()
        for note in notes
    ]
    taken = sum(one.training not in ("", NOT_TRAINED) for one in plan.pending())
    which = "1 trial differs" if taken == 1 else f"{taken} trials differ"
    measured = f"{which} from one that has ended in the evaluation alone: none of it is trained."
    again = looks.note(plan.files, plan.seeds())
    said = filter(None, dict.fromkeys([*chosen, again, measured if taken else ""]))
    return [*of_data, *plan.study.replaced, *said, *plan.damaged]


DistinguishingOptions = Mapping[tuple[str, str], Sequence[str]]
"""By axis of the grid and name of a component: the options in which its values differ."""


def distinguishing_options(study: StudyFile) -> DistinguishingOptions:
    """The options that a variant has to name."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for template in study.templates:
        for key, value in template.grid_point:
            if (choice := _choice(value)) is not None:
                found.setdefault((key, choice.name), []).append(choice.options)
    return {
        key: [
            option
            for option in dict.fromkeys(itertools.chain(*values))
            if any(value.get(option, ...) != values[0].get(option, ...) for value in values)
        ]
        for key, values in found.items()
    }


def _choice(value: Any) -> ComponentSpec | None:
    """The component that a value of the grid names."""
    named = isinstance(value, str) or (isinstance(value, Mapping) and "name" in value)
    return ComponentSpec.model_validate(value) if named else None


def variant(template: TrialTemplate, distinguishing: DistinguishingOptions) -> str:
    """The parameterization, with its options and the grid's other axes: a row of the report.

    Of another component only those options are named that tell it from one of the same name. A
    fixed model has the name that the study gives it.
    """
    if template.fixed:
        return template.fixed
    p = template.settings.parameterization
    parts = [p.name, *(f"{key}={_words(value)}" for key, value in p.options.items())]
    for key, value in template.grid_point:
        if key == "parameterization":
            continue
        choice = _choice(value)
        parts.append(f"{key.rpartition('.')[2]}={choice.name if choice else _words(value)}")
        if choice:
            options = [
                option for option in distinguishing[key, choice.name] if option in choice.options
            ]
            parts += [f"{option}={_words(choice.options[option])}" for option in options]
    return " ".join(parts)


def _words(value: Any) -> str:
    """A value in a label: a table as `assumed 0.5`, all else as it is."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(one)}" for key, one in value.items())
    return str(value)


def _look_up(plan: Plan) -> None:
    """Sets every trial's state: that of its folder, or stale."""
    files = plan.files
    for name, action in REWRITTEN.items():
        if files.has(name):
            try:
                files.json(name)
            except InputError as problem:
                plan.damaged.append(f"{problem} {action}")
    elsewhere: dict[tuple[str, str, str, str, int], TrialConfig] = {}
    ended: list[tuple[TrialConfig, TrialFolder]] = []
    states: dict[str, str] = {}
    for trial in files.trials():
        try:
            found = trial.json("trial.json")
            state = states[found["id"]] = files.state(found["id"])
            if state == "new":
                continue
            config = TrialConfig.model_validate(found["config"])
            if state in ENDED:
                ended.append((config, trial))
            for label in found["labels"]:
                elsewhere[label_key(label, config.seed)] = config
        except InputError as problem:
            plan.damaged.append(f"{problem} {DESCRIBED}")
        except (KeyError, TypeError, ValueError) as problem:
            file = trial.path / "trial.json"
            plan.damaged.append(f"{file}: is damaged: {one_line(problem)}. {DESCRIBED}")
    trainings: dict[str, list[TrialFolder]] = {}
    if any(states.get(one.id) not in ENDED for one in plan.trials):
        for config, trial in ended:
            if identity := config.training_identity:
                trainings.setdefault(identity, []).append(trial)
    there = set(files.store.apart("trials").names())
    for one in plan.trials:
        if one.id in there:
            one.state = states.get(one.id) or files.state(one.id)
        if one.id in there and one.state not in ENDED and (lost := files.trial(one.id).damage()):
            plan.damaged.append(f"{lost} {one.title} is trained anew.")
        for label in one.labels:
            key = label_key(label, one.config.seed)
            if one.state == "new" and key in elsewhere:
                one.state = "stale"
                one.changed = differences(
                    settings_of_id(elsewhere[key]), settings_of_id(one.config)
                )
        if one.config.fixed is not None:
            one.training = NOT_TRAINED
        elif trainings and one.state in ("new", "stale"):
            same = trainings.get(one.config.training_identity, ())
            one.training = next((t.name for t in same if points.available(one.config, t)), "")


def label_key(label: Mapping[str, str], seed: int) -> tuple[str, str, str, str, int]:
    """Equal for trials that stand at the same place of a study."""
    return label["case"], label["arm"], label["variant"], label.get("budget", ""), seed


def settings_of_id(config: TrialConfig) -> dict[str, Any]:
    """The record of a configuration without what is no part of the trial's id."""
    apart = settings.names(TrialConfig, identity=False)
    return {key: value for key, value in config.record().items() if key not in apart}


def differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """The dotted keys in which two configurations differ, with both values."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({*before, *after})
        return [d for k in keys for d in differences(before.get(k), after.get(k), f"{prefix}{k}.")]
    return [] if before == after else [f"{prefix[:-1]}: {before!r} -> {after!r}"]
