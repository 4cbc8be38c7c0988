"""The settings of a study's encoder, the first stage of its latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from testbed.settings import Setting
from testbed.trial.specs import Model


class Encoder(Model):
    """`encoder`: an AutoencoderKL, trained on the images of the study or read from a folder."""

    path: Annotated[
        str,
        Setting(
            "The folder of a trained AutoencoderKL of diffusers; without one the encoder is "
            "trained on the study's images.",
            identity=False,
        ),
    ] = ""
    channels: Annotated[
        tuple[int, ...],
        Setting(
            "The widths of its resolutions, from that of the images; each but the first halves the "
            "sides."
        ),
    ] = (32, 64)
    latent_channels: Annotated[int, Setting("The channels of a latent.")] = Field(4, ge=1)
    layers: Annotated[int, Setting("Residual blocks at each resolution.")] = Field(1, ge=1)
    loss: Annotated[
        Literal["l1", "l2"], Setting("The distance of a reconstruction from its image.")
    ] = "l1"
    reconstruction: Annotated[float, Setting("The weight of that distance.")] = Field(1.0, gt=0)
    kl: Annotated[
        float, Setting("The weight of the posterior's KL divergence from a unit Gaussian.")
    ] = Field(1e-6, ge=0)
    steps: Annotated[int, Setting("Number of steps of its training.")] = Field(1000, ge=1)
    batch: Annotated[int, Setting("Number of images in a step.")] = Field(64, ge=1)
    learning_rate: Annotated[float, Setting("Adam's learning rate.")] = Field(1e-3, gt=0)
    seed: Annotated[int, Setting("The seed of its weights and draws.")] = 0
    scale: Annotated[
        float | Literal["measured", "config"],
        Setting(
            'What latents are multiplied by: "measured" for latents of unit mean square over the '
            'training split, "config" for the scaling_factor of the folder, or a number.'
        ),
    ] = "measured"
    shift: Annotated[
        Literal["channel", "config", "none"],
        Setting(
            "What is taken from latents before: the mean of each channel over the training split, "
            '"config" for the shift_factor of the folder, or nothing.'
        ),
    ] = "channel"
    precision: Annotated[
        Literal["float32", "bfloat16"], Setting("What the trained encoder computes in.")
    ] = "float32"

    @model_validator(mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"path": value}
        if isinstance(value, Mapping):
            return value
        raise ValueError(
            "must be the folder of an autoencoder, or a table { channels = [32, 64] } of settings"
        )

    @field_validator("channels")
    @classmethod
    def _widths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not 1 <= len(value) <= 6 or min(value) < 1:
            raise ValueError("must be one to six positive whole numbers, such as [32, 64]")
        return value

    @field_validator("scale", mode="before")
    @classmethod
    def _scale(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value not in ("measured", "config") and not (number and 0 < value < float("inf")):
            raise ValueError('must be "measured", "config" or a positive number')
        return value

    @model_validator(mode="after")
    def _of_a_folder(self) -> Encoder:
        if not self.path and "config" in (self.scale, self.shift):
            raise ValueError('scale and shift = "config" are those of a folder: give path')
        return self

    def __str__(self) -> str:
        """`latents of FOLDER`, or `latents of 4 channels (widths 8, 16, 32; l1; 400 steps)`."""
        scaled = f"scale {self.scale}, shift {self.shift}, {self.precision}"
        if self.path:
            return f"latents of {self.path}, {scaled}"
        made = (
            f"widths {', '.join(map(str, self.channels))}; {self.layers} a resolution; "
            f"{self.reconstruction:g} {self.loss} + {self.kl:g} KL; {self.steps} steps of "
            f"{self.batch} at {self.learning_rate:g}; seed {self.seed}"
        )
        return f"latents of {self.latent_channels} channels ({made}), {scaled}"
