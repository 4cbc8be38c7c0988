"""The report's words: numbers, intervals, p values, and the names of metrics and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

ROUNDED = 1e-9
"""An error or a width that is a smaller share of its number is the rounding of sums."""
LESS = "less than matters"
"""Said of an undecided effect that is shown to differ from zero: its estimate is too small."""
METRICS = {
    "loss_vs_wiener": (
        "loss / Wiener loss",
        "the loss over that of the linear denoiser fitted to the training split (Wiener), as a "
        "geometric mean over noise levels",
    ),
    "excess_nats": (
        "excess risk in nats",
        "the part at the measured levels of the bound KL(data ‖ model) ≤ ∫ excess(σ)/σ³ dσ, "
        "excess summed over dimensions; 0 for the exact denoiser",
    ),
    "nll": (
        "NLL, nats/dim",
        "minus the log-likelihood of held-out data, per dimension, by the probability-flow ODE",
    ),
    "bits_per_dim": (
        "bits/dim",
        "the same in bits for the quantised values, dequantised uniformly",
    ),
    "nll_gap": (
        "NLL gap, nats/dim",
        "mean of log p of the exact density minus that of the model at held-out points: an "
        "estimate of KL(data ‖ model) per dimension at the lowest noise level",
    ),
    "limit_nats": (
        "limit in nats",
        "the excess in nats, measured with white noise, that a perfect learner of the training’s "
        "noise would have",
    ),
    "elbo": (
        "−ELBO in nats/dim",
        "the evidence lower bound with the other sign: of −log p of held-out data, per dimension",
    ),
    "elbo_reconstruction": ("reconstruction", "the bound’s term of the step to the data"),
    "elbo_matching": ("matching", "the bound’s terms of all other steps"),
    "elbo_prior": ("prior", "the bound’s term of the last level, with nothing to learn"),
    "excess_dropped_nats": (
        "excess risk in nats, conditions off",
        "∫ excess(σ)/σ³ dσ, summed over dimensions, of a conditional model with all its conditions "
        "switched off, against the unconditional exact denoiser",
    ),
    "excess_guided_nats": (
        "guided excess risk in nats",
        "∫ E|D_w − D_w*|²/σ³ dσ of the guided denoiser against the exact one, guided the same way; "
        "at other scales than 1 a distance of fields, which bounds no divergence",
    ),
    "guided_error": (
        "guided end points",
        "root mean square per dimension between the ends of the guided trajectories and those of "
        "the exactly guided denoiser, from the same noise",
    ),
    "guided_ode_error": (
        "ends of the guided ODE",
        "root mean square per dimension between the ends of the guided trajectories and those of "
        "the exact guided ODE in fine steps, from the same noise; the error is that of these steps",
    ),
    "classifier_nats": (
        "classifier’s KL",
        "KL of the trained classifier from the exact p(y|x), averaged over noise levels",
    ),
    "energy": ("energy distance", "energy distance of samples to held-out data"),
    "conditional_energy": (
        "energy distance given the condition",
        "the mean over conditions c of the energy distance of samples drawn with c and without "
        "guidance (w = 1) to draws of the exact p(x | c)",
    ),
    "mmd": ("MMD²", "unbiased multi-bandwidth MMD² of samples to held-out data"),
    "off_plane": ("off-plane energy", "energy per dimension of samples outside the data’s plane"),
    "sliced_wasserstein": ("sliced W₂", "sliced Wasserstein distance of samples to held-out data"),
    "c2st": (
        "C2ST accuracy",
        "how often a classifier tells samples from held-out data; 1/2 if it cannot",
    ),
    "precision_gap": ("1 − precision", "the share of samples off the manifold of held-out data"),
    "recall_gap": ("1 − recall", "the share of held-out data off the manifold of the samples"),
    "density_gap": ("1 − density", "how much more thinly samples lie in held-out data’s balls"),
    "coverage_gap": ("1 − coverage", "the share of held-out data with no sample near them"),
    "variance_ratio": (
        "variance ratios",
        "root mean square over principal components of the log ratio of variances of samples and "
        "held-out data",
    ),
    "feature_frechet": (
        "Fréchet distance of features",
        "Fréchet distance of samples to held-out data in the features of a classifier of the data",
    ),
    "feature_kernel": (
        "kernel distance of features",
        "unbiased cubic MMD² of samples to held-out data in the features of a classifier of the "
        "data",
    ),
    "fid": ("FID", "Fréchet Inception distance of samples to held-out data"),
    "fd_dinov2": ("FD-DINOv2", "Fréchet distance to held-out data in DINOv2’s features"),
    "lpips": ("LPIPS to test", "mean LPIPS of samples to the nearest held-out image"),
    "off_manifold": (
        "off-manifold energy",
        "energy per dimension of samples outside the hull of their nearest training samples",
    ),
    "nearest_train": ("distance to train", "mean distance of samples to the nearest training one"),
    "nearest_test": ("distance to test", "mean distance of samples to the nearest held-out one"),
}
"""Each metric: its name in a table, and what it is."""


BELOW_ONE = {
    True: "Below 1 a model beats the linear denoiser that was fitted to the training split, as at "
    "very low noise D = x may do; above 1 it has not learnt even the covariance.",
    False: "The training samples are few for their dimensions, and that baseline is not the best "
    "linear denoiser: nothing follows from a value below 1.",
}
"""What a loss below the linear baseline's means, where that is sound and where it is not."""

