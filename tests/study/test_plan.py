"""Plans: what a trial's identity depends on, what cannot work together, and what is on disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import run_here
from helpers.studies import planned

import testbed
from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.study import (
    equal_objectives,
    invocation,
    plan,
    reference_tables,
    runner,
    study_file,
    tracking_store,
)
from testbed.study.plan import Plan
from testbed.trial import build, sources
from testbed.trial.folders import Folder

SMALL = """
[study]
name = "small"
[base]
dataset = { name = "moons", n = 200, test = 100 }
network = { name = "mlp", width = 8, depth = 1 }
training = { steps = 50, batch = 8 }
evaluation = { levels = 3, draws = 8, samples = 8, steps = 3, metrics = ["energy"] }
seeds = 1
[grid]
parameterization = ["v"]
"""

EQUAL = """
weighting = "edm"
loss = "l2"
density = "lognormal"
c_in = "shared"
c_noise = "shared"
"""

MINE = """
import torch
from helpers.studies import planned

import testbed

def mine(sigma, power=1.0):
    return sigma**-power

@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("mine", mine)
"""


@pytest.fixture(scope="module")
def registry() -> testbed.Registry:
    return default_registry()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def made(
    folder: Path, registry: testbed.Registry, text: str = SMALL, *sets: str, device: str = "cpu"
) -> Plan:
    file = folder.parent / "study.toml"
    file.write_text(text)
    return plan.make(study_file.read(file, sets), registry, folder, device)


def ids(found: Plan) -> list[str]:
    return [one.id for one in found.trials]


def by_label(found: Plan) -> dict[tuple[str, str, str, int], str]:
    """The id of every (case, arm, variant, seed)."""
    return {
        (label["case"], label["arm"], label["variant"], one.config.seed): one.id
        for one in found.trials
        for label in one.labels
    }


# --- identity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sets",
    [
        ["study.name=other", "study.title=Other", "study.note=n"],
        ["report.baseline=eps", "report.level=0.5", "report.primary=mmd"],
        ['cases=[{name="renamed"}]'],
        ["arms.renamed.loss=recipe"],
        ["training.steps=50"],
        ["seeds=[0]"],
    ],
)
def test_an_identity_does_not_depend_on_names_labels_and_spelling(
    folder: Path, registry: testbed.Registry, sets: list[str]
) -> None:
    text = SMALL
    if sets[0].startswith("cases="):
        text, sets = SMALL + '[[cases]]\nname = "renamed"\n', []
    changed = made(folder, registry, text, *sets)
    assert ids(changed) == ids(made(folder, registry))
    assert made(folder.with_name("elsewhere"), registry).trials[0].id == changed.trials[0].id


def test_identities_do_not_depend_on_the_order_of_a_study(
    folder: Path, registry: testbed.Registry
) -> None:
    cases = '[[cases]]\nname = "a"\n[[cases]]\nname = "b"\nsigma_data = { assumed = 1 }\n'
    turned = '[[cases]]\nname = "b"\nsigma_data = { assumed = 1 }\n[[cases]]\nname = "a"\n'
    grid = 'grid.parameterization=["v", "eps"]'
    one = made(folder, registry, SMALL + cases, grid, "seeds=[0, 1]")
    other = made(
        folder, registry, SMALL + turned, 'grid.parameterization=["eps", "v"]', "seeds=[1, 0]"
    )
    assert ids(one) != ids(other)
    assert by_label(one) == by_label(other)


CHANGES: dict[str, str | tuple[str, ...]] = {
    "seed": "seeds=[1]",
    "parameterization.name": 'grid.parameterization=["eps"]',
    "weighting": "weighting=edm",
    "loss.name": "loss=l1",
    "loss.options.space": 'loss={name = "v", space = "x0"}',
    "density.name": "density=lognormal",
    "density.options.sigma_min": "sigma_min=0.01",
    "density.options.sigma_max": "sigma_max=40",
    "sigma_min": "sigma_min=0.02",
    "sigma_max": "density.sigma_max=50.0",
    "c_in": "c_in=shared",
    "c_noise": "c_noise=shared",
    "dataset.name": "dataset=ring",
    "dataset.options.n": "dataset.n=201",
    "dataset.options.test": "dataset.test=101",
    "dataset.options.dim": "dataset.dim=3",
    "dataset.options.width": "dataset.width=0.1",
    "dataset.options.scale": "dataset.scale=0.7",
    "dataset.options.data_seed": "dataset.data_seed=1",
    "sigma_data": "sigma_data.assumed=1",
    "network.options.width": "network.width=9",
    "network.options.depth": "network.depth=2",
    "network.options.features": "network.features=3",
    "network.options.frequencies": "network.frequencies=[0.1, 9.0]",
    "training.steps": "training.steps=51",
    "training.batch": "training.batch=9",
    "training.learning_rate": "training.learning_rate=0.01",
    "training.betas": "training.betas=[0.9, 0.9]",
    "training.ema": "training.ema=0.5",
    "training.clip": "training.clip=1",
    "training.clip_loss": "training.clip_loss=raw",
    "training.points": "training.points=3",
    "training.flips": ("dataset=digits", "training.flips=0.5"),
    "training.warmup": "training.warmup=5",
    "training.optimizer": "training.optimizer=sgd",
    "training.eps": "training.eps=0.001",
    "training.momentum": 'training={optimizer="sgd", momentum=0.9}',
    "training.weight_decay": 'training={optimizer="adamw", weight_decay=0.1}',
    "training.schedule": "training.schedule=cosine",
    "training.ema_width": "training.ema_width=0.1",
    "training.hold": 'training={hold=5, schedule="cosine"}',
    "training.precision": "training.precision=bfloat16",
    "training.accumulation": "training={batch=8, accumulation=2}",
    "training.checkpointing": ("dataset=digits", "network=dit", "training.checkpointing=true"),
    "training.memory_format": ("dataset=digits", "training.memory_format=channels_last"),
    "training.compile": "training.compile=true",
    "evaluation.levels": "evaluation.levels=4",
    "evaluation.draws": "evaluation.draws=9",
    "evaluation.samples": "evaluation.samples=9",
    "evaluation.steps": "evaluation.steps=4",
    "evaluation.sampler.name": "evaluation.sampler=euler",
    "evaluation.schedule.name": "evaluation.schedule=uniform",
    "evaluation.schedule.options.rho": "evaluation.schedule.rho=3.0",
    "evaluation.likelihood": "evaluation.likelihood={}",
    "table": "table=ddpm",
    "noise.name": "noise=offset",
    "output": "output=v",
    "evaluation.elbo": ("table=ddpm", "evaluation.elbo=small"),
    "variance.name": ("table=ddpm", "density=table", "variance=learned"),
    "variance.vlb": ("table=ddpm", "density=table", 'variance={name="learned", vlb=0.1}'),
    "conditions.label": "conditions.label=0.1",
    "evaluation.guidance.name": 'evaluation.guidance={name="classifier", steps=9}',
    "evaluation.metrics": 'evaluation.metrics=["mmd"]',
    "evaluation.sigma_min": "evaluation.sigma_min=0.05",
    "evaluation.sigma_max": "evaluation.sigma_max=30",
    "evaluation.sampling_sigma_min": "evaluation.sampling_sigma_min=0.05",
    "evaluation.sampling_sigma_max": "evaluation.sampling_sigma_max=30",
    "asked_levels": "table=scaled_linear",
    "table_levels": 'table={name="ddpm", n=500}',
    "evaluation.points": "evaluation.points=[0.5]",
    "evaluation.widths": "evaluation.widths=[0.1]",
    "evaluation.exact_ends": "evaluation.exact_ends=16",
    "encoder": ("dataset=digits", "encoder={channels=[8], steps=1, batch=2}"),
}
# What no setting of this study changes: one network, digests, and facts of the code and the device;
# and what needs files: test_texts and test_fixed_models have the identities of these.
OTHERWISE = {
    "network.name", "data_digest", "sigma_data_measured", "device", "schema", "sources",
    "training_sources", "training_range", "blind", "sigma_data_channels", "text_encoder", "fixed",
}  # fmt: skip


def leaves(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a configuration; the options of the sampler and of plugins apart."""
    if not isinstance(config, dict):
        yield prefix[:-1]
        return
    for key, value in config.items():
        yield from leaves(value, f"{prefix}{key}.")


