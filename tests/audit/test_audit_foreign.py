"""Denoisers of other codebases: adapters, factories, and the command line."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command_line import run_here
from helpers.covering import pairwise
from torch import Tensor

import testbed
from testbed import audit
from testbed.audit import Adapter, curvature, driver, exact, external, reference, rows
from testbed.audit.adapters import SCHEDULES, TIME_ARGUMENTS
from testbed.audit.external import ExactNetwork, ExternalDenoiser
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.errors import InputError, UnknownName
from testbed.oracles import Oracle
from testbed.trial.study_folder import StudyFolder

REGISTRY = testbed.Registry()
TABLE = torch.logspace(-3, 2, 200, dtype=torch.float64)
COARSE = ("algebra", "oracle", "second order")
KEPT = (torch.float64, torch.float32)

# --- adapters ------------------------------------------------------------------------------------

# sigma of the time of each form: Song et al. 2021 app. B (beta from 0.1 to 20), Nichol and Dhariwal
# 2021 with alpha = cos, rectified flow.
SIGMA_OF_TIME: dict[str, Callable[[Tensor], Tensor]] = {
    "ve": lambda t: t,
    "vp": lambda t: torch.sqrt(torch.expm1(0.1 * t + 19.9 * t**2 / 2)),
    "cosine": lambda t: torch.tan(math.pi / 2 * t),
    "flow": lambda t: t / (1 - t),
}
ALPHA: dict[str, Callable[[Tensor], Tensor]] = {
    "ve": torch.ones_like,
    "vp": lambda sigma: 1 / torch.sqrt(1 + sigma**2),
    "cosine": lambda sigma: 1 / torch.sqrt(1 + sigma**2),
    "flow": lambda sigma: 1 / (1 + sigma),
}


def level_of(time: str, schedule: str, given: Tensor) -> Tensor:
    """sigma of a model's own second argument."""
    if time == "index":
        return TABLE[given]
    if time == "log_sigma":
        return given.exp()
    if time == "sigma":
        return given
    return SIGMA_OF_TIME[schedule](given if time == "time" else 1 - given)


