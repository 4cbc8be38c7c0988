"""A testbed that compares parameterizations of diffusion models, and proves them equal in theory.

Names are imported when first used, so that the command line starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from testbed.hookspecs import hookimpl

__version__ = "0.1.0"

if TYPE_CHECKING:
    from testbed import audit, noise, oracles, testing
    from testbed.components import (
        Dataset,
        Density,
        Estimate,
        Loss,
        Metric,
        Network,
        Sampler,
        Weighting,
        squared,
    )
    from testbed.data.base import Data
    from testbed.denoiser import Denoiser
    from testbed.parameterization import Coefficients, Parameterization, Recipe
    from testbed.predictions import convert
    from testbed.registry import Registry
    from testbed.sampling.likelihood import bits_per_dim, log_likelihood
    from testbed.sampling.loop import sample
    from testbed.study.trial import load

_HOMES = {
    "Coefficients": "testbed.parameterization",
    "Data": "testbed.data.base",
    "Dataset": "testbed.components",
    "Denoiser": "testbed.denoiser",
    "Density": "testbed.components",
    "Estimate": "testbed.components",
    "Loss": "testbed.components",
    "Metric": "testbed.components",
    "Network": "testbed.components",
    "Parameterization": "testbed.parameterization",
    "Recipe": "testbed.parameterization",
    "Registry": "testbed.registry",
    "Sampler": "testbed.components",
    "Weighting": "testbed.components",
    "bits_per_dim": "testbed.sampling.likelihood",
    "convert": "testbed.predictions",
    "load": "testbed.study.trial",
    "log_likelihood": "testbed.sampling.likelihood",
    "sample": "testbed.sampling.loop",
    "squared": "testbed.components",
}
_MODULES = ("audit", "noise", "oracles", "testing")

__all__ = [
    "Coefficients",
    "Data",
    "Dataset",
    "Denoiser",
    "Density",
    "Estimate",
    "Loss",
    "Metric",
    "Network",
    "Parameterization",
    "Recipe",
    "Registry",
    "Sampler",
    "Weighting",
    "audit",
    "bits_per_dim",
    "convert",
    "hookimpl",
    "load",
    "log_likelihood",
    "noise",
    "oracles",
    "sample",
    "squared",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"testbed.{name}")
    else:
        raise AttributeError(f"module 'testbed' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
