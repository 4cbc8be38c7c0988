"""The page on samplers runs as written, and names all there is."""

import re
import tomllib
from pathlib import Path
from typing import Any

import torch
from helpers.paths import DOCS
from helpers.studies import SMALL

import testbed
from testbed.components.base import Component
from testbed.diffusion.noise_levels import SPACINGS
from testbed.registry import default_registry
from testbed.sampling.schedules import BORDERS, SCHEDULES
from testbed.study import plan, study_file

GUIDE = (DOCS / "reference" / "samplers.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE))
ROWS = {row[1]: row[2] for row in re.finditer(r"^\| `(\w+)` \| (.*?) \|", GUIDE, re.MULTILINE)}


def built_in() -> dict[str, Component]:
    registry = default_registry()
    found = {name: registry.sampler(name) for name in registry.names("sampler")}
    return {name: s for name, s in found.items() if registry.source(s).kind == "built in"}


def test_the_python_block_runs() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS["python"], names)
    assert bool(torch.isfinite(names["x"]).all())


def test_the_tables_have_every_sampler_schedule_and_option() -> None:
    known: dict[str, Component] = {**built_in(), **SCHEDULES}
    assert set(ROWS) == set(known)
    for name, component in known.items():
        if name in ("heun", "ddpm"):  # the same as euler's; a sampler and a schedule
            continue
        assert set(re.findall(r"`(\w+)`", ROWS[name])) == set(component.defaults), name
    for word in (*SPACINGS, *BORDERS):
        assert f'"{word}"' in GUIDE


def test_the_study_shown_is_one(tmp_path: Path) -> None:
    own = tomllib.loads(BLOCKS["toml"])["base"]["evaluation"]
    file = tmp_path / "sampled.toml"
    file.write_text(SMALL.replace("[base]\n", BLOCKS["toml"]))
    made = plan.make(study_file.read(file), testbed.Registry(), tmp_path / "out", "cpu")
    evaluation = made.trials[0].config.evaluation
    assert evaluation.steps == own["steps"]
    assert evaluation.sampler.options["variance"] == own["sampler"]["variance"]
    assert evaluation.schedule.options["spacing"] == own["schedule"]["spacing"]
