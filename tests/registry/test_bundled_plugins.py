"""The plugins that are more than a table row: flow, TrigFlow, EDM2's learned weighting, and the
escape hatches (a parameterization that is not affine, a loss with a state)."""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from helpers.bounds import assert_within, exact, exp, log
from helpers.command_line import blank_figures, run_here, unplaced_figures
from helpers.paths import FIXTURES
from helpers.strategies import DTYPES, WIDE, Case, cases, fixed, float64, levels, sigma_datas
from helpers.training import CPU, data, network, ran, resumed, same
from hypothesis import given
from hypothesis import strategies as st
from laws.parameterizations import K_AFFINE, K_COEFFICIENT
from torch import Tensor

import testbed
from testbed.diffusion.equal_objectives import equal_objectives_of
from testbed.registry import Registry
from testbed.study import equal_objectives, plan, study_file
from testbed.testing import check_component, parametrize_with_checks
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import BLOCK, Trainer
from testbed.trial.recipes import published

REGISTRY = Registry([str(FIXTURES / "companded.py"), str(FIXTURES / "tracked_huber.py")])
EDM2 = REGISTRY.weighting("edm2")

atan, cos, sin = (np.frompyfunc(f, 1, 1) for f in (mpmath.atan, mpmath.cos, mpmath.sin))


# --- flow and TrigFlow: outside truth -----------------------------------------------------------
# Each is told by its path x_t alone, with 50 digits: by its state, its velocity dx_t/dt, and what
# it says of D. The coefficients and targets of the plugins are in other words.


def flow_time(s: Any, sd: Any) -> Any:
    return s / (1 + s)


def flow_state(x: Any, s: Any, sd: Any) -> Any:
    """x_t = (1 - t) x0 + t eps is x = x0 + sigma eps, divided by 1 + sigma."""
    return (1 - flow_time(s, sd)) * x


def flow_velocity(x0: Any, eps: Any, s: Any, sd: Any) -> Any:
    return eps - x0


def flow_denoised(F: Any, x: Any, s: Any, sd: Any) -> Any:
    return flow_state(x, s, sd) - flow_time(s, sd) * F


def trig_time(s: Any, sd: Any) -> Any:
    return atan(s / sd)


def trig_state(x: Any, s: Any, sd: Any) -> Any:
    return cos(trig_time(s, sd)) * x


def trig_velocity(x0: Any, eps: Any, s: Any, sd: Any) -> Any:
    """(d/dt (cos t x0 + sin t z))/sigma_data with z = sigma_data eps."""
    t = trig_time(s, sd)
    return cos(t) * eps - sin(t) * x0 / sd


def trig_denoised(F: Any, x: Any, s: Any, sd: Any) -> Any:
    t = trig_time(s, sd)
    return cos(t) * trig_state(x, s, sd) - sin(t) * sd * F


PATHS: dict[str, tuple[Callable[..., Any], ...]] = {
    "flow": (flow_state, flow_velocity, flow_denoised, lambda s, sd: flow_time(s, sd)),
    "trigflow": (
        lambda x, s, sd: trig_state(x, s, sd) / sd,
        trig_velocity,
        trig_denoised,
        lambda s, sd: 2 / mpmath.pi * trig_time(s, sd),
    ),
}


def parameterization(name: str) -> testbed.Parameterization:
    return REGISTRY.parameterization(name)


def law_coefficients_are_those_of_the_path(
    p: testbed.Parameterization, name: str, sigma: Tensor, sd: float
) -> None:
    """skip and out are D at (F, x) = (0, 1) and (1, 0); in_ x is the network's state."""
    state, _, denoised, time = PATHS[name]
    s = exact(sigma)
    wanted = (denoised(0, 1, s, exact(sd)), denoised(1, 0, s, exact(sd)), state(1, s, exact(sd)))
    for found, truth in zip(
        p.coefficients(sigma, sigma_data=sd), (*wanted, time(s, exact(sd))), strict=True
    ):
        assert_within(found, truth, truth, K_COEFFICIENT, sigma.dtype)


