"""What other codebases put around their networks, by the names that they have there.

A wrapper is D = c_skip x + c_out F(c_in x, c_noise). Each is written here as the parameterization
whose F its network returns, its c_in and its c_noise, so that a `Denoiser` is all that wraps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.inputs import InputScale
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError, UnknownName, unknown
from testbed.registry import Registry, default_registry


@dataclass(frozen=True)
class Wrapping:
    """The conventions of a wrapper around a network.

    Args:
        name: its name, `library.Class`.
        parameterization: the parameterization whose F the network returns.
        c_in, c_noise: as for a `Denoiser`; c_noise is "position" for the place between two levels
            of a table (`NoiseTable.position`).
        output: the prediction type of the output where that is not F.
        sigma_data: the one that is built in; None for that of the model.
        table: whether its levels are those of a table: "none", "optional" or "needed".
        nearest: in what the nearest level of the table is nearest, "sigma" or "log_sigma".
        snaps: whether sigma itself is replaced by the nearest level, not c_noise alone.
        reference: where it is published.
    """

    name: str
    parameterization: str
    c_in: str
    c_noise: str
    output: str = "F"
    sigma_data: float | None = 1.0
    table: Literal["none", "optional", "needed"] = "none"
    nearest: Literal["sigma", "log_sigma"] = "sigma"
    snaps: bool = True
    reference: str = ""

    def settings(self, discrete: bool) -> dict[str, str]:
        """The keys of a study that say the same; `discrete` where there is a table.

        A study snaps every level to the table, at whose levels all wrappers of a table agree.
        """
        c_noise = "index" if discrete else self.c_noise
        keys = {"parameterization": self.parameterization, "output": self.output}
        return {**keys, "c_in": self.c_in, "c_noise": c_noise}

    def check(self, table: bool) -> None:
        """Refuses a table that it has no use for, and a missing one.

        Raises:
            InputError: either.
        """
        if table and self.table == "none":
            raise InputError(f"{self.name} takes any noise level: it has no table.")
        if not table and self.table == "needed":
            raise InputError(
                f"{self.name} gives its network the index of a level: say of which table, for "
                'example table = "ddpm".'
            )

    def around(
        self,
        network: nn.Module,
        sigma_data: float | None = None,
        table: NoiseTable | None = None,
        learned_variance: bool = False,
        registry: Registry | None = None,
    ) -> Denoiser:
        """The denoiser around a network, called as `network(x, c_noise, condition)`.

        Args:
            network: the raw network.
            sigma_data: of the model; needed where the wrapping has none of its own.
            table: the levels, ascending, for a wrapping that takes a table.
            learned_variance: whether the network returns twice the channels; without a table that
                snaps, the second half is dropped, as the codebase does.
            registry: where the parameterization is found; by default the bundled ones.

        Raises:
            InputError: a table or a sigma_data that is missing or has no use.
        """
        self.check(table is not None)
        if sigma_data is None and self.sigma_data is None:
            raise InputError(f"{self.name}: its sigma_data is that of the model: give sigma_data.")
        p = (registry or default_registry()).parameterization(self.parameterization)
        c_noise: str | InputScale = self.c_noise
        if table is not None:
            table = table.bound({**table.options, "nearest": self.nearest})
            c_noise = table.position if c_noise == "position" else table.c_noise
        snapped = table if self.snaps else None
        if learned_variance and snapped is None:
            network, learned_variance = FirstHalf(network), False
        return Denoiser(
            network,
            p,
            sigma_data or self.sigma_data or 1.0,
            c_in=self.c_in,
            c_noise=c_noise,
            table=snapped,
            learned_variance=learned_variance,
            output=self.output,
        )


class FirstHalf(nn.Module):
    """A network of twice the channels without the second half, a variance that is not used."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *arguments: Any) -> Any:
        """The first half of the channels, (B, C, ...)."""
        return self.network(*arguments).chunk(2, dim=1)[0]


