"""The noise levels that the trials of a study are measured at.

A case has one grid: the levels that its evaluation asks for. A discrete variant knows the levels of
its table only, and is measured at those that are nearest to the grid, among the ones that it was
trained on. Its opponents, the variants of its case and arm and itself in the case's other arms, are
measured at the grid and at those levels too, so that both sides of a comparison have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from testbed.components.recipe import LEVELS
from testbed.registry import Registry
from testbed.trial import build
from testbed.trial.config import TrialConfig, TrialSettings
from testbed.trial.resolve import measured_over


@dataclass(frozen=True)
class Variant:
    """A variant of a case and arm.

    Args:
        case, arm, name: its labels.
        config: its configuration, resolved alone, of any seed.
        stated: its settings as the study states them.
        budget: its number of steps where that is one of the study's budgets, else None.
    """

    case: str
    arm: str
    name: str
    config: TrialConfig
    stated: TrialSettings
    budget: int | None = None

    def meets(self, other: Variant) -> bool:
        """Whether the report compares the two."""
        return self.case == other.case and (self.arm == other.arm or self.name == other.name)


def measured(variants: Sequence[Variant], registry: Registry) -> list[TrialConfig]:
    """The configuration of each variant, with the levels that it is measured at."""
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    for one in variants:
        low, high = one.config.measured
        lows[one.case] = min(low, lows.get(one.case, low))
        highs[one.case] = max(high, highs.get(one.case, high))
    ranged = [replace(one, config=_over(one, lows[one.case], highs[one.case])) for one in variants]
    nearest = [_nearest(one.config, registry) for one in ranged]
    discrete = [
        (other, levels) for other, levels in zip(ranged, nearest, strict=True) if levels is not None
    ]
    found = []
    for one, own in zip(ranged, nearest, strict=True):
        of_tables = [levels for other, levels in discrete if one.meets(other)]
        found.append(_at(one.config, own, of_tables) if of_tables else one.config)
    return found


def _over(one: Variant, low: float, high: float) -> TrialConfig:
    """The trial over the widest range that a variant of its case states, where it states none."""
    left_out = {name: None for name in LEVELS if getattr(one.stated.evaluation, name) is None}
    evaluation = one.config.evaluation.model_copy(update=left_out)
    return measured_over(one.config.model_copy(update={"evaluation": evaluation}), low, high)


def _nearest(config: TrialConfig, registry: Registry) -> tuple[float, ...] | None:
    """The levels of a trial's table that are nearest to its grid; None where it has no table.

    Where the table has levels within the grid's range, they are those: an opponent that is trained
    on the whole range is trained on them.
    """
    table = build.noise_table(registry, config.table)
    if table is None:
        return None
    grid, (low, high) = build.measured_levels(config), config.trained
    inside = table.sigmas[
        (table.sigmas >= max(low, float(grid[0]))) & (table.sigmas <= min(high, float(grid[-1])))
    ]
    ends = (low, high) if not len(inside) else (float(inside[0]), float(inside[-1]))
    return tuple(table.snapped(grid, *ends).tolist())


def _at(
    config: TrialConfig, own: tuple[float, ...] | None, of_tables: Sequence[tuple[float, ...]]
) -> TrialConfig:
    """The trial at its own levels, or at its grid and those of the tables that it meets."""
    grid = tuple(build.measured_levels(config).tolist())
    levels = own or tuple(sorted({*grid, *(level for one in of_tables for level in one)}))
    listed = {"levels": levels, **dict.fromkeys(LEVELS)}
    evaluation = config.evaluation.model_copy(update=listed)
    return config.model_copy(update={"evaluation": evaluation, "asked_levels": grid})
