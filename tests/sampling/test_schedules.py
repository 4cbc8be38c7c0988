"""Laws of the schedules: at which levels a sampler stops, and what a study refuses of them."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import studies
from helpers.bounds import assert_within, exact
from helpers.studies import SMALL
from laws.schedules import (
    HIGH,
    LOW,
    law_ends_are_its_own,
    law_exponential,
    law_offset_is_added,
    law_shift_is_of_time,
    law_spacing_is_table_2,
)
from torch import Tensor

import testbed
from testbed.components.signature import Signature
from testbed.diffusion import noise_levels
from testbed.errors import InputError, UnknownName
from testbed.random import stream
from testbed.registry import default_registry
from testbed.sampling import schedules
from testbed.sampling.schedules import SCHEDULES
from testbed.trial import build, evaluate
from testbed.trial.config import TrialConfig
from testbed.trial.specs import ComponentSpec

# --- the levels ----------------------------------------------------------------------------------


def test_spacing_is_table_2() -> None:
    law_spacing_is_table_2(noise_levels.table_sigmas)


def test_the_offset_is_added_to_every_index() -> None:
    law_offset_is_added(noise_levels.table_sigmas)


@pytest.mark.parametrize("name", ["ddpm", "table"])
def test_a_schedule_of_a_table_has_the_offset(name: str) -> None:
    """Stable Diffusion 1's levels, with the table of the trial and with DDPM's."""
    table = default_registry().table("scaled_linear" if name == "table" else "ddpm")
    one = default_registry().schedule(name, spacing="leading", steps_offset=1)
    wanted = table.sigmas[[901, 801, 701, 601, 501, 401, 301, 201, 101, 1]]
    assert torch.equal(one(10, 1e-3, 1e3, table)[:-1], wanted)


@pytest.mark.parametrize(
    ("n", "spacing", "offset", "said"),
    [
        (50, "latent", 0, "'latent' takes 50 levels from index 50 to 1, and the indices of the"),
        (50, "leading", 1, "'leading' with steps_offset = 1 takes 50 levels from index 50 to 1"),
        (5, "trailing", 1, "'trailing' with steps_offset = 1 takes 5 levels from index 50 to 10"),
        (5, "linspace", -1, "'linspace' with steps_offset = -1 takes 5 levels from index 48 to -1"),
    ],
)
def test_an_index_beyond_the_table_is_refused(n: int, spacing: str, offset: int, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        noise_levels.table_sigmas(torch.arange(1.0, 51.0), n, spacing, offset)


@pytest.mark.parametrize("spacing", noise_levels.SPACINGS)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 49, 50])
def test_every_spacing_descends_strictly(spacing: str, n: int) -> None:
    table = noise_levels.ddpm_sigmas(noise_levels.linear_betas(51))
    found = noise_levels.table_sigmas(table, n, spacing)
    assert len(found) == n + 1
    assert bool((found.diff() < 0).all())
    assert set(found[:-1].tolist()) <= set(table.tolist())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 18, 500])
def test_ends_are_its_own(name: str, steps: int) -> None:
    law_ends_are_its_own(default_registry().schedule(name), steps)


def test_karras_is_equation_5() -> None:
    assert torch.equal(
        default_registry().schedule("karras")(18, LOW, HIGH),
        noise_levels.karras_sigmas(18, LOW, HIGH),
    )
    found = default_registry().schedule("karras", rho=1.0)(3, 0.1, 10.0)
    assert_within(found, np.array([10.0, 5.05, 0.1, 0.0]), np.full(4, 20.0), 4)


def test_exponential_has_equal_ratios() -> None:
    law_exponential(default_registry().schedule("exponential"))
    found = default_registry().schedule("exponential")(18, LOW, HIGH)[:-1]
    ratio = exact(LOW) / exact(HIGH)
    wanted = np.array([exact(HIGH) * ratio ** (exact(i) / 17) for i in range(18)])
    # A power r^e of a rounded ratio and ramp is off by e + e |log r|, and |log r| < 11.
    assert_within(found, wanted, wanted, 16)


def test_the_shift_is_one_of_time() -> None:
    def levels(n: int, low: float, high: float, time: str, shift: float) -> torch.Tensor:
        return default_registry().schedule("uniform", time=time, shift=shift)(n, low, high)

    law_shift_is_of_time(levels)
    for time in ("flow", "vp", "cosine"):  # both ends are kept
        ends = levels(9, LOW, HIGH, time, 3.0)[[0, -2]]
        assert torch.allclose(ends, torch.tensor([HIGH, LOW], dtype=torch.float64), rtol=1e-9)
    # Simple diffusion (Hoogeboom et al. 2023): log SNR moves by -2 log shift at every time.
    found = levels(9, LOW, HIGH, "cosine", 2.0)[:-1] / 2
    assert np.allclose(np.diff(np.arctan(found.numpy()), 2), 0, atol=1e-14)


def linear(first: float, last: float, n: int) -> Any:
    i = np.arange(n)
    return exact(first) + exact(i) / (n - 1) * (exact(last) - exact(first))


@pytest.mark.parametrize("n", [2, 18])
def test_uniform_is_uniform_in_its_time(n: int) -> None:
    """In sigma; in t = sigma/(1 + sigma) for the flow, sigma = t/(1 - t); in VP's time, where
    log(1 + sigma^2) = 19.9 t^2/2 + 0.1 t (Song et al. 2021; EDM's table 1). Two roundings of t, and
    what sigma makes of them: 1/(1 - t) for the flow, and sigma^2 >= e - 1 for VP."""
    found = default_registry().schedule("uniform")(n, LOW, HIGH)[:-1]
    assert_within(found, linear(HIGH, LOW, n), HIGH + found, 3)
    found = default_registry().schedule("uniform", time="flow")(n, LOW, HIGH)[:-1]
    t = linear(HIGH / (1 + HIGH), LOW / (1 + LOW), n)
    # The ends are quotients of float64 themselves: one more rounding, times dsigma/dt/sigma.
    assert_within(found, t / (1 - t), t / (1 - t) ** 2, 8)
    found = default_registry().schedule("uniform", time="vp")(n, LOW, HIGH)[:-1]
    y = np.log1p(found.numpy() ** 2)
    t = (np.sqrt(0.1**2 + 2 * 19.9 * y) - 0.1) / 19.9
    steps = np.diff(t)
    assert np.allclose(steps, steps[0], rtol=1e-9)
    found = default_registry().schedule("uniform", time="cosine")(n, LOW, HIGH)[:-1]
    angles = np.arctan(found.numpy())
    assert np.allclose(np.diff(angles), (math.atan(LOW) - math.atan(HIGH)) / (n - 1), rtol=1e-12)


def test_a_ddpm_schedule_stays_within_what_was_trained() -> None:
    table = noise_levels.ddpm_sigmas(noise_levels.linear_betas())
    whole = default_registry().schedule("ddpm")(1000, 1e-3, 1e3)
    assert torch.equal(whole[:-1], table.flip(0))
    some = default_registry().schedule("ddpm", n=500, spacing="leading")(10, 0.5, 20.0)
    assert float(some[-2]) == float(
        min(s for s in noise_levels.ddpm_sigmas(noise_levels.linear_betas(500)) if s >= 0.5)
    )
    assert bool((some <= 20.0).all())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("karras", {"rho": 0.0}, "schedule 'karras': option rho = 0.0 must be above 0 and finite"),
        ("uniform", {"shift": 2.0}, "'uniform': shift = 2.0 has no effect on equal steps of sigma"),
        ("uniform", {"time": "flow", "shift": 0.0}, "shift = 0.0 must be above 0 and finite"),
        ("uniform", {"time": "flw"}, "Unknown time 'flw'. Did you mean 'flow'?"),
        ("ddpm", {"spacing": "trail"}, "Unknown spacing 'trail'. Did you mean 'trailing'?"),
        (
            "ddpm",
            {"n": 500, "steps_offset": 1},
            "schedule 'ddpm': spacing 'trailing' with",
        ),
        ("ddpm", {"n": 10}, "steps = 18, but its table has 10 levels from 0.002 to 80: take fewer"),
        ("ddpm", {"n": 0}, "schedule 'ddpm': option n = 0 must be at least 1"),
        ("ddpm", {"end": 1.0}, "schedule 'ddpm': option end = 1.0 must be above 0 and below 1"),
    ],
)
def test_what_has_no_levels_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        default_registry().schedule(name, **options)(18, LOW, HIGH)
    assert said in str(refused.value)


def test_names_and_options_have_a_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'karras'"):
        default_registry().schedule("karas")
    with pytest.raises(InputError, match="Did you mean 'rho'"):
        default_registry().schedule("karras", roh=7.0)
    with pytest.raises(InputError, match="must be a number"):
        default_registry().schedule("karras", rho="7")


def test_every_name_of_an_option_is_listed_where_the_checks_look() -> None:
    for function, name, names in (
        (schedules.uniform, "time", schedules.BORDERS),
        (schedules.ddpm, "spacing", noise_levels.SPACINGS),
        (schedules.own, "spacing", noise_levels.SPACINGS),
    ):
        signature = Signature("a schedule", function, ("steps", "sigma_min", "sigma_max", "table"))
        assert signature.choices == {name: tuple(names)}


# --- in a study ----------------------------------------------------------------------------------


planned = partial(studies.config, SMALL)


def test_a_study_names_its_sampler_and_its_schedule(tmp_path: Path) -> None:
    evaluation = planned(tmp_path).evaluation
    assert evaluation.schedule == ComponentSpec(name="karras", options={"rho": 7.0})
    changes = (
        'evaluation.sampler={name="ddpm", variance="large"}',
        'evaluation.schedule={name="ddpm", spacing="leading"}',
        "evaluation.steps=40",
    )
    evaluation = planned(tmp_path, *changes).evaluation
    assert evaluation.sampler == ComponentSpec(name="ddpm", options={"variance": "large"})
    assert evaluation.schedule.options == {
        "n": 1000, "start": 1e-4, "end": 0.02, "spacing": "leading", "steps_offset": 0,
    }  # fmt: skip


@pytest.mark.parametrize("change", ["", 'evaluation.schedule="ddpm"'])
def test_samples_are_drawn_by_the_named_ones(tmp_path: Path, change: str) -> None:
    config = planned(tmp_path, 'evaluation.sampler={name="ddim", eta=1.0}', *filter(None, [change]))
    registry = default_registry()
    data = build.dataset(registry, config.dataset)
    denoiser, _ = build.assemble(config, registry, data)
    seen: list[float] = []
    device = torch.device("cpu")

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0]))
        answer: Tensor = denoiser(x, sigma)
        return answer

    found = evaluate.draw(denoiser, data, config, 4, stream(0, "a"), device, registry, denoise)
    chosen = "ddpm" if change else "karras"
    levels = default_registry().schedule(chosen)(18, LOW, HIGH)
    assert seen == levels[:-1].float().tolist()
    generator = stream(0, "a")
    top = math.sqrt(float(levels[0]) ** 2 + denoiser.sigma_data**2)
    x = top * torch.randn(4, *data.shape, generator=generator)
    sampler = registry.sampler("ddim", eta=1.0)
    with torch.no_grad():
        assert torch.equal(found, testbed.sample(denoiser, x, levels, sampler, generator))


def test_a_trial_of_before_there_were_schedules_is_drawn_as_then(tmp_path: Path) -> None:
    config = planned(tmp_path)
    registry = default_registry()
    data = build.dataset(registry, config.dataset)
    denoiser, _ = build.assemble(config, registry, data)
    common = stream, torch.device("cpu"), registry
    now = evaluate.draw(denoiser, data, config, 4, common[0](0, "a"), *common[1:])
    record = config.record()
    del record["evaluation"]["schedule"]
    earlier = TrialConfig.model_validate(record)
    then = evaluate.draw(denoiser, data, earlier, 4, common[0](0, "a"), *common[1:])
    assert torch.equal(now, then)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ['evaluation.schedule="ddpm"', "evaluation.steps=2000"],
            "mixture: schedule 'ddpm': steps = 2000, but its table has",
        ),
        (['evaluation.sampler={name="ddpm", variance="lage"}'], "Did you mean 'large'"),
        (
            ['evaluation.sampler={name="ddim", eta=2.0}'],
            "eta = 2.0 must be at least 0 and at most",
        ),
        (["evaluation.schedule.rho=-1.0"], "rho = -1.0 must be above 0 and finite"),
        (
            ["evaluation.schedule.rho=1e-300"],
            "evaluation: schedule 'karras': levels raised OverflowError",
        ),
        (['evaluation.schedule="kara"'], "Did you mean 'karras'"),
        (['evaluation.sampler="dpmpp2m"'], "Did you mean 'dpmpp_2m'"),
        (["evaluation.steps=10000000"], "evaluation.steps = 10000000: must be at most 1000000"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_training(
    tmp_path: Path, changes: list[str], said: str
) -> None:
    (line,) = studies.refusal(SMALL, tmp_path, *changes).splitlines()
    assert said.removeprefix("mixture: ") in line
