"""sigma_data of each channel: measured, handed to a parameterization that asks, and recorded."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import FIXTURES
from torch import Tensor

import testbed
from testbed.components.dataset import Data
from testbed.errors import InputError
from testbed.random import stream
from testbed.study import plan, study_file
from testbed.testing import CheckFailed, Skipped, iter_checks
from testbed.trial import build

Change = Callable[[Tensor], Tensor]

PLUGIN = FIXTURES / "edm_by_channel.py"
REGISTRY = testbed.Registry([str(PLUGIN)])
SCALES = (0.1, 1.0, 4.0)


def test_they_are_the_root_mean_squares_about_zero() -> None:
    x = torch.randn(50, 3, 4, 2, generator=stream(0, "x")) * torch.tensor(SCALES)[:, None, None] + 1
    found = torch.tensor(Data(x, x).sigma_data_channels, dtype=torch.float64)
    exact = x.double().square().mean((0, 2, 3)).sqrt()
    assert torch.allclose(found, exact, rtol=1e-14, atol=0)
    # Together they are sigma_data: the mean of the squares over channels of one size.
    assert abs(float(found.square().mean().sqrt()) / Data(x, x).sigma_data - 1) < 1e-14
    rows = x[:, :, 0, 0].contiguous()
    assert Data(rows, rows).sigma_data_channels == pytest.approx(
        rows.double().square().mean(0).sqrt().tolist(), rel=1e-14
    )


def test_the_target_of_a_gaussian_has_unit_variance_in_each_channel() -> None:
    """x0_c ~ N(0, s_c^2): E F*^2 = (sigma^2 s^2 + s^4)/(s^2 (sigma^2 + s^2)) = 1, and with one
    number for all channels it is not.
    """
    p = REGISTRY.parameterization("edm_by_channel")
    s = torch.tensor(SCALES, dtype=torch.float64)[:, None]
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    one = torch.ones(9, 3, 1, dtype=torch.float64)

    def variance(p: testbed.Parameterization) -> torch.Tensor:
        a = p.target(one, 0 * one, sigma, sigma_data=1.0)
        b = p.target(0 * one, one, sigma, sigma_data=1.0)
        return a**2 * s**2 + b**2

    of_each = p.with_channels(SCALES)
    assert float((variance(of_each) - 1).abs().max()) < 16 * 2.0**-53
    assert float((variance(p) - 1).abs().max()) > 0.5
    x = torch.randn(9, 3, 5, dtype=torch.float64, generator=stream(0, "x"))
    wiener = s**2 / (s**2 + sigma[:, None, None] ** 2) * x
    D = of_each.denoise(torch.zeros_like(x), x, sigma, sigma_data=1.0)
    assert torch.allclose(D, wiener, rtol=1e-14, atol=0)
    F = torch.randn(9, 3, 5, dtype=torch.float64, generator=stream(0, "F"))
    back = of_each.output(of_each.denoise(F, x, sigma, sigma_data=1.0), x, sigma, sigma_data=1.0)
    assert torch.allclose(back, F, rtol=1e-9, atol=1e-9)


def test_channels_of_equal_scale_are_edm() -> None:
    p, edm = REGISTRY.parameterization("edm_by_channel"), REGISTRY.parameterization("edm")
    x0, eps = torch.randn(2, 9, 3, 5, dtype=torch.float64, generator=stream(0, "pair"))
    sigma = torch.logspace(-2, 2, 9, dtype=torch.float64)
    found = p.target(x0, eps, sigma, sigma_data=0.5)
    assert torch.allclose(found, edm.target(x0, eps, sigma, sigma_data=0.5), rtol=1e-12, atol=1e-12)
    equal = p.with_channels((0.5,) * 3).target(x0, eps, sigma, sigma_data=9.0)
    assert torch.equal(found, equal)


def edm_with(of_target: Change, of_denoise: Change) -> testbed.Parameterization:
    """EDM by channel, where target and denoise take other numbers than those of the channels."""

    def target(x0: Tensor, eps: Tensor, sigma: Tensor, sigma_data_channels: Tensor) -> Tensor:
        s = of_target(sigma_data_channels)
        return (sigma * x0 - s**2 * eps) / (s * torch.sqrt(sigma**2 + s**2))

    def denoise(F: Tensor, x: Tensor, sigma: Tensor, sigma_data_channels: Tensor) -> Tensor:
        s = of_denoise(sigma_data_channels)
        return s**2 / (sigma**2 + s**2) * x + sigma * s / torch.sqrt(sigma**2 + s**2) * F

    return testbed.Parameterization(
        name="by_channel", target=target, denoise=denoise, noise_kind="log_sigma"
    )


def failed(p: testbed.Parameterization, *only: str) -> set[str]:
    """The checks that fail, of those that need no other process and no compiler."""
    found = set()
    for check in iter_checks(p):
        if check.id.endswith(only or "") and not check.id.endswith((".spawned", ".compile")):
            try:
                check(p)
            except CheckFailed:
                found.add(check.id)
            except Skipped:
                continue
    return found


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("change", [lambda s: s.flip(0), lambda s: s.mean(0, keepdim=True)])
def test_the_kit_rejects_other_channels(change: Change, both: bool) -> None:
    wrong = edm_with(change, change if both else lambda s: s)
    assert failed(wrong, ".optimal_denoiser")


@pytest.mark.slow
def test_the_kit_accepts_the_right_ones() -> None:
    assert failed(REGISTRY.parameterization("edm_by_channel")) == set()


STUDY = f"""
plugins = ["{PLUGIN}"]
[study]
name = "channels"
[base]
training = {{ steps = 20, batch = 16 }}
evaluation = {{ levels = 3, draws = 16, samples = 8, steps = 3 }}
weighting = "edm"
density = "lognormal"
loss = "l2"
c_in = "shared"
c_noise = "shared"
seeds = 1
[grid]
parameterization = ["edm_by_channel", "edm"]
[[cases]]
name = "scales"
dataset = {{ name = "array", path = "x.npy" }}
network = {{ name = "mlp", width = 8, depth = 1 }}
"""


@pytest.mark.slow
def test_a_study_hands_them_over_and_records_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scales = torch.tensor(SCALES)[:, None, None]
    x = (torch.randn(80, 3, 4, 4, generator=stream(0, "x")) * scales).numpy()

    np.save("x.npy", x)
    (tmp_path / "channels.toml").write_text(STUDY)
    made = plan.make(study_file.read(tmp_path / "channels.toml"), REGISTRY, tmp_path / "o", "cpu")
    by, plain = (trial.config for trial in made.trials)
    data = build.dataset(REGISTRY, by.dataset)
    assert by.sigma_data_channels == data.sigma_data_channels
    assert plain.sigma_data_channels is None
    assert "sigma_data_channels" not in plain.text(identity=True) or plain != by
    job = build.training_job(by, REGISTRY, data)
    list(testbed.training.trainer.Trainer.of(job, data, torch.device("cpu")))
    s = torch.tensor(by.sigma_data_channels)[:, None, None].double()
    fresh = build.training_job(by, REGISTRY, data).denoiser
    D = fresh(data.test[:4], torch.full((4,), 0.7))
    assert torch.allclose(D.double(), s**2 / (s**2 + 0.49) * data.test[:4], rtol=1e-5, atol=1e-7)
    moved = dataclasses.replace(data, train=2 * data.train)
    assert moved.sigma_data_channels != data.sigma_data_channels


def test_a_scaling_may_not_ask_for_them() -> None:
    def scaling(sigma, sigma_data_channels):  # type: ignore[no-untyped-def]
        return testbed.Coefficients(sigma, sigma, sigma, sigma)

    with pytest.raises(InputError, match=r"argument 'sigma_data_channels' is not supplied"):
        testbed.Parameterization(name="p", scaling=scaling)
    with pytest.raises(InputError, match=r"has a number for each channel, and a scaling is one"):
        testbed.Parameterization(
            name="p",
            scaling=lambda sigma: testbed.Coefficients(sigma, sigma, sigma, sigma),
            target=lambda x0, sigma_data_channels: x0,
        )
