"""What `testbed explain` shows of a component."""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.markup import escape

from testbed.components.base import Component
from testbed.components.density import Density
from testbed.components.loss import Loss
from testbed.components.recipe import CHOICES, LEVELS, Recipe
from testbed.components.weighting import Weighting
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError, one_line
from testbed.plugin_files import is_file
from testbed.random import seeded
from testbed.registry import Registry
from testbed.training.objective import Objective
from testbed.trial.recipes import objective, published, published_with
from testbed.trial.specs import ComponentSpec
from testbed.trial.validity import levels_of

if TYPE_CHECKING:  # half a second to import, which a plot alone needs
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    Shown = tuple[str, Callable[[FigureBase], None]]
    """The text of a component, and what draws it."""

SHOWN = torch.tensor([0.002, 0.01, 0.05, 0.2, 0.5, 1, 2, 10, 80], dtype=torch.float64)
AXES = ("parameterization", "weighting", "loss", "density", "recipe")
SUFFIXES = (".svg", ".png")


def explain(name: str, registry: Registry, sigma_data: float, file: Path | None) -> str:
    """The description of every component of that name or plugin file; its plot goes to `file`.

    Raises:
        UnknownName: no parameterization, weighting, loss, density or recipe of that name.
        InputError: a file of another kind, or that cannot be written; a component that raises.
    """
    if not 0 < sigma_data < math.inf:
        raise InputError(f"--sigma-data {sigma_data!r} must be a positive number.")
    if file is not None and file.suffix not in SUFFIXES:
        raise InputError(f"--out {file}: expected {' or '.join(SUFFIXES)}.")
    found = _found(name, registry)
    parts, drawings = [], []
    for component in found:
        parts.append(_head(component, registry))
        try:
            with _quiet():
                text, draw = _body(component, registry, sigma_data)
        except InputError:
            raise
        except Exception as problem:  # a plugin's function, or what is made of its value
            raise InputError(f"{component.label} cannot be shown: {one_line(problem)}") from problem
        parts.append(text)
        drawings.append(draw)
    if file is not None:
        _save(drawings, file, name)
    return "\n".join(parts)


def _save(drawings: list[Callable[[FigureBase], None]], file: Path, name: str) -> None:
    """Draws each component in a panel of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(drawings)), layout="constrained")
    panels = figure.subfigures(len(drawings), 1, squeeze=False)[:, 0]
    try:
        with _quiet():
            for draw, panel in zip(drawings, panels, strict=True):
                draw(panel)
            figure.savefig(file, dpi=150)
    except InputError:
        raise
    except OSError as problem:
        raise InputError(f"--out {file}: cannot be written: {problem.strerror}.") from None
    except Exception as problem:
        raise InputError(f"{name} cannot be drawn: {one_line(problem)}") from problem


def _found(word: str, registry: Registry) -> list[Component]:
    """What a word names: the components of a plugin file, or those of a name, with options."""
    if is_file(word):
        of_file = [one for one in registry.of_file(word) if one.axis in AXES]
        if not of_file:
            raise InputError(f"{word} registers none of what is explained: {', '.join(AXES)}.")
        return [getattr(registry, one.axis)(one.name) for one in of_file]
    spec = ComponentSpec.parse(word)
    return registry.called(spec.name, spec.options, AXES)


def _body(component: Component, registry: Registry, sigma_data: float) -> Shown:
    """What is shown of a component besides its head."""
    if isinstance(component, Parameterization):
        return _parameterization(component, registry, sigma_data)
    if isinstance(component, Weighting):
        return _weighting(component, registry, sigma_data)
    if isinstance(component, Density):
        return _density(component.with_sigma_data(sigma_data))
    if isinstance(component, Recipe):
        return _recipe(component, registry, sigma_data)
    assert isinstance(component, Loss)
    return _loss(component)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: what they are about, the table and the plot show."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _head(component: Component, registry: Registry) -> str:
    source = registry.source(component)
    lines = [f"[bold]{component.label}[/]  ({source.kind} {source.origin})"]
    reference = component.__dict__["reference"]
    if reference:
        lines.append(f"  reference: {reference}")
    options = {**component.defaults, **component.options}
    if options:
        shown = ", ".join(f"{key} = {value!r}" for key, value in options.items())
        lines.append(f"  options: {shown}")
    return "\n".join(lines)


def _within(sigma: torch.Tensor, allowed: tuple[float, float]) -> torch.Tensor:
    """The levels inside an open interval."""
    return sigma[(allowed[0] < sigma) & (sigma < allowed[1])]


def _range(component: Parameterization | Weighting) -> list[str]:
    """A line for a sigma_range other than (0, inf)."""
    low, high = component.sigma_range
    if (low, high) == (0.0, math.inf):
        return []
    return [f"  defined for sigma between {low:g} and {high:g} (ends excluded)"]


def _start(component: Weighting | Loss) -> torch.nn.Module | None:
    """A new state, the same each time; the global generators are left as they were."""
    with seeded(0):
        return component.build()


def _table(columns: dict[str, torch.Tensor]) -> str:
    """The columns below their names, aligned to the right."""
    cells = [
        [f" {name}", *(f"{v:.4g}" for v in values.tolist())] for name, values in columns.items()
    ]
    widths = [max(map(len, column)) for column in cells]
    lines = (
        " ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*cells, strict=True)
    )
    return "\n" + "\n".join(lines) + "\n"


def _source(role: str, function: object) -> list[str]:
    """What a plugin's author wrote, indented."""
    try:
        text = inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):
        text = repr(function)
    return [f"  {role}:", *(f"    {escape(line)}" for line in text.splitlines())]


