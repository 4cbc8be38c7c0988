"""Mistakes in distances of samples and in sample metrics, each rejected by its law."""

import itertools
from collections.abc import Iterator

import torch
from laws.distances import (
    Row,
    brute_energy,
    brute_mmd,
    energy,
    law_brute_energy,
    law_brute_mmd,
    law_copies,
    law_energy_gaussian,
    law_energy_scipy,
    law_off_plane,
    law_same_kernel,
    law_unbiased,
    mmd,
    nearest,
    off_plane,
)
from mutants.registry import laws_of, rejected_by
from torch import Tensor


def everyone(x: list[Row]) -> Iterator[tuple[Row, Row]]:
    return itertools.product(x, repeat=2)


def through_squares(samples: Tensor, data: Tensor) -> float:
    squares = (
        samples.square().sum(1)[:, None] + data.square().sum(1) - 2 * samples @ data.T
    ).clamp(min=0)
    return float(squares.sqrt().min(dim=1).values.mean())


def no_mean(x: Tensor, B: Tensor, m: Tensor) -> float:
    return off_plane(x, B, torch.zeros_like(m))


def in_plane(x: Tensor, B: Tensor, m: Tensor) -> float:
    return float(((x - m) @ B).square().sum(1).mean()) / len(B)


def per_codimension(x: Tensor, B: Tensor, m: Tensor) -> float:
    return off_plane(x, B, m) * len(B) / (len(B) - B.shape[1])


def total(x: Tensor, B: Tensor, m: Tensor) -> float:
    return off_plane(x, B, m) * len(B)


def one_direction(x: Tensor, B: Tensor, m: Tensor) -> float:
    return off_plane(x, B[:, :1], m)


DISTANCES = laws_of("laws: distances", "distances of samples, by pairs one at a time and by scipy")
rejected_by(DISTANCES, law_unbiased, mmd, mmd_diagonal_included=brute_mmd(within=everyone))
rejected_by(
    DISTANCES,
    law_brute_mmd,
    mmd,
    mmd_diagonal_included=brute_mmd(within=everyone),
    mmd_one_bandwidth=brute_mmd(octaves=(0,)),
    mmd_shifted_bandwidths=brute_mmd(octaves=(-1, 0, 1, 2, 3)),
)
rejected_by(
    DISTANCES,
    law_same_kernel,
    mmd,
    mmd_pooled_median=brute_mmd(pool="xy"),
    mmd_median_of_the_samples=brute_mmd(pool="x"),
)
rejected_by(DISTANCES, law_unbiased, energy, energy_V_statistic=brute_energy(within=everyone))
rejected_by(
    DISTANCES,
    law_energy_scipy,
    energy,
    energy_V_statistic=brute_energy(within=everyone),
    energy_squared_distances=brute_energy(power=2),
)
rejected_by(
    DISTANCES,
    law_energy_gaussian,
    energy,
    energy_squared_distances=brute_energy(power=2),
    energy_halved=brute_energy(factor=0.5),
    energy_negated=brute_energy(factor=-1),
)
rejected_by(DISTANCES, law_brute_energy, energy, energy_halved_by_value=brute_energy(factor=0.5))
rejected_by(DISTANCES, law_same_kernel, energy)
rejected_by(DISTANCES, law_copies, nearest, nearest_through_squares=through_squares)
rejected_by(
    DISTANCES,
    law_off_plane,
    off_plane,
    no_mean=no_mean,
    in_plane=in_plane,
    per_codimension=per_codimension,
    total=total,
    one_direction=one_direction,
)
