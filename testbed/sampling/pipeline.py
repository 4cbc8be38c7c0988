"""Samples in one call: from conditions, from images, and around known regions of images.

A denoiser, the levels of its path and its sampler are put together once; a call says what is to be
sampled. Image to image starts part of the way down the path, from the image with that level's noise
(Meng et al. 2022, arXiv:2108.01073, algorithm 1). Inpainting replaces D by the image where that is
known (`Known`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from testbed.components.first_stage import FirstStage
from testbed.components.guidance import Condition, Conditional, Denoise
from testbed.components.sampler import Sampler
from testbed.components.schedule import Schedule
from testbed.diffusion.noise_tables import NoiseTable
from testbed.errors import InputError, UnknownName, unknown
from testbed.random import Generators, stream
from testbed.sampling.guidance import EVERYWHERE, ClassifierFree, ConditionedDenoiser
from testbed.sampling.loop import Callback, sample
from testbed.sampling.schedules import path
from testbed.training.conditions import OFF

if TYPE_CHECKING:
    from PIL.Image import Image

Output = Literal["tensor", "latent", "array", "pil"]
Classes = int | str | Sequence[int | str] | Tensor
"""The class of a condition, or the text that stands for it: one for all samples, or one each."""


@dataclass(frozen=True)
class Known:
    """D(x, sigma) of what is not known, and x0 itself where it is: m x0 + (1 - m) D.

    A path of the samplers that starts at x0 + sigma eps has x = x0 + sigma eps in the known region
    all along, with the same eps where no noise is drawn, so that the unknown region sees the known
    one at its own noise level (Song et al. 2021, arXiv:2011.13456, app. I.2). That is no exact
    sample of p(unknown | known): the path of the unknown region does not look at the likelihood of
    the known one.

    Args:
        denoiser: (x, sigma) -> D.
        x0: (B, ...) the image.
        known: like x0, from 0 to 1: m, 1 where the image is kept.
    """

    denoiser: Denoise
    x0: Tensor
    known: Tensor

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns m x0 + (1 - m) D at x (B, ...) and sigma (B,), shaped like x and of its dtype."""
        return torch.lerp(self.denoiser(x, sigma), self.x0, self.known)