def model(adapter: Adapter, oracle: Oracle) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact denoiser of an oracle as the other codebase has it, in formulas of its own."""
    schedule = str(adapter.schedule)

    def answer(state: Tensor, given: Tensor) -> Tensor:
        sigma = level_of(adapter.time_argument, schedule, given).to(state.dtype)
        s, alpha = sigma[:, None], ALPHA[schedule](sigma)[:, None]
        x = state / alpha
        D, score = oracle.denoise(x, sigma), oracle.score(x, sigma)
        eps = -s * score
        q = {
            "x0": D,
            "eps": eps,
            "score": score / alpha,
            "v": (eps - s * D) / torch.sqrt(1 + s**2),
            "flow": eps - D,
        }[adapter.unsigned_prediction_type]
        return adapter.sign * q

    return answer


def found_by(adapter: Adapter, level: str = "mixture") -> list[rows.LawCheck]:
    subject = ExternalDenoiser(
        "model", lambda oracle: model(adapter, oracle), adapter, {level: reference.mixture()}
    )
    return [
        *subject.algebra(KEPT),
        *exact.check(subject, reference.mixture(), KEPT),
        *curvature.check(subject, reference.mixture()),
    ]


TIMES = [word for word in TIME_ARGUMENTS if word != "index"]
WORDS = [
    *pairwise(list(PREDICTION_TYPES), [one for one in SCHEDULES if one != "ve"], TIMES, ["", "-"]),
    # 1 - sigma is nobody's time.
    *pairwise(list(PREDICTION_TYPES), ["ve"], [one for one in TIMES if one != "1-time"], ["", "-"]),
]
"""The words of an adapter, any two of which are together in a row."""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "schedule", "time", "sign"), WORDS)
def test_a_right_denoiser_passes_in_any_words(
    kind: str, schedule: str, time: str, sign: str
) -> None:
    found = found_by(Adapter(sign + kind, schedule, time))
    assert {row.law for row in found if not row.passed} == set()
    assert len({row.sigma for row in found if row.law == exact.TARGET}) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_one_that_takes_an_index_is_asked_at_its_levels_alone(kind: str) -> None:
    found = found_by(Adapter(kind, "ve", "index", TABLE))
    assert {row.law for row in found if not row.passed} == set()
    sigmas = torch.tensor([r.sigma for r in found if r.dtype == "float64" and r.sigma == r.sigma])
    assert len(torch.unique(sigmas)) >= 5
    assert bool(torch.isclose(sigmas[:, None], TABLE.float(), rtol=1e-6).any(1).all())


@pytest.mark.parametrize("wrong", [("eps", "ve"), ("x0", "vp"), ("-x0", "ve"), ("v", "flow")])
def test_read_in_other_words_it_fails(wrong: tuple[str, str]) -> None:
    right = Adapter("x0", "ve", "sigma")
    misread = ExternalDenoiser(
        "model", lambda oracle: model(right, oracle), Adapter(*wrong), {"m": reference.mixture()}
    )
    assert {row.law for row in exact.check(misread, reference.mixture()) if not row.passed} >= {
        exact.TARGET,
        exact.TWEEDIE,
        exact.SCORE,
    }


@pytest.mark.slow
def test_a_schedule_of_ones_own() -> None:
    """VP with another beta, given as a NoiseSchedule."""
    schedule = testbed.noise_levels.vp(0.5, 10.0)

    def answer(oracle: Oracle) -> Callable[[Tensor, Tensor], Tensor]:
        def eps(state: Tensor, t: Tensor) -> Tensor:
            integral = 0.5 * t + 9.5 * t**2 / 2
            sigma = torch.sqrt(torch.expm1(integral))
            return -sigma[:, None] * oracle.score(state * torch.exp(integral / 2)[:, None], sigma)

        return eps

    found = audit.run(
        lambda oracle: answer(oracle),
        adapter=Adapter("eps", schedule, "time"),
        parts=COARSE,
        oracle=reference.mixture(),
    )
    assert found.passed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"prediction_type": "epsilon"}, "eps"),
        ({"prediction_type": "-scor"}, "score"),
        ({"schedule": "vpp"}, "vp"),
        ({"time_argument": "sigmas"}, "sigma"),
    ],
)
def test_an_unknown_word_names_the_nearest(words: dict[str, str], said: str) -> None:
    with pytest.raises(UnknownName, match=rf"[Dd]id you mean '?{said}"):
        Adapter(**words)


@pytest.mark.parametrize("words", [{"time_argument": "index"}, {"table": TABLE}])
def test_an_index_and_a_table_come_together(words: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="table="):
        Adapter(**words)


# --- factories -----------------------------------------------------------------------------------


class Owner:
    """A denoiser that is an object."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.oracle.denoise(x, sigma)


