"""Discrete denoisers: tables, the nearest level, and what is computed at it.

Their laws (tests/laws/noise_tables.py) are stated together with their mutants, in
tests/mutants/noise_tables.py.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from helpers import studies
from helpers.bounds import assert_within, exact, gamma, u
from helpers.strategies import draws, float64
from laws.noise_tables import (
    FEW,
    Tanh,
    discrete,
    few,
    objective,
    sqrt,
)

import testbed
from testbed import audit
from testbed.diffusion import noise_levels
from testbed.errors import InputError, UnknownName
from testbed.registry import default_registry
from testbed.trial import worker
from testbed.trial.folders import Folder
from testbed.trial.specs import ComponentSpec

# --- the tables ----------------------------------------------------------------------------------


def product(betas: Any) -> Any:
    """sigma of abar = prod (1 - beta), with 50 digits."""
    abar = np.cumprod(1 - betas)
    return sqrt((1 - abar) / abar)


def steps(first: Any, last: Any, n: int) -> Any:
    return exact(first) + exact(np.arange(n)) / (n - 1) * (exact(last) - exact(first))


def printed_cosine(n: int) -> Any:
    """beta = min(1 - abar_t/abar_{t-1}, 0.999) (Nichol and Dhariwal 2021, eq. 17)."""
    cos = np.frompyfunc(
        lambda t: mpmath.cos((t + exact(0.008)) / exact(1.008) * mpmath.pi / 2), 1, 1
    )
    f = cos(exact(np.arange(n + 1)) / n) ** 2
    return product(np.minimum(1 - f[1:] / f[:-1], exact(0.999)))


PRINTED: dict[str, Callable[[int], Any]] = {
    "ddpm": lambda n: product(steps(1e-4, 0.02, n)),
    "scaled_linear": lambda n: product(steps(sqrt(exact(0.00085)), sqrt(exact(0.012)), n) ** 2),
    "cosine": printed_cosine,
    "karras": lambda n: (
        steps(exact(0.002) ** (exact(1) / 7), exact(80.0) ** (exact(1) / 7), n) ** 7
    ),
}


@pytest.mark.parametrize("n", [2, 50, 1000])
@pytest.mark.parametrize("name", PRINTED)
def test_table_is_the_printed_formula(name: str, n: int) -> None:
    """beta has 8 roundings, with those of its ends; a sum of n logarithms as many more. The cosine
    of an angle that ends at pi/2 - pi/(2 n) loses n."""
    found, wanted = default_registry().table(name, n=n).sigmas, PRINTED[name](n)
    assert (found.shape, found.dtype) == ((n,), torch.float64)
    assert bool((found.diff() > 0).all())
    k = n + 60
    if name == "cosine":
        k = 8 * n + 60
    # sigma = sqrt(expm1(-log abar)): a relative error e of log abar is one of e |log abar| at most
    # (1 + sigma^2)/sigma^2 |log abar|/2 in sigma.
    s2 = np.array(wanted**2, dtype=float)
    grown = (1 + s2) / s2 * np.log1p(s2) / 2
    assert_within(found, wanted, wanted * exact(grown + 1), k)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rescale", [False, True])
def test_table_is_diffusers(schedule: str, rescale: bool) -> None:
    """abar of its float32: beta has u of beta and 1 - beta one u more, t + 1 times; through the
    rescaling each of the roots, and first/(first - last) is below 1.1."""
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler

    ends = {"scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}.get(schedule, {})
    other = DDIMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=rescale, **ends)
    name = {"linear": "ddpm", "squaredcos_cap_v2": "cosine"}.get(schedule, schedule)
    sigmas = default_registry().table(name, zero_terminal_snr=rescale).sigmas
    abar = 1 / (1 + sigmas**2)
    wanted = other.alphas_cumprod.double()
    unit = gamma(1, torch.float32)
    # Its last cosine betas are near 1: 1 - beta then has u/(1 - beta), 1e-3 at the least.
    lost = 1e3 if name == "cosine" else 1.0
    bound = 4 * unit * (torch.arange(1000) + 2 + lost) * abar + 4 * unit * rescale
    assert_within(abar, exact(wanted), 0, 1, plus=exact(bound))
    assert (float(wanted[-1]) == 0) == rescale


# --- the nearest level ---------------------------------------------------------------------------


def test_the_two_kinds_of_nearest_differ_between_the_two_middles() -> None:
    """Between 1 and 4 the middle is 2.5, or 2."""
    sigma = float64([1.9, 2.1, 2.4, 2.6])
    assert few("sigma").quantised(sigma).tolist() == [1.0, 1.0, 1.0, 4.0]
    assert few("log_sigma").quantised(sigma).tolist() == [1.0, 4.0, 4.0, 4.0]


def test_a_table_that_is_bound_again_has_its_own_middles() -> None:
    sigma, table = float64([2.1, 2.4]), few("sigma")
    assert table.quantised(sigma).tolist() == [1.0, 1.0]
    other = table.bound({**table.options, "nearest": "log_sigma"})
    assert other.quantised(sigma).tolist() == [4.0, 4.0]


@pytest.mark.parametrize("name", ["eps", "v", "edm", "score"])
def test_what_is_looked_up_is_what_is_computed(name: str) -> None:
    """To the last bit, at the levels of both ends and between them."""
    p = default_registry().parameterization(name)
    network = lambda x, c_noise, condition: torch.tanh(x + c_noise[:, None])  # noqa: E731
    denoise = testbed.Denoiser(network, p, 0.5, c_noise="index", table=few("log_sigma"))
    sigma, x = float64([0.01, 0.9, 2.1, 3.0, 100.0]), draws((5, 3), 2)
    F, level = denoise.output(x, sigma), denoise.level(sigma)
    assert torch.equal(denoise(x, sigma), p.denoise(F, x, level, sigma_data=0.5))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_quantised_keeps_the_shape_and_is_its_own_nearest(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    sigma = draws(shape, 0).abs().to(dtype)
    found = few().quantised(sigma)
    assert (found.shape, found.dtype) == (shape, torch.float64)
    assert torch.equal(few().quantised(found), found)
    assert set(found.flatten().tolist()) <= set(FEW.tolist())


def test_its_density_has_every_level_once() -> None:
    """DDPM's uniform t: at n equal quantiles every index occurs once; mass over log-spacing."""
    t = default_registry().table("scaled_linear", n=20)
    density = t.density(1e-3, 1e3)
    levels = density.sigma((torch.arange(20, dtype=torch.float64) + 0.5) / 20)
    assert torch.equal(levels, t.sigmas)
    p = density.pdf_over_log_sigma(t.sigmas[1:-1])
    log = torch.log(t.sigmas)
    assert_within(p, exact(1 / (20 * (log[2:] - log[:-2]) / 2)), exact(p), 40)
    # Levels on the edges of the range belong to it.
    cut = t.density(float(t.sigmas[3]), float(t.sigmas[7]))
    some = cut.sigma((torch.arange(5, dtype=torch.float64) + 0.5) / 5)
    assert torch.equal(some, t.sigmas[3:8])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ddmp", {}, "Unknown table 'ddmp'. Did you mean 'ddpm'?"),
        ("ddpm", {"m": 3}, "table 'ddpm': Unknown option 'm'."),
        ("ddpm", {"n": 1}, "table 'ddpm': n = 1 levels: expected 2 or more."),
        ("ddpm", {"n": 0}, "table 'ddpm': n = 0, start = 0.0001, end = 0.02: expected n from 1"),
        ("cosine", {"most": 1.0}, "table 'cosine': n = 1000, offset = 0.008, most = 1: expected"),
        ("karras", {"low": 90.0}, "table 'karras': n = 1000, low = 90, high = 80, rho = 7:"),
        ("ddpm", {"nearest": "log"}, "table 'ddpm': Unknown nearest 'log'."),
    ],
)
def test_what_is_no_table_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises((InputError, UnknownName)) as refused:
        default_registry().table(name, **options)
    assert said in str(refused.value)


