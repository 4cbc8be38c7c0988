"""The picture of the first page: `python docs/picture.py` writes docs/picture.svg again."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

COLOURS = {"eps": "#0072b2", "v": "#009e73", "edm": "#000000", "x0": "#d55e00", "score": "#cc79a7"}
ASKED = {
    "eps": r"$F = \epsilon$",
    "v": r"$F = \frac{\epsilon - \sigma x_0}{\sqrt{1 + \sigma^2}}$",
    "edm": r"$F = \frac{\sigma x_0 - \sigma_d^2\,\epsilon}{\sigma_d\sqrt{\sigma^2 + \sigma_d^2}}$",
    "x0": r"$F = x_0$",
    "score": r"$F = -\epsilon/\sigma$",
}
SKETCH = {"v": (-0.02, 0.06), "eps": (0.30, 0.09), "score": (0.62, 0.2), "x0": (0.86, 0.12)}


def noise(axes: Axes) -> None:
    """A few points of the data, and one of them with noise."""
    draw = np.random.default_rng(3)
    angle = draw.uniform(0, np.pi, 60)
    data = np.column_stack([np.cos(angle), np.sin(angle)]) + 0.05 * draw.normal(size=(60, 2))
    axes.plot(*data.T, ".", color="#999999", markersize=5)
    x0, x = np.array([-0.70, 0.71]), np.array([0.05, -0.45])
    axes.annotate("", x, x0, arrowprops={"arrowstyle": "-|>", "color": "#0072b2", "lw": 1.6})
    axes.plot(*x0, "o", color="#d55e00", markersize=9)
    axes.plot(*x, "o", color="#444444", markersize=9)
    axes.text(-0.93, 0.96, r"$x_0$", color="#d55e00", fontsize=16)
    axes.text(0.14, -0.60, r"$x$", color="#444444", fontsize=16)
    axes.text(-0.70, -0.02, r"$\sigma\,\epsilon$", color="#0072b2", fontsize=16)
    axes.set(xlim=(-1.35, 1.35), ylim=(-1.1, 1.3))
    axes.set_title("1. Noise of level σ is added")
    axes.text(0, -1.44, r"$x = x_0 + \sigma\,\epsilon$", ha="center", fontsize=17)


def asked(axes: Axes) -> None:
    """What each parameterization asks of the network, and the denoiser that it gives."""
    axes.set_title("2. A network is asked for F")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    for y, (name, colour) in zip((0.95, 0.78, 0.53, 0.32, 0.17), COLOURS.items(), strict=True):
        axes.text(0.08, y, name, color=colour, fontsize=14, fontweight="bold", va="center")
        size = 20 if "frac" in ASKED[name] else 16
        axes.text(0.36, y, ASKED[name], fontsize=size, va="center")
    formula = r"$D = c_{skip}\,x + c_{out}\,F(c_{in}\,x,\ c_{noise})$"
    axes.text(0.5, -0.14, formula, ha="center", fontsize=16)


def compared(axes: Axes) -> None:
    """A sketch of a result: the excess risk of each beside that of the baseline."""
    axes.set_title("3. A study compares D")
    axes.axvline(0, color="#000000", lw=1.2)
    for row, (name, (at, half)) in enumerate(SKETCH.items()):
        axes.errorbar(at, -row, xerr=half, fmt="o", capsize=4, lw=2, color=COLOURS[name])
        axes.text(-0.30, -row, name, color=COLOURS[name], fontsize=13, fontweight="bold",
                  va="center", ha="right")  # fmt: skip
    axes.text(0.06, 0.72, "edm, the baseline", fontsize=12)
    axes.set(xlim=(-0.75, 1.15), ylim=(-3.6, 1.1))
    says = "what was missed, beside the\nbaseline, with 95 % intervals\n(a sketch, not a result)"
    axes.text(0.2, -3.75, says, ha="center", va="top", fontsize=12)


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "testbed", "font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(1, 3, figsize=(11.6, 4.4), width_ratios=(0.95, 1.25, 1.0))
    for draw, one in zip((noise, asked, compared), axes, strict=True):
        one.axis("off")
        draw(one)
        one.set_title(one.get_title(), fontsize=13.5, fontweight="bold", pad=14)
    figure.subplots_adjust(0.01, 0.19, 0.99, 0.88, wspace=0.05)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
