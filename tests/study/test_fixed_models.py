"""Models of other codebases as fixed contestants: measured alike, and compared with nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.command_line import blank_figures, run_here
from helpers.diffusers_models import conditional_unet, needs_diffusers, unet, write
from helpers.studies import planned, refusal
from safetensors.torch import save_file

import testbed
from testbed.errors import InputError
from testbed.metrics import denoising
from testbed.report import fixed_models
from testbed.trial.build import assemble
from testbed.trial.restore import restore

NET = """
import torch


class Net(torch.nn.Module):
    \"\"\"F = w x, whatever the noise level.\"\"\"

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t):
        return self.w * x


def build():
    return Net()
"""
STUDY = """
[study]
name = "beside"

[base]
dataset = { name = "mixture", dim = 2, n = 256, test = 64 }
network = { name = "mlp", width = 8, depth = 1 }
training = { steps = 20, batch = 8 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 2, metrics = ["energy"] }
seeds = 2

[arms]
published = {}
equal = { weighting = "edm", density = "lognormal", c_in = "shared", c_noise = "shared" }

[grid]
parameterization = ["v", "edm"]
"""
FIXED = """
[[fixed]]
name = "theirs"
factory = "net.py:build"
wrapping = "edm.EDMPrecond"
weights = "net.safetensors"
sigma_data = 0.5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the study file and the files of the fixed model, from which it is planned."""
    (tmp_path / "net.py").write_text(NET)
    save_file({"w": torch.tensor(0.2)}, tmp_path / "net.safetensors")
    (tmp_path / "beside.toml").write_text(STUDY + FIXED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_one_trial_beside_the_others_and_changes_none_of_them(folder: Path) -> None:
    alone = planned(STUDY, folder, seeds=None)
    both = planned(STUDY + FIXED, folder, seeds=None)
    mine = {trial.id for trial in alone.trials}
    (fixed,) = (trial for trial in both.trials if trial.id not in mine)
    assert len(both.trials) == len(mine) + 1
    assert [label["arm"] for label in fixed.labels] == ["published", "equal"]
    assert fixed.title == "theirs · published+equal · not trained"
    assert all(label["variant"] == "theirs" for label in fixed.labels)
    assert "theirs" not in {variant for _, _, variant in both.seeds()}


def test_weights_that_are_missing_are_told_before_anything_trains(folder: Path) -> None:
    (folder / "net.safetensors").rename(folder / "nets.safetensors")
    said = refusal(STUDY + FIXED, folder)
    assert "net.safetensors: there is no such file" in said
    assert "Did you mean 'nets.safetensors'?" in said


@needs_diffusers
@pytest.mark.slow
def test_a_pipeline_without_safetensors_is_told_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pipeline", unet(sample_size=8), diffusers.DDPMScheduler())
    (weights,) = (tmp_path / "pipeline").rglob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    assert "has its weights in diffusion_pytorch_model.bin alone" in refusal(DIGITS, tmp_path)


@pytest.mark.slow
def test_its_id_is_that_of_its_files_and_not_of_their_place(folder: Path) -> None:
    def id_of(text: str) -> str:
        (fixed,) = (one for one in planned(text, folder).trials if one.config.fixed)
        return fixed.id

    first = id_of(STUDY + FIXED)
    (folder / "sub").mkdir()
    shutil.copy(folder / "net.safetensors", folder / "sub" / "other.safetensors")
    moved = FIXED.replace("net.safetensors", "sub/other.safetensors").replace("theirs", "again")
    assert id_of(STUDY + moved) == first
    save_file({"w": torch.tensor(0.3)}, folder / "net.safetensors")
    assert id_of(STUDY + FIXED) != first
    # A longer training is that of the others.
    save_file({"w": torch.tensor(0.2)}, folder / "net.safetensors")
    assert id_of(STUDY.replace("steps = 20", "steps = 30") + FIXED) == first
    assert id_of(STUDY.replace("levels = 3", "levels = 4") + FIXED) != first


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study has run, with its report."""
    folder = tmp_path_factory.mktemp("fixed")
    (folder / "net.py").write_text(NET)
    save_file({"w": torch.tensor(0.2)}, folder / "net.safetensors")
    (folder / "beside.toml").write_text(STUDY + FIXED)
    with blank_figures():
        done = run_here(folder, "study", "beside.toml", "--jobs", 0, "--no-mlflow")
    assert done.code == 0, done.err
    return folder


def fixed_trial(folder: Path) -> Path:
    found = [
        file.parent
        for file in (folder / "runs" / "beside" / "trials").glob("*/trial.json")
        if json.loads(file.read_text())["config"].get("fixed")
    ]
    (one,) = found
    return one


