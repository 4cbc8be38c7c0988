"""The tables of a study, as its folder `tables/` has them."""

from __future__ import annotations

import pandas as pd

from testbed.report import (
    comparisons,
    fixed_models,
    lengths,
    sample_metrics,
    spaces,
    summaries,
)
from testbed.report.comparisons import Comparisons
from testbed.report.results import LABEL, Results

TRIAL = [*LABEL, "seed", "id", "status", "metric", "value", "error"]


def make(results: Results, compared: Comparisons) -> dict[str, pd.DataFrame]:
    """Returns every table by the stem of its file."""
    return {
        "trials": trials(results),
        "results": comparisons.result_table(results),
        "comparisons": compared.table(),
        "samples": sample_metrics.table(sample_metrics.make(results)),
        "levels": comparisons.level_table(results),
        "tweedie": summaries.laws(results),
        "learning": summaries.learning(results),
        "decades": summaries.decades(results),
        **lengths.make(results, compared).tables(results),
        **_of_fixed(results),
        **({"spaces": spaces.table(results)} if spaces.groups(results) else {}),
    }


def _of_fixed(results: Results) -> dict[str, pd.DataFrame]:
    """The tables of the models that were not trained; none where there are none."""
    if results.fixed is None:
        return {}
    return {
        "fixed": fixed_models.table(results),
        "fixed_levels": fixed_models.level_table(results),
    }


def trials(results: Results) -> pd.DataFrame:
    """Returns trials.csv: a row for each label, seed and metric.

    `value` is inf where the trial diverged or the metric is not finite; `error` is that of the
    trial's own samples, nan where the metric is not of samples. A trial that failed or has not run
    has one row, without a metric.
    """
    key = [*LABEL, "seed"]
    return results.trials[[*key, "id", "status"]].merge(results.metrics, on=key, how="left")[TRIAL]
