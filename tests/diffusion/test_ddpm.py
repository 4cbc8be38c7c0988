"""The DDPM chain, its evidence lower bound and a learned variance.

Their laws (tests/laws/ddpm.py) are stated of them together with their mutants, in
tests/mutants/ddpm.py.

Expectations are exact where a term is quadratic in eps: the mean over eps = -1 and +1 is that over
N(0, 1). The same holds for x0 = m +- sqrt(L) of Gaussian data.
"""

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import studies
from helpers.bounds import assert_within, exact, u
from helpers.strategies import draws, float64
from helpers.studies import LEARNED_VARIANCE, ONE_TRIAL
from laws.ddpm import (
    LEVELS,
    Doubled,
    ExactReverse,
    L,
    doubled,
    few,
    law_posterior,
    objective,
    printed,
)
from torch import Tensor, nn

import testbed
from testbed.diffusion import ddpm, noise_levels
from testbed.diffusion.ddpm import Chain, Normal
from testbed.errors import InputError
from testbed.oracles import Gaussian
from testbed.random import stream
from testbed.registry import default_registry
from testbed.study import plan, study_file
from testbed.training import batch
from testbed.training.settings import Training
from testbed.training.trainer import Trainer, TrainingJob
from testbed.trial import restore, worker
from testbed.trial.folders import Folder
from testbed.trial.specs import Variance

# --- the chain -----------------------------------------------------------------------------------


def test_beta_is_the_table_s() -> None:
    """1 - abar_t/abar_{t-1} of levels that were made from betas; sigma^2 has t + 60 roundings."""
    betas = noise_levels.linear_betas(200)
    chain = Chain(noise_levels.ddpm_sigmas(betas))
    s2, b2 = chain.sigmas**2, chain.before**2
    grown = 1 + (1 + s2) / s2 * torch.log1p(s2)
    assert_within(chain.beta, exact(betas), (s2 + b2) / (1 + s2) * grown, 260)


def test_chain_takes_an_index_for_each_sample() -> None:
    chain, t = Chain(LEVELS["coarse"]), torch.tensor([0, 3, 1])
    x0, x = draws((3, 2, 2), 3), draws((3, 2, 2), 4)
    for i, one in enumerate(t.tolist()):
        for found, alone in (
            (chain.step(x, t), chain.step(x, one)),
            (chain.marginal(x0, t), chain.marginal(x0, one)),
            (chain.posterior(x, x0, t), chain.posterior(x, x0, one)),
        ):
            assert torch.equal(found.mean[i], alone.mean[i])
            assert float(found.variance[i]) == float(alone.variance)


@pytest.mark.parametrize("levels", [[1.0], [1.0, 0.5], [0.0, 1.0], [[1.0, 2.0]], [1.0, math.nan]])
def test_what_is_no_chain_is_refused(levels: Any) -> None:
    with pytest.raises(InputError, match="a chain"):
        Chain(float64(levels))


# --- diffusers -----------------------------------------------------------------------------------


def diffusers(**options: Any) -> Any:
    pytest.importorskip("diffusers")
    from diffusers import DDPMScheduler

    return DDPMScheduler(clip_sample=False, prediction_type="sample", **options)


def lost(t: int, chain: Chain) -> tuple[float, float]:
    """Relative errors of 1 - abar_t and of beta_t in float32: abar is a product of t + 1 factors,
    each with two roundings."""
    e = 2 * (t + 4) * u(torch.float32)
    return e / float((chain.sigmas**2 * chain.abar)[t]), 3 * e / float(chain.beta[t])