# --- the denoiser --------------------------------------------------------------------------------


def test_without_a_table_nothing_is_quantised() -> None:
    p = default_registry().parameterization("v")
    plain, coarse = testbed.Denoiser(Tanh(), p, 0.5), discrete("v", few(), "native")
    x = draws((2, 2), 0)
    assert not torch.equal(plain(x, 0.7), coarse(x, 0.7))
    assert torch.equal(plain(x, 0.5), coarse(x, 0.5))
    assert plain.table is None
    assert not plain.scales_as(coarse)


def test_an_index_needs_a_table() -> None:
    p = default_registry().parameterization("v")
    with pytest.raises(InputError, match='c_noise = "index" is that of a level in a table'):
        testbed.Denoiser(Tanh(), p, 0.5, c_noise="index")


@pytest.mark.parametrize("name", ["eps", "v", "edm", "x0", "score"])
def test_the_audit_of_a_discrete_model_passes(name: str) -> None:
    x0, eps = draws((12, 2), 1), draws((12, 2), 2)
    sigma = torch.logspace(-1, 1, 12, dtype=torch.float64)
    rows = audit.check_model(discrete(name, few("log_sigma")), x0, eps, sigma)
    assert all(row.passed for row in rows), audit.table(rows)
    assert {row.sigma for row in rows} <= set(FEW.tolist())


