"""`testbed selftest`: its verdict, its exit codes, and what it needs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import environment, run_here

from testbed import selftest
from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.selftest import law
from testbed.selftest.law import Broken, Law, Nearest, Setup

FEW = [one for one in law.LAWS if one.name in ("borders", "statistics")]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two laws that take no time."""
    monkeypatch.setattr("testbed.selftest.running.LAWS", FEW)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_this_installation_is_sound(dtype: str) -> None:
    seed = {"float64": 11, "float32": 12}[dtype]
    found = list(selftest.run(seed, dtype, default_registry()))
    assert [one for one in found if not one.passed] == []
    assert len(found) == len({one.law for one in found}) >= 23


@pytest.mark.usefixtures("few")
def test_the_verdict_of_a_sound_installation(tmp_path: Path) -> None:
    done = run_here(tmp_path, "selftest", "--seed", "3", "--dtype", "float32", "--threads", "2")
    assert done.code == 0, done.err
    assert "This installation is sound: all 2 laws hold (testbed" in done.out
    assert "x = x_t/alpha, sigma = s/alpha" in done.out


def broken(setup: Setup) -> str:
    raise Broken("log p is 2, expected 1 within 1e-15")


def absent(setup: Setup) -> str:
    raise AttributeError("no such function")


@pytest.mark.parametrize(
    ("function", "message"),
    [(broken, "log p is 2, expected 1 within"), (absent, "raised AttributeError: no such functio")],
)
def test_the_verdict_of_a_broken_installation(
    function: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laws = [*FEW, Law("density", "log p = 1", function)]
    monkeypatch.setattr("testbed.selftest.running.LAWS", laws)
    done = run_here(tmp_path, "selftest")
    assert done.code == 3
    assert message in done.out
    assert "This installation is broken: density of 3 laws" in done.out
    done = run_here(tmp_path, "selftest", "--json")
    assert done.code == 3
    document = json.loads(done.out)
    assert document["passed"] is False
    assert [one["passed"] for one in document["laws"]] == [True, True, False]


@pytest.mark.usefixtures("few")
def test_bad_input_is_refused(tmp_path: Path) -> None:
    done = run_here(tmp_path, "selftest", "--dtype", "float6")
    assert (done.code, done.out) == (2, "")
    assert "Unknown dtype 'float6'. Did you mean 'float64'?" in done.err
    with pytest.raises(InputError, match="Unknown dtype"):
        next(selftest.run(0, "half"))


def test_its_help_says_what_it_is_for(tmp_path: Path) -> None:
    done = run_here(tmp_path, "selftest", "--help")
    assert done.code == 0
    for word in ("closed forms", "testbed check", "testbed audit", "Exit codes", "3 one is broken"):
        assert word in done.out


@pytest.mark.process
@pytest.mark.slow
def test_it_needs_neither_pytest_nor_hypothesis(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["pytest"] = sys.modules["hypothesis"] = None
from testbed.selftest import running
running.LAWS[:] = [one for one in running.LAWS if one.name in ("denoiser", "adam")]
from testbed.cli import app
sys.argv = ["testbed", "selftest"]
app.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 2 laws hold" in done.stdout


def test_a_bound_is_kept_to() -> None:
    worst = Nearest()
    worst.near("x", torch.ones(2), 1 + torch.zeros(2), 0.0)
    worst.near("x", 1.0, 1.5, 1.0)
    assert worst.ratio == 0.5
    for found in (1.6, float("nan"), float("inf")):
        with pytest.raises(Broken, match=r"expected 0\.5 within 1"):
            worst.near("x", found, 0.5, 1.0)
    with pytest.raises(Broken, match=r"shape \(2,\), expected \(1,\)"):
        worst.near("x", torch.ones(2), torch.ones(1), 1.0)
