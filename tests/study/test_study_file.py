"""Study files: what they mean, and that none makes the reading fail but by a mistake told."""

import copy
import json
import math
import re
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT
from helpers.study_files import FULL, SMALL, in_base, names, one, problems, read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import testbed
from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.study import study_file
from testbed.study.study_file import StudyFile
from testbed.trial import resolve, specs
from testbed.trial.config import TrialConfig, TrialSettings
from testbed.trial.specs import ComponentSpec


def test_the_bundled_study_is_found_by_its_name() -> None:
    found = study_file.read(Path("default"))
    assert found.text == (ROOT / "studies" / "default.toml").read_text()
    assert len(found.templates) == 2 * 2 * 5


def test_every_case_runs_in_every_arm_at_every_point_of_the_grid(tmp_path: Path) -> None:
    found = read(tmp_path, FULL + '[report]\nbaseline = "v"\n')
    assert names(found) == [
        (case, arm, name)
        for case in ("flat", "images")
        for arm in ("published", "equal")
        for name in ("eps", "v", "edm")
    ]
    assert found.report.baseline == "v"
    assert found.report.level == 0.95


def test_later_sections_win_over_earlier_ones(tmp_path: Path) -> None:
    text = """
[study]
name = "s"
[base]
dataset = "moons"
sigma_min = 1
sigma_max = 2
sigma_data = 3
c_in = "native"
seeds = 1
[[cases]]
name = "a"
sigma_min = 0.1
sigma_max = 20
sigma_data = 30
seeds = 2
[arms]
x = { sigma_max = 200, sigma_data = 300, seeds = 3 }
[grid]
parameterization = ["v"]
sigma_data = [4000]
seeds = [[7]]
"""
    found = one(tmp_path, text, "seeds=[8, 9]")
    assert (found.sigma_min, found.sigma_max, found.sigma_data) == (0.1, 200, 4000)
    assert (found.c_in, found.seeds) == ("native", (8, 9))


def test_the_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    text = SMALL + '"training.steps" = [1, 2]\nnetwork.width = [8, 16]\n'
    found = [
        (a.settings.training.steps, a.settings.network.options["width"])
        for a in read(tmp_path, text).templates
    ]
    assert found == [(1, 8), (1, 16), (2, 8), (2, 16)]


@pytest.mark.parametrize(
    "key", ['"training.learning_rate"', "training.learning_rate", 'training."learning_rate"']
)
def test_a_dotted_key_of_the_grid_means_the_same_with_and_without_quotes(
    tmp_path: Path, key: str
) -> None:
    found = read(tmp_path, f"{SMALL}{key} = [0.1, 0.2]\n").templates
    assert [a.settings.training.learning_rate for a in found] == [0.1, 0.2]
    assert [dict(a.grid_point)["training.learning_rate"] for a in found] == [0.1, 0.2]


def test_seeds_are_a_number_or_a_list(tmp_path: Path) -> None:
    assert one(tmp_path, SMALL).seeds == (0, 1, 2)
    assert one(tmp_path, in_base("seeds = 2")).seeds == (0, 1)
    assert one(tmp_path, in_base("seeds = [5, 3]")).seeds == (5, 3)


def test_the_seeds_of_the_command_line_win_in_every_case(tmp_path: Path) -> None:
    found = read(tmp_path, FULL, seeds=4).templates
    assert {a.settings.seeds for a in found} == {(0, 1, 2, 3)}
    assert problems(tmp_path, FULL, seeds=0) == ["--seeds 0 must be at least 1."]


def test_an_empty_arms_section_is_no_arms_section(tmp_path: Path) -> None:
    assert names(read(tmp_path, SMALL + "[arms]\n")) == [("", "", "v")]


