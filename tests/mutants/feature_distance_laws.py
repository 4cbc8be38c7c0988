"""Mistakes in the distances of feature spaces, each rejected by its law."""

import torch
from laws.feature_distances import (
    Paired,
    law_frechet_closed_form,
    law_frechet_few_rows,
    law_frechet_itself,
    law_frechet_scipy,
    law_kernel_expectation,
    law_kernel_pairs,
    law_lpips_by_hand,
)
from mutants.registry import laws_of, rejected_by
from torch import Tensor

from testbed.metrics import frechet, kernels
from testbed.metrics.features import perceptual


def product_root(S: Tensor, T: Tensor) -> Tensor:
    """tr (S T)^(1/2) by the eigenvalues of the product, which is not symmetric."""
    values: Tensor = torch.linalg.eigvals(S @ T).sqrt().real
    return values.sum()


def by_product(
    x: Tensor,
    y: Tensor,
    correction: int = 1,
    factor: float = 2.0,
    power: float = 1.0,
    mean: float = 2.0,
) -> float:
    S, T = (torch.cov(z.T, correction=correction) for z in (x, y))
    root = product_root(S, T) if power == 1.0 else (S @ T).trace()
    d = torch.linalg.vector_norm(x.mean(0) - y.mean(0)) ** mean
    return float(d + S.trace() + T.trace() - factor * root)


def biased_covariance(x: Tensor, y: Tensor) -> float:
    return by_product(x, y, correction=0)


def half_the_root(x: Tensor, y: Tensor) -> float:
    return by_product(x, y, factor=1.0)


def no_root(x: Tensor, y: Tensor) -> float:
    return by_product(x, y, power=2.0)


def mean_not_squared(x: Tensor, y: Tensor) -> float:
    return by_product(x, y, mean=1.0)


def root_of_each(x: Tensor, y: Tensor) -> float:
    """As if the covariances commuted in the order of their eigenvalues."""
    S, T = (torch.linalg.eigvalsh(torch.cov(z.T)).clamp(min=0).sqrt() for z in (x, y))
    return float((x.mean(0) - y.mean(0)).square().sum() + (S - T).square().sum())


def kid(x: Tensor, y: Tensor) -> float:
    return kernels.of_rows(x, y, kernels.cubic, torch.Generator()).value


def kid_with(power: int = 3, scale: bool = True, constant: float = 1.0) -> object:
    def distance(x: Tensor, y: Tensor) -> float:
        def k(z: Tensor, w: Tensor) -> Tensor:
            return (z @ w.T / (z.shape[1] if scale else 1) + constant) ** power

        return kernels.of_rows(x, y, k, torch.Generator()).value

    return distance


def diagonal_included(x: Tensor, y: Tensor) -> float:
    k = kernels.cubic
    return float(k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean())


def cross_once(x: Tensor, y: Tensor) -> float:
    return kid(x, y) + float(kernels.cubic(x, y).mean())


def centred(x: Tensor, y: Tensor) -> float:
    return kid(x - y.mean(0), y - y.mean(0))


def lpips_right(network: perceptual.Lpips, x: Tensor, y: Tensor) -> Tensor:
    return perceptual.distance(network, x, y)


def lpips_of(
    unit: bool = True, weight: float = 1.0, spatial: str = "mean", channels: str = "sum"
) -> Paired:
    def distance(network: perceptual.Lpips, x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros(len(x), dtype=x.dtype)
        both = zip(network.activations(x), network.activations(y), strict=True)
        for k, (f, g) in enumerate(both):
            w = network.get_submodule(f"lin{k}.model.1").get_parameter("weight") ** weight
            if unit:
                f, g = (z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in (f, g))
            pixels = getattr((w * (f - g) ** 2), channels)(1)
            total = total + getattr(pixels, spatial)((1, 2))
        return total

    return distance


FEATURES = laws_of("laws: feature distances", "distances of features, by scipy, mpmath and pairs")
GAUSSIANS = {
    "covariance over N": biased_covariance,
    "the factor 2 of the root missing": half_the_root,
    "no root of the product": no_root,
}
rejected_by(
    FEATURES,
    law_frechet_closed_form,
    frechet.squared_distance,
    **GAUSSIANS,
    **{
        "roots of the eigenvalues in order": root_of_each,
        "the distance of means not squared": mean_not_squared,
    },
)
rejected_by(
    FEATURES,
    law_frechet_scipy,
    frechet.squared_distance,
    **{f"{name}, of many rows": mutant for name, mutant in GAUSSIANS.items()},
)
for law in (law_frechet_few_rows, law_frechet_itself):
    rejected_by(
        FEATURES,
        law,
        frechet.squared_distance,
        the_root_of_the_product_that_is_not_symmetric=by_product,
    )
rejected_by(
    FEATURES,
    law_kernel_pairs,
    kid,
    the_diagonal_included=diagonal_included,
    the_cross_term_once=cross_once,
    a_quadratic_kernel=kid_with(power=2),
    not_divided_by_the_dimension=kid_with(scale=False),
    no_constant_in_the_kernel=kid_with(constant=0.0),
    features_centred=centred,
)
rejected_by(
    FEATURES,
    law_kernel_expectation,
    kid,
    a_biased_kernel_distance=diagonal_included,
    half_a_cross_term=cross_once,
)
rejected_by(
    FEATURES,
    law_lpips_by_hand,
    lpips_right,
    activations_not_of_unit_length=lpips_of(unit=False),
    weights_squared=lpips_of(weight=2.0),
    a_sum_over_pixels=lpips_of(spatial="sum"),
    a_mean_over_channels=lpips_of(channels="mean"),
)
