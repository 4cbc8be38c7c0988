"""Studies written in Python, and the TOML that they are written as."""

import tomllib
from typing import Any

import numpy as np
import pytest
import torch
from helpers.studies import TINY
from hypothesis import given
from hypothesis import strategies as st

import testbed
from testbed import toml
from testbed.bundled import bundled
from testbed.errors import InputError
from testbed.study import study_file
from testbed.study.definition import plain
from testbed.study.settings import ReportSettings
from testbed.trial.specs import Evaluation

STUDIES = sorted(file.stem for file in bundled("studies").glob("*.toml"))
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)
)
SMALL: dict[str, Any] = {
    "name": "small",
    "base": {"dataset": {"name": "mixture", "dim": 2}},
    "grid": {"parameterization": ["v", "edm"]},
}


@pytest.mark.slow
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_what_is_written_is_what_pythons_own_reader_reads(content: dict[str, Any]) -> None:
    assert tomllib.loads(toml.table("section", content))["section"] == content
    assert tomllib.loads(toml.entry("section", content))["section"] == [content]


@pytest.mark.parametrize("value", [None, {1, 2}, b"x", object])
def test_what_toml_lacks_is_named_with_its_key(value: Any) -> None:
    with pytest.raises(InputError, match=r"base\.a\.b\[1\] = .*expected a string"):
        toml.table("base", {"a": {"b": [0, value]}})


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_file_and_the_study_in_python_say_the_same(name: str) -> None:
    study = testbed.Study.read(name)
    again = testbed.Study.from_toml(study.to_toml())
    assert again == study
    read = study_file.read(bundled("studies") / f"{name}.toml")
    for one in (study.content, again.content):
        assert (one.header, one.report, one.templates) == (read.header, read.report, read.templates)


def test_the_keys_of_the_file_are_the_arguments() -> None:
    study = testbed.Study.from_toml(TINY)
    assert (study.name, study.title) == ("tiny", "A tiny study")
    assert study.grid == {"parameterization": ["v", "edm"]}
    assert [case["name"] for case in study.cases] == ["mixture", "digits"]
    assert study.report == {"baseline": "edm"}


def test_models_and_components_stand_for_what_was_set_of_them() -> None:
    registry = testbed.Registry()
    base = {
        **SMALL["base"],
        "training": testbed.Training(steps=7, learning_rate=np.float64(0.5)),
        "evaluation": Evaluation(levels=3),
        "weighting": registry.weighting("min_snr", gamma=4.0),
        "sigma_max": torch.tensor(10.0),
        "seeds": (3, 5),
    }
    study = testbed.Study("small", base, SMALL["grid"], report=ReportSettings(baseline="v"))
    raw = tomllib.loads(study.to_toml())
    assert raw["base"]["training"] == {"steps": 7, "learning_rate": 0.5}
    assert raw["base"]["evaluation"] == {"levels": 3}
    assert raw["base"]["weighting"] == {"name": "min_snr", "gamma": 4.0}
    assert (raw["base"]["sigma_max"], raw["base"]["seeds"]) == (10.0, [3, 5])
    assert raw["report"] == {"baseline": "v"}
    settings = study.content.templates[0].settings
    assert (settings.training.steps, settings.evaluation.levels, settings.seeds) == (7, 3, (3, 5))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": {**SMALL["base"], "trainng": {}}}, "unknown key. Did you mean 'training'"),
        ({"base": {**SMALL["base"], "training": {"steps": "x"}}}, "base.training.steps = 'x'"),
        ({"name": "a/b"}, "study.name = 'a/b'"),
        ({"cases": [{"dataset": "digits"}]}, "needs a name"),
        ({"report": {"bseline": "v"}}, "Did you mean 'baseline'"),
        ({"base": {**SMALL["base"], "weighting": None}}, "base.weighting = None"),
        ({"grid": {"parameterization": "v"}}, "must be a list of values"),
    ],
)
def test_a_mistake_is_told_where_it_is_written(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as raised:
        testbed.Study(**{**SMALL, **change})
    assert said in str(raised.value)


def test_a_study_is_short_in_a_line_and_a_table_in_a_notebook() -> None:
    study = testbed.Study(**SMALL, arms={"a<b": {}, "c": {"weighting": "edm"}})
    assert repr(study) == "<Study 'small': 1 case, 2 arms, 2 variants, 12 trials>"
    shown = study._repr_html_()
    assert shown.count("<tr>") == 1 + 4
    assert "a&lt;b" in shown
    assert "a<b" not in shown


def test_what_is_plain_stays_as_it_is() -> None:
    value = {"a": [1, 2.5, True, "x", {"b": []}]}
    assert plain(value) == value
