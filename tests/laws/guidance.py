"""Laws of guidance and of conditional distributions."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from helpers.bounds import assert_within, gamma
from helpers.published import SGM
from helpers.strategies import draws, float64
from scipy import stats
from torch import Tensor

from testbed.components.guidance import Condition
from testbed.oracles import Conditional, Gaussian, Mixture
from testbed.random import stream
from testbed.sampling.guidance import ClassifierFree

Free = Callable[..., Callable[[Tensor, Tensor], Tensor]]
BASE, FIRST, SECOND = (torch.tensor([k]) for k in (-1, 0, 1))


def fields(dtype: torch.dtype, seed: int = 0) -> dict[int, Tensor]:
    """D of nothing (-1) and of two classes, (5, 3)."""
    return {k: draws((5, 3), 100 * seed + k + 1, dtype) for k in (-1, 0, 1)}


def table(found: Mapping[int, Tensor], asked: list[int] | None = None) -> Any:
    """The denoiser that gives those."""

    def denoiser(x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        given = BASE if condition is None else condition["label"]
        classes = given.expand(len(x)).tolist()
        if asked is not None:
            asked.extend(dict.fromkeys(classes))
        rows = len(found[-1])
        return torch.stack([found[k][i % rows] for i, k in enumerate(classes)])

    return denoiser


def law_interpolates(free: Free) -> None:
    """D_n + sum_i w_i (D_i - D_n); a weight of 1 or 0 gives one of them, bit for bit."""
    D, x, sigma = fields(torch.float64), torch.zeros(5, 3).double(), torch.ones(5)
    for w in (-1.0, 0.0, 0.5, 1.0, 2.0, 7.5):
        for negative, n in ((None, -1), ({"label": SECOND}, 1)):
            found = free(table(D), [({"label": FIRST}, w)], negative)(x, sigma)
            wanted = D[n] + w * (D[0] - D[n])
            terms = (1 + 2 * abs(w)) * (D[n].abs() + D[0].abs())
            assert_within(found, wanted, terms, 6)
            if w in (0, 1):
                assert torch.equal(found, D[0] if w else D[n])
        both = free(table(D), [({"label": FIRST}, w), ({"label": SECOND}, -w / 2)], None)(x, sigma)
        wanted = D[-1] + w * (D[0] - D[-1]) - w / 2 * (D[1] - D[-1])
        terms = (1 + 4 * abs(w)) * (D[-1].abs() + D[0].abs() + D[1].abs())
        assert_within(both, wanted, terms, 10)


def law_guides_within(free: Free) -> None:
    """Within (low, high] it is guidance everywhere, elsewhere it is D_i; a level each sample."""
    D, x = fields(torch.float64), torch.zeros(5, 3).double()
    sigma = float64([0.1, 0.5, 1.0, 2.0, 3.0])
    terms = [({"label": FIRST}, 3.0)]
    for levels in (sigma, sigma[:1].expand(5), sigma[2:3].expand(5)):
        found = free(table(D), terms, None, (0.5, 2.0))(x, levels)
        everywhere = free(table(D), terms, None)(x, levels)
        inside = (levels > 0.5) & (levels <= 2.0)
        assert torch.equal(found, torch.where(inside[:, None], everywhere, D[0]))


MEANS = float64([[-1.4, 0.3, 0.0], [0.2, 1.2, 0.5], [1.3, -0.2, -1.0], [0.1, -1.1, 0.4]])
SPREADS = float64([[0.3, 0.5, 0.2], [0.6, 0.2, 0.4], [0.1, 0.7, 0.3], [0.4, 0.4, 0.9]])
PI = float64([0.4, 0.3, 0.2, 0.1])
COMPONENTS = {
    "label": torch.arange(4),
    "group": torch.tensor([0, 1, 1, 0]),
    "caption": float64([[0.5, 0.5, 0], [0.25, 0, 0.75], [0, 0, 1], [0.1, 0.2, 0.7]]),
}
P = {  # p(y|k), (K, C)
    "label": torch.eye(4, dtype=torch.float64),
    "group": float64([[1, 0], [0, 1], [0, 1], [1, 0]]),
    "caption": COMPONENTS["caption"],
}
LEVELS = [1e-2, 0.3, 1.0, 5.0, 80.0]


def mixture() -> Mixture:
    return Mixture(MEANS, weights=PI, covariances=torch.diag_embed(SPREADS**2))


def conditional() -> Conditional:
    return Conditional(mixture(), COMPONENTS)


def points(sigma: float, n: int = 40) -> tuple[Tensor, Tensor]:
    """x at a level, and the component it is of."""
    x0, k = mixture().sample_labelled(n, stream(0, "points"))
    return x0 + sigma * draws(tuple(x0.shape), 3), k


def of_component(k: int) -> Gaussian:
    return Gaussian(MEANS[k], torch.diag(SPREADS[k] ** 2))


def log_joint(x: Tensor, sigma: float) -> Tensor:
    """log pi_k + log N(x; m_k, S_k + sigma^2) by scipy, (B, K)."""
    columns = [
        math.log(float(PI[k]))
        + stats.norm.logpdf(x.numpy(), MEANS[k].numpy(), np.hypot(SPREADS[k].numpy(), sigma)).sum(1)
        for k in range(4)
    ]
    return torch.from_numpy(np.stack(columns, 1))


def condition_of(log: Tensor) -> Tensor:
    """The relative error of what passed a softmax: u max|logit| and its own sums, (B, 1)."""
    return gamma(40) * (1 + log.abs().amax(1, keepdim=True))


def law_classes_are_bayes(found: Conditional) -> None:
    """p(y|x) = sum_k p(y|k) p(k, x)/p(x) for labels, groups and captions, and they add up to 1."""
    for sigma in LEVELS:
        x, _ = points(sigma)
        log = log_joint(x, sigma)
        for name, of_component in P.items():
            p = found.log_classes(name, x, sigma).exp()
            wanted = (log[:, :, None] + of_component.log()).logsumexp(1)
            wanted = (wanted - log.logsumexp(1, keepdim=True)).exp()
            assert p.shape == wanted.shape
            assert bool(((p - wanted).abs() <= condition_of(log)).all())
            assert bool(((p.sum(1) - 1).abs() <= condition_of(log)[:, 0]).all())


def law_denoises_given(found: Conditional) -> None:
    """E[x0|x, y] from the Gaussians of each component; all off, it is the mixture's."""
    for sigma in LEVELS:
        x, k = points(sigma)
        log = log_joint(x, sigma)
        mu = torch.stack([of_component(k).denoise(x, sigma) for k in range(4)], 1)
        off = torch.full_like(k, -1)
        some = torch.where(torch.arange(len(k)) % 3 == 0, off, COMPONENTS["group"][k])
        told = torch.multinomial(P["caption"][k], 1, generator=stream(1, "points"))[:, 0]
        for condition in (
            {"label": k},
            {"group": COMPONENTS["group"][k]},
            {"caption": told},
            {"caption": torch.where(some < 0, off, told), "group": some},
            {"label": off, "group": some},
            {"label": torch.where(some < 0, off, k), "group": some},
            {"label": off},
        ):
            given = log
            for name, y in condition.items():
                log_p = P[name].log().T[y.clamp(min=0)]
                given = given + torch.where((y < 0)[:, None], 0.0, log_p)
            r = torch.softmax(given, 1)[..., None]
            wanted, size = (r * mu).sum(1), (r * mu.abs()).sum(1) + mu.abs().amax(1)
            D = found.denoise(x, sigma, condition)
            bound = condition_of(log) * size
            assert bool(((D - wanted).abs() <= bound).all())


