"""Mistakes in the noise levels of a study, each rejected by its law."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from laws import drawn_levels as drawn_laws
from laws import levels as laws
from mutants.registry import laws_of, rejected_by
from torch import Tensor

from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.noise_tables import NoiseTable
from testbed.metrics import denoising
from testbed.metrics.denoising import HeldOutPairs
from testbed.random import stream
from testbed.registry import Registry, default_registry
from testbed.report import ranges
from testbed.report.ranges import CommonLevels
from testbed.report.results import Label, Results
from testbed.sampling.schedules import snapped
from testbed.study import drawn_levels, grids
from testbed.study.grids import Variant
from testbed.tensors import per_sample
from testbed.training.objective import Objective
from testbed.trial.config import TrialConfig

Variants = Sequence[Variant]


def whole_distances(objective: Objective, levels: Tensor, grid: Tensor) -> Tensor:
    """As far as the neighbours, so that each draw counts twice."""
    near = (levels.log()[:, None] - grid.log()).abs().argmin(1)
    whole = torch.diff(grid.log()).exp()
    before, after = torch.cat([whole[:1], whole])[near], torch.cat([whole, whole[-1:]])[near]
    at = levels if objective.table is None else objective.table.quantised(levels)
    return drawn_levels.below(objective, at * after) - drawn_levels.below(objective, at / before)


def among_what_is_measured(objective: Objective, levels: Tensor, grid: Tensor) -> Tensor:
    """Half way to the next level that is measured, which may be a table's, close by."""
    order = levels.argsort()
    found = torch.empty_like(levels)
    found[order] = drawn_levels.shares(objective, levels[order], levels[order])
    return found


def of_the_density(objective: Objective, levels: Tensor, grid: Tensor) -> Tensor:
    """The density at the level times the distance to the neighbours."""
    near = (levels.log()[:, None] - grid.log()).abs().argmin(1)
    half = torch.diff(grid.log()) / 2
    width = torch.cat([half[:1], half]) + torch.cat([half, half[-1:]])
    return objective.density.pdf_over_log_sigma(levels) * width[near]


def without_the_table(objective: Objective, levels: Tensor, grid: Tensor) -> Tensor:
    """Around the level that was asked for, and not around the table's."""
    continuous = replace(objective, table=None)
    return drawn_levels.shares(continuous, levels, grid)


def at(config: TrialConfig, levels: Sequence[float] | None) -> TrialConfig:
    evaluation = config.evaluation.model_copy(update={"levels": tuple(levels or ())})
    return config.model_copy(update={"evaluation": evaluation})


def at_the_grid(variants: Variants, registry: Registry) -> list[TrialConfig]:
    """A discrete variant at levels that its table does not have."""
    found = grids.measured(variants, registry)
    return [at(one, one.asked_levels) if one.table else one for one in found]


def opponent_at_the_grid(variants: Variants, registry: Registry) -> list[TrialConfig]:
    found = grids.measured(variants, registry)
    return [one if one.table or not one.asked_levels else at(one, one.asked_levels)
            for one in found]  # fmt: skip


def opponent_at_the_table_alone(variants: Variants, registry: Registry) -> list[TrialConfig]:
    """Then continuous variants are compared at the levels of a third one's table."""
    found = grids.measured(variants, registry)
    return [one if one.table or not one.asked_levels
            else at(one, sorted(set(one.evaluation.levels) - set(one.asked_levels)))
            for one in found]  # fmt: skip


def whole_case(variants: Variants, registry: Registry) -> list[TrialConfig]:
    """Also variants that no discrete one is compared with, whose identity changes then."""
    same = [replace(one, arm="") for one in variants]
    return grids.measured(same, registry)


def one_arm(variants: Variants, registry: Registry) -> list[TrialConfig]:
    """Not the same variant in another arm, with which the report compares it too."""
    apart = [replace(one, case=f"{one.case}{one.arm}") for one in variants]
    return grids.measured(apart, registry)