@pytest.mark.slow
@pytest.mark.parametrize("t", [0, 1, 2, 37, 500, 999])
def test_chain_is_diffusers(t: int) -> None:
    """add_noise, the mean of a step and both fixed variances, to its float32."""
    other, chain = diffusers(), Chain(default_registry().table("ddpm").sigmas)
    x0, eps, x_t = (draws((4, 3), i, torch.float32) for i in range(3))
    of_noise, of_beta = lost(t, chain)
    size = exact(x0.abs() + eps.abs() + x_t.abs())
    marginal = chain.marginal(x0, t)
    noised = marginal.mean + marginal.variance.sqrt().float() * eps
    found = other.add_noise(x0, eps, torch.tensor(t))
    bound = size * (of_noise + 2 * (t + 8) * u(torch.float32))
    assert_within(noised, exact(found), 0, 1, plus=bound)
    where = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    with mock.patch(where, return_value=0 * x0):
        mean = other.step(x0, t, x_t).prev_sample
    # beta/(1 - abar) and (1 - abar')/(1 - abar), each up to 1.
    share = of_noise + of_beta + (lost(t - 1, chain)[0] if t else 0)
    posterior = chain.posterior(x_t, x0, t)
    assert_within(posterior.mean, exact(mean), 0, 1, plus=size * (2 * share + 1e-6))
    large = float(other._get_variance(t, variance_type="fixed_large"))
    assert large == pytest.approx(float(chain.beta[t]), rel=of_beta)
    if t:
        tilde = float(other._get_variance(t, variance_type="fixed_small"))
        assert tilde == pytest.approx(float(posterior.variance), rel=2 * share)


# --- Gaussians -----------------------------------------------------------------------------------


# --- the evidence lower bound --------------------------------------------------------------------


def test_bound_of_draws_is_that_in_expectation() -> None:
    """With a generator: 4096 samples of N(0, I) in 3 dimensions, within 5 standard errors."""
    oracle = Gaussian(torch.zeros(3), torch.eye(3))
    x0 = oracle.sample(4096, stream(0, "tests/elbo/data"))
    found = Chain(LEVELS["karras"]).elbo(oracle.denoise, x0, stream(0, "tests/elbo"), "large")
    assert found.reconstruction.shape == found.prior.shape == (4096,)
    assert found.matching.shape == (19, 4096)
    off = found.total + oracle_log_density(x0)
    assert abs(float(off.mean())) < 5 * float(off.std()) / 64


def oracle_log_density(x0: Tensor) -> Tensor:
    return -(x0**2 + math.log(2 * math.pi)).sum(1) / 2


def test_an_unknown_variance_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'small'"):
        Chain(LEVELS["coarse"]).elbo(lambda x, s: x, draws((2, 1), 1), stream(0, "a"), "smal")
    with pytest.raises(InputError, match="from a denoiser that learns one"):
        Chain(LEVELS["coarse"]).elbo(lambda x, s: x, draws((2, 1), 1), stream(0, "a"), "learned")


# --- a learned variance --------------------------------------------------------------------------


def test_posterior_of_a_longer_step() -> None:
    """From 4 to 0.5: beta = 1 - abar_t/abar_prev of the two levels, as for a subsequence."""
    d, x = doubled("v", few()), 2 * draws((3, 4), 11)
    found = d.posterior(x, 4.0, 0.5)
    F, nu = d._halves(x, 4.0, None)
    assert nu is not None
    D = exact(d(x, 4.0))
    wanted = printed(F, nu, exact(x), D, exact(4.0), exact(0.5), exact(1.0))
    assert_within(found.mean, wanted[0], exact(x.abs()) + np.abs(D), 24)
    assert_within(found.variance, wanted[1], wanted[1], 84)


@pytest.mark.slow
@pytest.mark.parametrize("t", [1, 5, 300, 999])
def test_posterior_is_diffusers(t: int) -> None:
    """variance_type = "learned_range" of a network [F, nu] on the linear table, to its float32."""
    other, d = (
        diffusers(variance_type="learned_range"),
        doubled("x0", default_registry().table("ddpm")),
    )
    assert d.table is not None
    chain = Chain(d.table.sigmas)
    x = 2 * draws((3, 4), 11)
    nu = d._halves(x, d.table.sigmas[t], None)[1]
    assert nu is not None
    log_variance = other._get_variance(t, predicted_variance=nu)
    found = d.posterior(x, d.table.sigmas[t])
    theirs = torch.log(found.variance / (1 + chain.before[t] ** 2))
    # Relative errors of beta and beta~ add, with weights v and 1 - v of size below 3.
    share = lost(t, chain)[0] + lost(t, chain)[1] + lost(t - 1, chain)[0]
    assert float((theirs - log_variance).abs().max()) < 6 * share


