"""From validated settings to trials with an identity, and what of them is already on disk."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from testbed.components.base import Component
from testbed.components.dataset import Data
from testbed.components.density import Density
from testbed.components.loss import Loss
from testbed.components.signature import bind
from testbed.components.weighting import Weighting
from testbed.diffusion.denoiser import SHARED
from testbed.diffusion.noise_levels import TERMINAL
from testbed.diffusion.noise_tables import NoiseTable
from testbed.diffusion.outputs import with_output
from testbed.diffusion.parameterization import Parameterization, Recipe
from testbed.errors import InputError, UnknownName, one_line, unknown
from testbed.registry import Registry
from testbed.study import baseline
from testbed.study.study_file import Assumed, ComponentSpec, StudyFile, TrialSettings, TrialTemplate
from testbed.training.objective import Objective
from testbed.trial import build, class_conditions, storage, validity

SCHEMA = 1
RECIPE = ("weighting", "loss", "density")
VARIANCES: dict[str, dict[str, Any]] = {"fixed": {}, "learned": {"vlb": 0.001}}
"""What a reverse step's variance is, and the options: the factor on L_vlb."""
TABLELESS = 'density = "table" is that of a table: name one, such as table = "ddpm".'
SOURCES = (
    "components", "data", "diffusion", "metrics", "networks", "oracles", "random", "sampling",
    "tensors", "training", "trial/build", "trial/class_conditions", "trial/evaluate",
    "trial/guided", "trial/worker",
)  # fmt: skip


REWRITTEN = {
    "study.json": "It is written anew, without what the study took so far.",
    "plan.json": "What trains as one is chosen anew: in a batch, last digits may differ.",
    "mlflow.json": "MLflow is asked what it has.",
}
"""The files that a study can do without, and what it does then."""
DESCRIBED = "The study writes it anew; of a trial that is not in this study, delete the folder."


@dataclass
class Trial:
    """One training: its resolved configuration, its identity, and the labels it stands under."""

    id: str
    config: dict[str, Any]
    labels: list[dict[str, str]] = field(default_factory=list)
    state: str = "new"
    changed: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """`eps · digits · published · seed 0`."""
        arms = "+".join(dict.fromkeys(label["arm"] for label in self.labels if label["arm"]))
        first = self.labels[0]
        parts = [first["variant"], first["case"], arms, f"seed {self.config['seed']}"]
        return " · ".join(part for part in parts if part)


@dataclass
class Plan:
    """The trials of a study, each once, and where they live; `chosen` ids alone run, or all.

    `damaged` says which files are, and what is done about it.
    """

    study: StudyFile
    folder: Path
    device: str
    trials: list[Trial]
    chosen: frozenset[str] | None = None
    damaged: list[str] = field(default_factory=list)

    def pending(self) -> list[Trial]:
        """Those that still have to run."""
        return [
            one
            for one in self.trials
            if one.state not in storage.ENDED and (self.chosen is None or one.id in self.chosen)
        ]


def make(study: StudyFile, registry: Registry, folder: Path, device: str) -> Plan:
    """Resolves every trial, checks that its parts fit, and looks up its state on disk.

    Raises:
        InputError: names, options or combinations that cannot work, all of them at once.
    """
    trials: dict[str, Trial] = {}
    problems: dict[str, list[str]] = {}
    seen: set[tuple[Any, ...]] = set()
    told = telling(study)
    for arrangement in study.arrangements:
        try:
            shared = resolve(arrangement.settings, registry, device)
        except Exception as found:
            if not isinstance(found, InputError):  # a plugin's own function raised
                found = InputError(one_line(found))
            where = " ".join(filter(None, (arrangement.case, arrangement.arm)))
            name = arrangement.settings.parameterization.name
            for line in str(found).splitlines():
                problems.setdefault(line, []).append(f"{where} {name}".strip())
            continue
        for seed in arrangement.settings.seeds:
            config = {**shared, "seed": seed}
            identity = hashlib.sha256(canonical(config).encode()).hexdigest()[:12]
            one = trials.setdefault(identity, Trial(identity, config))
            label = {
                "case": arrangement.case,
                "arm": arrangement.arm,
                "variant": variant(arrangement, told),
            }
            key = (*label.values(), seed)
            if key in seen:
                where = " ".join(word for word in map(str, key) if word)
                problems.setdefault("asked for twice.", []).append(where)
            seen.add(key)
            one.labels.append(label)
    lines = _baseline_problems(study, registry)
    if problems or lines:
        for problem, places in problems.items():
            unique = list(dict.fromkeys(places))
            more = f" and {len(unique) - 3} more" if len(unique) > 3 else ""
            lines.append(f"{study.file}: {', '.join(unique[:3])}{more}: {problem}")
        raise InputError("\n".join(lines))
    plan = Plan(study, folder, device, list(trials.values()))
    _look_up(plan)
    return plan


