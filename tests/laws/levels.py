"""Laws of the noise levels of a study: where its trials are measured, and where they sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from helpers.strategies import float64
from laws.verdicts import planted
from torch import Tensor

from testbed.diffusion.noise_levels import karras_sigmas
from testbed.registry import Registry, default_registry
from testbed.report import ranges
from testbed.report.ranges import CommonLevels
from testbed.report.results import Results
from testbed.study.grids import Variant
from testbed.trial.config import TrialConfig, TrialSettings

TABLE = {"name": "karras", "options": {"n": 10, "low": 0.1, "high": 20.0}}
LEVELS = [(0.1 ** (1 / 7) + i / 9 * (20 ** (1 / 7) - 0.1 ** (1 / 7))) ** 7 for i in range(10)]
GRID = np.geomspace(0.002, 80.0, 8)
Grids = Callable[[Sequence[Variant], Registry], list[TrialConfig]]


def variant(case: str, arm: str, name: str, table: bool = False, **stated: float) -> Variant:
    """A variant that is measured at eight levels; discrete with `table`."""
    own = {"parameterization": name, "dataset": "moons"}
    ends = {"sigma_min": LEVELS[0], "sigma_max": LEVELS[-1], **stated} if table else stated
    config: dict[str, Any] = {**own, "sigma_data": 0.5, "sigma_data_measured": 0.5, **ends}
    evaluation: dict[str, Any] = {"levels": 8}
    if table:
        drawn = [s for s in LEVELS if config["sigma_min"] <= s <= config["sigma_max"]]
        config |= {"table": TABLE, "training_range": (drawn[0], drawn[-1])}
        unstated = {"sigma_min": 0.002, "sigma_max": 80.0}
        evaluation |= {end: s for end, s in unstated.items() if end not in stated}
    resolved = TrialConfig.model_validate({**config, "evaluation": evaluation})
    settings = TrialSettings.model_validate({**own, "evaluation": {"levels": 8}, **stated})
    return Variant(case, arm, name, resolved, settings)


def nearest(levels: Sequence[float]) -> list[float]:
    """Of each level of the grid the nearest of these, by trying all, each once."""
    return sorted({min(levels, key=lambda level: abs(level - sigma)) for sigma in GRID})


def law_a_discrete_variant_is_measured_at_its_levels(measured: Grids) -> None:
    """It is measured at the nearest of them, and its opponents there and at the grid."""
    study = {
        "discrete": variant("c", "a", "edm", table=True),
        "opponent": variant("c", "a", "v"),
        "itself in another arm": variant("c", "b", "edm"),
        "another in another arm": variant("c", "b", "x0"),
        "of another case": variant("d", "a", "edm"),
        "cut": variant("f", "a", "edm", table=True, sigma_min=0.5, sigma_max=5.0),
        "opponent of the cut": variant("f", "a", "v"),
    }
    made = dict(zip(study, measured(list(study.values()), default_registry()), strict=True))
    own, cut = nearest(LEVELS), nearest([s for s in LEVELS if 0.5 <= s <= 5])
    wanted = {
        "discrete": own,
        "opponent": sorted([*GRID, *own]),
        "itself in another arm": sorted([*GRID, *own]),
        "cut": cut,
        "opponent of the cut": sorted([*GRID, *cut]),
    }
    for name, levels in wanted.items():
        found = made[name].evaluation.levels
        assert isinstance(found, tuple)
        assert len(found) == len(levels)
        np.testing.assert_allclose(found, levels, rtol=1e-12)
        np.testing.assert_allclose(made[name].asked_levels, GRID, rtol=1e-12)
    for name in ("another in another arm", "of another case"):
        assert made[name] == study[name].config
        assert made[name].identity == study[name].config.identity


def law_a_case_has_one_range(measured: Grids) -> None:
    """It is the widest that its variants state, whatever one variant's table or recipe has."""
    study = [
        variant("c", "a", "v", sigma_max=10.0),
        variant("c", "a", "eps", sigma_min=0.01),
        variant("c", "b", "x0", sigma_min=0.05, sigma_max=40.0),
        variant("d", "a", "v", sigma_min=0.5, sigma_max=5.0),
        variant("e", "a", "v"),
        variant("e", "a", "edm", table=True),
    ]
    found = [one.measured for one in measured(study, default_registry())]
    whole, inner = (0.002, 80.0), (0.5, 5.0)
    np.testing.assert_allclose(found, [whole] * 3 + [inner] + [whole] * 2, rtol=1e-12)


