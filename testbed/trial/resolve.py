"""From what a study file says of a trial to its `TrialConfig`, or to all that is wrong with it."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import torch

from testbed import settings
from testbed.components.base import Component
from testbed.components.dataset import Data
from testbed.components.density import Density
from testbed.components.loss import Loss
from testbed.components.weighting import Weighting
from testbed.diffusion.denoiser import SHARED
from testbed.diffusion.noise_levels import TERMINAL
from testbed.diffusion.noise_tables import NoiseTable
from testbed.diffusion.outputs import with_output
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError
from testbed.plugin_files import Provenance
from testbed.registry import Registry
from testbed.trial import build, class_conditions, sources, validity
from testbed.trial.config import TrialConfig, TrialFields, TrialSettings
from testbed.trial.specs import Assumed, ComponentSpec, Evaluation, Model, OfSigmaData, canonical

RECIPE = ("weighting", "loss", "density")
RANGE = ("sigma_min", "sigma_max")
MEASURED_AND_SAMPLED = (*RANGE, "sampling_sigma_min", "sampling_sigma_max")
UNSTATED = (0.002, 80.0)
"""The range of noise levels where neither the study nor a table has one."""
_T = TypeVar("_T")
_M = TypeVar("_M", bound=Model)


def resolve(stated: TrialSettings, registry: Registry, device: str) -> TrialConfig:
    """The complete configuration of a trial but for its seed, every default written out.

    Raises:
        InputError: a line for each name or option that does not exist, and for each reason why
            the parts do not fit together.
    """
    components = Components(registry, stated)
    stated = components.in_numbers(stated)
    asked = _filled(stated, UNSTATED)
    stated = components.with_range(stated)
    complete = components.complete(components.from_recipe(stated))
    p = components.parameterization
    if p is not None:
        components.attempt(lambda: with_output(p, stated.output))
    if components.problems or p is None:
        raise InputError("\n".join(dict.fromkeys(components.problems)))
    data = build.dataset(registry, complete.dataset)
    sigma_data = _sigma_data(stated, data)
    density = build.density(registry, complete.density, components.table)
    density = density.with_sigma_data(sigma_data)
    inputs = {}
    for name in ("c_in", "c_noise"):
        inputs[name] = getattr(stated, name)
        if inputs[name] == "recipe":
            inputs[name] = getattr(p.recipe, name) if p.recipe else "native"
        if inputs[name] == "native" and _is_shared(name, p, sigma_data, density):
            inputs[name] = "shared"
    low, high = validity.span(density)
    fields = {field.name: getattr(complete, field.name) for field in settings.fields(TrialFields)}
    trained = _training_range(density, components.table)
    config = TrialConfig(
        **{**fields, **inputs, "sigma_min": low, "sigma_max": high},
        device=torch.device(device).type,
        sigma_data=sigma_data,
        sigma_data_measured=data.sigma_data,
        training_range=trained,
        table_levels=_table_levels(trained, components.table),
        data_digest=data.digest,
        sources=components.sources(),
        plugins=components.plugins(),
        training_sources=components.training_sources(),
    )
    config = measured_over(config, *asked.values())
    if problems := list(misfits(config, registry, data)):
        raise InputError("\n".join(problems))
    return config


def measured_over(config: TrialConfig, low: float, high: float) -> TrialConfig:
    """The trial with the range that its evaluation leaves out; no end of it is infinite.

    A limit that is the training's own stays left out: its record is that of a trial whose two
    ranges are one.
    """
    evaluation = config.evaluation
    ends = low, UNSTATED[1] if math.isinf(high) else high
    if not isinstance(evaluation.levels, int):
        return config
    update = {}
    for name, end in zip(RANGE, ends, strict=True):
        chosen = getattr(evaluation, name)
        chosen = end if chosen is None else chosen
        update[name] = None if chosen == getattr(config, name) else chosen
    return config.model_copy(update={"evaluation": evaluation.model_copy(update=update)})


def _filled(stated: TrialSettings, own: tuple[float, float]) -> dict[str, float]:
    """The limits of training that are stated, with `own` for those that are left out."""
    limits = (getattr(stated, name) for name in RANGE)
    chosen = [end if one is None else one for one, end in zip(limits, own, strict=True)]
    return dict(zip(RANGE, chosen, strict=True))


def _multiples(model: Model, names: Sequence[str]) -> dict[str, OfSigmaData]:
    """Those of the limits that are multiples of sigma_data."""
    found = {name: getattr(model, name) for name in names}
    return {name: one for name, one in found.items() if isinstance(one, OfSigmaData)}


def misfits(config: TrialConfig, registry: Registry, data: Data) -> Iterator[str]:
    """Why the parts of a trial do not fit together, a line each; nothing where they do."""
    evaluation = config.evaluation
    objective = build.objective(config, registry)
    network = build.component(registry, "network", config.network)
    method = build.component(registry, "guidance", evaluation.guidance).build()
    sampler = build.component(registry, "sampler", evaluation.sampler)
    schedule = build.component(registry, "schedule", evaluation.schedule)
    guided = evaluation.guidance.name != "none"
    yield from validity.problems(objective, config.c_noise, network, data)
    yield from validity.unlearnt(objective, network, evaluation.elbo)
    yield from validity.unmeasured(evaluation, config.training.steps)
    yield from validity.disordered(config.measured, config.sampled)
    yield from class_conditions.problems(config.conditions, method, network, data)
    path = schedule, evaluation.steps, config.sampled
    yield from validity.unsampled(sampler, *path, objective, config.trained, guided)
    if evaluation.likelihood:
        yield from validity.unlikely(evaluation.likelihood, config.measured, objective, data)


class Components:
    """Looks up the components that settings name, and gathers what is wrong with them.

    Args:
        registry: where they are.
        stated: the settings; its parameterization and its table are looked up at once, since
            recipes and the table's own density depend on them.
    """

    def __init__(self, registry: Registry, stated: TrialSettings) -> None:
        self.registry, self.stated = registry, stated
        self.problems: list[str] = []
        self.used: dict[str, Component] = {}
        p, table = stated.parameterization, stated.table
        self.parameterization: Parameterization | None = self.attempt(
            lambda: build.component(registry, "parameterization", p)
        )
        self.table: NoiseTable | None = self.attempt(lambda: build.noise_table(registry, table))

    def attempt(self, make: Callable[[], _T]) -> _T | None:
        """What `make` returns; None with its message among the problems where it raises one."""
        try:
            return make()
        except InputError as problem:
            self.problems.append(str(problem))
            return None

    def in_numbers(self, stated: TrialSettings) -> TrialSettings:
        """The settings with numbers for noise levels that are multiples of sigma_data."""
        evaluation = stated.evaluation
        if not (_multiples(stated, RANGE) or _multiples(evaluation, MEASURED_AND_SAMPLED)):
            return stated

        def sigma_data() -> float:
            data = build.dataset(self.registry, self._spec("dataset", stated.dataset))
            return _sigma_data(stated, data)

        known = self.attempt(sigma_data)

        def numbers(model: _M, names: Sequence[str]) -> _M:
            # Without its data a trial is refused anyway; limits are left out until then.
            update = {
                name: None if known is None else multiple.of(known)
                for name, multiple in _multiples(model, names).items()
            }
            return model.model_copy(update=update)

        update = {"evaluation": numbers(evaluation, MEASURED_AND_SAMPLED)}
        return numbers(stated, RANGE).model_copy(update=update)

    def with_range(self, stated: TrialSettings) -> TrialSettings:
        """The settings with a lowest and a highest noise level of training.

        A limit is what the study states, else that of the table, else that of `UNSTATED`.
        """
        own = UNSTATED
        if self.table is not None and validity.ascends(self.table):
            own = float(self.table.sigmas[0]), float(self.table.sigmas[-1])
        return stated.model_copy(update=_filled(stated, own))

    def from_recipe(self, stated: TrialSettings) -> TrialSettings:
        """The settings with the recipe's own components in their places, and the density cut."""
        specs: dict[str, ComponentSpec | None] = {}
        p = self.parameterization
        for axis in RECIPE:
            spec: ComponentSpec | None = getattr(stated, axis)
            if p is not None and spec is not None and spec.name == "recipe":
                spec = self.attempt(functools.partial(_from_recipe, axis, spec, p))
            if axis == "density" and spec is not None:
                spec = _cut(spec, stated, self.table)
            specs[axis] = spec
        return stated.model_copy(update=specs)

    def complete(self, model: _M) -> _M:
        """The model with the options of every component written out, and of those within it."""
        update: dict[str, Any] = {}
        for field in settings.fields(type(model)):
            value = getattr(model, field.name)
            if field.setting.axis and isinstance(value, tuple):
                update[field.name] = tuple(self._spec(field.setting.axis, one) for one in value)
            elif field.setting.axis and value is not None:
                update[field.name] = self._spec(field.setting.axis, value)
            elif isinstance(value, Evaluation):
                update[field.name] = self.complete(value)
        return model.model_copy(update=update)

    def _spec(self, axis: str, spec: ComponentSpec) -> ComponentSpec:
        missing = self.parameterization is None and spec.name == "recipe"
        tableless = axis == "density" and spec.name == "table" and self.table is None
        if missing or (tableless and self.stated.table is not None):
            return spec  # What it depends on is among the problems already.
        component: Component | None = self.attempt(
            (lambda: build.density(self.registry, spec, self.table))
            if axis == "density"
            else (lambda: build.component(self.registry, axis, spec))
        )
        if component is None:
            return spec
        self.used[f"{axis} {spec.text}"] = component
        options = vars(component)["options"]
        return ComponentSpec(name=component.name, options={**component.defaults, **options})

    def _sources(self, apart: Collection[str] = ()) -> Iterator[Provenance]:
        """Where the components come from, but for those of the axes `apart`."""
        for key, component in self.used.items():
            # A table's own density is in no registry; the table itself is.
            own = isinstance(component, Density) and component.name == "table"
            if not own and key.partition(" ")[0] not in apart:
                yield self.registry.source(component)

    def plugins(self) -> dict[str, str]:
        """The version or digest of each plugin that is used."""
        return {one.plugin: one.version for one in self._sources() if one.kind != "built in"}

    def sources(self) -> str:
        """The digest of the core's sources for these components; see `trial.sources`."""
        return sources.digest(one.origin for one in self._sources() if one.kind == "built in")

    def training_sources(self) -> str:
        """A digest of the sources of the components that training uses, plugins among them."""
        measuring = {field.setting.axis for field in settings.fields(Evaluation)}
        found = list(self._sources(measuring))
        core = sources.digest(one.origin for one in found if one.kind == "built in")
        plugins = sorted({(one.plugin, one.version) for one in found if one.kind != "built in"})
        return hashlib.sha256(canonical([core, plugins]).encode()).hexdigest()[:16]