def test_a_denoiser_without_one_says_so() -> None:
    p = default_registry().parameterization("v")
    plain = testbed.Denoiser(Doubled(), p, 0.5, table=few())
    with pytest.raises(InputError, match="from a denoiser that learns one"):
        plain.posterior(draws((2, 2), 1), 1.0)
    with pytest.raises(InputError, match="a learned variance is that of a step of a table"):
        testbed.Denoiser(Doubled(), p, 0.5, learned_variance=True)
    same = lambda y, c, k: y  # noqa: E731
    single = testbed.Denoiser(same, p, 0.5, table=few(), learned_variance=True)
    with pytest.raises(InputError, match="twice as many channels"):
        single(draws((2, 2), 1), 1.0)
    for sigma_next in (1.0, 2.0, -0.5):
        with pytest.raises(InputError, match="sigma_next = "):
            doubled("v", few()).posterior(draws((2, 2), 1), 1.0, sigma_next)


def test_the_first_half_is_F() -> None:
    """D and score are those of the same network without nu."""

    class First(Doubled):
        def forward(self, y: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
            return super().forward(y, c_noise).chunk(2, 1)[0]

    d, x = doubled("v", few()), draws((3, 2, 4, 4), 12)
    p = default_registry().parameterization("v")
    plain = testbed.Denoiser(First(), p, 0.5, c_noise="index", table=few())
    assert torch.equal(d(x, 0.5), plain(x, 0.5))
    assert torch.equal(d.score(x, 0.5), plain.score(x, 0.5))
    assert d.posterior(x, 0.5).variance.shape == x.shape


# --- L_vlb ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eps", "v", "x0", "edm"])
def test_simple_is_the_eps_loss_over_uniform_t(name: str) -> None:
    """lambda = 1/sigma^2 with sigma from the table, uniform: E_t |eps_hat - eps|^2 per dimension
    (Ho et al. 2020, eq. 14), whatever the network is asked for; stratified u has every t equally
    often."""
    t = default_registry().table("ddpm", n=20)
    one = objective(name, t, None)
    sigma = one.sigma((torch.arange(40, dtype=torch.float64) + 0.5) / 40)
    assert torch.equal(sigma, t.sigmas.repeat_interleave(2))
    x0, eps, F = (draws((40, 3), i) for i in range(3))
    x = x0 + sigma[:, None] * eps
    p = one.parameterization
    hat = testbed.convert(F, p, "eps", x=x, sigma=sigma, sigma_data=0.5)
    wanted = ((hat - eps) ** 2).mean(1)
    found = one(F, x0, eps, sigma)
    # k in float32; the residual's terms |a x0| + |b eps| + |F|, times |c_out|/sigma.
    a, b = p.pair_weights(sigma, sigma_data=0.5)
    out = p.coefficients(sigma, sigma_data=0.5).out / sigma
    size = (a[:, None] * x0).abs() + (b[:, None] * eps).abs() + F.abs()
    assert_within(found, exact(wanted), exact((out[:, None] * size).square().mean(1)), 24,
                  torch.float32)  # fmt: skip


def test_the_levels_are_those_of_the_density() -> None:
    """A table cut by sigma_max is a chain of what is left."""
    t = default_registry().table("ddpm")
    one = replace(objective("eps", t), density=t.density(0.02, 80.0))
    assert float(one.levels.max()) < 80 < float(t.sigmas.max())
    assert len(one.variational.terms) == len(one.levels) < 1000


# --- training ------------------------------------------------------------------------------------


def test_two_outputs_start_as_one() -> None:
    """Same seed, same weights in every layer but the last, which is zero."""
    n = default_registry().network("mlp_index", width=8, depth=1)
    one, two = n((3, 2), 0, 5), n((3, 2), 0, 5, outputs={"F": 3, "nu": 3})
    for name, weights in one.state_dict().items():
        if name.startswith("last."):
            assert two.state_dict()[name].shape[0] == 2 * weights.shape[0]
            assert not bool(two.state_dict()[name].any())
        else:
            assert torch.equal(weights, two.state_dict()[name])
    found = two(draws((4, 3, 2), 0, torch.float32), torch.arange(4.0), None)
    assert found.shape == (4, 6, 2)
    other = testbed.Network("other", lambda shape, labels: nn.Identity(), noise={})
    with pytest.raises(InputError, match="its build does not take `outputs`"):
        other((2,), 0, 0, outputs={"F": 2, "nu": 2})


def isotropic() -> testbed.Data:
    """N(0, 0.4 I) in two dimensions."""
    generator = stream(0, "tests/isotropic")
    train, test = (L**0.5 * torch.randn(n, 2, generator=generator) for n in (8192, 512))
    return testbed.Data(train, test)


def training_job(steps: int, vlb: float | None, name: str = "eps", **more: Any) -> TrainingJob:
    """A small network on eight levels."""
    t = few(0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
    one = objective(name, t, vlb, **more)
    network = default_registry().network("mlp_index", width=24, depth=1, frequencies=(0.05, 3.0))
    d = testbed.Denoiser(
        network((2,), 0, 1, outputs=None if vlb is None else {"F": 2, "nu": 2}),
        one.parameterization,
        one.sigma_data,
        c_in="shared",
        c_noise="index",
        table=t,
        learned_variance=vlb is not None,
    )
    settings = Training(steps=steps, batch=256, points=2, learning_rate=3e-3, ema=0.99)
    return TrainingJob(d, one, settings, 0)


def trainer(one: TrainingJob) -> Trainer:
    cpu = torch.device("cpu")
    return Trainer(one.denoiser, one.objective, isotropic(), one.training, one.seed, cpu)


@pytest.mark.slow
def test_a_learned_variance_approaches_the_known_one() -> None:
    """Gaussian data: v of exp(v log beta + (1 - v) log beta~) at every level but the first, where
    log beta - log beta~ is the largest. Before training v = 1/2; afterwards its distance from the
    known one, weighted by what the distance costs, is at most a tenth of that. The mean is held
    against what the network's own mean asks for, beta~ + (1 - q^2)^2 E|x0 - D|^2."""
    one = trainer(training_job(1500, 0.001))
    list(one)
    d = one.averaged()
    assert d.table is not None
    chain = Chain(d.table.sigmas)
    x0 = isotropic().test
    eps = torch.randn(x0.shape, generator=stream(1, "tests/isotropic"))
    costs = []
    for t, s in enumerate(chain.sigmas):
        x = x0 + s.float() * eps
        with torch.no_grad():
            found = d.posterior(x, s)
        low, high = ddpm.extremes(s, chain.before[t], chain.after[t])
        delta = torch.log(high / low)
        q2 = (chain.before[t] / s) ** 2
        left = L * s**2 / (L + s**2)
        known = torch.log(((1 - q2) * chain.before[t] ** 2 + (1 - q2) ** 2 * left) / low) / delta
        v = torch.log(found.variance.double() / low) / delta
        # A nat is (delta (v - known))^2/4 of it, to second order.
        costs.append([float((delta * (v - known)).square().mean()),
                      float((delta * (0.5 - known)) ** 2)])  # fmt: skip
    learned, start = np.array(costs).sum(0)
    assert learned < 0.1 * start, costs


@pytest.mark.slow
def test_the_bound_of_a_trained_model_is_above_the_oracle_s() -> None:
    """Paired over the same draws: 5 standard errors."""
    one = trainer(training_job(200, 0.001))
    list(one)
    d = one.averaged()
    assert d.table is not None
    chain, x0 = Chain(d.table.sigmas), isotropic().train
    exactly = ExactReverse(0.0, L)
    with torch.no_grad():
        found, best = (
            chain.elbo(one, x0, stream(0, "tests/bounds"), "learned") for one in (d, exactly)
        )
    for part in ("reconstruction", "prior", "matching"):
        assert getattr(found, part).shape == getattr(best, part).shape
    off = found.total - best.total
    assert float(off.mean()) > 5 * float(off.std()) / len(x0) ** 0.5
    entropy = 2 * (math.log(2 * math.pi * L) + 1) / 2
    assert float(best.total.mean()) > entropy - 5 * float(best.total.std()) / len(x0) ** 0.5


@pytest.mark.parametrize("name", ["eps", "v", "x0"])
def test_the_mean_does_not_see_the_last_layer_s_second_half(name: str) -> None:
    """One step of training: the first half of the last layer moves as without L_vlb."""
    plain, learned = trainer(training_job(1, 0.0, name)), trainer(training_job(1, 0.001, name))
    for one in (plain, learned):
        list(one)
    first = plain.denoiser.network.last  # type: ignore[union-attr]
    both = learned.denoiser.network.last  # type: ignore[union-attr]
    assert torch.equal(first.weight[:2], both.weight[:2])  # type: ignore[union-attr,index]
    assert bool(both.weight[2:].any()) > bool(first.weight[2:].any())  # type: ignore[union-attr,index]


def test_a_constant_in_the_weight_changes_nothing() -> None:
    """L_vlb stands beside a loss that is 1 at F = 0: a power of two times the weight gives the
    same bits."""
    r = default_registry()
    fours = testbed.Weighting("fours", lambda sigma: 4 / sigma**2).bound({})
    one, two = (trainer(training_job(20, 0.001, weighting=w)) for w in (r.weighting("eps"), fours))
    for each in (one, two):
        list(each)
    assert torch.equal(one.weights.W, two.weights.W)


def test_it_trains_one_by_one() -> None:
    assert batch.unbatchable([training_job(1, 0.001)]) == "a variance is learned"
    assert batch.unbatchable([training_job(1, None)]) == ""


# --- sampling ------------------------------------------------------------------------------------


def test_ddpm_takes_the_learned_variance() -> None:
    """A run of the sampler is the posterior's mean and sqrt(variance) z, step by step; the last
    step draws nothing."""
    d, x = doubled("v", few()), 2 * draws((3, 4), 13)
    sampler = default_registry().sampler("ddpm", variance="learned")
    found = testbed.sample(d, x, [4.0, 1.0, 0.1, 0.0], sampler, stream(0, "tests/learned"))
    generator = stream(0, "tests/learned")
    for s, t in ((4.0, 1.0), (1.0, 0.1), (0.1, 0.0)):
        mean, variance = d.posterior(x, s, t)
        x = mean
        if t:
            x = mean + variance.sqrt() * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    assert torch.equal(found, x)


def test_samples_with_the_exact_variance_have_the_data_s() -> None:
    """Four steps, where small and large variances are far off: variance of 40 000 samples within
    5 standard errors of L + the last level's."""
    exactly, levels = ExactReverse(0.0, L), [4.0, 1.0, 0.5, 0.1]
    generator = stream(0, "tests/variance")
    x = (L + 16) ** 0.5 * torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    wanted, off = L + 0.01, {}
    for variance in ("learned", "small", "large"):
        sampler = default_registry().sampler("ddpm", variance=variance)
        end = testbed.sample(SampledExact(exactly), x, levels, sampler, generator)
        off[variance] = float(end.var() / wanted - 1) / (2 / len(x)) ** 0.5
    assert abs(off["learned"]) < 5 < min(-off["small"], off["large"]), off


class SampledExact:
    """ExactReverse for the sampler's floats."""

    def __init__(self, exactly: ExactReverse) -> None:
        self.exactly = exactly

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.exactly(x, sigma)

    def posterior(self, x: Tensor, sigma: float, sigma_next: float) -> Normal:
        each = (torch.full((len(x),), s, dtype=x.dtype) for s in (sigma, sigma_next))
        return self.exactly.posterior(x, *each)


# --- studies -------------------------------------------------------------------------------------


STUDY = ONE_TRIAL.replace("[base]\n", f"[base]\n{LEARNED_VARIANCE}")
planned = functools.partial(studies.planned, STUDY)


PLAIN = ("density=lognormal", "c_noise=shared", "network=mlp", "evaluation.schedule=karras")


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["variance=fixed"], "the variance from a denoiser that learns one, and this one does not"),
        (["variance=fixed"], 'evaluation.elbo = "learned" needs variance = "learned".'),
        (["variance=learnt"], "Unknown variance 'learnt'. Did you mean 'learned'?"),
        (["variance.vbl=0.1"], "variance.vbl = 0.1: unknown key. Did you mean 'vlb'?"),
        (["variance.vlb=-1.0"], "variance.vlb = -1.0: must be at least 0"),
        (["table=none", *PLAIN], 'variance = "learned" is of steps between levels of a table'),
        (["density=lognormal"], "L_vlb is a sum over the levels of the table"),
        (["sigma_min=0.09", "sigma_max=0.11"], "has 1 level in the density's range"),
        (["noise=perturbed"], "L_vlb is of a chain whose noise is white, and noise 'perturbed'"),
        (["evaluation.elbo=medium"], "evaluation.elbo"),
        (["output=scores"], "output"),
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, sets: list[str], said: str) -> None:
    assert said in studies.refusal(STUDY, tmp_path, *sets)


