"""Trials that raise or diverge, and identities that fail."""

import re
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import run_here
from helpers.ended_studies import ONE, Troubled, put, result, status_of, trials
from helpers.studies import SMALL, planned
from safetensors.torch import load_file

from testbed.registry import Registry
from testbed.study import session

WRONG = """
import torch
import testbed

def scaling(sigma):
    alpha = 1 / torch.sqrt(1 + sigma**2)
    return testbed.Coefficients(skip=alpha**2, out=-sigma * alpha, in_=alpha, noise=sigma)

def target(x0, eps, sigma):
    alpha = 1 / torch.sqrt(1 + sigma**2)
    return sigma * alpha * x0 - alpha * eps  # the other sign

@testbed.hookimpl
def testbed_parameterizations():
    recipe = testbed.Recipe(density="cosine", loss="v")
    yield testbed.Parameterization(
        "wrong", scaling, target=target, recipe=recipe, noise_kind="sigma"
    )
"""


@pytest.mark.slow
def test_a_trial_that_raises_fails_with_its_traceback_and_the_others_go_on(
    troubled: Troubled,
) -> None:
    assert troubled.done.code == 1
    failed = dict.fromkeys(("raising", "unbuilt", "unmeasured"), "failed")
    assert status_of(troubled.folder) == {**failed, "wild": "diverged", "calm": "finished"}
    at = trials(troubled.folder)["raising/", "v", 0]
    error = (at / "error.txt").read_text()
    assert error.startswith("Traceback")
    assert "raising_loss.py" in error
    said = "loss 'raising': function raised RuntimeError: raised on purpose [/x]"
    assert re.search(re.escape(said) + r" \(raising_loss.py, line \d+\)$", error.rstrip())
    assert re.fullmatch(re.escape(said) + r" \(raising_loss.py, line \d+\)", result(at)["error"])
    assert re.search(rf"failed .*raising.*: {re.escape(said)}", troubled.done.out)
    assert "1 diverged, 3 failed, 1 finished" in troubled.done.out
    assert "Traceback" not in troubled.done.err
    for error in ("raised on purpose [/x]", "not built", "not measured"):
        assert f"RuntimeError: {error}" in troubled.page


@pytest.mark.slow
def test_a_trial_that_diverges_is_a_result(troubled: Troubled) -> None:
    assert troubled.without.code == 0, troubled.without.err
    at = trials(troubled.folder)["wild/", "v", 0]
    ended = result(at)
    assert (ended["status"], ended["metrics"]) == ("diverged", {})
    assert 0 <= ended["diverged_at"] < 50
    assert all(t.isfinite().all() for t in load_file(at / "weights.safetensors").values())
    assert "diverged" in troubled.without.out
    assert "diverged in 1 of 1" in troubled.page_without
    table = pd.read_csv(troubled.folder / "tables" / "results.csv")
    wild = table[table["case"] == "wild"]
    assert len(wild)
    assert wild["diverged"].eq(1).all()
    assert wild["value"].isna().all()


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_a_failed_identity_has_its_own_exit_code_and_is_red(tmp_path: Path) -> None:
    put(tmp_path, "one.toml", ONE)
    plugin = put(tmp_path, "wrong_sign.py", WRONG)
    words = ("-p", plugin, "--set", 'grid.parameterization=["wrong"]', "--jobs", 0, "--no-mlflow")
    done = run_here(tmp_path, "study", "one.toml", *words, "--set", "training.steps=50")
    assert done.code == 3
    assert re.search(r"\d+ of \d+ Tweedie identities FAILED; worst: .* for wrong", done.out)
    page = (tmp_path / "runs" / "one" / "report.html").read_text()
    assert re.search(r'<td class="bad">FAILED at \d+ of \d+</td>', page)
    table = pd.read_csv(tmp_path / "runs" / "one" / "tables" / "tweedie.csv")
    assert not table.loc[table["law"].str.startswith("Tweedie"), "passed"].all()


RAISES_AT_THE_END = """
import testbed

@testbed.hookimpl
def testbed_study_finished(study, results):
    raise RuntimeError(f"{study.header.name} with {len(results)} rows")
"""


def test_a_plugin_that_raises_at_the_end_is_told_of_and_no_more(tmp_path: Path) -> None:
    registry = Registry([str(put(tmp_path, "last_word.py", RAISES_AT_THE_END))])
    plan, told = planned(SMALL, tmp_path, registry=registry), list[str]()
    session._tell_plugins(plan, registry, session.results(plan), told.append)
    (line,) = told
    assert line.startswith("a plugin's testbed_study_finished raised ")
    assert line.endswith("RuntimeError: sampled with 1 rows")
