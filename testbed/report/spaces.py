"""The section of the report on pixels and latents of the same images: samples and time, no losses.

A loss of latents is an error of latents: at a noise level that hides other things than the same
level of pixels does, and in units that the encoder's scale sets. So cases that differ in their
encoder have in common what is decoded, and how long it took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from testbed.notebook import Cell
from testbed.report.comparisons import interval
from testbed.report.drawing import Picture
from testbed.report.galleries import of_spaces
from testbed.report.page_tables import PageTable, page_table
from testbed.report.results import LABEL, Label, Results, Rows
from testbed.report.words import between, floor, listed, number, title
from testbed.trial.config import TrialConfig

SECONDS = {"training_seconds": "training, s", "sampling_seconds": "sampling, s"}
COLUMNS = ["images", *LABEL, "space", "metric", "mean", "n", "diverged", "value", "low", "high"]


@dataclass(frozen=True)
class SpacesPart:
    """The part of the section on cases of the same images.

    Args:
        title: the data set.
        table: a row for each variant in each space, and the floors below.
        sentences: what of the table is not alike in the cases.
        picture: decoded samples beside real images, where there are any.
    """

    title: str
    table: PageTable
    sentences: list[str]
    picture: Picture | None


def groups(results: Results) -> dict[str, list[str]]:
    """Returns the cases of the same images with different encoders, by the data set."""
    found: dict[str, dict[str, str]] = {}
    for case in results.cases:
        config = _config(results, case)
        if config is not None:
            encoder = "" if config.encoder is None else config.encoder.model_dump_json()
            found.setdefault(str(config.dataset), {})[case] = encoder
    return {name: list(own) for name, own in found.items() if len(set(own.values())) > 1}


def table(results: Results) -> pd.DataFrame:
    """Returns spaces.csv: metrics of the decoded samples and seconds, with intervals over seeds.

    Means are geometric where every value of the metric is positive in all cases of the same images.
    """
    rows = []
    for images, cases in groups(results).items():
        metrics = [*_metrics(results, cases), *SECONDS]
        for metric in metrics:
            values = {label: _values(results, label, metric) for label in _labels(results, cases)}
            known = np.concatenate([*values.values()])
            log = len(known) > 0 and bool((known > 0).all())
            for label, found in values.items():
                rows.append(
                    {
                        **dict(zip(LABEL, label, strict=True)),
                        "images": images,
                        "space": _space(results, label[0]),
                        "metric": metric,
                        "mean": "geometric" if log else "arithmetic",
                        "n": len(found),
                        "diverged": int((~np.isfinite(found)).sum()),
                        **interval(found, results.level, log)._asdict(),
                    }
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def parts(results: Results) -> list[SpacesPart]:
    """Returns a part for each data set that is denoised in more than one space."""
    found = table(results)
    return [
        SpacesPart(
            images,
            _page_table(results, cases, found[found["images"] == images]),
            list(_sentences(results, cases)),
            of_spaces(results, images, {case: _space(results, case) for case in cases}),
        )
        for images, cases in groups(results).items()
    ]


def _page_table(results: Results, cases: Sequence[str], found: pd.DataFrame) -> PageTable:
    """A row for each arm and variant in each space; below them what no model can be below."""
    metrics = _metrics(results, cases)
    quantities = [*metrics, *SECONDS]
    rows: list[list[Cell | str]] = []
    measured = Rows(found)
    for case, arm, variant in _labels(results, cases):
        by = {row["metric"]: row for row in measured[case, arm, variant].to_dict("records")}
        cells = [_cell(by[name]) for name in quantities]
        rows.append([arm, variant, case, _space(results, case), *cells])
    floors = _floors(results, cases[0])
    real = [{k: v for k, v in floors[name].items() if k != "decoded"} for name in metrics]
    if metrics:
        rows.append(_floor_row("real images", "", [floor(one) for one in real]))
    for case in cases:
        decoded = [_floors(results, case)[name].get("decoded") for name in metrics]
        if any(value is not None for value in decoded):
            rows.append(_floor_row("images decoded again", case, [number(one) for one in decoded]))
    head = ["arm", "variant", "case", "space", *map(title, metrics), *SECONDS.values()]
    return page_table(head, rows)


def _floor_row(name: str, case: str, texts: Sequence[str]) -> list[Cell | str]:
    return [Cell(text, "quiet") for text in ("", name, case, "", *texts, "", "")]


def _cell(row: dict[Any, Any]) -> Cell:
    if row["diverged"]:
        return Cell(f"diverged in {row['diverged']} of {row['n']}", "bad")
    return Cell(between(row["value"], row["low"], row["high"]))


def _sentences(results: Results, cases: Sequence[str]) -> Iterator[str]:
    configs = {case: config for case in cases if (config := _config(results, case)) is not None}
    counts = {case: config.evaluation.samples for case, config in configs.items()}
    steps = {case: config.training.steps for case, config in configs.items()}
    if len(set(counts.values())) > 1:
        said = listed([f"{count} of {case}" for case, count in counts.items()])
        yield f"The numbers of samples differ ({said}), on which biased distances depend."
    if len(set(steps.values())) > 1:
        said = listed([f"{count} of {case}" for case, count in steps.items()])
        yield f"The numbers of training steps differ: {said}."


def _metrics(results: Results, cases: Sequence[str]) -> list[str]:
    """The metrics of samples that all cases have."""
    known = [_floors(results, case) for case in cases]
    own = [*map(set, known), *(set(results.metric_names(case)) for case in cases)]
    return [name for name in known[0] if all(name in names for names in own)]


def _floors(results: Results, case: str) -> dict[str, dict[str, float]]:
    """The floors of each metric; none before the study has made them."""
    found: dict[str, dict[str, float]] = results.facts.get(case, {}).get("floors", {})
    return found


def _labels(results: Results, cases: Sequence[str]) -> list[Label]:
    """Case, arm and variant, the cases of a variant beside each other."""
    pairs = dict.fromkeys(
        (arm, variant)
        for case in cases
        for arm in results.arms(case)
        for variant in results.variants(case, arm)
    )
    return [
        (case, arm, variant)
        for arm, variant in pairs
        for case in cases
        if variant in results.variants(case, arm)
    ]


def _values(results: Results, label: Label, metric: str) -> NDArray[np.float64]:
    """A metric by seed, or the seconds of each trial that ended."""
    if metric not in SECONDS:
        return np.asarray(results.values(*label, metric), dtype=np.float64)
    trials = results.of(*label)
    ended = trials.loc[trials["status"] == "finished", metric].dropna()
    return np.asarray(ended, dtype=np.float64)


def _space(results: Results, case: str) -> str:
    """`pixels`, or `latents 4 × 7 × 7`."""
    config = _config(results, case)
    shape = " × ".join(map(str, results.facts.get(case, {}).get("shape", [])))
    return f"{'pixels' if config is None or config.encoder is None else 'latents'} {shape}".strip()


def _config(results: Results, case: str) -> TrialConfig | None:
    """The configuration of a trial of the case whose record can be read."""
    ids = results.trials.loc[results.trials["case"] == case, "id"]
    return next((results.configs[id_] for id_ in ids if id_ in results.configs), None)