def test_a_table_with_a_name_replaces_a_component_and_one_without_adds_options(
    tmp_path: Path,
) -> None:
    text = in_base('network = { name = "mlp", width = 8 }\nweighting = "min_snr"')
    text += "[arms]\nadded = { network = { depth = 1 }, weighting = { gamma = 3.0 } }\n"
    text += 'replaced = { network = { name = "mlp", depth = 1 } }\n'
    added, replaced = (a.settings for a in read(tmp_path, text).templates)
    assert added.network.options == {"width": 8, "depth": 1}
    assert (added.weighting.name, added.weighting.options) == ("min_snr", {"gamma": 3.0})
    assert replaced.network.options == {"depth": 1}


def test_options_alone_are_those_of_the_default_component(tmp_path: Path) -> None:
    found = one(
        tmp_path, in_base("network = { width = 8 }\nevaluation = { sampler = { churn = 1 } }")
    )
    assert (found.network.name, found.network.options) == ("mlp", {"width": 8})
    assert (found.evaluation.sampler.name, found.evaluation.sampler.options) == (
        "heun",
        {"churn": 1},
    )
    assert one(tmp_path, in_base("density = { mean = 0.0 }")).density.name == "recipe"


def test_a_validated_study_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        one(tmp_path, SMALL).sigma_min = 1.0  # type: ignore[misc]


# --- --set --------------------------------------------------------------------------------------


def test_set_reaches_the_base_which_a_case_still_overrides(tmp_path: Path) -> None:
    found = read(tmp_path, FULL, "base.network.width=7", "base.seeds=1")
    assert [a.settings.network.options for a in found.templates] == 6 * [{"width": 7}] + 6 * [
        {"width": 32}
    ]
    assert [len(a.settings.seeds) for a in found.templates] == 6 * [2] + 6 * [1]


def test_set_reaches_one_case(tmp_path: Path) -> None:
    found = read(tmp_path, FULL, "cases.images.network.width=8", "cases.images.seeds=[4]")
    widths = [a.settings.network.options.get("width") for a in found.templates]
    assert widths == 6 * [None] + 6 * [8]
    assert [a.settings.seeds for a in found.templates] == 6 * [(0, 1)] + 6 * [(4,)]


def test_set_reaches_one_arm_and_can_add_one(tmp_path: Path) -> None:
    found = read(tmp_path, FULL, "arms.equal.loss=l1", "arms.third.sigma_max=8").templates
    assert {a.arm: a.settings.loss.name for a in found} == {
        "published": "recipe", "equal": "l1", "third": "recipe",
    }  # fmt: skip
    assert {a.arm: a.settings.sigma_max for a in found}["third"] == 8


def test_set_replaces_and_adds_axes_of_the_grid(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        SMALL + "training.steps = [1, 2]\n",
        'grid.parameterization=["x0"]',
        "grid.training.steps=[3]",
        "grid.training.ema=[0.5, 0.6]",
    ).templates
    shown = [(a.settings.parameterization.name, a.settings.training.steps) for a in found]
    assert shown == [("x0", 3), ("x0", 3)]
    assert [a.settings.training.ema for a in found] == [0.5, 0.6]
    whole = read(tmp_path, SMALL + "sigma_data = [1, 2]\n", 'grid={parameterization=["edm"]}')
    assert names(whole) == [("", "", "edm")]


def test_set_without_a_section_wins_in_every_trial(tmp_path: Path) -> None:
    found = read(tmp_path, FULL, "network.width=9", "training.steps=7", "weighting=x0").templates
    assert {a.settings.network.options["width"] for a in found} == {9}
    assert {a.settings.training.steps for a in found} == {7}
    assert {a.settings.weighting.name for a in found} == {"x0"}


def test_set_reads_its_value_as_toml_and_a_bare_word_as_a_string(tmp_path: Path) -> None:
    sets = [
        "weighting={name = \"min_snr\", gamma = 3.0}",
        "density=loguniform",
        'loss="l1"',
        "training.betas=[0.5, 0.75]",
        "sigma_max=8e1",
        "study.title=two words",
        "report.level=0.9",
    ]  # fmt: skip
    study = read(tmp_path, SMALL, *sets)
    found = study.templates[0].settings
    assert (found.weighting.name, found.weighting.options) == ("min_snr", {"gamma": 3.0})
    assert (found.density.name, found.loss.name) == ("loguniform", "l1")
    assert (found.training.betas, found.sigma_max) == ((0.5, 0.75), 80.0)
    assert (study.header.title, study.report.level) == ("two words", 0.9)