FIGURES = {
    "forest": (
        "Every variant against the baseline.",
        "Squares: the effect on the primary metric over the noise levels that both were trained "
        "on; dots: single seeds; grey: effects too small to matter. An arrow: a variant "
        "or its interval goes on beyond the scale, which those near the baseline set; a small "
        "arrow: a seed, or several, beyond it. The axis is logarithmic in the ratio.",
    ),
    "ratio": (
        "Ratio to the baseline by noise level.",
        "Below 1 a variant is better than the baseline. Grey: too small to matter; dotted: the "
        "edges of the bands of noise levels; thin: levels that one of the two was not trained on. "
        "A line that leaves the panel goes on outside of it.",
    ),
    "excess": (
        "Excess risk by noise level.",
        "E|D − D*|²/(d σ²): what each model missed, lower is better. Its integral over log σ, "
        "times d, is the excess in nats, so that on this logarithmic axis the highest levels are "
        "nearly all of it: the table of bands has their shares. Grey: the "
        "irreducible loss of the exact denoiser (dotted) and the excess of the linear one that was "
        "fitted to the training split (Wiener, dash-dotted), above which a model has learnt less "
        "than the covariance. A line "
        "that leaves the panel at the top is worse by more decades than it shows.",
    ),
    "wiener": (
        "Loss against the fitted linear denoiser.",
        "Denoising loss over that of the Gaussian fitted to the training split (grey line: 1). "
        "Look at which end of σ each parameterization fails.",
    ),
    "sizes": (
        "Size of target and output.",
        "What the network is asked for (target, exact) and what it gives (output, trained models "
        "on held-out data). The target has one panel where no variant’s differs between arms. A "
        "target that spans decades asks one network for outputs of very "
        "different size; an output that leaves its target’s curve has not followed it.",
    ),
    "start": (
        "Loss before training.",
        "Its expectation at F = 0 for each noise level, over its mean under the training density. "
        "Flat: every level starts with equal say. A peak: the first steps are spent there. A loss "
        "that is not quadratic has no line.",
    ),
    "training": (
        "Training curves.",
        "Above: loss over its expected value at F = 0. The losses are different objectives: "
        "compare shapes, not heights. Below: standard deviation over mean of the gradient norm "
        "between two points of the curve; high means that few draws decide the steps.",
    ),
    "weights": (
        "Effective weights.",
        "Weight of the error in ε, λ(σ) p(log σ) σ², scaled to a peak of 1: what a run really "
        "optimises. With one weighting and one density the curves coincide.",
    ),
    "coefficients": (
        "Coefficients of D = c_skip x + c_out F(c_in x, c_noise).",
        "|c_out| multiplies the network’s own error in D: look for where it exceeds 1. A "
        "coefficient has one panel where no variant’s differs between arms.",
    ),
    "points": (
        "The primary metric over the steps of training.",
        "Each trial at points of its training, and at its end. Lower is better: look for lines "
        "that cross.",
    ),
    "budgets": (
        "The primary metric by budget.",
        "Trainings of each length, every one on its own. Lower is better: look for lines that "
        "cross.",
    ),
    "samples": (
        "Samples.",
        "The first seed that finished, all from the same noise. Look for shapes that the real "
        "data have and samples lack, and for noise that was left in.",
    ),
    "spaces": (
        "Samples of pixels and of latents.",
        "The first seed that finished of each case, those of latents decoded; all from noise of "
        "their own space.",
    ),
    "denoised": (
        "Denoised images by noise level.",
        "Held-out images x₀, x = x₀ + σ ε, and D(x, σ) of each variant, the first seed that "
        "finished, at the levels next to σ that it was measured at. x is divided by "
        "√(1 + σ²/σ_data²), and everything is cut to the real data’s range. D is the mean of what "
        "the image may have been: blurred at high σ, and that is right; noise that is left in, and "
        "shapes that no x₀ has, are not.",
    ),
    "denoised_training": (
        "Denoised images while training.",
        "D(x, σ) of the same images after some of the training steps, with averaged weights.",
    ),
    "scores": (
        "The score by noise level.",
        "(D(x, σ) − x)/σ² of the same images: the gradient of log p at x. Grey is 0; the shade of "
        "the data’s highest values stands for 3/σ and beyond, that of the lowest for −3/σ. A right "
        "score is the noise with the other sign, −ε/σ, but for what no one can tell from the "
        "image; an image that shows through was taken for noise.",
    ),
    "neighbours": (
        "Samples and their nearest training images.",
        "The first samples of the first seed that finished; below each its nearest training image, "
        "and the distance. A sample that is its neighbour is a copy; one that is like none may be "
        "new, or wrong.",
    ),
}
"""Each figure: its title, and what to look for."""


