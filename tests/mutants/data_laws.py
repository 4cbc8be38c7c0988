"""Mistakes in splits of data, in synthetic data and in their oracles, each rejected by its law."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from laws.data import (
    U32,
    Split,
    law_checkerboard,
    law_disjoint,
    law_in_the_plane,
    law_moments,
    law_off_the_plane,
    law_orthonormal,
    law_partition,
    law_seeded_split,
    law_shuffled,
    law_sigma_data,
)
from laws.own_data import (
    law_classes,
    law_ledoit_wolf,
    law_mismatch,
    law_no_spacing,
    law_spacing,
    law_undequantised,
)
from mutants.registry import FAMILIES, REGISTRY, Stated, laws_of, rejected_by, wrong
from torch import Tensor

from testbed.components import quantisation
from testbed.components.dataset import Data
from testbed.data import synthetic
from testbed.data.classes import classes
from testbed.data.files import split
from testbed.data.synthetic import plane
from testbed.metrics.linear_baseline import ledoit_wolf
from testbed.oracles import Gaussian, Mixture
from testbed.random import stream

DATA = laws_of(
    "laws: data",
    "splits, synthetic data and their oracles",
    around=lambda: torch.random.fork_rng(devices=[]),
)


def build(name: str, **options: Any) -> Data:
    return REGISTRY.dataset(name, **options)()


def cut_with(order: Callable[[int, int], Tensor], overlap: int = 0, relabel: bool = False) -> Split:
    def cut(x: Tensor, y: Tensor | None, test: float, seed: int) -> Data:
        chosen, held = order(len(x), seed), round(len(x) * test)
        train, kept = chosen[held - overlap :], chosen[:held]
        if y is None:
            return Data(x[train], x[kept])
        return Data(x[train], x[kept], y[train.sort().values if relabel else train], y[kept])

    return cut


def shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=stream(seed, "split"))


rejected_by(
    DATA,
    law_partition,
    split,
    **{
        "test leaks into train": cut_with(shuffled, overlap=1),
        "with replacement": cut_with(
            lambda n, s: torch.randint(n, (n,), generator=stream(s, "split"))
        ),
        "labels left behind": cut_with(shuffled, relabel=True),
    },
)
rejected_by(
    DATA,
    law_shuffled,
    split,
    **{
        "in file order": cut_with(lambda n, s: torch.arange(n)),
    },
)
rejected_by(
    DATA,
    law_seeded_split,
    split,
    **{
        "seed ignored": cut_with(lambda n, s: shuffled(n, 0)),
        "global generator": cut_with(lambda n, s: torch.randperm(n)),
    },
)
law = Stated(law_disjoint, lambda **options: build("ring", **options))
FAMILIES[DATA].right["disjoint"] = law
wrong(
    DATA,
    "a test split from the training stream",
    law,
    law.id,
    patch=lambda: mock.patch.object(synthetic, "stream", lambda seed, _: stream(seed, "train")),
)
rejected_by(
    DATA,
    law_orthonormal,
    plane,
    longer=lambda d: torch.linalg.qr(torch.ones(d, 2).double()).Q * (1 + 1e-12),
    oblique=lambda d: torch.nn.functional.normalize(plane(d) + 0.1, dim=0),
    float32=lambda d: plane(d).float().double() * (1 + 2.0**-20),
)
ring = build("ring", dim=8, n=500, test=10)
noise = 4 * U32 * torch.randn(500, 8, generator=stream(0, "mutant"))
rejected_by(
    DATA,
    law_in_the_plane,
    ring,
    beside_the_plane=dataclasses.replace(ring, train=ring.train + noise),
)
rejected_by(
    DATA,
    law_sigma_data,
    lambda data: data.sigma_data,
    about_the_mean=lambda d: float(d.train.std(correction=0)),
    of_both_splits=lambda d: float(torch.cat([d.train, d.test]).square().mean().sqrt()),
    not_over_d=lambda d: float(d.train.square().sum(1).mean().sqrt()),
)


def moved(data: Data, **wrong: float) -> Data:
    """The data with the oracle of a slightly different distribution."""
    oracle = data.oracle
    assert isinstance(oracle, Gaussian | Mixture)
    means = oracle.m + wrong.get("shift", 0.0)
    S = (oracle.Q * (oracle.L * wrong.get("stretch", 1.0))[..., None, :]) @ oracle.Q.mT
    if "uncorrelated" in wrong:
        S = torch.diag_embed(torch.diagonal(S, dim1=-2, dim2=-1))
    if isinstance(oracle, Gaussian):
        return dataclasses.replace(data, oracle=Gaussian(means, S))
    pi = torch.ones_like(oracle.pi) if "equal" in wrong else oracle.pi
    return dataclasses.replace(data, oracle=Mixture(means, weights=pi, covariances=S))


gaussian, mixture = build("gaussian"), build("mixture")
rejected_by(
    DATA,
    law_moments,
    moved(gaussian),
    a_mean_moved=moved(gaussian, shift=0.1),
    a_covariance_stretched=moved(gaussian, stretch=1.1),
    coordinates_uncorrelated=moved(gaussian, uncorrelated=True),
)
rejected_by(
    DATA,
    law_moments,
    moved(mixture),
    means_moved=moved(mixture, shift=0.1),
    covariances_stretched=moved(mixture, stretch=2.0),
    weights_equal=moved(mixture, equal=True),
    an_oracle_without_the_scale=dataclasses.replace(
        build("mixture", scale=1.1), oracle=mixture.oracle
    ),
)
deep = build("gaussian", dim=5)
rejected_by(
    DATA,
    law_off_the_plane,
    deep,
    an_oracle_of_another_plane=dataclasses.replace(deep, oracle=moved(deep, shift=0.01).oracle),
)
points = build("checkerboard").train
rejected_by(
    DATA,
    law_checkerboard,
    points,
    a_column_missing=points[points[:, 0] < 0.5],
    one_corner_heavier=torch.cat([points, points[:2000].abs()]),
    the_light_squares=points * torch.tensor([1.0, -1.0]),
)


# --- a user's own files -----------------------------------------------------------------------


def least_difference(x: Tensor, error: float) -> float | None:
    """The spacing as the least distance between two values."""
    distance = torch.unique(x.double().flatten()).diff()
    kept = distance[distance > 2 * error]
    return float(kept.min()) if len(kept) else None


rejected_by(
    DATA,
    law_spacing,
    quantisation.spacing,
    the_least_difference=least_difference,
    not_from_the_least_value=lambda x, error: quantisation.spacing(
        torch.cat([x.flatten(), x.new_zeros(1) + 0.05]), error
    ),
    without_rounding=lambda x, error: quantisation.spacing(x, 0.0),
)
rejected_by(
    DATA,
    law_no_spacing,
    quantisation.spacing,
    the_least_difference=least_difference,
)
rejected_by(
    DATA,
    law_mismatch,
    quantisation.mismatch,
    a_finer_grid_accepted=lambda x, q, error: (
        "" if quantisation._off(x, q) <= 2 * error / q else quantisation.mismatch(x, q, error)
    ),
    never=lambda x, q, error: "",
)
rejected_by(
    DATA,
    law_undequantised,
    quantisation.undequantised,
    off_the_grid_is_enough=lambda x, q, error: (
        "" if quantisation._off(x, q) > 0.1 else quantisation.undequantised(x, q, error)
    ),
    noise_of_twice_the_width=lambda x, q, error: quantisation.undequantised(x, 2 * q, error),
)
rejected_by(
    DATA,
    law_ledoit_wolf,
    ledoit_wolf,
    not_centred=lambda x: ledoit_wolf(torch.cat([x, -x])),
    over_N_less_1=lambda x: (ledoit_wolf(x)[0] * len(x) / (len(x) - 1), ledoit_wolf(x)[1]),
    unshrunk=lambda x: (torch.cov(x.mT, correction=0), 0.0),
)


def labelled(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Classes of labels that are changed beforehand."""
    return lambda parts, title: classes([change(np.asarray(y)) for y in parts], title)


def of_each_split(parts: Any, title: str) -> Any:
    """Classes that are numbered in each split by itself."""
    each = [classes([y], title) for y in parts]
    return [one[0][0] for one in each], each[0][1]


rejected_by(
    DATA,
    law_classes,
    classes,
    numbered_in_each_split=of_each_split,
    the_order_turned=labelled(lambda y: y.max() - y if y.dtype.kind in "iu" else y),
    from_one=lambda parts, title: ([y + 1 for y in classes(parts, title)[0]], []),
    without_a_word=lambda parts, title: (classes(parts, title)[0], []),
)