@pytest.mark.slow
def test_an_identity_depends_on_every_setting(folder: Path, registry: testbed.Registry) -> None:
    first = made(folder, registry).trials[0]
    found = {"": first.id}
    for key, change in CHANGES.items():
        changes = (change,) if isinstance(change, str) else change
        (other,) = made(folder, registry, SMALL, *changes).trials
        records = first.config.record(), other.config.record()
        touched = [line.partition(":")[0] for line in plan.differences(*records)]
        assert any(f"{name}.".startswith(f"{key}.") for name in touched), (key, touched)
        found[key] = other.id
    assert len(set(found.values())) == len(found)
    known = {*CHANGES, *OTHERWISE}
    missing = [
        leaf
        for leaf in leaves(first.config.record())
        if leaf not in known and not leaf.startswith(("plugins.", "evaluation.sampler.options"))
    ]
    assert not missing, f"add a change for {missing}"


def test_an_identity_depends_on_the_device_class_and_not_on_its_number(
    folder: Path, registry: testbed.Registry
) -> None:
    here, first, second = (
        ids(made(folder, registry, device=device)) for device in ("cpu", "cuda:0", "cuda:1")
    )
    assert here != first == second


def test_an_identity_depends_on_the_sources_and_on_the_data(
    folder: Path, registry: testbed.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made(folder, registry).trials[0]
    with monkeypatch.context() as patch:
        patch.setattr(sources, "digest", lambda modules: "other")
        assert made(folder, registry).trials[0].id != before.id
    data = build.dataset(registry, before.config.dataset)
    assert before.config.data_digest == data.digest
    assert len(before.config.sources) == 16


def test_an_identity_depends_on_the_source_of_the_plugins_it_uses_and_no_other(
    tmp_path: Path, folder: Path
) -> None:
    file = tmp_path / "weighting_of_mine.py"
    text = SMALL + '[arms]\nown = { weighting = "mine" }\nother = { weighting = "edm" }\n'
    found = []
    for source in (MINE, MINE + "# a comment\n"):
        file.write_text(source)
        found.append(by_label(made(folder, testbed.Registry([str(file)]), text)))
    before, after = found
    assert before["", "own", "v", 0] != after["", "own", "v", 0]
    assert before["", "other", "v", 0] == after["", "other", "v", 0]


def test_options_that_are_written_out_and_defaults_are_one_identity(
    tmp_path: Path, folder: Path
) -> None:
    file = tmp_path / "weighting_with_an_option.py"
    file.write_text(MINE)
    registry = testbed.Registry([str(file)])
    bare, same, other = (
        ids(made(folder, registry, SMALL, f"weighting={value}"))
        for value in ("mine", '{name = "mine", power = 1}', '{name = "mine", power = 2.0}')
    )
    assert bare == same != other


# --- trials of a study --------------------------------------------------------------------------


@pytest.mark.slow
def test_only_edm_is_one_training_in_both_arms_of_the_default_study(
    tmp_path: Path, registry: testbed.Registry
) -> None:
    """Measured it is twice: in the arm published at the levels of DDPM's table too."""
    found = plan.make(study_file.read(Path("default")), registry, tmp_path, "cpu")
    trainings: dict[str, list[plan.Trial]] = {}
    for one in found.trials:
        trainings.setdefault(f"{one.config.training_text} {one.config.seed}", []).append(one)
    shared = [ones for ones in trainings.values() if len(ones) > 1]
    labels = [[label for one in ones for label in one.labels] for ones in shared]
    assert {label["variant"] for both in labels for label in both} == {"edm"}
    assert all([label["arm"] for label in both] == ["published", "equal"] for both in labels)
    assert len(shared) == 3 + 6
    assert len(found.trials) == 5 * 2 * (3 + 6)
    assert len(trainings) == len(found.trials) - len(shared) == 81
    assert len(set(ids(found))) == len(found.trials)
    assert found.trials[0].title == "eps · digits · published · seed 0"


def test_adding_a_parameterization_changes_no_other_identity(
    tmp_path: Path, folder: Path, registry: testbed.Registry
) -> None:
    before = made(folder, registry, SMALL, 'grid.parameterization=["v", "edm"]')
    file = tmp_path / "doubled.py"
    file.write_text(
        "import testbed\n"
        "def scaling(sigma):\n"
        "    return testbed.Coefficients(1 + 0 * sigma, -2 * sigma, 1 + 0 * sigma, sigma)\n"
        "@testbed.hookimpl\n"
        "def testbed_parameterizations():\n"
        "    recipe = testbed.Recipe(density='cosine')\n"
        "    yield testbed.Parameterization(\n"
        "        'doubled', scaling, recipe=recipe, noise_kind='sigma'\n"
        "    )\n"
    )
    three = 'grid.parameterization=["edm", "doubled", "v"]'
    after = by_label(made(folder, testbed.Registry([str(file)]), SMALL, three))
    assert len(after) == 3
    assert {key: after[key] for key in by_label(before)} == by_label(before)


def test_a_variant_names_its_options_and_the_other_axes_of_the_grid(
    folder: Path, registry: testbed.Registry
) -> None:
    text = SMALL + 'training.steps = [1, 2]\nloss = ["l1", { name = "l2", space = "v" }]\n'
    variants = [one.labels[0]["variant"] for one in made(folder, registry, text).trials]
    assert variants == [
        "v steps=1 loss=l1", "v steps=1 loss=l2", "v steps=2 loss=l1", "v steps=2 loss=l2",
    ]  # fmt: skip


def labels(found: Plan) -> list[str]:
    return [one.labels[0]["variant"] for one in found.trials]


def test_a_variant_names_the_options_that_tell_it_from_another_of_its_name(
    folder: Path, registry: testbed.Registry
) -> None:
    loss = '{name="huber", delta=1.0, space="x0"}, {name="huber", delta=2.0, space="x0"}'
    weighting = '"edm", "min_snr", {name="min_snr", gamma=1}'
    sets = [f"grid.loss=[{loss}]", f"grid.weighting=[{weighting}]"]
    assert labels(made(folder, registry, SMALL, *sets)) == [
        f"v loss=huber delta={c} weighting={w}"
        for c in (1.0, 2.0)
        for w in ("edm", "min_snr", "min_snr gamma=1")
    ]
    # Not where a name says it all, nor options that are equal.
    one = made(folder, registry, SMALL, 'grid.weighting=[{name="min_snr", gamma=1}, "edm"]')
    assert labels(one) == ["v weighting=min_snr", "v weighting=edm"]


def test_one_value_twice_is_still_asked_for_twice(folder: Path, registry: testbed.Registry) -> None:
    twice = 'grid.weighting=["min_snr", {name="min_snr"}]'
    with pytest.raises(InputError, match=r"v weighting=min_snr 0: asked for twice\."):
        made(folder, registry, SMALL, twice)


@pytest.mark.parametrize(
    ("further", "expected"),
    [
        (
            '[[cases]]\nname = "a"\n[[cases]]\nname = "a"\n',
            "cases[1].name = 'a' is that of a case before: give each a name of its own.",
        ),
        (
            'weighting = ["edm", "min_snr", "edm"]\n',
            "grid.weighting[2] = 'edm' is in the list before: name each value once.",
        ),
    ],
    ids=["a case", "a value of the grid"],
)
def test_what_stands_in_a_file_twice_is_told_where_it_stands_again(
    folder: Path, registry: testbed.Registry, further: str, expected: str
) -> None:
    with pytest.raises(InputError) as found:
        made(folder, registry, SMALL + further)
    assert str(found.value).endswith(f"study.toml: {expected}")


# --- what does not fit --------------------------------------------------------------------------


def network(kinds: str) -> str:
    return (
        "import testbed\n"
        "from testbed.networks.mlp import ResidualMLP\n"
        "def build(shape, labels):\n"
        "    raise AssertionError('training must not begin')\n"
        "@testbed.hookimpl\n"
        "def testbed_networks():\n"
        f"    yield testbed.Network('odd', build, noise={kinds})\n"
    )


def test_a_network_that_does_not_take_the_kind_of_c_noise_is_refused_with_the_reason(
    tmp_path: Path, folder: Path
) -> None:
    file = tmp_path / "network_of_indices.py"
    file.write_text(network("{'index': (0, 999)}"))
    with pytest.raises(InputError) as found:
        made(folder, testbed.Registry([str(file)]), SMALL, "network=odd", "c_noise=native")
    assert str(found.value) == (
        f"{tmp_path / 'study.toml'}: grid.parameterization[0] = 'v': parameterization 'v' gives "
        "c_noise as 'sigma', network 'odd' takes index. Its table has no entry at a sigma: "
        'c_noise = "index" gives one, with a table.'
    )
    sets = ("--set", "network=odd", "--set", "c_noise=native")
    done = run_here(tmp_path, "study", "study.toml", "-p", file, *sets)
    assert done.code == 2
    assert "network 'odd' takes index" in done.err
    assert not (tmp_path / "runs").exists()


def test_c_noise_beyond_the_range_of_a_network_is_refused_with_both_ranges(
    tmp_path: Path, folder: Path
) -> None:
    file = tmp_path / "network_of_small_sigmas.py"
    file.write_text(network("{'sigma': (0.001, 50), 'log_sigma': (-10, 10)}"))
    registry = testbed.Registry([str(file)])
    with pytest.raises(InputError, match=r"from 0\.002 to 80, network 'odd' takes sigma from 0\.0"):
        made(folder, registry, SMALL, "network=odd", "c_noise=native")
    own = "network=odd", "c_noise=native"
    with pytest.raises(InputError, match=r"from 0\.0001 to 40, network 'odd'"):
        made(folder, registry, SMALL, *own, "sigma_min=0.0001", "sigma_max=40")
    assert len(made(folder, registry, SMALL, *own, "sigma_max=40").trials) == 1
    assert len(made(folder, registry, SMALL, "network=odd", "c_noise=shared").trials) == 1


# --- what is on disk ----------------------------------------------------------------------------


def states(found: Plan) -> list[str]:
    return [one.state for one in found.trials]


def test_a_trial_is_new_interrupted_failed_finished_or_diverged_by_what_its_folder_holds(
    folder: Path, registry: testbed.Registry
) -> None:
    first = made(folder, registry)
    assert states(first) == ["new"]
    runner.describe(first, registry)
    # A study that was stopped before this trial began: not stale, nothing has been trained.
    assert states(made(folder, registry)) == ["new"]
    at = folder / "trials" / first.trials[0].id
    (at / "checkpoint").write_bytes(b"")
    assert states(made(folder, registry)) == ["interrupted"]
    for status in ("failed", "diverged", "finished"):
        Folder.at(at).put_json("result.json", {"status": status})
        found = made(folder, registry)
        assert states(found) == [status]
        assert len(found.pending()) == (status == "failed")


def test_a_trial_that_was_trained_with_other_settings_is_stale_and_says_which(
    folder: Path, registry: testbed.Registry
) -> None:
    first = made(folder, registry, SMALL, "seeds=2")
    runner.describe(first, registry)
    at = folder / "trials" / first.trials[0].id
    Folder.at(at).put_json("result.json", {"status": "finished"})
    changed = made(folder, registry, SMALL, "seeds=2", "training.steps=60", "weighting=edm")
    stale, untouched = changed.trials
    assert (stale.state, untouched.state) == ("stale", "new")
    assert "training.steps: 50 -> 60" in stale.changed
    assert "weighting: None -> {'name': 'edm', 'options': {}}" in stale.changed
    assert len(stale.changed) == 3, stale.changed  # and the plugin of the weighting
    assert changed.pending() == changed.trials
    assert states(made(folder, registry, SMALL, "seeds=2")) == ["finished", "new"]


def test_a_change_of_the_sources_makes_a_trial_stale(
    folder: Path, registry: testbed.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(folder, registry)
    runner.describe(first, registry)
    at = folder / "trials" / first.trials[0].id
    Folder.at(at).put_json("result.json", {"status": "finished"})
    monkeypatch.setattr(sources, "digest", lambda modules: "new")
    (stale,) = made(folder, registry).trials
    assert stale.state == "stale"
    assert stale.changed == [f"sources: {first.trials[0].config.sources!r} -> 'new'"]


def test_a_study_that_asks_for_fid_is_refused_before_any_training(
    folder: Path, registry: testbed.Registry
) -> None:
    with pytest.raises(InputError, match=r"metric 'fid': it needs weights = "):
        made(folder, registry, SMALL, 'base.evaluation.metrics=["fid"]')
    assert not list(folder.glob("trials/*"))


def test_differences_are_dotted_keys_with_both_values() -> None:
    before = {"a": 1, "b": {"c": [1, 2], "d": [3]}, "e": None}
    after = {"a": 1, "b": {"c": [1, 3], "d": [3]}, "f": "x"}
    assert plan.differences(before, after) == ["b.c: [1, 2] -> [1, 3]", "f: None -> 'x'"]


def test_a_baseline_that_does_not_exist_is_told_and_one_left_out_is_not(
    folder: Path, registry: testbed.Registry
) -> None:
    with pytest.raises(InputError, match=r"report.baseline: Unknown variant 'edn'. Did you mean"):
        made(folder, registry, SMALL + '[report]\nbaseline = "edn"\n')
    assert made(folder, registry, SMALL + '[report]\nbaseline = "edm"\n').trials


def test_a_baseline_with_values_of_the_grid_is_one_of_the_variants_or_left_out(
    folder: Path, registry: testbed.Registry
) -> None:
    grid = 'grid.weighting=["edm", "min_snr"]'
    full = SMALL + '[report]\nbaseline = "v weighting=min_snr"\n'
    assert plan.notes(made(folder, registry, full, grid)) == []
    with pytest.raises(InputError, match="Unknown variant 'v weighting=x0'") as found:
        made(folder, registry, full.replace("=min_snr", "=x0"), grid)
    assert "Known: edm, eps, flow, " in str(found.value)
    assert "v, v weighting=edm, v weighting=min_snr, x0." in str(found.value)
    left_out = plan.notes(made(folder, registry, full, 'grid.parameterization=["x0"]'))
    assert left_out == [
        "The baseline v weighting=min_snr is not among them: x0, the first, takes its place."
    ]


@pytest.mark.slow
def test_the_plan_says_which_variant_is_the_baseline_and_what_has_no_effect(folder: Path) -> None:
    arms = '[arms]\nown = {}\nequal = { weighting = "edm", density = "lognormal" }\n'
    text = SMALL + arms + '[report]\nbaseline = "v"\n'
    (folder.parent / "study.toml").write_text(text)
    sets = ["--set", 'grid.weighting=["edm","min_snr"]', "--set", "density=lognormal"]
    done = run_here(folder.parent, "plan", "study.toml", *sets)
    assert (done.code, done.err) == (0, "")
    for said in (
        "grid.weighting takes the place of the weighting of arm equal.",
        "--set density takes the place of the density of arm equal.",
        "The baseline v fits 2 variants (v weighting=edm, v weighting=min_snr): the first, "
        "v weighting=edm, is taken. --set 'report.baseline=\"v weighting=min_snr\"' takes another.",
    ):
        assert done.out.splitlines().count(said) == 1, said


# --- what was asked for -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_record_of_a_study_says_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("study.toml").write_text(SMALL)
    Path("asked_for.py").write_text(MINE)
    registry = testbed.Registry(["asked_for.py", "no:edm2"], ["."])
    sets = ("training.steps=9", 'grid.weighting=["mine"]')
    read = study_file.read(Path("study.toml"), sets, ["v"], 2)
    runner.describe(plan.make(read, registry, Path("runs/small"), "cpu"), registry)
    asked = Folder.at(Path("runs/small")).json("study.json")["asked"]
    flags = ["-p", "asked_for.py", "-p", "no:edm2", "--plugin-dir", "."]
    flags += ["--set", sets[0], "--set", sets[1], "--only", "v", "--seeds", "2"]
    assert asked == {
        "command": ["testbed", "study", "study.toml", *flags],
        "set": list(sets),
        "only": ["v"],
        "seeds": 2,
        "plugins": ["asked_for.py", "no:edm2"],
    }
    elsewhere = plan.make(study_file.read(Path("study.toml")), registry, Path("other"), "cuda:1")
    assert asked_for(elsewhere, default_registry()) == (
        "testbed study study.toml --device cuda:1 --out other"
    )
    bundled = plan.make(study_file.read(Path("default")), registry, Path("runs/default"), "cpu")
    assert asked_for(bundled, default_registry()) == "testbed study default"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for store, words in {
        tracking_store.uri(): "",
        "sqlite:///other.db": " --tracking-uri sqlite:///other.db",
        "https://me:secret@host:5000/a@b": " --tracking-uri https://host:5000/a@b",
    }.items():
        assert asked_for(bundled, default_registry(), store) == f"testbed study default{words}"


def asked_for(found: Plan, registry: testbed.Registry, store: str = "") -> str:
    return " ".join(invocation.record(found, registry, store)["command"])


# --- twins --------------------------------------------------------------------------------------

SHARED = SMALL.replace("seeds = 1", "seeds = 1\nsigma_data = { assumed = 1 }" + EQUAL)
MIRROR = "the same objective; F differs by the sign"
V_AND_EDM = 'grid.parameterization=["v", "edm"]'


def paired(folder: Path, registry: testbed.Registry, text: str, *sets: str) -> list[dict[str, Any]]:
    """The twins of a study."""
    return equal_objectives.find(made(folder, registry, text, *sets), registry)


@pytest.mark.slow
def test_v_and_edm_at_sigma_data_1_with_all_else_equal_are_twins_and_eps_is_not(
    folder: Path, registry: testbed.Registry
) -> None:
    grid = 'grid.parameterization=["eps", "v", "edm"]'
    folder.mkdir()
    (pair,) = reference_tables.write(made(folder, registry, SHARED, grid), registry)
    assert pair == {
        "case": "", "arm": "", "members": ["v", "edm"], "factors": [1, -1], "why": MIRROR,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["sigma_data.assumed=1"], 1),
        (["sigma_data.assumed=1.00000001"], 1),  # what float32 does not tell from 1
        (["sigma_data.assumed=1.000001"], 0),
        (["sigma_data.assumed=0.5"], 0),
        (["c_in=native"], 1),
        (["c_in=native", "c_noise=native"], 0),
        (["weighting=recipe"], 0),
        (["weighting=none", 'loss={name = "l2", space = "F"}'], 1),
        (["density=recipe"], 0),
        (['loss={name = "l1", space = "x0"}'], 1),
        (['loss={name = "huber", space = "eps"}'], 1),
        (['loss={name = "l1", space = "F"}'], 0),  # nothing says that a loss is even
        (['grid.parameterization=["eps", "v"]'], 0),
        (['grid.parameterization=["eps", "score"]'], 0),
        (['grid.parameterization=["edm", "x0"]'], 0),
        (['grid.parameterization=["eps", "minus_eps"]', "sigma_data.assumed=0.3"], 1),
    ],
)
def test_settings_are_twins_only_where_target_weight_draws_and_inputs_agree(
    folder: Path, registry: testbed.Registry, sets: list[str], expected: int
) -> None:
    assert len(paired(folder, registry, SHARED, V_AND_EDM, *sets)) == expected


