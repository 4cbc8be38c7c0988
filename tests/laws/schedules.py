"""Laws of the schedules: at which levels a sampler stops."""

from collections.abc import Callable

import torch
from torch import Tensor

from testbed.components.schedule import Schedule
from testbed.registry import default_registry

LOW, HIGH = 0.002, 80.0
TABLE_2 = {
    "leading": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
    "linspace": [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1],
    "trailing": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
    # Latent diffusion's published sampler, as Stability's reference levels have it (test_noise).
    "latent": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
}
"""Lin et al. 2024, table 2: T = 1000 and 10 steps, counted from 1."""


def law_spacing_is_table_2(levels: Callable[..., Tensor]) -> None:
    """10 of 1000 levels are those that the paper prints, from the top, and then 0."""
    table = torch.arange(1.0, 1001.0, dtype=torch.float64)
    for spacing, wanted in TABLE_2.items():
        assert levels(table, 10, spacing).tolist() == [*wanted, 0.0], spacing


def law_ends_are_its_own(one: Schedule, steps: int) -> None:
    """steps levels within [sigma_min, sigma_max], descending, and then 0."""
    found = one(steps, LOW, HIGH, default_registry().table("ddpm"))
    assert (found.shape, found.dtype) == ((steps + 1,), torch.float64)
    assert bool((found.diff() < 0).all())
    assert float(found[-1]) == 0
    inside = found[:-1] * torch.tensor(1.0, dtype=torch.float64)
    assert bool((inside <= HIGH * (1 + 2**-40)).all())
    assert bool((inside >= LOW * (1 - 2**-40)).all())
