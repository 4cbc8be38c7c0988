"""docs/likelihood.md runs as written, its study can be planned, and it names all there is."""

import re
from pathlib import Path
from typing import Any

import torch
from helpers.paths import DOCS
from helpers.studies import SMALL
from mutants.likelihood_laws import ROWS

import testbed
from testbed.metrics import information
from testbed.report.words import METRICS
from testbed.study import plan, study_file
from testbed.trial.specs import Likelihood
from testbed.trial.validity import MOST_EXACT

GUIDE = (DOCS / "likelihood.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE))
WITHOUT = re.sub(r"^dataset = .*\n", "", SMALL, flags=re.MULTILINE)


def test_the_python_block_runs() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS["python"], names)
    assert bool(torch.isfinite(names["bits"]).all())
    assert bool((names["some"].error > 0).all())


def test_the_study_shown_is_one(tmp_path: Path) -> None:
    file = tmp_path / "measured.toml"
    file.write_text(WITHOUT.replace("[base]\n", BLOCKS["toml"]))
    (one,) = plan.make(
        study_file.read(file, seeds=1), testbed.Registry(), tmp_path / "out", "cpu"
    ).trials
    assert isinstance(one.config.evaluation.likelihood, Likelihood)
    assert one.config.dataset.options["dequantised"] is True


def test_the_guide_names_settings_metrics_and_integrals() -> None:
    for name in Likelihood.model_fields:
        assert re.search(rf"\b{name}\b", GUIDE), name
    for name in ("nll", "bits_per_dim", "nll_gap"):
        assert f"| `{name}` |" in GUIDE
        assert name in METRICS
    for name in ("kl_bound", "entropy", "mutual_information"):
        assert f"`{name}(" in GUIDE
        assert hasattr(information, name)
    assert re.search(rf"more\s+than\s+{MOST_EXACT}\s", GUIDE)
    assert f"has {len(ROWS)} mistakes" in GUIDE
