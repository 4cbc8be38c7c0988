"""Every mistake in a study file is told, all at once, with the place where it stands."""

import re
from pathlib import Path

import pytest
from helpers.study_files import FULL, SMALL, in_base, problems, read, write

from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.study import plan, study_file

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