class Module(torch.nn.Module):
    """A denoiser that is a torch module."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.oracle = oracle

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.oracle.denoise(x, sigma)


def by_network(network: Any, sigma_data: float) -> Callable[[Tensor, Tensor], Tensor]:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma[:, None]
        r2 = s**2 + sigma_data**2
        F = network(x / torch.sqrt(r2), torch.log(sigma) / 4)
        return sigma_data**2 / r2 * x + s * sigma_data / torch.sqrt(r2) * F

    return denoise


@pytest.mark.parametrize("factory", [Owner, Module, functools.partial(Owner)])
def test_a_factory_may_be_a_class_or_a_partial(factory: Any) -> None:
    found = audit.run(factory, parts=COARSE, oracle=reference.mixture())
    assert found.passed
    assert {row.part for row in found.rows} == set(COARSE)


@pytest.mark.slow
@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 2.0])
def test_a_wrapper_of_a_network_is_audited_with_the_exact_one(sigma_data: float) -> None:
    found = audit.run(by_network, parameterization="edm", sigma_data=sigma_data, parts=COARSE)
    assert found.passed
    assert {row.data for row in found.rows} == {"", "mixture", "gaussian", "empirical"}


@pytest.mark.parametrize("name", REGISTRY.names("parameterization"))
def test_the_exact_network_of_any_parameterization_makes_the_exact_denoiser(name: str) -> None:
    p = REGISTRY.parameterization(name)

    def wrap(network: torch.nn.Module) -> testbed.Denoiser:
        return testbed.Denoiser(network, p, 0.5)

    subject = external.around_network("wrap", wrap, p, 0.5, Adapter())
    for oracle in subject.data().values():
        found = exact.check(subject, oracle)
        assert {row.law for row in found if not row.passed} == set()


def test_the_exact_network_reads_sigma_off_c_noise() -> None:
    """Against the inverse in closed form: c_noise = log(sigma)/4."""
    network = ExactNetwork(REGISTRY.parameterization("edm"), 0.5, reference.gaussian())
    sigma = torch.logspace(-5, 5, 101, dtype=torch.float64)
    c_noise = torch.log(sigma) / 4
    # c_noise is rounded; sigma = exp(4 c_noise), whose condition number is 4 |c_noise|.
    bound = rows.gamma(16, torch.float64) * (1 + 4 * c_noise.abs())
    assert bool(((network.sigma(c_noise) / sigma - 1).abs() <= bound).all())


def test_one_that_is_taken_as_it_is_owes_its_caller_only() -> None:
    found = audit.run(lambda x, sigma: x / (1 + sigma[:, None] ** 2))
    assert found.passed
    assert {row.part for row in found.rows} == {"algebra"}
    assert found.notes == ("no oracle: only what every denoiser owes its caller was checked.",)


@pytest.mark.slow
def test_a_factory_of_nothing_builds_the_denoiser() -> None:
    oracle = reference.mixture()
    assert audit.run(lambda: oracle.denoise, oracle=oracle, parts=COARSE).passed
    assert audit.run(lambda sigma_data: oracle.denoise, oracle=oracle, parts=COARSE).passed


@pytest.mark.slow
def test_a_trained_callable_has_sizes_and_cannot_fail_by_them() -> None:
    delta = 0.125
    found = audit.run(
        lambda oracle: lambda x, sigma: oracle.denoise(x, sigma) + delta,
        oracle=reference.mixture(),
        trained=True,
    )
    assert found.passed
    excess = [effect for effect in found.effects if effect.name == "excess risk"]
    # x is float32: D* + 1/8 rounds by 2^-24 (5 + 1/8), twice that of delta^2 relative to delta.
    for effect in excess:
        assert abs(effect.value - delta**2) <= 2 * delta * 2**-23 * (5 + delta)
    assert {"Fisher divergence", "curl of the score"} <= {one.name for one in found.effects}


NOT_CALLED = [
    (lambda oracle: 3, "expected a callable"),
    (lambda oracle: oracle.missing, "AttributeError"),
    (lambda network, sigma_data: network, "parameterization='edm'"),
    (lambda oracle: lambda x, sigma: x[:, :1], r"expected x's \(\d+, 3\)"),
    (lambda oracle: lambda x, sigma: None, "NoneType"),
    (lambda oracle: lambda x: x, "raised TypeError"),
    (lambda oracle: lambda x, sigma: x * sigma, "raised RuntimeError"),
    (lambda oracle: lambda x, sigma: {}["c"], "KeyError"),
]


@pytest.mark.parametrize(("factory", "said"), NOT_CALLED)
def test_what_cannot_be_asked_is_refused_with_the_reason(factory: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        audit.run(factory, oracle=reference.mixture(), parts=("oracle",))


@pytest.mark.slow
@pytest.mark.parametrize("part", driver.PARTS)
def test_nan_passes_no_part(part: str) -> None:
    def factory(oracle: Oracle) -> Any:
        return lambda x, sigma: oracle.denoise(x, sigma) * math.nan

    found = audit.run(factory, oracle=reference.gaussian(), parts=(part,))
    assert not found.passed
    assert found.findings[0].startswith("its output is not finite")


# --- the command line ----------------------------------------------------------------------------

MINE = """
import torch

def right(oracle):
    return lambda x, sigma: oracle.denoise(x, sigma)

