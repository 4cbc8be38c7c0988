"""Latents: the padding, scale and shift of a first stage, and data made of them."""

import pytest
import torch
from helpers.bounds import gamma
from helpers.strategies import draws
from torch import Tensor, nn

from testbed.components.dataset import Data
from testbed.data import latents
from testbed.data.latents import Latents
from testbed.errors import InputError


class Folded:
    """An orthogonal encoder: each square of stride x stride pixels becomes channels, turned."""

    def __init__(self, stride: int, channels: int) -> None:
        self.stride = stride
        n = channels * stride**2
        self.turn = torch.linalg.qr(draws((n, n), 9, torch.float64)).Q.float()

    def encode(self, images: Tensor) -> Tensor:
        return torch.einsum(
            "dc,nchw->ndhw", self.turn, nn.functional.pixel_unshuffle(images, self.stride)
        )

    def decode(self, z: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(torch.einsum("dc,ndhw->nchw", self.turn, z), self.stride)


SIZES = [(8, 8), (7, 8), (5, 6), (1, 3), (9, 4)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize(("channels", "rows"), [(1, 3), (3, 130)])
def test_images_come_back_from_their_latents(
    size: tuple[int, int], stride: int, channels: int, rows: int
) -> None:
    images = draws((rows, channels, *size), 1, torch.float32)
    folded, n = Folded(stride, channels), channels * stride**2
    shift = draws((n,), 2, torch.float32)
    stage = Latents(folded.encode, folded.decode, stride, size, 0.7, shift)
    z = stage.encode(images)
    height, width = size
    assert z.shape == (rows, n, -(-height // stride), -(-width // stride))
    found = stage.decode(z)
    assert found.shape == images.shape
    # Two products of n terms and four further roundings, on numbers of this size.
    bound = gamma(2 * n + 4, torch.float32) * n * float(images.abs().max() + shift.abs().max())
    assert float((found - images).abs().max()) <= bound


def test_scale_and_shift_are_those_of_the_formula() -> None:
    images, shift = draws((4, 1, 4, 4), 1, torch.float32), torch.tensor([1.0, -2.0, 0.5, 0.0])
    folded = Folded(2, 1)
    z = Latents(folded.encode, folded.decode, 2, (4, 4), 3.0, shift).encode(images)
    assert torch.equal(z, 3.0 * (folded.encode(images) - shift.view(1, -1, 1, 1)))


@pytest.mark.parametrize("size", SIZES)
def test_padding_repeats_the_last_row_and_column(size: tuple[int, int]) -> None:
    images = draws((2, 3, *size), 1, torch.float32)
    height, width = size
    found = latents.padded(images, 4)
    assert found.shape[2:] == (-(-height // 4) * 4, -(-width // 4) * 4)
    rows = torch.arange(found.shape[2]).clamp(max=height - 1)
    columns = torch.arange(found.shape[3]).clamp(max=width - 1)
    assert torch.equal(found, images[:, :, rows][..., columns])


def test_latents_of_another_size_are_decoded_whole() -> None:
    folded = Folded(2, 1)
    stage = Latents(folded.encode, folded.decode, 2, (7, 7))
    assert stage.decode(torch.zeros(1, 4, 4, 4)).shape == (1, 1, 7, 7)
    assert stage.decode(torch.zeros(1, 4, 3, 5)).shape == (1, 1, 6, 10)


@pytest.mark.parametrize("shifted", [False, True])
def test_the_measured_scale_gives_unit_mean_square(shifted: bool) -> None:
    z = 3 + 5 * draws((50, 2, 3, 3), 4, torch.float32)
    shift = z.mean((0, 2, 3)) if shifted else None
    centred = z if shift is None else z - shift.view(1, -1, 1, 1)
    scaled = (latents.measured_scale(z, shift) * centred).double()
    assert abs(float(scaled.square().mean()) - 1) <= 4 * 2.0**-23
    if shifted:
        assert float(scaled.mean((0, 2, 3)).abs().max()) <= 50 * 9 * 2.0**-24 * float(z.abs().max())


def test_latents_that_are_all_alike_are_refused() -> None:
    with pytest.raises(InputError, match="the latents of all images are the same"):
        latents.measured_scale(torch.full((3, 1, 2, 2), 0.5), torch.tensor([0.5]))


def test_data_of_latents_keep_labels_and_images() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    images = Data(
        draws((4, 1, 4, 4), 1, torch.float32), draws((4, 1, 4, 4), 2, torch.float32), labels, labels
    )
    folded = Folded(2, 1)
    stage = Latents(folded.encode, folded.decode, 2, (4, 4))
    found = latents.of(images, stage, stage.encode(images.train), stage.encode(images.test), "said")
    assert found.pixels is images
    assert found.first_stage is stage
    assert found.shape == (4, 2, 2)
    assert found.classes == images.classes
    assert found.notes == ("said",)
    # An orthogonal map keeps the mean square.
    assert found.sigma_data == pytest.approx(images.sigma_data, rel=1e-6)
    assert found.digest != images.digest
