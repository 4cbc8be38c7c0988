"""Synthetic data in the plane, embedded in D dimensions, with their oracle where it is known.

Every data set draws 2-D points z and embeds them as x0 = scale * P z with a fixed random
orthonormal P (D, 2). With `dim=2`, P is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Generator, Tensor

from testbed.components.dataset import Data, Dataset
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.oracles import Conditional, Gaussian, Mixture, Oracle
from testbed.random import stream

Points = tuple[Tensor, Tensor | None]


def plane(dim: int) -> Tensor:
    """P (D, 2) float64 with orthonormal columns, the same for every run; the identity at D = 2.

    Raises:
        InputError: dim < 2.
    """
    if dim < 2:
        raise InputError(f"dim = {dim} must be at least 2: the data are embedded from the plane.")
    if dim == 2:
        return torch.eye(2, dtype=torch.float64)
    normal = torch.randn(dim, 2, generator=stream(dim, "plane"), dtype=torch.float64)
    q: Tensor = torch.linalg.qr(normal).Q
    return q


def embed(
    draw: Callable[[int, Generator], Points],
    dim: int,
    scale: float,
    n: int,
    test: int,
    data_seed: int,
    oracle: Oracle | None = None,
    components: Mapping[str, Tensor] | None = None,
) -> Data:
    """x0 = scale * P z for n training and `test` held-out points z from `draw`.

    Args:
        draw: (n, generator) -> points (n, 2) float64 and their labels (n,), or None.
        dim: D.
        scale: the factor on the points.
        n, test: the sizes of the splits.
        data_seed: the seed of both splits.
        oracle: the distribution of x0, where it is known.
        components: the classes of the mixture's components, as for `oracles.Conditional`; then the
            labels are the components.

    Raises:
        InputError: a size that is not positive.
    """
    if min(n, test) < 1 or not scale > 0:
        raise InputError(f"n = {n}, test = {test} and scale = {scale} must be positive.")
    P = plane(dim)
    z, labels = draw(n, stream(data_seed, "train"))
    test_z, test_labels = draw(test, stream(data_seed, "test"))
    further, conditional = {}, None
    if components is not None:
        assert isinstance(oracle, Mixture)
        assert labels is not None
        assert test_labels is not None
        conditional = Conditional(oracle, components)
        further = {
            name: (classes[labels], classes[test_labels])
            for name, classes in components.items()
            if name != "label"
        }
    return Data(
        train=(scale * z @ P.T).float(),
        test=(scale * test_z @ P.T).float(),
        train_labels=labels,
        test_labels=test_labels,
        oracle=oracle,
        basis=P,
        further=further,
        conditional=conditional,
    )


def gaussian(
    dim: int = 2, scale: float = 1.0, n: int = 20_000, test: int = 4_000, data_seed: int = 0
) -> Data:
    """An off-centre, anisotropic, correlated Gaussian, with its oracle."""
    mean = torch.tensor([0.4, -0.2], dtype=torch.float64)
    S = torch.tensor([[1.0, 0.45], [0.45, 0.36]], dtype=torch.float64)
    P, inner = plane(dim), Gaussian(mean, S)
    oracle = Gaussian(scale * P @ mean, scale**2 * P @ S @ P.T)
    return embed(lambda k, g: (inner.sample(k, g), None), dim, scale, n, test, data_seed, oracle)


def mixture(
    dim: int = 2, scale: float = 1.0, n: int = 20_000, test: int = 4_000, data_seed: int = 0
) -> Data:
    """Four unequal Gaussians, off-centre and asymmetric, two of them elongated, with their oracle.

    The label is the Gaussian, 0 to 3; a second condition, `group`, is 0 for the first two of them
    and 1 for the others.
    """
    means = torch.tensor([[-1.4, 0.3], [0.2, 1.2], [1.3, -0.2], [0.1, -1.1]]).double()
    angle, length, width = (
        torch.tensor(values, dtype=torch.float64)
        for values in ([0.5, 0.0, -0.8, 0.0], [0.30, 0.10, 0.25, 0.06], [0.06, 0.10, 0.05, 0.06])
    )
    weights = torch.tensor([0.35, 0.25, 0.25, 0.15], dtype=torch.float64)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    S = turn @ torch.diag_embed(torch.stack([length**2, width**2], 1)) @ turn.mT
    P, inner = plane(dim), Mixture(means, weights=weights, covariances=S)
    oracle = Mixture(scale * means @ P.T, weights=weights, covariances=scale**2 * P @ S @ P.T)
    components = {"label": torch.arange(4), "group": torch.tensor([0, 0, 1, 1])}
    return embed(inner.sample_labelled, dim, scale, n, test, data_seed, oracle, components)


def ring(n: int, generator: Generator, width: float) -> Points:
    """A unit circle; `width` is the standard deviation of its radius."""
    angle = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    radius = 1 + width * torch.randn(n, generator=generator, dtype=torch.float64)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), None


def moons(n: int, generator: Generator, width: float) -> Points:
    """Two interleaved half circles, labelled, with noise of standard deviation `width`."""
    label = torch.randint(2, (n,), generator=generator)
    angle = math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    z = torch.where(label[:, None] == 0, upper, lower) - torch.tensor([0.5, 0.25]).double()
    return z + width * torch.randn(n, 2, generator=generator, dtype=torch.float64), label


def swiss_roll(n: int, generator: Generator, width: float) -> Points:
    """A spiral of one and a half turns, with noise of standard deviation `width`."""
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(n, generator=generator, dtype=torch.float64))
    z = torch.stack([angle * angle.cos(), angle * angle.sin()], 1) / (3 * math.pi)
    return z + width * torch.randn(n, 2, generator=generator, dtype=torch.float64), None


def checkerboard(n: int, generator: Generator, width: float) -> Points:
    """The dark squares of a 4 x 4 board on [-1, 1]^2, with noise of deviation `width`."""
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    inside = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    z = (torch.stack([column, row], 1) + inside) / 2 - 1
    return z + width * torch.randn(n, 2, generator=generator, dtype=torch.float64), None


def planar(draw: Callable[[int, Generator, float], Points], width: float) -> Callable[..., Data]:
    """A builder of embedded 2-D data; `width` is the noise's default standard deviation."""
    default = width

    def build(
        dim: int = 2,
        scale: float = 1.0,
        width: float = default,
        n: int = 20_000,
        test: int = 4_000,
        data_seed: int = 0,
    ) -> Data:
        return embed(lambda k, g: draw(k, g, width), dim, scale, n, test, data_seed)

    return build


@hookimpl
def testbed_datasets() -> Iterable[Dataset]:
    """Synthetic data."""
    yield Dataset("gaussian", gaussian)
    yield Dataset("mixture", mixture)
    yield Dataset("ring", planar(ring, 0.0))
    yield Dataset("moons", planar(moons, 0.05))
    yield Dataset("swiss_roll", planar(swiss_roll, 0.02))
    yield Dataset("checkerboard", planar(checkerboard, 0.0))