def wrong(oracle):
    return lambda x, sigma: oracle.denoise(x, sigma**2)

def velocity(oracle):
    def u(x_t, t):
        x, sigma = x_t / (1 - t)[:, None], t / (1 - t)
        return -sigma[:, None] * oracle.score(x, sigma) - oracle.denoise(x, sigma)
    return u

def wrapper(network, sigma_data):
    def denoise(x, sigma):
        s = sigma[:, None]
        r2 = s**2 + sigma_data**2
        F = network(x / r2.sqrt(), sigma.log() / 4)
        return sigma_data**2 / r2 * x + s * sigma_data / r2.sqrt() * F
    return denoise

def index(oracle):
    table = torch.logspace(-2, 2, 50, dtype=torch.float64)
    return lambda x, i: oracle.denoise(x, table[i])

def raises(oracle):
    raise RuntimeError("no such checkpoint")

def narrow(oracle):
    return lambda x, sigma: x[:, 0]

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with mine.py and tables of noise levels."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "other_module.py").write_text(MINE)
    (tmp_path / "failing.py").write_text("raise RuntimeError('on purpose')\n")
    np.save(tmp_path / "table.npy", np.logspace(-2, 2, 50))
    np.save(tmp_path / "descending.npy", np.logspace(2, -2, 50))
    (tmp_path / "text.npy").write_text("0.1 0.2")
    return tmp_path


FAST = ("--part", "oracle")
RIGHT = {
    "a name": ("v",),
    "file.py:factory": ("mine.py:right",),
    "module:factory": ("other_module:right",),
    "a velocity": (
        "mine.py:velocity", "--prediction-type", "flow", "--schedule", "flow",
        "--time-argument", "time",
    ),
    "a wrapper": ("mine.py:wrapper", "--parameterization", "edm"),
    "an index": ("mine.py:index", "--time-argument", "index", "--table", "table.npy"),
    "a data set's oracle": ("mine.py:right", "--data", "mixture"),
    "sigma_data": ("edm", "--sigma-data", "2"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("words", RIGHT.values(), ids=RIGHT)
def test_a_right_one_ends_with_0(mine: Path, words: tuple[str, ...]) -> None:
    done = run_here(mine, "audit", *words, *FAST)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"All \d+ laws hold \(\d+ checks", done.out)
    assert "broken" not in done.out


@pytest.mark.slow
def test_a_broken_one_ends_with_3_and_says_the_law_the_level_and_the_mistake(mine: Path) -> None:
    done = run_here(mine, "audit", "mine.py:wrong", *FAST)
    assert done.code == 3
    assert exact.TARGET in done.out
    assert re.search(r"(mixture|gaussian|empirical), float\d\d, sigma = ", done.out)
    assert "Probably: the noise level is taken as sigma^2." in done.out
    assert "Traceback" not in done.out + done.err


@pytest.mark.slow
def test_out_writes_every_check(mine: Path) -> None:
    done = run_here(mine, "audit", "mine.py:wrong", *FAST, "--out", "found.csv")
    assert done.code == 3
    table = pd.read_csv(mine / "found.csv")
    assert list(table.columns[:6]) == ["part", "law", "subject", "data", "sigma", "dtype"]
    assert set(table["law"]) == {exact.TARGET, exact.TWEEDIE, exact.SCORE}
    assert not table["passed"].all()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("v", *FAST), ("mine.py:wrong", *FAST)])
def test_out_draws(mine: Path, words: tuple[str, ...]) -> None:
    run_here(mine, "audit", *words, "--out", "found.svg")
    assert ElementTree.parse(mine / "found.svg").getroot().tag.endswith("svg")


@pytest.mark.slow
@pytest.mark.parametrize(("word", "code"), [("right", 0), ("wrong", 3)])
def test_json_is_one_document_with_everything(mine: Path, word: str, code: int) -> None:
    done = run_here(mine, "audit", f"mine.py:{word}", *FAST, "--json")
    assert done.code == code
    found = json.loads(done.out)
    assert found["passed"] is (code == 0)
    assert {row["passed"] for row in found["rows"]} >= {code == 0}
    assert found["findings"] == ([] if code == 0 else ["the noise level is taken as sigma^2."])


