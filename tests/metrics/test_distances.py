"""Laws of the sample distances, each with outside truth, and the mutants that each must reject;
and the errors per noise level against their formulas in NumPy.

Brute force is written with Python's loops over pairs and math.dist: no torch, no blocks, no matrix
products.
"""

import dataclasses
import math
import statistics

import numpy as np
import pandas as pd
import pytest
import torch
from laws.distances import (
    CLOSE,
    EPS,
    Distance,
    brute_mmd,
    energy,
    example,
    generator,
    mmd,
    nearest,
    normal,
    off_plane,
    plane,
    rows,
)
from scipy import stats
from torch import Tensor

import testbed
from testbed.data import Data
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics import denoising, distances
from testbed.oracles import Gaussian
from testbed.registry import default_registry

# --- brute force, and with it the mutants -----------------------------------------------------


def brute_nearest(samples: Tensor, data: Tensor) -> float:
    return statistics.fmean(min(math.dist(x, y) for y in rows(data)) for x in rows(samples))


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [mmd, energy, nearest])
@pytest.mark.parametrize("block", [1, 5, 64])
def test_blocks_change_nothing(
    distance: Distance, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = normal(31, 4, seed=7, mean=0.5), normal(43, 4, seed=8)
    whole = distance(x, y)
    monkeypatch.setattr(distances, "BLOCK", block)
    # Terms of order one cancel: an absolute bound.
    assert distance(x, y) == pytest.approx(whole, abs=CLOSE)


@pytest.mark.parametrize("distance", [mmd, energy, nearest])
def test_shift_and_rotation_change_nothing(distance: Distance) -> None:
    x, y = normal(40, 6, seed=9, scale=1.2), normal(50, 6, seed=10)
    q, _ = torch.linalg.qr(normal(6, 6, seed=11))
    # An offset of 1e6 rounds the data themselves to 1e6 EPS / 2 = 1e-10; uncentred squares would
    # round to 1e12 EPS = 2e-4.
    assert distance(x @ q + 1e6, y @ q + 1e6) == pytest.approx(distance(x, y), abs=1e-8)


@pytest.mark.parametrize("distance", [mmd, energy, nearest])
def test_float64_inside_and_python_floats_outside(distance: Distance) -> None:
    x, y = (t.float() for t in example())
    value = distance(x, y)
    assert type(value) is float
    assert value == distance(x.double(), y.double())
    assert distance(x.requires_grad_(), y) == value


@pytest.mark.parametrize("distance", [mmd, energy, nearest])
@pytest.mark.parametrize("gone", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("n", [5, 40])
def test_a_diverged_sample_is_nan(distance: Distance, gone: float, n: int) -> None:
    x, y = normal(n, 3), normal(n, 3, seed=1)
    x[2, 1] = gone
    assert math.isnan(distance(x, y))
    with pytest.raises(ValueError, match="not finite"):
        distance(y, x)


@pytest.mark.parametrize("distance", [mmd, energy, nearest])
def test_bad_shapes(distance: Distance) -> None:
    with pytest.raises(ValueError, match="one shape per row"):
        distance(normal(5, 3), normal(5, 4))
    with pytest.raises(ValueError, match="one shape per row"):
        distance(normal(5, 6), normal(5, 2, 3))
    with pytest.raises(ValueError, match="at least"):
        distance(normal(0, 3), normal(5, 3))
    with pytest.raises(ValueError, match="at least"):
        distance(normal(5, 3), normal(0, 3))


@pytest.mark.parametrize("distance", [mmd, energy])
def test_pairs_need_two_rows(distance: Distance) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        distance(normal(1, 3), normal(5, 3))


# --- mmd --------------------------------------------------------------------------------------


def test_mmd_without_a_bandwidth() -> None:
    with pytest.raises(ValueError, match="no bandwidth"):
        mmd(normal(5, 3), torch.ones(5, 3))


def test_mmd_of_samples_far_away() -> None:
    """Equal points out of reach: 1 + 0 and what the reference has within."""
    x, y = torch.full((4, 2), 1e9), normal(10, 2)
    assert 1 < mmd(x, y) < 2
    assert mmd(x, y) == pytest.approx(brute_mmd()(x, y), rel=CLOSE)


def test_mmd_median_of_a_large_sorted_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly spaced rows stand for a reference sorted by class; its first rows would not."""
    y = torch.cat([normal(60, 2, seed=s, mean=20.0 * s, scale=0.1) for s in range(4)])
    x = normal(30, 2, seed=9, mean=10.0)
    whole = mmd(x, y)
    monkeypatch.setattr(distances, "MEDIAN_ROWS", 60)
    # The median distance of this reference is 20 sqrt(2), give or take the spread of a class.
    assert mmd(x, y) == pytest.approx(whole, rel=0.02)
    assert abs(mmd(x, y[:60]) / whole - 1) > 0.1


# --- nearest ----------------------------------------------------------------------------------


def test_nearest() -> None:
    for shape in ((6, 2, 3), (30, 2, 3)):
        x, y = normal(*shape, seed=12, mean=4.0), normal(50, 2, 3, seed=13, mean=4.0)
        assert nearest(x, y) == pytest.approx(brute_nearest(x, y), rel=CLOSE)


def test_nearest_is_not_symmetric() -> None:
    """Samples at one of two data points: near to the data, though not the data to them."""
    data = torch.tensor([[0.0], [8.0]])
    samples = torch.tensor([[1.0], [-2.0]])
    assert nearest(samples, data) == 1.5
    assert nearest(data, samples) == 4.0


# --- off_plane --------------------------------------------------------------------------------


def test_off_plane_on_the_plane_and_off_it() -> None:
    B, _, m = plane()
    z = normal(50, 2, seed=18)
    # |x| <= 15 and the residual is a rounding of it: (20 * 15 EPS)^2.
    assert off_plane(m + z @ B.T, B, m) < (300 * EPS) ** 2
    images = (m + z @ B.T).reshape(50, 3, 4)
    assert off_plane(images, B, m.reshape(3, 4)) < (300 * EPS) ** 2
    # Unit noise leaves (D - k)/D, a chi square of n (D - k) degrees of freedom.
    noisy = off_plane(m + z @ B.T + normal(50, 12, seed=19), B, m)
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], 50 * 10) / (50 * 12)
    assert low < noisy < high
    x = m + z @ B.T
    x[3, 3] = math.inf
    assert math.isnan(off_plane(x, B, m))


def test_off_plane_accepts_what_qr_gives_and_nothing_skew() -> None:
    for dtype in (torch.float32, torch.float64):
        for dimension in (3, 12, 300):
            B, _ = torch.linalg.qr(normal(dimension, 2, seed=20).to(dtype))
            off_plane(normal(4, dimension), B, torch.zeros(dimension))
    B, _, m = plane()
    x = normal(4, 12)
    for skew in (2 * B, B + 1e-6, torch.full_like(B, math.nan)):
        with pytest.raises(ValueError, match="orthonormal"):
            off_plane(x, skew, m)
    for basis, mean in ((B.T, m), (B[:6], m), (B, m[:6]), (B[:, 0], m)):
        with pytest.raises(ValueError, match="need a basis"):
            off_plane(x, basis, mean)
    with pytest.raises(ValueError, match="at least one row"):
        off_plane(x[:0], B, m)


def test_off_plane_of_one_row_and_what_it_says_of_a_wrong_basis() -> None:
    B = torch.eye(3, dtype=torch.float64)[:, :2]
    assert off_plane(torch.tensor([[1.0, 2.0, 3.0]]), B, torch.zeros(3)) == 3.0
    message = r"rows of 4 numbers need a basis \(4, k\) and as long a mean, got \(3, 2\) and \(3,\)"
    with pytest.raises(ValueError, match=message):
        off_plane(normal(2, 4), B, torch.zeros(3))


# --- as components ----------------------------------------------------------------------------


def test_a_metric_passes_its_arguments_and_options_on() -> None:
    def measure(samples: Tensor, data: Tensor, source: torch.Generator, scale: float = 2.0) -> int:
        assert source is chosen
        return int(scale * float(samples.sum() - data.sum()))

    chosen = generator()
    metric = testbed.Metric("difference", measure)
    found = metric.bound({"scale": 3.0})(torch.ones(4), torch.ones(2), chosen)
    assert isinstance(found, float)
    assert (found, metric(torch.ones(4), torch.ones(2), chosen)) == (6.0, 4.0)


def test_a_data_set_is_built_from_its_options() -> None:
    dataset = testbed.Dataset("known", lambda train=40, test=10: known(train, test))
    assert [len(found) for found in (dataset().train, dataset().test)] == [40, 10]
    assert len(dataset.bound({"train": 7})().train) == 7


# --- errors per noise level -------------------------------------------------------------------

MEAN, S = np.array([1.0, -2.0, 0.5]), np.diag([2.0, 1.0, 0.25]) + 0.1


def known(train: int = 40, test: int = 10) -> Data:
    oracle = Gaussian(torch.as_tensor(MEAN), torch.as_tensor(S))
    x0 = oracle.sample(train + test, generator(3)).float()
    return Data(x0[:train], x0[train:], oracle=oracle)


def linear(x: np.ndarray, sigma: float, m: np.ndarray, C: np.ndarray) -> np.ndarray:
    """The best linear denoiser, m + C (C + sigma^2)^-1 (x - m)."""
    return m + (x - m) @ np.linalg.solve(C + sigma**2 * np.eye(len(m)), C)


def test_held_pairs_are_rows_of_the_test_split_in_turn_with_normal_noise() -> None:
    data = known()
    held = denoising.held_out_pairs(data, denoising.log_spaced(0.01, 100.0, 5), 2005)
    # log10 and 10^e: |e| ln 10 < 5 times the roundings of e, and one of each function.
    np.testing.assert_allclose(held.sigma, [0.01, 0.1, 1, 10, 100], rtol=32 * EPS, atol=0)
    order = [data.test.tolist().index(row) for row in held.x0.tolist()]
    assert sorted(order[:10]) == list(range(10)) != order[:10]
    assert order == (order[:10] * 201)[:2005]
    assert held.eps.shape == held.x0.shape
    assert stats.kstest(held.eps.double().flatten().numpy(), "norm").pvalue > 1e-6
    again = denoising.held_out_pairs(known(), denoising.log_spaced(0.01, 100.0, 5), 2005)
    assert torch.equal(held.x0, again.x0)
    assert torch.equal(held.eps, again.eps)
    for draws in (4, 11):
        few = denoising.held_out_pairs(data, denoising.log_spaced(0.01, 100.0, 2), draws)
        assert torch.equal(few.x0, held.x0[:draws])
        assert few.eps.shape == few.x0.shape


def test_held_losses_are_those_of_the_best_linear_denoiser_and_of_the_oracle() -> None:
    data = known()
    held = denoising.held_out_pairs(data, denoising.log_spaced(0.1, 10.0, 3), 25)
    y = data.train.double().numpy()
    m, C = y.mean(0), np.cov(y.T, ddof=0)
    assert held.optimum is not None
    for i, s in enumerate(held.sigma):
        x = (held.x0 + float(s) * held.eps).double().numpy()
        D, x0 = linear(x, float(s), m, C), held.x0.double().numpy()
        # D is rounded to float32: 2 |D - x0| |D| 2^-24, twice that for the square of the rounding.
        allowed = 4 * 2.0**-24 * np.mean(np.abs(D - x0) * np.abs(D))
        assert abs(float(held.wiener[i]) - np.mean((D - x0) ** 2)) <= allowed
        # (C + sigma^2)^-1 has condition below 300, and some 30 roundings of |x| <= 1e2.
        wanted = linear(x, float(s), MEAN, S)
        np.testing.assert_allclose(held.optimum[i], wanted, rtol=0, atol=300 * 30 * 1e2 * EPS)
    assert (
        denoising.held_out_pairs(
            Data(data.train, data.test), denoising.log_spaced(0.1, 10.0, 3), 25
        ).optimum
        is None
    )


def test_held_pairs_cannot_be_changed() -> None:
    held = denoising.held_out_pairs(known(), denoising.log_spaced(0.1, 10.0, 3), 25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        held.wiener = torch.zeros(3)


@pytest.mark.parametrize("truth", [True, False], ids=["oracle", "no oracle"])
def test_errors_per_level_are_the_formulas_of_edm(truth: bool) -> None:
    """Table 1 of Karras et al. 2022 around F = (c_in x)/2 + c_noise, all in float64."""
    n, d, sigma_data = 20, 3, 0.7
    x0, eps, optimum = normal(n, d, seed=1), normal(n, d, seed=2), normal(2, n, d, seed=3)
    sigma, wiener = torch.tensor([0.3, 5.0]).double(), torch.tensor([0.25, 0.75]).double()
    held = denoising.HeldOutPairs(
        sigma, x0, eps, wiener, optimum if truth else None, index=torch.arange(n)
    )
    denoiser = Denoiser(
        lambda x, noise, condition: x / 2 + noise[:, None],
        default_registry().parameterization("edm"),
        sigma_data,
    )
    table = denoising.per_level(denoiser, held, torch.device("cpu"))
    assert len(table) == 2
    for i, (s, row) in enumerate(zip(sigma.tolist(), table.to_dict("records"), strict=True)):
        r = math.hypot(s, sigma_data)
        x = (x0 + s * eps).numpy()
        F = x / r / 2 + math.log(s) / 4
        target = (x0.numpy() - (sigma_data / r) ** 2 * x) * r / (s * sigma_data)
        D = (sigma_data / r) ** 2 * x + s * sigma_data / r * F
        loss = ((D - x0.numpy()) ** 2).mean(1)
        wanted = {
            "sigma": s,
            "loss": loss.mean(),
            "loss_se": stats.sem(loss),
            "wiener": float(wiener[i]),
            "target_rms": np.sqrt((target**2).mean()),
            "output_rms": np.sqrt((F**2).mean()),
            "error_rms": np.sqrt(((F - target) ** 2).mean()),
            "input_rms": np.sqrt((x**2).mean()) / r,
        }
        if truth:
            best = optimum[i].numpy()
            excess = ((D - best) ** 2).mean(1)
            wanted |= {
                "optimum": ((best - x0.numpy()) ** 2).mean(),
                "excess": excess.mean(),
                "excess_se": stats.sem(excess),
            }
        assert row.keys() == wanted.keys()
        # At most 100 roundings, of terms at most 1e2 times the result.
        assert row == pytest.approx(wanted, rel=100 * 1e2 * EPS)


def test_summary_of_curves_with_known_integrals() -> None:
    """excess = sigma^2 log(sigma): the trapezoid rule is exact for d int log(sigma) dlog(sigma)."""
    sigma = np.exp([0.0, 0.5, 2.0])
    curves = {"sigma": sigma, "wiener": [1.0, 2.0, 4.0], "loss": [2.0, 1.0, 32.0]}
    found = denoising.summary(pd.DataFrame(curves), 3)
    # Ratios 2, 1/2 and 8: their geometric mean is 2.
    assert found.keys() == {"loss_vs_wiener"}
    assert found["loss_vs_wiener"].value == pytest.approx(2, rel=16 * EPS)
    with_excess = pd.DataFrame(curves | {"excess": sigma**2 * np.log(sigma)})
    found = denoising.summary(with_excess, 3)
    assert found.keys() == {"loss_vs_wiener", "excess_nats"}
    assert found["excess_nats"].value == pytest.approx(3 * 2.0**2 / 2, rel=64 * EPS)
    assert math.isnan(found["excess_nats"].error)
    # Levels that err together by excess itself: the same integral.
    errors = with_excess.assign(excess_se=with_excess["excess"])
    found = denoising.summary(errors, 3)
    assert found["excess_nats"].error == pytest.approx(3 * 2.0**2 / 2, rel=64 * EPS)