@pytest.mark.parametrize("path", ["network.width", "base.network.width"])
def test_set_gives_an_option_to_a_component_that_stands_by_its_bare_name(
    tmp_path: Path, path: str
) -> None:
    for text in (in_base('network = "mlp"'), SMALL):
        found = one(tmp_path, text, f"{path}=64").network
        assert (found.name, found.options) == ("mlp", {"width": 64})


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("training.steps", "--set training.steps: expected dotted.path=value."),
        ("=3", "--set =3: expected dotted.path=value."),
        ("base..x=3", "--set base..x=3: expected dotted.path=value."),
        ("cases.imags.seeds=1", "--set cases.imags.seeds=1: Unknown case 'imags'. Did you mean 'i"),
        ("cases.images=1", "--set cases.images=1: Unknown case 'images'"),
        ("base.training.steps.x=1", "--set base.training.steps.x=1: base.training.steps = 50 is n"),
        ("trainng.steps=1", "{file}: --set trainng = {'steps': 1}: unknown key. Did you mean 'tra"),
        ("training.steps=x", "{file}: --set training.steps = 'x': must be a whole number"),
        ("seeds=0", "{file}: --set seeds = 0: must be at least 1"),
        ("study=3", "{file}: study = 3 must be a table, [study]."),
        ("grid=3", "{file}: grid = 3 must be a table, [grid]."),
        ("grid.parameterization=v", "{file}: --set grid.parameterization = 'v' must be a list of"),
        ("report.level=2", "{file}: --set report.level = 2: must be below 1"),
        ("training.compile=yes", "{file}: --set training.compile = 'yes': must be true or false"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_work_is_told(tmp_path: Path, word: str, expected: str) -> None:
    found = problems(tmp_path, FULL, word)
    assert found[0].startswith(expected.replace("{file}", str(tmp_path / "study.toml"))), found


# --- --only -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only", "cases", "arms", "parameterizations"),
    [
        (["v"], {"flat", "images"}, {"published", "equal"}, {"v"}),
        (["v", "edm"], {"flat", "images"}, {"published", "equal"}, {"v", "edm"}),
        (["flat"], {"flat"}, {"published", "equal"}, {"eps", "v", "edm"}),
        (["equal"], {"flat", "images"}, {"equal"}, {"eps", "v", "edm"}),
        (["flat", "v", "equal"], {"flat"}, {"equal"}, {"v"}),
        (["flat", "images", "eps"], {"flat", "images"}, {"published", "equal"}, {"eps"}),
        ([], {"flat", "images"}, {"published", "equal"}, {"eps", "v", "edm"}),
    ],
)
def test_only_keeps_any_of_an_axis_and_all_of_the_axes(
    tmp_path: Path, only: list[str], cases: set[str], arms: set[str], parameterizations: set[str]
) -> None:
    found = names(read(tmp_path, FULL, only=only))
    expected = [
        row for row in names(read(tmp_path, FULL))
        if row[0] in cases and row[1] in arms and row[2] in parameterizations
    ]  # fmt: skip
    assert found == expected


def test_only_tells_a_name_that_nothing_has(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, FULL, only=["v", "publishd"])
    assert found.startswith(
        "--only: Unknown parameterization, case or arm 'publishd'. Did you mean"
    )
    assert "Known: edm, eps, equal, flat, images, published, v." in found


# --- recipes ------------------------------------------------------------------------------------

PUBLISHED = {
    "eps": ("table", "eps", "eps", "native", "index"),
    "v": ("cosine", None, "v", "native", "log_snr"),
    "edm": ("lognormal", "edm", "x0", "shared", "shared"),
    "x0": ("cosine", "truncated_snr", "x0", "vp", "log_snr"),
    "score": ("loguniform", "eps", "score", "native", "log_sigma"),
}


