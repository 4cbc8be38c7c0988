"""From what a study file says of a trial to its `TrialConfig`, or to all that is wrong with it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import torch

from testbed import settings
from testbed.components import multiples
from testbed.components.base import Component
from testbed.components.dataset import Data
from testbed.components.density import Density
from testbed.components.recipe import LEVELS
from testbed.diffusion.inputs import shared_c_in, shared_c_noise
from testbed.diffusion.noise_levels import TERMINAL
from testbed.diffusion.noise_tables import NoiseTable
from testbed.diffusion.outputs import with_output
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError, InputErrors, about
from testbed.plugin_files import Provenance
from testbed.registry import Registry
from testbed.trial import (
    build,
    class_conditions,
    fixed,
    fixed_model,
    recipes,
    sources,
    texts,
    validity,
)
from testbed.trial.config import TrialConfig, TrialSettings
from testbed.trial.fields import TrialFields
from testbed.trial.specs import Assumed, ComponentSpec, Evaluation, Model, canonical

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Model)


def resolve(stated: TrialSettings, registry: Registry, device: str) -> TrialConfig:
    """The complete configuration of a trial but for its seed, every default written out.

    Raises:
        InputErrors: a line for each name or option that does not exist, and for each reason why
            the parts do not fit together.
    """
    components = Components(registry, stated)
    stated = components.stated
    complete = components.complete(components.with_range(stated))
    p = components.parameterization
    if p is not None and stated.output != "recipe":
        components.attempt(lambda: with_output(p, stated.output))
    if components.problems or p is None:
        raise InputErrors(components.problems)
    if complete.text_encoder is not None:
        encoder = complete.text_encoder.measured()
        complete = complete.model_copy(update={"text_encoder": encoder})
    data = build.data_of(complete, registry)
    sigma_data = _sigma_data(stated, data)
    density = build.density(registry, complete.density, components.table)
    density = density.with_sigma_data(sigma_data)
    inputs = {}
    for name in ("c_in", "c_noise"):
        inputs[name] = getattr(stated, name)
        if inputs[name] == "native" and _is_shared(name, p, sigma_data, density):
            inputs[name] = "shared"
    low, high = validity.span(density)
    fields = {field.name: getattr(complete, field.name) for field in settings.fields(TrialFields)}
    if stated.fixed is not None:
        table = build.noise_table(registry, stated.fixed.table)
        fields["fixed"] = fixed.with_digest(stated.fixed, table)
    trained = _training_range(density, components.table)
    config = TrialConfig(
        **{**fields, **inputs, "sigma_min": low, "sigma_max": high},
        device=torch.device(device).type,
        sigma_data=sigma_data,
        sigma_data_measured=data.sigma_data,
        sigma_data_channels=data.sigma_data_channels if p.takes_channels else None,
        training_range=trained,
        table_levels=_table_levels(trained, components.table),
        blind=complete.fixed is None
        and build.component(registry, "network", complete.network).blind,
        # The states of texts have the digest of their encoder: they differ in the last digits from
        # machine to machine.
        data_digest=build.dataset(registry, complete.dataset, complete.encoder).digest,
        sources=components.sources(),
        plugins=components.plugins(),
        training_sources=components.training_sources(),
    )
    config = measured_over(config, *components.asked)
    if problems := list(misfits(config, registry, data)):
        raise InputError("\n".join(problems))
    return config


def measured_over(config: TrialConfig, low: float, high: float) -> TrialConfig:
    """The trial with the range that its evaluation leaves out; no end of it is infinite.

    A limit that is the training's own stays left out: its record is that of a trial whose two
    ranges are one.
    """
    evaluation = config.evaluation
    ends = low, recipes.UNSTATED[1] if math.isinf(high) else high
    if not isinstance(evaluation.levels, int):
        return config
    update = {}
    for name, end in zip(LEVELS, ends, strict=True):
        chosen = getattr(evaluation, name)
        chosen = end if chosen is None else chosen
        update[name] = None if chosen == getattr(config, name) else chosen
    return config.model_copy(update={"evaluation": evaluation.model_copy(update=update)})


def misfits(config: TrialConfig, registry: Registry, data: Data) -> Iterator[str]:
    """Why the parts of a trial do not fit together, a line each; nothing where they do."""
    evaluation = config.evaluation
    objective = build.objective(config, registry)
    network = build.network_of(config, registry)
    if config.fixed is not None:
        yield from fixed.problems(config.fixed, data)
    method = build.component(registry, "guidance", evaluation.guidance).build()
    sampler = build.component(registry, "sampler", evaluation.sampler)
    schedule = build.component(registry, "schedule", evaluation.schedule)
    guided = evaluation.guidance.name != "none"
    yield from validity.problems(objective, config.c_noise, network, data)
    yield from validity.unlearnt(objective, network, evaluation.elbo)
    yield from validity.unflippable(config.training.flips, data.shape)
    yield from validity.untrained(config.training, network, data)
    yield from validity.unmeasured(evaluation, config.training.steps)
    yield from validity.disordered(config.measured, config.sampled)
    yield from texts.unused(config.text_encoder, config.conditions, data)
    yield from class_conditions.problems(config.conditions, method, network, data)
    path = schedule, evaluation.steps, config.sampled
    yield from validity.unsampled(sampler, *path, objective, config.trained, guided)
    if evaluation.likelihood:
        yield from validity.unlikely(evaluation.likelihood, config.measured, objective, data)
    for spec in evaluation.metrics:
        metric = build.component(registry, "metric", spec)
        yield from metric.problems(data.pixels or data)
        if metric.conditional:
            yield from class_conditions.unmeasured(metric, config.conditions, data.pixels or data)


class Components:
    """Looks up the components that settings name, and gathers what is wrong with them.

    Args:
        registry: where they are.
        stated: the settings. Its parameterization, its recipe and its table are looked up at once,
            since the rest depends on them.

    `stated` has what the recipe says in the place of what was left out, and a number in the place
    of each multiple of sigma_data. `asked` is the range of noise levels that the study states.
    """

    def __init__(self, registry: Registry, stated: TrialSettings) -> None:
        self.registry = registry
        self.problems: list[InputError] = []
        self.used: dict[str, Component] = {}
        stated = self._in_numbers(self._of_fixed(stated))
        self.parameterization: Parameterization | None = self.attempt(
            lambda: build.component(registry, "parameterization", stated.parameterization)
        )
        self.asked = recipes.limits(stated.sigma_min, stated.sigma_max, None)
        self.stated = self._in_numbers(self._from_recipe(stated))
        table = self.stated.table
        known = table is None or table.name != "recipe"
        self.table: NoiseTable | None = (
            self.attempt(lambda: build.noise_table(registry, table)) if known else None
        )

    def attempt(self, make: Callable[[], _T]) -> _T | None:
        """What `make` returns; None with its message among the problems where it raises one."""
        try:
            return make()
        except InputError as problem:
            self.problems.append(problem)
            return None

    def _of_fixed(self, stated: TrialSettings) -> TrialSettings:
        """The settings with what a fixed model takes of the data; others as they are."""
        if stated.fixed is None:
            return stated

        def completed() -> TrialSettings:
            images = build.dataset(self.registry, self._spec("dataset", stated.dataset))
            return fixed.completed(stated, images)

        return self.attempt(completed) or stated

    def _in_numbers(self, stated: TrialSettings) -> TrialSettings:
        """The settings with a number for each multiple of the data's sigma_data."""
        if not multiples.has_any(_values(stated)):
            return stated
        sigma_data = self.attempt(
            lambda: _sigma_data(
                stated,
                build.dataset(self.registry, self._spec("dataset", stated.dataset), stated.encoder),
            )
        )
        # Without its data a trial is refused anyway; a number stands in until then.
        return _evaluated(stated, sigma_data or 1.0)

    def _from_recipe(self, stated: TrialSettings) -> TrialSettings:
        """The settings with those of the recipe in the place of what is left out."""
        p = self.parameterization
        if p is None:
            return stated

        def completed() -> TrialSettings:
            with about("recipe"):
                recipe = recipes.named(stated.recipe, p, self.registry)
            return recipes.completed(stated, recipe, p)

        return self.attempt(completed) or stated

    def with_range(self, stated: TrialSettings) -> TrialSettings:
        """The settings with their range of noise levels, and the density cut to it."""
        low, high = recipes.limits(stated.sigma_min, stated.sigma_max, self.table)
        if self.table is not None and self.table.terminal and math.isinf(high):
            high = TERMINAL
        levels = {"sigma_min": low, "sigma_max": high}
        spec = stated.density
        cut = ComponentSpec(name=spec.name, options={**levels, **spec.options})
        return stated.model_copy(update={**levels, "density": cut})

    def complete(self, model: _M) -> _M:
        """The model with the options of every component written out, and of those within it."""
        update: dict[str, Any] = {}
        for field in settings.fields(type(model)):
            value = getattr(model, field.name)
            if field.setting.axis == "network" and self.stated.fixed is not None:
                update[field.name] = ComponentSpec(name=fixed_model.NAME)
            elif field.setting.axis and isinstance(value, tuple):
                update[field.name] = tuple(self._spec(field.setting.axis, one) for one in value)
            elif field.setting.axis and value is not None:
                update[field.name] = self._spec(field.setting.axis, value)
            elif isinstance(value, Evaluation):
                update[field.name] = self.complete(value)
        return model.model_copy(update=update)

    def _spec(self, axis: str, spec: ComponentSpec) -> ComponentSpec:
        missing = spec.name == "recipe"
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


