"""Pictures of denoised images, scores and neighbours in the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.planted_studies import plant
from safetensors.numpy import save_file

from testbed import report
from testbed.report import image_pictures, reading
from testbed.report.drawing import styled
from testbed.report.image_pictures import Levels, levels_of, side_by_side
from testbed.trial.folders import Folder

SIGMAS = [0.1, 1.0, 5.0]
PLANTED = {("c", "", "a"): [0.8, 0.9, 0.85], ("c", "", "b"): [1.0, 1.1, 1.0]}


def keep(at: Path, seed: int = 0, spaces: int = 1) -> None:
    """What a trial keeps of images of 4 x 4."""
    draws = np.random.default_rng(seed)
    at.mkdir(parents=True, exist_ok=True)
    pairs = draws.normal(size=(2, 3, 4, 1, 4, 4)).astype("float32")
    save_file({"denoised": pairs}, at / "denoised.safetensors")
    images = draws.normal(size=(1 + spaces, 8, 1, 4, 4)).astype("float32")
    save_file({"neighbours": images}, at / "neighbours.safetensors")
    facts = [{"space": f"Space {i}.", "distances": [0.5 + i] * 8} for i in range(spaces)]
    (at / "pictures.json").write_text(json.dumps({"sigmas": SIGMAS, "neighbours": facts}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study of images whose trials kept what pictures are made of."""
    study = plant(tmp_path, PLANTED)
    real = np.random.default_rng(1).uniform(-1, 1, size=(16, 1, 4, 4)).astype("float32")
    for file in (study / "data").glob("*.safetensors"):
        save_file({"real": real}, file)
    for number, at in enumerate(sorted((study / "trials").iterdir())):
        save_file({"samples": real}, at / "samples.safetensors")
        keep(at, number, spaces=2)
        result = json.loads((at / "result.json").read_text())
        (at / "result.json").write_text(json.dumps({**result, "steps": 9}))
    return study


def kinds(folder: Path) -> dict[str, str]:
    results = reading.read(folder)
    (case,) = results.cases
    with styled():
        return {one.name: one.svg for one in image_pictures.of_case(results, case)}


def test_a_score_and_a_noisy_image_are_those_of_their_level() -> None:
    x, D = np.full((2, 3, 4, 4), 3.0), np.full((2, 3, 4, 4), 1.0)
    levels = Levels(np.array([0.5, 2.0]), x, D)
    assert levels.score[:, 0, 0, 0].tolist() == [-8.0, -0.5]
    # 3 / sqrt(1 + (sigma / 0.5)^2)
    assert levels.noisy(0.5)[:, 0, 0, 0] == pytest.approx([3 / 2**0.5, 3 / 17**0.5])


def test_images_stand_side_by_side_as_in_the_gallery() -> None:
    grey = np.array([-1.0, 0.0, 1.0, np.nan, 9.0])[:, None, None] * np.ones((5, 2, 3))
    sheet = side_by_side(grey, -1.0, 1.0)
    assert sheet.shape == (2, 5 * 4 - 1, 3)
    # Of one channel dark on light.
    assert sheet[0, ::4, 0].tolist() == [1.0, 0.5, 0.0, 1.0, 0.0]
    assert (sheet[:, 3::4] == 1).all()
    colour = np.zeros((1, 3, 2, 2))
    colour[:, 0] = 1
    assert side_by_side(colour, 0.0, 1.0)[0, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.slow
def test_the_report_shows_denoised_images_scores_and_neighbours(folder: Path) -> None:
    page = report.write(folder).read_text()
    for kind in ("denoised", "scores", "neighbours"):
        assert f'<figure id="{kind}_c">' in page
        assert (folder / "figures" / f"{kind}_c.svg").is_file()
    assert 'id="denoised_training' not in page
    assert "Space 0. Space 1." in page
    assert "3/σ" in page
    found = kinds(folder)
    for sigma in ("0.1", "1", "5"):
        assert f">σ = {sigma}<" in found["denoised_c"]
    assert found["neighbours_c"].count(">0.500<") == found["neighbours_c"].count(">1.50<") > 0
    assert kinds(folder) == found


@pytest.mark.slow
def test_points_of_training_are_rows_of_their_own(folder: Path) -> None:
    for at in (folder / "trials").iterdir():
        for step in (1, 2, 3, 4, 5, 6):
            keep(at / "points" / str(step), seed=step)
            record = {"step": step, "width": None, "metrics": {}, "errors": {}}
            (at / "points" / str(step) / "result.json").write_text(json.dumps(record))
    found = kinds(folder)["denoised_training_c"]
    results = reading.read(folder)
    first = results.variants("c")[0]
    shown = [step for step in range(10) if f"{first}, {step}<" in found]
    assert len(shown) == image_pictures.MOST_STEPS
    assert (shown[0], shown[-1]) == (1, 9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoised.safetensors", "pictures.json"])
@pytest.mark.parametrize("content", [b"", b"xx", None])
def test_damaged_and_missing_files_leave_pictures_out(
    name: str, content: bytes | None, folder: Path
) -> None:
    for at in (folder / "trials").iterdir():
        if content is None:
            (at / name).unlink()
        else:
            (at / name).write_bytes(content)
        assert levels_of(Folder.at(at)) is None
    assert "denoised_c" not in kinds(folder)


def test_vectors_have_no_such_pictures(tmp_path: Path) -> None:
    assert kinds(plant(tmp_path, PLANTED)) == {}
