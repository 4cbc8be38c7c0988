"""The typed trial: what is derived from its fields, and how it is read back from disk."""

from __future__ import annotations

import dataclasses
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from testbed import settings
from testbed.settings import Setting
from testbed.study.settings import Header, ReportSettings
from testbed.training.settings import Training
from testbed.trial.config import SCHEMA, TrialConfig, TrialSettings
from testbed.trial.fields import TrialFields
from testbed.trial.specs import ComponentSpec, Evaluation, Likelihood, Variance

SMALL = {"parameterization": "v", "dataset": "moons", "sigma_data": 0.5, "sigma_data_measured": 0.5}
"""What a trial has to say."""


def config(**changes: Any) -> TrialConfig:
    return TrialConfig.model_validate({**SMALL, **changes})


MODELS = (Header, ReportSettings, TrialSettings, TrialConfig, Evaluation, Likelihood, Training)


@pytest.mark.parametrize("model", MODELS)
def test_every_field_says_what_it_is_in_a_sentence(model: type[Any]) -> None:
    declared = getattr(model, "model_fields", None) or {f.name for f in dataclasses.fields(model)}
    assert {field.name for field in settings.fields(model)} == set(declared)
    for field in settings.fields(model):
        assert re.fullmatch(r'["A-Za-z].*[.]', field.setting.says), field.name
        assert field.setting.replaced_by in ("", *declared), field.name


OTHERS: dict[str, Any] = {
    "parameterization": "eps", "dataset": "digits", "network": "other", "weighting": "edm",
    "loss": "l1", "density": "lognormal", "c_in": "shared", "c_noise": "shared", "table": "ddpm",
    "noise": "offset", "output": "eps", "variance": "learned", "sigma_min": 0.1, "sigma_max": 9.0,
    "conditions": {"label": 0.1}, "training": {"steps": 7}, "evaluation": {"draws": 7}, "seed": 3,
    "text_encoder": {"path": "e"}, "encoder": {"steps": 7}, "fixed": {"name": "f", "path": "p"},
    "device": "cuda", "sigma_data": 0.7, "sigma_data_measured": 0.7, "data_digest": "d",
    "sources": "s", "plugins": {"p": "1"}, "schema": 1, "training_range": (0.1, 9.0),
    "table_levels": (9, 10), "asked_levels": (0.1, 9.0), "training_sources": "s",
    "blind": True,
    "sigma_data_channels": (0.1, 0.9),
}  # fmt: skip
"""Another value of each setting."""


def test_the_identity_is_of_every_setting_whatever_their_order() -> None:
    assert {field.alias or name for name, field in TrialConfig.model_fields.items()} == set(OTHERS)
    first = config()
    assert config(**dict(reversed(SMALL.items()))).identity == first.identity
    found = {name: config(**{name: value}).identity for name, value in OTHERS.items()}
    for name in ("schema", "training_range", "table_levels", "training_sources", "blind"):
        assert found.pop(name) == first.identity
    assert len({first.identity, *found.values()}) == len(found) + 1


def test_trials_that_differ_in_how_they_are_measured_are_one_training() -> None:
    first = config()
    alike = {n for n, v in OTHERS.items() if config(**{n: v}).training_text == first.training_text}
    unstated = {"plugins", "schema", "sources", "training_range", "table_levels", "blind"}
    assert alike == {"evaluation", "asked_levels", "training_sources", *unstated}
    assert {f.name for f in settings.fields(Evaluation) if not f.setting.evaluation} == set()


def test_what_a_batch_has_in_common_is_data_architecture_and_the_length_of_training() -> None:
    assert settings.names(TrialConfig, batch=True) == (
        "dataset", "encoder", "network", "noise", "text_encoder", "device", "data_digest",
    )  # fmt: skip
    assert settings.names(Training, batch=True) == (
        "steps", "batch", "points", "precision",
        "accumulation", "checkpointing", "memory_format", "compile", "flips",
    )  # fmt: skip


