"""The pipeline: against the sampling loop, closed forms of Gaussians, and its own promises."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.strategies import draws
from laws.pipeline import law_keeps_what_is_known
from torch import Tensor

import testbed
from testbed.components.guidance import Condition
from testbed.errors import InputError, UnknownName
from testbed.random import stream
from testbed.sampling.guidance import ClassifierFree
from testbed.sampling.pipeline import Known, pixels, started

REGISTRY = testbed.Registry()
SHAPE = (3, 4, 4)
VARIANCES = torch.linspace(0.05, 2.0, math.prod(SHAPE)).view(SHAPE)
MEANS = torch.tensor([0.0, 1.0, -2.0])
DETERMINISTIC = ["euler", "heun", "lms", "dpmpp_2m", "ddim"]
STOCHASTIC = [
    '{name = "ddim", eta = 1.0}',
    '{name = "euler", churn = 9.0}',
    "euler_ancestral",
    "ddpm",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
]


def exact(x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
    """D of N(m_y, diag L), elementwise: (L x + sigma^2 m)/(L + sigma^2); m = 0 without a class."""
    s2 = sigma.to(x.dtype).expand(len(x)).view(-1, 1, 1, 1) ** 2
    label = torch.full((1,), -1) if condition is None else condition["label"]
    m = torch.where(label >= 0, MEANS[label], 0.0).expand(len(x)).view(-1, 1, 1, 1)
    return (VARIANCES * x + s2 * m.to(x.dtype)) / (VARIANCES + s2)


def sampler(word: str) -> testbed.Sampler:
    """A sampler by name, or by name and options."""
    if not word.startswith("{"):
        return REGISTRY.sampler(word)
    name, option, value = word.replace("{name = ", "").rstrip("}").replace(",", " =").split(" = ")
    return REGISTRY.sampler(name.strip('"'), **{option: float(value)})


PIPELINE = testbed.Pipeline(
    exact,
    SHAPE,
    (0.01, 20.0),
    REGISTRY.sampler("heun"),
    REGISTRY.schedule("karras"),
    12,
    sigma_data=1.0,
    classes={"label": 3},
    texts={"label": ("nothing", "one blob", "two blobs")},
)


# --- a call is the loop of the samplers ----------------------------------------------------------


@pytest.mark.parametrize("word", [*DETERMINISTIC, *STOCHASTIC])
@pytest.mark.parametrize("steps", [1, 7])
def test_samples_are_those_of_the_loop(word: str, steps: int) -> None:
    generator = stream(3, "x")
    sigmas = PIPELINE.schedule(steps, *PIPELINE.sigma_range)
    x = math.hypot(20.0, 1.0) * torch.randn(5, *SHAPE, generator=generator)
    label = {"label": torch.tensor([0, 1, 2, 1, -1])}
    wanted = testbed.sample(
        lambda x, s: exact(x, s, label), x, sigmas, sampler(word), generator=generator
    )
    asked = {"label": [0, 1, 2, 1, -1]}
    found = PIPELINE(5, asked, steps=steps, sampler=sampler(word), generator=stream(3, "x"))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("word", [*DETERMINISTIC, *STOCHASTIC])
def test_a_sample_with_its_own_generator_depends_on_no_other(word: str) -> None:
    def drawn(seeds: list[int]) -> Tensor:
        made: Tensor = PIPELINE(
            len(seeds), sampler=sampler(word), generator=[stream(seed, "x") for seed in seeds]
        )
        return made

    three, one, others = drawn([5, 6, 7]), drawn([6]), drawn([7, 5])
    assert torch.equal(three[1:2], one)
    assert torch.equal(three[[2, 0]], others)
    assert not torch.equal(three[0], three[1])


def test_noise_may_be_given() -> None:
    noise = torch.randn(2, *SHAPE, generator=stream(0, "draw"))
    assert torch.equal(PIPELINE(2, noise=noise), PIPELINE(2))


def test_eta_is_an_option_of_the_sampler() -> None:
    by_option = PIPELINE(2, sampler=REGISTRY.sampler("ddim", eta=0.4))
    assert torch.equal(PIPELINE(2, sampler=REGISTRY.sampler("ddim"), eta=0.4), by_option)
    assert not torch.equal(PIPELINE(2, sampler=REGISTRY.sampler("ddim")), by_option)


def test_a_discrete_denoiser_is_asked_at_its_levels_alone() -> None:
    levels: list[float] = []

    def denoiser(x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        levels.extend(sigma.tolist())
        return exact(x, sigma, condition)

    table = REGISTRY.table("ddpm")
    known = table.sigmas[50:801]
    trained = float(known[0]), float(known[-1])
    replace(PIPELINE, denoiser=denoiser, table=table, trained=trained)(1)
    apart = (torch.tensor(levels).double()[:, None] - known).abs() / known
    assert float(apart.min(1).values.max()) <= 2.0**-24


# --- guidance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", [None, {"label": 2}])
@pytest.mark.parametrize("interval", [(0.0, math.inf), (0.5, 5.0)])
def test_guided_samples_follow_classifier_free_guidance(
    negative: Mapping[str, int] | None, interval: tuple[float, float]
) -> None:
    given = {"label": torch.tensor([0, 1, 1])}
    off = None if negative is None else {"label": torch.full((3,), 2)}
    guided = ClassifierFree(exact, [(given, 3.0)], off, interval)
    generator = stream(0, "draw")
    x = math.hypot(20.0, 1.0) * torch.randn(3, *SHAPE, generator=generator)
    wanted = testbed.sample(guided, x, PIPELINE.schedule(12, *PIPELINE.sigma_range))
    found = PIPELINE(3, {"label": [0, 1, 1]}, negative, scale=3.0, interval=interval)
    assert torch.equal(found, wanted)


def test_texts_stand_for_classes() -> None:
    by_text = PIPELINE(2, {"label": ["two blobs", "one blob"]})
    assert torch.equal(by_text, PIPELINE(2, {"label": [2, 1]}))
    assert torch.equal(PIPELINE(2, {"label": "two blobs"}), PIPELINE(2, {"label": 2}))


def test_without_a_scale_samples_follow_the_trials_own_guidance() -> None:
    def own(condition: Condition) -> Any:
        return lambda x, sigma: exact(x, sigma, None) + condition["label"].view(-1, 1, 1, 1)

    guided = replace(PIPELINE, own=own)(2, {"label": [1, 0]})
    plain = PIPELINE(2)
    assert torch.equal(guided[1], plain[1])
    assert not torch.equal(guided[0], plain[0])


# --- image to image ------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_an_image_ends_where_the_exact_path_does(strength: float) -> None:
    """From x at sigma the ODE of N(0, L) ends at x sqrt(L/(L + sigma^2)): order 2 in the steps."""
    image, noise = draws((2, *SHAPE), 7, torch.float64), draws((2, *SHAPE), 8, torch.float64)
    errors = []
    for steps in (64, 128, 256):
        schedule = PIPELINE.schedule(steps, *PIPELINE.sigma_range)
        sigma = float(schedule[steps - round(strength * steps)])
        L = VARIANCES.double()
        wanted = (image + sigma * noise) * torch.sqrt(L / (L + sigma**2))
        found = PIPELINE(2, image=image, noise=noise, strength=strength, steps=steps)
        # The last step is Euler's, from sigma_min = 0.01 to 0.
        errors.append(float((found - wanted).abs().max()))
    # Euler's last step: x (L/(L + s^2)) for x sqrt(L/(L + s^2)), a share of at most s^2/(2 L).
    floor = 0.01**2 / (2 * float(VARIANCES.min())) * float(image.abs().max() + 20 * 4)
    for coarse, fine in pairwise(errors):
        assert fine <= coarse / 3 + floor


def test_the_strength_is_a_share_of_the_steps() -> None:
    sigmas = torch.arange(10.0, -1, -1)
    assert [len(started(sigmas, s)) - 1 for s in (0.1, 0.25, 0.5, 0.99, 1.0)] == [1, 2, 5, 10, 10]
    assert float(started(sigmas, 0.3)[0]) == 3.0


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.5, 0.04, math.nan])
def test_a_strength_without_a_step_is_refused(strength: float) -> None:
    with pytest.raises(InputError, match=r"strength = .*above 0 and up to 1.*one of 12 steps"):
        PIPELINE(1, image=torch.zeros(1, *SHAPE), strength=strength)


# --- inpainting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [*DETERMINISTIC, "ddim at eta 1"])
def test_the_known_region_is_kept(word: str) -> None:
    law_keeps_what_is_known(Known, sampler(word.replace("ddim at eta 1", STOCHASTIC[0])))


def test_of_independent_pixels_the_unknown_ones_are_as_without_an_image() -> None:
    image, noise = draws((2, *SHAPE), 7, torch.float32), draws((2, *SHAPE), 8, torch.float32)
    known = torch.zeros(1, 1, 4, 4)
    known[..., :2] = 1
    zero = torch.zeros_like(image)
    # An image enters the path at x0 + sigma eps; of zeros alone the path is that of the noise.
    plain = PIPELINE(2, image=zero, noise=noise)
    found = PIPELINE(2, image=image * known, noise=noise, known=known)
    assert torch.equal(found[..., 2:], plain[..., 2:])


# --- first stage, sizes and outputs -------------------------------------------------------------


class Halved:
    """Latents of half the size: the mean of each square of four pixels, times 3."""

    digest = "halved"

    def encode(self, images: Tensor) -> Tensor:
        return 3 * torch.nn.functional.avg_pool2d(images, 2)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents / 3, scale_factor=2)


def test_latents_are_decoded_and_images_encoded() -> None:
    latent = replace(PIPELINE, first_stage=Halved())
    samples = latent(2, output="latent")
    assert torch.equal(samples, PIPELINE(2))
    assert torch.equal(latent(2), Halved().decode(samples))
    image = draws((2, 3, 8, 8), 5, torch.float32)
    noise = draws((2, *SHAPE), 6, torch.float32)
    found = latent(2, image=image, noise=noise, strength=0.5, output="latent")
    wanted = PIPELINE(2, image=Halved().encode(image), noise=noise, strength=0.5)
    assert torch.equal(found, wanted)


def test_a_latent_is_kept_where_all_its_pixels_are() -> None:
    latent = replace(PIPELINE, first_stage=Halved())
    known = torch.zeros(1, 1, 8, 8)
    known[..., :3, :] = 1
    image = draws((1, 3, 8, 8), 5, torch.float32)
    found = latent(1, image=image, known=known, output="latent")
    kept = Halved().encode(image)
    # The last step is D, which is the image there, up to the roundings of Heun's sum.
    assert float((found - kept)[..., :1, :].abs().max()) <= 8 * 2.0**-24 * (20 + 3)
    assert float((found - kept)[..., 1:, :].abs().min()) > 1e-4


def test_images_of_another_size_are_drawn() -> None:
    def denoiser(x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2).float()

    assert replace(PIPELINE, denoiser=denoiser)(2, size=(6, 2)).shape == (2, 3, 6, 2)


def test_pixels_are_rounded_and_clipped() -> None:
    values = torch.tensor([-1.5, -1.0, -0.999, 0.0, 0.5, 1.0, 7.0]).view(1, 1, 1, 7)
    assert pixels(values, -1.0, 1.0).ravel().tolist() == [0, 0, 0, 128, 191, 255, 255]
    assert pixels(values, 0.0, 2.0).ravel().tolist() == [0, 0, 0, 0, 64, 128, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_images_of_pillow_have_the_pixels(channels: int, mode: str) -> None:
    def denoiser(x: Tensor, sigma: Tensor, condition: Condition | None) -> Tensor:
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2).float()

    small = replace(PIPELINE, denoiser=denoiser, shape=(channels, 4, 6))
    images, array = small(2, output="pil"), small(2, output="array")
    assert array.shape == (2, 4, 6, channels)
    assert array.dtype == np.uint8
    for image, wanted in zip(images, array, strict=True):
        assert (image.mode, image.size) == (mode, (6, 4))
        assert np.array_equal(np.asarray(image).reshape(4, 6, channels), wanted)


def test_a_callback_sees_each_step() -> None:
    seen: list[tuple[int, float]] = []
    PIPELINE(1, steps=3, callback=lambda i, sigma, x: seen.append((i, sigma)))
    assert [i for i, _ in seen] == [0, 1, 2]
    assert [sigma for _, sigma in seen] == PIPELINE.schedule(3, 0.01, 20.0)[:3].tolist()


# --- what does not fit ---------------------------------------------------------------------------

IMAGE = torch.zeros(1, *SHAPE)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"output": "picture"}, "output.*'picture'"),
    ({"condition": {"lable": 1}}, "Unknown condition 'lable'. Did you mean 'label'?"),
    ({"condition": {"label": 3}}, "'label' = 3: expected 0 to 2, or -1"),
    ({"condition": {"label": -2}}, "'label' = -2: expected 0 to 2, or -1"),
    ({"condition": {"label": [0, 1]}}, "has 2 classes for 3 samples"),
    ({"condition": {"label": "two blob"}}, "Did you mean 'two blobs'?"),
    ({"scale": 2.0}, "scale = 2.0 guides towards a condition"),
    ({"scale": math.nan, "condition": {"label": 1}}, "scale = nan: expected a finite number"),
    ({"negative": {"label": 1}}, "negative is that of guidance: give scale"),
    ({"interval": (0.1, 1.0)}, "interval is that of guidance: give scale"),
    ({"eta": 0.5}, "eta = 0.5: sampler 'heun' has no such option"),
    ({"generator": [stream(0, "x")]}, "1 generators for 3 samples"),
    ({"noise": torch.zeros(2, *SHAPE)}, r"noise has shape \(2, 3, 4, 4\), expected \(3, 3, 4, 4\)"),
    ({"strength": 0.5}, "strength is that of an image"),
    ({"known": torch.ones(1, 1, 4, 4)}, "known is that of an image"),
    ({"image": IMAGE, "known": torch.full((1, 1, 4, 4), 1.5)}, "known holds values outside of 0"),
    ({"image": IMAGE, "known": torch.ones(1, 1, 5, 4)}, "known has shape .*does not fit"),
    ({"image": torch.zeros(2, *SHAPE)}, "expected 1 or 3 of shape"),
    ({"image": torch.zeros(3, 5, 5)}, "expected 1 or 3 of shape"),
    ({"size": (0, 4)}, r"size = \(0, 4\): expected two positive numbers"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_does_not_fit_is_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PIPELINE(3, **arguments)


def test_an_unknown_output_is_an_unknown_name() -> None:
    with pytest.raises(UnknownName):
        PIPELINE(1, output="images")  # type: ignore[arg-type]


def test_pictures_are_those_of_images() -> None:
    vectors = replace(
        PIPELINE, denoiser=lambda x, s, c: 0 * x, shape=(5,), sampler=REGISTRY.sampler("euler")
    )
    assert vectors(2).shape == (2, 5)
    for output in ("array", "pil"):
        with pytest.raises(InputError, match="grey or coloured images; samples have shape"):
            vectors(2, output=output)
    with pytest.raises(InputError, match="of images; samples have shape"):
        vectors(2, size=(4, 4))


def test_a_condition_that_was_never_dropped_has_to_be_given() -> None:
    always = replace(PIPELINE, always=frozenset({"label"}))
    with pytest.raises(InputError, match="'label' was never switched off in training: give it"):
        always(1)
    with pytest.raises(InputError, match="which guidance needs"):
        always(1, {"label": 1}, scale=2.0)
    negative = always(1, {"label": 1}, {"label": 0}, scale=2.0)
    assert torch.equal(negative, PIPELINE(1, {"label": 1}, {"label": 0}, scale=2.0))
