"""Mistakes in the wrappers of other codebases, as they are mistaken for one another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from laws.wrappings import law_has_the_scaling_of_sgm, law_is_as_recorded
from mutants.registry import laws_of, rejected_by

from testbed.checkpoints.wrappings import WRAPPINGS

FAMILY = laws_of(
    "laws: wrappers", "a wrapper of another codebase, against what that codebase returned"
)
LOG = {"c_noise": "log_sigma"}
SHARED = {"c_noise": "shared"}
WRONG: dict[str, dict[str, dict[str, Any]]] = {
    "k_diffusion.Denoiser": {
        "the network is given log(sigma)/4, which it takes itself": SHARED,
        "c_in without sigma_data": {"c_in": "vp"},
        "minus F: v": {"parameterization": "v", "sigma_data": 1.0},
    },
    "k_diffusion.VDenoiser": {
        "the flow's time": {"c_noise": "time"},
        "x itself is given": {"c_in": "unit"},
        "read as eps": {"parameterization": "eps"},
    },
    "k_diffusion.DiscreteEpsDDPMDenoiser": {
        "the nearest index": {"c_noise": "index"},
        "sigma is snapped too": {"c_noise": "index", "snaps": True},
    },
    "k_diffusion.DiscreteEpsDDPMDenoiser.quantize": {
        "the place between two levels": {"c_noise": "position"},
        "sigma is snapped too": {"snaps": True},
    },
    "edm.VPPrecond": {
        "sigma for the time": {"c_noise": "sigma"},
        "minus eps": {"output": "-eps"},
    },
    "edm.VEPrecond": {
        "plus eps": {"output": "F"},
        "log sigma for log(sigma/2)": LOG,
        "alpha x is given": {"c_in": "vp"},
    },
    "edm.iDDPMPrecond": {
        "sigma is snapped too": {"snaps": True},
        "read as v": {"parameterization": "v"},
    },
    "edm.EDMPrecond": {
        "log sigma without 1/4": LOG,
        "alpha x is given": {"c_in": "vp"},
    },
}
OF_SGM: dict[str, dict[str, dict[str, Any]]] = {
    "sgm.EpsScaling": {"c_noise of EDM": SHARED, "c_in = 1": {"c_in": "unit"}},
    "sgm.VScaling": {"c_noise of EDM": SHARED, "EDM's F": {"parameterization": "edm"}},
    "sgm.VScalingWithEDMcNoise": {"sigma": {"c_noise": "sigma"}},
    "sgm.EDMScaling": {"v": {"parameterization": "v"}, "sigma": {"c_noise": "sigma"}},
}
for law, wrong in ((law_is_as_recorded, WRONG), (law_has_the_scaling_of_sgm, OF_SGM)):
    for name, mistakes in wrong.items():
        subjects = {
            f"{name}: {mistake}": replace(WRAPPINGS[name], **keys)
            for mistake, keys in mistakes.items()
        }
        rejected_by(FAMILY, law, WRAPPINGS[name], **subjects)
