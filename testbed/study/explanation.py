"""What `testbed explain` shows of a component."""

from __future__ import annotations

import inspect
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.markup import escape

from testbed.components import Component, Density, Loss, Weighting
from testbed.errors import UnknownName, unknown
from testbed.parameterization import Parameterization
from testbed.registry import Registry
from testbed.study.plan import published
from testbed.study.validity import levels_of
from testbed.training.objective import Objective

SHOWN = torch.tensor([0.002, 0.01, 0.05, 0.2, 0.5, 1, 2, 10, 80], dtype=torch.float64)
AXES = ("parameterization", "weighting", "loss", "density")


def explain(name: str, registry: Registry, sigma_data: float, file: Path) -> str:
    """The description of every component of that name, and a plot of it in `file`.

    Raises:
        UnknownName: no parameterization, weighting, loss or density of that name.
    """
    found: list[Component] = [
        getattr(registry, axis)(name) for axis in AXES if name in registry.names(axis)
    ]
    if not found:
        known = {known for axis in AXES for known in registry.names(axis)}
        raise UnknownName(unknown("component", name, known))
    figure = Figure(figsize=(9, 3.2 * len(found)), layout="constrained")
    panels = figure.subfigures(len(found), 1, squeeze=False)[:, 0]
    parts = []
    for component, panel in zip(found, panels, strict=True):
        parts.append(_head(component, registry))
        if isinstance(component, Parameterization):
            parts.append(_parameterization(component, registry, sigma_data, panel))
        elif isinstance(component, Weighting):
            parts.append(_weighting(component, registry, sigma_data, panel))
        elif isinstance(component, Density):
            parts.append(_density(component, panel))
        elif isinstance(component, Loss):
            parts.append(_loss(component, panel))
    figure.savefig(file, dpi=150)
    return "\n".join(parts)


def _head(component: Component, registry: Registry) -> str:
    source = registry.source(component)
    lines = [f"[bold]{component.label}[/]  ({source.kind} {source.origin})"]
    reference = component.__dict__["reference"]
    if reference:
        lines.append(f"  reference: {reference}")
    if component.defaults:
        shown = ", ".join(f"{key} = {value!r}" for key, value in component.defaults.items())
        lines.append(f"  options: {shown}")
    return "\n".join(lines)


def _table(columns: dict[str, torch.Tensor]) -> str:
    table = pd.DataFrame({key: value.tolist() for key, value in columns.items()})
    return "\n" + table.to_string(index=False, float_format=lambda v: f"{v:.4g}") + "\n"


def _source(function: object) -> str:
    try:
        return inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):
        return repr(function)


def _parameterization(
    p: Parameterization, registry: Registry, sigma_data: float, panel: Figure
) -> str:
    lines = [f"  sigma_data = {sigma_data:g}; D = c_skip x + c_out F(c_in x, c_noise)"]
    if p.stated_target is not None:
        lines.append("  target, as stated:")
        lines += [f"    {escape(line)}" for line in _source(p.stated_target).splitlines()]
    if not p.affine:
        return "\n".join([*lines, "  not affine: no coefficients to tabulate", ""])
    c = p.coefficients(SHOWN, sigma_data=sigma_data)
    a, b = p.pair_weights(SHOWN, sigma_data=sigma_data)
    lines.append("  F* = a x0 + b eps; target_rms = sqrt(a^2 sigma_data^2 + b^2)")
    columns = {
        "sigma": SHOWN,
        "c_skip": c.skip,
        "c_out": c.out,
        "c_in": c.in_,
        "c_noise": c.noise,
        "a": a,
        "b": b,
        "target_rms": torch.sqrt(a**2 * sigma_data**2 + b**2),
    }
    left, right = panel.subplots(1, 2)
    sigma = torch.logspace(-3, 2, 200, dtype=torch.float64)
    c = p.coefficients(sigma, sigma_data=sigma_data)
    for label, values in (("c_skip", c.skip), ("|c_out|", c.out.abs()), ("c_in", c.in_)):
        left.loglog(sigma.numpy(), values.clamp(min=1e-12).numpy(), label=label)
    left.set(xlabel="σ", title=f"{p.name}: coefficients", ylim=(1e-4, 1e4))
    left.legend(frameon=False)
    right.set(xlabel="σ", title=f"{p.name}: effective weight, published recipe")
    if p.recipe is not None:
        objective = Objective(p, *published(p, registry), sigma_data).started(0)
        shown = ", ".join(f"{axis} {getattr(p.recipe, axis)}" for axis in AXES[1:])
        lines.append(f"  recipe: {shown}")
        columns["weight"] = objective.effective_weight(SHOWN)
        weight = objective.effective_weight(levels_of(objective.density, 200))
        at = levels_of(objective.density, 200)
        right.loglog(at.numpy(), (weight * at**2).clamp(min=1e-12).numpy(), color="black")
        right.set(ylabel="λ(σ) p(log σ) σ²  (eps form)")
        lines.append("  weight = lambda(sigma) p(log sigma), of |D - x0|^2")
    return "\n".join(lines) + "\n" + _table(columns)


def _weighting(w: Weighting, registry: Registry, sigma_data: float, panel: Figure) -> str:
    density = registry.density("loguniform") if "p" in w.formulas()[0].wanted else None
    note = "  with the log-uniform density\n" if density else ""
    sigma = torch.logspace(-2.6, 1.9, 200, dtype=torch.float64)
    axes = panel.subplots()
    curve = w(sigma, sigma_data=sigma_data, density=density)
    axes.loglog(sigma.numpy(), curve.numpy(), color="black")
    axes.set(xlabel="σ", title=f"{w.name}: λ(σ), multiplying |D − x0|²")
    values = w(SHOWN, sigma_data=sigma_data, density=density)
    return note + _table({"sigma": SHOWN, "lambda": values, "eps form": values * SHOWN**2})


def _density(p: Density, panel: Figure) -> str:
    sigma = levels_of(p, 400)
    axes = panel.subplots()
    axes.semilogx(sigma.numpy(), p.pdf_over_log_sigma(sigma).numpy(), color="black")
    axes.set(xlabel="σ", title=f"{p.name}: p(log σ)")
    u = torch.tensor([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99], dtype=torch.float64)
    return _table({"quantile": u, "sigma": p.sigma(u)})


def _loss(loss: Loss, panel: Figure) -> str:
    d = torch.linspace(-3, 3, 301)
    axes = panel.subplots()
    axes.plot(d.numpy(), loss(d, torch.zeros_like(d)).numpy(), color="black")
    axes.set(xlabel="prediction − target", title=f"{loss.name}, space {loss.space}")
    kind = "elicits the mean" if loss.elicits_mean else "does not elicit the mean"
    return f"  taken in the space {loss.space!r}; {kind}\n"
