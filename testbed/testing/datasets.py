"""The laws of data sets."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special
from torch import Tensor

from testbed.components.dataset import Data, Dataset
from testbed.errors import InputError
from testbed.oracles import Oracle
from testbed.random import seeded, stream
from testbed.testing import behaviour
from testbed.testing.checks import Context, Group, demand
from testbed.testing.failures import Skipped
from testbed.testing.options import options_matter
from testbed.testing.probes import digest

LAWS = Group("dataset")
SIGNIFICANCE = 1e-6


def _built(d: Dataset) -> Data:
    """The data; a skip where an option that is a path or the like is still empty."""
    try:
        return d()
    except InputError as problem:
        options = {**d.defaults, **d.options}
        for name, value in options.items():
            if value == "" and name in str(problem):
                raise Skipped(f"option {name!r} is empty: bind it to try the data") from None
        raise


@LAWS.law("The same options give the same data, bit for bit, and global state stays as it was.")
def reproducible(d: Dataset, context: Context) -> str:
    # The first build may import what it needs, and imports may do anything.
    with seeded(12345):
        first = digest(_built(d))
    with behaviour.harmless():
        second = digest(_built(d))
    demand(all(map(behaviour.same, first, second)), "two builds with the same options differ.")
    return "two builds, the same bits"


@LAWS.law("Samples are finite float32, and sigma_data = sqrt(E|x0|^2/d) over the training split.")
def numbers(d: Dataset, context: Context) -> str:
    data = _built(d)
    for name, split in (("train", data.train), ("test", data.test)):
        demand(split.dtype == torch.float32, f"{name} is {split.dtype}, expected float32.")
        demand(bool(torch.isfinite(split).all()), f"{name} is not finite.")
    x = data.train.double()
    sd = math.sqrt(float((x * x).sum()) / x.numel())
    demand(
        math.isclose(sd, data.sigma_data, rel_tol=x.numel() * 2.0**-52),
        f"sigma_data = {data.sigma_data:.6g}, measured {sd:.6g}.",
    )
    return f"{len(data.train)} + {len(data.test)} of {data.shape}, sigma_data {sd:.4g}"


@LAWS.law("The splits share no sample, but for those that chance and float32 make equal.")
def disjoint(d: Dataset, context: Context) -> str:
    """Chance makes as many equal pairs between the splits as within one, pair for pair.

    So of all equal pairs a binomial number is between them (significance 1e-6).
    """
    data = _built(d)
    n, m = len(data.train), len(data.test)
    # Every sample as one block of bytes, numbered alike where they are.
    flat = torch.cat([data.train, data.test]).flatten(1).contiguous().numpy()
    blocks = flat.view(np.dtype((np.void, flat.itemsize * flat.shape[1])))[:, 0]
    _, number = np.unique(blocks, return_inverse=True)
    train, test = (np.bincount(part, minlength=n + m) for part in (number[:n], number[n:]))
    within = int(sum((count * (count - 1) // 2).sum() for count in (train, test)))
    between = int((train * test).sum())
    share = n * m / math.comb(n + m, 2)
    p_value = float(special.bdtrc(between - 1, within + between, share))
    demand(
        p_value >= SIGNIFICANCE,
        f"{int(test[train > 0].sum())} of {m} test samples are in "
        f"the training split; {within} pairs within a split are equal (p = {p_value:.2g}).",
    )
    return f"{between} equal pairs between the splits, {within} within"


@LAWS.law(
    "Labels are classes from 0, one per sample, and every class of the test split is trained."
)
def labels(d: Dataset, context: Context) -> str:
    data = _built(d)
    if data.train_labels is None or data.test_labels is None:
        demand(
            data.train_labels is None and data.test_labels is None,
            "only one of the splits has labels.",
        )
        raise Skipped("it has no labels")
    new = set(data.test_labels.tolist()) - set(data.train_labels.tolist())
    demand(not new, f"classes {sorted(new)} are in the test split only.")
    return f"{data.labels} classes"


@LAWS.law("Options change the data: every numeric one has an effect.", own=True)
def options(d: Dataset, context: Context) -> str:
    _built(d)
    return options_matter(d)


def chance(tests: int) -> float:
    """Standard errors that one of `tests` normal statistics exceeds with probability 1e-6."""
    return -float(special.ndtri(SIGNIFICANCE / (2 * tests)))


def _drift(mean: Tensor, error: Tensor) -> tuple[float, float]:
    """The largest |mean|/(standard error), and what is allowed of as many; 0/0 is 0."""
    z = torch.where(error > 0, mean.abs() / error, 0.0)
    # What has no spread must be 0 to the rounding of float32 samples.
    stuck = (error <= 2.0**-24) & (mean.abs() > 2.0**-20)
    return (math.inf if bool(stuck.any()) else float(z.max())), chance(mean.numel())


def _of_products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of x y^T over N rows (N, d), (d, d), and its standard error.

    The products themselves, N d^2 numbers, would not fit the memory for images.
    """
    mean = x.T @ y / len(x)
    variance = (x.square().T @ y.square() / len(x) - mean.square()).clamp(min=0)
    return mean, torch.sqrt(variance / max(1, len(x) - 1))


