"""Laws of discrete denoisers: tables, the nearest level, and what is computed at it."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import mpmath
import numpy as np
import torch
from helpers.bounds import assert_within, exact
from helpers.strategies import draws, float64
from laws.parameterizations import TABLE as FORMULAS
from laws.solvers import SGM
from torch import Tensor, nn

import testbed
from testbed.diffusion import noise_levels
from testbed.diffusion.noise_tables import TABLES, NoiseTable
from testbed.registry import default_registry
from testbed.training import batch, trainer
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.training.trainer import TrainingJob

sqrt = np.frompyfunc(mpmath.sqrt, 1, 1)


def law_rescaled_is_algorithm_1(rescaled: Callable[[Tensor], Tensor]) -> None:
    """Zero terminal SNR: Lin et al. 2024, algorithm 1, line by line with 50 digits.

    root' is off by 4 roundings of terms below first (root + last)/(first - last), sigma' by that
    over 1 - root'^2 and over root'.
    """
    for name in TABLES:
        sigmas = default_registry().table(name, n=100).sigmas
        found = rescaled(sigmas)
        bar_sqrt = 1 / sqrt(1 + exact(sigmas) ** 2)
        first, last = bar_sqrt[0], bar_sqrt[-1]
        bar_sqrt = (bar_sqrt - last) * (first / (first - last))
        abar = bar_sqrt**2
        wanted = sqrt((1 - abar[:-1]) / abar[:-1])
        inner = bar_sqrt[:-1]
        terms = wanted * (first * (inner + 2 * last) / (first - last) / inner) / (1 - abar[:-1])
        assert_within(found[:-1], wanted, terms, 16)
        assert float(found[-1]) == noise_levels.TERMINAL, "the last SNR is not 0"


def law_a_file_is_in_the_options(table: NoiseTable) -> None:
    """What a file says is an option: another file, other options; and no file is needed again."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "betas.npy"
        bound = []
        for values in ([0.1, 0.2, 0.4], [0.1, 0.2, 0.5]):
            np.save(file, values)
            bound.append(table.bound({"path": str(file)}))
    first, second = bound
    assert json.dumps(first.options) != json.dumps(second.options), "the files are one trial"
    assert folder not in json.dumps(first.options), "a file that moved would be another trial"
    for one, last in ((first, 0.4), (second, 0.5)):
        again = table.bound(json.loads(json.dumps(one.options)))
        assert torch.equal(again.sigmas, one.sigmas)
        abar = np.cumprod(1 - exact(np.array([0.1, 0.2, last])))
        wanted = sqrt((1 - abar) / abar)
        assert_within(again.sigmas, wanted, wanted, 24)


BETAS_OF_50 = {"num_train_timesteps": 50, "beta_start": 0.001, "beta_end": 0.2}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "linear": {**BETAS_OF_50, "beta_schedule": "linear"},
    "zero SNR": {**BETAS_OF_50, "beta_schedule": "linear", "rescale_betas_zero_snr": True},
    "scaled_linear": {**BETAS_OF_50, "beta_schedule": "scaled_linear"},
    "trained": {**BETAS_OF_50, "beta_schedule": "linear", "trained_betas": [0.1, 0.2, 0.4]},
    "flow": {"num_train_timesteps": 50, "shift": 3.0},
    "flow of a beta scheduler": {
        **BETAS_OF_50, "beta_schedule": "linear", "use_flow_sigmas": True, "flow_shift": 3.0,
    },
}  # fmt: skip


def law_scheduler_is_its_keys(levels: Callable[[dict[str, Any]], Tensor]) -> None:
    """Each configuration by the formula that its keys name, with 50 digits: abar, or the time t'.

    1/sqrt(1 + sigma^2) loses what sigma^2 + 1 does; 200 units hold the sums of 50 logarithms.
    """
    i = exact(np.arange(50))
    beta = exact(0.001) + i / 49 * (exact(0.2) - exact(0.001))
    root_beta = sqrt(exact(0.001)) + i / 49 * (sqrt(exact(0.2)) - sqrt(exact(0.001)))
    roots = {
        "linear": sqrt(np.cumprod(1 - beta)),
        "scaled_linear": sqrt(np.cumprod(1 - root_beta**2)),
        "trained": sqrt(np.cumprod(1 - exact(np.array([0.1, 0.2, 0.4])))),
    }
    first, last = roots["linear"][0], roots["linear"][-1]
    roots["zero SNR"] = (roots["linear"] - last) * (first / (first - last))
    for name, root in roots.items():
        sigmas = levels(SCHEDULERS[name])
        finite = len(root) - (name == "zero SNR")
        assert len(sigmas) == len(root)
        found = 1 / torch.sqrt(1 + sigmas[:finite] ** 2)
        assert_within(found, root[:finite], root[:finite] + 2 * last, 200)
        assert (float(sigmas[-1]) == noise_levels.TERMINAL) == (name == "zero SNR")
    t = (i + 1) / 50
    moved = 3 * t / (1 + 2 * t)
    for name in ("flow", "flow of a beta scheduler"):
        sigmas = levels(SCHEDULERS[name])
        assert len(sigmas) == 50
        assert_within(sigmas[:-1] / (1 + sigmas[:-1]), moved[:-1], moved[:-1], 8)
        assert float(sigmas[-1]) == noise_levels.TERMINAL


FEW = float64([0.1, 0.5, 1.0, 4.0])


def few(nearest: str = "sigma", levels: Tensor = FEW) -> NoiseTable:
    """A table of these levels."""
    return NoiseTable("few", lambda: levels).bound({"nearest": nearest})


