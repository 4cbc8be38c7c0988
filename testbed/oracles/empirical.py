"""The oracle of a finite data set."""

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from testbed.oracles.base import Oracle, finite

QUERIES = 256
"""The number of rows of x that are answered together."""
FEW = 64
"""So many points are no more to keep for the backward pass than the rows of x themselves."""
GATHERED = 2**20
"""The largest number of numbers that are gathered together for the near pairs."""
NEAR = 1 / 16
LOG_ZERO = torch.finfo(torch.float64).min
LOG_TINY = math.log(torch.finfo(torch.float64).tiny)

Pairs = tuple[Tensor, Tensor]
Result = TypeVar("Result", Tensor, tuple[Tensor, ...])
Statistic = Callable[[Tensor, Tensor, Pairs], Tensor]


class Empirical(Oracle):
    """x0 is one of N points y_i, each as likely; given x = x0 + sigma eps,

        w_i = softmax_i(-|x - y_i|^2/(2 sigma^2)),  D = sum_i w_i y_i.

    Args:
        data: (N, *shape), any floating dtype, kept as it is (neither copied nor widened).
        block: the number of points in a block. A call visits the data block by block for 256
            queries at a time, so that its memory is a few (256, block) and (block, d) float64
            arrays besides its answer, whatever N. Under autograd the blocks are computed again in
            the backward pass instead of being kept.

    Distances are |x|^2 - 2 x.y + |y|^2 about the mean of the data in float64, and where that
    cancels, below 1/16 of |x|^2 + |y|^2, the sum of squared differences: their relative error is
    at most 32 gamma_(d+8) either way. Weights below the smallest normal number are 0, so that no
    denormal number enters a product.

    Every method takes leave_out, (B,) int64: the index of the data point that is left out for that
    query. Without it the oracle of the training data memorises them.

    Raises:
        ValueError: data that are empty, not finite or not floating point, a block below 1, or a
            leave_out that does not fit.

    Source: Karras et al. 2022, app. B.3 (the optimal denoiser of a finite data set).
    """

    def __init__(self, data: Tensor, block: int = 1024) -> None:
        super().__init__(data.shape[1:])
        if not data.is_floating_point():
            raise ValueError(f"data: got {data.dtype}, expected floating point")
        if block < 1:
            raise ValueError(f"block: got {block}, expected at least 1")
        if data.ndim == 0 or data.numel() == 0:
            raise ValueError(f"data: got shape {tuple(data.shape)}, expected (N, *shape), N > 0")
        self.block = block
        self.y = data.detach().reshape(len(data), self.dim)
        self.c = torch.zeros(self.dim, dtype=torch.float64, device=data.device)
        for rows in torch.split(self.y, block):
            self.c += finite("data", rows, 1).sum(0) / len(data)

    def denoise(self, x: Tensor, sigma: float | Tensor, leave_out: Tensor | None = None) -> Tensor:
        """D = c + sum_i w_i (y_i - c), c the mean of the data; shaped like x."""
        return self._by_query(self._mean, x, sigma, leave_out).reshape(x.shape)

    def score(self, x: Tensor, sigma: float | Tensor, leave_out: Tensor | None = None) -> Tensor:
        """grad log p = sum_i w_i (y_i - x)/sigma^2, shaped like x.

        The y_i far from x are summed about c, (y_i - c) - (x - c); the near ones, where that
        would cancel, are summed as y_i - x.
        """

        def score(x: Tensor, s: Tensor, out: Tensor | None) -> Tensor:
            def residual(e: Tensor, y: Tensor, near: Pairs) -> Tensor:
                far = e.index_put(near, e.new_zeros(()))
                R = far @ (y - self.c) - (x - self.c) * far.sum(1, keepdim=True)
                for i, j in self._pieces(near):
                    R = R.index_add(0, i, e[i, j, None] * (y[j] - x[i]))
                return R

            return self._expect(x, s, out, residual)[0] / s**2

        return self._by_query(score, x, sigma, leave_out).reshape(x.shape)

    def covariance(
        self, x: Tensor, sigma: float | Tensor, leave_out: Tensor | None = None
    ) -> Tensor:
        """Cov[x0|x] = sum_i w_i (y_i - D)(y_i - D)^T, (B, d, d)."""

        def covariance(x: Tensor, s: Tensor, out: Tensor | None) -> Tensor:
            D = self._mean(x, s, out)

            def outer(e: Tensor, y: Tensor, near: Pairs) -> Tensor:
                spreads = ((e_b, y - D_b) for e_b, D_b in zip(e, D, strict=True))
                products = [(R.mT * e_b) @ R for e_b, R in spreads]
                return torch.stack(products).flatten(1) if products else e.new_zeros(0, 1)

            return self._expect(x, s, out, outer)[0]

        flat = self._by_query(covariance, x, sigma, leave_out)
        return flat.reshape(len(x), self.dim, self.dim)

    def covariance_trace(
        self, x: Tensor, sigma: float | Tensor, leave_out: Tensor | None = None
    ) -> Tensor:
        """tr Cov[x0|x] = sum_i w_i |y_i - D|^2, (B,): a second pass, so nothing cancels."""

        def trace(x: Tensor, s: Tensor, out: Tensor | None) -> Tensor:
            D = self._mean(x, s, out)

            def spread(e: Tensor, y: Tensor, near: Pairs) -> Tensor:
                return (e * self._squared_distance(D, y)[0]).sum(1, keepdim=True)

            return self._expect(x, s, out, spread)[0][:, 0]

        return self._by_query(trace, x, sigma, leave_out)

    def log_density(
        self, x: Tensor, sigma: float | Tensor, leave_out: Tensor | None = None
    ) -> Tensor:
        """log p = logsumexp_i(-|x - y_i|^2/(2 sigma^2)) - log N - d/2 log(2 pi sigma^2), (B,)."""
        N = len(self.y) - (leave_out is not None)

        def log_density(x: Tensor, s: Tensor, out: Tensor | None) -> Tensor:
            def block(start: int) -> Tensor:
                logit = self._squared_distance(x, self._rows(start))[0] / (-2 * s**2)
                return self._without(logit, start, out).logsumexp(1)

            blocks = torch.stack([self._recomputed(block, start) for start in self._starts()])
            log_norm = self.dim / 2 * torch.log(2 * math.pi * s[:, 0] ** 2)
            return blocks.logsumexp(0) - math.log(N) - log_norm

        return self._by_query(log_density, x, sigma, leave_out)

    def n_eff(self, x: Tensor, sigma: float | Tensor, leave_out: Tensor | None = None) -> Tensor:
        """The effective number of points in the posterior, 1/sum_i w_i^2, (B,), from 1 to N."""

        def n_eff(x: Tensor, s: Tensor, out: Tensor | None) -> Tensor:
            return self._expect(x, s, out, lambda e, y, near: e[:, :1])[1]

        return self._by_query(n_eff, x, sigma, leave_out)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """x0 = y_i, i uniform, with replacement: (n, *shape) float64."""
        i = torch.randint(len(self.y), (n,), generator=generator, device=generator.device)
        return self.y[i.to(self.device)].double().reshape(n, *self.shape)

    def mapped(self, A: Tensor) -> "Empirical":
        """The points A y_i."""
        return Empirical((self.y.double() @ A.mT).reshape(-1, *self.shape), self.block)

    def _mean(self, x: Tensor, s: Tensor, out: Tensor | None) -> Tensor:
        return self.c + self._expect(x, s, out, lambda e, y, near: e @ (y - self.c))[0]

    def _expect(
        self, x: Tensor, s: Tensor, out: Tensor | None, statistic: Statistic
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean sum_i w_i f(y_i), (B, F), and n_eff (B,), by a running softmax.

        statistic(e, y, near): sum_j e_j f(y_j) over a block, (B, F), for unnormalised weights e.
        """

        def step(start: int, m: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
            y = self._rows(start)
            d2, near = self._squared_distance(x, y)
            logit = self._without(d2 / (-2 * s**2), start, out)
            top = torch.maximum(m, logit.detach().amax(1, keepdim=True))
            logit = logit - top
            e = torch.where(logit > LOG_TINY, logit, -math.inf).exp()
            k, (Z, Z2, S) = torch.exp(m - top), sums
            Z, Z2 = k * Z + e.sum(1, keepdim=True), k**2 * Z2 + e.square().sum(1, keepdim=True)
            return top, Z, Z2, k * S + statistic(e, y, near)

        zero = torch.zeros_like(s)
        state: tuple[Tensor, ...] = (torch.full_like(s, LOG_ZERO), zero, zero, zero)
        for start in self._starts():
            state = self._recomputed(step, start, *state)
        _, Z, Z2, S = state
        return S / Z, (Z**2 / Z2)[:, 0]

    def _squared_distance(self, x: Tensor, y: Tensor) -> tuple[Tensor, Pairs]:
        """|x_i - y_j|^2, (B, n), and the pairs (i, j) that are near."""
        X, Y = x - self.c, y - self.c
        scale = X.square().sum(1, keepdim=True) + Y.square().sum(1)
        # Not addmm: it would round every partial product at the size of scale.
        d2 = scale - 2 * (X @ Y.mT)
        i, j = torch.nonzero(d2 < NEAR * scale, as_tuple=True)
        direct = [(x[a] - y[b]).square().sum(1) for a, b in self._pieces((i, j))]
        return d2.index_put((i, j), torch.cat(direct)), (i, j)

    def _pieces(self, pairs: Pairs) -> Iterator[Pairs]:
        """The pairs in pieces whose differences take little memory."""
        size = max(1, GATHERED // self.dim)
        return zip(torch.split(pairs[0], size), torch.split(pairs[1], size), strict=True)

    def _without(self, logit: Tensor, start: int, out: Tensor | None) -> Tensor:
        """The logits of the block that begins at `start`, those of left-out points removed."""
        if out is None:
            return logit
        i = torch.nonzero((out >= start) & (out < start + logit.shape[1]))[:, 0]
        return logit.index_put((i, out[i] - start), logit.new_tensor(LOG_ZERO))

    def _recomputed(self, step: Callable[..., Result], start: int, *state: Tensor) -> Result:
        """step(start, *state), which the backward pass computes again unless points are few."""
        if not torch.is_grad_enabled() or len(self.y) <= FEW:
            return step(start, *state)
        found: Result = checkpoint(
            step, start, *state, use_reentrant=False, preserve_rng_state=False
        )
        return found

    def _starts(self) -> range:
        return range(0, len(self.y), self.block)

    def _rows(self, start: int) -> Tensor:
        return self.y[start : start + self.block].double()

    def _by_query(
        self,
        answer: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        x: Tensor,
        sigma: float | Tensor,
        leave_out: Tensor | None,
    ) -> Tensor:
        """answer(x, sigma, leave_out) for QUERIES rows at a time, in the dtype of x."""
        flat, s = self._prepare(x, sigma)
        s, N = s.expand(len(flat), 1), len(self.y)
        if leave_out is None:
            outs: tuple[Tensor | None, ...] = (None,) * len(torch.split(flat, QUERIES))
        elif leave_out.shape != (len(x),) or leave_out.dtype != torch.int64 or N < 2:
            raise ValueError(
                f"leave_out: got {leave_out.dtype} of shape {tuple(leave_out.shape)} for {N} "
                f"point(s), expected int64 of shape ({len(x)},) and 2 points or more"
            )
        elif bool(((leave_out < 0) | (leave_out >= N)).any()):
            raise ValueError(f"leave_out: got {leave_out.tolist()}, expected indices below {N}")
        else:
            outs = torch.split(leave_out, QUERIES)
        rows = zip(torch.split(flat, QUERIES), torch.split(s, QUERIES), outs, strict=True)
        return torch.cat([answer(*row) for row in rows]).to(x.dtype)
