"""Study files: what they mean, and that every mistake in one is told, all at once."""

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import testbed
from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.study import plan, study_file
from testbed.study.study_file import StudyFile
from testbed.trial import resolve, specs
from testbed.trial.config import TrialConfig, TrialSettings
from testbed.trial.specs import ComponentSpec

SMALL = """
[study]
name = "small"
[base]
dataset = "moons"
[grid]
parameterization = ["v"]
"""

FULL = """
[study]
name = "full"
[base]
network = "mlp"
weighting = "edm"
training = { steps = 50 }
[arms]
published = {}
equal = { weighting = "v" }
[grid]
parameterization = ["eps", "v", "edm"]
[[cases]]
name = "flat"
dataset = "moons"
seeds = 2
[[cases]]
name = "images"
dataset = "digits"
network = { name = "mlp", width = 32 }
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text)
    return file


def read(folder: Path, text: str, *sets: str, **options: Any) -> StudyFile:
    return study_file.read(write(folder, text), sets, **options)


def one(folder: Path, text: str, *sets: str) -> TrialSettings:
    """The settings of a study with one trial."""
    (found,) = read(folder, text, *sets).templates
    return found.settings


def problems(folder: Path, text: str, *sets: str, **options: Any) -> list[str]:
    """The lines of what is wrong with a study file."""
    with pytest.raises(InputError) as found:
        read(folder, text, *sets, **options)
    return str(found.value).splitlines()


def names(study: StudyFile) -> list[tuple[str, str, str]]:
    """case, arm and parameterization of every template, in order."""
    return [(a.case, a.arm, a.settings.parameterization.name) for a in study.templates]


def in_base(line: str) -> str:
    """SMALL with a line more in [base]."""
    return SMALL.replace('dataset = "moons"', f'dataset = "moons"\n{line}')


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES = {
    "unknown section": ("[gird]\n" + SMALL, "Unknown section 'gird'. Did you mean 'grid'?"),
    "unknown key": (
        in_base('netwrk = "mlp"'),
        "base.netwrk = 'mlp': unknown key. Did you mean 'network'? Known: c_in, c_noise, cond",
    ),
    "unknown key of training": (
        in_base("training = { step = 5 }"),
        "base.training.step = 5: unknown key. Did you mean 'steps'? Known: accumulation, batch,",
    ),
    "unknown key of evaluation": (
        in_base("evaluation = { draw = 5 }"),
        "base.evaluation.draw = 5: unknown key. Did you mean 'draws'?",
    ),
    "training out of range": (
        in_base("training = { steps = 0 }"),
        "base.training.steps = 0 is out of range: expected from 1 to 1e+09.",
    ),
    "training out of range in the grid": (
        SMALL + '"training.batch" = [8, -5]\n',
        "grid.training.batch[1] = -5 is out of range: expected from 1 to 1e+09.",
    ),
    "training out of range below another key of it": (
        in_base("training = { steps = 0 }") + "[arms]\na = { training = { batch = 3 } }\n",
        "base.training.steps = 0 is out of range: expected from 1 to 1e+09.",
    ),
    "optimizer": (
        in_base('training = { optimizer = "adma" }'),
        "base.training.optimizer = 'adma': Unknown optimizer 'adma'. Did you mean 'adam'?",
    ),
    "limit of several settings": (
        in_base("training = { momentum = 0.9 }"),
        'base.training.momentum = 0.9 is an option of sgd, and optimizer = "adam" has none',
    ),
    "table for a number": (in_base("training = 3"), "base.training = 3: must be a table"),
    "number for a list": (
        in_base("training = { betas = 3 }"),
        "base.training.betas = 3: must be a list",
    ),
    "word for a number": (
        in_base('training = { steps = "many" }'),
        "base.training.steps = 'many': must be a whole number",
    ),
    "word for a truth": (
        in_base('training = { compile = "yes" }'),
        "base.training.compile = 'yes': must be true or false",
    ),
    "number for a truth": (
        in_base("training = { checkpointing = 1 }"),
        "base.training.checkpointing = 1: must be true or false",
    ),
    "truth for a number": (
        in_base("training = { clip = true }"),
        "base.training.clip = true: must be a number",
    ),
    "truth for a whole number": (
        in_base("training = { warmup = true }"),
        "base.training.warmup = true: must be a whole number",
    ),
    "text for a number": (
        in_base('training = { ema = "0.9" }'),
        "base.training.ema = '0.9': must be a number",
    ),
    "text for a whole number": (
        in_base('training = { steps = "50" }'),
        "base.training.steps = '50': must be a whole number",
    ),
    "point for a whole number": (
        in_base("training = { steps = 1e3 }"),
        "base.training.steps = 1000.0: must be a whole number: write 1000",
    ),
    "text within a list": (
        in_base('training = { betas = ["0.9", 0.99] }'),
        "base.training.betas[0] = '0.9': must be a number",
    ),
    "too short a list": (
        in_base("training = { betas = [0.9] }"),
        "base.training.betas = [0.9]: has too few values",
    ),
    "too long a list": (
        in_base("training = { betas = [0.9, 0.9, 0.9] }"),
        "base.training.betas = [0.9, 0.9, 0.9]: must have at most 2 values",
    ),
    "point for a seed": (
        in_base("seeds = [0, 1.0]"),
        "base.seeds[1] = 1.0: must be a whole number: write 1",
    ),
    "truth for a seed": (
        in_base("seeds = [true]"),
        "base.seeds[0] = true: must be a whole number",
    ),
    "text in a table": (
        in_base('evaluation = { likelihood = { samples = "4" } }'),
        "base.evaluation.likelihood.samples = '4': must be a whole number",
    ),
    "text for the level": (
        SMALL + '[report]\nlevel = "0.9"\n',
        "report.level = '0.9': must be a number",
    ),
    "number that is no multiple": (
        in_base("evaluation = { exact_ends = 3 }"),
        "base.evaluation.exact_ends = 3: must be a multiple of 2",
    ),
    "fraction of a step": (
        in_base("training = { steps = 1.5 }"),
        "base.training.steps = 1.5: must be a whole number",
    ),
    "sigma_min": (in_base("sigma_min = -1"), "base.sigma_min = -1: must be above 0"),
    "sigma_max below sigma_min": (
        in_base("sigma_min = 5\nsigma_max = 2"),
        "base.sigma_max = 2: must be above sigma_min, which is 5.0",
    ),
    "infinite": (in_base("sigma_min = inf"), "base.sigma_min = inf: must be a finite num"),
    "not a number": (in_base("sigma_data = nan"), "base.sigma_data = nan: must be a positive"),
    "neither number nor assumed": (
        in_base("sigma_data = { assume = 1 }"),
        "base.sigma_data = {'assume': 1}: must be a number, or { assumed = number }",
    ),
    "choice of two": (
        in_base('c_in = "nativ"'),
        "base.c_in = 'nativ': must be 'recipe', 'native', 'shared', 'unit', 'vp' or 'flow'. "
        "Did you mean 'native'?",
    ),
    "number for a component": (
        in_base("weighting = 3"),
        'base.weighting = 3: must be a name, or a table {name = "...", option = ...}',
    ),
    "number for a component's name": (
        in_base("weighting = { name = 3 }"),
        "base.weighting = {'name': 3}: must be a name, or a table",
    ),
    "metric in a list": (
        in_base('evaluation = { metrics = ["energy", 3] }'),
        "base.evaluation.metrics[1] = 3: must be a name",
    ),
    "no seeds": (in_base("seeds = 0"), "base.seeds = 0: must be at least 1"),
    "too many seeds": (in_base("seeds = 1000000000"), "base.seeds = 1000000000: must be at least"),
    "empty seeds": (in_base("seeds = []"), "base.seeds = []: must be a number, or a list of diffe"),
    "a seed twice": (in_base("seeds = [1, 1]"), "base.seeds = [1, 1]: must be a number, or a list"),
    "seeds in words": (in_base('seeds = "three"'), "base.seeds = 'three': must be a number, or"),
    "grid of a bare value": (
        SMALL.replace('["v"]', '"v"'),
        "grid.parameterization = 'v' must be a list of values.",
    ),
    "empty grid": (SMALL.replace('["v"]', "[]"), "grid.parameterization = [] must be a list of"),
    "grid through a value": (
        SMALL + '"sigma_min" = [1]\n"sigma_min.x" = [1]\n',
        "grid.sigma_min.x: sigma_min = 1 is not a table.",
    ),
    "nameless study": (SMALL.replace('name = "small"', ""), "study.name: is required"),
    "name of a study": (
        SMALL.replace('"small"', '"a/b"'),
        "study.name = 'a/b': becomes the name of a folder: expected up to 100 letters, digits, _,",
    ),
    "unknown key of study": (
        SMALL.replace("[base]", 'titel = "x"\n[base]'),
        "study.titel = 'x': unknown key. Did you mean 'title'? Known: budgets, name, note, title.",
    ),
    "level": (SMALL + "[report]\nlevel = 2\n", "report.level = 2: must be below 1"),
    "unknown key of report": (
        SMALL + '[report]\nbasline = "v"\n',
        "report.basline = 'v': unknown key. Did you mean 'baseline'?",
    ),
    "arm": (SMALL + "[arms]\nequal = 3\n", "arms.equal = 3 must be a table, for example {}."),
    "key of an arm": (
        SMALL + "[arms]\nequal = { wieghting = 'v' }\n",
        "arms.equal.wieghting = 'v': unknown key. Did you mean 'weighting'?",
    ),
    "nameless case": (SMALL + "[[cases]]\nseeds = 2\n", "cases[0] = {'seeds': 2} needs a name"),
    "key of a case": (
        SMALL + '[[cases]]\nname = "a"\ndataste = "digits"\n',
        "cases.a.dataste = 'digits': unknown key. Did you mean 'dataset'?",
    ),
    "value in the grid": (
        SMALL + '"training.ema" = ["x"]\n',
        "grid.training.ema[0] = 'x': must be a number",
    ),
    "key in the grid": (
        SMALL + 'wieghting = ["edm", "v"]\n',
        "grid.wieghting: unknown key. Did you mean 'weighting'? Known: c_in,",
    ),
    "key of training in the grid": (
        SMALL + '"training.step" = [1, 2]\n',
        "grid.training.step: unknown key. Did you mean 'steps'?",
    ),
    "section of the wrong kind": (
        'cases = "a"\n' + SMALL,
        "cases = 'a' must be a list of tables, [[cases]].",
    ),
    "section that is no table": (
        "base = 3\n" + SMALL.replace("[base]\n", ""),
        "base = 3 must be a table, [base].",
    ),
    "no parameterization": (
        '[study]\nname = "s"\n[base]\ndataset = "moons"\n',
        "base.parameterization: is required",
    ),
    "not TOML": ("[study\n", "cannot be read as TOML: "),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_file_key_value_and_what_was_expected(
    tmp_path: Path, text: str, expected: str
) -> None:
    found = problems(tmp_path, text)
    prefix = f"{tmp_path / 'study.toml'}: "
    assert all(line.startswith(prefix) for line in found)
    assert any(line.removeprefix(prefix).startswith(expected) for line in found), found


def test_a_key_of_the_grid_that_is_unknown_is_told_once_for_all_its_values(tmp_path: Path) -> None:
    text = SMALL + 'wieghting = ["edm", "v", "x0"]\n"training.stepz" = [1, 2]\n'
    found = problems(tmp_path, text)
    assert [line.partition(": ")[2].partition(": ")[0] for line in found] == [
        "grid.training.stepz", "grid.wieghting",
    ]  # fmt: skip


OVER = """
[arms]
own = {}
a = { weighting = "edm", training = { steps = 5 } }
b = { weighting = { name = "min_snr", gamma = 2 }, loss = "l1" }
"""


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["training.batch=3"], []),
        (
            ['grid.weighting=["v"]'],
            ["grid.weighting takes the place of the weighting of the arms a, b."],
        ),
        (
            ["grid.weighting=[{gamma=3}]"],
            ["grid.weighting.gamma takes the place of the weighting.gamma of arm b."],
        ),
        (
            ["grid.weighting.gamma=[1, 3]"],
            ["grid.weighting.gamma takes the place of the weighting.gamma of arm b."],
        ),
        (
            ["grid.training.steps=[1, 2]", "loss.space=v"],
            ["grid.training.steps takes the place of the training.steps of arm a."],
        ),
        (
            ["grid.training.steps=[1, 2]", "training.steps=3"],
            [
                "grid.training.steps takes the place of the training.steps of arm a.",
                "--set training.steps takes the place of the training.steps of arm a and of "
                "grid.training.steps.",
            ],
        ),
        (["loss=l2"], ["--set loss takes the place of the loss of arm b."]),
    ],
)
def test_what_a_later_layer_takes_the_place_of_is_said(
    tmp_path: Path, sets: list[str], expected: list[str]
) -> None:
    assert list(read(tmp_path, SMALL + OVER, *sets).replaced) == expected


def test_nothing_is_said_of_an_arm_that_is_left_out(tmp_path: Path) -> None:
    study = read(tmp_path, SMALL + OVER, 'grid.loss=["l1"]', only=["own", "a"])
    assert study.replaced == ()


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = """
[stduy]
[study]
name = "a b"
[base]
netwrk = "mlp"
training = { step = 1, batch = "x" }
[arms]
one = { c_in = "nativ" }
two = 3
[grid]
parameterization = ["v"]
seeds = 3
[[cases]]
name = "a"
dataset = 4
[[cases]]
name = "b"
dataset = "moons"
sigma_min = -1
[[cases]]
seeds = 2
[report]
level = 7
"""
    found = problems(tmp_path, text)
    expected = [
        "section 'stduy'", "study.name", "base.netwrk", "base.training.step",
        "base.training.batch", "arms.one.c_in", "arms.two", "grid.seeds", "cases.a.dataset",
        "cases.b.sigma_min", "cases[2]", "report.level",
    ]  # fmt: skip
    for key in expected:
        assert sum(key in line for line in found) == 1, (key, found)
    assert len(found) == len(expected), found


def test_a_misspelt_section_is_not_followed_by_what_it_leaves_out(tmp_path: Path) -> None:
    found = problems(tmp_path, SMALL.replace("[grid]", "[gird]"))
    assert len(found) == 1
    assert "Did you mean 'grid'" in found[0]


def test_a_file_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_bytes(b'name = "\xff"')
    with pytest.raises(InputError, match=r"study\.toml: cannot be read as TOML"):
        study_file.read(file)


def test_a_missing_file_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    with pytest.raises(InputError, match=r"does not exist\. Did you mean '.*/study\.toml'\?"):
        study_file.read(tmp_path / "stduy.toml")
    with pytest.raises(InputError, match=r"defualt does not exist\. Did you mean 'default'\?"):
        study_file.read(Path("defualt"))
    with pytest.raises(InputError, match=r"Bundled studies: .*default"):
        study_file.read(Path("zzz"))


def test_names_and_options_that_no_component_has_are_told_at_once(tmp_path: Path) -> None:
    text = FULL.replace('network = "mlp"', 'network = "mpl"\nloss = { name = "l2", spaec = "v" }')
    text = text.replace('weighting = "v"', 'weighting = "mni_snr", density = "cosin"')
    text = text.replace('"moons"', '"moon"')
    with pytest.raises(InputError) as found:
        plan.make(read(tmp_path, text), default_registry(), tmp_path, "cpu")
    lines = str(found.value).splitlines()
    for expected in (
        "cases.flat.dataset = 'moon': Unknown dataset 'moon'. Did you mean 'moons'?",
        "base.network = 'mpl': Unknown network 'mpl'. Did you mean 'mlp'?",
        "base.loss.spaec = 'v': loss 'l2': Unknown option 'spaec'. Did you mean 'space'?",
        "arms.equal.density = 'cosin': Unknown density 'cosin'. Did you mean 'cosine'?",
        "arms.equal.weighting = 'mni_snr': Unknown weighting 'mni_snr'. Did you mean 'min_snr'?",
    ):
        assert sum(f"study.toml: {expected}" in line for line in lines) == 1, (expected, lines)
    assert len(lines) == 5
    assert all(line.startswith(str(tmp_path / "study.toml")) for line in lines)


PLACES = {
    "a number that a density cannot have": (
        in_base('density = { name = "lognormal", std = -1 }'),
        "base.density.std = -1: density 'lognormal': option std = -1.0 must be above 0 and finite "
        "(default 1.2).",
    ),
    "two numbers that do not fit": (
        in_base('density = { name = "loguniform", low = 1, high = 0.1 }'),
        "base.density.high = 0.1: high = 0.1 must be above low = 1.",
    ),
    "a number that a weighting cannot have": (
        in_base('weighting = { name = "min_snr", gamma = nan }'),
        "base.weighting.gamma = nan: weighting 'min_snr': option gamma = nan must be above 0 and "
        "finite (default 5.0).",
    ),
    "an option of a loss": (
        in_base('loss = { name = "huber", delta = 0 }'),
        "base.loss.delta = 0: loss 'huber': option delta = 0.0 must be above 0 and finite",
    ),
    "an option of a schedule": (
        in_base('evaluation = { schedule = { name = "karras", rho = inf } }'),
        "base.evaluation.schedule.rho = inf: schedule 'karras': option rho = inf must be above 0",
    ),
    "an option of a sampler": (
        in_base('evaluation = { sampler = { name = "ddim", eta = 2 } }'),
        "base.evaluation.sampler.eta = 2: sampler 'ddim': option eta = 2.0 must be at least 0 and "
        "at most 1 (default 0.0).",
    ),
    "an option in the grid, of a component that stands below": (
        in_base('density = "lognormal"') + '"density.std" = [1.0, -1.0]\n',
        "grid.density.std[1] = -1.0: density 'lognormal': option std = -1.0 must be above 0",
    ),
    "an option of a component in the grid": (
        SMALL + 'weighting = ["edm", { name = "min_snr", gamma = -1 }]\n',
        "grid.weighting[1].gamma = -1: weighting 'min_snr': option gamma = -1.0 must be above 0",
    ),
    "a name in the grid": (
        SMALL.replace('["v"]', '["v", "epps"]'),
        "grid.parameterization[1] = 'epps': Unknown parameterization 'epps'. Did you mean 'eps'?",
    ),
    "a metric of a list": (
        in_base('evaluation = { metrics = ["enrgy"] }'),
        "base.evaluation.metrics: Unknown metric 'enrgy'. Did you mean 'energy'?",
    ),
    "a recipe": (
        in_base('recipe = "eddm"'),
        "base.recipe = 'eddm': Unknown recipe 'eddm'. Did you mean 'edm'?",
    ),
    "options of what the recipe has none of": (
        in_base("weighting = { gamma = 3 }"),
        "base.weighting: recipe 'progressive_v' has no weighting to take options.",
    ),
    "an option of the data": (
        in_base("").replace('"moons"', '{ name = "moons", n = 0 }'),
        "base.dataset.n = 0: n = 0, test = 4000 and scale = 1.0 must be positive.",
    ),
    "a size that a network cannot have": (
        in_base("network = { width = 0 }"),
        "base.network.width = 0: network 'mlp': width = 0, depth = 3, features = 16 must be",
    ),
    "a network of images for vectors": (
        in_base('network = "unet"'),
        "base.network = 'unet': network 'unet': samples of shape (2,) with 2 levels: it takes",
    ),
    "a network of patches for vectors": (
        in_base('network = "dit"'),
        "base.network = 'dit': network 'dit': samples of shape (2,) with patch = 2: it takes",
    ),
    "a patch that does not divide": (
        in_base('network = { name = "convnet", patch = 3 }').replace('"moons"', '"digits"'),
        "base.network: network 'convnet': samples of shape (1, 8, 8) with patch = 3: it takes",
    ),
    "a network for some of the cases": (
        in_base('network = "unet"') + '[[cases]]\nname = "flat"\n'
        '[[cases]]\nname = "images"\ndataset = "digits"\n',
        "base.network = 'unet': network 'unet': samples of shape (2,) with 2 levels: it takes "
        "images (channels, height, width) whose height and width are multiples of 2. (in flat v)",
    ),
    "what does not fit the data": (
        in_base("training = { flips = 0.5 }"),
        "base.training.flips = 0.5 mirrors images, and the samples have shape (2,)",
    ),
    "what no layer states": (
        in_base("evaluation = { likelihood = {} }").replace(
            '"moons"', '{ name = "moons", test = 9 }'
        ),
        "base.evaluation.likelihood: evaluation.likelihood.samples = 64: there are 9 held-out sam",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), PLACES.values(), ids=PLACES)
def test_what_a_component_refuses_is_told_where_it_stands_in_the_file(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(InputError) as found:
        plan.make(read(tmp_path, text), default_registry(), tmp_path, "cpu")
    (line,) = str(found.value).splitlines()
    assert line.startswith(f"{tmp_path / 'study.toml'}: {expected}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["network.width=0"], "--set network.width = 0: network 'mlp': width = 0"),
        (["base.network.width=0"], "--set base.network.width = 0: network 'mlp': width = 0"),
        (["dataset=mon"], "--set dataset = 'mon': Unknown dataset 'mon'. Did you mean 'moons'?"),
        (["grid.parameterization=['w']"], "--set grid.parameterization[0] = 'w': Unknown param"),
        (
            ["network.layers=1", "base.network=unet"],
            "--set base.network: network 'unet': samples",
        ),
    ],
)
def test_what_a_component_refuses_of_a_set_is_told_as_its_word(
    tmp_path: Path, words: list[str], expected: str
) -> None:
    found = read(tmp_path, in_base('network = "mlp"'), *words)
    with pytest.raises(InputError, match=re.escape(f"study.toml: {expected}")):
        plan.make(found, default_registry(), tmp_path, "cpu")


# --- what a file means --------------------------------------------------------------------------


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