@pytest.fixture(scope="module")
def registry() -> testbed.Registry:
    return default_registry()


def configs(study: StudyFile, registry: testbed.Registry) -> Iterator[TrialConfig]:
    for template in study.templates:
        yield resolve.resolve(template.settings, registry, "cpu")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_arm_published_gives_each_parameterization_its_own_recipe(
    tmp_path: Path, registry: testbed.Registry, name: str
) -> None:
    (found,) = configs(read(tmp_path, SMALL.replace('"v"', f'"{name}"')), registry)
    density, weighting, space, c_in, c_noise = PUBLISHED[name]
    assert found.density.name == density
    assert (found.weighting and found.weighting.name) == weighting
    loss = registry.loss(found.loss.name, **found.loss.options)
    assert loss.quadratic
    assert loss.space == space
    # A native input that equals the shared one is called shared: one trial for both arms.
    assert (found.c_in, found.c_noise) == (c_in, c_noise)
    table, output = {"eps": ("ddpm", "F"), "score": (None, "-eps")}.get(name, (None, "F"))
    assert (found.table and found.table.name, found.output) == (table, output)
    if name == "eps":
        assert (found.sigma_min, found.sigma_max) == pytest.approx((0.01, 157.4), rel=1e-3)
    if name == "score":
        sd = found.sigma_data
        assert (found.sigma_min, found.sigma_max) == (0.04 * sd, 200 * sd)
        assert found.density.options["low"] == 0.04 * sd
    if name == "edm":
        assert found.density.options == {
            "mean": -1.2, "std": 1.2, "sigma_min": 0.002, "sigma_max": 80.0,
        }  # fmt: skip


def test_the_arm_equal_of_the_default_study_leaves_only_the_parameterization(
    registry: testbed.Registry,
) -> None:
    study = study_file.read(Path("default"), ["cases.digits.dataset=moons"], ["digits", "equal"])
    found = list(configs(study, registry))
    apart = {"parameterization": found[0].parameterization, "plugins": {}}
    assert len({one.parameterization.name for one in found}) == 5
    assert len({one.model_copy(update=apart).identity for one in found}) == 1
    density = {"mean": -1.2, "std": 1.2, "sigma_min": 0.002, "sigma_max": 80.0}
    assert found[0].density == ComponentSpec(name="lognormal", options=density)
    assert found[0].weighting.name == "edm"
    assert (found[0].c_in, found[0].c_noise) == ("shared", "shared")
    assert found[0].sigma_data == found[0].sigma_data_measured


def test_options_without_a_name_change_the_recipe_and_keep_the_rest_of_it(
    tmp_path: Path, registry: testbed.Registry
) -> None:
    text = in_base("density = { mean = 0.5 }\nsigma_min = 0.1").replace('"v"', '"edm"')
    (found,) = configs(read(tmp_path, text), registry)
    assert found.density.name == "lognormal"
    options = {"mean": 0.5, "std": 1.2, "sigma_min": 0.1, "sigma_max": 80.0}
    assert found.density.options == options


def test_weighting_none_is_no_weighting_whatever_the_recipe(
    tmp_path: Path, registry: testbed.Registry
) -> None:
    text = in_base('weighting = "none"').replace('"v"', '"edm"')
    (found,) = configs(read(tmp_path, text), registry)
    assert found.weighting is None


def test_a_recipe_without_a_weighting_takes_no_options_for_it(
    tmp_path: Path, registry: testbed.Registry
) -> None:
    study = read(tmp_path, in_base("weighting = { gamma = 3.0 }"))
    with pytest.raises(InputError, match="recipe 'progressive_v' has no weighting to take"):
        list(configs(study, registry))


