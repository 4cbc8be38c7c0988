"""Audits of networks of images ask what those of vectors ask: with a tiny UNet of diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import run_here
from helpers.diffusers_models import (
    Pictures,
    change,
    needs_diffusers,
    train,
    unet,
    write,
)
from torch import Tensor, nn

from testbed import audit
from testbed.audit import Adapter, Audit, checkpoints, external, level_tables, readings
from testbed.checkpoints.diffusers_folders import read
from testbed.diffusion import noise_levels
from testbed.errors import InputError
from testbed.oracles import Oracle
from testbed.tensors import per_sample

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
of_a_unet = [needs_diffusers, pytest.mark.slow]
SHAPE = (1, 8, 8)
SIGMAS = noise_levels.ddpm_sigmas(noise_levels.linear_betas())
BOTH = ("algebra", "learning")


def held_out() -> Tensor:
    return Pictures().draw(128, 10**6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a UNet that was trained to predict eps of the pictures; not to be changed."""
    import diffusers

    model, scheduler = unet(), diffusers.DDPMScheduler()
    train(model, scheduler)
    return write(tmp_path_factory.mktemp("trained"), model, scheduler)


@pytest.fixture(scope="module")
def network(trained: Path) -> nn.Module:
    import diffusers

    found: nn.Module = diffusers.UNet2DModel.from_pretrained(trained / "unet").eval()
    return found


def copied(trained: Path, folder: Path, **keys: Any) -> Path:
    """The network with a scheduler of other keys."""
    (folder / "unet").symlink_to(trained / "unet")
    (folder / "scheduler").mkdir()
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text((trained / "scheduler" / "scheduler_config.json").read_text())
    change(file, **keys)
    (folder / "model_index.json").write_text("{}")
    return folder


def of_folder(folder: Path, parts: tuple[str, ...] = BOTH) -> Audit:
    found = read(folder)
    data = held_out()
    return checkpoints.run(found, name="it", shape=found.shape, held_out=data, parts=parts)


def of_callable(function: Any, adapter: Adapter, parts: tuple[str, ...] = ("learning",)) -> Audit:
    data = held_out()
    return audit.run(function, adapter=adapter, held_out=data, trained=True, parts=parts)


INDEX = Adapter("eps", "vp", "index", SIGMAS, SHAPE, torch.float32)


def failed(found: Audit) -> set[str]:
    return {row.law for row in found.rows if not row.passed}


class TestTrained:
    """A trained UNet, read rightly and wrongly."""

    pytestmark = of_a_unet

    def test_a_right_folder_holds_every_law(self, trained: Path) -> None:
        found = of_folder(trained)
        assert found.passed, found.findings
        laws = {row.law for row in found.rows if not row.reason}
        assert {readings.STATED, readings.BEYOND_LINEAR, external.SINGLE, external.SQUARE} <= laws
        assert "--prediction-type eps --schedule vp --time-argument index" in found.notes[0]

    @pytest.mark.parametrize("wrong", ["v_prediction", "sample"])
    def test_another_prediction_type(self, trained: Path, tmp_path: Path, wrong: str) -> None:
        found = of_folder(copied(trained, tmp_path, prediction_type=wrong), ("learning",))
        assert failed(found) == {readings.STATED}
        assert found.findings[0].startswith("read with --prediction-type eps it fits the data")

    def test_another_sign(self, network: nn.Module) -> None:
        found = of_callable(lambda x, t: -network(x, t).sample, INDEX)
        assert "--prediction-type -eps" in found.findings[0]

    def test_weights_that_are_not_loaded(self, trained: Path, tmp_path: Path) -> None:
        import diffusers

        found = of_folder(write(tmp_path, unet(5), diffusers.DDPMScheduler()), ("learning",))
        assert failed(found) == {readings.BEYOND_LINEAR}
        assert "are its weights loaded?" in found.findings[0]

    def test_an_index_that_counts_from_the_other_end(self, network: nn.Module) -> None:
        """A wrong c_noise: the network is given 999 - t."""
        found = of_callable(lambda x, t: network(x, 999 - t).sample, INDEX)
        assert failed(found) == {readings.STATED}
        assert "the index counted from the noisiest level it fits" in found.findings[0]

    def test_betas_are_told_from_levels(self, network: nn.Module, tmp_path: Path) -> None:
        np.save(tmp_path / "betas.npy", noise_levels.linear_betas().numpy())
        table = level_tables.read_table(tmp_path / "betas.npy")
        assert "was read as betas" in table.note
        adapter = Adapter("eps", "vp", "index", table.sigmas, SHAPE)
        assert of_callable(lambda x, t: network(x, t).sample, adapter).passed
        with pytest.raises(InputError, match="betas"):
            level_tables.read_table(tmp_path / "betas.npy", "alpha_bars")

    def test_other_betas_are_another_reading(self, trained: Path, tmp_path: Path) -> None:
        """Levels that are not those of training are wrong by an amount that the audit measures."""
        other = {"beta_schedule": "squaredcos_cap_v2"}
        right, wrong = of_folder(trained), of_folder(copied(trained, tmp_path, **other))
        losses = [
            sum(one.value for one in found.effects if one.name == "loss")
            for found in (right, wrong)
        ]
        assert losses[1] > losses[0]

    def test_an_output_object_one_dtype_and_one_shape(self, network: nn.Module) -> None:
        """The network itself: float32, (B, 1, 8, 8), and an object with `.sample`."""
        adapter = Adapter("eps", "vp", "index", SIGMAS, SHAPE)
        assert of_callable(network, adapter, BOTH).passed
        # Told nothing of its dtype, it gets float32, as trained networks do.
        assert of_callable(lambda x, t: network(x, t).sample, adapter).passed
        with pytest.raises(InputError, match=r"states of shape \(3,\) .*; --shape"):
            audit.run(
                lambda x, t: network(x, t), adapter=Adapter("eps", "vp", "index", SIGMAS),
                trained=True,
            )  # fmt: skip

    def test_a_level_on_the_wrong_axis(self, network: nn.Module) -> None:
        """eps times (B,) against (B, 1, 8, 8): right in no batch but one, where B = 8."""

        def wrong(x: Tensor, t: Tensor) -> Tensor:
            eps: Tensor = network(x, t).sample
            scale = 1 + t.float() / 1000
            return eps * (scale if len(x) == 8 else per_sample(scale, x)) / per_sample(scale, x)

        found = of_callable(wrong, INDEX, BOTH)
        assert external.SQUARE in failed(found)
        assert any("sigma is on the wrong axis" in text for text in found.findings)

    def test_from_the_command_line(self, trained: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "pictures.npy", Pictures().draw(400, 5).numpy())
        copied(trained, tmp_path, prediction_type="v_prediction")
        data = '{name="array", path="pictures.npy"}'
        words = ("audit", ".", "--data", data, "--part", "learning", "--json")
        done = run_here(tmp_path, *words)
        assert done.code == 3, done.err + done.out
        assert "--prediction-type eps" in json.loads(done.out)["findings"][0]
        done = run_here(tmp_path, "audit", ".", "--json")
        assert done.code == 0, done.err + done.out
        assert any("without data only" in note for note in json.loads(done.out)["notes"])