# --- training ------------------------------------------------------------------------------------


def test_the_scale_of_a_loss_is_that_of_the_levels() -> None:
    """E[k |F*|^2] over draws whose levels are the table's; the mean of the same draws."""
    data = default_registry().dataset("mixture", dim=2)()
    coarse = few(levels=float64([0.1, 4.0]))
    assert objective(coarse).scale(data) != objective(None).scale(data)
    u_ = (torch.arange(8192, dtype=torch.float64) + 0.5) / 8192
    drawn = objective(None).density.sigma(u_)
    assert torch.equal(objective(coarse).sigma(u_), coarse.quantised(drawn))


# --- zero terminal SNR ---------------------------------------------------------------------------


def test_at_zero_snr_the_network_sees_eps_to_the_last_bit() -> None:
    """float32: c_in (x0 + sigma eps) = eps and F* are the limits, for all that have one."""
    x0, eps = 4 * draws((64, 3), 1, torch.float32), draws((64, 3), 2, torch.float32)
    sigma = torch.full((64,), noise_levels.TERMINAL, dtype=torch.float32)
    x = x0 + sigma[:, None] * eps
    limits = {"v": -x0, "x0": x0, "edm": x0 / 0.5, "flow": eps - x0}
    for name, wanted in limits.items():
        p = default_registry().parameterization(name)
        c = p.coefficients(sigma.double(), sigma_data=0.5)
        assert torch.equal(c.in_.float()[:, None] * x, eps), name
        target = p.target(x0, eps, sigma, sigma_data=0.5)
        assert_within(target, exact(wanted), exact(x0.abs() + eps.abs()), 4, torch.float32)
        # D of the exact output is x0: nothing is lost.
        D = p.denoise(wanted, x, sigma, sigma_data=0.5)
        terms = exact(x0.abs() + 2 * eps.abs())
        assert_within(D, exact(x0), terms, 8, torch.float32)


