"""Laws of the sample metrics with outside truth, and the mutants that each must reject.

Where a law is statistical, it accepts five standard errors of its own mean, or a p above 1e-4 of
fixed draws.
"""

import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from laws.sample_quality import (
    EPS,
    D,
    N,
    generator,
    law_trees,
    near,
    normal,
)
from mutants.sample_quality_laws import (
    RATIOS,
)
from scipy import stats
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import testbed
from testbed.components.metric import MetricValue
from testbed.data.synthetic import gaussian
from testbed.metrics import (
    classifier,
    distances,
    kernels,
    neighbours,
    projections,
    resampling,
    samples,
)
from testbed.registry import default_registry

# --- energy and MMD: one statistic of a kernel ------------------------------------------------


def test_relabellings_follow_the_stream_whether_or_not_they_are_at_hand() -> None:
    """One stream gives one set of them, and goes on behind them."""
    x, y = normal(40, 3, seed=1), normal(30, 3, seed=2)

    def drawn(seed: int) -> tuple[Tensor, ...]:
        g = generator(seed)
        parts = (kernels.relabelled(x, y, lambda z, w: -torch.cdist(z, w), g).T for _ in range(2))
        return *parts, torch.rand(1, generator=g)

    kernels._labels.cache_clear()
    fresh, other, kept = drawn(0), drawn(1), drawn(0)
    assert kernels._labels.cache_info().hits == 2
    assert all(map(torch.equal, fresh, kept))
    assert not any(
        torch.equal(a[1:], b[1:]) for a, b in ((fresh[0], fresh[1]), (fresh[0], other[0]))
    )
    g = generator(0)
    torch.rand(70, 2 * kernels.PERMUTATIONS, dtype=torch.float64, generator=g)
    assert torch.equal(fresh[2], torch.rand(1, generator=g))


@pytest.mark.parametrize(
    "name", ["precision_gap", "recall_gap", "density_gap", "coverage_gap", "sliced_wasserstein"]
)
def test_a_jackknife_that_remembers_one_side_has_the_bits_of_one_that_does_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gaussian(n=300, test=80, dim=3)
    x = data.train[:70]

    def found() -> MetricValue:
        return default_registry().metric(name).estimate(x, data, generator(0))

    remembered = found()
    monkeypatch.setattr(samples, "lru_cache", lambda size: lambda function: function)
    plain = found()
    assert (plain.value, plain.error) == (remembered.value, remembered.error)


@pytest.mark.slow
def test_p_of_mmd_has_its_level_although_its_kernel_comes_from_the_reference() -> None:
    p = []
    for s in range(300):
        x, y = normal(20, 2, seed=2 * s), normal(30, 2, seed=2 * s + 1)
        p.append(kernels.two_sample(x, y, distances.gaussians(y), generator(s)).p)
    for level in (0.05, 0.1, 0.5):
        low, high = stats.binom.ppf([1e-4, 1 - 1e-4], 300, level)
        assert low <= sum(q <= level + 1e-9 for q in p) <= high


@pytest.mark.slow
def test_mmd_of_gaussians_is_its_closed_form() -> None:
    """E k(x, y) = (h^2/(h^2 + 2))^(D/2) exp(-|m|^2/(2 (h^2 + 2))) for unit Gaussians m apart."""
    D, shift = 2, 1.0
    y = normal(50, D, seed=1)
    median = float(torch.pdist(y).quantile(0.5))
    truth = 0.0
    for b in distances.OCTAVES:
        h2 = (2.0**b * median) ** 2
        mean = (h2 / (h2 + 2)) ** (D / 2)
        truth += 2 * mean * (1 - math.exp(-D * shift**2 / (2 * (h2 + 2)))) / len(distances.OCTAVES)
    k = distances.gaussians(y)
    values = [
        kernels.two_sample(
            normal(20, D, seed=2 * s, mean=shift), normal(25, D, seed=2 * s + 1), k, generator()
        ).value
        for s in range(100, 300)
    ]
    assert near(values, truth)
    assert not near([v / 2 for v in values], truth)