# --- exact denoisers in the shape of an image ---

SMALL = (1, 2, 2)
Wrong = Callable[[Tensor], Tensor]


def image(change_of_time: Wrong = lambda t: t) -> Any:
    """The factory of an exact eps of VP states (B, 1, 2, 2) that is given an index's level."""

    def factory(oracle: Oracle) -> Any:
        def eps(x_t: Tensor, t: Tensor) -> Tensor:
            assert x_t.shape[1:] == SMALL
            sigma = change_of_time(t)
            x = x_t * per_sample(torch.sqrt(1 + sigma**2), x_t)
            D = oracle.denoise(x.flatten(1), sigma).reshape(x.shape)
            return (x - D) / per_sample(sigma, x)

        return eps

    return factory


def snapped(t: Tensor) -> Tensor:
    levels = torch.logspace(-4, 4, 200, dtype=torch.float64)
    return levels[(t[:, None].double() - levels).abs().argmin(1)].to(t.dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda t: t.to(torch.bfloat16).to(t.dtype), "its time argument is rounded to bfloat16"),
        (snapped, "the noise level is snapped to a table"),
        (lambda t: t**2, "the noise level is taken as sigma^2"),
        (lambda t: t[:1].expand_as(t), "the batch's first sample is used for all"),
    ],
)
def test_a_wrong_level_of_images_is_named(wrong: Wrong, said: str) -> None:
    adapter, wide = Adapter("eps", "vp", shape=SMALL), (torch.float64,)
    found = audit.run(image(wrong), adapter=adapter, parts=("oracle",), dtypes=wide)
    assert said in " ".join(found.findings)
    assert audit.run(image(), adapter=adapter, parts=("algebra", "oracle"), dtypes=wide).passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("c_noise", "said"),
    [
        (torch.log, "c_noise is log(sigma) and must be log(sigma)/4"),
        (lambda s: 0 * s + 17, "c_noise is wrong and must be log(sigma)/4"),
        (lambda s: (torch.log(s) / 4).bfloat16().to(s.dtype), "c_noise is rounded to bfloat16"),
    ],
)
def test_a_wrong_c_noise_of_a_wrapper_of_images_is_named(c_noise: Wrong, said: str) -> None:
    def factory(network: nn.Module, sigma_data: float) -> Any:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            s = per_sample(sigma, x).to(x.dtype)
            r = torch.sqrt(s**2 + sigma_data**2)
            flat = (x / r).flatten(1)
            F = network(flat, c_noise(sigma)).reshape(x.shape)
            return sigma_data**2 / r**2 * x + s * sigma_data / r * F

        return denoise

    found = audit.run(
        factory, adapter=Adapter(shape=SMALL), parameterization="edm", parts=("oracle",),
        dtypes=(torch.float64,),
    )  # fmt: skip
    assert said in " ".join(found.findings)
