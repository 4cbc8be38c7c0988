"""What the fitted linear denoiser is worth: python benchmarks/linear_baseline.py.

Prints, for independent and for correlated Gaussian data of d dimensions and N training samples, the
loss of the Wiener denoiser with the sample covariance, and with the shrunk one, over that of the
best linear denoiser: its geometric mean over 16 noise levels from 0.002 to 80, and its largest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from testbed.metrics.linear_baseline import ledoit_wolf
from testbed.oracles import Gaussian
from testbed.random import stream

TEST = 400
LEVELS = torch.logspace(-2.69897, 1.90309, 16, dtype=torch.float64)


def covariance(kind: str, d: int) -> Tensor:
    """The identity, or exp(-(i - j)^2/18) with 1e-3 more on its diagonal."""
    if kind == "independent":
        return torch.eye(d, dtype=torch.float64)
    i = torch.arange(d, dtype=torch.float64)
    return torch.exp(-((i[:, None] - i) ** 2) / 18) + 1e-3 * torch.eye(d, dtype=torch.float64)


def ratios(fitted: Gaussian, exact: Gaussian, x0: Tensor, eps: Tensor) -> Tensor:
    """The losses of a fitted Gaussian's denoiser over the irreducible ones, at each level."""
    found = [(fitted.denoise(x0 + s * eps, s) - x0).square().mean() for s in LEVELS]
    return torch.stack(found) / exact.mmse(LEVELS).value


def main() -> None:
    """Prints a row for each kind of data, dimension and number of samples."""
    print(f"{'data':12} {'d':>4} {'N/d':>5}  sample covariance      shrunk")
    for kind in ("independent", "correlated"):
        for d in (16, 64, 192):
            S = covariance(kind, d)
            exact = Gaussian(torch.zeros(d, dtype=torch.float64), S)
            x0 = exact.sample(TEST, stream(0, "test"))
            eps = torch.randn(x0.shape, generator=stream(0, "eps"), dtype=torch.float64)
            for share in (0.25, 0.5, 1, 2, 3, 5, 10, 20, 40):
                x = exact.sample(int(share * d), stream(0, "train"))
                shrunk = Gaussian(x.mean(0), ledoit_wolf(x)[0])
                row = f"{kind:12} {d:4} {share:5}"
                for fitted in (Gaussian.fit(x), shrunk):
                    r = ratios(fitted, exact, x0, eps)
                    row += f"  {float(r.log().mean().exp()):9.3f} {float(r.max()):9.2f}"
                print(row)


if __name__ == "__main__":
    main()