@pytest.mark.slow
def test_energy_of_gaussians_is_its_closed_form() -> None:
    """In one dimension, N(m, 1) and N(0, s^2): E|N(a, v)| is that of a folded normal."""
    m, s = 0.7, 2.0

    def folded(a: float, v: float) -> float:
        return math.sqrt(v) * float(stats.foldnorm(abs(a) / math.sqrt(v)).mean())

    truth = 2 * folded(m, 1 + s**2) - folded(0, 2) - folded(0, 2 * s**2)
    values = []
    for i in range(300):
        x, y = normal(20, 1, seed=2 * i, mean=m), normal(30, 1, seed=2 * i + 1, scale=s)
        values.append(kernels.two_sample(x, y, torch.neg, generator()).value)
    assert near(values, truth)


@pytest.mark.slow
def test_squares_change_a_kernel_statistic_by_rounding_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = normal(31, 4, mean=0.2), normal(43, 4, seed=1)
    whole = kernels.two_sample(x, y, torch.neg, generator())
    for side in (1, 5, 37, 64, 74):
        monkeypatch.setattr(kernels, "SIDE", side)
        found = kernels.two_sample(x, y, torch.neg, generator())
        assert found == pytest.approx(whole, abs=1e-11)


def test_two_rows_have_no_error_and_rows_that_are_not_finite_have_nothing() -> None:
    found = kernels.two_sample(normal(2, 2), normal(5, 2, seed=1), torch.neg, generator())
    assert math.isfinite(found.value)
    assert math.isnan(found.error)
    assert 0 < found.p <= 1
    gone = kernels.two_sample(torch.full((4, 2), math.nan), normal(5, 2), torch.neg, generator())
    assert all(map(math.isnan, gone))


# --- the jackknife by groups ------------------------------------------------------------------


def test_the_error_of_a_mean_is_scipys() -> None:
    x = normal(20)
    assert resampling.mean(x) == pytest.approx(
        (float(x.mean()), stats.sem(x), math.nan), nan_ok=True
    )
    assert math.isnan(resampling.mean(x[:1]).error)


# --- sliced Wasserstein -----------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (5, 12), (100, 64)])
def test_the_coupling_is_scipys(n: int, m: int) -> None:
    """With |a - b| for its square it gives scipy's W_1."""
    a, b = normal(n, seed=2).sort().values, normal(m, seed=3, mean=1.0).sort().values
    i, j, w = projections.coupling(n, m)
    assert float(w.sum()) == pytest.approx(1, rel=8 * EPS)
    truth = stats.wasserstein_distance(a.numpy(), b.numpy())
    assert float(w @ (a[i] - b[j]).abs()) == pytest.approx(truth, rel=1000 * EPS)


def test_sliced_wasserstein_of_a_shift_is_its_mean_over_the_sphere() -> None:
    """E (u . c)^2 = |c|^2 / D; u uniform, so 4000 directions leave sqrt(2/4000) |c|^2/D."""
    D, y = 8, normal(20, 8, seed=1)
    c = normal(D, seed=2)
    u = projections.directions(D, 4000, generator())
    truth = float(c.square().sum()) / D
    found = projections.sliced_wasserstein(y + c, y, u) ** 2
    assert abs(found / truth - 1) < 5 * math.sqrt(2 / 4000)


# --- variances --------------------------------------------------------------------------------


def test_variance_ratios_of_known_covariances() -> None:
    """x ~ N(m, C_x), y ~ N(m, C_y) with common axes: x's variance over y's, along each of them."""
    axes, _ = torch.linalg.qr(normal(3, 3, seed=1))
    a, b = torch.tensor([4.0, 1.0, 0.5]).double(), torch.tensor([1.0, 2.0, 0.5]).double()
    n = 20_000
    x = (normal(n, 3, seed=2) * a.sqrt()) @ axes.T + 7
    y = (normal(n, 3, seed=3) * b.sqrt()) @ axes.T + 7
    found = projections.variance_ratios(x, y, axes)
    # The logarithm of a Gaussian's variance has an error of sqrt(2/n), here of two.
    assert (found.log() - (a / b).log()).abs().max() < 5 * math.sqrt(4 / n)
    U, values = projections.principal(y, 1.0)
    assert (values.log() - b.sort(descending=True).values.log()).abs().max() < 5 * math.sqrt(2 / n)
    assert torch.allclose((U.T @ axes[:, [1, 0, 2]]).abs(), torch.eye(3).double(), atol=0.05)


