"""Tables of noise levels from files: the formats, schedulers of diffusers, and what is refused.

Their laws (tests/laws/noise_tables.py) are stated together with their mutants, in
tests/mutants/noise_tables.py.
"""

import json
import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import studies
from helpers.bounds import assert_within, exact, gamma
from helpers.strategies import float64
from laws.noise_tables import law_a_file_is_in_the_options, law_scheduler_is_its_keys
from safetensors.torch import save_file

from testbed.data import scheduler_files
from testbed.data.level_files import FILE_TABLES
from testbed.diffusion import noise_levels
from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.trial.specs import ComponentSpec

SIGMAS = [0.05, 0.4, 1.5, 20.0]
ROWS = {
    "sigmas.npy": lambda file: np.save(file, SIGMAS),
    "sigmas32.npy": lambda file: np.save(file, np.array(SIGMAS, dtype=np.float32)),
    "one.npz": lambda file: np.savez(file, levels=SIGMAS),
    "several.npz": lambda file: np.savez(file, sigmas=SIGMAS, betas=[0.1, 0.2]),
    "column.csv": lambda file: file.write_text("sigma\n0.05\n0.4\n1.5\n20\n"),
    "bare.csv": lambda file: file.write_text("0.05\n0.4\n1.5\n20\n"),
    "row.csv": lambda file: file.write_text("0.05, 0.4, 1.5, 20\n"),
    "table.csv": lambda file: file.write_text("i,sigmas\n0,0.05\n1,0.4\n2,1.5\n3,20\n"),
    "words.txt": lambda file: file.write_text("# levels\n0.05 0.4 1.5 20\n"),
    "levels.safetensors": lambda file: save_file({"sigmas": float64(SIGMAS)}, file),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_every_format_gives_the_same_levels(name: str) -> None:
    ROWS[name](Path(name))
    found = default_registry().table("sigmas", path=name)
    narrow = torch.float32 if "32" in name else torch.float64
    assert torch.equal(found.sigmas, float64(SIGMAS).to(narrow).double())
    written = default_registry().table("sigmas", values=found.sigmas.tolist())
    assert written.options == found.options


def test_a_file_is_in_the_options() -> None:
    law_a_file_is_in_the_options(FILE_TABLES["betas"])


def test_betas_of_a_file_are_ddpms_table() -> None:
    np.save("betas.npy", noise_levels.linear_betas().numpy())
    for path, values in (("betas.npy", ()), ("", noise_levels.linear_betas().tolist())):
        found = default_registry().table("betas", path=path, values=values)
        assert torch.equal(found.sigmas, default_registry().table("ddpm").sigmas)
    both = {"path": "betas.npy", "nearest": "log_sigma", "zero_terminal_snr": True}
    found = default_registry().table("betas", **both)
    assert found.terminal
    assert found.options["nearest"] == "log_sigma"


WRONG = {
    "no file": ("none.npy", None, "path = 'none.npy': there is no such file"),
    "a folder": (".", None, "path = '.' is a folder"),
    "another format": ("mine.json", lambda f: f.write_text("{}"), "no reader takes it"),
    "text": ("a.npy", lambda f: f.write_text("hello"), "a.npy cannot be read as numbers"),
    "words": ("a.csv", lambda f: f.write_text("a\nb\nc\n"), "a.csv holds values of type <U1"),
    "nothing": ("a.csv", lambda f: f.write_text(""), "a.csv cannot be read as numbers"),
    "one number": ("a.csv", lambda f: f.write_text("0.3\n"), "a.csv: shape (1,): expected (n,)"),
    "a scalar": ("a.npy", lambda f: np.save(f, 0.3), "a.npy: shape (): expected (n,)"),
    "a matrix": ("a.npy", lambda f: np.save(f, np.ones((2, 3))), "a.npy: shape (2, 3): expected"),
    "two arrays": (
        "a.npz", lambda f: np.savez(f, a=[1.0, 2.0], b=[1.0, 2.0]),
        "a.npz has the arrays a, b: expected a single one or one by the name 'sigmas'.",
    ),
    "complex": ("a.npy", lambda f: np.save(f, [1j, 2]), "of type complex128: expected real"),
    "NaN": ("a.npy", lambda f: np.save(f, [1, 2, np.nan]), "a.npy: number 2 is nan after 2:"),
    "infinity": ("a.npy", lambda f: np.save(f, [1, 2, np.inf]), "a.npy: number 2 is inf after 2"),
    "descending": ("a.npy", lambda f: np.save(f, [3.0, 2.0, 1.0]), "a.npy: number 1 is 2 after 3"),
    "a level twice": ("a.npy", lambda f: np.save(f, [1.0, 1.0]), "number 1 is 1 after 1: expected"),
    "zero": ("a.npy", lambda f: np.save(f, [0.0, 1.0]), "a.npy: number 0 is 0: expected (n,) asc"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "write", "said"), WRONG.values(), ids=WRONG)
def test_what_is_no_row_of_levels_is_refused(name: str, write: Any, said: str) -> None:
    if write:
        write(Path(name))
    with pytest.raises(InputError) as refused:
        default_registry().table("sigmas", path=name)
    assert str(refused.value).startswith("table 'sigmas': ")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("betas", {"values": [0.1, 1.0]}, "values: number 1 is 1: expected (n,) betas between"),
        ("betas", {"values": [0.1, 0.0]}, "values: number 1 is 0: expected (n,) betas between"),
        ("betas", {"values": [0.1, -0.2]}, "values: number 1 is -0.2: expected (n,) betas"),
        ("betas", {"values": [0.1]}, "values: shape (1,): expected (n,) betas between 0 and 1, n"),
        ("betas", {"values": [0.1, 1e-30]}, "betas whose noise levels ascend to a finite one"),
        ("betas", {"values": [0.999] * 200}, "betas whose noise levels ascend to a finite one"),
        ("sigmas", {"values": [0.1, "1"]}, "values[1] = '1': expected a number."),
        ("sigmas", {"values": [0.1, True]}, "values[1] = True: expected a number."),
        ("sigmas", {"values": 0.3}, "option values = 0.3 must be a list"),
        ("sigmas", {"path": 3}, "option path = 3 must be a text"),
        ("sigmas", {"path": "a", "values": [1.0]}, "path and values are both given: expected one"),
        ("sigmas", {"pth": "a"}, "Unknown option 'pth'. Did you mean 'path'?"),
        ("flow", {"n": 1}, "table 'flow': n = 1, shift = 1: expected n from 2 to 1000000 and"),
        ("flow", {"shift": 0.0}, "table 'flow': n = 1000, shift = 0: expected"),
        ("flow", {"shift": 1e10}, "table 'flow': n = 1000, shift = 1e+10: expected"),
        ("geometric", {"low": 2.0}, "table 'geometric': n = 10, low = 2, high = 1: expected"),
        ("geometric", {"n": 1}, "table 'geometric': n = 1, low = 0.01, high = 1: expected"),
    ],
)
def test_options_that_name_no_levels_are_refused(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as refused:
        default_registry().table(name, **options)
    assert said in str(refused.value)


@pytest.mark.parametrize("name", FILE_TABLES)
def test_a_table_without_a_file_has_no_levels(name: str) -> None:
    bare = default_registry().table(name)
    assert not bare.named
    with pytest.raises(InputError, match=f"table '{name}': names no levels: write path = \"FILE\""):
        bare.sigmas  # noqa: B018


# --- schedulers of diffusers ---------------------------------------------------------------------


def test_a_scheduler_is_its_keys() -> None:
    law_scheduler_is_its_keys(scheduler_files.sigmas_of)


def test_only_the_keys_of_the_levels_are_kept() -> None:
    """Two schedulers that sample in other ways are one table."""
    keys = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
            "num_train_timesteps": 1000}  # fmt: skip
    config = {**keys, "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0",
              "clip_sample": False, "steps_offset": 1, "trained_betas": None}  # fmt: skip
    Path("scheduler_config.json").write_text(json.dumps(config))
    found = default_registry().table("diffusers", path="scheduler_config.json")
    assert found.options["config"] == keys
    assert found.options["path"] == ""
    assert torch.equal(found.sigmas, default_registry().table("scaled_linear").sigmas)
    assert torch.equal(default_registry().table("diffusers", config=config).sigmas, found.sigmas)


