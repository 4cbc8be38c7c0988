"""JiT: x0 with the loss of a velocity (Li and He 2025, arXiv:2511.13720).

The paper has z = t x0 + (1 - t) eps, so that its t = 1 is data, and v = x0 - eps, which is -u of
this project's flow. With our t = sigma/(1 + sigma) its 1 - t is our t, and

    |v_hat - v|^2 = |D - x0|^2/(1 - t)^2,   1 - t not below a clip.
"""

from typing import Annotated

import testbed


def clipped_flow(sigma, clip: Annotated[float, testbed.Limits(least=0, below=1)] = 0.05):
    """1/max(t, clip)^2, t = sigma/(1 + sigma): `flow` without its growth below the clip."""
    return (sigma / (1 + sigma)).clamp(min=clip) ** -2


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting(
        "clipped_flow", clipped_flow, reference="Li and He 2025, arXiv:2511.13720"
    )


EQUATIONS = {
    "prediction": "eq. 6: x-prediction, table 1 (3)(a)",
    "weighting": "eq. 6: none in velocity space; sec. 4.3 and table 9: 1 - t clipped at 0.05",
    "loss": "eq. 6: v-loss",
    "density": "app. A and table 9: logit t ~ N(-0.8, 0.8^2), where t = 1 is data",
    "c_in": "eq. 1: the network sees z = t x0 + (1 - t) eps",
    "c_noise": "alg. 1: t",
}


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "jit",
        parameterization="x0",
        # logit t = -log sigma in the paper's time.
        density={"name": "logit_normal", "mean": 0.8, "std": 0.8},
        weighting={"name": "clipped_flow", "clip": 0.05},
        loss="flow",
        c_in="flow",
        c_noise="reversed_time",
        reference="Li and He 2025, arXiv:2511.13720",
        equations={**EQUATIONS, "levels": "all"},
        sources=dict.fromkeys(EQUATIONS, testbed.Source("paper"))
        | {"levels": testbed.Source("here")},
        deviations=(
            "The paper's v = x - eps is -u of this project's flow space, and its t is our 1 - t.",
            "sigma is cut to 0.002 and 80, which leaves out 0.0004 % of the draws.",
            "The noise has the scale 1, as for images of 256 x 256 pixels; the paper scales it "
            "with the resolution (table 9).",
        ),
    )