@pytest.mark.slow
def test_ddim_from_zero_snr_is_diffusers() -> None:
    """A v network on the rescaled table, trailing spacing, from alpha = 0 to a sample: DDIM of
    diffusers with rescale_betas_zero_snr.

    Its sqrt(abar) are off by delta = 2 (t + 3) u of float32, its sqrt(1 - abar) by that over
    sqrt(1 - abar); both multiply |x| + |v|. What that does to the end is read off the published
    algorithm, by autograd.
    """
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler

    other = DDIMScheduler(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False,
        prediction_type="v_prediction",
    )  # fmt: skip
    other.set_timesteps(20)
    D = discrete("v", default_registry().table("ddpm", zero_terminal_snr=True))
    start = draws((4, 2), 7)
    x_t = start
    for t in other.timesteps:
        x_t = other.step(D.network(x_t, t.double().expand(4)), t, x_t).prev_sample

    assert D.table is not None
    root = 1 / torch.sqrt(1 + D.table.sigmas**2)
    kicks, sizes = [], []
    x = start
    for t in other.timesteps:
        a = root[t]
        b = root[t - 50] if t >= 50 else torch.ones_like(a)
        v = D.network(x, t.double().expand(4))
        eps, x0 = a * v + torch.sqrt(1 - a**2) * x, a * x - torch.sqrt(1 - a**2) * v
        kicks.append(torch.zeros_like(x, requires_grad=True))
        delta = gamma(2 * (float(t) + 3), torch.float32)
        grown = sum(1 / math.sqrt(1 - float(c) ** 2) for c in (a, b) if c < 1)
        sizes.append(delta * 2 * (1 + grown) * (x.abs() + v.abs()).sum(1, keepdim=True).detach())
        x = b * x0 + torch.sqrt(1 - b**2) * eps + kicks[-1]
    bound = torch.zeros_like(start)
    for k in range(2):
        slopes = torch.autograd.grad(x[:, k].sum(), kicks, retain_graph=True)
        bound[:, k] = sum((g.abs() * size).sum(1) for g, size in zip(slopes, sizes, strict=True))

    sigmas = default_registry().schedule("table")(20, 1e-3, noise_levels.TERMINAL, D.table)
    assert float(sigmas[0]) == noise_levels.TERMINAL
    found = testbed.sample(D, noise_levels.TERMINAL * start, sigmas, "ddim")
    size = float(found.abs().max())
    assert float(bound.max()) < 0.05 * size, "the bound says nothing"
    assert_within(found, exact(x_t), 0, 1, plus=exact(bound))
    # The same algorithm in float64 leaves no more than its own rounding.
    assert float((found - x.detach()).abs().max()) < 1e-6 * float(bound.max())


# --- in a study ----------------------------------------------------------------------------------

STUDY = """
[study]
name = "discrete"
[base]
network = { name = "mlp_index", width = 8, depth = 1 }
training = { steps = 50, batch = 8 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 4, metrics = ["energy"] }
dataset = { name = "mixture", dim = 2 }
table = { name = "ddpm", n = 100, nearest = "log_sigma" }
c_noise = "index"
density = "table"
[grid]
parameterization = ["v"]
"""
ZERO = [
    "table.zero_terminal_snr=true", "sigma_max=inf", "evaluation.sampler=ddim",
    "evaluation.schedule=table",
]  # fmt: skip


planned = partial(studies.config, STUDY)


def test_a_study_names_its_table(tmp_path: Path) -> None:
    config = planned(tmp_path)
    assert config.table == ComponentSpec(
        name="ddpm",
        options={
            "n": 100, "start": 1e-4, "end": 0.02, "nearest": "log_sigma",
            "zero_terminal_snr": False,
        },
    )  # fmt: skip
    assert (config.c_noise, config.density.name) == ("index", "table")
    continuous = ("table=none", "c_noise=shared", "density=lognormal", "network=mlp")
    assert planned(tmp_path, *continuous).table is None


