"""Parts that are used together: conditions with a likelihood, a bound, a learned variance."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import studies
from helpers.conditional import data, exact
from helpers.studies import LEARNED_VARIANCE, ONE_TRIAL
from torch import Tensor, nn

import testbed
from testbed.diffusion.ddpm import Chain, NoPosterior, large
from testbed.errors import InputError
from testbed.metrics import denoising, likelihood
from testbed.oracles import Conditional, Mixture
from testbed.random import stream
from testbed.registry import default_registry
from testbed.sampling.guidance import ConditionedDenoiser
from testbed.trial import worker
from testbed.trial.folders import TrialFolder

CPU = torch.device("cpu")
Z = 5.0


# --- the exact conditional density --------------------------------------------------------------


def law_conditional_density(log_density: Callable[..., Tensor]) -> None:
    """log p(x|y) of each row is that of the components that have its classes, one row at a time.

    The same sums in both, but for the order of rows: to the last digits of a logsumexp.
    """
    one = data().conditional
    assert one is not None
    x = data().test[:40].double()
    for names in (["label"], ["group"], ["label", "group"], []):
        condition = {name: y[:40] for name, y in data().condition("test", names).items()}
        condition = {name: y.where(torch.arange(40) % 3 > 0, -1) for name, y in condition.items()}
        sigma = torch.linspace(0.05, 2.0, 40, dtype=torch.float64)
        found = log_density(one, x, sigma, condition or None)
        for i in range(40):
            alone = one.given({name: int(y[i]) for name, y in condition.items()})
            expected = alone.log_density(x[i : i + 1], sigma[i : i + 1])
            assert float(found[i]) == pytest.approx(float(expected), rel=1e-13)


def shuffled(one: Conditional, x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
    return one.log_density(x, sigma, condition).sort().values


def unconditional(one: Conditional, x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
    return one.oracle.log_density(x, sigma)


def test_the_conditional_density_is_that_of_its_components() -> None:
    law_conditional_density(Conditional.log_density)


@pytest.mark.parametrize("mutant", [shuffled, unconditional])
def test_a_wrong_conditional_density_is_caught(mutant: Callable[..., Tensor]) -> None:
    with pytest.raises(AssertionError):
        law_conditional_density(mutant)


# --- likelihood and bound given the classes -----------------------------------------------------


@functools.cache
def measured(steps: int, *names: str) -> dict[str, testbed.MetricValue]:
    """The likelihood of the exact denoiser given these conditions."""
    settings: dict[str, Any] = {"samples": 60, "steps": steps, "divergence": "exact", "probes": 1}
    of = list(names)
    return likelihood.held_out(exact(), data(), 0.05, 60.0, CPU, **settings, conditions=of)


@pytest.mark.slow
@pytest.mark.parametrize("names", [["label"], ["label", "group"]])
def test_the_exact_conditional_denoiser_has_no_gap_given_the_classes(names: list[str]) -> None:
    """Its log p(x|y) is that of the components, but for Heun's step and the prior.

    Heun's error falls by four with twice the steps: what is left of it is a third of what the last
    doubling changed. The prior is centred and the density at sigma_max is about a mean of size R:
    log p is off by R z/sigma_max a point, z normal, the mean of N points by a root of N less, and
    per dimension. Without the classes it is another density: the information that a label has.
    """
    assert isinstance(data().oracle, Mixture)
    R = float(data().oracle.m.norm(dim=1).max())  # type: ignore[union-attr]
    prior = Z * R / 60.0 / math.sqrt(60) / 16
    given, plain = measured(192, *names), measured(192)
    for found, coarse in ((given, measured(96, *names)), (plain, measured(96))):
        gap = found["nll_gap"].value
        assert abs(gap) <= abs(coarse["nll_gap"].value - gap) + prior
    # I(x; y)/d of four classes with weights 0.35, 0.25, 0.25, 0.15 that hardly overlap.
    pi = torch.tensor([0.35, 0.25, 0.25, 0.15])
    information = float(-(pi * pi.log()).sum()) / 16
    error = given["nll"].error + plain["nll"].error
    assert plain["nll"].value - given["nll"].value == pytest.approx(information, abs=Z * error)


@pytest.mark.slow
def test_the_bound_is_given_the_classes() -> None:
    """Against the sum of the chain's terms for the denoiser of each class alone."""
    chain = Chain(default_registry().table("ddpm", n=20, start=0.01, end=0.5).sigmas)
    x0 = data().test[:30].double()
    label = data().condition("test", ["label"])["label"][:30]
    found = chain.elbo(ConditionedDenoiser(exact(), {"label": label}), x0, stream(0, "e")).total
    one = data().conditional
    assert one is not None
    for y in range(4):
        alone: Mixture = one.given({"label": y})
        expected = chain.elbo(alone.denoise, x0, stream(0, "e")).total
        rows = label == y
        # Float32 c_in and c_noise are not in the way of an exact denoiser: float64 throughout.
        torch.testing.assert_close(found[rows], expected[rows], rtol=1e-9, atol=1e-9)