@pytest.mark.slow
def test_both_variances_have_one_mean() -> None:
    """At N = 3 and M = 4 the corrections for the mean are no small matter."""
    above, below = [], []
    for s in range(2000):
        x, y = normal(3, 1, seed=2 * s), normal(4, 1, seed=2 * s + 1)
        above.append(float((x - y.mean()).square().mean()))
        ratio = float(projections.variance_ratios(x, y, torch.eye(1).double()))
        below.append(above[-1] / ratio)
    assert near([a - b for a, b in zip(above, below, strict=True)], 0.0)
    assert not near([a - 4 / 5 * b for a, b in zip(above, below, strict=True)], 0.0)


def test_components_hold_the_share_asked_for() -> None:
    x = normal(500, 4) * torch.tensor([3.0, 2.0, 1.0, 0.1]).double()
    values = np.linalg.eigvalsh(np.cov(x.numpy().T))[::-1]
    shares = values.cumsum() / values.sum()
    for J in (1, 2, 3):
        U, found = projections.principal(x, float(shares[J - 1]) - 1e-9)
        assert U.shape == (4, J)
        np.testing.assert_allclose(found, values[:J], rtol=1e-12)
    for share in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="share must lie in"):
            projections.principal(x, share)
    with pytest.raises(ValueError, match="all rows are equal"):
        projections.principal(torch.ones(5, 2).double(), 0.9)


# --- precision, recall, density, coverage -----------------------------------------------------


@pytest.mark.parametrize("name", RATIOS)
def test_ratios_are_those_of_trees_in_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 7)
    law_trees(name, RATIOS[name])


def test_real_data_have_the_coverage_and_the_density_that_they_must() -> None:
    """Whatever the distribution, here normal and log-normal."""
    values = [
        neighbours.density(normal(20, 2, seed=2 * s).exp(), normal(30, 2, seed=2 * s + 1).exp(), 5)
        for s in range(300)
    ]
    assert near(values, 1.0)


def test_expected_coverage_by_counting() -> None:
    """Of all orders of N samples and M - 1 data around a point, those with a sample in first k."""
    N, M, k = 3, 5, 2
    orders = list(itertools.permutations([1] * N + [0] * (M - 1)))
    share = sum(any(order[:k]) for order in orders) / len(orders)
    assert neighbours.expected_coverage(N, M, k) == pytest.approx(share, rel=4 * EPS)


def test_neighbours_that_there_are_not() -> None:
    for k in (0, 5, 6):
        with pytest.raises(ValueError, match="nearest neighbour needs"):
            neighbours.radii(normal(5, 2), k)


def test_copies_of_one_sample_are_precise_and_recall_nothing() -> None:
    y = normal(100, 2)
    x = y[:1].repeat(60, 1) + 1e-3 * normal(60, 2, seed=1)
    assert neighbours.precision(x, y, 3) == 1
    assert neighbours.recall(x, y, 3) < 0.03
    assert neighbours.coverage(x, y, 3) < 0.1
    assert neighbours.density(x, y, 3) > 0.3


# --- the local manifold -----------------------------------------------------------------------


def test_off_hull_is_the_distance_to_the_hull_of_the_neighbours() -> None:
    """The least squares residual |x - y_1 - sum_j t_j (y_j - y_1)|^2 / D, by scipy."""
    x, y, k = normal(10, 6, mean=0.5), normal(80, 6, seed=1), 4
    tree = NearestNeighbors(n_neighbors=k).fit(y.numpy())
    for found, row in zip(neighbours.off_hull(x, y, k, 1e-9), x.numpy(), strict=True):
        hull = y.numpy()[tree.kneighbors(row[None])[1][0]]
        t, *_ = np.linalg.lstsq((hull[1:] - hull[0]).T, row - hull[0], rcond=None)
        r = row - hull[0] - (hull[1:] - hull[0]).T @ t
        assert float(found) == pytest.approx(float(r @ r) / 6, rel=1e-10)


