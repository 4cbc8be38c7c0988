"""How many of training's draws fall to a level, and where a study says so."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command_line import run_here
from laws.drawn_levels import law_share_of_draws, objective
from scipy import stats

from testbed.report import ranges, reading
from testbed.study import drawn_levels

STUDY = """
[study]
name = "one"
[base]
dataset = { name = "mixture", dim = 2 }
network = { name = "mlp", width = 8, depth = 1 }
training = { steps = 4, batch = 64, points = 1 }
evaluation = { levels = 8, draws = 32, samples = 8, steps = 2, metrics = [] }
seeds = 1
density = { name = "lognormal", mean = -1.2, std = 1.2 }
weighting = "edm"
[grid]
parameterization = ["v", "edm"]
[[cases]]
name = "continuous"
[[cases]]
name = "discrete"
table = { name = "karras", n = 20, low = 0.01, high = 10.0 }
density = "table"
"""


def test_the_share_of_a_level_is_that_of_the_closed_form() -> None:
    law_share_of_draws(drawn_levels.shares)


@pytest.mark.parametrize("table", ["", "karras"])
def test_the_shares_of_a_grid_are_all_draws(table: str) -> None:
    """The cells of a grid over the whole range leave out nothing, and count nothing twice."""
    grid = torch.logspace(np.log10(0.002), np.log10(80.0), 16, dtype=torch.float64)
    of = objective(table)
    edges = torch.sqrt(grid[1:] * grid[:-1])
    found = drawn_levels.below(of, edges)
    assert torch.diff(found).ge(0).all()
    if not table:
        total = float(drawn_levels.shares(of, grid, grid).sum())
        assert total == pytest.approx(1.0, abs=1e-12)
    one = drawn_levels.shares(of, grid[:1], grid[:1])
    assert one.tolist() == [1.0]


@pytest.mark.slow
@pytest.mark.usefixtures("trials_only")
def test_a_study_records_its_shares_and_the_report_counts_them(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(STUDY)
    done = run_here(tmp_path, "study", "one.toml", "--no-mlflow", "--jobs", "0")
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "one"
    read = reading.read(folder)
    label = ("continuous", "", "edm")
    grid = np.geomspace(0.002, 80.0, 8)
    z = (np.log([grid[3], grid[2], grid[4]]) + 1.2) / 1.2
    edges = (z[0] + z[1]) / 2, (z[0] + z[2]) / 2
    whole = np.diff(stats.norm.cdf((np.log([0.002, 80.0]) + 1.2) / 1.2))[0]
    share = (stats.norm.cdf(edges[1]) - stats.norm.cdf(edges[0])) / whole
    assert read.draws(label, grid)[3] == pytest.approx(4 * 64 * share, rel=1e-9)
    assert ranges.inside(read, label, grid).tolist() == [d >= 10 for d in read.draws(label, grid)]
    assert ranges.rarely_drawn(read, label, grid)[-1] == pytest.approx(80.0)
    # Of a table every level within its range is drawn as often as any other; beyond it none is.
    known = pd.read_csv(folder / "drawn.csv")
    discrete = known[(known["case"] == "discrete") & (known["variant"] == "edm")]
    own = read.by_level(("discrete", "", "edm"))
    assert own is not None
    measured = discrete[discrete["level"].isin(own.level)]
    assert len(measured) == len(own.level)
    assert ((measured["share"] * 20).round(9) % 1 == 0).all()
    assert (measured["share"] > 0).all()
