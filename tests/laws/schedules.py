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
    # Stability's generative-models, as its reference levels have it (test_noise_levels).
    "stability": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
    # Latent diffusion's published sampler: range(0, 1000, 100) + 1, counted from 0.
    "latent": [902, 802, 702, 602, 502, 402, 302, 202, 102, 2],
}
"""Lin et al. 2024, table 2: T = 1000 and 10 steps, counted from 1; and two published codes."""


def law_spacing_is_table_2(levels: Callable[..., Tensor]) -> None:
    """10 of 1000 levels are those that the paper prints, from the top, and then 0."""
    table = torch.arange(1.0, 1001.0, dtype=torch.float64)
    for spacing, wanted in TABLE_2.items():
        assert levels(table, 10, spacing).tolist() == [*wanted, 0.0], spacing


def law_offset_is_added(levels: Callable[..., Tensor]) -> None:
    """Stable Diffusion 1, 10 and 50 of 1000: indices 1, 101, ..., 901 and 1, 21, ..., 981."""
    table = torch.arange(1000, dtype=torch.float64) + 0.5
    for n, c in ((10, 100), (50, 20)):
        wanted = [c * i + 1.5 for i in reversed(range(n))]
        assert levels(table, n, "leading", 1).tolist() == [*wanted, 0.0], n
        assert levels(table, n, "latent", 0).tolist() == [*wanted, 0.0], n


def law_shift_is_of_time(levels: Callable[..., Tensor]) -> None:
    """Of equal steps of t the times t' = 3 t/(1 + 2 t), from sigma_max to sigma_min.

    Five steps from sigma = 12, t = 4/5, to 3/4, t = 1/5: sigma = 3 t/(1 - t). Two roundings of t
    and what 1/(1 - t) makes of them.
    """
    found = levels(5, 0.75, 12.0, "flow", 3.0)
    t = [0.8, 0.65, 0.5, 0.35, 0.2]
    wanted = torch.tensor([*(3 * one / (1 - one) for one in t), 0.0], dtype=torch.float64)
    assert torch.allclose(found, wanted, rtol=2**-48, atol=0)


def law_exponential(levels: Callable[..., Tensor]) -> None:
    """Equal ratios: 80, 8, 0.8, 0.08 and 0."""
    wanted = torch.tensor([80.0, 8.0, 0.8, 0.08, 0.0], dtype=torch.float64)
    assert torch.allclose(levels(4, 0.08, 80.0), wanted, rtol=2**-49, atol=0)


def law_ends_are_its_own(one: Schedule, steps: int) -> None:
    """steps levels within [sigma_min, sigma_max], descending, and then 0."""
    found = one(steps, LOW, HIGH, default_registry().table("ddpm"))
    assert (found.shape, found.dtype) == ((steps + 1,), torch.float64)
    assert bool((found.diff() < 0).all())
    assert float(found[-1]) == 0
    inside = found[:-1] * torch.tensor(1.0, dtype=torch.float64)
    assert bool((inside <= HIGH * (1 + 2**-40)).all())
    assert bool((inside >= LOW * (1 - 2**-40)).all())