MISTAKES = {
    "an unknown name": (("edn",), "Did you mean 'edm'?"),
    "an unknown part": (("v", "--part", "oracel"), "Did you mean 'oracle'?"),
    "an unknown prediction type": (
        ("mine.py:right", "--prediction-type", "scor"), "Did you mean 'score'?",
    ),
    "an unknown schedule": (("mine.py:right", "--schedule", "flo"), "Did you mean 'flow'?"),
    "an unknown time argument": (
        ("mine.py:right", "--time-argument", "tim"), "Did you mean 'time'?",
    ),
    "an unknown factory": (("mine.py:rihgt",), "Did you mean 'right'?"),
    "an unknown data set": (("mine.py:right", "--data", "mixtur"), "Did you mean 'mixture'?"),
    "an unknown parameterization": (
        ("mine.py:wrapper", "--parameterization", "edn"), "Did you mean 'edm'?",
    ),
    "no file": (("nobodys.py:right",), "nobodys.py"),
    "no module": (("nobodys:right",), "nobodys cannot be imported"),
    "a file that raises": (("failing.py:right",), "on purpose"),
    "a module that raises": (("failing:right",), "on purpose"),
    "a factory that raises": (("mine.py:raises",), "no such checkpoint"),
    "no factory": (("mine.py:number",), "neither a name nor a callable"),
    "a wrong shape": (("mine.py:narrow",), "expected x's"),
    "a wrapper of an unknown network": (("mine.py:wrapper",), "--parameterization edm"),
    "an index without a table": (("mine.py:index", "--time-argument", "index"), "needs table="),
    "a table without an index": (("mine.py:right", "--table", "table.npy"), "needs table="),
    "a table that is not there": (
        ("mine.py:index", "--time-argument", "index", "--table", "none.npy"), "none.npy",
    ),
    "a table that is no array": (
        ("mine.py:index", "--time-argument", "index", "--table", "text.npy"),
        "text.npy cannot be read as numbers: expected a .npy or .npz file",
    ),
    "a descending table": (
        ("mine.py:index", "--time-argument", "index", "--table", "descending.npy"), "ascending",
    ),
    "a picture of another kind": (("v", "--out", "found.pdf"), "expected .csv, .svg or .png"),
    "a folder that is not there": (("v", "--out", "none/found.csv"), "there is no folder none"),
    "sigma_data is not positive": (("v", "--sigma-data", "0"), "must be a positive number"),
    "data without an oracle": (("mine.py:right", "--data", "digits"), "not known"),
    "a trained wrapper": (
        ("mine.py:wrapper", "--parameterization", "edm", "--trained"), "exact one",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(
    mine: Path, words: tuple[str, ...], said: str
) -> None:
    done = run_here(mine, "audit", *words)
    assert done.code == 2, done.out + done.err
    assert said in re.sub(r"[\s│]+", " ", done.err)
    assert "Traceback" not in done.out + done.err
    assert done.out == ""


@pytest.mark.slow
def test_a_trained_trial_is_a_subject(trained: Path) -> None:
    described = StudyFolder.at(trained / "runs" / "tiny").descriptions()
    id_ = next(one["id"] for one in described if one["labels"][0]["case"] == "mixture")
    for word in (f"runs/tiny/trials/{id_}", id_[:10]):
        done = run_here(trained, "audit", word, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["passed"]
        assert {row["part"] for row in found["rows"]} == {"algebra", "oracle"}
        names = {effect["name"] for effect in found["effects"]}
        assert {"excess risk", "Fisher divergence", "asymmetry of dD/dx"} <= names
        assert all(one["low"] <= one["value"] <= one["high"] for one in found["effects"])
    excess = [one["value"] for one in found["effects"] if one["name"] == "excess risk"]
    assert min(excess) > 0


def test_every_adapter_word_was_tried() -> None:
    assert set(itertools.chain(SIGMA_OF_TIME, ALPHA)) == set(SCHEDULES)
