"""Study files that several tests are made of, and their plans."""

from pathlib import Path

import pytest

import testbed
from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.study import plan, study_file
from testbed.trial.config import TrialConfig

TINY = """
[study]
name = "tiny"
title = "A tiny study"

[base]
network = { name = "mlp", width = 16, depth = 1 }
training = { steps = 100, batch = 16, points = 2 }
evaluation = { levels = 4, draws = 32, samples = 16, steps = 4, metrics = ["energy"] }

[arms]
published = {}
equal = { weighting = "edm", density = "lognormal", c_in = "shared", c_noise = "shared" }

[grid]
parameterization = ["v", "edm"]

[[cases]]
name = "mixture"
dataset = { name = "mixture", dim = 2 }
seeds = 2

[[cases]]
name = "digits"
dataset = "digits"
seeds = 1

[report]
baseline = "edm"
"""

SMALL = """
[study]
name = "sampled"
[base]
network = { name = "mlp", width = 8, depth = 1 }
training = { steps = 50, batch = 8 }
dataset = { name = "mixture", dim = 2 }
[grid]
parameterization = ["v"]
"""
WITHOUT_NETWORK = SMALL.replace('network = { name = "mlp", width = 8, depth = 1 }\n', "")

CONDITIONAL = """
[study]
name = "c"
[base]
dataset = { name = "mixture", dim = 2, n = 256, test = 64 }
network = { name = "mlp", width = 8, depth = 1 }
density = "lognormal"
weighting = "edm"
loss = "l2"
training = { steps = 20, batch = 8 }
evaluation = { levels = 2, draws = 8, samples = 8, steps = 2, metrics = [] }
seeds = 1
[grid]
parameterization = ["v"]
"""

ONE_TRIAL = """
[study]
name = "learned"
[base]
dataset = { name = "gaussian", dim = 2, n = 256, test = 64 }
weighting = "eps"
loss = "l2"
parameterization = "v"
training = { steps = 50, batch = 16, points = 1 }
"""
LEARNED_VARIANCE = """
table = { name = "ddpm", n = 20, start = 0.01, end = 0.5 }
density = "table"
c_noise = "index"
variance = "learned"
network = { name = "mlp_index", width = 8, depth = 1 }
evaluation = { levels = 2, draws = 8, samples = 8, steps = 4, metrics = [], elbo = "learned", \
sampler = { name = "ddpm", variance = "learned" }, schedule = "table" }
""".replace("\\\n", "")
"""Lines of its [base]."""


def planned(
    text: str,
    folder: Path,
    *sets: str,
    registry: testbed.Registry | None = None,
    seeds: int | None = 1,
) -> plan.Plan:
    """The plan of a study file that says `text`, with these values set, on the CPU."""
    file = folder / "planned.toml"
    file.write_text(text)
    study = study_file.read(file, sets, seeds=seeds)
    return plan.make(study, registry or default_registry(), folder / "out", "cpu")


def config(
    text: str, folder: Path, *sets: str, registry: testbed.Registry | None = None
) -> TrialConfig:
    """The configuration of the only trial of such a study."""
    (one,) = planned(text, folder, *sets, registry=registry).trials
    return one.config


def refusal(text: str, folder: Path, *sets: str, registry: testbed.Registry | None = None) -> str:
    """The message with which the plan of such a study is refused; it names the file."""
    with pytest.raises(InputError) as refused:
        planned(text, folder, *sets, registry=registry)
    assert "planned.toml" in str(refused.value)
    return str(refused.value)
