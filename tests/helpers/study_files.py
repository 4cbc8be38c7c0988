"""Small study files, and what is read of them."""

from pathlib import Path
from typing import Any

import pytest

from testbed.errors import InputError
from testbed.study import study_file
from testbed.study.study_file import StudyFile
from testbed.trial.config import TrialSettings

SMALL = """
[study]
name = "small"
[base]
dataset = "moons"
[grid]
parameterization = ["v"]
"""

FULL = """
[study]
name = "full"
[base]
network = "mlp"
weighting = "edm"
training = { steps = 50 }
[arms]
published = {}
equal = { weighting = "v" }
[grid]
parameterization = ["eps", "v", "edm"]
[[cases]]
name = "flat"
dataset = "moons"
seeds = 2
[[cases]]
name = "images"
dataset = "digits"
network = { name = "mlp", width = 32 }
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text)
    return file


def read(folder: Path, text: str, *sets: str, **options: Any) -> StudyFile:
    return study_file.read(write(folder, text), sets, **options)


def one(folder: Path, text: str, *sets: str) -> TrialSettings:
    """The settings of a study with one trial."""
    (found,) = read(folder, text, *sets).templates
    return found.settings


def problems(folder: Path, text: str, *sets: str, **options: Any) -> list[str]:
    """The lines of what is wrong with a study file."""
    with pytest.raises(InputError) as found:
        read(folder, text, *sets, **options)
    return str(found.value).splitlines()


def names(study: StudyFile) -> list[tuple[str, str, str]]:
    """case, arm and parameterization of every template, in order."""
    return [(a.case, a.arm, a.settings.parameterization.name) for a in study.templates]


def in_base(line: str) -> str:
    """SMALL with a line more in [base]."""
    return SMALL.replace('dataset = "moons"', f'dataset = "moons"\n{line}')