def _stein(x0: Tensor, oracle: Oracle, data: Data, of: str = "") -> float:
    """The largest drift of E score and E[x score^T] + I over rows of a split, as demanded.

    `of` says in a message which rows they are.
    """
    shown, x0 = 0.0, x0.double()[:20_000].flatten(1)
    for sigma in (0.3 * data.sigma_data, data.sigma_data, 3 * data.sigma_data):
        eps = torch.randn(x0.shape, generator=stream(0, "testing/dataset"), dtype=torch.float64)
        x = x0 + sigma * eps
        score = oracle.score(x.reshape(-1, *data.shape), sigma).flatten(1)
        mean, error = _of_products(x, score)
        stein = mean + torch.eye(x.shape[1], dtype=torch.float64), error
        first = score.mean(0), score.std(0) / math.sqrt(len(score))
        for what, found in (("E score", first), ("E[x score^T] + I", stein)):
            z, limit = _drift(*found)
            demand(
                z <= limit,
                f"{what} is {z:.3g} standard errors from 0 at sigma = {sigma:.3g}{of}, at most "
                f"{limit:.3g} by chance (1e-6).",
            )
            shown = max(shown, z)
    return shown


@LAWS.law(
    "The oracle is the distribution of the samples: E score = 0 and E[x score^T] = -I under "
    "x = x0 + sigma eps (Stein), within standard errors."
)
def oracle(d: Dataset, context: Context) -> str:
    data = _built(d)
    if data.oracle is None:
        raise Skipped("it has no oracle")
    shown = max(_stein(split, data.oracle, data) for split in (data.train, data.test))
    return f"{shown:.2g} standard errors at most"


@LAWS.law("The oracle given a class is the distribution of that class's samples (Stein, as above).")
def conditional(d: Dataset, context: Context) -> str:
    data = _built(d)
    if data.conditional is None:
        raise Skipped("its distributions given a condition are not known")
    shown = 0.0
    for name in data.conditional.components:
        demand(name in data.classes, f"the oracle knows condition {name!r}, the data have none.")
        classes = data.condition("train", [name])[name]
        for y in range(data.classes[name]):
            x0 = data.train[classes == y]
            demand(len(x0) > 1, f"{name} = {y} has fewer than two training samples.")
            of = f" given {name} = {y}"
            shown = max(shown, _stein(x0, data.conditional.given({name: y}), data, of))
    return f"{', '.join(data.conditional.components)}: {shown:.2g} standard errors at most"


@LAWS.law("The oracle's moments are the samples': E x0 and E x0 x0^T, within standard errors.")
def moments(d: Dataset, context: Context) -> str:
    data = _built(d)
    if data.oracle is None:
        raise Skipped("it has no oracle")
    ours = data.train.double().flatten(1)
    theirs = data.oracle.sample(20_000, stream(0, "testing/dataset/oracle")).flatten(1)
    shown = 0.0
    sizes = [one.abs().amax(0) for one in (ours, theirs)]
    firsts = [(one.mean(0), one.std(0) / math.sqrt(len(one))) for one in (ours, theirs)]
    seconds = [_of_products(one, one) for one in (ours, theirs)]
    moments = (
        ("E x0", firsts, sizes),
        ("E x0 x0^T", seconds, [size[:, None] * size for size in sizes]),
    )
    for what, ((a, a_error), (b, b_error)), largest in moments:
        error, gap = torch.hypot(a_error, b_error), (a - b).abs()
        # Samples are float32: what does not vary agrees to their rounding.
        rounding = 2.0**-22 * sum(largest)
        z = torch.where(gap > rounding, gap / error, 0.0)
        limit = chance(z.numel())
        demand(
            bool((z <= limit).all()),
            f"{what} is {float(z.max()):.3g} standard errors off, at most {limit:.3g} by chance.",
        )
        shown = max(shown, float(z.max()))
    return f"{shown:.2g} standard errors at most"


@LAWS.law("The oracle's score is the gradient of its log-density (central differences).")
def score(d: Dataset, context: Context) -> str:
    data = _built(d)
    if data.oracle is None:
        raise Skipped("it has no oracle")
    x0 = data.test[:16].double()
    worst = 0.0
    for sigma in (0.3 * data.sigma_data, 3 * data.sigma_data):
        x = x0 + sigma * torch.randn(
            x0.shape, generator=stream(1, "testing/dataset"), dtype=torch.float64
        )
        found = data.oracle.score(x, sigma)
        direction = torch.randn(
            x.shape, generator=stream(2, "testing/dataset"), dtype=torch.float64
        )
        along = (found * direction).flatten(1).sum(1)
        estimates = []
        for h in (2.0**-9 * sigma, 2.0**-10 * sigma):
            ends = [data.oracle.log_density(x + k * h * direction, sigma) for k in (1, -1)]
            estimates.append((ends[0] - ends[1]) / (2 * h))
        # Second order in h: the difference of the two is three times the error of the second.
        better = estimates[1] + (estimates[1] - estimates[0]) / 3
        size = data.oracle.log_density(x, sigma).abs() + data.shape[0]
        bound = (estimates[1] - estimates[0]).abs() + 2.0**-48 * size / h
        ratio = float(((along - better).abs() / bound).max())
        demand(
            ratio <= 1,
            f"score and grad log p differ by {ratio:.3g} times the bound at sigma = {sigma:.3g}.",
        )
        worst = max(worst, ratio)
    return f"error at most {worst:.2g} of its bound"


@LAWS.law("A worker process that loads the same plugins builds the same data.")
def spawned(d: Dataset, context: Context) -> str:
    _built(d)
    return behaviour.equal_elsewhere(d, context)
