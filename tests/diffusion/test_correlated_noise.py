"""Noise with more in it than eps: its covariance, the exact answers, and what training tends to."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import data, same, trainer
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import testbed
from testbed.diffusion.correlated import NOISES, WHITE, CorrelatedOracle, Noise, training_optimum
from testbed.errors import ComponentError, InputError, UnknownName
from testbed.oracles import Empirical, Gaussian, Mixture, Oracle
from testbed.random import stream
from testbed.registry import default_registry
from testbed.tensors import per_sample
from testbed.training import trainer as trainers
from testbed.training.batch import Batch
from testbed.training.objective import Objective
from testbed.training.trainer import BLOCK, SigmaFunctions, Trainer, TrainingJob

U = 2.0**-53
Z = 5.0
SHAPES = [(3,), (2, 3), (2, 2, 3)]


def row(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One number a row: of any axis but the last."""
    return (*shape[:-1], 1)


def column(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One number a column, which does not lie in one piece: for (H, W), W numbers."""
    return (*shape[:-2], *(1 for _ in shape[-2:-1]), shape[-1])


COMPONENTS = {
    **NOISES,
    "rows": Noise("rows", row),
    "columns": Noise("columns", column),
    "hidden": Noise("hidden", row, in_target=False),
}
KINDS = ["offset", "perturbed"]
MORE = [*KINDS, "rows", "columns", "hidden"]


def noise(name: str, strength: float) -> Noise:
    return COMPONENTS[name].bound({"strength": strength})


FIVE = ["edm", "eps", "score", "v", "x0"]


def covariance(name: str, strength: float, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Sigma by Kronecker products, (d, d)."""
    d = math.prod(shape)
    if name == "perturbed":
        return (1 + strength**2) * np.eye(d)
    if name in ("rows", "hidden"):
        of = np.arange(d) // shape[-1]
        return np.eye(d) + strength**2 * (of[:, None] == of)
    if name == "columns":
        place = np.indices(shape).reshape(len(shape), d)
        of = np.delete(place, -2, axis=0) if len(shape) > 1 else place
        return np.eye(d) + strength**2 * (of[:, :, None] == of[:, None]).all(0)
    channels = shape[0] if len(shape) == 3 else 1
    ones = np.ones((d // channels, d // channels))
    return np.eye(d) + strength**2 * np.kron(np.eye(channels), ones)


def world(shape: tuple[int, ...], kind: str = "mixture") -> Oracle:
    """Three unequal, elongated modes, or what else has the shape; off-centre."""
    g, d = stream(0, "coloured"), math.prod(shape)
    means = torch.randn(3, *shape, generator=g, dtype=torch.float64)
    root = 0.5 * torch.randn(3, d, d, generator=g, dtype=torch.float64) / d**0.5
    if kind == "gaussian":
        return Gaussian(means[0], root[0] @ root[0].mT)
    if kind == "empirical":
        return Empirical(torch.randn(9, *shape, generator=g, dtype=torch.float64))
    if kind == "round":
        return Mixture(means, stds=torch.tensor([0.3, 0.7, 0.2]).double())
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    return Mixture(means, weights=weights, covariances=root @ root.mT)


# --- the draws ----------------------------------------------------------------------------------

Applied = Callable[[Noise, Tensor, tuple[int, ...], torch.Generator], tuple[Tensor, Tensor]]


def law_covariance(applied: Applied) -> None:
    """The sample covariance of n is Sigma, and that of the target's noise with n Sigma or I.

    Of N draws an entry's standard error is sqrt((S_ii S_jj + S_ij^2)/N).
    """
    for name in MORE:
        for shape in SHAPES:
            one, N, d = noise(name, 0.7), 20_000, math.prod(shape)
            g = stream(1, "draws")
            eps = torch.randn(N, *shape, generator=g, dtype=torch.float64)
            n, target = (t.reshape(N, d).numpy() for t in applied(one, eps, shape, g))
            S = covariance(name, 0.7, shape)
            cross = S if one.in_target else np.eye(d)
            for left, right, expected in ((n, n, S), (target, n, cross)):
                error = np.sqrt((np.outer(np.diag(S), np.diag(S)) + S**2) / N)
                assert (np.abs(left.T @ right / N - expected) <= Z * error).all(), (name, shape)


@pytest.mark.slow
def test_the_noise_has_its_covariance() -> None:
    law_covariance(Noise.pair)


def everywhere(one: Noise, eps: Tensor, shape: tuple[int, ...], g: Any) -> tuple[Tensor, Tensor]:
    n = eps + one.strength * torch.randn(eps.shape, generator=g, dtype=eps.dtype)
    return n, n if one.in_target else eps


def weak(one: Noise, eps: Tensor, shape: tuple[int, ...], g: Any) -> tuple[Tensor, Tensor]:
    return noise(one.name, one.strength**2).pair(eps, shape, g)


def all_taught(one: Noise, eps: Tensor, shape: tuple[int, ...], g: Any) -> tuple[Tensor, Tensor]:
    n, _ = one.pair(eps, shape, g)
    return n, n


def none_taught(one: Noise, eps: Tensor, shape: tuple[int, ...], g: Any) -> tuple[Tensor, Tensor]:
    n, _ = one.pair(eps, shape, g)
    return n, eps


def one_for_all(one: Noise, eps: Tensor, shape: tuple[int, ...], g: Any) -> tuple[Tensor, Tensor]:
    """One z for all channels, and for all samples."""
    z = one.strength * torch.randn(1, generator=g, dtype=eps.dtype)
    return eps + z, eps + z if one.in_target else eps


@pytest.mark.parametrize("mutant", [everywhere, weak, all_taught, none_taught, one_for_all])
def test_wrong_noise_is_caught(mutant: Applied) -> None:
    with pytest.raises(AssertionError):
        law_covariance(mutant)


def test_white_noise_is_eps_and_draws_nothing() -> None:
    g = stream(0, "white")
    before = g.get_state()
    eps = torch.ones(2, 3)
    n, target = WHITE.pair(eps, (3,), g)
    assert n is eps
    assert target is eps
    assert torch.equal(g.get_state(), before)


# --- the exact answers --------------------------------------------------------------------------

Make = Callable[[Oracle, Noise], CorrelatedOracle]


def law_exact(make: Make) -> None:
    """Bayes' rule for Gaussians, by scipy: log p is that of N(m_k, S_k + sigma^2 Sigma) weighted.

    The condition of a covariance matrix here is below 1e4, so that the log-density and D keep
    1e4 d^2 u of their size, with a hundred operations.
    """
    for name in MORE:
        for shape in SHAPES:
            for sigma in (0.3, 2.0):
                one, d = noise(name, 0.8), math.prod(shape)
                oracle = world(shape)
                assert isinstance(oracle, Mixture)
                assert oracle.Q is not None
                coloured = make(oracle, one)
                x = oracle.sample(5, stream(2, "x")) + sigma
                n = sigma**2 * covariance(name, 0.8, shape)
                S = (oracle.Q * oracle.L[:, None] @ oracle.Q.mT).numpy()
                flat = x.reshape(5, d).numpy()
                of_k = [
                    math.log(pi) + stats.multivariate_normal(m, S_k + n).logpdf(flat)
                    for pi, m, S_k in zip(oracle.pi.tolist(), oracle.m.numpy(), S, strict=True)
                ]
                log_p = np.logaddexp.reduce(of_k)
                r = np.exp(np.array(of_k) - log_p)
                D = sum(
                    r_k[:, None] * (m + (flat - m) @ np.linalg.solve(S_k + n, S_k))
                    for r_k, m, S_k in zip(r, oracle.m.numpy(), S, strict=True)
                )
                close = {"rtol": 0, "atol": 100 * 1e4 * d**2 * U * float(x.detach().abs().max())}
                np.testing.assert_allclose(coloured.log_density(x, sigma), log_p, **close)
                np.testing.assert_allclose(coloured.denoise(x, sigma).reshape(5, d), D, **close)


def law_tweedie(make: Make, kind: str = "mixture") -> None:
    """D = x + sigma^2 Sigma grad log p by autograd, and Cov = sigma^2 dD/dx Sigma."""
    for name in MORE:
        for shape in SHAPES:
            for sigma in (0.3, 2.0):
                one, d = noise(name, 0.8), math.prod(shape)
                oracle = world(shape, kind)
                coloured = make(oracle, one)
                x = (oracle.sample(5, stream(2, "x")) + sigma).requires_grad_()
                (score,) = torch.autograd.grad(coloured.log_density(x, sigma).sum(), x)
                S = torch.from_numpy(sigma**2 * covariance(name, 0.8, shape))
                D = x.reshape(5, d) + score.reshape(5, d) @ S
                close = {"rtol": 0.0, "atol": 100 * 1e4 * d**2 * U * float(x.detach().abs().max())}
                found = coloured.denoise(x, sigma)
                torch.testing.assert_close(found.reshape(5, d), D, **close)
                torch.testing.assert_close(coloured.score(x, sigma), score, **close)
                J = torch.autograd.functional.jacobian(
                    lambda y, c=coloured, s=sigma: c.denoise(y, s).sum(0).flatten(), x
                )
                J = J.reshape(d, 5, d).transpose(0, 1)
                cov = coloured.covariance(x, sigma)
                torch.testing.assert_close(J @ S, cov, **close)
                trace = coloured.covariance_trace(x, sigma)
                torch.testing.assert_close(trace, (J @ S).diagonal(dim1=1, dim2=2).sum(1), **close)


@pytest.mark.slow
def test_the_answers_are_those_of_gaussian_algebra() -> None:
    law_exact(CorrelatedOracle)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixture", "round", "gaussian", "empirical"])
def test_tweedie_holds_with_the_covariance(kind: str) -> None:
    law_tweedie(CorrelatedOracle, kind)


class Untouched(CorrelatedOracle):
    """White noise."""

    def __init__(self, oracle: Oracle, colour: Noise) -> None:
        super().__init__(oracle, WHITE)


class Halved(CorrelatedOracle):
    """Sigma where its root belongs."""

    def _power(self, y: Tensor, p: float) -> Tensor:
        return super()._power(y, 2 * p)


class Unnormalised(CorrelatedOracle):
    """Without the determinant: the score is right and the density is not."""

    def log_density(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return super().log_density(x, sigma) - self.log_det


class Mean(CorrelatedOracle):
    """One offset for all channels."""

    def __init__(self, oracle: Oracle, colour: Noise) -> None:
        one = dataclasses.replace(colour, z_shape=lambda shape: (1,) * len(shape))
        super().__init__(oracle, one if colour.name == "offset" else colour)


@pytest.mark.parametrize("mutant", [Untouched, Halved, Unnormalised, Mean])
def test_wrong_answers_are_caught(mutant: Make) -> None:
    with pytest.raises(AssertionError):
        law_exact(mutant)


@pytest.mark.parametrize("mutant", [Untouched, Mean])
def test_tweedie_with_another_covariance_is_caught(mutant: Make) -> None:
    with pytest.raises(AssertionError):
        law_tweedie(mutant)


def test_the_coloured_oracle_samples_the_data() -> None:
    oracle = world((2, 3))
    one = CorrelatedOracle(oracle, default_registry().noise("offset", strength=3.0))
    # The same draws, to and fro by Sigma^(1/2): its condition is 10, so that 100 u are enough.
    found, expected = (o.sample(50_000, stream(0, "s")).reshape(-1, 6) for o in (one, oracle))
    error = expected.std(0) / 50_000**0.5
    assert bool(((found.mean(0) - expected.mean(0)).abs() <= 2**0.5 * Z * error).all())


# --- what training tends to ---------------------------------------------------------------------

Limit = Callable[..., Tensor]


def law_limit(limit: Limit) -> None:
    """The minimiser of |F - F*|^2 over functions of x, by regression on draws.

    Data and noise are Gaussian, so E[F*|x] is linear in x: least squares over N draws of (x, F*)
    give it with its own standard errors.
    """
    oracle, sigma, sd, N = world((3,), "gaussian"), 0.6, 0.9, 200_000
    for name in (*KINDS, "hidden"):
        one, g = noise(name, 0.9), stream(3, "limit")
        x0 = oracle.sample(N, g)
        n, target = one.pair(torch.randn(N, 3, generator=g, dtype=torch.float64), (3,), g)
        x = x0 + sigma * n
        design = torch.cat([x, torch.ones(N, 1, dtype=torch.float64)], 1)
        probe = x[:4]
        for kind in FIVE:
            p = default_registry().parameterization(kind)
            a, b = p.pair_weights(torch.tensor(sigma), sigma_data=sd)
            F = a * x0 + b * target
            fit = torch.linalg.lstsq(design, F)
            at = torch.cat([probe, torch.ones(4, 1, dtype=torch.float64)], 1)
            D = p.denoise(at @ fit.solution, probe, sigma, sigma_data=sd)
            # Of a prediction: residual deviation times sqrt(h), h its leverage; times |c_out|.
            h = (at @ torch.linalg.inv(design.mT @ design) * at).sum(1).sqrt()
            spread = (F - design @ fit.solution).std(0)
            out = float(p.coefficients(torch.tensor(sigma), sigma_data=sd).out.abs())
            error = out * h[:, None] * spread
            found = limit(one, oracle, p, probe, sigma, sd)
            assert bool(((found - D).abs() <= Z * error + 1e-12).all()), (name, kind)


@pytest.mark.slow
def test_training_tends_to_the_stated_denoiser() -> None:
    law_limit(training_optimum)


def white_limit(one: Noise, oracle: Oracle, p: Any, x: Tensor, sigma: float, sd: float) -> Tensor:
    return oracle.denoise(x, sigma)


def no_skip(one: Noise, oracle: Oracle, p: Any, x: Tensor, sigma: float, sd: float) -> Tensor:
    return CorrelatedOracle(oracle, one).denoise(x, sigma)


def kept_for_lost(one: Noise, oracle: Oracle, p: Any, x: Tensor, sigma: float, sd: float) -> Tensor:
    D_n = CorrelatedOracle(oracle, one).denoise(x, sigma)
    skip = p.coefficients(torch.tensor(sigma), sigma_data=sd).skip
    return D_n + one.regression((3,)) * skip * (x - D_n)


def all_lost(one: Noise, oracle: Oracle, p: Any, x: Tensor, sigma: float, sd: float) -> Tensor:
    """As if what z does not move were lost too: right where z is of a coordinate."""
    D_n = CorrelatedOracle(oracle, one).denoise(x, sigma)
    skip = p.coefficients(torch.tensor(sigma), sigma_data=sd).skip
    return D_n + (1 - one.regression((3,))) * skip * (x - D_n)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [white_limit, no_skip, kept_for_lost, all_lost])
def test_another_limit_is_caught(mutant: Limit) -> None:
    with pytest.raises(AssertionError):
        law_limit(mutant)


@pytest.mark.slow
@given(sigma=st.floats(1e-3, 1e3), strength=st.floats(0, 2))
def test_only_c_skip_of_zero_keeps_the_denoiser_under_perturbation(
    sigma: float, strength: float
) -> None:
    oracle, one = world((3,)), default_registry().noise("perturbed", strength=strength)
    x = oracle.sample(4, stream(0, "x")) + sigma
    x0, eps = (default_registry().parameterization(name) for name in ("x0", "eps"))
    exact = CorrelatedOracle(oracle, one).denoise(x, sigma)
    assert torch.equal(training_optimum(one, oracle, x0, x, sigma, 1.0), exact)
    off = training_optimum(one, oracle, eps, x, sigma, 1.0) - exact
    expected = strength**2 / (1 + strength**2) * (x - exact)
    size = float((x.abs() + exact.abs()).max())
    torch.testing.assert_close(off, expected, rtol=0, atol=16 * U * size)


# --- training -----------------------------------------------------------------------------------


def with_noise(one: Noise, name: str = "eps", **options: Any) -> Trainer:
    """A trainer whose objective has the noise."""

    class Noisy(Trainer):
        def __init__(self, denoiser: Any, objective: Objective, *rest: Any) -> None:
            super().__init__(denoiser, dataclasses.replace(objective, noise=one), *rest)

    return trainer(name, made=Noisy, **options)


def test_a_step_sees_n_in_x_and_its_target_is_as_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """x - x0 over sigma is n, for every draw of a run; the target's noise is n or eps."""
    genuine = trainers.losses
    for name in ("white", *KINDS):
        one, seen = NOISES[name].bound({}), []

        def spy(network: Any, objective: Any, x0: Tensor, eps: Tensor, at: SigmaFunctions,
                *rest: Any, seen: Any = seen) -> Tensor:  # fmt: skip
            def watched(scaled: Tensor, c_noise: Tensor, condition: Any) -> Tensor:
                x = scaled / per_sample(at.c_in, x0)
                seen.append(((x - x0) / per_sample(at.sigma, x0), eps, at.sigma, x0))
                return network(scaled, c_noise, condition)

            return genuine(watched, objective, x0, eps, at, *rest)

        monkeypatch.setattr(trainers, "losses", spy)
        run = with_noise(one, steps=3)
        list(run)
        block = trainers.draws(run.seed, 0, run.training.batch, len(run.samples), (2,))
        n, target = trainers.noise_pair(one, run.seed, 0, block.eps)
        for step, (found, eps, sigma, x0) in enumerate(seen):
            assert torch.equal(eps, target[step])
            # x = x0 + sigma n was rounded thrice at its own size, and is divided by sigma.
            size = (x0.abs() + sigma[:, None] * n[step].abs()) / sigma[:, None]
            assert bool(((found - n[step]).abs() <= 8 * 2.0**-24 * size).all())


@pytest.mark.slow
def test_white_noise_changes_no_bit() -> None:
    runs = [trainer(steps=BLOCK), with_noise(WHITE, steps=BLOCK)]
    for one in runs:
        list(one)
    assert same(runs[0].ema, runs[1].ema)


@pytest.mark.parametrize("name", KINDS)
def test_noise_changes_a_run_and_batches_as_one_by_one(name: str) -> None:
    """One step of a batch is one of each alone: its sums in another order, 100 u of the weights."""
    one = default_registry().noise(name, strength=0.5)
    alone = [with_noise(one, kind, steps=1) for kind in ("eps", "x0")]
    many = Batch(
        [
            TrainingJob(t.denoiser, t.objective, t.training, t.seed)
            for t in (with_noise(one, kind, steps=1) for kind in ("eps", "x0"))
        ],
        data(),
        torch.device("cpu"),
    )
    for _ in many.windows():
        pass
    for k, run in enumerate(alone):
        (row,) = run
        white = trainer(run.objective.parameterization.name, steps=1)
        (other,) = white
        assert row.gradient_norm != other.gradient_norm
        gap = (many.weights.G[k] - run.weights.G[0]).abs().max()
        assert float(gap) <= 100 * 2.0**-24 * float(run.weights.G.abs().max())


def test_trials_of_other_noise_are_not_batched() -> None:
    some = [with_noise(n, steps=1) for n in (WHITE, default_registry().noise("offset"))]
    with pytest.raises(InputError, match="their noises differ"):
        Batch([TrainingJob(t.denoiser, t.objective, t.training, t.seed) for t in some], data(),
              torch.device("cpu"))  # fmt: skip


def test_the_scale_is_the_loss_of_the_noise_that_is_taught() -> None:
    """At F = 0 the loss of eps is the variance of the target's noise."""
    for name in ("white", *KINDS):
        one = NOISES[name].bound({"strength": 2.0} if name != "white" else {})
        run = with_noise(one, weighting=None, loss=default_registry().loss("l2", space="eps"))
        # The mean of 8192 x 2 squares whose two share a z: standard error below sqrt(4/8192) v.
        assert run.scale == pytest.approx(one.variance, rel=Z * math.sqrt(4 / 8192))


# --- names and options --------------------------------------------------------------------------


def test_wrong_names_and_strengths_are_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'offset'"):
        default_registry().noise("ofset")
    with pytest.raises(InputError, match="strength = -1 must be at least 0"):
        default_registry().noise("offset", strength=-1.0)
    with pytest.raises(InputError, match="strength"):
        default_registry().noise("white", strength=0.1)
    assert testbed.registry.default_registry().noise("offset", strength=0.2).strength == 0.2


@pytest.mark.parametrize(
    ("z_shape", "said"),
    [
        (lambda shape: (2, *shape[1:]), r"must return \(3, 4\) with ones in it, got '\(2, 4\)'"),
        (lambda shape: (1,), r"must return 2 numbers, \(3, 4\) with ones in it, got a tuple of 1"),
        (lambda shape: 1, r"with ones in it, got 1"),
        (lambda shape: shape[7], r"z_shape raised IndexError"),
    ],
)
def test_a_shape_that_z_cannot_have_is_refused(
    z_shape: Callable[[tuple[int, ...]], Any], said: str
) -> None:
    with pytest.raises(ComponentError, match=f"noise 'mine': .*{said}"):
        Noise("mine", z_shape).bound({}).shape_of_z((3, 4))