def _values(model: Model) -> list[Any]:
    """What of a model may be a multiple of sigma_data: levels, and options of its components."""
    values: list[Any] = []
    for field in settings.fields(type(model)):
        value = getattr(model, field.name)
        if isinstance(value, Evaluation):
            values += _values(value)
        elif field.setting.axis and field.setting.axis != "dataset":
            specs = value if isinstance(value, tuple) else (value,)
            values += [one.options for one in specs if one is not None]
        elif isinstance(value, str | tuple):
            values.append(value)
    return values


def _evaluated(model: _M, sigma_data: float) -> _M:
    """The model with a number for each multiple of sigma_data."""

    def number(value: Any, axis: str) -> Any:
        if isinstance(value, Evaluation):
            return _evaluated(value, sigma_data)
        if isinstance(value, tuple) and axis:
            return tuple(number(one, axis) for one in value)
        if isinstance(value, ComponentSpec) and axis != "dataset":
            options = multiples.evaluated(value.options, sigma_data)
            return ComponentSpec(name=value.name, options=options)
        return multiples.evaluated(value, sigma_data) if isinstance(value, str | tuple) else value

    return model.model_copy(
        update={
            field.name: number(getattr(model, field.name), field.setting.axis)
            for field in settings.fields(type(model))
        }
    )


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
    native, shared = {"c_in": (c.in_, shared_c_in), "c_noise": (c.noise, shared_c_noise)}[name]
    # Both sides round a few times in float64.
    return torch.allclose(native, shared(sigma, sigma_data), rtol=1e-14, atol=1e-14)
