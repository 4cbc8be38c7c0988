"""The recipe of `flow`: rectified flow with logit-normal times (Esser et al. 2024)."""

import testbed


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "rectified_flow",
        parameterization="flow",
        density={"name": "logit_normal", "mean": 0.0, "std": 1.0},
        loss="flow",
        reference="Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024, arXiv:2403.03206",
        equations={
            "prediction": "Liu et al., eq. 1, whose time runs from noise to data: u with its sign",
            "weighting": "Liu et al., eq. 1: none in velocity space",
            "density": "Esser et al., sec. 3.1: t is logit-normal, rf/lognorm(0.00, 1.00)",
            "c_in": "Esser et al., eq. 13: the network sees z_t = (1 - t) x0 + t eps",
            "c_noise": "Esser et al.: t",
        },
        deviations=(
            "Liu et al. draw t uniformly; the logit-normal distribution is that of Esser et al.",
            "sigma is cut to 0.002 and 80, which leaves out 0.0006 % of the draws.",
            "The papers embed 1000 t or 999 t, by their public code, and the bundled network "
            "embeds t by frequencies up to 64.",
        ),
    )