def test_off_hull_is_zero_on_a_plane_and_unit_noise_is_seen() -> None:
    B, _ = torch.linalg.qr(normal(12, 2, seed=1))
    z, y = normal(30, 2, seed=2), normal(300, 2, seed=3) @ B.T
    assert float(neighbours.off_hull(z @ B.T, y, 4, 1e-9).max()) < (1000 * EPS) ** 2
    noisy = neighbours.off_hull(z @ B.T + 0.01 * normal(30, 12, seed=4), y, 4, 1e-9)
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], 30 * 10) / (30 * 12) * 1e-4
    assert low < float(noisy.mean()) < high
    # Without a resolution, rounding of y spans what it likes.
    rough = y.float().double()
    assert float(
        neighbours.off_hull(z @ B.T + 0.01 * normal(30, 12, seed=4), rough, 4, 1e-5).mean()
    ) == (pytest.approx(float(noisy.mean()), rel=1e-3))
    for k in (1, 13):
        with pytest.raises(ValueError, match="neighbours must be"):
            neighbours.off_hull(z @ B.T, y, k, 0.0)


# --- the classifier ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_classifier_has_its_level_and_its_power() -> None:
    p = [
        classifier.accuracy(
            normal(30, 3, seed=2 * s), normal(30, 3, seed=2 * s + 1), generator(s)
        ).p
        for s in range(200)
    ]
    for level in (0.05, 0.2, 0.5):
        # At most: Bin(200, level) is above this once in 10^5.
        assert sum(q <= level for q in p) <= stats.binom.isf(1e-5, 200, level)
    assert sum(q <= 0.5 for q in p) > stats.binom.isf(1 - 1e-5, 200, 0.3)
    apart = classifier.accuracy(normal(60, 3, mean=9.0), normal(80, 3, seed=1), generator())
    assert apart == (1.0, 0.0, pytest.approx(2.0**-60))


def test_accuracy_of_gaussians_is_bayes() -> None:
    """N(c, 1) against N(0, 1): the best classifier is right with Phi(|c|/2), and logistic is it."""
    found = classifier.accuracy(normal(8000, 2, mean=0.7), normal(8000, 2, seed=1), generator())
    best = stats.norm.cdf(0.7 * math.sqrt(2) / 2)
    # Never above it but for the test half's 8000 draws; 4 parameters cost about 4/(2 * 8000).
    assert abs(found.value - best) < 5 * found.error
    assert found.error == pytest.approx(math.sqrt(found.value * (1 - found.value) / 8000))
    wider = classifier.accuracy(normal(8000, 2, scale=1.5), normal(8000, 2, seed=1), generator())
    # |x|^2 is chi^2_2 (times 9/4): right on either side of where the densities cross.
    cross = 2 * math.log(1.5**2) / (1 - 1 / 1.5**2)
    best = (stats.chi2.cdf(cross, 2) + stats.chi2.sf(cross / 1.5**2, 2)) / 2
    assert abs(wider.value - best) < 5 * wider.error


def test_a_classifier_does_not_mind_the_order_of_rows() -> None:
    x, y = normal(50, 3, mean=0.3), normal(60, 3, seed=1)
    found = classifier.accuracy(x, y, generator())
    assert found == classifier.accuracy(x.flip(0), y.roll(7, 0), generator())
    assert found != classifier.accuracy(x, y, generator(1))
    with pytest.raises(ValueError, match="at least 4 rows"):
        classifier.accuracy(x[:3], y, generator())


# --- what sees what ---------------------------------------------------------------------------

AXES = torch.linalg.qr(normal(D, D, seed=99))[0]
WIDTHS = torch.linspace(1.0, 0.3, D).double()


def real(n: int, seed: int) -> Tensor:
    return (normal(n, D, seed=seed) * WIDTHS) @ AXES.T


def spoilt(kind: str) -> Tensor:
    x = real(N, seed=1)
    if kind == "noise":
        return x + 0.3 * normal(N, D, seed=2)
    if kind == "blur":
        return x @ AXES @ torch.diag(torch.linspace(1.0, 0.7, D).double()) @ AXES.T
    if kind == "shift":
        return x + 0.15
    return x


@pytest.mark.parametrize("kind", ["noise", "blur", "shift"])
def test_a_classifier_sees_noise_blur_and_shift(kind: str) -> None:
    assert classifier.accuracy(spoilt(kind), real(N, seed=3), generator()).p < 1e-3
    assert classifier.accuracy(spoilt("none"), real(N, seed=3), generator()).p > 1e-3