LINEAR = {"num_train_timesteps": 10, "beta_schedule": "linear", "beta_start": 0.1, "beta_end": 0.2}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "cannot be read as JSON: JSONDecodeError"),
        ("[1, 2]", "no scheduler of diffusers with known levels: expected the key beta_schedule"),
        ({"sigma_data": 0.5}, "no scheduler of diffusers with known levels"),
        ({"_class_name": "IPNDMScheduler", "trained_betas": None, "num_train_timesteps": 9},
         "no scheduler of diffusers with known levels"),
        ({"_class_name": "PiflowScheduler", "shift": 3.0}, "only FlowMatch... are read"),
        ({**LINEAR, "beta_schedule": "scaledlinear"}, "Did you mean 'scaled_linear'?"),
        ({**LINEAR, "beta_strat": 0.1}, "Unknown key 'beta_strat'. Did you mean 'beta_start'?"),
        ({**LINEAR, "snr_shift_scale": 3.0}, "snr_shift_scale = 3.0 changes the levels"),
        ({**LINEAR, "beta_end": "0.2"}, "beta_end = '0.2': expected a number."),
        ({**LINEAR, "beta_end": 1.0}, "n = 10, start = 0.1, end = 1: expected n from 1"),
        ({**LINEAR, "num_train_timesteps": 9.5}, "num_train_timesteps = 9.5: expected a whole"),
        ({**LINEAR, "rescale_betas_zero_snr": 1}, "rescale_betas_zero_snr = 1: expected true or"),
        ({**LINEAR, "trained_betas": 0.1}, "trained_betas: expected a list of numbers."),
        ({**LINEAR, "trained_betas": [0.1, 1.5]}, "trained_betas: number 1 is 1.5: expected"),
        ({"beta_schedule": "linear"}, "there is no num_train_timesteps: expected a number."),
        ({"shift": 3.0}, "there is no num_train_timesteps: expected a number."),
        ({"shift": -3.0, "num_train_timesteps": 9}, "n = 9, shift = -3: expected"),
        ({"shift": 3.0, "num_train_timesteps": 9, "use_dynamic_shifting": True},
         "use_dynamic_shifting = true changes the levels in a way that is not read here"),
    ],
)  # fmt: skip
def test_a_scheduler_that_cannot_be_honoured_is_refused(config: Any, said: str) -> None:
    text = config if isinstance(config, str) else json.dumps(config)
    Path("mine.json").write_text(text)
    with pytest.raises(InputError) as refused:
        default_registry().table("diffusers", path="mine.json")
    assert str(refused.value).startswith("table 'diffusers': mine.json")
    assert said in str(refused.value)
    if not isinstance(config, str):
        with pytest.raises(InputError, match=re.escape(said)):
            default_registry().table("diffusers", config=config)


