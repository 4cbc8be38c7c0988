"""Numbers of the bundled names, worked out from the papers' formulas and not from the plugins.

A name that many papers share stands for what they say: a plugin that registers another formula
under it is wrong, however well it behaves. The numbers are of 40-digit arithmetic, to 15 digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SIGMA = (0.05, 0.4, 1.5, 20.0)
SIGMA_DATA = 0.5
U = (0.05, 0.45, 0.93)
RANGE = (0.002, 80.0)
LADDER = (10.0, 3.0, 1.0, 0.1)


@dataclass(frozen=True)
class Values:
    """The numbers of a component at these options, with blanks between."""

    text: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numbers(self) -> tuple[float, ...]:
        """The numbers."""
        return tuple(map(float, self.text.split()))


Table = Mapping[str, Values | tuple[Values, ...]]
"""Of an axis: the numbers of each name, at one or more values of its options."""
WEIGHTINGS = {
    "unit": Values("1 1 1 1"),
    "x0": Values("1 1 1 1"),
    "eps": Values("400 6.25 0.444444444444444 0.0025"),
    "score": Values("160000 39.0625 0.197530864197531 6.25e-6"),
    "v": Values("401 7.25 1.44444444444444 1.0025"),
    "flow": Values("441 12.25 2.77777777777778 1.1025"),
    "clipped_flow": Values("400 12.25 2.77777777777778 1.1025", {"clip": 0.05}),
    "edm": Values("404 10.25 4.44444444444444 4.0025"),
    "edm2": Values("404 10.25 4.44444444444444 4.0025"),
    "trigflow": Values("101 2.5625 1.11111111111111 1.000625"),
    "min_snr": Values("5 5 0.444444444444444 0.0025", {"gamma": 5.0}),
    "soft_min_snr": Values(
        "4.93827160493827 2.77777777777778 0.408163265306122 0.00249875062468766",
        {"gamma": 5.0},
    ),
    "truncated_snr": Values("400 6.25 1 1"),
    "p2": Values(
        "0.997506234413965 0.862068965517241 0.307692307692308 0.00249376558603491",
        {"k": 1.0, "g": 1.0},
    ),
    "sigmoid": Values(
        "222.21418212559 3.28809050099797 0.837343108901772 0.555535455313974",
        {"b": 0.0},
    ),
}
"""lambda at SIGMA with SIGMA_DATA; `sigmoid` with p of log sigma ~ N(0, 1), cut to RANGE."""
PARAMETERIZATIONS = {
    "eps": Values(
        "1 1 1 1 -0.05 -0.4 -1.5 -20 0.998752338877845 0.928476690885259 0.554700196225229 "
        "0.0499376169438922 0.05 0.4 1.5 20"
    ),
    "minus_eps": Values(
        "1 1 1 1 0.05 0.4 1.5 20 0.998752338877845 0.928476690885259 0.554700196225229 "
        "0.0499376169438922 0.05 0.4 1.5 20"
    ),
    "v": Values(
        "0.997506234413965 0.862068965517241 0.307692307692308 0.00249376558603491 "
        "-0.0499376169438922 -0.371390676354104 -0.832050294337844 -0.998752338877845 "
        "0.998752338877845 0.928476690885259 0.554700196225229 0.0499376169438922 0.05 0.4 1.5 "
        "20"
    ),
    "edm": Values(
        "0.99009900990099 0.609756097560976 0.1 0.000624609618988132 0.0497518595104995 "
        "0.312347523777212 0.474341649025257 0.499843823204061 1.99007438041998 "
        "1.56173761888606 0.632455532033676 0.0499843823204061 -0.748933068388498 "
        "-0.229072682968539 0.101366277027041 0.748933068388498"
    ),
    "x0": Values(
        "0 0 0 0 1 1 1 1 1.99007438041998 1.56173761888606 0.632455532033676 0.0499843823204061 "
        "-0.748933068388498 -0.229072682968539 0.101366277027041 0.748933068388498"
    ),
    "score": Values("1 1 1 1 0.0025 0.16 2.25 400 1 1 1 1 0.05 0.4 1.5 20"),
    "flow": Values(
        "0.952380952380952 0.714285714285714 0.4 0.0476190476190476 -0.0476190476190476 "
        "-0.285714285714286 -0.6 -0.952380952380952 0.952380952380952 0.714285714285714 0.4 "
        "0.0476190476190476 0.0476190476190476 0.285714285714286 0.6 0.952380952380952"
    ),
    "trigflow": Values(
        "0.99009900990099 0.609756097560976 0.1 0.000624609618988132 -0.0497518595104995 "
        "-0.312347523777212 -0.474341649025257 -0.499843823204061 1.99007438041998 "
        "1.56173761888606 0.632455532033676 0.0499843823204061 0.0634510348611071 "
        "0.429553425045445 0.795167235300867 0.984087820175948"
    ),
}
"""c_skip, c_out, c_in and c_noise, each at SIGMA, with SIGMA_DATA."""
LOSSES = {
    "l2": Values("4 0.0625 0", {"space": "x0"}),
    "edm": Values("4 0.0625 0", {"space": "F"}),
    "eps": Values("4 0.0625 0", {"space": "eps"}),
    "flow": Values("4 0.0625 0", {"space": "flow"}),
    "score": Values("4 0.0625 0", {"space": "score"}),
    "trigflow": Values("4 0.0625 0", {"space": "F"}),
    "v": Values("4 0.0625 0", {"space": "v"}),
    "x0": Values("4 0.0625 0", {"space": "x0"}),
    "l1": Values("2 0.25 0", {"space": "x0"}),
    "huber": Values("1.5 0.03125 0", {"space": "x0", "delta": 1.0}),
}
"""m(q_hat, q) at errors of 2, -1/4 and 0."""
DENSITIES = {
    "lognormal": Values(
        "0.0418500036184962 0.259040351163205 1.76993835235899 0.108509727046912 "
        "0.32329435988191 0.135848444187299 0.000736351786670105",
        {"mean": -1.2, "std": 1.2},
    ),
    "loguniform": Values(
        "0.00339729292926849 0.23548160746099 38.1018258424014 0.0943695829088774 "
        "0.0943695829088774 0.0943695829088774 0.0943695829088774",
        {"low": 1e-4, "high": 1e4},
    ),
    "cosine": Values(
        "0.0799847637697809 0.846285482134529 8.19398986934182 0.0320474256182949 "
        "0.221569270223039 0.296561946298529 0.0320474256182949"
    ),
    "logit_normal": Values(
        "0.193040266962212 0.88190756460722 4.37431663015678 0.00448894046668093 "
        "0.262179208648787 0.367462637981061 0.00448894046668093",
        {"mean": 0.0, "std": 1.0},
    ),
    "vp": Values(
        "0.163507759686719 2.24450776132826 44.3845513777425 0.0161556325899143 "
        "0.121488723657913 0.216544426767407 0.138368436516143",
        {"beta_d": 19.9, "beta_min": 0.1, "first": 1e-5},
    ),
    "ddpm": Values(
        "0.163063916074858 2.2355220857798 44.1132353940377 0.0163835613012303 "
        "0.122152754616564 0.216747711178108 0.138143852807387",
        {"n": 1000, "start": 1e-4, "end": 0.02},
    ),
}
"""Quantiles at U and p(log sigma) at SIGMA, cut to RANGE."""
NOISE_TABLES = {
    "ddpm": Values(
        "0.0100005000375031 0.0148309237089828 3.44296711252582 155.825193762382 157.407280810407",
        {"n": 1000, "start": 1e-4, "end": 0.02},
    ),
    "scaled_linear": Values(
        "0.0291671581517201 0.0413144119967829 1.61827882601862 14.5262756893497 14.6146412293336",
        {"n": 1000, "start": 0.00085, "end": 0.012},
    ),
    "cosine": Values(
        "0.00642541277112717 0.00935049283560455 1.01555055051951 641.662345118256 "
        "20291.1696100215",
        {"n": 1000, "offset": 0.008, "most": 0.999},
    ),
    "karras": Values(
        "0.002 0.00205019719904403 2.52650684843812 79.5638252158122 80",
        {"n": 1000, "low": 0.002, "high": 80.0, "rho": 7.0},
    ),
    "geometric": Values(
        "0.01 0.0100462042134681 0.100230754828387 0.995400828762152 1",
        {"n": 1000, "low": 0.01, "high": 1.0},
    ),
    "flow": Values(
        "0.003003003003003 0.00601202404809619 3.01202404809619 2997 1099511627776",
        {"n": 1000, "shift": 3.0},
    ),
    "betas": Values(
        "0.0100005000375031 0.0148309237089828 3.44296711252582 155.825193762382 157.407280810407",
        {"values": tuple(1e-4 + i * 0.0199 / 999 for i in range(1000))},
    ),
    "sigmas": Values(
        "0.001 0.002 0.501 0.999 1", {"values": tuple((i + 1) / 1000 for i in range(1000))}
    ),
    "diffusers": Values(
        "0.0100005000375031 0.0148567585583175 3.50566753691377 15406.0300955973 1099511627776",
        {
            "config": {
                "beta_schedule": "linear",
                "num_train_timesteps": 1000,
                "beta_start": 1e-4,
                "beta_end": 0.02,
                "rescale_betas_zero_snr": True,
            }
        },
    ),
}
"""The levels 0, 1, 500, 998 and 999 of 1000; 2^40 stands for infinity."""
SCHEDULES: Table = {
    "karras": Values(
        "80 17.5278319646441 2.51521897614716 0.169752756268764 0.002 0",
        {"rho": 7.0},
    ),
    "exponential": Values("80 5.65685424949238 0.4 0.0282842712474619 0.002 0"),
    "uniform": (
        Values("80 60.0005 40.001 20.0015 0.002 0", {"time": "ve"}),
        Values(
            "80.0 7.83259787405169 2.79442338550266 0.954984484250125 0.002 0",
            {"time": "flow", "shift": 3.0},
        ),
    ),
    "ddpm": Values(
        "79.5364669698915 16.4813224865999 4.75892893965657 1.76575070934386 0.660214836946979 0",
        {"n": 1000, "start": 1e-4, "end": 0.02, "spacing": "trailing"},
    ),
    "table": Values(
        "79.5364669698915 16.4813224865999 4.75892893965657 1.76575070934386 0.660214836946979 0",
        {"spacing": "trailing"},
    ),
}
"""The levels of five steps over RANGE, with the table `ddpm`."""
SAMPLERS = {
    "euler": Values("0.067524752475247525", {"churn": 0.0}),
    "heun": Values("0.1242775218115871", {"churn": 0.0}),
    "lms": Values("0.07625049504950495", {"order": 4}),
    "dpmpp_2m": Values("0.1029337673973218"),
    "ddim": Values("0.067524752475247525", {"eta": 0.0}),
    "euler_ancestral": Values("0.01", {"eta": 1.0}),
    "dpmpp_2s_ancestral": Values("0.018707518391443105", {"eta": 1.0}),
    "dpmpp_sde": Values("0.01", {"eta": 1.0}),
    "ddpm": Values("0.01", {"variance": "small"}),
}
"""The factor on x over LADDER for D = x/(1 + sigma^2), with equal draws."""
NOISES = {
    "white": Values("1 1 1"),
    "offset": Values("1.12 1 1.01", {"strength": 0.1}),
    "perturbed": Values("1.01 0.990099009900990 1", {"strength": 0.1}),
}
"""Sigma's eigenvalue and the regression for samples (2, 3, 4), and the target's variance."""
GUIDANCES = {
    "none": Values("3 3"),
    "classifier_free": Values("5 5", {"scale": 2.0}),
    "classifier": Values("1.5 1.5", {"scale": 2.0}),
}
"""D_w of D = 1, D_y = 3 and grad log p(y|x) = 1 in both dimensions, at sigma = 1/2."""