@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_variance_ratios_see_noise_and_blur(kind: str) -> None:
    y = real(N, seed=3)
    floor = projections.off_ratio(spoilt("none"), y, AXES)
    assert projections.off_ratio(spoilt(kind), y, AXES) > 1.5 * floor
    ratios = projections.variance_ratios(spoilt(kind), y, AXES)
    assert (float(ratios[D // 2 :].mean()) > 1) == (kind == "noise")


def modes(n: int, seed: int, dropped: bool = False) -> Tensor:
    """Five modes in the plane; without the one at the origin, mean and covariance hardly change."""
    centres = torch.tensor([[0, 0], [4, 4], [4, -4], [-4, 4], [-4, -4]]).double()
    which = torch.randint(int(dropped), 5, (n,), generator=generator(seed))
    return centres[which] + 0.3 * normal(n, 2, seed=seed + 1000)


def test_a_dropped_mode_is_seen_by_mmd_recall_and_coverage() -> None:
    x, y, same = modes(N, 1, dropped=True), modes(N, 2), modes(N, 3)
    k = distances.gaussians(y)
    assert kernels.two_sample(x, y, k, generator()).p == 1 / 200
    assert kernels.two_sample(same, y, k, generator()).p > 1 / 200
    expected = neighbours.expected_coverage(N, N, 5)
    assert neighbours.coverage(x, y, 5) < expected - 0.1
    assert neighbours.recall(x, y, 3) < neighbours.recall(same, y, 3) - 0.1
    assert neighbours.precision(x, y, 3) > 0.9


def test_wrong_higher_moments_are_seen_by_mmd_and_not_by_the_classifier() -> None:
    """Two points at +-1, blurred, against a Gaussian of the same mean and variance."""
    signs = 2.0 * torch.randint(2, (N, 2), generator=generator(1)) - 1
    x = (signs + 0.3 * normal(N, 2, seed=2)) / math.sqrt(1.09)
    y = normal(N, 2, seed=3)
    assert kernels.two_sample(x, y, distances.gaussians(y), generator()).p == 1 / 200
    assert classifier.accuracy(x, y, generator()).p > 1e-3


# --- as components ----------------------------------------------------------------------------


def test_a_metric_may_state_its_error_and_its_p() -> None:
    stating = testbed.Metric("a", lambda x, data, g: MetricValue(torch.tensor(2.0), 0.5))
    assert stating(torch.ones(2), None, generator()) == 2.0
    found = stating.estimate(torch.ones(2), None, generator())
    assert (found.value, found.error) == (2.0, 0.5)
    assert type(found.value) is float
    assert math.isnan(found.p)
    plain = testbed.Metric("b", lambda x, data, g: 3).estimate(torch.ones(2), None, generator())
    assert plain == (
        3.0,
        pytest.approx(math.nan, nan_ok=True),
        pytest.approx(math.nan, nan_ok=True),
    )
    with pytest.raises(testbed.errors.InputError, match="a number or a MetricValue"):
        testbed.Metric("c", lambda x, data, g: MetricValue("x")).estimate(None, None, None)


@pytest.mark.slow
def test_every_metric_has_an_error_of_the_size_of_its_spread() -> None:
    """Between real samples; the jackknife's is above it, up to twice (Efron and Stein 1981)."""
    registry = default_registry()
    names = ("energy", "mmd", "sliced_wasserstein", "c2st", "precision_gap", "recall_gap",
             "density_gap", "coverage_gap", "variance_ratio", "nearest_test")  # fmt: skip
    for name in names:
        metric, found = registry.metric(name), []
        for s in range(12):
            data = gaussian(dim=4, n=200, test=150, data_seed=s)
            found.append(metric.estimate(data.train[:100], data, generator(s)))
        spread = statistics.stdev(one.value for one in found)
        error = math.sqrt(statistics.fmean(one.error**2 for one in found))
        # A standard deviation of 12 is within 0.45 to 1.75 of the truth but once in 1000 times.
        assert 0.45 < error / spread < 2 * 1.75 / 0.8, name
        assert (name in ("energy", "mmd", "c2st")) != math.isnan(found[0].p)