def _baseline_problems(study: StudyFile, registry: Registry) -> list[str]:
    """A baseline may be one that --only or --set has left out, but it must exist."""
    asked, names = study.report.baseline, registry.names("parameterization")
    told = telling(study)
    known = list(dict.fromkeys(variant(a, told) for a in study.arrangements))
    first = asked.partition(" ")[0]
    left_out = first in names and not baseline.fitting(first, known)
    if not asked or asked in known or asked in names or left_out:
        return []
    message = unknown("variant", asked, {*known, *names})
    return [f"{study.file}: report.baseline: {message}"]


def notes(plan: Plan) -> list[str]:
    """What one may not expect: replaced settings, which the baseline is, damaged files."""
    variants: dict[tuple[str, str], dict[str, None]] = {}
    for one in plan.trials:
        for label in one.labels:
            variants.setdefault((label["case"], label["arm"]), {})[label["variant"]] = None
    asked = plan.study.report.baseline
    chosen = [baseline.note(asked, list(names)) for names in variants.values()]
    return [*plan.study.replaced, *filter(None, dict.fromkeys(chosen)), *plan.damaged]


Telling = Mapping[tuple[str, str], Sequence[str]]
"""By axis of the grid and name of a component: the options in which its values differ."""


def telling(study: StudyFile) -> Telling:
    """The options that a variant has to name."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for arrangement in study.arrangements:
        for key, value in arrangement.point:
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


def variant(arrangement: TrialTemplate, told: Telling) -> str:
    """The parameterization, with its options and the grid's other axes: a row of the report.

    Of another component only those options are named that tell it from one of the same name.
    """
    p = arrangement.settings.parameterization
    parts = [p.name, *(f"{key}={value}" for key, value in p.options.items())]
    for key, value in arrangement.point:
        if key == "parameterization":
            continue
        choice = _choice(value)
        parts.append(f"{key.rpartition('.')[2]}={choice.name if choice else value}")
        if choice:
            options = [option for option in told[key, choice.name] if option in choice.options]
            parts += [f"{option}={choice.options[option]}" for option in options]
    return " ".join(parts)


def canonical(config: Any) -> str:
    """JSON with sorted keys and no spaces: equal configurations, equal text."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def resolve(settings: TrialSettings, registry: Registry, device: str) -> dict[str, Any]:
    """The complete configuration of a trial but for its seed, every default written out.

    Raises:
        InputError: a line for each name or option that does not exist.
    """
    problems: list[str] = []

    def look_up(axis: str, choice: ComponentSpec) -> Any:
        try:
            return getattr(registry, axis)(choice.name, **choice.options)
        except InputError as problem:
            problems.append(str(problem))
            return None

    evaluation = settings.evaluation
    p = look_up("parameterization", settings.parameterization)
    asked = settings.table if settings.table and settings.table.name != "none" else None
    table = None if asked is None else look_up("table", asked)
    high = settings.sigma_max
    if table is not None and table.options["zero_terminal_snr"] and math.isinf(high):
        high = TERMINAL
    parts: dict[str, Any] = {"parameterization": p}
    for axis in RECIPE:
        choice: ComponentSpec | None = getattr(settings, axis)
        if choice and choice.name in ("recipe", "none"):
            if p is None:
                continue
            try:
                choice = _from_recipe(axis, choice, p, p.recipe)
            except InputError as problem:
                problems.append(str(problem))
                continue
        if axis == "density" and choice is not None:
            cut = {"sigma_min": settings.sigma_min, "sigma_max": high}
            choice = ComponentSpec(name=choice.name, options={**cut, **choice.options})
            if choice.name == "table":
                if asked is None:
                    problems.append(TABLELESS)
                parts[axis] = table and _of_table(table, choice, problems)
                continue
        parts[axis] = choice and look_up(axis, choice)
    noise = look_up("noise", settings.noise)
    dataset = look_up("dataset", settings.dataset)
    network = look_up("network", settings.network)
    metrics = [look_up("metric", metric) for metric in evaluation.metrics]
    sampler = look_up("sampler", evaluation.sampler)
    schedule = look_up("schedule", evaluation.schedule)
    variance = _variance(settings.variance, problems)
    try:
        read = p and with_output(p, settings.output)
    except InputError as problem:
        problems.append(str(problem))
    guidance = look_up("guidance", evaluation.guidance)
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    inputs = {}
    for name in ("c_in", "c_noise"):
        chosen = getattr(settings, name)
        if chosen == "recipe":
            chosen = getattr(p.recipe, name) if p.recipe else "native"
        inputs[name] = chosen
    data = build.dataset(dataset.name, json.dumps(named(dataset)["options"]), registry)
    sigma_data = _sigma_data(settings, data)
    density = parts["density"]
    for name in inputs:
        if inputs[name] == "native" and _is_shared(name, p, sigma_data, density):
            inputs[name] = "shared"
    objective = Objective(
        read,
        parts["weighting"],
        parts["loss"],
        density,
        sigma_data,
        table=table,
        noise=noise,
        vlb=variance["options"].get("vlb"),
    )
    problems += validity.problems(objective, inputs["c_noise"], network, data)
    problems += validity.unlearnt(objective, network, evaluation.elbo)
    problems += class_conditions.problems(settings.conditions, guidance.build(), network, data)
    bent = evaluation.guidance.name != "none"
    problems += validity.unsampled(sampler, schedule, evaluation.steps, objective, bent)
    likelihood = evaluation.likelihood and evaluation.likelihood.model_dump()
    if likelihood:
        problems += validity.unlikely(likelihood, objective, data)
    if problems:
        raise InputError("\n".join(problems))
    used: list[Component] = [dataset, network, sampler, *metrics]
    own = table is not None and density.name == "table"
    used += [part for part in parts.values() if part is not None and not (own and part is density)]
    return {
        "schema": SCHEMA,
        "device": torch.device(device).type,
        **{axis: part and named(part) for axis, part in parts.items()},
        **inputs,
        "table": table and named(table),
        "noise": named(noise),
        "output": settings.output,
        "variance": variance,
        "dataset": named(dataset),
        "data_digest": data.digest,
        "sigma_data": sigma_data,
        "sigma_data_measured": data.sigma_data,
        "network": named(network),
        "conditions": settings.conditions,
        "training": asdict(settings.training),
        "evaluation": {
            "levels": evaluation.levels,
            "draws": evaluation.draws,
            "samples": evaluation.samples,
            "steps": evaluation.steps,
            "sampler": named(sampler),
            "schedule": named(schedule),
            "elbo": evaluation.elbo,
            "guidance": named(guidance),
            "likelihood": likelihood,
            "metrics": [named(metric) for metric in metrics],
        },
        "sources": sources(),
        "plugins": {
            source.plugin: source.version
            for source in (registry.source(component) for component in used)
            if source.kind != "built in"
        },
    }