BIG = 1e5
"""The numbers of an effect are written with a power of ten from here on."""
FACTOR = 2.0
"""An effect of this factor or more, in either direction, is written as a factor."""


def title(metric: str) -> str:
    """Returns a metric's name in a table."""
    return METRICS.get(metric, (metric, ""))[0]


def number(value: float | None) -> str:
    """Writes three significant digits: 0.0123, 1.20, 12346, 1.20e-5; a dash for no number."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size == 0:
        return "0"
    if size < 9.995e-4 or size >= 99999.5:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits}e{int(power)}"
    return f"{value:#.3g}".rstrip(".") if size < 999.5 else f"{value:.0f}"


def between(value: float, low: float, high: float) -> str:
    """Writes `1.02 [0.98, 1.06]`; without the bounds where there are none."""
    return number(value) if math.isnan(low) else f"{number(value)} [{number(low)}, {number(high)}]"


def with_error(value: float, error: float) -> str:
    """Writes `0.0025 ± 0.0102`; the number alone where there is no error.

    Nor is there one where it is the rounding of a number that has none.
    """
    text = signed(number(value))
    if not math.isfinite(value) or math.isnan(error) or error <= ROUNDED * abs(value):
        return text
    return f"{text} ± {number(error)}"


def floor(found: Mapping[str, float | None] | None) -> str:
    """Writes a metric's floor, mean and standard deviation of real data: `0.0025 ± 0.0102`.

    Of latents, the metric of held-out images that went through the first stage follows.
    """
    mean, sd = (found or {}).get("mean"), (found or {}).get("sd")
    if found is None or mean is None:
        return "–"
    text = with_error(mean, math.nan if sd is None else sd)
    decoded = found.get("decoded")
    return text if decoded is None else f"{text}; images decoded again: {number(decoded)}"


def difference(value: float, low: float = math.nan, high: float = math.nan) -> str:
    """Writes a difference with its interval, rounded as the per cents of `effect_text` are."""
    values = (value, low, high)
    first, *bounds = _alike(values, _places(values))
    return first if math.isnan(low) else f"{first} [{', '.join(bounds)}]"


def signed(text: str) -> str:
    """Returns a number's text with a true minus, apart from that of a power of ten."""
    return text.replace("-", "−").replace("e−", "e-")


def effect_text(ratio: float, low: float = math.nan, high: float = math.nan) -> str:
    """Writes a ratio and its interval: `1.0 % [0.8, 1.2]`, `−12 % [−15, −8]`, `61 times [37, 101]`.

    Of per cents the larger bound has two digits; of a factor, which stands for an effect from
    FACTOR on, the ratio has two, and the lower bound one. Both have more where they are too coarse
    for the interval's width.
    """
    factor = ratio >= FACTOR or ratio <= 1 / FACTOR
    values = [one if factor else 100 * (one - 1) for one in (ratio, low, high)]
    places = _places(values, ratio if factor else None)
    if factor and low > 0:
        places = max(places, -_power(low))
    first, *bounds = _alike(values, places)
    interval = "" if math.isnan(low) else f" [{', '.join(bounds)}]"
    return f"{first} {'times' if factor else '%'}{interval}"


def _places(values: Sequence[float], size: float | None = None) -> int:
    """How many decimals a value and its bounds, maybe nan, have: two digits of a size, or more.

    The size is that of the larger bound where none is given; more are for the interval's width.
    """
    bounds = values if math.isnan(values[1]) else values[1:]
    known = [one for one in bounds if math.isfinite(one)]
    size = max(map(abs, known), default=0.0) if size is None else size
    width = max(known) - min(known) if known else 0.0
    places = 1 - _power(size) if size and math.isfinite(size) else 0
    return max(places, -_power(width / 2)) if width > ROUNDED * size else places


def _alike(values: Sequence[float], places: int) -> list[str]:
    """Values with as many decimals."""

    def text(value: float) -> str:
        if not math.isfinite(value) or abs(value) >= BIG:
            return number(value).replace("-", "−", 1) if value < 0 else number(value)
        written = f"{round(value, places):.{max(places, 0)}f}"
        return written.replace("-", "" if not float(written) else "−")

    return [text(value) for value in values]


def _power(size: float) -> int:
    """The power of ten of a positive number's first digit."""
    return math.floor(math.log10(size))


def portion(share: float) -> str:
    """Writes a share in whole per cents: `38 %`, `< 1 %`; a dash for nan."""
    if math.isnan(share):
        return "–"
    return "< 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def probability(p: float) -> str:
    """Writes a p value with three decimals, or as `< 0.001`."""
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_value(p: float) -> str:
    """Writes `p = 0.012` or `p < 0.001`."""
    return f"p {probability(p)}" if p < 0.001 else f"p = {probability(p)}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """Writes `a, b and c`, or with another word before the last."""
    return ", ".join(words[:-1]) + f" {last} " + words[-1] if len(words) > 1 else "".join(words)


def capital(text: str) -> str:
    """Returns the text with a capital first letter."""
    return text[:1].upper() + text[1:]
