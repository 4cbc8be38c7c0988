"""The tables by level of a variant's trials as arrays, a row for each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from testbed.metrics.curves import Array, Mask

ROUNDING = 1e-12
"""The relative distance of two readings of one level."""


@dataclass(frozen=True)
class LevelCurves:
    """What was measured of a variant at the levels that all of its trials have.

    Args:
        level: the levels, (L,), ascending.
        seeds: the seeds of the trials, (S,).
        columns: the numbers of levels.csv by name, (S, L).
        asked: the levels that the study asks for, (K,), ascending: those of the grid where the
            variant, or one that it is compared with, has a table, and `level` otherwise.
    """

    level: Array
    seeds: tuple[int, ...]
    columns: dict[str, Array]
    asked: Array

    @property
    def counted(self) -> Array:
        """The levels that the trials' own metrics are made of: those asked for, if all are here."""
        whole = alike(self.asked, self.level).all()
        return self.level[alike(self.level, self.asked)] if whole else self.level

    def at(self, level: Array) -> dict[str, Array]:
        """Returns the columns at some of the levels."""
        index = np.searchsorted(self.level, level)
        return {name: values[:, index] for name, values in self.columns.items()}

    def without(self, seed: int) -> LevelCurves:
        """Returns the curves of the other seeds."""
        kept: Mask = np.array([one != seed for one in self.seeds], dtype=bool)
        columns = {name: values[kept] for name, values in self.columns.items()}
        return replace(self, seeds=tuple(one for one in self.seeds if one != seed), columns=columns)


def alike(levels: Array, others: Array) -> Mask:
    """Returns which of the levels are among others, to the rounding of a number in text."""
    return np.asarray(close(levels, others).any(1), dtype=bool)


def close(levels: Array, others: Array) -> Mask:
    """Returns which of the levels (L,) is which of the others (K,), to such a rounding; (L, K)."""
    near: Mask = np.isclose(levels[:, None], others, rtol=ROUNDING, atol=0)
    return near


def of_table(table: pd.DataFrame, asked: Sequence[float] | None = None) -> LevelCurves:
    """Returns the curves of the rows of one variant, without levels that a trial lacks.

    `asked` are the levels that its trials are asked for, where those differ from its own.
    """
    # A column that only other variants have is empty here.
    numbers = table.select_dtypes("number").dropna(axis=1, how="all")
    numbers = numbers.drop_duplicates(["level", "seed"])
    wide = numbers.pivot(index="level", columns="seed")
    whole = numbers.dropna(subset="loss").groupby("level")["seed"].count()
    wide = wide.loc[whole.index[whole == numbers["seed"].nunique()]].sort_index()
    names = wide.columns.get_level_values(0).unique()
    level = wide.index.to_numpy(dtype=float)
    return LevelCurves(
        level=level,
        seeds=tuple(int(seed) for seed in wide["loss"].columns),
        columns={str(name): wide[name].to_numpy(dtype=float).T for name in names},
        asked=level if asked is None else np.array(asked),
    )