def test_a_scheduler_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"path = 'none.json' cannot be read: FileNotFoundError"):
        default_registry().table("diffusers", path="none.json")


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO = {"rescale_betas_zero_snr": True}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDPM": ("DDPMScheduler", {}),
    "DDIM, Stable Diffusion 1": ("DDIMScheduler", {**SD, "steps_offset": 1}),
    "PNDM": ("PNDMScheduler", {**SD, "skip_prk_steps": True}),
    "Euler, Karras": ("EulerDiscreteScheduler", {**SD, "use_karras_sigmas": True}),
    "DPM++": ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "LCM": ("LCMScheduler", {}),
    "zero SNR": ("DDIMScheduler", {**SD, **ZERO}),
    "trained betas": ("DDPMScheduler", {"trained_betas": [0.1, 0.2, 0.4]}),
}
FLOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "Stable Diffusion 3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "no shift": ("FlowMatchEulerDiscreteScheduler", {}),
    "Heun": ("FlowMatchHeunDiscreteScheduler", {"num_train_timesteps": 50, "shift": 0.5}),
}


def of_diffusers(name: str, settings: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    """A scheduler of diffusers, and the levels of the file that it saves."""
    diffusers = pytest.importorskip("diffusers")
    other = getattr(diffusers, name)(**settings)
    other.save_pretrained(".")
    found = default_registry().table("diffusers", path="scheduler_config.json")
    return other, found.sigmas


@pytest.mark.slow
@pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed")
@pytest.mark.parametrize(("name", "settings"), OTHERS.values(), ids=OTHERS)
def test_a_file_of_diffusers_has_its_levels(name: str, settings: dict[str, Any]) -> None:
    """abar of its float32, as tests/diffusion/test_noise_tables.py derives it."""
    other, sigmas = of_diffusers(name, settings)
    abar, wanted = 1 / (1 + sigmas**2), other.alphas_cumprod.double()
    unit, zero = gamma(1, torch.float32), "rescale_betas_zero_snr" in settings
    lost = 1e3 if "squaredcos_cap_v2" in settings.values() else 1.0
    bound = 4 * unit * (torch.arange(len(abar)) + 2 + lost) * abar + 4 * unit * zero
    assert_within(abar, exact(wanted), 0, 1, plus=exact(bound))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed")
@pytest.mark.parametrize(("name", "settings"), FLOWS.values(), ids=FLOWS)
def test_a_file_of_flow_matching_has_its_levels(name: str, settings: dict[str, Any]) -> None:
    """Its sigmas are the times t', ours t'/(1 - t'); its float32 rounds four times."""
    other, sigmas = of_diffusers(name, settings)
    wanted = other.sigmas.double().flip(0)
    assert float(wanted[-1]) == 1
    assert_within(sigmas / (1 + sigmas), exact(wanted), exact(wanted), 4, torch.float32)


KEPT = [
    "DDIM", "DDIMInverse", "DDPM", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep",
    "EulerAncestralDiscrete", "EulerDiscrete", "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete",
    "FlowMatchLCM", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM", "LMSDiscrete",
    "PNDM", "SASolver", "TCD", "UniPCMultistep",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed")
def test_every_key_of_a_scheduler_is_known() -> None:
    """What the schedulers that have betas or are of flow matching save is read, or refused by name.

    CogVideoX moves the SNR, which is refused.
    """
    diffusers = pytest.importorskip("diffusers")
    for name in KEPT:
        config = dict(getattr(diffusers, f"{name}Scheduler")().config)
        assert len(scheduler_files.sigmas_of(config)) == 1000, name
    with pytest.raises(InputError, match=r"snr_shift_scale = 3.0 changes the levels"):
        scheduler_files.sigmas_of(dict(diffusers.CogVideoXDDIMScheduler().config))


# --- in a study ----------------------------------------------------------------------------------

STUDY = """
[study]
name = "levels"
[base]
network = { name = "mlp_index", width = 8, depth = 1 }
training = { steps = 50, batch = 8 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 2, metrics = ["energy"] }
dataset = { name = "mixture", dim = 2 }
table = { name = "betas", path = "betas.npy" }
c_noise = "index"
density = "table"
[grid]
parameterization = ["v"]
"""
planned = partial(studies.config, STUDY)


@pytest.mark.slow
def test_a_changed_file_is_another_trial(tmp_path: Path) -> None:
    ids = []
    for end in (0.02, 0.03, 0.02):
        np.save("betas.npy", noise_levels.linear_betas(100, end=end).numpy())
        default_registry.cache_clear()  # as another command
        config = planned(tmp_path)
        ids.append(config.identity)
        assert config.table is not None
        assert len(config.table.options["values"]) == 100
        assert len(str(config.table)) < 200
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.slow
def test_flow_and_diffusers_go_up_to_pure_noise(tmp_path: Path) -> None:
    keys = "{ num_train_timesteps = 100, shift = 3.0 }"
    for table in (
        '{ name = "flow", n = 100, shift = 3.0 }',
        f'{{ name = "diffusers", config = {keys} }}',
    ):
        changes = [f"table={table}", "sigma_max=inf", "evaluation.schedule=table",
                   "evaluation.sampler=ddim"]  # fmt: skip
        config = planned(tmp_path, *changes, 'grid.parameterization=["flow"]')
        assert config.sigma_max == noise_levels.TERMINAL
        assert config.training_range == (pytest.approx(3 / 99), noise_levels.TERMINAL)
        (line,) = studies.refusal(
            STUDY, tmp_path, *changes, 'grid.parameterization=["eps"]'
        ).splitlines()
        assert "'eps' at sigma_max = infinity (zero terminal SNR)" in line


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('"betas"', "table 'betas': names no levels: write path = \"FILE\", or values = ...."),
        (
            '{ name = "betas", path = "none.npy" }',
            "table 'betas': path = 'none.npy': there is no such file",
        ),
        ('{ name = "sigmas", values = [1.0, 0.5] }', "values: number 1 is 0.5 after 1: expected"),
        ('{ name = "diffusers", path = "none.json" }', "path = 'none.json' cannot be read"),
    ],
)
def test_a_study_without_levels_is_refused_in_one_line(
    tmp_path: Path, table: str, said: str
) -> None:
    (line,) = studies.refusal(STUDY, tmp_path, f"table={table}").splitlines()
    assert said in line


def test_a_long_list_is_told_in_brief() -> None:
    one = ComponentSpec(name="sigmas", options={"values": list(range(1, 101)), "nearest": "sigma"})
    assert str(one) == "sigmas (values [1, 2, ... 100 in all ..., 100], nearest sigma)"
    few = ComponentSpec(name="sigmas", options={"values": [1, 2], "config": {"a": [1.5]}})
    assert str(few) == 'sigmas (values [1, 2], config {"a": [1.5]})'