def law_total_expectation(found: Conditional) -> None:
    """D = sum_y p(y|x) D_y: what ties the classifier to the denoisers."""
    for sigma in LEVELS:
        x, _ = points(sigma)
        for name, of_component in P.items():
            p = found.log_classes(name, x, sigma).exp()
            y_all = range(of_component.shape[1])
            D_y = torch.stack(
                [found.denoise(x, sigma, {name: torch.full((len(x),), y)}) for y in y_all], 1
            )
            D = (p[..., None] * D_y).sum(1)
            bound = condition_of(log_joint(x, sigma)) * (D_y.abs().sum(1) + 1)
            assert bool(((D - found.denoise(x, sigma)).abs() <= bound).all())


def law_bayes_and_tweedie(guide: Any) -> None:
    """D + l sigma^2 grad log p(y|x) = D + l (D_y - D): both guidances are one where all is exact.

    D_y is of the Gaussian of the component alone. The classifier's gradient is computed from
    r_k and z_k/C_k, whose sizes over sigma^2 bound its rounding.
    """
    exact = conditional()

    def classes(x: Tensor, sigma: Tensor) -> Tensor:
        return exact.log_classes("label", x, sigma)

    for sigma in LEVELS:
        x, y = points(sigma)
        level = torch.full((len(x),), sigma, dtype=torch.float64)
        D = mixture().denoise(x, sigma)
        D_y = torch.stack(
            [of_component(int(k)).denoise(x[i : i + 1], sigma)[0] for i, k in enumerate(y)]
        )
        z = (x[:, None] - MEANS).abs() / (SPREADS**2 + sigma**2)
        size = D.abs() + sigma**2 * z.sum(1) + D_y.abs()
        for scale in (0.5, 1.0, 3.0):
            found = guide(mixture().denoise, classes, y, scale)
            bound = (1 + scale) * condition_of(log_joint(x, sigma)) * size
            assert bool(((found(x, level) - (D + scale * (D_y - D))).abs() <= bound).all())
        untouched = guide(mixture().denoise, classes, torch.full_like(y, -1), 2.0)
        assert torch.equal(untouched(x, level), D)


CFG = SGM["cfg"]


def law_reference(scale: float, swapped: bool = False) -> None:
    """generative-models' guider on denoised samples, (1 - w) D_u + w D_c in float64."""
    D_u, D_c = float64(CFG["uncond"]), float64(CFG["cond"])
    if swapped:
        D_u, D_c = D_c, D_u
    given = {"label": torch.zeros(len(D_u), dtype=torch.int64)}
    guided = ClassifierFree(table({-1: D_u, 0: D_c}), [(given, scale)])
    found = guided(torch.zeros_like(D_u), torch.ones(len(D_u)))
    # Both round 1 - w, two products and a sum: four times, at most at this size.
    size = (1 + CFG["scale"]) * (D_u.abs() + D_c.abs())
    assert bool(((found - float64(CFG["out"])).abs() <= 2 * gamma(4) * size).all())
