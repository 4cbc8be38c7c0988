"""The settings of a trial that a study file names and a resolved trial has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from testbed.settings import Setting
from testbed.training.settings import Training
from testbed.trial.encoder import Encoder
from testbed.trial.fixed_model import FixedModel
from testbed.trial.specs import ComponentSpec, Evaluation, Model, Variance
from testbed.trial.texts import TextEncoder


class TrialFields(Model):
    """The settings of a trial that a study file names and a resolved trial has."""

    parameterization: Annotated[
        ComponentSpec,
        Setting(
            "What the network is asked for.",
            objective=True,
            axis="parameterization",
        ),
    ]
    dataset: Annotated[
        ComponentSpec,
        Setting(
            "The data that are trained on.",
            batch=True,
            report="data",
            axis="dataset",
        ),
    ]
    encoder: Annotated[
        Encoder | None,
        Setting(
            "The first stage, which takes images to the latents that are trained on; none where it "
            "is left out.",
            batch=True,
            report="data",
            since=3,
        ),
    ] = None
    network: Annotated[
        ComponentSpec,
        Setting(
            "The network F.",
            batch=True,
            report="network",
            axis="network",
        ),
    ] = ComponentSpec(name="mlp")
    weighting: Annotated[
        ComponentSpec | None,
        Setting(
            'lambda(sigma), multiplying |D - x0|^2; "none" leaves the loss unweighted in its own '
            "space.",
            objective=True,
            report="recipe",
            axis="weighting",
            from_recipe=True,
        ),
    ] = ComponentSpec(name="recipe")
    loss: Annotated[
        ComponentSpec,
        Setting(
            "The discrepancy, and the space in which it is taken.",
            objective=True,
            report="recipe",
            axis="loss",
            from_recipe=True,
        ),
    ] = ComponentSpec(name="recipe")
    density: Annotated[
        ComponentSpec,
        Setting(
            "The distribution of the noise levels that training draws.",
            objective=True,
            report="recipe",
            axis="density",
            from_recipe=True,
        ),
    ] = ComponentSpec(name="recipe")
    c_in: Annotated[
        Literal["recipe", "native", "shared", "unit", "vp", "flow"],
        Setting(
            "The scale of the network's input: the parameterization's own (\"native\"), "
            '1/sqrt(sigma^2 + sigma_data^2) for all ("shared"), 1 ("unit"), 1/sqrt(1 + sigma^2) '
            '("vp") or 1/(1 + sigma) ("flow").',
            objective=True,
            report="recipe",
            from_recipe=True,
        ),
    ] = "recipe"
    c_noise: Annotated[
        Literal[
            "recipe",
            "native",
            "shared",
            "index",
            "sigma",
            "log_sigma",
            "log_half_sigma",
            "log_snr",
            "time",
            "reversed_time",
            "cosine_time",
            "vp_time",
        ],
        Setting(
            'The noise level as the network gets it: the parameterization\'s own ("native"), '
            'log(sigma)/4 for all ("shared"), the index in the table ("index"), sigma, log sigma, '
            'log(sigma/2) ("log_half_sigma"), -2 log sigma ("log_snr"), sigma/(1 + sigma) '
            '("time"), 1/(1 + sigma) ("reversed_time"), 2/pi arctan(sigma) ("cosine_time"), or '
            '999 t of the VP schedule ("vp_time").',
            objective=True,
            report="recipe",
            from_recipe=True,
        ),
    ] = "recipe"
    table: Annotated[
        ComponentSpec | None,
        Setting(
            'The finitely many levels of a discrete denoiser; "none" for a continuous one.',
            report="recipe",
            axis="table",
            from_recipe=True,
            recipe_with=("density", "c_noise"),
        ),
    ] = ComponentSpec(name="recipe")
    noise: Annotated[
        ComponentSpec,
        Setting(
            "What is added to eps in training.",
            batch=True,
            report="noise",
            axis="noise",
        ),
    ] = ComponentSpec(name="white")
    output: Annotated[
        Literal["recipe", "F", "x0", "eps", "-eps", "score", "v", "flow"],
        Setting(
            'The prediction type that the network returns; "F" for the parameterization\'s own.',
            objective=True,
            report="recipe",
            from_recipe=True,
            recipe_with=("c_in", "c_noise"),
        ),
    ] = "recipe"
    variance: Annotated[
        Variance,
        Setting(
            "Whether the variance of a reverse step is fixed or learned.",
        ),
    ] = Variance()
    conditions: Annotated[
        dict[str, float],
        Setting(
            "The conditions of the model by name, each with its rate of dropout.",
        ),
    ] = Field(default_factory=dict)
    fixed: Annotated[
        FixedModel | None,
        Setting("The model of a [[fixed]] of the study, which is not trained.", since=3),
    ] = None
    text_encoder: Annotated[
        TextEncoder | None,
        Setting(
            "What turns the texts of the data into states of tokens, to which the network attends; "
            "where this is left out a text is a class.",
            batch=True,
            report="network",
            since=3,
        ),
    ] = None
    training: Annotated[Training, Setting("How the trial is trained.")] = Training()
    evaluation: Annotated[
        Evaluation,
        Setting(
            "How the trained model is measured.",
            evaluation=True,
            report="evaluation",
        ),
    ] = Evaluation()

    @field_validator("weighting", "table", "encoder", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return (
            None if value in ("none", {"name": "none"}, {"name": "none", "options": {}}) else value
        )

    @field_validator("text_encoder", mode="before")
    @classmethod
    def _no_encoder(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_validator("conditions", mode="before")
    @classmethod
    def _dropout(cls, value: Any) -> Any:
        if value == "none":
            return {}
        rates: Iterable[Any] = value.values() if isinstance(value, Mapping) else [None]
        for rate in rates:
            if isinstance(rate, bool) or not isinstance(rate, int | float):
                raise ValueError('must be "none", or a table { label = 0.1 } of dropout rates')
            if not 0 <= rate <= 1:
                raise ValueError("must have dropout rates from 0 to 1")
        return value
