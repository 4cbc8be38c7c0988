"""Recipes of Karras et al.: VP and VE (2022, arXiv:2206.00364, table 1), and EDM2 (2024)."""

import testbed

VP = {
    "prediction": "table 1: c_skip = 1, c_out = -sigma",
    "weighting": "table 1: 1/sigma^2",
    "loss": "app. C.1",
    "density": "table 1: sigma(t), t uniform on [1e-5, 1], beta_d = 19.9, beta_min = 0.1",
    "c_in": "table 1: 1/sqrt(sigma^2 + 1)",
    "c_noise": "table 1: (M - 1) sigma^-1(sigma), M = 1000",
    "levels": "app. C.1: those at the two ends of t, 0.0010005 and 152.17",
}
VE = {
    "prediction": "table 1: c_skip = 1, c_out = sigma",
    "weighting": "table 1: 1/sigma^2",
    "loss": "app. C.2",
    "density": "table 1: log sigma uniform on [log 0.02, log 100]",
    "c_in": "table 1: 1",
    "c_noise": "table 1: log(sigma/2)",
    "output": "app. C.2: the score is F/sigma, so that F = -eps",
    "levels": "table 1, for data in [-1, 1]",
}
EDM2 = {
    "prediction": "eqs. 4 to 6",
    "weighting": "eqs. 15 and 21: learned with the network",
    "loss": "eq. 21",
    "density": "eq. 16, and app. B.2: P_mean = -0.4, P_std = 1.0",
    "c_in": "eq. 7",
    "c_noise": "eq. 8",
}
AS_THEY_ARE = "The levels are as they are in the table, whatever the data's sigma_data"


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "vp_karras",
        parameterization="eps",
        density="vp",
        weighting="eps",
        c_noise="vp_time",
        sigma_min=0.001,
        sigma_max=152.2,
        reference="Karras et al. 2022, arXiv:2206.00364, table 1, VP",
        equations=VP,
        sources=dict.fromkeys(VP, testbed.Source("paper")),
        deviations=(f"{AS_THEY_ARE}.",),
    )
    yield testbed.Recipe(
        "ve_karras",
        parameterization="score",
        density={"name": "loguniform", "low": 0.02, "high": 100.0},
        weighting="eps",
        c_noise="log_half_sigma",
        output="-eps",
        sigma_min=0.02,
        sigma_max=100.0,
        reference="Karras et al. 2022, arXiv:2206.00364, table 1, VE",
        equations=VE,
        sources=dict.fromkeys(VE, testbed.Source("paper")),
        deviations=(f"{AS_THEY_ARE}; `ve` scales them.",),
    )
    yield testbed.Recipe(
        "edm2",
        parameterization="edm",
        density={"name": "lognormal", "mean": -0.4, "std": 1.0},
        weighting="edm2",
        sigma_min=0.002,
        sigma_max=80.0,
        reference="Karras et al. 2024, arXiv:2312.02696",
        equations={**EDM2, "levels": "those of sampling"},
        sources=dict.fromkeys(EDM2, testbed.Source("paper"))
        | {"levels": testbed.Source("code", "NVlabs/edm2, generate_images.py")},
        deviations=(
            "The weights of u(sigma) start at zero and are not normalised, so that training starts "
            "as EDM's.",
            "P_mean and P_std are those of latents of ImageNet-512, whose sigma_data is scaled to "
            "0.5; the published code has -0.8 and 1.6 for ImageNet-64 (train_edm2.py).",
            "The magnitude-preserving network, its forced weight normalisation and the decay of "
            "the learning rate are not part of the recipe.",
        ),
    )