@pytest.mark.parametrize(
    "axis",
    [
        "training.steps=[50, 60]",
        "training.learning_rate=[0.001, 0.01]",
        "network.width=[8, 9]",
        "evaluation.steps=[3, 4]",
        "dataset.n=[200, 201]",
        'density=["lognormal", "cosine"]',
        'weighting=["edm", "x0"]',
        'loss=["l1", "huber"]',
    ],
)
def test_what_else_a_grid_changes_makes_no_twins(
    folder: Path, registry: testbed.Registry, axis: str
) -> None:
    assert paired(folder, registry, SHARED, f"grid.{axis}") == []
    both = paired(folder, registry, SHARED, f"grid.{axis}", V_AND_EDM)
    assert [len(pair["members"]) for pair in both] == [2, 2], "one for each value of the axis"


def test_one_effective_weight_from_two_densities_makes_no_twins(
    folder: Path, registry: testbed.Registry
) -> None:
    """The sigmoid weighting is given per d log sigma: lambda p is one curve whatever p."""
    sets = ["weighting=sigmoid", 'grid.density=["lognormal", "cosine"]']
    study = made(folder, registry, SHARED, *sets)
    one, other = (equal_objectives.described(at.config, registry) for at in study.trials)
    assert one is not None
    assert other is not None
    assert torch.allclose(one.weight, other.weight, rtol=1e-9)
    assert equal_objectives.find(study, registry) == []


