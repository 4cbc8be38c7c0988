"""`[[fixed]]` of a study file: a model that is measured as it is, and where its files are."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from testbed.settings import Setting
from testbed.trial.specs import ComponentSpec, Model

NAME = "fixed"
"""The key of such a model in the settings of its trial, and the name of its network there."""
OF = {
    "path": ("subfolder", "scheduler"),
    "factory": ("wrapping", "weights", "prefix", "average", "table", "sigma_data"),
}
"""The keys that belong to the one source of a model and not to the other."""


class FixedModel(Model):
    """`[[fixed]]`: a model that is measured as it is, and where its files are."""

    name: Annotated[
        str,
        Field(pattern=r"^[^/\s][^/]*$", max_length=100),
        Setting("Name of the model in the report.", identity=False),
    ]
    path: Annotated[
        str,
        Setting(
            "Folder of a model or a pipeline of diffusers; what its network returns, and for which "
            "levels, its scheduler_config.json says.",
            identity=False,
        ),
    ] = ""
    subfolder: Annotated[
        str,
        Setting('The network\'s folder in it, such as "unet_ema".', identity=False),
    ] = ""
    scheduler: Annotated[
        str,
        Setting("The scheduler's folder, where it is not in that of the model.", identity=False),
    ] = ""
    factory: Annotated[
        str,
        Setting(
            'In place of path, "file.py:function" or "module:function" that returns the network.',
            identity=False,
        ),
    ] = ""
    wrapping: Annotated[
        str,
        Setting(
            'What its codebase puts around the network of a factory, such as "edm.EDMPrecond".',
            identity=False,
        ),
    ] = ""
    weights: Annotated[
        str,
        Setting("The .safetensors file of the weights of a factory's network.", identity=False),
    ] = ""
    prefix: Annotated[
        str, Setting("What stands before the network's names in that file.", identity=False)
    ] = ""
    average: Annotated[
        str,
        Setting(
            'Of several sets of weights in that file, the average that is taken; "none" for the '
            "weights themselves.",
            identity=False,
        ),
    ] = ""
    table: Annotated[
        ComponentSpec | None,
        Setting("The levels of a wrapping that counts in a table.", identity=False),
    ] = None
    sigma_data: Annotated[
        float | None,
        Field(gt=0),
        Setting("The sigma_data of a wrapping that has one.", identity=False),
    ] = None
    digest: Annotated[str, Setting("Digest of its files; the study writes it.")] = ""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.path) == bool(self.factory):
            raise ValueError("needs path, the folder of a model of diffusers, or factory")
        other = "factory" if self.path else "path"
        for name in OF[other]:
            if getattr(self, name):
                raise ValueError(f"has {name}, which is that of a {other}")
        if self.factory and not self.wrapping:
            raise ValueError('has a factory: wrapping = "..." says what is around its network')
        return self

    @field_validator("digest")
    @classmethod
    def _hexadecimal(cls, value: str) -> str:
        if not all(letter in "0123456789abcdef" for letter in value):
            raise ValueError("is written by the study, and must not be")
        return value
