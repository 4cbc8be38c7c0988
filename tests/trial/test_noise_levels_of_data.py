"""Noise levels and densities that ask for sigma_data, and what a plan says of the data."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import run_here
from helpers.studies import planned

import testbed
from testbed.components.density import Density
from testbed.errors import InputError
from testbed.study import plan, study_file
from testbed.testing import Context, iter_checks
from testbed.testing.running import run

STUDY = """
[study]
name = "scaled"
[base]
dataset = { name = "moons", n = 200, test = 100, scale = 3.0 }
network = { name = "mlp", width = 8, depth = 1 }
weighting = "edm"
density = "lognormal"
loss = "l2"
c_in = "shared"
c_noise = "shared"
training = { steps = 50, batch = 8 }
evaluation = { levels = 3, draws = 8, samples = 8, steps = 3, metrics = ["energy"] }
[grid]
parameterization = ["v"]
"""
RELATIVE = '''
"""relative: log sigma is normal about log sigma_data."""
import math
import torch
import testbed

def icdf(u, sigma_data, std=1.2):
    return sigma_data * torch.exp(std * torch.special.ndtri(u))

def pdf(sigma, sigma_data, std=1.2):
    z = torch.log(sigma / sigma_data) / std
    return torch.exp(-(z**2) / 2) / (std * math.sqrt(2 * math.pi))

@testbed.hookimpl
def testbed_densities():
    yield testbed.Density("relative", icdf, pdf)
'''


def relative(u: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """sigma_data times the standard log-normal."""
    return sigma_data * torch.exp(torch.special.ndtri(u))


def relative_pdf(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    z = torch.log(sigma / sigma_data)
    return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


# --- sigma_min and sigma_max --------------------------------------------------------------------


def test_a_level_may_be_a_multiple_of_sigma_data(tmp_path: Path) -> None:
    levels = "sigma_min=0.004 * sigma_data", "sigma_max=160 * sigma_data"
    (one,) = planned(STUDY, tmp_path, *levels).trials
    sigma_data = one.config.sigma_data_measured
    assert sigma_data > 1.5
    assert one.config.sigma_min == 0.004 * sigma_data
    assert one.config.sigma_max == 160 * sigma_data
    assert one.config.density.options["sigma_max"] == 160 * sigma_data


def test_a_multiple_is_the_trial_of_its_number(tmp_path: Path) -> None:
    (one,) = planned(STUDY, tmp_path, "sigma_max=100 * sigma_data").trials
    (same,) = planned(STUDY, tmp_path, f"sigma_max={one.config.sigma_max!r}").trials
    assert same.id == one.id
    (assumed,) = planned(
        STUDY, tmp_path, "sigma_max=100 * sigma_data", "sigma_data={ assumed = 0.5 }"
    ).trials
    assert assumed.config.sigma_max == 50.0


@pytest.mark.parametrize(
    ("level", "says"),
    [
        ("0 * sigma_data", "must be above 0"),
        ("1e999 * sigma_data", "must be a finite number"),
        ("a * sigma_data", "must be a number, or a multiple of the data's sigma_data"),
        ("-1 * sigma_data", "must be a number, or a multiple of the data's sigma_data"),
        ("sigma_data", "must be a number, or a multiple of the data's sigma_data"),
        ("4 * sigma_dat", "must be a number, or a multiple of the data's sigma_data"),
        ("{ sigma_data = 3 }", "must be a number, or a multiple of the data's sigma_data"),
        ("true", "must be a number, or a multiple of the data's sigma_data"),
        ("-1", "must be above 0"),
        ("nan", "must be a finite number"),
    ],
)
def test_levels_that_are_none_are_refused_in_one_line(
    tmp_path: Path, level: str, says: str
) -> None:
    with pytest.raises(InputError) as problem:
        planned(STUDY, tmp_path, f"sigma_max={level}")
    assert len(str(problem.value).splitlines()) == 1
    assert "--set sigma_max = " in str(problem.value)
    assert says in str(problem.value)


def test_the_order_of_two_multiples_is_checked_in_the_file_and_of_others_with_the_data(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="must be above sigma_min, which is 2"):
        planned(STUDY, tmp_path, "sigma_min=2 * sigma_data", "sigma_max=1 * sigma_data")
    with pytest.raises(InputError, match=r"expected 0 < sigma_min < sigma_max\."):
        planned(STUDY, tmp_path, "sigma_min=100", "sigma_max=1 * sigma_data")


def test_without_its_data_a_trial_is_refused_for_that_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Unknown dataset 'moon'") as problem:
        planned(STUDY, tmp_path, "sigma_max=160 * sigma_data", "dataset=moon")
    assert len(str(problem.value).splitlines()) == 1


# --- densities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_data", [0.1, 1.0, 30.0])
def test_a_density_may_ask_for_sigma_data(sigma_data: float) -> None:
    """The median of what is drawn is sigma_data, to 12 digits: the cut is found by bisection."""
    cut = {"sigma_min": 1e-6, "sigma_max": 1e6}
    density = Density("relative", relative, relative_pdf).bound(cut).with_sigma_data(sigma_data)
    u = torch.tensor([0.5], dtype=torch.float64)
    assert float(density.sigma(u)) == pytest.approx(sigma_data, rel=1e-12)
    p = density.pdf_over_log_sigma(torch.tensor([sigma_data], dtype=torch.float64))
    assert float(p) == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-12)


def test_a_density_without_its_sigma_data_says_what_it_needs() -> None:
    density = Density("relative", relative, relative_pdf).bound({})
    with pytest.raises(InputError, match="asks for sigma_data: take"):
        density.sigma(torch.tensor([0.5]))
    with pytest.raises(InputError, match="has no mass between"):
        density.with_sigma_data(1e30)


def test_a_density_that_does_not_ask_stays_as_it_is() -> None:
    density = testbed.Registry().density("lognormal")
    assert density.with_sigma_data(3.0) is density


def test_a_study_s_density_gets_the_sigma_data_of_its_data(tmp_path: Path) -> None:
    (tmp_path / "relative.py").write_text(RELATIVE)
    registry = testbed.Registry([str(tmp_path / "relative.py")])
    (one,) = planned(STUDY, tmp_path, "density=relative", registry=registry).trials
    from testbed.trial.build import objective

    found = objective(one.config, registry)
    # The cut, [0.002, 80], is not symmetric about sigma_data = 1.9 to a part in a thousand.
    median = float(found.sigma(torch.tensor([0.5], dtype=torch.float64)))
    assert median == pytest.approx(one.config.sigma_data, rel=1e-2)
    (other,) = planned(
        STUDY, tmp_path, "density=relative", "sigma_data={ assumed = 0.5 }", registry=registry
    ).trials
    assert float(objective(other.config, registry).density.sigma_data or 0) == 0.5


@pytest.mark.slow
def test_the_kit_tries_a_density_at_several_sigma_data(tmp_path: Path) -> None:
    (tmp_path / "relative.py").write_text(RELATIVE)
    (tmp_path / "absolute.py").write_text(
        RELATIVE.replace("log(sigma / sigma_data)", "log(sigma / 0.5)").replace("relative", "wrong")
    )
    wrong = {"density.draws", "density.normalised"}
    for name, broken in (("relative", set()), ("absolute", wrong)):
        registry = testbed.Registry([str(tmp_path / f"{name}.py")])
        density = registry.density("relative" if name == "relative" else "wrong")
        checks = [c for c in iter_checks(density) if not c.id.endswith(".spawned")]
        found = run(density, checks, Context.of([density], registry), {})
        assert {one.check.id for one in found if not one.ok} == broken


# --- what a plan says ---------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    np.savez(tmp_path / "photos.npz", x=PIXELS, y=np.arange(60) % 3)
    text = re.sub("dataset = .*", 'dataset = { name = "array", path = "photos.npz" }', STUDY)
    (tmp_path / "a.toml").write_text(text)
    return tmp_path


def test_a_plan_says_what_was_recognised(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    study = study_file.read(Path("a.toml"), (), seeds=1)
    made = plan.make(study, testbed.Registry(), photos / "out", "cpu")
    text = "\n".join(plan.notes(made))
    assert "taken from [0, 255] to [-1, 1]" in text
    assert "are channels last" in text
    assert "48 training samples in 192 dimensions" in text
    assert "sigma_max" not in text


@pytest.mark.slow
def test_levels_that_do_not_fit_the_data_are_said(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)

    def text(*sets: str) -> str:
        study = study_file.read(Path("a.toml"), sets, seeds=1)
        made = plan.make(study, testbed.Registry(), photos / "out", "cpu")
        return "\n".join(plan.notes(made))

    wide = text("dataset.range=as_stored")
    assert re.search(r"sigma_max = 80 is below the data's sigma_data = 14\d", wide)
    small = text("dataset.scale=1e-6")
    assert "sigma_min = 0.002 is above the data's sigma_data = " in small


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.slow
def test_a_study_of_photos_says_so_in_plan_and_report(photos: Path) -> None:
    words = ["a.toml", "--set", "seeds=1", "--no-mlflow", "--jobs", "0", "--engine", "sequential"]
    done = run_here(photos, "study", *words)
    assert done.code == 0, done.err
    assert "taken from [0, 255] to [-1, 1]" in done.out
    page = (photos / "runs/scaled/report.html").read_text()
    for words_of_report in (
        "are channels last, and are stored as (3, 8, 8)",
        "covariance shrunk by",
        "nothing follows from a value below 1",
    ):
        assert words_of_report in page
    assert "beats the linear denoiser that was fitted" not in page
    facts = json.loads((photos / "runs/scaled/data/data.json").read_text())
    assert facts["linear_baseline"]["sound"] is False


def test_a_file_that_is_refused_ends_with_2_and_one_line(photos: Path) -> None:
    bad = np.ones((50, 4))
    bad[7, 3] = np.nan
    np.save(photos / "bad.npy", bad)
    done = run_here(photos, "plan", "a.toml", "--set", "dataset.path=bad.npy")
    assert (done.code, done.err.count("Traceback")) == (2, 0)
    assert "bad.npy[7, 3] is nan" in done.err