def law_a_level_stands_alone(measured: Callable[[Tensor], pd.DataFrame]) -> None:
    """The numbers of a level are the same whichever other levels are measured."""
    some = float64([0.05, 0.3, 2.0])
    more = float64([0.01, 0.05, 0.3, 0.31, 2.0, 9.0])
    first, second = (measured(levels).set_index("sigma") for levels in (some, more))
    pd.testing.assert_frame_equal(first, second.loc[first.index], check_exact=True)
    assert (first.drop(columns="optimum") > 0).all(axis=None)


def law_a_path_is_on_the_table(snapped: Callable[..., Tensor]) -> None:
    """The levels of a path are the nearest that training draws, each once, and the last is 0."""
    table = default_registry().table("karras", n=7, low=0.03, high=30.0)
    for low, high in ((0, 6), (2, 4)):
        drawn = table.sigmas[low : high + 1]
        for steps in (3, 12):
            sigmas = karras_sigmas(steps, 0.02, 50.0)
            found = snapped(sigmas, table, float(drawn[0]), float(drawn[-1])).tolist()
            wanted = {min(drawn.tolist(), key=lambda s: abs(s - sigma)) for sigma in sigmas[:-1]}
            assert found == [*sorted(wanted, reverse=True), 0.0]


ASKED = (0.01, 1.0)
AT = {"a": (0.01, 0.1, 1.0, 10.0), "d": (0.01, 0.1, 1.0, 10.0), "b": (0.1, 10.0)}
"""Where two continuous variants and a discrete one are measured, whose table has 0.1 and 10."""
SIZES = {"a": (2.0, 3.0, 5.0, 7.0), "d": (1.3, 1.7, 1.9, 2.3), "b": (0.2, 0.3, 0.5, 0.7)}


def unequal_grids(trained: tuple[float, float] = (0.1, 10.0)) -> Results:
    """A study of them, whose trials' own metrics are of ASKED, or of all that b has."""
    labels = {("c", "", name): [1.0, 1.1, 0.9] for name in AT}
    sizes = lambda variant, level: SIZES[variant][level]  # noqa: E731
    read = planted(labels, shape=sizes, trained={"b": trained})
    levels = read.levels
    kept = [s in AT[v] for s, v in zip(levels["sigma"], levels["variant"], strict=True)]
    stored = read.metrics.copy()
    for row, (name, metric) in enumerate(zip(stored["variant"], stored["metric"], strict=True)):
        if metric == "loss_vs_wiener":
            counted = AT["b"] if name == "b" else ASKED
            stored.loc[row, "value"] = by_hand(name, counted) * stored.loc[row, "value"]
    configs = {
        id_: one.model_copy(update={"asked_levels": ASKED}) for id_, one in read.configs.items()
    }
    return replace(read, levels=levels[kept], metrics=stored, configs=configs)


def by_hand(name: str, levels: Sequence[float]) -> float:
    """The geometric mean of a variant's loss over the linear denoiser's at some levels, seed 0."""
    sizes = [SIZES[name][AT["a"].index(level)] / 20 for level in levels]
    return float(np.exp(np.mean(np.log(sizes))))


def law_both_sides_at_the_same_levels(values: Callable[..., Any]) -> None:
    """A pair is compared at the levels that are asked for, or at those of the table of one side."""
    read = unequal_grids()
    for pair, levels in ((("a", "d"), ASKED), (("a", "b"), AT["b"]), (("d", "b"), AT["b"])):
        labels = [("c", "", name) for name in pair]
        common = ranges.common(read, *labels)
        for label in labels:
            found = values(read, label, "loss_vs_wiener", common)
            np.testing.assert_allclose(found[0], by_hand(label[2], levels), rtol=1e-12)


def law_the_share_of_a_table_is_honest(common: Callable[..., CommonLevels | None]) -> None:
    """A level that is asked for counts where it lies within the table's own, not its nearest."""
    for trained, share in (((0.1, 10.0), [False, True]), ((0.005, 10.0), [True, True]),
                           ((2.0, 10.0), [False, False])):  # fmt: skip
        read = unequal_grids(trained)
        found = common(read, ("c", "", "a"), ("c", "", "b"))
        assert found is not None
        assert found.every.tolist() == list(ASKED)
        assert found.trained.tolist() == share
        assert found.whole == all(share)
        assert found.levels.tolist() == [s for s in AT["b"] if trained[0] <= s <= trained[1]]
        assert found.untrained_too.levels.tolist() == list(AT["b"])
        assert f"{sum(share)} of 2 levels" in found.text