def test_one_objective_written_in_several_spaces_is_one_setting(
    folder: Path, registry: testbed.Registry
) -> None:
    """With a weighting l2 is lambda |D - x0|^2 whatever the space."""
    (group,) = paired(folder, registry, SHARED, 'grid.loss.space=["x0", "v", "F"]')
    assert group["members"] == ["v space=x0", "v space=v", "v space=F"]
    assert group["factors"] == [1, 1, 1]
    assert group["why"] == (
        "the same objective; F is the same: under a weighting a squared error is lambda |D - x0|^2 "
        'whatever its space; to compare spaces, write weighting = "none", or take the loss l1 or '
        "huber"
    )


@pytest.mark.parametrize(
    "sets", [["weighting=none"], ["base.loss=l1"], ["base.loss=huber"], ["weighting=recipe"]]
)
def test_spaces_are_compared_by_what_the_plan_says_to_write(
    folder: Path, registry: testbed.Registry, sets: list[str]
) -> None:
    """v's own recipe has no weighting: its grid of spaces needs nothing else."""
    study = made(folder, registry, SHARED, 'grid.loss.space=["x0", "eps", "v"]', *sets)
    assert len({one.config.loss.text for one in study.trials}) == 3
    assert (study.trials[0].config.weighting is None) == (sets[0].startswith("weighting"))
    assert equal_objectives.find(study, registry) == []


