"""Recipes of progressive distillation, v and x0, before its distillation (Salimans and Ho 2022)."""

import testbed

EQUATIONS = {
    "density": "sec. 4: alpha = cos(pi t/2), t uniform on [0, 1]",
    "c_in": "eq. 2: the network sees z_t = alpha x",
    "c_noise": "sec. 2: the log SNR",
}
OF_V = {
    "prediction": "sec. 4: v = alpha eps - s x0",
    "weighting": "sec. 4: SNR + 1, which is none in v space",
    "loss": "sec. 4: |v - v_hat|^2",
    **EQUATIONS,
}
OF_X0 = {
    "prediction": "sec. 4: x",
    "weighting": "sec. 4: max(SNR, 1), the truncated SNR",
    "loss": "eq. 2",
    **EQUATIONS,
}
HERE = {"levels": testbed.Source("here")}
DEVIATIONS = (
    "The paper draws t from all of [0, 1]; here sigma is cut to 0.002 and 80, which leaves "
    "out 0.9 % of its draws. Its code cuts the log SNR at -20 and 20, where sigma is 22,000 and "
    "4.5e-5 (google-research/google-research, diffusion_distillation, config/cifar_base.py).",
    "The published code squeezes the log SNR into (0, 1) by 2/pi arctan(exp(-log SNR/2)) before it "
    "is embedded (unet.py there); here it is embedded itself.",
    "Taken is the training of the undistilled model, without the distillation.",
)


@testbed.hookimpl
def testbed_recipes():
    yield testbed.Recipe(
        "progressive_v",
        parameterization="v",
        density="cosine",
        loss="v",
        c_noise="log_snr",
        reference="Salimans and Ho 2022, arXiv:2202.00512",
        equations={**OF_V, "levels": "all"},
        sources=dict.fromkeys(OF_V, testbed.Source("paper")) | HERE,
        deviations=DEVIATIONS,
    )
    yield testbed.Recipe(
        "progressive_x0",
        parameterization="x0",
        density="cosine",
        weighting="truncated_snr",
        c_in="vp",
        c_noise="log_snr",
        reference="Salimans and Ho 2022, arXiv:2202.00512",
        equations={**OF_X0, "levels": "all"},
        sources=dict.fromkeys(OF_X0, testbed.Source("paper")) | HERE,
        deviations=DEVIATIONS,
    )