def test_sigma_data_set_on_purpose_is_recorded_beside_the_measured_one(
    tmp_path: Path, registry: testbed.Registry
) -> None:
    (measured,) = configs(read(tmp_path, SMALL), registry)
    (given,) = configs(read(tmp_path, in_base("sigma_data = { assumed = 1 }")), registry)
    data = registry.dataset("moons")()
    assert measured.sigma_data == measured.sigma_data_measured == data.sigma_data
    assert (given.sigma_data, given.sigma_data_measured) == (1.0, data.sigma_data)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_an_integer_that_toml_does_not_hold_is_told_with_its_key(
    tmp_path: Path, number: int
) -> None:
    told = re.escape(f"{tmp_path / 'study.toml'}: cannot be read as TOML: ")
    with pytest.raises(InputError, match=f"{told}base.sigma_min = {str(number)[:10]}"):
        read(tmp_path, in_base(f"sigma_min = {number}"))
    file = tmp_path / "study.toml"
    file.write_text(SMALL)
    with pytest.raises(InputError, match=f"--set sigma_min: .*{str(number)[:10]}"):
        study_file.read(file, [f"sigma_min={number}"])


@pytest.mark.parametrize("level", [10**400, -(10**400), math.inf, -math.inf, math.nan])
def test_a_noise_level_that_no_float_holds_is_told_where_no_file_is_read(level: float) -> None:
    with pytest.raises(ValueError, match="must be a finite number"):
        TrialSettings(sigma_min=level)
    if level != math.inf:
        with pytest.raises(ValueError, match="must be a finite number"):
            specs.noise_level(level, infinite=True)


# --- no study file makes it fail otherwise ------------------------------------------------------

WORDS = [
    "study", "base", "arms", "grid", "cases", "report", "name", "options", "parameterization",
    "dataset", "network", "weighting", "loss", "density", "c_in", "c_noise", "training", "steps",
    "batch", "betas", "evaluation", "metrics", "sampler", "levels", "seeds", "sigma_min",
    "sigma_max", "sigma_data", "table", "schedule", "index", "level", "baseline", "recipe",
    "native", "edm", "v", "none", "",
]  # fmt: skip
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x7f")
words = st.sampled_from(WORDS) | st.text(LETTERS, max_size=6)
leaves = (
    words
    | st.integers(-3, 20)
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.booleans()
    | st.dates(min_value=date(1000, 1, 1))
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


def toml(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        pairs = (f"{toml(key)} = {toml(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, date) else json.dumps(value, ensure_ascii=False)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value inside."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, found in inner:
        yield (*here, key)
        if isinstance(found, dict | list):
            yield from places(found, (*here, key))


DEFAULT = tomllib.loads((ROOT / "studies" / "default.toml").read_text())


@st.composite
def studies(draw: st.DrawFn) -> str:
    """The default study after a few changes: values replaced, removed, renamed, added."""
    table: Any = copy.deepcopy(DEFAULT)
    for _ in range(draw(st.integers(1, 4))):
        found = list(places(table))
        if not found:
            break
        *above, key = draw(st.sampled_from(found))
        holder = table
        for step in above:
            holder = holder[step]
        change = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if change == "replace":
            holder[key] = draw(values)
        elif change == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(draw(values))
        elif change == "rename":
            holder[draw(words)] = holder.pop(key)
        else:
            holder[draw(words)] = draw(values)
    return "\n".join(f"{toml(key)} = {toml(value)}" for key, value in table.items())


paths = st.lists(words, min_size=1, max_size=4).map(".".join)
overrides = st.lists(
    st.builds(lambda path, value: f"{path}={toml(value)}", paths, values) | words, max_size=2
)


@pytest.mark.slow
@given(text=studies(), sets=overrides)
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_study_file_is_valid_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, text: str, sets: list[str]
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzz.toml"
    file.write_text(text, encoding="utf-8")
    tomllib.loads(text)  # else the fuzz would try TOML only
    try:
        found = study_file.read(file, sets)
    except InputError:
        return
    assert isinstance(found, StudyFile)
    assert found.templates
