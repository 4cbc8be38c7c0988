"""The convolutional network: what its affine part can be, and what its perceptron sees."""

import torch

from testbed.networks.convnet import Affine, Whole

SHAPE = (1, 2, 3)


def test_the_affine_part_can_be_the_linear_denoiser_of_every_level() -> None:
    """Wiener, m + C (C + sigma^2)^-1 (x - m), for two levels whose embeddings are unit vectors."""
    generator = torch.Generator().manual_seed(0)
    x, (m,) = (torch.randn(n, *SHAPE, generator=generator).double() for n in (2, 1))
    root = torch.randn(6, 6, generator=generator).double()
    C, sigma = root @ root.mT, torch.tensor([0.3, 2.0]).double()
    s, V = torch.linalg.eigh(C)
    gains = [C @ torch.linalg.inv(C + level**2 * torch.eye(6).double()) for level in sigma]
    affine = Affine(SHAPE, width=2, rank=6).double()
    with torch.no_grad():
        assert not affine(x, torch.eye(2).double()).any()
        affine.inner.weight.copy_(V.mT)
        affine.outer.weight.copy_(V)
        affine.gate.weight.copy_(s[:, None] / (s[:, None] + sigma**2))
        offsets = torch.stack([m.flatten() - gain @ m.flatten() for gain in gains], 1)
        # Part of the gain of x itself is on the diagonal, one for each number.
        g = torch.linspace(-1, 1, 6).double()
        affine.diagonal.weight.copy_(torch.cat([g[:, None].expand(6, 2), offsets]))
        found = affine(x, torch.eye(2).double())
    wiener = torch.stack(
        [m + (gain @ (y - m).flatten()).view(SHAPE) for gain, y in zip(gains, x, strict=True)]
    )
    # Rounding of the inverse: 6 eps cond(C + sigma^2), and the condition is below 500.
    torch.testing.assert_close(found, wiener + g.view(SHAPE) * x, rtol=1e-12, atol=1e-12)


def test_the_perceptron_starts_at_zero_and_sees_all_pixels_from_each() -> None:
    """The derivative of every number of its output by every pixel, which no small kernel has."""
    generator = torch.Generator().manual_seed(0)
    x, embedding = torch.randn(1, *SHAPE, generator=generator), torch.ones(1, 2)
    whole = Whole(SHAPE, width=2, hidden=16)
    assert not whole(x, embedding).any()
    with torch.no_grad():
        whole.last.weight.normal_(generator=generator)
    jacobian = torch.autograd.functional.jacobian(lambda x: whole(x, embedding), x)
    assert jacobian.all()
