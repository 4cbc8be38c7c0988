"""The shipped studies: each can be planned, and has its finding in the guides.

Those of Fashion-MNIST are planned with a few of its images, and an encoder that is not trained.
"""

from pathlib import Path

import pytest
from helpers.paths import ROOT

from testbed.data.image_sets import FASHION
from testbed.metrics import linear_baseline
from testbed.registry import default_registry
from testbed.study import engines, plan, study_file
from testbed.training import autoencoder
from testbed.trial import build

REGISTRY = default_registry()
FEW = 'dataset={name="fashion_mnist", n=64, test=32}'
STUDIES = sorted(path.stem for path in (ROOT / "studies").glob("*.toml"))
OF_BENCHMARKS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.toml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_can_be_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_file.read(ROOT / "studies" / f"{name}.toml")
    assert study.header.name == name
    assert study.header.title
    stated = [template.settings for template in study.templates]
    if any(one.dataset.name == "fashion_mnist" for one in stated):
        if not FASHION.is_dir():
            pytest.skip(f"{FASHION} is not there: apt install dataset-fashion-mnist")
        study = study_file.read(ROOT / "studies" / f"{name}.toml", [FEW])
    if any(one.encoder is not None for one in stated):
        pytest.importorskip("diffusers", reason="diffusers is not installed")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(autoencoder, "train", lambda *rest, **settings: None)
    made = plan.make(study, REGISTRY, tmp_path / name, "cpu")
    assert made.trials
    # No note but on how files were read: nothing that one asks for is replaced, and the baseline is
    # there.
    data = [build.data_of(one.config, REGISTRY) for one in made.trials]
    read = {note for one in data for note in (*one.notes, linear_baseline.note(one))}
    assert {note for notes in made.data_notes.values() for note in notes} <= read
    made.data_notes.clear()
    assert not plan.notes(made), plan.notes(made)


@pytest.mark.parametrize("name", OF_BENCHMARKS)
def test_a_study_of_the_benchmarks_can_be_planned(name: str, tmp_path: Path) -> None:
    study = study_file.read(ROOT / "benchmarks" / name, seeds=1)
    assert plan.make(study, REGISTRY, tmp_path / name, "cpu").trials


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_its_finding_in_the_guides(name: str) -> None:
    texts = {path.stem: path.read_text() for path in (ROOT / "docs").rglob("*.md")}
    titles = [line for line in texts["studies"].splitlines() if line.startswith("## ")]
    told = any(title.startswith(f"## {name}:") for title in titles)
    assert told or f"testbed study {name}" in texts.get(name, (ROOT / "README.md").read_text())


@pytest.mark.slow
def test_the_sampling_study_trains_once_for_all_samplers(
    tmp_path: Path,
) -> None:
    study = study_file.read(ROOT / "studies" / "sampling.toml", seeds=1)
    made = plan.make(study, REGISTRY, tmp_path / "sampling", "cpu")
    groups = engines.choose(made, REGISTRY, "sequential").groups
    assert (len(made.trials), len(groups)) == (5 * 3 * 6, 5)