def law_target_is_the_velocity(p: testbed.Parameterization, name: str, c: Case) -> None:
    velocity, one, zero = PATHS[name][1], exact(1), exact(0)
    found = p.target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data)
    terms = np.abs(velocity(one, zero, c.S, c.SD) * c.X0) + np.abs(
        velocity(zero, one, c.S, c.SD) * c.EPS
    )
    wanted = velocity(c.X0, c.EPS, c.S, c.SD)
    assert_within(found, wanted, terms, K_AFFINE[c.dtype], c.dtype)


def law_velocity_is_the_derivative_of_the_path(p: testbed.Parameterization, name: str) -> None:
    """Numerical differentiation with 50 digits: neither sine nor cosine is differentiated here."""
    x0, eps, sd, sigma = 0.7, -1.3, 0.4, 0.6
    t = {"flow": lambda: mpmath.mpf(sigma) / (1 + mpmath.mpf(sigma)),
         "trigflow": lambda: mpmath.atan(mpmath.mpf(sigma) / mpmath.mpf(sd))}[name]()  # fmt: skip
    path = {"flow": lambda t: (1 - t) * mpmath.mpf(x0) + t * mpmath.mpf(eps),
            "trigflow": lambda t: mpmath.cos(t) * mpmath.mpf(x0) / mpmath.mpf(sd)
            + mpmath.sin(t) * mpmath.mpf(eps)}[name]  # fmt: skip
    found = p.target(float64([x0]), float64([eps]), sigma, sigma_data=sd)
    size = abs(x0) / sd + abs(eps)
    assert_within(found, [mpmath.diff(path, t)], [size], 2 * K_AFFINE[torch.float64], plus=1e-30)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
@given(dtype=st.sampled_from(WIDE), sigma=levels(), sigma_data=sigma_datas)
def test_coefficients_are_those_of_the_path(
    name: str, dtype: torch.dtype, sigma: float, sigma_data: float
) -> None:
    exact_in_both = float(torch.tensor(sigma_data, dtype=torch.float32))
    at = torch.tensor([sigma, 1.0, 0.3], dtype=dtype)
    law_coefficients_are_those_of_the_path(parameterization(name), name, at, exact_in_both)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
@given(c=cases(dtypes=DTYPES))
def test_target_is_the_velocity(name: str, c: Case) -> None:
    law_target_is_the_velocity(parameterization(name), name, c)


@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_derivative_of_the_path(name: str) -> None:
    law_velocity_is_the_derivative_of_the_path(parameterization(name), name)


