"""Models and pipelines of diffusers as denoisers, against what diffusers makes of them itself."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.bounds import assert_within, exact
from helpers.diffusers_models import (
    DIT,
    change,
    conditional_unet,
    dit,
    needs_diffusers,
    unet,
    write,
)
from torch import Tensor

import testbed
from testbed.checkpoints import diffusers_folders, schedulers
from testbed.checkpoints.diffusers_folders import read
from testbed.checkpoints.networks import ForeignNetwork
from testbed.errors import InputError, UnknownName

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    needs_diffusers,
    pytest.mark.slow,  # the import alone takes seconds
]

VP = ("epsilon", "sample", "v_prediction")


def scheduler(name: str, **settings: Any) -> Any:
    return getattr(importlib.import_module("diffusers"), name)(**settings)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a UNet2DModel with the scheduler of DDPM; to be copied before it is changed."""
    return write(tmp_path_factory.mktemp("pipeline"), unet(), scheduler("DDPMScheduler"))


def with_scheduler(pipeline: Path, folder: Path, one: Any) -> Path:
    """The network of the pipeline with another scheduler."""
    (folder / "unet").symlink_to(pipeline / "unet")
    one.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text("{}")
    return folder


# --- what the denoiser is ------------------------------------------------------------------------


def x0_of_diffusers(one: Any, x_t: Tensor, t: int, output: Tensor) -> Tensor:
    """pred_original_sample of a scheduler's own step, for a state x_t at the index t."""
    return one.step(output, t, x_t).pred_original_sample


@pytest.mark.parametrize("prediction_type", VP)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_d_is_pred_original_sample(
    pipeline: Path, tmp_path: Path, prediction_type: str, schedule: str
) -> None:
    """x_t = alpha x, and the scheduler's step gives x0 to float32.

    1/sqrt(abar) is what eps and x_t are multiplied with, and abar, a product of t float32 factors,
    is off by (t + 1) u relative.
    """
    one = scheduler(
        "DDPMScheduler",
        prediction_type=prediction_type,
        beta_schedule=schedule,
        clip_sample=False,
        beta_start=0.00085,
        beta_end=0.012,
    )
    denoise = testbed.load_diffusers(with_scheduler(pipeline, tmp_path, one))
    assert denoise.table is not None
    network = unet()
    for t in (0, 10, 300, 900):
        sigma = denoise.table.sigmas[t]
        x_t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(t))
        with torch.no_grad():
            output = network(x_t, t).sample
            wanted = x0_of_diffusers(one, x_t, t, output)
            found = denoise((x_t * torch.sqrt(1 + sigma**2)).float(), sigma.float())
        scale = float(torch.sqrt(1 + sigma**2))
        size = scale * (x_t.abs() + output.abs())
        assert_within(found, exact(wanted), exact(size), 64 + 2 * t, torch.float32)


def test_every_scheduler_of_betas_has_one_convention(pipeline: Path, tmp_path: Path) -> None:
    """The same network and betas under any sampler: the same denoiser."""
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 4.0])
    wanted = testbed.load_diffusers(pipeline)(x, sigma)
    known = importlib.import_module("diffusers")
    for name in schedulers.OF_BETAS:
        if name == "DPMSolverSDEScheduler":  # asks for torchsde
            continue
        kind = getattr(known, name)
        one = kind(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
        if "Euler" in name or "LMS" in name or "Heun" in name or "KDPM" in name:
            assert one.config.prediction_type == "epsilon"
        folder = tmp_path / name
        folder.mkdir()
        found = testbed.load_diffusers(with_scheduler(pipeline, folder, one))(x, sigma)
        assert torch.equal(found, wanted), name


class Probe(torch.nn.Module):
    """F(y, t) = 0.7 y + sin(t/3), in float64: it moves by 0.7 and a third of what y and t move."""

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        return 0.7 * y + torch.sin(torch.as_tensor(t).double() / 3).reshape(-1, 1, 1, 1)


def probed(folder: Path) -> testbed.Denoiser:
    """The denoiser that a folder's scheduler makes of the probe in place of its network."""
    denoise = testbed.load_diffusers(folder)
    assert isinstance(denoise.network, ForeignNetwork)
    denoise.network.network = Probe()
    return denoise


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 1, 8, 8, dtype=torch.float64)