def _cut(spec: ComponentSpec, stated: TrialSettings, table: NoiseTable | None) -> ComponentSpec:
    """A density's spec with the trial's range of levels among its options."""
    low, high = stated.sigma_min, stated.sigma_max
    assert isinstance(low, float | int)
    assert isinstance(high, float | int)
    if table is not None and table.options["zero_terminal_snr"] and math.isinf(high):
        high = TERMINAL
    levels = {"sigma_min": low, "sigma_max": high}
    return ComponentSpec(name=spec.name, options={**levels, **spec.options})


def published(p: Parameterization, registry: Registry) -> tuple[Weighting | None, Loss, Density]:
    """The components of p's own recipe, the density cut to its default range.

    Raises:
        InputError: p has no recipe.
    """
    own = ComponentSpec(name="recipe")
    specs = {axis: _from_recipe(axis, own, p) for axis in RECIPE}
    weighting, loss, density = (
        spec and getattr(registry, axis)(spec.name, **spec.options) for axis, spec in specs.items()
    )
    return weighting, loss, density  # type: ignore[return-value]


def _from_recipe(axis: str, spec: ComponentSpec, p: Parameterization) -> ComponentSpec | None:
    """The component of p's recipe, with the options of `spec` in place of its own."""
    if p.recipe is None:
        raise InputError(f"{p.label} has no recipe: name a {axis}.")
    value = getattr(p.recipe, axis)
    if value is None:
        if spec.options:
            raise InputError(f"the recipe of {p.label} has no {axis} to take options.")
        return None
    own = ComponentSpec.model_validate(value)
    return ComponentSpec(name=own.name, options={**own.options, **spec.options})


