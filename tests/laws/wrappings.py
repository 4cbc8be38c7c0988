"""What the wrappers of other codebases are: their own outputs, recorded, around one network.

tests/fixtures/record_wrappers.py recorded k-diffusion's in float64 and EDM's, which compute in
float32; tests/reference has the scalings of generative-models.
"""

import json
from functools import cache
from typing import Any

import torch
from helpers.bounds import assert_within, exact, u
from helpers.paths import FIXTURES, REFERENCE
from torch import Tensor, nn

from testbed.checkpoints.wrappings import Wrapping
from testbed.diffusion.noise_tables import NoiseTable
from testbed.registry import default_registry


@cache
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIXTURES / "wrappers.json").read_text())
    return found


@cache
def sgm() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REFERENCE / "sgm_reference.json").read_text())
    return found


class Probe(nn.Module):
    """F(y, t) = 0.7 y + sin(t/3), as when it was recorded."""

    def forward(self, y: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return 0.7 * y + torch.sin(t.double() / 3).reshape(-1, 1, 1, 1).to(y.dtype)


def table_of(wrapping: Wrapping) -> NoiseTable | None:
    """The table of the recording: that of DDPM, and of iDDPM the cosine's."""
    if wrapping.table == "none" or wrapping.name.startswith("sgm"):
        return None
    name = "cosine" if wrapping.name == "edm.iDDPMPrecond" else "ddpm"
    return default_registry().table(name)


SPACINGS = 30
"""At most so many times a rounding of log sigma moves the place in the table, at sigma below 50."""


def law_is_as_recorded(wrapping: Wrapping) -> None:
    """D around F(y, t) = 0.7 y + sin(t/3), which moves by a third of what t does.

    k-diffusion's sigma = sqrt((1 - abar)/abar) is off by u/sigma^2 relative, and its place by that
    over the distance of two levels in log sigma. EDM's time of VP has log(1 + sigma^2) in float32.
    """
    found = recorded()
    sigma, x = (torch.tensor(found[key], dtype=torch.float64) for key in ("sigma", "x"))
    around = wrapping.around(Probe(), found["sigma_data"], table_of(wrapping))
    D = around(x, sigma)
    wanted = torch.tensor(found["D"][wrapping.name], dtype=torch.float64)
    dtype = torch.float32 if wrapping.name.startswith("edm") else torch.float64
    c = around.parameterization.coefficients(sigma, sigma_data=found["sigma_data"])
    t = around.inputs(sigma)[1]
    moved = t.abs() + 1
    if dtype == torch.float32:
        moved = moved + 999 / (0.01 + 39.8 * torch.log1p(sigma**2)).sqrt() * ("VP" in wrapping.name)
    elif wrapping.c_noise == "position":
        moved = moved + SPACINGS * (1 / sigma**2 + sigma.log().abs())
    size = (c.skip.abs() + c.out.abs()).reshape(-1, 1, 1, 1) * (x.abs() + 1)
    plus = 8 * u(dtype) * (c.out.abs() * moved / 3).reshape(-1, 1, 1, 1)
    assert_within(D, exact(wanted), exact(size), 24, dtype, plus=exact(plus.expand_as(x)))


SCALINGS = {
    "sgm.EpsScaling": ("eps", None),
    "sgm.VScaling": ("v", None),
    "sgm.VScalingWithEDMcNoise": ("v_edm_c_noise", None),
    "sgm.EDMScaling": ("edm(sigma_data=0.5)", 0.5),
}


def law_has_the_scaling_of_sgm(wrapping: Wrapping) -> None:
    """c_skip, c_out, c_in and c_noise at 13 levels."""
    key, sigma_data = SCALINGS[wrapping.name]
    sigma = torch.tensor(sgm()["sigma"], dtype=torch.float64)
    around = wrapping.around(Probe(), sigma_data)
    skip, out, _, _ = around.parameterization.coefficients(sigma, sigma_data=around.sigma_data)
    c_in, c_noise = around.inputs(sigma)
    for name, mine in {"c_skip": skip, "c_out": out, "c_in": c_in, "c_noise": c_noise}.items():
        wanted = torch.tensor(sgm()["scaling"][key][name], dtype=torch.float64)
        assert_within(mine, exact(wanted.expand_as(mine)), exact(wanted.expand_as(mine)), 12)


def check_wrapping(wrapping: Wrapping) -> None:
    """That of its library."""
    if wrapping.name in SCALINGS:
        law_has_the_scaling_of_sgm(wrapping)
    else:
        law_is_as_recorded(wrapping)
