"""What a study left on disk, as tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from testbed.metrics.looks import Look
from testbed.report.level_curves import LevelCurves, close, of_table
from testbed.study.looks import Seeds
from testbed.study.settings import ReportSettings
from testbed.trial.config import TrialConfig
from testbed.trial.folders import Folder
from testbed.trial.storage import StoreAway
from testbed.trial.study_folder import StudyFolder

LABEL = ["case", "arm", "variant"]
Label = tuple[str, str, str]
"""Case, arm and variant."""


class Stage(NamedTuple):
    """Where else the results of a study were measured.

    points     after a number of steps `at`; the end of a training with as many is among them
    budgets    at the end of trainings of `at` steps, each on its own
    widths     at the end, with the power-function average of width `at`
    """

    kind: Literal["points", "budgets", "widths"]
    at: float


@dataclass(frozen=True)
class Results:
    """A study's folder.

    A trial that stands under several labels has a row for each of them in every table. Arms of a
    case that hold exactly the same trials are one arm here, called `first = second`.

    Args:
        folder: where it lies.
        study: study.json.
        trials: id, case, arm, variant, seed, status, diverged_at (step), error, training_seconds,
            sampling_seconds, parameters.
        metrics: case, arm, variant, seed, metric, value of the trials that ended, inf where a trial
            diverged or its metric is not finite, and error, that of its own samples, or nan.
        levels: case, arm, variant, seed and the columns of levels.csv, losses per dimension;
            `level` is that of the study's grid, `sigma` the one at which the model was measured.
        curves: case, arm, variant, seed, step, loss (over its value at F = 0), gradient_norm,
            gradient_norm_cv.
        coefficients: coefficients.csv.
        drawn: drawn.csv; without rows where an older study has none.
        identities: every identity row with `passed`, each once.
        configs: the configuration of each trial whose record can be read, by id.
        facts: data/<case>.json by case.
        look: how often results were looked at, this time included: the test that is made.
        ended: the seeds with a result by label, as the study file has it.
        missing: what was looked for and not found, one sentence each.
        budgets: the trials of other budgets, as `trials` and with `budget`, their number of steps;
            they have no rows in any other table.
        stages: the results as they were measured elsewhere than at the end of training, or of
            another training; each has trials, metrics and levels of its own.
        fixed: the models that were not trained here, with trials, metrics and levels of their own;
            they are in no comparison. None where there are none.
    """

    folder: Path
    study: dict[str, Any]
    trials: pd.DataFrame
    metrics: pd.DataFrame
    levels: pd.DataFrame
    curves: pd.DataFrame
    coefficients: pd.DataFrame
    identities: pd.DataFrame
    configs: dict[str, TrialConfig]
    facts: dict[str, dict[str, Any]]
    missing: list[str]
    drawn: pd.DataFrame = field(default_factory=pd.DataFrame)
    look: Look = field(default_factory=Look)
    ended: Seeds = field(default_factory=dict)
    budgets: pd.DataFrame = field(default_factory=pd.DataFrame)
    stages: dict[Stage, Results] = field(default_factory=dict)
    fixed: Results | None = None

    @cached_property
    def settings(self) -> ReportSettings:
        """`[report]` of the study file."""
        return ReportSettings.model_validate(self.study.get("report", {}))

    @property
    def every_trial(self) -> pd.DataFrame:
        """The trials, those of other budgets, and the fixed models."""
        apart = [self.fixed.trials] if self.fixed is not None else []
        apart += [self.budgets] if len(self.budgets) else []
        return pd.concat([self.trials, *apart]) if apart else self.trials

    @property
    def level(self) -> float:
        """Coverage of every interval."""
        return self.settings.level

    @property
    def cases(self) -> list[str]:
        """Cases in the order of the study file."""
        return list(dict.fromkeys(case for case, _, _ in self._trials))

    def arms(self, case: str) -> list[str]:
        """Arms of a case."""
        return list(dict.fromkeys(arm for one, arm, _ in self._trials if one == case))

    def variants(self, case: str, arm: str | None = None) -> list[str]:
        """Variants of a case, or those of one arm of it in the order of the case."""
        return list(self._variants.get((case, arm), ()))

    def of(self, case: str, arm: str, variant: str) -> pd.DataFrame:
        """The trials under one label, by seed."""
        return self._trials[case, arm, variant]

    def levels_of(self, label: Label) -> pd.DataFrame:
        """The rows of `levels` of one label."""
        return self._levels[label]

    def oracle(self, case: str) -> bool:
        """Whether the case's data has an exact denoiser."""
        if case in self.facts:
            return bool(self.facts[case].get("oracle"))
        found = self.levels[self.levels["case"] == case]
        return "excess" in found and bool(found["excess"].notna().any())

    def sound(self, case: str) -> bool:
        """Whether a loss below the linear baseline's beats the best linear denoiser."""
        return bool(self.facts.get(case, {}).get("linear_baseline", {}).get("sound", True))

    def data_notes(self) -> list[tuple[str, str]]:
        """Cases and sentence of what was recognised in the data, or does not fit; each once."""
        cases: dict[str, list[str]] = {}
        for case in self.cases:
            for note in self.facts.get(case, {}).get("notes", []):
                cases.setdefault(note, []).append(case)
        return [(", ".join(filter(None, own)), note) for note, own in cases.items()]

    def dimensions(self, case: str) -> int:
        """The number of dimensions of a case's data; 1 where it is not recorded."""
        return math.prod(self.facts.get(case, {}).get("shape", [])) or 1

    def sigma_data(self, case: str) -> float:
        """That of a case's training split; nan where no trial's record can be read."""
        return self._sigma_data.get(case, math.nan)

    def trained(self, label: Label) -> tuple[float, float]:
        """The lowest and the highest noise level that training of a variant could draw."""
        return self._trained.get(label, (0.0, math.inf))

    def config(self, label: Label) -> TrialConfig | None:
        """The configuration of a variant's first seed; None where its record cannot be read."""
        return self.configs.get(next(iter(self.of(*label)["id"]), ""))

    def draws(self, label: Label, level: NDArray[np.float64]) -> NDArray[np.float64]:
        """The number of draws around each level that a variant's training is expected to make.

        Of a training that is measured before its end, those to its end. inf where it is not known.
        """
        known, counts = self._draws.get(label, (np.empty(0), np.empty(0)))
        found = np.full(len(level), math.inf)
        at, of = np.nonzero(close(level, known))
        found[at] = counts[of]
        return found

    def by_level(self, label: Label) -> LevelCurves | None:
        """What was measured of a variant by level; None where nothing was."""
        return self._by_level.get(label)

    def without(self, case: str, **omitted: str | int) -> Results:
        """The same results without a seed or a variant of a case."""
        ((column, value),) = omitted.items()
        tables = {}
        for name in ("trials", "metrics", "levels"):
            table = getattr(self, name)
            tables[name] = table[(table["case"] != case) | (table[column] != value)]
        found = replace(self, **tables)
        # What is read of the tables again takes a hundred times as long as leaving this out.
        found.__dict__["_by_level"] = {
            label: curves.without(int(value)) if column == "seed" and label[0] == case else curves
            for label, curves in self._by_level.items()
            if column == "seed" or (label[0], label[2]) != (case, value)
        }
        return found

    @cached_property
    def _trials(self) -> Rows:
        """The trials of each label by seed, the labels in the order of the study file."""
        found = Rows(self.trials)
        found |= {label: own.sort_values("seed") for label, own in found.items()}
        return found

    @cached_property
    def _levels(self) -> Rows:
        return Rows(self.levels)

    @cached_property
    def _variants(self) -> dict[tuple[str, str | None], list[str]]:
        """Of each case, and of each case and arm, in the order of the case."""
        of_case: dict[str, dict[str, None]] = {}
        inside: dict[tuple[str, str | None], set[str]] = {}
        for case, arm, variant in self._trials:
            of_case.setdefault(case, {})[variant] = None
            for place in (arm, None):
                inside.setdefault((case, place), set()).add(variant)
        return {
            place: [name for name in of_case[place[0]] if name in names]
            for place, names in inside.items()
        }

    @cached_property
    def _sigma_data(self) -> dict[str, float]:
        pairs = zip(self.trials["case"], self.trials["id"], strict=True)
        known = [(case, self.configs[id_]) for case, id_ in pairs if id_ in self.configs]
        return {case: config.sigma_data_measured for case, config in reversed(known)}

    @cached_property
    def _trained(self) -> dict[Label, tuple[float, float]]:
        rows = self.trials[[*LABEL, "id"]].itertuples(index=False)
        return {
            (case, arm, variant): self.configs[id_].trained
            for case, arm, variant, id_ in rows
            if id_ in self.configs
        }

    @cached_property
    def _draws(self) -> dict[Label, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        found = {}
        for key, table in self.drawn.groupby(LABEL, sort=False) if len(self.drawn) else ():
            label = (str(key[0]), str(key[1]), str(key[2]))
            config = self.config(label)
            if config is not None:
                count = config.training.steps * config.training.batch
                shares = table["share"].to_numpy(dtype=float)
                found[label] = table["level"].to_numpy(dtype=float), count * shares
        return found

    @cached_property
    def _asked(self) -> dict[Label, tuple[float, ...] | None]:
        """The levels that each variant is asked for, of the trials whose record can be read."""
        rows = self.trials[[*LABEL, "id"]].itertuples(index=False)
        return {
            (case, arm, variant): self.configs[id_].asked_levels
            for case, arm, variant, id_ in rows
            if id_ in self.configs
        }

    @cached_property
    def _by_level(self) -> dict[Label, LevelCurves]:
        return {label: of_table(own, self._asked.get(label)) for label, own in self._levels.items()}

    @cached_property
    def _stored(self) -> dict[tuple[str, str, str, str], dict[int, float]]:
        found: dict[tuple[str, str, str, str], dict[int, float]] = {}
        rows = self.metrics[[*LABEL, "metric", "seed", "value"]].itertuples(index=False)
        for case, arm, variant, metric, seed, value in rows:
            found.setdefault((case, arm, variant, metric), {})[int(seed)] = float(value)
        return found

    def primary(self, case: str) -> str:
        """The metric that decides: the report's, else excess_nats or loss_vs_wiener."""
        return self.settings.primary or ("excess_nats" if self.oracle(case) else "loss_vs_wiener")

    def metric_names(self, case: str) -> list[str]:
        """The primary metric, then every other that is finite somewhere."""
        found = self.metrics[(self.metrics["case"] == case) & np.isfinite(self.metrics["value"])]
        rest = [name for name in unique(found["metric"]) if name != self.primary(case)]
        return [self.primary(case), *sorted(rest)]

    def values(self, case: str, arm: str, variant: str, metric: str) -> pd.Series[float]:
        """One value per seed of the trials that ended, inf where one diverged."""
        found = self._stored.get((case, arm, variant, metric), {})
        return pd.Series(found, dtype=float).sort_index()

    def samples(self, case: str, arm: str, variant: str) -> NDArray[np.float64] | None:
        """(n, *shape) samples of the first seed that finished."""
        for trial in self.of(case, arm, variant).itertuples():
            if trial.status == "finished":
                files = StudyFolder.at(self.folder).trial(str(trial.id))
                return tensor(files, "samples.safetensors")
        return None

    def measured(self, case: str, arm: str, variant: str) -> dict[int, Folder]:
        """The folders of what was measured of the first seed that finished, by step, ascending.

        Those of its points with its own average, and last the trial's own.
        """
        for trial in self.of(case, arm, variant).itertuples():
            if trial.status == "finished":
                return StudyFolder.at(self.folder).trial(str(trial.id)).measured()
        return {}

    def real(self, case: str) -> NDArray[np.float64] | None:
        """(n, *shape) real held-out samples."""
        return tensor(StudyFolder.at(self.folder).data, f"{case or 'data'}.safetensors")


class Rows(dict[Label, pd.DataFrame]):
    """The rows of a table by label, in the order in which the labels come first.

    A label that the table does not have has none. To look for the rows of one label takes as long
    as to split the whole table: split it once, outside of a loop.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        groups = table.groupby(LABEL, sort=False) if len(table) else ()
        super().__init__({(str(key[0]), str(key[1]), str(key[2])): own for key, own in groups})
        self._none = table.iloc[:0]

    def __missing__(self, label: Label) -> pd.DataFrame:
        return self._none


def unique(column: pd.Series[Any]) -> list[str]:
    return list(dict.fromkeys(map(str, column)))


def tensor(folder: Folder, name: str) -> NDArray[np.float64] | None:
    """The only tensor of a file; None where there is none, or a damaged one."""
    try:
        content = folder.store.get(name)
        tensors = load(content) if content is not None else {}
    except StoreAway:
        raise
    except (OSError, SafetensorError):
        return None
    return np.asarray(next(iter(tensors.values())), dtype=np.float64) if tensors else None