@dataclass(frozen=True)
class Pipeline:
    """Draws samples of a denoiser.

    Args:
        denoiser: (x, sigma, condition) -> D, x (B, *shape), sigma (B,).
        shape: the shape of a sample, or of its latent.
        sigma_range: the lowest and the highest noise level of its path.
        sampler, schedule: those of a call that names none.
        steps: the number of steps of a call that names none.
        sigma_data: sqrt(E|x0|^2/d) of the data: the path starts at the size of x at its level.
        classes: the number of classes of each condition.
        texts: the texts that the classes of a condition stand for, by its name.
        always: the conditions that the denoiser was never trained without.
        table: the levels of a discrete denoiser.
        trained: the lowest and the highest of them that it was trained on; by default all.
        extent: the lowest and the highest value of an image's pixels.
        first_stage: what decodes the samples, where they are latents.
        own: condition -> the denoiser that samples of it follow where a call states no scale; by
            default D under that condition.
        device: where the denoiser is; noise is drawn on the CPU.
    """

    denoiser: Conditional
    shape: tuple[int, ...]
    sigma_range: tuple[float, float]
    sampler: Sampler
    schedule: Schedule
    steps: int
    sigma_data: float
    classes: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    always: frozenset[str] = frozenset()
    table: NoiseTable | None = None
    trained: tuple[float, float] | None = None
    extent: tuple[float, float] = (-1.0, 1.0)
    first_stage: FirstStage | None = None
    own: Callable[[Condition], Denoise] | None = None
    device: torch.device | str = "cpu"

    def __call__(
        self,
        n: int = 1,
        condition: Mapping[str, Classes] | None = None,
        negative: Mapping[str, Classes] | None = None,
        *,
        scale: float | None = None,
        interval: tuple[float, float] = EVERYWHERE,
        steps: int | None = None,
        sampler: Sampler | None = None,
        schedule: Schedule | None = None,
        eta: float | None = None,
        generator: Generators | None = None,
        noise: Tensor | None = None,
        image: Tensor | None = None,
        strength: float = 1.0,
        known: Tensor | None = None,
        size: tuple[int, int] | None = None,
        output: Output = "tensor",
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Any:
        """Draws n samples.

        Args:
            n: their number.
            condition: name -> the class, or the text, of all samples or of each; what is left out
                is switched off.
            negative: the condition of D_n; by default nothing.
            scale: w of D_n + w (D_y - D_n); without it the samples follow `own`.
            interval: the noise levels (low, high] that are guided.
            steps, sampler, schedule: in place of the pipeline's own.
            eta: the sampler's option of that name: how much fresh noise its steps draw.
            generator: the source of all noise, on the CPU: one, or one for each sample, which makes
                a sample what it is whatever the others are; by default one of seed 0.
            noise: (n, *shape) unit Gaussian noise to start from, in place of the generator's.
            image: (n, C, H, W) or (C, H, W) clean images to start from.
            strength: the share of the path's steps that an image goes through, above 0.
            known: (n or 1, 1 or C, H, W) from 0 to 1, where the image is kept; it needs an image.
            size: (H, W) of the samples (of the latents with a first stage), where not the shape's.
            output: "tensor" (n, C, H, W) in the units of the data, "latent" as the denoiser has
                them, "array" (n, H, W, C) uint8, or "pil", a list of images of Pillow.
            callback: it is called before each step as `callback(i, sigma_i, x_i)`.
            progress: whether a bar on standard error shows the progress.

        Raises:
            InputError: an argument that does not fit, or that needs another one.
            UnknownName: no such condition, text or output.
        """
        if output not in get_args(Output):
            raise UnknownName(f"output: {unknown('output', output, get_args(Output))}")
        shape = self._sized(size)
        sampler = self._sampler(sampler or self.sampler, eta)
        generators = stream(0, "draw") if generator is None else generator
        levels = schedule or self.schedule, steps or self.steps, self.sigma_range
        sigmas = path(*levels, self.table, self.trained)
        # A guide may be trained here, for the first samples of a condition.
        denoise = self.guided(n, condition or {}, negative, scale, interval)
        with torch.no_grad():
            eps = self._noise(noise, n, shape, generators).to(self.device)
            start = self._start(denoise, sigmas, eps, image, strength, known)
            samples = sample(*start, sampler, generators, callback, progress)
            return self._as(output, samples)

    def _start(
        self,
        denoise: Denoise,
        sigmas: Tensor,
        eps: Tensor,
        image: Tensor | None,
        strength: float,
        known: Tensor | None,
    ) -> tuple[Denoise, Tensor, Tensor]:
        """D, the x (n, *shape) that a path starts at, and its levels: from the prior or an image.

        Args:
            sigmas: the levels of the whole path.
            eps: (n, *shape) unit Gaussian noise.
            image, strength, known: see `__call__`.
        """
        if image is None:
            if strength != 1 or known is not None:
                name = "known" if strength == 1 else "strength"
                raise InputError(f"{name} is that of an image: give image=....")
            # The prior at the first level: noise and the data's second moment.
            return denoise, math.hypot(float(sigmas[0]), self.sigma_data) * eps, sigmas
        x0 = self._latents(image, *eps.shape)
        sigmas = started(sigmas, strength)
        if known is not None:
            denoise = Known(denoise, x0, self._region(known, x0))
        return denoise, x0 + float(sigmas[0]) * eps, sigmas

    def guided(
        self,
        n: int,
        condition: Mapping[str, Classes],
        negative: Mapping[str, Classes] | None,
        scale: float | None,
        interval: tuple[float, float] = EVERYWHERE,
    ) -> Denoise:
        """The denoiser (x, sigma) -> D that n samples of a condition follow; see `__call__`."""
        given = self.condition(n, condition)
        if scale is None:
            if negative is not None or interval != EVERYWHERE:
                name = "interval" if negative is None else "negative"
                raise InputError(f"{name} is that of guidance: give scale=....")
            for name in sorted(self.always - given.keys()):
                raise InputError(
                    f"condition {name!r} was never switched off in training: give it a class."
                )
            return (
                self.own(given) if self.own else ConditionedDenoiser(self.denoiser, given or None)
            )
        if not math.isfinite(scale):
            raise InputError(f"scale = {scale}: expected a finite number.")
        if not given:
            raise InputError(f"scale = {scale} guides towards a condition: give condition=....")
        off = self.condition(n, negative or {})
        for name in sorted(self.always - off.keys()):
            raise InputError(
                f"condition {name!r} was never switched off in training, which guidance needs: "
                "give it a class in negative=..., or train with a rate of dropout above 0."
            )
        return ClassifierFree(self.denoiser, [(given, scale)], off or None, interval)

    def condition(self, n: int, given: Mapping[str, Classes]) -> dict[str, Tensor]:
        """The classes of n samples, name -> (n,) int64; a class of -1 is switched off.

        Raises:
            UnknownName: no such condition, or no such text.
            InputError: a class that there is not, or another number of classes than of samples.
        """
        found = {}
        for name, value in given.items():
            if name not in self.classes:
                raise UnknownName(unknown("condition", name, self.classes))
            several = [value] if isinstance(value, int | str) else list(value)
            if len(several) not in (1, n):
                raise InputError(
                    f"condition {name!r} has {len(several)} classes for {n} samples: give one, or "
                    "one for each."
                )
            classes = torch.tensor([self._class(name, one) for one in several])
            found[name] = classes.expand(n).to(self.device)
        return found

    def _class(self, name: str, value: int | str | Tensor) -> int:
        if isinstance(value, str):
            texts = self.texts.get(name, ())
            if value not in texts:
                raise UnknownName(f"condition {name!r}: {unknown('text', value, texts)}")
            return list(texts).index(value)
        if not OFF <= int(value) < self.classes[name]:
            raise InputError(
                f"condition {name!r} = {int(value)}: expected 0 to {self.classes[name] - 1}, or "
                f"{OFF} to switch it off."
            )
        return int(value)

    def _sized(self, size: tuple[int, int] | None) -> tuple[int, ...]:
        """The shape of a sample of this size."""
        if size is None:
            return self.shape
        if len(self.shape) != 3 or min(size) < 1:
            raise InputError(
                f"size = {size}: expected two positive numbers, of images; samples have shape "
                f"{self.shape}."
            )
        return (self.shape[0], *size)

    @staticmethod
    def _sampler(sampler: Sampler, eta: float | None) -> Sampler:
        if eta is None:
            return sampler
        if "eta" not in sampler.options:
            raise InputError(f"eta = {eta}: {sampler.label} has no such option.")
        return sampler.bound({**sampler.options, "eta": eta})

    @staticmethod
    def _noise(
        noise: Tensor | None, n: int, shape: tuple[int, ...], generators: Generators
    ) -> Tensor:
        """Unit Gaussian noise, (n, *shape) float32."""
        if isinstance(generators, Sequence) and len(generators) != n:
            raise InputError(f"{len(generators)} generators for {n} samples: give one for each.")
        if noise is not None:
            if noise.shape != (n, *shape):
                raise InputError(f"noise has shape {tuple(noise.shape)}, expected {(n, *shape)}.")
            return noise
        if isinstance(generators, torch.Generator):
            return torch.randn(n, *shape, generator=generators)
        return torch.stack([torch.randn(shape, generator=one) for one in generators])

    def _latents(self, image: Tensor, n: int, *shape: int) -> Tensor:
        """The clean samples that images stand for, (n, *shape)."""
        images = (image if image.ndim == len(self.shape) + 1 else image[None]).to(self.device)
        x0 = images if self.first_stage is None else self.first_stage.encode(images)
        if len(x0) not in (1, n) or x0.shape[1:] != shape:
            raise InputError(
                f"image has shape {tuple(image.shape)}, samples of shape {tuple(x0.shape)}: "
                f"expected 1 or {n} of shape {shape}."
            )
        return x0.expand(n, *shape)

    def _region(self, known: Tensor, x0: Tensor) -> Tensor:
        """m of `Known`, shaped like x0; that of latents is the mean over each latent's pixels."""
        if not bool(((known >= 0) & (known <= 1)).all()):
            raise InputError("known holds values outside of 0 to 1.")
        region = known.to(x0)
        if self.first_stage is not None:
            region = torch.nn.functional.adaptive_avg_pool2d(
                region[:, :1], (x0.shape[2], x0.shape[3])
            )
            # A latent is kept where all its pixels are known.
            region = (region == 1).to(x0)
        try:
            return region.expand_as(x0)
        except RuntimeError:
            raise InputError(
                f"known has shape {tuple(known.shape)}, which does not fit samples of shape "
                f"{tuple(x0.shape)}."
            ) from None

    def _as(self, output: Output, samples: Tensor) -> Any:
        if output == "latent":
            return samples
        images = samples if self.first_stage is None else self.first_stage.decode(samples)
        if output == "tensor":
            return images
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InputError(
                f'output = "{output}" is that of grey or coloured images; samples have shape '
                f"{tuple(images.shape[1:])}."
            )
        array = pixels(images, *self.extent)
        return array if output == "array" else _pillow(array)


def started(sigmas: Tensor, strength: float) -> Tensor:
    """The last levels of a path, (round(strength steps) + 1,): where an image enters it.

    Raises:
        InputError: a strength that is not in (0, 1], or leaves no step.
    """
    steps = len(sigmas) - 1
    left = round(strength * steps) if 0 < strength <= 1 else 0
    if not left:
        raise InputError(
            f"strength = {strength}: expected above 0 and up to 1, and at least one of {steps} "
            "steps."
        )
    return sigmas[steps - left :]


def pixels(images: Tensor, low: float, high: float) -> Any:
    """Images (n, C, H, W) of values from low to high as (n, H, W, C) uint8; beyond is clipped."""
    shares = ((images.float() - low) / (high - low)).clamp(0, 1)
    return (255 * shares).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _pillow(array: Any) -> list[Image]:
    from PIL import Image

    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in array]