def test_a_network_with_one_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text(
        "import testbed\n\n\ndef build(shape, labels):\n"
        "    return testbed.Registry().network('mlp')(shape, labels, 0)\n\n\n"
        "@testbed.hookimpl\ndef testbed_networks():\n"
        "    yield testbed.Network('single', build, noise={'index': (0, 999)})\n"
    )
    file = tmp_path / "learned.toml"
    file.write_text(ONE_TRIAL.replace("[base]\n", f"[base]\n{LEARNED_VARIANCE}"))
    study = study_file.read(file, ["network=single"], seeds=1)
    registry = testbed.Registry([str(tmp_path / "single.py")])
    with pytest.raises(InputError, match="the build of network 'single' does not take `outputs`"):
        plan.make(study, registry, tmp_path / "out", "cpu")


def test_the_defaults_are_in_the_identity(tmp_path: Path) -> None:
    (one,) = planned(tmp_path).trials
    assert one.config.variance == Variance(name="learned", vlb=0.001)
    assert one.config.output == "F"
    fixed = planned(tmp_path, "variance=fixed", "evaluation.elbo=off", "evaluation.sampler=ddim")
    assert fixed.trials[0].config.variance == Variance()
    assert fixed.trials[0].config.evaluation.elbo == "off"


@pytest.mark.slow
def test_a_trial_trains_measures_and_is_restored(tmp_path: Path) -> None:
    """The bound per dimension with its error; the restored denoiser has its posterior."""
    (one,) = planned(tmp_path).trials
    at = tmp_path / "out" / "trials" / one.id
    at.mkdir(parents=True)
    described = {"id": one.id, "config": one.config.record(), "labels": []}
    Folder.at(at).put_json("trial.json", {**described, "plugins": [], "plugin_dirs": []})
    assert worker.run(one.config, at) == "finished", (at / "error.txt").read_text()
    result = Folder.at(at).json("result.json")
    assert math.isfinite(result["metrics"]["elbo"])
    terms = [result["metrics"][f"elbo_{t}"] for t in ("reconstruction", "matching", "prior")]
    assert sum(terms) == pytest.approx(result["metrics"]["elbo"], rel=1e-12)
    assert 0 < result["errors"]["elbo"]["error"] < 10
    d = restore.load(at)
    assert d.posterior(draws((3, 2), 1, torch.float32), 1.0).variance.shape == (3, 2)


# --- reference outputs --------------------------------------------------------------------------


def test_the_variances_are_the_reference_s() -> None:
    law_posterior(0)