def law_index_is_nearest(index: Callable[[Tensor, Tensor, str], Tensor]) -> None:
    """The argmin of |sigma - sigma_i|, or of |log sigma - log sigma_i|, by trying all."""
    for name in ("ddpm", "karras"):
        levels = default_registry().table(name, n=40).sigmas
        sigma = torch.cat([levels, torch.logspace(-4, 3, 400, dtype=torch.float64)])
        for nearest in ("sigma", "log_sigma"):
            a, b = (torch.log(v) if nearest == "log_sigma" else v for v in (sigma, levels))
            wanted = (a[:, None] - b).abs().argmin(1)
            found = index(levels, sigma, nearest)
            assert found.dtype == torch.int64
            assert torch.equal(found, wanted), (name, nearest)


def of_table(levels: Tensor, sigma: Tensor, nearest: str) -> Tensor:
    return few(nearest, levels).index(sigma)


class Tanh(nn.Module):
    """F(y, c_noise) = y A^T + tanh(c_noise/100) b, as in the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.b = float64(SGM["network"]["A"]), float64(SGM["network"]["b"])
        self.seen: list[Tensor] = []

    def forward(self, y: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        self.seen.append(c_noise)
        return y @ self.A.T + torch.tanh(c_noise / 100)[:, None] * self.b


Build = Callable[..., testbed.Denoiser]


def discrete(name: str, t: NoiseTable, c_noise: str = "index") -> testbed.Denoiser:
    p = default_registry().parameterization(name)
    return testbed.Denoiser(Tanh(), p, 0.5, c_noise=c_noise, table=t)


def law_discrete_is_stability(build: Build) -> None:
    """The published indices and denoised values, to the 1e-6 of their float32 table (README)."""
    given, sigma = SGM["discrete_denoiser"], float64(SGM["loss"]["sigma"])
    D = build("eps", default_registry().table("scaled_linear"))
    x = float64(SGM["loss"]["x0"]) + sigma[:, None] * float64(SGM["loss"]["noise"])
    found = D(x, sigma)
    assert isinstance(D.network, Tanh)
    assert D.network.seen[-1].tolist() == given["idx"]
    wanted = np.array(given["denoised"])
    size = np.abs(x.numpy()) + np.abs(wanted)
    assert_within(found, wanted, 0, 1, plus=1e-6 * size)


def law_everything_is_at_the_level(build: Build) -> None:
    """D = c_skip x + c_out F(c_in x, c_noise) with all four at the nearest level, for any sigma."""
    sigma, x = float64([0.13, 0.7, 2.4, 9.0]), 3 * draws((4, 2), 3)
    level, index = float64([0.1, 0.5, 1.0, 4.0]), float64([0, 1, 2, 3])
    for name in ("eps", "v", "edm", "x0"):
        D = build(name, few())
        skip, out, c_in, c_noise = FORMULAS[name](exact(level), exact(0.5))
        for d, seen in ((D, exact(index)), (build(name, few(), "native"), c_noise)):
            F = d.network(
                float64(np.array(c_in, dtype=float))[:, None] * x,
                float64(np.array(seen, dtype=float)),
            )
            X, G = exact(x), exact(F)
            skip_, out_ = (np.reshape(np.broadcast_to(c, 4), (4, 1)) for c in (skip, out))
            wanted = skip_ * X + out_ * G
            terms = np.abs(skip_ * X) + np.abs(out_) * (np.abs(G) + np.abs(X) + 1)
            assert_within(d(x, sigma), wanted, terms, 40)
            score = (wanted - X) / exact(level)[:, None] ** 2
            assert_within(
                d.score(x, sigma), score, (terms + np.abs(X)) / exact(level)[:, None] ** 2, 60
            )
            assert torch.equal(d(x, sigma), d(x, level))


def objective(t: NoiseTable | None, name: str = "v") -> Objective:
    r = default_registry()
    density = r.density("lognormal", sigma_min=0.05, sigma_max=8.0)
    weighting = r.weighting("min_snr")
    return Objective(r.parameterization(name), weighting, r.loss("l2"), density, 0.5, table=t)


class Spied:
    """What reaches the losses, as (sigma, c_noise, k)."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, ...]] = []

    def __call__(self, denoiser: Any, one: Objective, sigma: Tensor) -> Any:
        found = engine_levels_of(denoiser, one, sigma)
        assert found.terms is not None
        self.calls.append((found.sigma, found.c_noise, found.terms.k))
        return found


engine_levels_of = trainer.sigma_functions


def law_training_quantises_before_noising(one: Objective) -> None:
    """In both engines x, c_noise, the weight and the coefficients share one level of the table."""
    t = few()
    data = default_registry().dataset("mixture", dim=2)()
    network = default_registry().network("mlp_index", width=4, depth=1)(data.shape, 0, 0)
    denoiser = testbed.Denoiser(network, one.parameterization, 0.5, c_noise="index", table=t)
    settings = Training(steps=50, batch=16, points=1)
    cpu = torch.device("cpu")
    for home, make in (
        (trainer, lambda: trainer.Trainer(denoiser, one, data, settings, 0, cpu)),
        (batch, lambda: batch.Batch([TrainingJob(denoiser, one, settings, 0)], data, cpu)),
    ):
        spied = Spied()
        with mock.patch.object(home, "sigma_functions", spied):
            list(make().windows())
        sigma, c_noise, k = (
            torch.cat([call[i].flatten() for call in spied.calls]) for i in range(3)
        )
        assert set(sigma.tolist()) == set(FEW.float().tolist())
        assert torch.equal(FEW.float()[c_noise.long()], sigma)
        # min-SNR in x0 space, times c_out^2 = sigma^2/(1 + sigma^2) on the side of F.
        s = FEW[c_noise.long()]
        wanted = torch.clamp(1 / s**2, max=5.0) * s**2 / (1 + s**2)
        assert_within(k, exact(wanted), exact(wanted), 8, torch.float32)
