"""Pixels and latents in the report: decoded samples and seconds side by side, and no losses."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.planted_studies import plant
from safetensors.numpy import save_file
from scipy import stats

from testbed import report
from testbed.report import reading, spaces
from testbed.report.drawing import styled

ENERGY = {"pixels": [0.2, 0.3, 0.25], "latents": [0.1, 0.4, 0.2]}
PLANTED = {(case, "", "v"): [0.8, 0.9, 0.85] for case in ENERGY}
SECONDS = {"pixels": (60.0, 9.0), "latents": (20.0, 3.0)}


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def images(seed: int) -> np.ndarray:
    draws = np.random.default_rng(seed).uniform(-1, 1, size=(16, 1, 4, 4))
    return draws.astype("float32")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of two cases, the second one of latents of the images of the first."""
    study = plant(tmp_path, PLANTED, baseline="v")
    for case in ENERGY:
        floor = {"mean": 0.01, "sd": 0.02} | ({"decoded": 0.05} if case == "latents" else {})
        shape = [1, 4, 4] if case == "pixels" else [4, 2, 2]
        changed(study / "data" / f"{case}.json", shape=shape, floors={"energy": floor})
        save_file({"real": images(0)}, study / "data" / f"{case}.safetensors")
    for number, at in enumerate(sorted((study / "trials").iterdir())):
        trial = json.loads((at / "trial.json").read_text())
        case = trial["labels"][0]["case"]
        encoder = {"channels": [8, 16]} if case == "latents" else None
        changed(at / "trial.json", config={**trial["config"], "encoder": encoder})
        training, sampling = SECONDS[case]
        metrics = json.loads((at / "result.json").read_text())["metrics"]
        values = {**metrics, "energy": ENERGY[case][trial["config"]["seed"]]}
        times = {"training_seconds": training, "sampling_seconds": sampling}
        changed(at / "result.json", metrics=values, **times)
        save_file({"samples": images(number)}, at / "samples.safetensors")
    return study


def section(folder: Path) -> str:
    page = report.write(folder).read_text()
    found = re.search(r'<h2 id="pixels-and-latents">.*?(?=<h2)', page, re.DOTALL)
    return found[0] if found else ""


def test_samples_and_seconds_have_their_intervals_over_seeds(folder: Path) -> None:
    found = spaces.table(reading.read(folder))
    assert set(found["metric"]) == {"energy", "training_seconds", "sampling_seconds"}
    assert set(found["images"]) == {"moons"}
    for case, values in ENERGY.items():
        (row,) = found[(found["case"] == case) & (found["metric"] == "energy")].to_dict("records")
        logs = np.log(values)
        half = stats.t.ppf(0.975, 2) * logs.std(ddof=1) / np.sqrt(3)
        expected = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
        assert [row["value"], row["low"], row["high"]] == pytest.approx(expected, rel=1e-9)
        for name, seconds in zip(spaces.SECONDS, SECONDS[case], strict=True):
            (row,) = found[(found["case"] == case) & (found["metric"] == name)].to_dict("records")
            assert (row["n"], row["value"]) == (3, pytest.approx(seconds, rel=1e-12))


@pytest.mark.slow
def test_the_section_has_both_spaces_their_floors_and_no_loss(folder: Path) -> None:
    text = section(folder)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    cells = {(row[1], row[2]): row for row in rows if len(row) == 6}
    assert cells["pixels", "pixels 1 × 4 × 4"][4:] == ["60.0 [60.0, 60.0]", "9.00 [9.00, 9.00]"]
    assert cells["latents", "latents 4 × 2 × 2"][4:] == ["20.0 [20.0, 20.0]", "3.00 [3.00, 3.00]"]
    assert [row[3] for row in rows if row[:1] == ["images decoded again"]] == ["0.0500"]
    assert [row[3] for row in rows if row[:1] == ["real images"]] == ["0.0100 ± 0.0200"]
    assert "loss / Wiener" not in text
    assert '<figure id="spaces_moons">' in text
    assert (folder / "tables" / "spaces.csv").is_file()
    assert (folder / "figures" / "spaces_moons.svg").is_file()


@pytest.mark.slow
def test_cases_of_one_space_or_of_other_images_have_no_section(folder: Path) -> None:
    for at in sorted((folder / "trials").iterdir()):
        trial = json.loads((at / "trial.json").read_text())
        if trial["config"]["encoder"] is not None:
            changed(at / "trial.json", config={**trial["config"], "dataset": "digits"})
    assert spaces.parts(reading.read(folder)) == []
    for at in sorted((folder / "trials").iterdir()):
        trial = json.loads((at / "trial.json").read_text())
        config = {**trial["config"], "dataset": "moons", "encoder": None}
        changed(at / "trial.json", config=config)
    assert spaces.groups(reading.read(folder)) == {}


def part(folder: Path) -> spaces.SpacesPart:
    with styled():
        (found,) = spaces.parts(reading.read(folder))
    return found


@pytest.mark.slow
def test_what_is_not_alike_in_the_cases_is_said(folder: Path) -> None:
    for at in sorted((folder / "trials").iterdir()):
        trial = json.loads((at / "trial.json").read_text())
        config = trial["config"]
        if config["encoder"] is not None:
            changed(at / "trial.json", config={**config, "evaluation": {"samples": 64}})
    assert part(folder).sentences == [
        "The numbers of samples differ (512 of pixels and 64 of latents), on which biased "
        "distances depend."
    ]


def test_a_study_that_has_not_made_its_floors_has_its_seconds(folder: Path) -> None:
    for file in (folder / "data").iterdir():
        file.unlink()
    found = part(folder)
    assert found.table.head[3:] == ["training, s", "sampling, s"]
    assert found.picture is None


@pytest.mark.slow
def test_a_trial_without_seconds_or_samples_leaves_them_out(folder: Path) -> None:
    for at in sorted((folder / "trials").iterdir()):
        result = json.loads((at / "result.json").read_text())
        del result["sampling_seconds"]
        (at / "result.json").write_text(json.dumps(result))
        (at / "samples.safetensors").unlink()
    picture = part(folder).picture
    assert picture is not None
    assert picture.svg.count("no samples") == 2
    found = spaces.table(reading.read(folder))
    assert (found.loc[found["metric"] == "sampling_seconds", "n"] == 0).all()
