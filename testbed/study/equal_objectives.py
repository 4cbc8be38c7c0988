"""Settings of a study that are the same objective and function family, up to a factor of F.

They train on the same draws towards the same denoiser. Where the factor is 1 or -1 they are one
training to rounding, or its mirror image, and a study names them instead of comparing them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from testbed.components.loss import Loss
from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.equal_objectives import RESOLUTION, factor
from testbed.registry import Registry
from testbed.study.looks import APART
from testbed.study.plan import Plan
from testbed.training.objective import Objective
from testbed.trial import build
from testbed.trial.config import TrialConfig
from testbed.trial.validity import levels_of

LEVELS = 129
SPACES = (
    "under a weighting a squared error is lambda |D - x0|^2 whatever its space; to compare spaces, "
    'write weighting = "none", or take the loss l1 or huber'
)
"""Why a grid of the spaces of l2 compares nothing, and what to write."""


@dataclass(frozen=True)
class ObjectiveSignature:
    """What decides a training besides its data, network, optimiser and seed.

    The tensors are (n, LEVELS), functions of sigma. `weight` is the factor on |F - F*|^2 for l2 and
    on m(q_hat, q) for any other `loss`; a constant in it has no effect, since a trial's loss is
    divided by its value at F = 0, unless `sized`: where the gradient of the loss itself is clipped,
    its size has one. `rest` holds the levels and the density's pdf, c_in and c_noise:
    one product of weight and pdf from another pdf is the same objective only in expectation.
    """

    loss: Loss | None
    target: Tensor
    weight: Tensor
    rest: Tensor
    sized: bool = False


def signature(
    objective: Objective, denoiser: Denoiser, sized: bool = False
) -> ObjectiveSignature | None:
    """The signature of an objective and of its denoiser's inputs; None where none is known.

    That is for a parameterization that is not affine, for a weighting or a loss that has a state,
    and for a loss in the space F other than l2, which need not be even.
    """
    p, loss, weighting = objective.parameterization, objective.loss, objective.weighting
    learned = loss.state is not None or (weighting is not None and weighting.state is not None)
    if not p.affine or learned or (loss.space == "F" and not loss.quadratic):
        return None
    sigma, sd = levels_of(objective.density, LEVELS), objective.sigma_data
    weight = objective.k(sigma)
    if loss.quadratic:
        out = p.coefficients(sigma, sigma_data=sd).out
        weight = objective.effective_weight(sigma) * out**2
    pdf = objective.density.pdf_over_log_sigma(sigma)
    return ObjectiveSignature(
        loss=None if loss.quadratic else loss,
        target=torch.stack(p.pair_weights(sigma, sigma_data=sd)),
        weight=weight[None],
        rest=torch.stack([sigma, pdf, *denoiser.inputs(sigma)]),
        sized=sized,
    )


def compared(first: ObjectiveSignature, second: ObjectiveSignature) -> float | None:
    """c with F_second = c F_first and all else equal, or None where their objectives differ."""
    off = (first.rest - second.rest).abs()
    if first.loss != second.loss or not bool((off <= RESOLUTION * second.rest.abs()).all()):
        return None
    size, c = factor(first.weight, second.weight), factor(first.target, second.target)
    if size is None or c is None:
        return None
    if first.loss is None:  # |F - F*|^2 has the factor c^2, m(q_hat, q) has none
        size *= c**2
    # The size and both of c's factors are known to RESOLUTION.
    return None if first.sized and abs(size - 1) > 3 * RESOLUTION else c


def find(plan: Plan, registry: Registry) -> list[dict[str, Any]]:
    """The equal objectives of each case and arm, from the formulas alone: no data set, no network.

    Returns:
        A record for each group: `case`, `arm`, `members` (its variants), `factors` (each one's F
        over that of the first) and `why` in words.
    """
    known: dict[str, ObjectiveSignature | None] = {}
    spaces: dict[tuple[str, str, str], tuple[str, str]] = {}
    groups: dict[tuple[str, str, str], dict[str, ObjectiveSignature]] = {}
    for trial in plan.trials:
        judged = trial.config.text(objective=True)
        if judged not in known:
            known[judged] = described(trial.config, registry)
        found = known[judged]
        if found is None:
            continue
        others = trial.config.of_seed(0).text(objective=False)
        undone = _undone(trial.config, found)
        for label in (one for one in trial.labels if APART.isdisjoint(one)):
            case, arm, variant = label["case"], label["arm"], label["variant"]
            groups.setdefault((case, arm, others), {}).setdefault(variant, found)
            if undone:
                spaces[case, arm, variant] = undone
    records = []
    for (case, arm, _), members in groups.items():
        for group in _alike(members):
            factors = list(group.values())
            taken = {spaces[case, arm, name] for name in group if (case, arm, name) in spaces}
            reason = why(factors)
            if len(taken) > len({name for name, _ in taken}):
                reason += f": {SPACES}"
            records.append(
                {"case": case, "arm": arm, "members": [*group], "factors": factors, "why": reason}
            )
    return records


def _undone(config: TrialConfig, found: ObjectiveSignature) -> tuple[str, str] | None:
    """The parameterization and the loss's space where a weighting undoes this; None elsewhere."""
    if found.loss is not None or config.weighting is None:
        return None
    return config.parameterization.text, str(config.loss.options["space"])


def described(config: TrialConfig, registry: Registry) -> ObjectiveSignature | None:
    """The signature of a resolved configuration; None where it has none or its plugins raise."""
    try:
        objective = build.objective(config, registry)
        p, sd = objective.parameterization, objective.sigma_data
        denoiser = Denoiser(
            torch.nn.Identity(), p, sd, config.c_in, config.c_noise, objective.table
        )
        training = config.training
        return signature(objective, denoiser, training.clip > 0 and training.clip_loss == "raw")
    except Exception:  # a plugin's: its trials will fail and say why
        return None


def _alike(members: Mapping[str, ObjectiveSignature]) -> list[dict[str, float]]:
    """The groups of several variants, each with its factor over the group's first.

    First the mirror images; then one of each such group, where only the size of F differs.
    """
    mirrors = _groups(members, lambda c: abs(c) == 1)
    scaled = _groups({(name := next(iter(g))): members[name] for g in mirrors}, lambda c: True)
    return [group for group in (*mirrors, *scaled) if len(group) > 1]


def _groups(
    members: Mapping[str, ObjectiveSignature], alike: Callable[[float], bool]
) -> list[dict[str, float]]:
    """All members, together with the first before them whose factor to them is `alike`."""
    groups: list[dict[str, float]] = []
    for name, one in members.items():
        for group in groups:
            c = compared(members[next(iter(group))], one)
            if c is not None and alike(c):
                group[name] = c
                break
        else:
            groups.append({name: 1.0})
    return groups


def why(factors: Sequence[float]) -> str:
    """What equal objectives have in common and in what they differ; the first factor is 1."""
    if all(c == 1 for c in factors):
        return "the same objective; F is the same"
    if all(abs(c) == 1 for c in factors):
        return "the same objective; F differs by the sign"
    return (
        f"the same objective; F differs by the factor {', '.join(f'{c:g}' for c in factors[1:])}: "
        "compared all the same, as Adam's steps do not scale with it"
    )


def line(group: Mapping[str, Any]) -> str:
    """A line for the terminal, such as `equal objectives: v and edm in case digits: ...`."""
    where = ", ".join(f"{key} {group[key]}" for key in ("case", "arm") if group[key])
    where = f" in {where}" if where else ""
    *members, last = group["members"]
    return f"equal objectives: {', '.join(members)} and {last}{where}: {group['why']}"
