"""The picture of the page on guidance: `python docs/tilted.py` writes docs/tilted.svg again.

Ends of the exact guided ODE of a mixture on a line, beside the density p(x) p(c|x)^w.
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from testbed.metrics.guidance import ode_ends
from testbed.oracles import Conditional, Mixture
from testbed.sampling.guidance import ClassifierFree

MEANS, STDS, WEIGHTS = (
    torch.tensor(one, dtype=torch.float64)
    for one in ([-2.0, 0.0, 1.5], [0.5, 0.3, 0.4], [0.5, 0.3, 0.2])
)
CAPTIONS = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]], dtype=torch.float64)
EXACT = Conditional(Mixture(MEANS[:, None], STDS, WEIGHTS), {"caption": CAPTIONS})
HIGH, LOW, SAMPLES = 40.0, 0.01, 4000
GRID = torch.linspace(-4, 4, 4001, dtype=torch.float64)[:, None]


def ends(w: float) -> np.ndarray:
    """Samples of the guided ODE, from noise, sorted."""

    def guided(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        caption = {"caption": torch.ones(len(x), dtype=torch.int64)}
        return ClassifierFree(EXACT.denoise, [(caption, w)])(x, sigma)

    u = (torch.arange(SAMPLES, dtype=torch.float64) + 0.5) / SAMPLES
    start = EXACT.given({"caption": 1})
    mean = float(start.pi @ start.m[:, 0])
    x = mean + HIGH * torch.special.ndtri(u)[:, None]
    return np.sort(ode_ends(guided, x, HIGH, LOW, 256).x[:, 0].numpy())


def tilted(w: float) -> np.ndarray:
    """p(x) p(c|x)^w on the grid, normalised."""
    log = EXACT.log_density(GRID, 1e-6) + w * EXACT.log_classes("caption", GRID, 1e-6)[:, 1]
    density = log.exp().numpy()
    found: np.ndarray = density / (density.sum() * float(GRID[1] - GRID[0]))
    return found


def drawn(axes: Axes, w: float) -> None:
    """Both, and their distance W1."""
    x, samples = GRID[:, 0].numpy(), ends(w)
    density = tilted(w)
    axes.hist(samples, bins=np.linspace(-4, 4, 121), density=True, color="#9ecae1",
              label="ends of the exact guided ODE")  # fmt: skip
    axes.plot(x, density, color="#d55e00", lw=1.6, label=r"$p(x)\,p(c|x)^w$, normalised")
    u = (np.arange(SAMPLES) + 0.5) / SAMPLES
    mass = np.cumsum(density) / density.sum()
    distance = np.abs(samples - np.interp(u, mass, x)).mean()
    axes.set_title(f"w = {w:g}: distance $W_1$ = {distance:.2g}")
    axes.set(xlim=(-3.8, 3.2), xlabel="x", yticks=[])


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "testbed", "font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(1, 3, figsize=(11.6, 3.4), layout="constrained")
    for one, w in zip(axes, (1.0, 2.0, 5.0), strict=True):
        drawn(one, w)
    axes[2].legend(frameon=False, loc="upper left", fontsize=9)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