def test_equal_objectives_of_two_parameterizations_are_not_told_of_spaces(
    folder: Path, registry: testbed.Registry
) -> None:
    """Each has a space of its own, and none is on the grid."""
    arms = (
        '[arms]\none = { parameterization = "v", loss.space = "v" }\n'
        'other = { parameterization = "edm", loss.space = "x0" }\n'
    )
    text = SHARED.replace('[grid]\nparameterization = ["v"]', arms)
    study = made(folder, registry, text)
    for one in study.trials:
        one.labels[0]["arm"] = ""
    (group,) = equal_objectives.find(study, registry)
    assert (group["members"], group["why"]) == (["v", "edm"], MIRROR)


def test_equal_weights_and_inputs_alone_make_no_twins(
    folder: Path, registry: testbed.Registry
) -> None:
    """|F - F*|^2 has weight 1 for both: only the targets differ."""
    arms = [
        f'{name} = {{ parameterization = "{name}", weighting = "{name}" }}' for name in ("eps", "v")
    ]
    text = SHARED.replace('[grid]\nparameterization = ["v"]', "[arms]\n" + "\n".join(arms))
    study = made(folder, registry, text)
    for one in study.trials:
        one.labels[0]["arm"] = ""
    assert [one.labels[0]["variant"] for one in study.trials] == ["eps", "v"]
    one, other = (equal_objectives.described(at.config, registry) for at in study.trials)
    assert one is not None
    assert other is not None
    assert torch.allclose(one.weight, other.weight, rtol=1e-9)
    assert equal_objectives.find(study, registry) == []


