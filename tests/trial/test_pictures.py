"""What pictures are made of: which levels, which images, which neighbours."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import testbed
from testbed.components.metric import Embedding
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics import denoising
from testbed.registry import default_registry
from testbed.trial import pictures
from testbed.trial.folders import TrialFolder

CPU = torch.device("cpu")
SIGMA = denoising.log_spaced(0.002, 80.0, 16)


def images(n: int = 12, shape: tuple[int, ...] = (1, 5, 4), seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def half(x: Tensor, c_noise: Tensor, condition: dict[str, Tensor] | None) -> Tensor:
    classes = torch.zeros(len(x)) if condition is None else condition["label"].float()
    return x / 2 + classes.view(-1, *[1] * (x.ndim - 1))


def denoiser() -> Denoiser:
    return Denoiser(half, default_registry().parameterization("x0"), 1.0)


@pytest.mark.parametrize("n", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("sigma_data", [0.1, 0.5, 1.0, 50.0])
def test_the_levels_lie_about_the_size_of_the_data(n: int, sigma_data: float) -> None:
    sigma = denoising.log_spaced(0.002, 80.0, n)
    rows = pictures.levels(sigma, sigma_data)
    assert rows == sorted(rows)
    for row, multiple in zip(rows, (0.1, 0.32, 1.0, 3.2, 10.0), strict=True):
        far = [abs(math.log(s / (multiple * sigma_data))) for s in sigma.tolist()]
        assert far[row] == pytest.approx(min(far))


def test_the_same_held_out_images_are_denoised_at_every_level_under_their_classes() -> None:
    labels = torch.arange(12) % 3
    data = testbed.Data(images(), images(seed=1), labels, labels)
    for conditions in ((), ("label",)):
        against = denoising.held_out_pairs(data, SIGMA, 10, conditions)
        found = pictures.denoised(denoiser(), against, [3, 9], CPU)
        assert found.shape == (2, 2, 4, 1, 5, 4)
        y = labels[against.index[:4]].float() if conditions else torch.zeros(4)
        for i, row in enumerate((3, 9)):
            x = against.x0[:4] + float(SIGMA[row]) * against.eps[:4]
            torch.testing.assert_close(found[0, i], x, rtol=1e-6, atol=1e-6 * float(SIGMA[row]))
            D = denoiser()(x, SIGMA[row].expand(4), {"label": y.long()} if conditions else None)
            torch.testing.assert_close(found[1, i], D, rtol=1e-5, atol=1e-5)


def test_neighbours_are_those_of_the_pixels_and_of_the_first_space_of_features() -> None:
    data = testbed.Data(images(), images(seed=1))
    samples = torch.stack([data.train[7], data.train[2] + 0.01, -data.train[4]])

    def measure(samples: Tensor, data: testbed.Data, generator: torch.Generator) -> float:
        return 0.0

    def even(data: testbed.Data) -> Embedding:
        return Embedding(lambda x: x.double().flatten(1) ** 2, "Squares.")

    metrics = [
        testbed.Metric("none", measure),
        testbed.Metric("even", measure, embed=even),
        testbed.Metric("later", measure, embed=lambda data: pytest.fail("it is asked")),
    ]
    pixels, squares = pictures.neighbours(samples, data, metrics)
    assert pixels.space == "The distance is that of the pixels."
    assert squares.space == "Squares."
    assert torch.equal(pixels.images[:2], data.train[[7, 2]])
    assert torch.equal(squares.images, data.train[[7, 2, 4]])
    brute = torch.stack([(one - data.train).flatten(1).norm(dim=1).min() for one in samples])
    torch.testing.assert_close(pixels.distances, brute.double(), rtol=1e-6, atol=1e-6)
    # A copy is at exactly 0, and the squares do not see a sign.
    assert pixels.distances[0] == squares.distances[0] == squares.distances[2] == 0
    assert [one.space for one in pictures.neighbours(samples, data, metrics[:1])] == [pixels.space]


def test_a_sample_that_is_not_finite_has_a_neighbour_at_no_distance() -> None:
    data = testbed.Data(images(), images(seed=1))
    samples = images(2, seed=2)
    samples[1, 0, 0, 0] = math.inf
    (found,) = pictures.neighbours(samples, data, [])
    assert math.isfinite(found.distances[0])
    assert math.isnan(found.distances[1])


def test_images_are_kept_and_vectors_are_not(tmp_path: Path) -> None:
    for shape, kept in (((1, 5, 4), True), ((5, 4), True), ((2, 5, 4), False), ((6,), False)):
        data = testbed.Data(images(shape=shape), images(shape=shape, seed=1))
        against = denoising.held_out_pairs(data, SIGMA, 10)
        folder = TrialFolder.at(tmp_path / str(len(shape)) / str(shape[0]))
        samples = images(20, shape, seed=2)
        pictures.keep(folder, denoiser(), against, samples, data, [], CPU)
        names = set(folder.store.names())
        files = {pictures.DENOISED, pictures.NEIGHBOURS, pictures.FACTS}
        assert names == (files if kept else set())
        if kept:
            facts = folder.json(pictures.FACTS)
            pairs = folder.tensors(pictures.DENOISED)["denoised"]
            assert pairs.shape == (2, len(facts["sigmas"]), 4, *shape)
            stored = folder.tensors(pictures.NEIGHBOURS)["neighbours"]
            assert torch.equal(stored[0], samples[:8])
            assert stored.shape == (2, 8, *shape)
            (fact,) = facts["neighbours"]
            assert len(fact["distances"]) == 8


def test_the_folders_of_what_was_measured_stand_by_step(tmp_path: Path) -> None:
    folder = TrialFolder.at(tmp_path / "t")
    assert folder.measured() == {}
    for step, width in ((500, None), (40, None), (2000, 0.1)):
        name = f"{step}" if width is None else f"{step}-{width}"
        folder.point(name).put_json("result.json", {"step": step, "width": width})
    folder.put_json("result.json", {"status": "finished", "steps": 2000})
    found = folder.measured()
    assert list(found) == [40, 500, 2000]
    assert found[40].path == folder.point("40").path
    assert found[2000].path == folder.path
