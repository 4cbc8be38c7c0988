"""What the scheduler of a diffusers pipeline says of its network: the reading of its output.

All schedulers with betas have one convention, whatever sampler they are: the state is
alpha x0 + s eps and the time is the index of the level. Flow matching has x_t = (1 - t) x0 + t eps
and the time 1000 t; those of EDM precondition; that of the VE process has x itself and sigma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from testbed.checkpoints.wrappings import Wrapping
from testbed.data import scheduler_files
from testbed.data.level_files import FILE_TABLES
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError, unknown

PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
"""The prediction types of diffusers, by ours: each is the parameterization of that name."""
OF_BETAS = (
    "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler",
    "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
OF_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
OF_EDM = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
OF_VE = ("ScoreSdeVeScheduler",)
REFUSED = {
    "CMStochasticIterativeScheduler": "a consistency model returns the end of the path and not "
    "E[x0|x]",
    "LCMScheduler": "a distilled model returns the end of the path and not E[x0|x]",
    "TCDScheduler": "a distilled model returns the end of the path and not E[x0|x]",
    "ScoreSdeVpScheduler": "its network is given a time that no file states",
    "VQDiffusionScheduler": "its states are discrete",
}
"""Schedulers that are known and not read, with the reason."""
READ = (*OF_BETAS, *OF_FLOW, *OF_EDM, *OF_VE)


@dataclass(frozen=True)
class Reading:
    """How the network of a checkpoint is wrapped.

    Args:
        source: the class of the scheduler, or the name of the wrapping.
        wrapping: the parameterization of its output, c_in and c_noise.
        table: the levels of a discrete one, else None.
        time_scale, sign: as for a `ForeignNetwork`.
        learned_variance: whether the network returns twice the channels.
        sigma_data: that of an EDM scheduler, else None.
        sigma_range: the lowest and the highest level, where the scheduler states them and they are
            not those of a table.
    """

    source: str
    wrapping: Wrapping
    table: NoiseTable | None = field(default=None, repr=False)
    time_scale: float = 1.0
    sign: float = 1.0
    learned_variance: bool = False
    sigma_data: float | None = None
    sigma_range: tuple[float, float] | None = None


def reading(written: Mapping[str, Any]) -> Reading:
    """The reading that a scheduler_config.json states.

    Raises:
        InputError: a scheduler that is not read, with the reason; a prediction type that it does
            not have, or levels that cannot be read.
    """
    name = str(written.get("_class_name"))
    if name in REFUSED:
        raise InputError(f"_class_name = {name!r} is not read: {REFUSED[name]}.")
    if name not in READ:
        raise InputError(f"_class_name: {unknown('scheduler', name, READ)}")
    if name in OF_FLOW or written.get("use_flow_sigmas"):
        return _of_flow(name, written)
    if name in OF_EDM:
        return _of_edm(name, written)
    if name in OF_VE:
        wrapping = Wrapping(f"diffusers.{name}", "score", "unit", "sigma")
        return Reading(name, wrapping, sigma_range=_range(written, 0.01, 1348.0))
    if written.get("timestep_type") == "continuous":
        p = _prediction(written, "epsilon", "v_prediction")
        return Reading(name, Wrapping(f"diffusers.{name}", p, "vp", "shared"))
    p = _prediction(written, "epsilon", "sample", "original_sample", "v_prediction")
    table = FILE_TABLES["diffusers"].bound({"config": scheduler_files.used(written)})
    wrapping = Wrapping(f"diffusers.{name}", p, "vp", "index", table="needed")
    return Reading(name, wrapping, table)


def _prediction(written: Mapping[str, Any], *known: str) -> str:
    """The parameterization of a prediction type; that of a file without one is epsilon.

    Raises:
        InputError: the scheduler has no such type.
    """
    word = str(written.get("prediction_type", "epsilon"))
    if word not in known:
        raise InputError(unknown("prediction_type", word, known))
    return PREDICTIONS[word]


def _range(written: Mapping[str, Any], low: float, high: float) -> tuple[float, float]:
    return float(written.get("sigma_min", low)), float(written.get("sigma_max", high))


def _of_flow(name: str, written: Mapping[str, Any]) -> Reading:
    """u = eps - x0 at x_t = (1 - t) x0 + t eps, given the time n t."""
    if name not in OF_FLOW:
        _prediction(written, "flow_prediction")
    scale = float(written.get("num_train_timesteps", 1000))
    return Reading(name, Wrapping(f"diffusers.{name}", "flow", "flow", "time"), time_scale=scale)


def _of_edm(name: str, written: Mapping[str, Any]) -> Reading:
    """EDM's preconditioning; "v_prediction" there is F with its sign turned."""
    _prediction(written, "epsilon", "v_prediction")
    sign = -1.0 if written.get("prediction_type") == "v_prediction" else 1.0
    wrapping = Wrapping(f"diffusers.{name}", "edm", "shared", "shared", sigma_data=None)
    sigma_data, levels = float(written.get("sigma_data", 0.5)), _range(written, 0.002, 80.0)
    return Reading(name, wrapping, sign=sign, sigma_data=sigma_data, sigma_range=levels)
