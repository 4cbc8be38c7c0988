"""The tables by level of a variant's trials as arrays, a row for each seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from testbed.metrics.curves import Array, Mask


@dataclass(frozen=True)
class LevelCurves:
    """What was measured of a variant at the levels that all of its trials have.

    Args:
        level: the levels of the study's grid, (L,), ascending.
        seeds: the seeds of the trials, (S,).
        columns: the numbers of levels.csv by name, (S, L).
    """

    level: Array
    seeds: tuple[int, ...]
    columns: dict[str, Array]

    def at(self, level: Array) -> dict[str, Array]:
        """Returns the columns at some of the levels."""
        index = np.searchsorted(self.level, level)
        return {name: values[:, index] for name, values in self.columns.items()}

    def without(self, seed: int) -> LevelCurves:
        """Returns the curves of the other seeds."""
        kept: Mask = np.array([one != seed for one in self.seeds], dtype=bool)
        columns = {name: values[kept] for name, values in self.columns.items()}
        return replace(self, seeds=tuple(one for one in self.seeds if one != seed), columns=columns)


def of_table(table: pd.DataFrame) -> LevelCurves:
    """Returns the curves of the rows of one variant, without levels that a trial lacks."""
    # A column that only other variants have is empty here.
    numbers = table.select_dtypes("number").dropna(axis=1, how="all")
    numbers = numbers.drop_duplicates(["level", "seed"])
    wide = numbers.pivot(index="level", columns="seed")
    whole = numbers.dropna(subset="loss").groupby("level")["seed"].count()
    wide = wide.loc[whole.index[whole == numbers["seed"].nunique()]].sort_index()
    names = wide.columns.get_level_values(0).unique()
    return LevelCurves(
        level=wide.index.to_numpy(dtype=float),
        seeds=tuple(int(seed) for seed in wide["loss"].columns),
        columns={str(name): wide[name].to_numpy(dtype=float).T for name in names},
    )