OTHERS = """
import torch
from helpers.studies import planned

import testbed

def scaling(sigma, size=2.0):
    one = torch.ones_like(sigma)
    return testbed.Coefficients(one, -sigma / size, 1 / torch.sqrt(sigma**2 + 1), sigma)

def denoise(F, x, sigma):
    return x - sigma * F

def target(x0, eps, sigma):
    return eps

def once(sigma):
    return 1 / sigma**2

def four_times(sigma):
    return 4 / sigma**2

def learned(sigma, state):
    return torch.exp(state.bias) / sigma**2

def distance(prediction, target, state):
    return (prediction - target).abs() * torch.exp(state.bias)

def state():
    return torch.nn.Linear(1, 1)

@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization("sized", scaling)
    yield testbed.Parameterization("given", target=target, denoise=denoise)

@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("learned", learned, state=state)
    yield testbed.Weighting("once", once)
    yield testbed.Weighting("four_times", four_times)

@testbed.hookimpl
def testbed_losses():
    yield testbed.Loss("distance", distance, state=state)
"""


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> testbed.Registry:
    file = tmp_path_factory.mktemp("plugins") / "others_than_bundled.py"
    file.write_text(OTHERS)
    return testbed.Registry([str(file)])


@pytest.mark.parametrize("sets", [["weighting=learned"], ["loss=distance"]])
def test_what_is_learned_has_no_twin(
    folder: Path, others: testbed.Registry, sets: list[str]
) -> None:
    grid = 'grid.parameterization=["eps", "minus_eps"]'
    assert len(paired(folder, others, SHARED, grid)) == 1
    assert paired(folder, others, SHARED, grid, *sets) == []