ROUNDINGS = 24
"""At most so many lie between sigma and x and an input of the network, or between F and D."""


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_is_given_1000_t(pipeline: Path, tmp_path: Path, shift: float) -> None:
    """x_t = (1 - t) x0 + t eps and D = x_t - t u, whatever the shift of the sampler's times."""
    one = scheduler("FlowMatchEulerDiscreteScheduler", shift=shift)
    denoise = probed(with_scheduler(pipeline, tmp_path, one))
    one.set_timesteps(7)
    times, levels = one.timesteps[1:], one.sigmas[1:-1].double()
    assert_within(times, exact(1000 * levels), exact(1000 * levels), 1, torch.float32)
    for t in levels:
        x_t = images()
        u = denoise.network.network(x_t, 1000 * t)
        size = x_t.abs() + t * (u.abs() + 0.7 * x_t.abs() + 1000 * t / 3)
        found = denoise(x_t / (1 - t), t / (1 - t))
        assert_within(found, exact(x_t - t * u), exact(size), ROUNDINGS)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", schedulers.OF_EDM)
def test_edm_preconditions(pipeline: Path, tmp_path: Path, prediction_type: str, name: str) -> None:
    one = scheduler(name, prediction_type=prediction_type, sigma_data=0.7)
    denoise = probed(with_scheduler(pipeline, tmp_path, one))
    assert denoise.sigma_data == 0.7
    for sigma in torch.tensor([0.01, 0.5, 3.0, 70.0], dtype=torch.float64):
        x = images() * (1 + sigma)
        y, c_noise = one.precondition_inputs(x, sigma), one.precondition_noise(sigma)
        F = denoise.network.network(y, c_noise)
        wanted = one.precondition_outputs(x, F, sigma)
        c_out = 0.7 * sigma / torch.sqrt(sigma**2 + 0.49)
        # c_noise = log(sigma)/4 is off by a rounding of sigma, and by its own.
        size = x.abs() + c_out * (F.abs() + 0.7 * y.abs() + (c_noise.abs() + 1) / 3)
        assert_within(denoise(x, sigma), exact(wanted), exact(size), ROUNDINGS)


def test_a_score_network_of_the_ve_process_is_given_sigma(tmp_path: Path) -> None:
    """Its fourier embedding takes log sigma and divides its output by sigma: that is the score."""
    one = scheduler("ScoreSdeVeScheduler", sigma_max=50.0)
    folder = write(tmp_path, unet(time_embedding_type="fourier"), one)
    denoise, x, sigma = probed(folder), images(), torch.tensor(0.8, dtype=torch.float64)
    score = denoise.network.network(x, sigma)
    size = x.abs() + sigma**2 * (score.abs() + 0.7 * x.abs() + sigma / 3)
    assert_within(denoise(x, sigma), exact(x + sigma**2 * score), exact(size), ROUNDINGS)
    assert read(folder).reading.sigma_range == (0.01, 50.0)


def test_a_continuous_time_is_log_sigma_over_4(pipeline: Path, tmp_path: Path) -> None:
    """Stable Video Diffusion's: v of VP, and the time of EDM."""
    one = scheduler(
        "EulerDiscreteScheduler", prediction_type="v_prediction", timestep_type="continuous"
    )
    denoise = testbed.load_diffusers(with_scheduler(pipeline, tmp_path, one))
    sigma = torch.tensor([3.0], dtype=torch.float64)
    for found, wanted in zip(denoise.inputs(sigma), (10**-0.5, math.log(3) / 4), strict=True):
        assert_within(found, exact([wanted]), exact([wanted]), 8)
    assert denoise.table is None


def test_zero_terminal_snr_is_sigma_infinity(pipeline: Path, tmp_path: Path) -> None:
    one = scheduler("DDIMScheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    table = testbed.load_diffusers(with_scheduler(pipeline, tmp_path, one)).table
    assert table is not None
    assert table.terminal
    change(tmp_path / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(InputError, match="zero terminal SNR"):
        testbed.load_diffusers(tmp_path)


# --- conditions, averages, flat folders ---


def test_classes_and_texts_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    network = conditional_unet()
    denoise = testbed.load_diffusers(write(tmp_path / "text", network, scheduler("DDIMScheduler")))
    x, sigma, text = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 4.0]), torch.randn(2, 5, 6)
    with torch.no_grad():
        c_in, index = denoise.inputs(sigma)
        scaled = c_in.float().reshape(-1, 1, 1, 1) * x
        wanted = network(scaled, index, encoder_hidden_states=text).sample
        found = denoise.output(x, sigma, {"encoder_hidden_states": text})
    assert torch.equal(found, wanted)


def test_dit_has_classes_and_a_learned_variance(tmp_path: Path) -> None:
    """A class of -1 is DiT's class for none; the second half of its channels is nu."""
    network = dit()
    folder = write(tmp_path, network, scheduler("DDIMScheduler"), "transformer")
    denoise = testbed.load_diffusers(folder)
    assert denoise.learned_variance
    x, sigma, label = torch.randn(3, 1, 8, 8), torch.tensor(0.7), torch.tensor([0, 2, -1])
    with torch.no_grad():
        c_in, index = denoise.inputs(sigma)
        theirs = network(
            c_in.float() * x, index.expand(3), class_labels=label.where(label >= 0, 3)
        ).sample
        found = denoise.output(x, sigma, {"label": label})
        assert torch.equal(found, theirs[:, :1])
        assert torch.equal(denoise(x, sigma)[2], denoise(x, sigma, {"label": label})[2])
        assert bool(denoise.posterior(x, sigma, condition={"label": label}).mean.isfinite().all())


