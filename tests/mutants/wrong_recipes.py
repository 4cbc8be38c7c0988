"""Recipes that are wrong on purpose, by the checks of `testbed check recipe:NAME`."""

from __future__ import annotations

from typing import Any

from mutants.wrong import wrong

import testbed

RIGHT = {
    "parameterization": "edm",
    "density": "lognormal",
    "weighting": "edm",
    "reference": "Karras et al. 2022",
}


def recipe(**change: Any) -> testbed.Recipe:
    return testbed.Recipe("wrong", **{**RIGHT, **change})


FITTING = ("components", "weight")
wrong("no reference", recipe(reference=" "), "metadata")
wrong("no parameterization", recipe(parameterization=""), "metadata", *FITTING)
wrong("a parameterization that nobody has", recipe(parameterization="edn"), "metadata", *FITTING)
wrong("a deviation in a few words", recipe(deviations=("no augmentation",)), "metadata")
wrong("an unknown c_noise", recipe(c_noise="log_snr_over_four"), "inputs")
wrong("an unknown c_in", recipe(c_in="one"), "inputs")
wrong("an unknown output", recipe(output="noise"), "inputs", *FITTING)
wrong("an index without a table", recipe(c_noise="index"), "inputs")
wrong("a density that nobody has", recipe(density="log_normal"), *FITTING)
wrong(
    "an option that the density does not have",
    recipe(density={"name": "lognormal", "sigma": 1.0}),
    *FITTING,
)
wrong("levels in the wrong order", recipe(sigma_min=80.0, sigma_max=0.002), *FITTING)
wrong("a weight that overflows", recipe(weighting={"name": "p2", "g": -200.0}), "weight")