EDM = "Karras et al. 2022, arXiv:2206.00364, table 1"
K_DIFFUSION = "k-diffusion 0.1.1, external.py"
SGM = "generative-models, sgm/modules/diffusionmodules/denoiser_scaling.py"
WRAPPINGS = {
    one.name: one
    for one in (
        # The network of k-diffusion's Denoiser is given sigma and takes log(sigma)/4 itself.
        Wrapping("k_diffusion.Denoiser", "edm", "shared", "sigma", sigma_data=None,
                 reference="k-diffusion 0.1.1, layers.py"),
        Wrapping("k_diffusion.VDenoiser", "v", "vp", "cosine_time", reference=K_DIFFUSION),
        Wrapping("k_diffusion.DiscreteEpsDDPMDenoiser", "eps", "vp", "position",
                 table="needed", snaps=False, reference=K_DIFFUSION),
        Wrapping("k_diffusion.DiscreteVDDPMDenoiser", "v", "vp", "position",
                 table="needed", snaps=False, reference=K_DIFFUSION),
        Wrapping("k_diffusion.DiscreteEpsDDPMDenoiser.quantize", "eps", "vp", "index",
                 table="needed", nearest="log_sigma", snaps=False, reference=K_DIFFUSION),
        Wrapping("k_diffusion.DiscreteVDDPMDenoiser.quantize", "v", "vp", "index",
                 table="needed", nearest="log_sigma", snaps=False, reference=K_DIFFUSION),
        Wrapping("edm.VPPrecond", "eps", "vp", "vp_time", reference=EDM),
        Wrapping("edm.VEPrecond", "eps", "unit", "log_half_sigma", output="-eps", reference=EDM),
        Wrapping("edm.iDDPMPrecond", "eps", "vp", "index", table="needed", snaps=False,
                 reference=EDM),
        Wrapping("edm.EDMPrecond", "edm", "shared", "shared", sigma_data=None, reference=EDM),
        # Inside sgm's DiscreteDenoiser, that is with a table, sigma is snapped and c_noise its
        # index.
        Wrapping("sgm.EpsScaling", "eps", "vp", "sigma", table="optional", reference=SGM),
        Wrapping("sgm.VScaling", "v", "vp", "sigma", table="optional", reference=SGM),
        Wrapping("sgm.EDMScaling", "edm", "shared", "shared", sigma_data=None, table="optional",
                 reference=SGM),
        Wrapping("sgm.VScalingWithEDMcNoise", "v", "vp", "shared", table="optional",
                 reference=SGM),
    )
}  # fmt: skip
"""The wrappers of k-diffusion, EDM and Stability's generative-models."""


def wrapping(name: str) -> Wrapping:
    """The wrapping of that name.

    Raises:
        UnknownName: there is none; the message has the nearest.
    """
    if name not in WRAPPINGS:
        raise UnknownName(unknown("wrapping", name, WRAPPINGS))
    return WRAPPINGS[name]


def wrap(
    network: nn.Module,
    name: str,
    *,
    sigma_data: float | None = None,
    table: NoiseTable | None = None,
    learned_variance: bool = False,
    registry: Registry | None = None,
) -> Denoiser:
    """The denoiser around a network of another codebase, as the wrapper `name` of it makes one.

    Args:
        network: called as `network(x, t)`, with the classes of a condition "label" as
            `class_labels=` and every other condition by its own name (`networks.ForeignNetwork`).
        name: one of `WRAPPINGS`, such as "edm.EDMPrecond" or "k_diffusion.VDenoiser".
        sigma_data, table, learned_variance, registry: as for `Wrapping.around`.

    Raises:
        UnknownName: an unknown wrapping.
        InputError: a table or a sigma_data that is missing or has no use.
    """
    from testbed.checkpoints.networks import ForeignNetwork

    around = ForeignNetwork(network)
    return wrapping(name).around(around, sigma_data, table, learned_variance, registry)
