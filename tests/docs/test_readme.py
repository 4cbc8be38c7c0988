"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import run_here
from helpers.paths import ROOT

import testbed
from testbed import audit
from testbed.study import plan, study_file

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def registry() -> testbed.Registry:
    return testbed.Registry()


def test_the_plugin_is_the_file_as_shipped(registry: testbed.Registry) -> None:
    assert blocks("python")[0] == (ROOT / "plugins" / "flow.py").read_text()
    source = registry.source(registry.parameterization("flow"))
    assert Path(source.origin) == ROOT / "plugins" / "flow.py"


@pytest.mark.slow
def test_the_plugin_is_the_flow_velocity_and_passes_the_audit(registry: testbed.Registry) -> None:
    flow = registry.parameterization("flow")
    sampler = registry.sampler("heun")
    rows = audit.check_parameterization(flow, 0.5) + audit.check_sampler(flow, 0.5, [sampler])
    assert all(row.passed for row in rows), audit.table(rows).query("not passed")
    x0, eps = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -0.3]])
    assert torch.equal(flow.target(x0, eps, 0.7), eps - x0)


@pytest.mark.slow
@pytest.mark.usefixtures("at_home")
def test_a_plugin_of_your_own_begins_as_shown(tmp_path: Path) -> None:
    (shown,) = (block for block in blocks("sh") if "testbed new" in block)
    new, check, study = (shlex.split(line, comments=True)[1:] for line in shown.splitlines())
    assert run_here(tmp_path, *new).code == 0
    done = run_here(tmp_path, *check)
    assert (done.code, done.err) == (0, "")
    assert "say where the formulas are from" in done.out
    planned = run_here(tmp_path, "plan", *study[1:])
    assert (planned.code, planned.err) == (0, "")
    assert "mine" in planned.out


def test_the_case_of_your_own_data_is_a_valid_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("mine.npy", np.random.default_rng(0).normal(size=(50, 4)))
    case = blocks("toml")[0]
    assert set(tomllib.loads(case)) == {"cases"}
    file = tmp_path / "mine.toml"
    file.write_text('[study]\nname = "mine"\n[grid]\nparameterization = ["edm"]\n' + case)
    made = plan.make(study_file.read(file), testbed.Registry(), tmp_path / "out", "cpu")
    assert len(made.trials) == 3


def test_the_lines_of_your_own_denoiser_run(registry: testbed.Registry) -> None:
    lines = blocks("python")[1].splitlines()
    code = "\n".join(line for line in lines if "testbed.load" not in line)
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.5, 80.0])
    x = 80 * torch.randn(2, 3, generator=generator)
    means, stds = torch.randn(2, 3, generator=generator), torch.tensor([0.5, 0.2])
    oracle = testbed.oracles.Mixture(means, stds, torch.tensor([0.4, 0.6]))
    names = {
        "means": means,
        "stds": stds,
        "weights": torch.tensor([0.4, 0.6]),
        "F": torch.zeros(2, 3),
        "x": x,
        "sigma": sigma,
        "D": oracle.denoise,
    }
    exec(code, names)
    assert torch.isfinite(torch.as_tensor(names["x"])).all()
    assert torch.isfinite(torch.as_tensor(names["eps"])).all()


def test_every_file_that_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).is_file(), target