def _training_range(density: Density, table: NoiseTable | None) -> tuple[float, float]:
    """The lowest and the highest level that training draws; of a table, the nearest to those."""
    # TERMINAL stands for infinity, which is no number of JSON.
    ends = torch.tensor(density.support, dtype=torch.float64).clamp(max=TERMINAL)
    low, high = (ends if table is None else table.quantised(ends)).tolist()
    return low, high


def _table_levels(trained: tuple[float, float], table: NoiseTable | None) -> tuple[int, int] | None:
    """How many levels of a table lie within the range of training, and how many it has."""
    if table is None:
        return None
    inside = (table.sigmas >= trained[0]) & (table.sigmas <= trained[1])
    return int(inside.sum()), len(table.sigmas)


def _sigma_data(stated: TrialSettings, data: Data) -> float:
    """The measured sigma_data, or the stated one where the data may have it, or the assumed one.

    Raises:
        InputError: a stated one that the data do not have.
    """
    number = stated.sigma_data
    if number is None:
        return data.sigma_data
    if isinstance(number, Assumed):
        return number.assumed
    if not data.agrees(number):
        raise InputError(
            f"sigma_data = {number:g}, but the training split has {data.sigma_data:.4g} ± "
            f"{data.sigma_data_error:.1g}. Leave it out to use the measured one, or write "
            f"sigma_data = {{ assumed = {number:g} }} to train with a wrong one on purpose."
        )
    return number


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
