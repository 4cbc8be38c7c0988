"""The recipe of `flow`: rectified flow with logit-normal times (Esser et al. 2024)."""

import testbed

EQUATIONS = {
    "prediction": "Liu et al., alg. 1, whose time runs from noise to data: u with its sign",
    "weighting": "Liu et al., alg. 1: none in velocity space",
    "loss": "Liu et al., alg. 1",
    "density": "Esser et al., sec. 3.1: t is logit-normal, and table 1: rf/lognorm(0.00, 1.00)",
    "c_in": "Esser et al., sec. 3: the network sees z_t = (1 - t) x0 + t eps",
    "c_noise": "Esser et al., sec. 4: t",
}


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "rectified_flow",
        parameterization="flow",
        density={"name": "logit_normal", "mean": 0.0, "std": 1.0},
        loss="flow",
        reference="Liu et al. 2022, arXiv:2209.03003; Esser et al. 2024, arXiv:2403.03206",
        equations={**EQUATIONS, "levels": "all"},
        sources=dict.fromkeys(EQUATIONS, testbed.Source("paper"))
        | {"levels": testbed.Source("here")},
        deviations=(
            "Liu et al. draw t uniformly; the logit-normal distribution is that of Esser et al.",
            "sigma is cut to 0.002 and 80, which leaves out 0.0006 % of the draws.",
            "The published code embeds 999 t (gnobitab/RectifiedFlow, ImageGeneration/losses.py) "
            "or 1000 t (Stability-AI/sd3-ref, sd3_impls.py), and the bundled network embeds t by "
            "frequencies up to 64.",
        ),
    )
