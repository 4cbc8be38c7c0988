"""The page on guidance: its studies can be planned, its code runs, and it names all there is."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import DOCS
from helpers.studies import CONDITIONAL

import testbed
from testbed.diffusion.predictions import PREDICTION_TYPES
from testbed.sampling.guidance_methods import GUIDANCES
from testbed.study import plan, study_file

GUIDE = (DOCS / "explanation" / "guidance.md").read_text()
BLOCKS = re.findall(r"^```toml\n\[base\]\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
ROWS = {row[1]: row[2] for row in re.finditer(r"^\| `(\w+)` \| (.*?) \|", GUIDE, re.MULTILINE)}


@pytest.mark.parametrize("block", BLOCKS)
def test_the_studies_shown_are_ones(tmp_path: Path, block: str) -> None:
    text = CONDITIONAL
    if "evaluation" in block:
        text = re.sub(r"evaluation = .*\n", "", CONDITIONAL)
    (tmp_path / "c.toml").write_text(text.replace("[base]\n", f"[base]\n{block}"))
    study = study_file.read(tmp_path / "c.toml", seeds=1)
    (one,) = plan.make(study, testbed.Registry(), tmp_path / "out", "cpu").trials
    assert one.config.conditions["label"] == 0.1
    guided = one.config.evaluation.guidance.name
    assert (guided == "classifier_free") == ("classifier_free" in block)


def test_the_python_block_runs() -> None:
    names: dict[str, Any] = {}
    (code,) = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    exec(code, names)
    assert bool(torch.isfinite(names["x"]).all())
    # Guided twice as far, more samples are of the class than not.
    sure = names["exact"].log_classes("label", names["x"].double(), 0.05)[:, 3]
    assert float((sure > -0.1).double().mean()) > 0.5


def test_the_tables_have_every_guidance_option_form_and_metric() -> None:
    assert set(GUIDANCES) <= set(ROWS)
    for name, guidance in GUIDANCES.items():
        assert set(re.findall(r"`(\w+)`", ROWS[name])) == set(guidance.defaults)
    for form in (*PREDICTION_TYPES, "F"):
        assert re.search(rf"^\| {form} \| {'D' if form == 'x0' else form} [+-] l ", GUIDE, re.M)
    assert {"excess_guided_nats", "guided_error", "classifier_nats"} <= set(ROWS)