@pytest.mark.slow
@pytest.mark.process
def test_it_is_measured_as_it_is(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its losses are those of D = c_skip x + 0.2 c_out c_in x on the pairs that all trials have."""
    monkeypatch.chdir(finished)
    trial = fixed_trial(finished)
    table = pd.read_csv(trial / "levels.csv")
    _, data, config, _ = restore(trial)
    sigma = torch.tensor(table["sigma"].to_numpy())
    pairs = denoising.held_out_pairs(data, sigma, config.evaluation.draws, ())
    s = sigma.reshape(-1, 1, 1)
    x = pairs.x0[None] + s * pairs.eps[None]
    r = torch.sqrt(s**2 + 0.25)
    D = 0.25 / r**2 * x + s * 0.5 / r * 0.2 * x / r
    wanted = (D - pairs.x0[None]).square().mean((1, 2))
    assert torch.allclose(torch.tensor(table["loss"].to_numpy()), wanted.double(), rtol=1e-4)
    other = next(
        at for at in trial.parent.iterdir() if at != trial and (at / "levels.csv").is_file()
    )
    assert pd.read_csv(other / "levels.csv")["sigma"].tolist() == table["sigma"].tolist()
    result = json.loads((trial / "result.json").read_text())
    assert (result["steps"], result["status"]) == (0, "finished")
    assert "energy" in result["metrics"]


@pytest.mark.slow
@pytest.mark.process
def test_the_report_shows_it_and_compares_it_with_nothing(finished: Path) -> None:
    run = finished / "runs" / "beside"
    page = (run / "report.html").read_text()
    assert "Models that were not trained here" in page
    assert "not trained here</td>" in page
    assert "no verdict on their training" in page
    tables = {one.stem: pd.read_csv(one) for one in (run / "tables").glob("*.csv")}
    assert set(tables["fixed"]["variant"]) == {"theirs"}
    assert set(tables["fixed"]["metric"]) >= {"energy", "loss_vs_wiener"}
    assert len(tables["fixed_levels"]) == 2 * 3  # arms and levels
    for name in ("comparisons", "results", "trials", "levels"):
        assert "theirs" not in set(tables[name]["variant"]), name
    assert "theirs" not in set(tables["comparisons"]["against"])
    assert "theirs" not in (run / "tables" / "finding.md").read_text()
    assert set(testbed.open(run).tables["fixed"]["arm"]) == {"published", "equal"}


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("own", "apart"), [("x", False), ("z", True)])
def test_its_losses_are_set_beside_those_of_the_same_data_in_its_arm(own: str, apart: bool) -> None:
    """An arm may have a data set of its own, which says nothing of a model in another arm."""
    trials = pd.DataFrame({"id": ["a", "b"], "case": "", "arm": ["one", "two"]})
    digests = {"a": "x", "b": "y", "c": own}
    results: Any = SimpleNamespace(
        trials=trials,
        configs={id_: SimpleNamespace(data_digest=one) for id_, one in digests.items()},
    )
    model = {"id": "c", "case": "", "arm": "one"}
    assert fixed_models._apart(results, model) is apart
    assert not fixed_models._apart(results, {**model, "id": "unreadable"})


@pytest.mark.slow
def test_a_finished_one_is_not_measured_again_and_samples_are_drawn_from_it(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    before = (fixed_trial(finished) / "result.json").stat().st_mtime_ns
    assert run_here(finished, "study", "beside.toml", "--jobs", 0, "--no-mlflow").code == 0
    assert (fixed_trial(finished) / "result.json").stat().st_mtime_ns == before
    done = run_here(finished, "sample", fixed_trial(finished).name, "-n", 4, "--out", "x.npy")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_files_that_change_after_the_plan_are_noticed(folder: Path) -> None:
    made = planned(STUDY + FIXED, folder)
    (fixed,) = (one for one in made.trials if one.config.fixed)
    save_file({"w": torch.tensor(0.9)}, folder / "net.safetensors")
    data = testbed.Registry().dataset("mixture", dim=2)()
    with pytest.raises(InputError, match="have changed since"):
        assemble(fixed.config, testbed.Registry(), data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("wrapping", "wraping"), r"fixed\[0\]\.wraping.*Did you mean 'wrapping'\?"),
        (('"edm.EDMPrecond"', '"edm.EDMPrecon"'), r"Did you mean 'edm.EDMPrecond'\?"),
        (("sigma_data = 0.5", ""), "its sigma_data is that of the model: give sigma_data"),
        (('factory = "net.py:build"', ""), "needs path, the folder of a model of diffusers"),
        (('factory = "net.py:build"', 'path = "x"'), "which is that of a factory"),
        (('"net.py:build"', '"net.py:built"'), r"Did you mean 'build'\?"),
        (('name = "theirs"', 'name = "v"'), r"fixed 'v': a variant has this name"),
        (('name = "theirs"\n', ""), r"fixed\[0\]\.name: is required"),
        (('"edm.EDMPrecond"', '"edm.iDDPMPrecond"'), 'for example table = "ddpm"'),
    ],
)
def test_mistakes_are_named(folder: Path, change: tuple[str, str], said: str) -> None:
    assert re.search(said, refusal(STUDY + FIXED.replace(*change), folder))


def test_it_is_no_baseline_and_no_setting(folder: Path) -> None:
    text = STUDY + FIXED + '\n[report]\nbaseline = "theirs"\n'
    assert "report.baseline: Unknown variant 'theirs'" in refusal(text, folder)
    text = STUDY.replace("seeds = 2", 'seeds = 2\nfixed = { name = "x", path = "y" }')
    assert "base.fixed: write [[fixed]]" in refusal(text, folder)


def test_a_study_in_python_has_them_too(folder: Path) -> None:
    study = testbed.Study.from_toml(STUDY + FIXED)
    assert study.fixed[0]["name"] == "theirs"
    assert testbed.Study.from_toml(study.to_toml()).to_toml() == study.to_toml()


# --- folders of diffusers -------------------------------------------------------------------------

DIGITS = """
[study]
name = "images"

[base]
dataset = "digits"
network = { name = "mlp", width = 8, depth = 1 }
training = { steps = 5, batch = 8 }
evaluation = { levels = 3, draws = 8, samples = 8, steps = 2, metrics = [] }
seeds = 1

[grid]
parameterization = ["v"]

[[fixed]]
name = "ddpm"
path = "pipeline"
"""


@needs_diffusers
@pytest.mark.slow
@pytest.mark.usefixtures("trials_only")
def test_a_pipeline_of_diffusers_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that its files say stands in the trial's settings, and it is measured with them."""
    import diffusers

    monkeypatch.chdir(tmp_path)
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", steps_offset=1)
    write(tmp_path / "pipeline", unet(), scheduler)
    made = planned(DIGITS, tmp_path)
    (fixed,) = (one for one in made.trials if one.config.fixed)
    config = fixed.config
    assert (config.parameterization.name, config.output, config.c_in) == ("v", "F", "vp")
    assert config.c_noise == "index"
    assert config.table is not None
    assert config.table.name == "diffusers"
    assert config.trained == pytest.approx((0.01, 157.4), rel=1e-2)
    (tmp_path / "images.toml").write_text(DIGITS)
    done = run_here(tmp_path, "study", "images.toml", "--jobs", 0, "--no-mlflow")
    assert done.code == 0, done.err
    trial = tmp_path / "runs" / "images" / "trials" / fixed.id
    table = pd.read_csv(trial / "levels.csv")
    denoise, data, _, _ = restore(trial)
    theirs = testbed.load_diffusers(tmp_path / "pipeline")
    sigma = torch.tensor(table["sigma"].to_numpy())
    pairs = denoising.held_out_pairs(data, sigma, 8, ())
    for level, loss in zip(sigma, table["loss"], strict=True):
        x = pairs.x0 + level.float() * pairs.eps
        with torch.no_grad():
            D = theirs(x, level.float())
            assert torch.allclose(denoise(x, level.float()), D, atol=1e-6)
        assert float((D - pairs.x0).square().mean()) == pytest.approx(loss, rel=1e-3)


@needs_diffusers
@pytest.mark.slow
def test_one_of_another_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pipeline", unet(sample_size=16), diffusers.DDPMScheduler())
    said = refusal(DIGITS, tmp_path)
    assert "fixed 'ddpm': it takes samples of shape (1, 16, 16), the data have (1, 8, 8)" in said


ONE_TEXT = """
import diffusers
import torch


class OneText(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = diffusers.UNet2DConditionModel.from_pretrained("pipeline/unet")
        self.states = torch.nn.Buffer(torch.linspace(-1, 1, 30).reshape(1, 5, 6))

    def forward(self, x, t):
        states = self.states.expand(len(x), -1, -1)
        return self.unet(x, t, encoder_hidden_states=states).sample
"""
OF_ONE_TEXT = """factory = "net.py:OneText"
wrapping = "k_diffusion.DiscreteEpsDDPMDenoiser"
table = "ddpm"
"""


@needs_diffusers
@pytest.mark.slow
def test_one_of_texts_is_refused_and_measured_for_one_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the refusal says to write is the same denoiser as the folder's with these states."""
    import diffusers

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pipeline", conditional_unet(), diffusers.DDPMScheduler())
    assert "in place of path write a factory" in refusal(DIGITS, tmp_path)
    (tmp_path / "net.py").write_text(ONE_TEXT)
    made = planned(DIGITS.replace('path = "pipeline"\n', OF_ONE_TEXT), tmp_path)
    (fixed,) = (one for one in made.trials if one.config.fixed)
    data = testbed.Registry().dataset("digits")()
    denoise, _ = assemble(fixed.config, testbed.Registry(), data)
    theirs = testbed.load_diffusers(tmp_path / "pipeline").double()
    x, sigma = torch.randn(2, 1, 8, 8).double(), torch.tensor([0.3, 4.0]).double()
    states = torch.linspace(-1, 1, 30).reshape(1, 5, 6).double().expand(2, 5, 6)
    with torch.no_grad():
        found = denoise.double()(x, sigma)
        wanted = theirs(x, sigma, {"encoder_hidden_states": states})
    assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-11)
