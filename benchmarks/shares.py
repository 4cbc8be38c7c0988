"""`python benchmarks/shares.py FOLDER`: what a study's excess in nats comes from.

For variants of one case that are all pairs of a parameterization and one other setting: the shares
of the variance of log excess that each of the two accounts for, and the two together beyond their
sum. For every variant: the share of its excess that lies below sigma = 0.01.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from testbed.report.files import csv_table

BELOW = 0.01


def two_way(table: pd.DataFrame) -> list[float]:
    """Sums of squares of rows, of columns and of the rest, over their total; of a full table."""
    y = table.to_numpy()
    rows = y.mean(1, keepdims=True) - y.mean()
    columns = y.mean(0, keepdims=True) - y.mean()
    rest = y - y.mean() - rows - columns
    parts = [np.sum(np.broadcast_to(part, y.shape) ** 2) for part in (rows, columns, rest)]
    return [float(part / sum(parts)) for part in parts]


def main(folder: Path) -> None:
    results = csv_table((folder / "tables" / "results.csv").read_bytes())
    excess = results[results["metric"] == "excess_nats"].copy()
    for (case, arm), group in excess.groupby(["case", "arm"]):
        parts = group["variant"].str.partition(" ")
        cells = group.assign(row=parts[0], column=parts[2])
        table = cells.pivot(index="row", columns="column", values="value").apply(np.log)
        if min(table.shape) > 1 and table.notna().all(axis=None):
            for kept in (table, table.drop(index=["x0", "score"], errors="ignore")):
                shares = ", ".join(f"{share:.0%}" for share in two_way(kept))
                print(case, arm, f"{', '.join(kept.index)}: rows, columns, both: {shares}")
    levels = csv_table((folder / "tables" / "levels.csv").read_bytes())
    for label, curve in levels.groupby(["case", "arm", "variant"]):
        curve = curve.sort_values("sigma")
        t, rate = np.log(curve["sigma"]), curve["excess"] / curve["sigma"] ** 2
        low = t <= np.log(BELOW)
        share = np.trapezoid(rate[low], t[low]) / np.trapezoid(rate, t)
        print(*label, f"below sigma = {BELOW:g}: {share:.0%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