def all_of_the_table(variants: Variants, registry: Registry) -> list[TrialConfig]:
    found = grids.measured(variants, registry)
    return [at(one, laws.LEVELS) if one.table else one for one in found]


def untrained_levels_too(variants: Variants, registry: Registry) -> list[TrialConfig]:
    """The nearest of the whole table, of which training draws a part."""
    whole = {"training_range": (laws.LEVELS[0], laws.LEVELS[-1])}
    changed = [
        replace(one, config=one.config.model_copy(update=whole)) if one.config.table else one
        for one in variants
    ]
    return grids.measured(changed, registry)


def each_its_own_range(variants: Variants, registry: Registry) -> list[TrialConfig]:
    apart = [replace(one, case=f"{number}") for number, one in enumerate(variants)]
    return grids.measured(apart, registry)


def narrowest_range(variants: Variants, registry: Registry) -> list[TrialConfig]:
    found = []
    for one in variants:
        mine = [other.config.measured for other in variants if other.case == one.case]
        low, high = max(ends[0] for ends in mine), min(ends[1] for ends in mine)
        found.append(grids.measured_over(one.config, low, high))
    return found


def range_of_the_table(variants: Variants, registry: Registry) -> list[TrialConfig]:
    found = grids.measured(variants, registry)
    return [one.model_copy(update={"asked_levels": one.trained}) if one.table else one
            for one in found]  # fmt: skip