def _variance(choice: ComponentSpec, problems: list[str]) -> dict[str, Any]:
    """Its name and options with every default; with a line in `problems` where it is none."""
    try:
        if choice.name not in VARIANCES:
            raise UnknownName(unknown("variance", choice.name, VARIANCES))
        label = f"variance {choice.name!r}"
        options = bind(label, VARIANCES[choice.name], choice.options)
        if not 0 <= options.get("vlb", 0.0) < math.inf:
            raise InputError(f"{label}: vlb = {options['vlb']!r} must be at least 0 and finite.")
    except InputError as problem:
        problems.append(str(problem))
        options = {}
    return {"name": choice.name, "options": options}


def _of_table(table: NoiseTable, choice: ComponentSpec, problems: list[str]) -> Density | None:
    """The density of the table's levels with equal mass; None with a line in `problems`."""
    try:
        options = bind("density 'table'", {"sigma_min": 0.0, "sigma_max": 0.0}, choice.options)
        return table.density(**options)
    except InputError as problem:
        problems.append(str(problem))
        return None


def _sigma_data(settings: TrialSettings, data: Data) -> float:
    """The measured sigma_data, or the stated one where the data may have it, or the assumed one.

    Raises:
        InputError: a stated one that the data do not have.
    """
    stated = settings.sigma_data
    if stated is None:
        return data.sigma_data
    if isinstance(stated, Assumed):
        return stated.assumed
    if not data.agrees(stated):
        raise InputError(
            f"sigma_data = {stated:g}, but the training split has {data.sigma_data:.4g} ± "
            f"{data.sigma_data_error:.1g}. Leave it out to use the measured one, or write "
            f"sigma_data = {{ assumed = {stated:g} }} to train with a wrong one on purpose."
        )
    return stated