def mutated(name: str, **wrong: Callable[[Any, Tensor, Any], Tensor]) -> testbed.Parameterization:
    """The plugin with some of its coefficients replaced by f(coefficients, sigma, sigma_data)."""
    right = parameterization(name)

    def scaling(sigma: Tensor, sigma_data: float) -> testbed.Coefficients:
        c = right.coefficients(sigma, sigma_data=sigma_data)
        return c._replace(**{key: f(c, sigma, sigma_data) for key, f in wrong.items()})

    return testbed.Parameterization(name, scaling)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        pytest.param("flow", {"skip": lambda c, s, sd: 1 - c.skip}, id="t for 1 - t"),
        pytest.param("flow", {"out": lambda c, s, sd: -c.out}, id="data at t = 1"),
        pytest.param("flow", {"out": lambda c, s, sd: -s}, id="t not divided"),
        pytest.param("flow", {"in_": lambda c, s, sd: 1 / (1 + s**2).sqrt()}, id="VP input"),
        pytest.param("trigflow", {"out": lambda c, s, sd: -c.out}, id="EDM's sign"),
        pytest.param("trigflow", {"out": lambda c, s, sd: c.out / sd}, id="sigma_data missing"),
        pytest.param("trigflow", {"skip": lambda c, s, sd: c.skip.sqrt()}, id="cos once"),
        pytest.param("trigflow", {"in_": lambda c, s, sd: c.in_ * sd}, id="input not unit"),
        pytest.param("trigflow", {"noise": lambda c, s, sd: torch.atan(s)}, id="tan t = sigma"),
    ],
)
def test_wrong_coefficients_are_caught(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        law_coefficients_are_those_of_the_path(mutated(name, **wrong), name, fixed().sigma, 0.5)


WRONG_TARGETS: list[tuple[str, Callable[..., Tensor]]] = [
    ("flow", lambda x0, eps, sigma: x0 - eps),
    ("flow", lambda x0, eps, sigma: eps - x0 - sigma * eps),
    ("trigflow", lambda x0, eps, sigma, sigma_data: (sigma * x0 - sigma_data**2 * eps)
     / (sigma_data * torch.sqrt(sigma**2 + sigma_data**2))),
    ("trigflow", lambda x0, eps, sigma: (eps - sigma * x0) / torch.sqrt(1 + sigma**2)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wrong"), WRONG_TARGETS)
def test_wrong_targets_are_caught(name: str, wrong: Callable[..., Tensor]) -> None:
    mutant = testbed.Parameterization(name, parameterization(name).scaling, target=wrong)
    with pytest.raises(AssertionError):
        law_target_is_the_velocity(mutant, name, fixed())
    with pytest.raises(AssertionError):
        law_velocity_is_the_derivative_of_the_path(mutant, name)


@pytest.mark.slow
@given(sigma_data=sigma_datas)
def test_trigflow_is_minus_edm_and_a_twin_of_it_at_every_sigma_data(sigma_data: float) -> None:
    trigflow, edm = parameterization("trigflow"), parameterization("edm")
    sigma = fixed().sigma
    for found, wanted in zip(
        trigflow.pair_weights(sigma, sigma_data=sigma_data),
        edm.pair_weights(sigma, sigma_data=sigma_data),
        strict=True,
    ):
        assert_within(found, -exact(wanted), np.abs(exact(wanted)), 2 * K_COEFFICIENT)
    everything = [parameterization(name) for name in REGISTRY.names("parameterization")]
    assert equal_objectives_of(trigflow, everything, sigma_data)["edm"] == -1.0
    assert "edm" not in equal_objectives_of(parameterization("flow"), everything, sigma_data)


def test_published_recipes() -> None:
    """Flow: unweighted l2 of u, t logit-normal. TrigFlow: |sigma_data F - v_t|^2 and
    t = arctan(exp(tau)/sigma_data), tau ~ N(-0.8, 1.6^2), whatever sigma_data."""
    sigma, sd = fixed().sigma, 0.3
    flow = published(parameterization("flow"), REGISTRY, sd)
    assert (flow.weighting, flow.loss.space, flow.loss.quadratic) == (None, "flow", True)
    # Cut at 0.002 and 80, symmetric in no way; logit t = log sigma has its median near 1.
    whole = REGISTRY.density("logit_normal", sigma_min=1e-8, sigma_max=1e8)
    assert_within(whole.sigma(float64([0.5])), [1], [1], 64)
    trigflow = published(parameterization("trigflow"), REGISTRY, sd)
    weighting, density = trigflow.weighting, trigflow.density
    assert weighting is not None
    s = exact(sigma)
    wanted = 1 / sin(atan(s / exact(sd))) ** 2
    assert_within(weighting(sigma, sigma_data=sd), wanted, wanted, 16)
    assert (density.options["mean"], density.options["std"]) == (-0.8, 1.6)


# --- claims -------------------------------------------------------------------------------------

CLAIMS = {
    # F* = a x0 + b eps            a, b and c_in
    "eps": "unit_target boundary",  # 0, 1; c_in unit at sigma_data = 1 only
    "minus_eps": "unit_target boundary",
    "v": "boundary",  # unit at sigma_data = 1 only
    "x0": "unit_input",  # F* grows with the data; c_skip = 0
    "score": "boundary",  # F* = -eps/sigma
    "flow": "boundary",  # Var F* = sigma_data^2 + 1
    "edm": "unit_target unit_input homogeneous boundary",
    "trigflow": "unit_target unit_input homogeneous boundary",
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_of_the_bundled_parameterizations(name: str) -> None:
    p = parameterization(name)
    assert sorted(p.claims) == sorted(CLAIMS[name].split())
    singular = {"eps": (math.inf,), "minus_eps": (math.inf,), "score": (0.0, math.inf)}
    assert p.singular == singular.get(name, ())
    assert p.sigma_range == (0.0, math.inf)


# --- EDM2's learned weighting -------------------------------------------------------------------


def learned(
    w: testbed.Weighting = EDM2, p: str | testbed.Parameterization = "eps", seed: int = 0
) -> Objective:
    """An objective with its state, moved away from zero."""
    found = Objective(
        parameterization(p) if isinstance(p, str) else p,
        w.bound({}),
        REGISTRY.loss("l2"),
        REGISTRY.density("lognormal"),
        0.5,
    ).with_states(seed)
    assert found.states is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.states.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return found


def law_u_is_the_formula(state: torch.nn.Module, sigma: Tensor) -> None:
    """u = sum_i w_i sqrt(2) cos(2 pi (f_i log(sigma)/4 + phi_i)).

    In float32: the phase carries 8 roundings of its terms, cosine is 1-Lipschitz, and the sum of n
    products n + 8.
    """
    f, phi, w = (exact(getattr(state, name)) for name in ("f", "phi", "w"))
    c = (log(exact(sigma)) / 4)[:, None]
    phase = 2 * mpmath.pi * (f * c + phi)
    wanted = (w * mpmath.sqrt(2) * cos(phase)).sum(1)
    terms = (np.abs(w) * 2 * (1 + 2 * mpmath.pi * (np.abs(f * c) + phi))).sum(1)
    assert_within(state(sigma), wanted, terms, len(w) + 8, torch.float32)


def law_loss_is_edm_with_uncertainty(o: Objective, u: Callable[[Tensor], Tensor]) -> None:
    """loss = lambda_EDM exp(-u) |D - x0|^2/d + u; k is rounded to float32, exp within 2 ulp."""
    c = fixed()
    F = torch.zeros_like(c.x0)
    found = o(F, c.x0, c.eps, c.sigma)
    U = exact(u(c.sigma))
    s = exact(c.sigma)
    weight = (s**2 + exact(0.25)) / (s * exact(0.5)) ** 2 * exp(-U)
    skip = exact(o.parameterization.coefficients(c.sigma, sigma_data=0.5).skip)
    D = skip[:, None] * c.X
    error = ((D - c.X0) ** 2).mean(1)
    # From the F side, a and b in float32: |D - x0| <= |x0| + sigma |eps|, the terms of |F - F*|.
    size = ((np.abs(c.X0) + s[:, None] * np.abs(c.EPS)) ** 2).mean(1) * 4
    wanted = weight * error + U
    assert_within(found, wanted, weight * size + np.abs(U), 12, torch.float32)


def test_u_is_the_formula() -> None:
    o = learned()
    assert o.states is not None
    law_u_is_the_formula(o.states["weighting"], fixed().sigma)


def test_loss_is_edm_with_uncertainty() -> None:
    o = learned()
    assert o.states is not None
    law_loss_is_edm_with_uncertainty(o, o.states["weighting"])


def test_training_starts_as_edm() -> None:
    """u = 0 at the start, exactly: weight and loss are EDM's to the bit."""
    c = fixed()
    F = c.eps * 0.3
    edm = replace(learned(), weighting=REGISTRY.weighting("edm"), states=None)
    fresh = replace(edm, weighting=EDM2).with_states(3)
    assert torch.equal(fresh(F, c.x0, c.eps, c.sigma), edm(F, c.x0, c.eps, c.sigma))
    assert torch.equal(fresh.effective_weight(c.sigma), edm.effective_weight(c.sigma))


def variant(
    function: Callable[..., Tensor] = EDM2.function, penalty: Callable[..., Tensor] | None = None
) -> testbed.Weighting:
    return testbed.Weighting("mutant", function, state=EDM2.state, penalty=penalty or EDM2.penalty)


def plus_u(sigma: Tensor, sigma_data: float, state: torch.nn.Module) -> Tensor:
    return EDM2.function(sigma, sigma_data, lambda sigma: -state(sigma))


def half_u(sigma: Tensor, sigma_data: float, state: torch.nn.Module) -> Tensor:
    return EDM2.function(sigma, sigma_data, lambda sigma: state(sigma) / 2)


def unit_lambda(sigma: Tensor, sigma_data: float, state: torch.nn.Module) -> Tensor:
    return torch.exp(-state(sigma))


UNCERTAIN = [
    pytest.param(variant(plus_u), id="exp(+u)"),
    pytest.param(variant(half_u), id="standard deviation for variance"),
    pytest.param(variant(unit_lambda), id="lambda_EDM missing"),
    pytest.param(variant(penalty=lambda sigma, state: 0 * state(sigma)), id="no penalty"),
    pytest.param(variant(penalty=lambda sigma, state: 2 * state(sigma)), id="2 u"),
]


@pytest.mark.parametrize("mutant", UNCERTAIN)
def test_a_wrong_uncertainty_is_caught(mutant: testbed.Weighting) -> None:
    o = learned(mutant)
    assert o.states is not None
    with pytest.raises(AssertionError):
        law_loss_is_edm_with_uncertainty(o, o.states["weighting"])


LEVELS = torch.tensor([0.01, 0.05, 0.2, 0.5, 2.0, 20.0], dtype=torch.float64)


def law_u_is_the_log_of_the_weighted_loss(w: testbed.Weighting) -> None:
    """At the optimum u(sigma) = log E[lambda_EDM |D - x0|^2/d].

    d/du E[exp(-u) l + u] = 1 - exp(-u) E[l] = 0. The network is frozen at F = 0 of eps: D = x, and
    lambda_EDM |D - x0|^2/d = (1 + sigma^2/sigma_data^2) |eps|^2/d, whose mean is known. Of n draws
    a level, the log of the mean has the standard error sqrt(2/(d n)).
    """
    n, d, sd = 800, 4, 0.5
    o = learned(w)
    assert o.states is not None
    u = o.states["weighting"].double()
    generator = torch.Generator().manual_seed(5)
    sigma = LEVELS.repeat_interleave(n)
    x0 = torch.zeros(len(sigma), d, dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    optimiser = torch.optim.LBFGS(u.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = o(torch.zeros_like(x0), x0, eps, sigma).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    truth = torch.log(1 + (LEVELS / sd) ** 2)
    off = (u(LEVELS) - truth).detach().abs().max()
    assert float(off) < 5 * math.sqrt(2 / (d * n))


@pytest.mark.slow
def test_u_becomes_the_log_of_the_weighted_loss() -> None:
    law_u_is_the_log_of_the_weighted_loss(EDM2)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", UNCERTAIN)
def test_a_wrong_optimum_is_caught(mutant: testbed.Weighting) -> None:
    with pytest.raises(AssertionError):
        law_u_is_the_log_of_the_weighted_loss(mutant)


# --- escape hatches pass the kit ----------------------------------------------------------------

HATCHES = [
    REGISTRY.parameterization("companded"),
    REGISTRY.loss("tracked_huber"),
    REGISTRY.weighting("edm2"),
]


@parametrize_with_checks(HATCHES, registry=REGISTRY)
def test_an_escape_hatch_passes_the_checks(component: Any, check: Any) -> None:
    check(component)


@pytest.mark.process
@pytest.mark.slow
def test_a_wrong_inverse_is_caught() -> None:
    right = REGISTRY.parameterization("companded")
    wrong = testbed.Parameterization(
        "companded",
        target=right.stated_target,
        denoise=lambda F, x, sigma, c=1.0: torch.sign(F) * c * torch.exp(F.abs()),
        reference="none",
    )
    bad = [one.check.id for one in check_component(wrong, on_fail=None) if not one.ok]
    assert "parameterization.optimal_denoiser" in bad


# --- states in training -------------------------------------------------------------------------

STATEFUL = {"edm2": ("edm2", "l2"), "tracked_huber": ("edm", "tracked_huber")}


def stateful(
    weighting: str, loss: str, states: int = 0, net: Any = None, **training: Any
) -> Trainer:
    p = REGISTRY.parameterization("v")
    denoiser = testbed.Denoiser(network(data()) if net is None else net, p, data().sigma_data)
    objective = Objective(
        p,
        REGISTRY.weighting(weighting),
        REGISTRY.loss(loss),
        REGISTRY.density("lognormal"),
        data().sigma_data,
    ).with_states(states)
    settings = Training(**{"steps": 60, "batch": 16, "points": 200, **training})
    return Trainer(denoiser, objective, data(), settings, 0, CPU)


def law_a_state_resumes(
    parts: tuple[str, str], restore: Callable[..., None] = Trainer.restore
) -> None:
    """A run in two parts is the run in one, bit for bit, whatever state the second began with."""
    rows, state = ran(stateful(*parts, steps=3 * BLOCK))

    def make(**given: Any) -> Trainer:
        return stateful(*parts, states=7 if "net" in given else 0, **given)

    for stop in (BLOCK, BLOCK + 23):
        later, found = resumed(make, stop, 3 * BLOCK, restore)
        assert same(found, state)
        whole = math.ceil(stop / BLOCK)
        assert same(later[len(later) - len(rows) + whole :], rows[whole:])


def forgetting(kind: str, one: Trainer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    fresh = {name: value.detach().clone() for name, value in one.state()[0].items()}
    one.restore(tensors, facts)
    with torch.no_grad():
        for name, value in one.state()[0].items():
            old = fresh[name] if name in fresh else torch.zeros_like(value)
            # The objective's own parameters are the last columns.
            if kind == "parameters" and name == "W":
                value[:, one.weights.columns :] = old[:, one.weights.columns :]
            if kind == "moments" and name in ("m", "v"):
                value[:, one.weights.columns :] = old[:, one.weights.columns :]
            if kind == "buffers" and name.startswith("buffer."):
                value.copy_(old)


@pytest.mark.slow
@pytest.mark.parametrize("parts", STATEFUL.values(), ids=STATEFUL)
def test_a_state_resumes_bit_for_bit(parts: tuple[str, str]) -> None:
    law_a_state_resumes(parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "kind"),
    [("edm2", "parameters"), ("edm2", "moments"), ("edm2", "buffers"),
     ("tracked_huber", "buffers")],
)  # fmt: skip
def test_a_forgotten_state_is_caught(parts: str, kind: str) -> None:
    with pytest.raises(AssertionError):
        law_a_state_resumes(STATEFUL[parts], functools.partial(forgetting, kind))


@pytest.mark.slow
def test_training_changes_the_states() -> None:
    """And of a frozen one nothing: else a resumption could not be told from a fresh start."""
    for parts in STATEFUL.values():
        before, after = stateful(*parts), stateful(*parts)
        list(after)
        first, second = (
            {**dict(one.objective.states.named_parameters()), **one.buffers}
            for one in (before, after)
        )
        changed = {name for name in first if not torch.equal(first[name], second[name])}
        assert changed == ({"weighting.w"} if "edm2" in parts else {"loss.mean"})


# --- in a study ---------------------------------------------------------------------------------

STUDY = """
[study]
name = "hatches"
[base]
dataset = { name = "mixture", dim = 2, n = 300, test = 200 }
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 100, batch = 16, points = 2 }
evaluation = { levels = 3, draws = 32, samples = 16, steps = 3, metrics = ["energy"] }
seeds = 2
c_in = "shared"
c_noise = "shared"
density = "lognormal"
[arms]
plain = { weighting = "edm" }
learned = { weighting = "edm2" }
tracked = { weighting = "edm", loss = "tracked_huber" }
[grid]
parameterization = ["edm", "trigflow", "companded"]
[report]
baseline = "edm"
"""
WORDS = ["-p", FIXTURES / "companded.py", "-p", FIXTURES / "tracked_huber.py"]


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hatches")
    (root / "hatches.toml").write_text(STUDY)
    with blank_figures():
        done = run_here(root, "study", "hatches.toml", "--jobs", 0, "--no-mlflow", *WORDS)
    assert done.code == 0, done.err + done.out
    assert "18 finished in" in done.out
    return root / "runs" / "hatches"


@pytest.mark.slow
def test_a_study_with_escape_hatches_finishes_and_keeps_their_states(studied: Path) -> None:
    for at in (studied / "trials").iterdir():
        config = json.loads((at / "trial.json").read_text())["config"]
        assert json.loads((at / "result.json").read_text())["status"] == "finished"
        learned = config["weighting"]["name"] == "edm2" or config["loss"]["name"] == "tracked_huber"
        assert (at / "states.safetensors").exists() == learned
    report = (studied / "report.html").read_text()
    for word in ("companded", "learned", "tracked"):
        assert word in report


@pytest.mark.slow
def test_twins_are_told_where_nothing_is_learned_and_nowhere_else(studied: Path) -> None:
    found = plan.make(
        study_file.read(studied.parents[1] / "hatches.toml"), REGISTRY, studied, "cpu"
    )
    told = [(twin["arm"], twin["members"]) for twin in equal_objectives.find(found, REGISTRY)]
    assert told == [("plain", ["edm", "trigflow"])]


# --- explained ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("companded", ["not affine", "torch.expm1(F.abs())", "options: c = 1.0", "claims: none"]),
        ("tracked_huber", ["has a state", "does not elicit the mean", "options: space"]),
        ("edm2", ["learned with the network (128 numbers)", "features = 128", "104 "]),
        ("eps", ["singular at sigma = inf", "claims: unit_target, boundary"]),
        ("trigflow", ["claims: unit_target, unit_input, homogeneous, boundary", "mean -0.8"]),
    ],
)
def test_escape_hatches_are_explained(tmp_path: Path, name: str, said: list[str]) -> None:
    with unplaced_figures():
        done = run_here(tmp_path, "explain", name, *WORDS, "--out", f"{name}.svg")
    assert (done.code, done.err) == (0, "")
    for words in said[:-1] if name == "edm2" else said:
        assert words in done.out
    assert "nan" not in done.out
    assert (tmp_path / f"{name}.svg").is_file()


def test_a_narrow_range_is_explained_inside_it(tmp_path: Path) -> None:
    (tmp_path / "narrow.py").write_text(
        "import torch\nimport testbed\n"
        "def scaling(sigma):\n"
        "    root = torch.sqrt(sigma - 0.002)\n"
        "    return testbed.Coefficients(torch.ones_like(sigma), root, 1 / sigma, sigma)\n"
        "@testbed.hookimpl\n"
        "def testbed_parameterizations():\n"
        "    yield testbed.Parameterization(\n"
        "        'narrow', scaling, sigma_range=(0.002, float('inf')), sigma_data=0.5)\n"
    )
    done = run_here(tmp_path, "explain", "narrow", "-p", "narrow.py")
    assert (done.code, done.err) == (0, "")
    assert "defined for sigma between 0.002 and inf (ends excluded)" in done.out
    assert "right for sigma_data = 0.5 alone" in done.out
    assert "nan" not in done.out