def test_a_record_is_the_configuration() -> None:
    one = config(
        table="ddpm", weighting="none", variance="learned", evaluation={"likelihood": {}}, seed=3
    )
    assert TrialConfig.model_validate(one.record()) == one
    assert pickle.loads(pickle.dumps(one)) == one
    assert one.weighting is None
    assert one.record()["schema"] == SCHEMA


def test_a_record_of_the_first_schema_is_read() -> None:
    """As trials were kept before: no range of levels but the density's, a variance with options."""
    earlier = {
        **SMALL,
        "schema": 1,
        "density": {"name": "lognormal", "options": {"sigma_min": 0.01, "sigma_max": 50.0}},
        "weighting": None,
        "variance": {"name": "learned", "options": {"vlb": 0.5}},
        "evaluation": {"levels": 8, "metrics": [{"name": "energy", "options": {}}]},
    }
    found = TrialConfig.model_validate(earlier)
    assert (found.sigma_min, found.sigma_max) == (0.01, 50.0)
    assert found.variance == Variance(name="learned", vlb=0.5)
    assert found.evaluation.schedule == ComponentSpec(name="karras")
    assert (found.noise.name, found.output, found.conditions) == ("white", "F", {})


def test_a_later_setting_at_its_default_leaves_the_identity_as_it_was() -> None:
    class Later(TrialConfig):
        """A setting more."""

        dropout: Annotated[float, Setting("Rate of dropout in the network.", since=SCHEMA)] = 0.0

    class Before(TrialConfig):
        """A setting more, and taken for one of the first."""

        dropout: Annotated[float, Setting("Rate of dropout in the network.")] = 0.0

    def identity(model: type[TrialConfig], **more: Any) -> str:
        return model.model_validate({**SMALL, **more}).identity

    assert identity(Later) == identity(TrialConfig)
    assert identity(Later, dropout=0.5) != identity(Later)
    assert identity(Before) != identity(TrialConfig)


def test_a_setting_that_is_not_declared_is_none() -> None:
    @dataclass(frozen=True)
    class Some:
        """One setting and one field that is none."""

        size: Annotated[int, Setting("The size.", report="size")] = 3
        other: int = 4

    (field,) = settings.fields(Some)
    assert (field.name, field.type, field.default, field.setting.report) == ("size", int, 3, "size")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"variance": "learnt"}, "Did you mean 'learned'"),
        ({"variance": {"name": "fixed", "vlb": 0.1}}, "variance 'fixed'"),
        ({"sigma_max": 0.001}, "must be above sigma_min"),
        ({"conditions": {"label": 2}}, "dropout rates from 0 to 1"),
        ({"training": {"step": 3}}, "step"),
        ({"lossy": "l1"}, "lossy"),
    ],
)
def test_what_cannot_be_is_refused(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        config(**table)


def test_a_component_is_told_with_its_options() -> None:
    assert str(ComponentSpec(name="min_snr", options={"gamma": 5.0})) == "min_snr (gamma 5.0)"
    assert str(ComponentSpec(name="edm")) == "edm"


def test_no_module_holds_a_configuration_in_a_dictionary() -> None:
    """A trial's settings are read by attribute: a misspelt one is an error of types."""
    package = Path(settings.__file__).parent
    found = [
        f"{file.relative_to(package)}: {line.strip()}"
        for file in package.rglob("*.py")
        for line in file.read_text().splitlines()
        if re.search(r"config(\[|\.get\()", line)
    ]
    assert found == []


def test_the_settings_of_a_study_are_those_of_its_trials() -> None:
    shared = [field.name for field in settings.fields(TrialFields)]
    for model in (TrialSettings, TrialConfig):
        assert [field.name for field in settings.fields(model)][: len(shared)] == shared


def test_an_id_of_one_text_for_all_seeds_is_that_of_the_trial_itself() -> None:
    one = config()
    for id_, other in one.of_seeds((0, 7, 10**12)):
        assert id_ == other.identity
