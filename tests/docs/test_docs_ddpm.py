"""The pages on DDPM and on scores run as written, and their figures are right."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import DOCS
from helpers.strategies import float64
from helpers.studies import ONE_TRIAL, WITHOUT_NETWORK
from laws.ddpm import ExactReverse, expected, signs

import testbed
from testbed.diffusion.ddpm import Chain
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.oracles import Gaussian
from testbed.registry import default_registry
from testbed.study import plan, study_file

DDPM, SCORES = ((DOCS / f"{name}.md").read_text() for name in ("explanation/ddpm", "how-to/scores"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(guide: str, language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(guide) if found == language]


def test_the_chain_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Unit Gaussian data with beta: the bound is the entropy, 2.838 nats, within 5 of the 512
    samples' standard errors."""
    names: dict[str, Any] = {}
    exec(blocks(DDPM, "python")[0], names)
    total = names["terms"].total
    assert abs(float(total.mean()) - 2.8379) < 5 * float(total.std()) / 512**0.5
    assert "tensor" in capsys.readouterr().out


def test_the_three_ways_of_the_guide_run(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = blocks(SCORES, "python")
    names: dict[str, Any] = {"network_of_x_t_and_t": lambda x, t: -x}
    exec(first, names)
    errors = [float(word) for word in capsys.readouterr().out.split()]
    assert len(errors) == 3
    assert max(errors) < 1e-4
    exec(second, names)
    assert names["brought"](torch.ones(2, 1), torch.ones(2)).shape == (2, 1)


@pytest.mark.parametrize("block", [*blocks(DDPM, "toml"), *blocks(SCORES, "toml")])
def test_the_studies_shown_are_ones(tmp_path: Path, block: str) -> None:
    base = (
        WITHOUT_NETWORK if "table" in block else ONE_TRIAL.replace('parameterization = "v"\n', "")
    )
    base = base.replace('weighting = "eps"\nloss = "l2"\n', "")
    file = tmp_path / "shown.toml"
    file.write_text(base.replace("[base]\n", block))
    for one in plan.make(study_file.read(file), testbed.Registry(), tmp_path / "out", "cpu").trials:
        if "table" in block:
            assert one.config.variance.vlb == 0.001
        else:
            assert one.config.output == "score"


def test_the_figures_of_the_bound() -> None:
    """To the four digits shown."""
    m, L = 0.5, 0.3
    exactly = {"exact": ExactReverse(m, L)}
    oracle = Gaussian(float64([m]), float64([[L]]))
    row = r"^\| n = (\d+), start = (\S+), end = (\S+) \| (\w+)" + 4 * r" \| (\S+)" + r" \|$"
    rows = re.findall(row, DDPM, re.MULTILINE)
    assert len(rows) == 9
    for n, start, end, variance, *figures in rows:
        chain = Chain(
            default_registry().table("ddpm", n=int(n), start=float(start), end=float(end)).sigmas
        )
        denoiser = exactly.get(variance, oracle.denoise)
        name = "learned" if variance == "exact" else variance
        found = expected(chain, denoiser, *signs(m, L), name)
        parts = (found.reconstruction, found.matching.sum(0), found.prior, found.total)
        assert [f"{float(part.mean()):.4f}" for part in parts] == figures


def test_every_kind_and_method_is_named() -> None:
    for name in PREDICTION_TYPES:
        assert f'"{name}"' in SCORES
    methods = re.findall(r"^\| `(\w+)\(", DDPM, re.MULTILINE)
    public = {"step", "marginal", "posterior", "reverse", "elbo"}
    assert set(methods) == public <= set(vars(Chain))