# --- a learned variance under a condition -------------------------------------------------------


class ByLabel(nn.Module):
    """F = 0 and nu = the label."""

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        label = torch.zeros(len(x)) if condition is None else condition["label"]
        nu = label.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)
        return torch.cat([torch.zeros_like(x), nu], 1)


def learned() -> testbed.Denoiser:
    p = default_registry().parameterization("eps")
    table = default_registry().table("ddpm", n=20, start=0.01, end=0.5)
    return testbed.Denoiser(ByLabel(), p, 1.0, table=table, learned_variance=True)


def test_a_conditional_model_is_sampled_with_its_own_variance() -> None:
    """nu = 1 is the large variance, nu = -1 would be the small one."""
    denoiser, x = learned(), torch.ones(2, 3)
    given = ConditionedDenoiser(denoiser, {"label": torch.tensor([1, 1])})
    sigma, sigma_next = float(denoiser.table.sigmas[9]), float(denoiser.table.sigmas[8])  # type: ignore[union-attr]
    _, variance = given.posterior(x, sigma, sigma_next)
    assert float(variance[0, 0]) == pytest.approx(large(sigma, sigma_next), rel=8 * 2.0**-24)
    _, other = denoiser.posterior(x, sigma, sigma_next)
    assert float(other[0, 0]) != float(variance[0, 0])
    with pytest.raises(NoPosterior):
        ConditionedDenoiser(exact(), None).posterior(x, sigma, sigma_next)


LEARNED = ONE_TRIAL.replace("gaussian", "mixture").replace(
    "[base]\n", f"[base]\n{LEARNED_VARIANCE}"
)
planned = partial(studies.planned, LEARNED.replace("gaussian", "mixture"))


@pytest.mark.slow
def test_a_learned_variance_with_conditions_trains_and_is_measured(tmp_path: Path) -> None:
    (one,) = planned(
        tmp_path, "conditions.label=0.1", "evaluation.likelihood={samples=8, steps=8}"
    ).trials
    at = tmp_path / "trial"
    assert worker.run(one.config, at) == "finished", (at / "error.txt").read_text()
    metrics = TrialFolder.at(at).result()["metrics"]
    assert {"elbo", "nll", "nll_gap", "excess_nats", "excess_dropped_nats"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_guided_sampler_has_no_learned_variance_and_says_so_before(tmp_path: Path) -> None:
    guided = 'evaluation.guidance={name="classifier_free", scale=2.0}'
    with pytest.raises(InputError, match="sample without guidance"):
        planned(tmp_path, "conditions.label=0.1", guided)
    small = 'evaluation.sampler={name="ddpm", variance="small"}'
    assert len(planned(tmp_path, "conditions.label=0.1", guided, small).trials) == 1


# --- noise under a condition --------------------------------------------------------------------


def test_a_conditional_model_has_no_stated_limit() -> None:
    """That of other noise is known for the unconditional oracle: it is not shown in its place."""
    against = denoising.held_out_pairs(data(), denoising.log_spaced(0.05, 5.0, 2), 8, ["label"])
    table = denoising.per_level(exact(), against, CPU, False, default_registry().noise("offset"))
    assert "limit" not in table