class FreshNoise(HeldOutPairs):
    """eps is drawn anew for each level, from one stream."""

    def noisy(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        generator = stream(0, "mutant")
        for level in self.sigma:
            eps = torch.randn(self.eps.shape, generator=generator)
            sigma = level.expand(len(self.x0))
            yield sigma, self.x0 + per_sample(sigma, self.x0).to(self.x0.dtype) * eps


class OtherRows(HeldOutPairs):
    """x0 is another row of the test split at each level."""

    def noisy(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for i, (sigma, x) in enumerate(super().noisy(device)):
            yield sigma, x.roll(i, 0)


def table_of(kind: type[HeldOutPairs], sigma: Tensor) -> pd.DataFrame:
    registry = default_registry()
    data = registry.dataset("gaussian", dim=2, n=64, test=32)()
    network = registry.network("mlp", width=8, depth=1)(data.shape, {}, 0, {})
    with torch.no_grad():  # the last layer starts at 0
        for weight in network.parameters():
            weight += 0.1
    p = registry.parameterization("edm")
    denoiser = Denoiser(network, p, data.sigma_data, "shared", "shared")
    pairs = denoising.held_out_pairs(data, sigma, 32)
    return denoising.per_level(denoiser, kind(**vars(pairs)), torch.device("cpu"))


def over_whole_range(sigma: Tensor) -> pd.DataFrame:
    """Numbers as parts of the sum over all levels."""
    found = table_of(HeldOutPairs, sigma)
    return found.assign(loss=found["loss"] / found["loss"].sum())


def unsnapped(sigmas: Tensor, table: NoiseTable, low: float, high: float) -> Tensor:
    return sigmas


def without_the_end(sigmas: Tensor, table: NoiseTable, low: float, high: float) -> Tensor:
    return snapped(sigmas, table, low, high)[:-1]


def repeated(sigmas: Tensor, table: NoiseTable, low: float, high: float) -> Tensor:
    return torch.cat([table.quantised(sigmas[:-1]).clamp(low, high), sigmas[-1:]])


def of_the_whole_table(sigmas: Tensor, table: NoiseTable, low: float, high: float) -> Tensor:
    return snapped(sigmas, table, float(table.sigmas[0]), float(table.sigmas[-1]))


def the_end_snapped_too(sigmas: Tensor, table: NoiseTable, low: float, high: float) -> Tensor:
    return table.snapped(sigmas, low, high).flip(0)


def stored(results: Results, label: Label, metric: str, levels: CommonLevels) -> Any:
    """The trial's own number, of its own grid."""
    return results.values(*label, metric)


def all_that_both_have(results: Results, label: Label, metric: str, levels: CommonLevels) -> Any:
    """Those of a third setting's table with them, which then count twice."""
    own = results.by_level(label)
    assert own is not None
    every = own.level if set(levels.levels) <= set(own.level) else levels.levels
    return ranges.values(results, label, metric, replace(levels, levels=every))


def of_the_asked(results: Results, label: Label, metric: str, levels: CommonLevels) -> Any:
    """The level next to the one that is asked for, taken for it."""
    own = results.by_level(label)
    assert own is not None
    near = [float(own.level[np.abs(np.log(own.level / s)).argmin()]) for s in levels.every]
    return ranges.values(results, label, metric, replace(levels, levels=np.array(near)))


def share_of_the_table(results: Results, *labels: Label) -> CommonLevels | None:
    """The levels of the table as though they were those that are asked for."""
    found = ranges.common(results, *labels)
    if found is None:
        return None
    inside = np.isin(found.measured, found.levels)
    return replace(found, every=found.measured, trained=inside)


def ends_stand_for_all_beyond(results: Results, *labels: Label) -> CommonLevels | None:
    """A level counts where the nearest one of the table was trained on."""
    found = ranges.common(results, *labels)
    return found and replace(found, trained=np.ones(len(found.every), dtype=bool))


LEVELS = laws_of("laws: levels of a study", "where the trials of a study are measured and sample")
rejected_by(
    LEVELS,
    laws.law_a_discrete_variant_is_measured_at_its_levels,
    grids.measured,
    at_the_grid_whatever_the_table_has=at_the_grid,
    its_opponent_at_the_grid_alone=opponent_at_the_grid,
    its_opponent_at_the_table_alone=opponent_at_the_table_alone,
    every_variant_of_the_case=whole_case,
    the_variants_of_one_arm_only=one_arm,
    at_all_levels_of_the_table=all_of_the_table,
    at_levels_that_were_cut_off=untrained_levels_too,
)
rejected_by(
    LEVELS,
    laws.law_a_case_has_one_range,
    grids.measured,
    each_variant_over_its_own_range=each_its_own_range,
    over_the_narrowest_range=narrowest_range,
    over_the_range_of_the_table=range_of_the_table,
)
rejected_by(
    LEVELS,
    laws.law_a_level_stands_alone,
    lambda sigma: table_of(HeldOutPairs, sigma),
    fresh_noise_for_each_level=lambda sigma: table_of(FreshNoise, sigma),
    other_rows_for_each_level=lambda sigma: table_of(OtherRows, sigma),
    parts_of_the_sum_over_levels=over_whole_range,
)
rejected_by(
    LEVELS,
    laws.law_a_path_is_on_the_table,
    snapped,
    levels_between_those_of_the_table=unsnapped,
    a_path_that_does_not_end_at_0=without_the_end,
    a_level_twice=repeated,
    levels_that_training_never_draws=of_the_whole_table,
    the_0_replaced_by_the_lowest_level=the_end_snapped_too,
)
rejected_by(
    LEVELS,
    laws.law_both_sides_at_the_same_levels,
    ranges.values,
    each_trial_s_own_number=stored,
    levels_of_a_third_setting_s_table=all_that_both_have,
    the_nearest_measured_level_for_each=of_the_asked,
)
rejected_by(
    LEVELS,
    laws.law_the_share_of_a_table_is_honest,
    ranges.common,
    the_table_s_levels_as_those_asked_for=share_of_the_table,
    the_ends_stand_for_what_is_beyond=ends_stand_for_all_beyond,
)
rejected_by(
    LEVELS,
    drawn_laws.law_share_of_draws,
    drawn_levels.shares,
    to_the_neighbours=whole_distances,
    half_way_to_what_is_measured=among_what_is_measured,
    the_density_times_a_width=of_the_density,
    around_what_was_asked_for=without_the_table,
)