CHANGES: list[list[str]] = [
    [],
    ZERO,
    ["density=lognormal", "table=karras"],
    ["table={name='betas', values=[0.01, 0.1, 0.3, 0.6]}", "evaluation.sampler=ddim",
     "evaluation.schedule={name='table', spacing='latent'}", "evaluation.steps=3"],
    ["table={name='flow', n=100, shift=3.0}", *ZERO[1:]],
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("changes", CHANGES)
def test_a_discrete_trial_runs_and_is_restored(tmp_path: Path, changes: list[str]) -> None:
    config, at = planned(tmp_path, *changes), tmp_path / "trial"
    at.mkdir()
    assert worker.run(config, at) == "finished", (at / "error.txt").read_text()

    Folder.at(at).put_json(
        "trial.json", {"config": config.record(), "plugins": [], "plugin_dirs": []}
    )
    assert all(row["ratio"] <= 1 for row in Folder.at(at).json("tweedie.json")["rows"])
    D = testbed.load(at)
    assert D.table is not None
    assert dataclasses.asdict(D.table)["options"] == config.table.options
    x = draws((2, 2), 0, torch.float32)
    assert torch.equal(D(x, 1.0), D(x, float(D.table.quantised(float64(1.0)))))


REFUSED = {
    "an index without a table": (
        ["table=none", "density=lognormal"],
        'c_noise = "index" is the index in a table: name one, such as table = "ddpm".',
    ),
    "an index beyond the network's range": (
        ["network=mlp", "table.n=13000", "table.end=0.001"],
        "table 'ddpm' gives an index from 0 to 1.3e+04, network 'mlp' takes index from 0 to 12000",
    ),
    "a value for an index": (
        ["c_noise=native"],
        "parameterization 'v' gives c_noise as 'sigma', network 'mlp_index' takes index. Its table "
        'has no entry at a sigma: c_noise = "index" gives one, with a table.',
    ),
    "more levels than the network takes": (
        ["table={name = \"karras\", n = 30000}", "density=lognormal"],
        "table 'karras' gives an index from 0 to 3e+04, network 'mlp_index' takes index from 0 to "
        "20000.",
    ),
    "the density of no table": (
        ["table=none", "c_noise=native", "network=mlp"],
        'density = "table" is that of a table: name one, such as table = "ddpm".',
    ),
    "a schedule of no table": (
        ["table=none", "c_noise=native", "network=mlp", "density=lognormal",
         "evaluation.schedule=table"],
        "evaluation: schedule 'table': takes its levels from the trial's table: name one.",
    ),
    "more steps than levels": (
        ["evaluation.schedule=table", "evaluation.steps=101"],
        "evaluation: schedule 'table': steps = 101, but its table has 100 levels from",
    ),
    "eps at zero SNR": (
        [*ZERO, 'grid.parameterization=["eps"]'],
        "'eps' at sigma_max = infinity (zero terminal SNR): x is pure noise there and F says",
    ),
    "score at zero SNR, by the table alone": (
        ["table.zero_terminal_snr=true", "evaluation.sampler=ddim",
         'grid.parameterization=["score"]', "output=F"],
        "'score' at sigma_max = infinity (zero terminal SNR)",
    ),
    "zero SNR that is never drawn": (
        [*ZERO, "density=lognormal"],
        "table 'ddpm' ends at sigma = infinity (zero terminal SNR), and density 'lognormal' draws "
        "up to",
    ),
    "zero SNR below sigma_max": (
        ["table.zero_terminal_snr=true", "sigma_max=80"],
        'write sigma_max = inf and density = "table".',
    ),
    "Heun from zero SNR": (
        [*ZERO, "evaluation.sampler=heun"],
        "evaluation: sampler 'heun' cannot step from sigma = infinity",
    ),
    "infinity without a table that ends there": (
        ["sigma_max=inf"],
        "training draws x = x0 + sigma eps, which has no limit there",
    ),
    "an unknown option": (["table.nearst=sigma"], "table 'ddpm': Unknown option 'nearst'."),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_discrete_is_refused(tmp_path: Path, changes: list[str], said: str) -> None:
    (line,) = studies.refusal(STUDY, tmp_path, *changes).splitlines()
    assert said in line


def test_what_stands_for_infinity_is_far_enough() -> None:
    """x0's share of c_in x is below half a unit of float32, 1/(1 + sigma^2) one of float64."""
    assert u(torch.float32) > 1 / noise_levels.TERMINAL
    assert u(torch.float64) > 1 / (1 + noise_levels.TERMINAL**2)
    assert math.isfinite(float(torch.tensor(noise_levels.TERMINAL**2, dtype=torch.float32)))
