"""Mistakes in a report's verdicts, each rejected by its law."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from laws.verdicts import (
    Array,
    law_a_sentence_hangs,
    law_common_range,
    law_learnt_nothing,
    law_order_of_verdicts,
    law_parts_of_a_range,
)
from mutants.registry import laws_of, rejected_by

from testbed.metrics import curves
from testbed.metrics.comparison import Comparison
from testbed.metrics.paired_tests import ALPHA
from testbed.report import ranges
from testbed.report.learning import nothing_learnt, to_linear
from testbed.report.results import Label, Results
from testbed.report.robustness import LeaveOneOut

Verdict = Callable[[Comparison], str]
verdict: Verdict = lambda c: c.verdict  # noqa: E731


def by_significance_alone(c: Comparison) -> str:
    if c.verdict == "undecided" and c.p_holm < ALPHA:
        return "better" if c.ratio < 1 else "worse"
    return c.verdict


def difference_first(c: Comparison) -> str:
    different = c.verdict == "equivalent" and c.p_holm < ALPHA
    return "worse" if different else c.verdict


def not_significant_is_equivalent(c: Comparison) -> str:
    return "equivalent" if c.verdict == "undecided" and c.p_holm >= ALPHA else c.verdict


def survivors_decide(c: Comparison) -> str:
    return "better" if c.diverged else c.verdict


def two_seeds_decide(c: Comparison) -> str:
    return "better" if c.seeds < 3 else c.verdict


def rectangles(metric: str, levels: Mapping[str, Array], d: int) -> Array:
    t = np.log(levels["sigma"])
    widths = np.diff(t, axis=-1, append=t[..., -1:])
    return np.asarray(d * widths * levels["excess"] / levels["sigma"] ** 2)


def over_sigma(metric: str, levels: Mapping[str, Array], d: int) -> Array:
    return curves.parts(metric, {**levels, "sigma": np.exp(levels["sigma"])}, d)


def without_dimensions(metric: str, levels: Mapping[str, Array], d: int) -> Array:
    return curves.parts(metric, levels, 1)


def whole_cells(metric: str, levels: Mapping[str, Array], d: int) -> Array:
    """The end levels with the weight of one inside."""
    found = curves.parts(metric, levels, d)
    found[..., [0, -1]] *= 2
    return found


def pooled(results: Results, label: Label, levels: Any) -> str:
    """One mean over all levels, so that what is lost at one end hides what was learnt elsewhere."""
    found = results.by_level(label)
    said = nothing_learnt(results, label, levels)
    if said or found is None or "optimum" in found.columns:
        return said
    logs = to_linear(found.columns).mean(1)
    return "b learnt nothing" if logs.min() > -results.settings.smallest_effect else ""


def without_interval(results: Results, label: Label, levels: Any) -> str:
    """The mean alone: what the seeds leave open counts as shown."""
    found = results.by_level(label)
    said = nothing_learnt(results, label, levels)
    if said or found is None or "optimum" in found.columns:
        return said
    means = to_linear(found.columns).mean(0)
    return "b learnt nothing" if means.min() > -results.settings.smallest_effect else ""


def whatever_can_be_learnt(results: Results, label: Label, levels: Any) -> str:
    """Also where the linear denoiser is the exact one."""
    found = results.by_level(label)
    assert found is not None
    stuck = bool((np.abs(to_linear(found.columns)) < 1e-9).all())
    said = nothing_learnt(results, label, levels)
    return said or ("b learnt nothing beyond the linear denoiser" if stuck else "")


def without_start(results: Results, label: Label, levels: Any) -> str:
    return nothing_learnt(results, label, levels).replace(" (F = 0)", "")


def only_what(wanted: type) -> Callable[[Results, str], LeaveOneOut]:
    def made(results: Results, case: str) -> LeaveOneOut:
        left = LeaveOneOut(results, case)
        left.omitted = [one for one in left.omitted if isinstance(one, wanted)]
        return left

    return made


class EachOnTop(LeaveOneOut):
    """Each seed is left out on top of those before."""

    def hangs_on(self, statement: Any, of_levels: Any = None) -> list[str]:
        full, rest, found = statement(self.results), self.results, []
        for seed in (one for one in self.omitted if isinstance(one, int)):
            rest = rest.without(self.case, seed=seed)
            found += [f"seed {seed}"] if statement(rest) not in (None, full) else []
        return found


class WithoutBands(LeaveOneOut):
    """What one band of noise levels carries counts as carried by all."""

    def hangs_on(self, statement: Any, of_levels: Any = None) -> list[str]:
        return super().hangs_on(statement)


class BandsAlone(LeaveOneOut):
    """Each band by itself in the place of all others."""

    def hangs_on(self, statement: Any, of_levels: Any = None) -> list[str]:
        alone = of_levels and (lambda band: of_levels(band.rest))
        return super().hangs_on(statement, alone)


def over_every_level(results: Results, label: Label, metric: str, levels: Any) -> Any:
    return results.values(*label, metric)


def over_own_levels(results: Results, label: Label, metric: str, levels: Any) -> Any:
    return ranges.values(results, label, metric, ranges.common(results, label))


def without_the_ends(results: Results, label: Label, metric: str, levels: Any) -> Any:
    return ranges.values(results, label, metric, levels) ** (1 if label[2] == "b" else 2)


VERDICTS = laws_of("laws: verdicts", "what a report says of two variants, and over which levels")
rejected_by(
    VERDICTS,
    law_order_of_verdicts,
    verdict,
    significance_alone=by_significance_alone,
    a_difference_before_equivalence=difference_first,
    not_significant_is_equivalent=not_significant_is_equivalent,
    the_surviving_seeds_decide=survivors_decide,
    two_seeds_decide=two_seeds_decide,
)
rejected_by(
    VERDICTS,
    law_parts_of_a_range,
    curves.parts,
    rectangles=rectangles,
    over_sigma=over_sigma,
    without_the_dimensions=without_dimensions,
    ends_with_whole_cells=whole_cells,
)
rejected_by(
    VERDICTS,
    law_learnt_nothing,
    nothing_learnt,
    one_mean_over_all_levels=pooled,
    the_mean_without_its_interval=without_interval,
    the_optimum_ignored=whatever_can_be_learnt,
    F_0_not_looked_at=without_start,
)
rejected_by(
    VERDICTS,
    law_a_sentence_hangs,
    LeaveOneOut,
    seeds_only=only_what(int),
    variants_only=only_what(str),
    each_on_top_of_those_before=EachOnTop,
    bands_not_left_out=WithoutBands,
    bands_alone=BandsAlone,
)
rejected_by(
    VERDICTS,
    law_common_range,
    ranges.values,
    over_every_level=over_every_level,
    over_its_own_levels=over_own_levels,
    squared=without_the_ends,
)