def test_what_is_not_affine_has_no_twin(folder: Path, others: testbed.Registry) -> None:
    study = made(folder, others, SHARED, 'grid.parameterization=["given", "eps"]')
    assert equal_objectives.find(study, others) == []
    config = study.trials[0].config
    data = build.dataset(others, config.dataset)
    denoiser, objective = build.assemble(config, others, data)
    assert equal_objectives.signature(objective, denoiser) is None


def test_another_size_of_f_is_named_and_mirror_images_of_each_size_are_twins(
    folder: Path, others: testbed.Registry
) -> None:
    sizes = ", ".join(f'{{ name = "sized", size = {size} }}' for size in (2.0, -2.0, -1.0))
    found = paired(folder, others, SHARED, f'grid.parameterization=["eps", {sizes}]')
    assert [(group["members"], group["factors"]) for group in found] == [
        (["eps", "sized size=-1.0"], [1, -1]),
        (["sized size=2.0", "sized size=-2.0"], [1, -1]),
        (["eps", "sized size=2.0"], [1, 2]),
    ]
    assert found[2]["why"].startswith("the same objective; F differs by the factor 2: compared")


@pytest.mark.parametrize(
    ("sets", "groups"),
    [
        ([], 1),
        (["training.clip=1"], 1),
        (["training.clip_loss=raw"], 1),
        (["training.clip=1", "training.clip_loss=raw"], 0),
        (["training.clip=1", "training.clip_loss=raw", "base.loss=l1"], 0),
    ],
)
def test_a_constant_in_the_weighting_makes_another_objective_where_the_raw_loss_is_clipped(
    folder: Path, others: testbed.Registry, sets: list[str], groups: int
) -> None:
    grid = 'grid.weighting=["once", "four_times"]'
    text = SHARED.replace('weighting = "edm"\n', "")
    assert len(paired(folder, others, text, grid, *sets)) == groups