def test_an_average_beside_the_network_is_chosen_by_its_folder(tmp_path: Path) -> None:
    folder = write(tmp_path, unet(0), scheduler("DDPMScheduler"))
    unet(9).save_pretrained(folder / "unet_ema")
    x, sigma = torch.randn(1, 1, 8, 8), torch.tensor(0.5)
    plain = testbed.load_diffusers(folder)(x, sigma)
    average = testbed.load_diffusers(folder, subfolder="unet_ema")(x, sigma)
    assert not torch.allclose(plain, average)
    with pytest.raises(UnknownName, match=r"Did you mean 'unet_ema'\?"):
        testbed.load_diffusers(folder, subfolder="unet_em")


def test_a_network_alone_takes_the_scheduler_beside_it_or_the_one_given(
    pipeline: Path, tmp_path: Path
) -> None:
    x, sigma = torch.randn(1, 1, 8, 8), torch.tensor(0.5)
    wanted = testbed.load_diffusers(pipeline)(x, sigma)
    assert torch.equal(testbed.load_diffusers(pipeline / "unet")(x, sigma), wanted)
    unet().save_pretrained(tmp_path / "alone")
    with pytest.raises(InputError, match=r"there is no scheduler_config.json .*scheduler = "):
        testbed.load_diffusers(tmp_path / "alone")
    given = testbed.load_diffusers(tmp_path / "alone", scheduler=pipeline / "scheduler")
    assert torch.equal(given(x, sigma), wanted)
    # The first repositories of diffusers are flat.
    scheduler("DDPMScheduler").save_pretrained(tmp_path / "alone")
    assert torch.equal(testbed.load_diffusers(tmp_path / "alone")(x, sigma), wanted)


# --- refusals -------------------------------------------------------------------------------------


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, unet(), scheduler("DDPMScheduler"))
    (weights,) = (folder / "unet").glob("*.safetensors")
    torch.save({"x": torch.zeros(1)}, folder / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.bin alone.*save_pretrained"):
        testbed.load_diffusers(folder)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """from_pretrained of diffusers would fill in what is missing with random numbers."""
    folder = write(tmp_path, unet(), scheduler("DDPMScheduler"))
    change(folder / "unet" / "config.json", layers_per_block=2)
    with pytest.raises(InputError, match=r"not those of config.json: \d+ missing: down_blocks"):
        testbed.load_diffusers(folder)
    change(folder / "unet" / "config.json", layers_per_block=1, block_out_channels=[8, 16])
    with pytest.raises(InputError, match="of another shape"):
        testbed.load_diffusers(folder)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"_class_name": "LCMScheduler"}, "LCMScheduler' is not read: a distilled model"),
        ({"_class_name": "DDPMSchedular"}, r"Did you mean 'DDPMScheduler'\?"),
        ({"prediction_type": "v_predition"}, r"Did you mean 'v_prediction'\?"),
        ({"beta_schedule": "liner"}, r"Did you mean 'linear'\?"),
        ({"beta_start": None}, "there is no beta_start"),
    ],
)
def test_schedulers_that_are_not_read_are_named(
    pipeline: Path, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    folder = with_scheduler(pipeline, tmp_path, scheduler("DDPMScheduler"))
    change(folder / "scheduler" / "scheduler_config.json", **keys)
    with pytest.raises(InputError, match=said) as problem:
        read(folder)
    assert "scheduler_config.json" in str(problem.value)


def test_folders_that_are_none_are_named(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is no model of diffusers: expected model_index.json"):
        read(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModell"}')
    with pytest.raises(UnknownName, match=r"Did you mean 'UNet2DModel'\?"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"config.json cannot be read"):
        read(tmp_path)
    assert DIT in diffusers_folders.MODELS


def test_without_diffusers_the_extra_is_named(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert read(pipeline).shape == (1, 8, 8)  # its files can be read all the same
    with pytest.raises(InputError, match=r"pip install 'diffusion-testbed\[images\]'"):
        testbed.load_diffusers(pipeline)


def test_a_digest_is_that_of_weights_and_reading(pipeline: Path, tmp_path: Path) -> None:
    first = read(pipeline).digest
    assert first == read(pipeline).digest
    folder = write(tmp_path, unet(), scheduler("DDPMScheduler"))
    assert read(folder).digest == first
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert read(folder).digest != first
    write(folder, unet(5), scheduler("DDPMScheduler"))
    assert read(folder).digest != first