def named(component: Component) -> dict[str, Any]:
    """`{"name": ..., "options": {...}}` with every default."""
    options = component.__dict__["options"]
    return {"name": component.name, "options": {**component.defaults, **options}}


def published(p: Parameterization, registry: Registry) -> tuple[Weighting | None, Loss, Density]:
    """The components of p's own recipe, the density cut to its default range.

    Raises:
        InputError: p has no recipe.
    """
    own = [_from_recipe(axis, ComponentSpec(name="recipe"), p, p.recipe) for axis in RECIPE]
    weighting, loss, density = own
    assert loss is not None
    assert density is not None
    return (
        None if weighting is None else registry.weighting(weighting.name, **weighting.options),
        registry.loss(loss.name, **loss.options),
        registry.density(density.name, **density.options),
    )


def _from_recipe(
    axis: str, choice: ComponentSpec, p: Parameterization, recipe: Recipe | None
) -> ComponentSpec | None:
    if choice.name == "none" and axis == "weighting":
        return None
    if choice.name != "recipe":
        return choice
    if recipe is None:
        raise InputError(f"{p.label} has no recipe: name a {axis}.")
    value = getattr(recipe, axis)
    if value is None:
        if choice.options:
            raise InputError(f"the recipe of {p.label} has no {axis} to take options.")
        return None
    own = ComponentSpec.model_validate(value)
    return ComponentSpec(name=own.name, options={**own.options, **choice.options})


def _is_shared(name: str, p: Parameterization, sigma_data: float, density: Density) -> bool:
    """Whether the native input equals the shared one: then both arms may share a trial."""
    if not p.affine:
        return True
    if math.isinf(validity.span(density)[1]):
        return False
    sigma = validity.levels_of(density)
    c = p.coefficients(sigma, sigma_data=sigma_data)
    native = {"c_in": c.in_, "c_noise": c.noise}[name]
    # Both sides round a few times in float64.
    return torch.allclose(native, SHARED[name](sigma, sigma_data), rtol=1e-14, atol=1e-14)


@functools.cache
def sources() -> str:
    """sha256 over the sources that a trial's numbers depend on."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in SOURCES:
        path = package / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        for file in files:
            digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _look_up(plan: Plan) -> None:
    """Sets every trial's state: finished, diverged, interrupted, failed, stale or new."""
    for name, action in REWRITTEN.items():
        if (plan.folder / name).is_file():
            try:
                storage.read_json(plan.folder / name)
            except InputError as problem:
                plan.damaged.append(f"{problem} {action}")
    elsewhere: dict[tuple[str, str, str, int], tuple[str, dict[str, Any]]] = {}
    for file in storage.described(plan.folder):
        try:
            found = storage.read_json(file)
            if storage.state(plan.folder, found["id"]) == "new":
                continue
            for label in found["labels"]:
                key = _key(label, found["config"]["seed"])
                elsewhere[key] = (found["id"], found["config"])
        except InputError as problem:
            plan.damaged.append(f"{problem} {DESCRIBED}")
        except (KeyError, TypeError) as problem:
            plan.damaged.append(f"{file}: is damaged: {one_line(problem)}. {DESCRIBED}")
    for one in plan.trials:
        one.state = storage.state(plan.folder, one.id)
        if lost := storage.damage(storage.folder(plan.folder, one.id)):
            plan.damaged.append(f"{lost} {one.title} is trained anew.")
        for label in one.labels:
            key = _key(label, one.config["seed"])
            if one.state == "new" and key in elsewhere:
                one.state = "stale"
                one.changed = differences(elsewhere[key][1], one.config)


def _key(label: Mapping[str, str], seed: int) -> tuple[str, str, str, int]:
    return label["case"], label["arm"], label["variant"], seed


def differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """The dotted keys in which two configurations differ, with both values."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({*before, *after})
        return [d for k in keys for d in differences(before.get(k), after.get(k), f"{prefix}{k}.")]
    before, after = json.loads(json.dumps([before, after]))
    return [] if before == after else [f"{prefix[:-1]}: {before!r} -> {after!r}"]
