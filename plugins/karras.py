"""Recipes of Karras et al.: VP and VE (2022, arXiv:2206.00364, table 1), and EDM2 (2024)."""

import testbed

CODE = "What the table does not say is from the published code, by public copies of it."


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
        equations={
            "prediction": "table 1: c_skip = 1, c_out = -sigma",
            "weighting": "table 1: 1/sigma^2",
            "density": "table 1: sigma(t), t uniform on [1e-5, 1], beta_d = 19.9, beta_min = 0.1",
            "c_in": "table 1: 1/sqrt(sigma^2 + 1)",
            "c_noise": "table 1: (M - 1) sigma^-1(sigma), M = 1000",
            "levels": "those at the two ends of t, 0.0010005 and 152.17",
        },
        deviations=(CODE,),
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
        equations={
            "prediction": "table 1: c_skip = 1, c_out = sigma",
            "weighting": "table 1: 1/sigma^2",
            "density": "table 1: log sigma uniform on [log 0.02, log 100]",
            "c_in": "table 1: 1",
            "c_noise": "table 1: log(sigma/2)",
            "levels": "table 1, for data of sigma_data = 0.5",
        },
        deviations=(
            "The levels are as they are in the table, whatever the data's sigma_data; `ve` scales "
            "them.",
            CODE,
        ),
    )
    yield testbed.Recipe(
        "edm2",
        parameterization="edm",
        density={"name": "lognormal", "mean": -0.4, "std": 1.0},
        weighting="edm2",
        sigma_min=0.002,
        sigma_max=80.0,
        reference="Karras et al. 2024, arXiv:2312.02696",
        equations={
            "prediction": "as Karras et al. 2022",
            "weighting": "eq. 14 to 16 and 21: learned with the network",
            "density": "P_mean = -0.4, P_std = 1.0",
            "c_in": "as Karras et al. 2022",
            "c_noise": "as Karras et al. 2022",
            "levels": "as Karras et al. 2022, where they are those of sampling",
        },
        deviations=(
            "The weights of u(sigma) start at zero and are not normalised, so that training starts "
            "as EDM's.",
            "P_mean and P_std are those of the published code's configuration, which public copies "
            "of it have; the table of the paper could not be read.",
            "The magnitude-preserving network, its forced weight normalisation and the decay of "
            "the learning rate are not part of the recipe.",
        ),
    )