def _parameterization(p: Parameterization, registry: Registry, sigma_data: float) -> Shown:
    lines = [f"  sigma_data = {sigma_data:g}; D = c_skip x + c_out F(c_in x, c_noise)"]
    if not p.affine:
        lines = [
            f"  sigma_data = {sigma_data:g}; not affine: D is a function of F, x and sigma, and "
            "there are no coefficients to tabulate; c_in and c_noise are the shared ones"
        ]
    lines += _range(p)
    if p.sigma_data is not None:
        lines.append(f"  right for sigma_data = {p.sigma_data:g} alone")
    if p.singular:
        lines.append(f"  singular at sigma = {', '.join(f'{level:g}' for level in p.singular)}")
    lines.append(f"  claims: {', '.join(p.claims) or 'none'}")
    if p.stated_target is not None:
        lines += _source("target, as stated", p.stated_target)
    if p.stated_denoise is not None:
        lines += _source("denoise, as stated", p.stated_denoise)
    columns = {"sigma": _within(SHOWN, p.sigma_range)}
    if p.affine:
        lines.append("  F* = a x0 + b eps; target_rms = sqrt(a^2 sigma_data^2 + b^2)")
        columns |= _coefficients(p, columns["sigma"], sigma_data)
    weighted: Objective | None = None
    recipe = registry.recipe_of(p)
    if recipe is not None:
        objective = published(p, registry, sigma_data).with_states(0)
        own = f"{recipe.name}: " if isinstance(p.recipe, str) else ""
        lines.append(f"  recipe: {own}{_of_recipe(recipe)}")
        if p.affine or objective.loss.space != "F":
            weighted = objective
            columns["weight"] = objective.effective_weight(columns["sigma"])
            lines.append("  weight = lambda(sigma) p(log sigma), of |D - x0|^2")

    def draw(panel: FigureBase) -> None:
        left, right = panel.subplots(1, 2)
        if p.affine:
            _coefficient_curves(p, sigma_data, left)
        else:
            _curves(p, sigma_data, left)
        right.set(xlabel="σ", title=f"{p.name}: effective weight, published recipe")
        if weighted is not None:
            _weight_curve(weighted, right)

    return "\n".join(lines) + "\n" + (_table(columns) if len(columns) > 1 else ""), draw


def _weight_curve(objective: Objective, axes: Axes) -> None:
    """The effective weight in eps form, over the levels that training draws."""
    at = _within(levels_of(objective.density, 200), objective.parameterization.sigma_range)
    weight = objective.effective_weight(at) * at**2
    axes.loglog(at.numpy(), weight.clamp(min=1e-12).numpy(), color="black")
    axes.set(ylabel="λ(σ) p(log σ) σ²  (eps form)")


def _recipe(recipe: Recipe, registry: Registry, sigma_data: float) -> Shown:
    """Each choice and where it stands, the deviations, and what its own trainings weigh."""
    own = published_with(recipe, registry)
    lines = [f"  published with: {', '.join(own) or 'no parameterization that is loaded'}"]
    for name in (*CHOICES, *LEVELS):
        value = getattr(recipe, name)
        if value is None and name != "weighting":
            continue
        text = ComponentSpec.model_validate(value) if isinstance(value, Mapping) else value
        where = recipe.equations.get("levels" if name in LEVELS else name)
        lines.append(escape(f"  {name}: {text or 'none'}" + (f"  ({where})" if where else "")))
    lines += [escape(f"  deviation: {sentence}") for sentence in recipe.deviations]
    columns = {"sigma": SHOWN}
    weighted: dict[str, Objective] = {}
    for name in {*own} & {*registry.names("parameterization")}:
        p = registry.parameterization(name)
        found = objective(recipe, p, registry, sigma_data).with_states(0)
        if p.affine or found.loss.space != "F":
            weighted[name] = found
            low, high = p.sigma_range
            inside = (low < SHOWN) & (high > SHOWN)
            columns[name] = torch.where(inside, found.effective_weight(SHOWN), math.nan)
    if weighted:
        lines.append("  below each name its weight = lambda(sigma) p(log sigma), of |D - x0|^2")

    def draw(panel: FigureBase) -> None:
        axes = panel.subplots()
        axes.set(xlabel="σ", title=f"{recipe.name}: effective weight")
        for found in weighted.values():
            _weight_curve(found, axes)

    return "\n".join(lines) + "\n" + (_table(columns) if weighted else ""), draw