@pytest.mark.parametrize("loss", ["l2", '{name = "l1", space = "x0"}'])
def test_mirror_images_and_sizes_of_f_are_found_where_the_raw_loss_is_clipped(
    folder: Path, others: testbed.Registry, loss: str
) -> None:
    raw = ["training.clip=1", "training.clip_loss=raw", f"loss={loss}"]
    sizes = ", ".join(f'{{ name = "sized", size = {size} }}' for size in (2.0, -1.0))
    found = paired(folder, others, SHARED, f'grid.parameterization=["eps", {sizes}]', *raw)
    assert [group["factors"] for group in found] == [[1, -1], [1, 2]]


def test_twins_are_found_without_data_and_without_a_network(
    folder: Path, registry: testbed.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = made(folder, registry, SHARED, V_AND_EDM)

    def refuse(*arguments: object) -> None:
        raise AssertionError("must not be built")

    monkeypatch.setattr(testbed.Dataset, "__call__", refuse)
    monkeypatch.setattr(testbed.Network, "__call__", refuse)
    assert len(equal_objectives.find(study, registry)) == 1


@pytest.mark.slow
def test_the_plan_names_the_twins_of_each_case_and_arm(folder: Path) -> None:
    arms = '[arms]\nfirst = {}\nlast = { loss = { name = "l1", space = "x0" } }\n'
    (folder.parent / "study.toml").write_text(SHARED + arms + '[[cases]]\nname = "[a]"\n')
    done = run_here(folder.parent, "plan", "study.toml", "--set", V_AND_EDM)
    assert done.code == 0, done.err
    said = [line for line in done.out.splitlines() if line.startswith("equal objectives")]
    assert said == [
        f"equal objectives: v and edm in case [a], arm {arm}: {MIRROR}" for arm in ("first", "last")
    ]
    assert done.out.index("equal objectives: ") < done.out.index("Engine: ")


def test_twins_of_a_study_with_one_case_and_arm_are_named_alone() -> None:
    twin = {"case": "", "arm": "", "members": ["a", "b", "c"], "factors": [1, 1, -1], "why": MIRROR}
    assert equal_objectives.line(twin) == f"equal objectives: a, b and c: {MIRROR}"


@pytest.mark.parametrize(("width", "narrow"), [(191, True), (192, False)])
def test_a_network_narrower_than_its_data_is_told(tmp_path: Path, width: int, narrow: bool) -> None:
    """A picture of `captions` has 3 x 8 x 8 numbers."""
    text = f"""
        [study]
        name = "narrow"
        [base]
        dataset = "captions"
        parameterization = "v"
        network = {{ name = "mlp", width = {width}, depth = 1 }}
    """
    said = [note for notes in planned(text, tmp_path).data_notes.values() for note in notes]
    told = f"F of network 'mlp' lies in an affine space of at most {width} of a sample's 192 dim"
    assert [note.startswith(told) for note in said if "affine" in note] == [True] * narrow