def _of_recipe(recipe: Recipe) -> str:
    """`weighting edm, loss l2, density lognormal`; what is as usual is left out."""
    parts = []
    for name in CHOICES:
        value = getattr(recipe, name)
        if name == "weighting" and value is None:
            parts.append("no weighting")
        elif value not in (None, "native", "F"):
            parts.append(f"{name} {ComponentSpec.model_validate(value)}")
    return ", ".join(parts)


def _coefficients(
    p: Parameterization, sigma: torch.Tensor, sigma_data: float
) -> dict[str, torch.Tensor]:
    c = p.coefficients(sigma, sigma_data=sigma_data)
    a, b = p.pair_weights(sigma, sigma_data=sigma_data)
    return {
        "c_skip": c.skip,
        "c_out": c.out,
        "c_in": c.in_,
        "c_noise": c.noise,
        "a": a,
        "b": b,
        "target_rms": torch.sqrt(a**2 * sigma_data**2 + b**2),
    }


def _coefficient_curves(p: Parameterization, sigma_data: float, axes: Axes) -> None:
    """c_skip, |c_out| and c_in over the levels."""
    sigma = _within(torch.logspace(-3, 2, 200, dtype=torch.float64), p.sigma_range)
    c = p.coefficients(sigma, sigma_data=sigma_data)
    for label, values in (("c_skip", c.skip), ("|c_out|", c.out.abs()), ("c_in", c.in_)):
        axes.loglog(sigma.numpy(), values.clamp(min=1e-12).numpy(), label=label)
    axes.set(xlabel="σ", title=f"{p.name}: coefficients", ylim=(1e-4, 1e4))
    axes.legend(frameon=False)


def _curves(p: Parameterization, sigma_data: float, axes: Axes) -> None:
    """D of F at x = 0 and a few levels, where there are no coefficients to draw."""
    F = torch.linspace(-3, 3, 301, dtype=torch.float64)
    for sigma in _within(torch.tensor([0.05, 0.5, 5.0], dtype=torch.float64), p.sigma_range):
        D = p.denoise(F, torch.zeros_like(F), sigma, sigma_data=sigma_data)
        axes.plot(F.numpy(), D.numpy(), label=f"σ = {float(sigma):g}")
    axes.set(xlabel="F", title=f"{p.name}: D at x = 0")
    axes.legend(frameon=False)


def _weighting(w: Weighting, registry: Registry, sigma_data: float) -> Shown:
    density = registry.density("loguniform") if "p" in w.signature("function").inputs else None
    lines = ["  with the log-uniform density"] if density else []
    lines += _range(w)
    state = _start(w)
    if state is not None:
        n = sum(p.numel() for p in state.parameters())
        lines.append(f"  learned with the network ({n} numbers): shown is its start")
        if w.penalty is not None:
            lines += _source("penalty, added to the loss per sample", w.penalty)
    with torch.no_grad():
        sigma = _within(torch.logspace(-2.6, 1.9, 200, dtype=torch.float64), w.sigma_range)
        curve = w(sigma, sigma_data=sigma_data, density=density, state=state)
        shown = _within(SHOWN, w.sigma_range)
        values = w(shown, sigma_data=sigma_data, density=density, state=state)

    def draw(panel: FigureBase) -> None:
        axes = panel.subplots()
        axes.loglog(sigma.numpy(), curve.numpy(), color="black")
        start = " at the start" if state is not None else ""
        axes.set(xlabel="σ", title=f"{w.name}: λ(σ){start}, multiplying |D − x0|²")

    note = "".join(f"{line}\n" for line in lines)
    return note + _table({"sigma": shown, "lambda": values, "eps form": values * shown**2}), draw


def _density(p: Density) -> Shown:
    sigma = levels_of(p, 400)
    curve = p.pdf_over_log_sigma(sigma)

    def draw(panel: FigureBase) -> None:
        axes = panel.subplots()
        axes.semilogx(sigma.numpy(), curve.numpy(), color="black")
        axes.set(xlabel="σ", title=f"{p.name}: p(log σ)")

    u = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99], dtype=torch.float64)
    return _table({"quantile": u, "sigma": p.sigma(u)}), draw


def _loss(loss: Loss) -> Shown:
    d = torch.linspace(-3, 3, 301)
    state = _start(loss)
    with torch.no_grad():
        curve = loss(d, torch.zeros_like(d), state)

    def draw(panel: FigureBase) -> None:
        axes = panel.subplots()
        axes.plot(d.numpy(), curve.numpy(), color="black")
        axes.set(xlabel="prediction − target", title=f"{loss.name}, space {loss.space}")

    kind = "elicits the mean" if loss.elicits_mean else "does not elicit the mean"
    lines = [f"  taken in the space {loss.space!r}; {kind}"]
    if state is not None:
        lines.append("  has a state, which training changes: the plot shows its start")
        lines += _source("state", loss.state)
    return "\n".join(lines) + "\n", draw
