"""Networks of other codebases: how they are loaded, what they take, and how they are read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import run_here
from torch import Tensor, nn

import testbed
from testbed import audit
from testbed.audit import (
    Adapter,
    external,
    factories,
    level_tables,
    readings,
    reference,
    trajectories,
)
from testbed.diffusion import noise_levels
from testbed.errors import InputError, UnknownName
from testbed.oracles import Oracle
from testbed.random import stream

COARSE = ("algebra", "oracle")
BETAS = noise_levels.linear_betas()
SIGMAS = noise_levels.ddpm_sigmas(BETAS)
ALPHA_BARS = 1 / (1 + SIGMAS**2)

# --- the numbers of a table ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "contents", "levels"),
    [
        (SIGMAS, "sigmas", SIGMAS),
        (BETAS, "betas", SIGMAS),
        (noise_levels.scaled_linear_betas(), "betas", None),
        (ALPHA_BARS, "alpha_bars", SIGMAS),
        (1 / (1 + noise_levels.ddpm_sigmas(noise_levels.cosine_betas()) ** 2), "alpha_bars", None),
        (torch.logspace(-2, 2, 50, dtype=torch.float64), "sigmas", None),
    ],
)
def test_the_numbers_of_a_table_are_told_apart(
    tmp_path: Path, values: Tensor, contents: str, levels: Tensor | None
) -> None:
    np.save(tmp_path / "table.npy", values.numpy())
    read = level_tables.read_table(tmp_path / "table.npy")
    assert f"table.npy was read as {contents}: {len(values)} noise levels" in read.note
    assert bool((read.sigmas.diff() > 0).all())
    if levels is not None:
        # 1 - abar of a rounded abar is off by 2^-53/(1 - abar), twice that of sigma's own square.
        assert torch.allclose(read.sigmas, levels, rtol=2.0**-52 / 1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (noise_levels.cosine_betas(), "these may be sigmas that end at 0.999, or betas"),
        (torch.linspace(0.01, 0.3, 9), "these may be sigmas that end at 0.3, or betas"),
        (torch.linspace(1e-4, 1e-3, 100), "--table-contents"),
        (1 - BETAS, "hardly fall"),
        (torch.tensor([0.3, 0.1, 0.2]), "expected (n,) ascending positive"),
        (torch.tensor([-0.3, 0.1, 0.2]), "expected (n,) ascending positive"),
    ],
)
def test_what_may_be_two_is_refused(tmp_path: Path, values: Tensor, said: str) -> None:
    np.save(tmp_path / "table.npy", values.numpy())
    with pytest.raises(InputError, match=re.escape(said)):
        level_tables.read_table(tmp_path / "table.npy")


def test_what_is_said_of_a_table_is_believed_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.npy"
    np.save(file, noise_levels.cosine_betas().numpy())
    assert float(level_tables.read_table(file, "sigmas").sigmas[-1]) == 0.999
    assert float(level_tables.read_table(file, "betas").sigmas[-1]) > 1e3
    with pytest.raises(InputError, match="descending alpha-bars"):
        level_tables.read_table(file, "alpha_bars")
    with pytest.raises(UnknownName, match="Did you mean 'betas'"):
        level_tables.read_table(file, "beta")


# --- what a network takes -------------------------------------------------------------------------


class Output:
    """What a model of diffusers returns."""

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


def test_the_sample_of_an_output_object_is_taken() -> None:
    def factory(oracle: Oracle) -> Any:
        return lambda x, sigma: Output(oracle.denoise(x, sigma))

    assert audit.run(factory, parts=COARSE, oracle=reference.mixture()).passed


def test_one_of_a_single_shape_is_given_it() -> None:
    def factory(oracle: Oracle) -> Any:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            if x.shape[1:] != (2, 2):
                raise RuntimeError("expected (2, 2)")
            return oracle.denoise(x, sigma)

        return denoise

    wide = (torch.float64,)
    found = audit.run(factory, parts=COARSE, adapter=Adapter(shape=(2, 2)), dtypes=wide)
    assert found.passed
    assert {row.data for row in found.rows} == {"", *reference.distributions()}
    with pytest.raises(InputError, match=r"states of shape \(3,\) in float64; --shape"):
        audit.run(factory, parts=COARSE)
    with pytest.raises(InputError, match="has 4 numbers, a sample of the data 3"):
        audit.run(factory, adapter=Adapter(shape=(2, 2)), oracle=reference.mixture())
    with pytest.raises(InputError, match="positive sizes"):
        Adapter(shape=(0, 2))


def identity(oracle: Oracle) -> Any:
    layer = nn.Linear(3, 3, bias=False)
    nn.init.eye_(layer.weight)
    return lambda x, sigma: layer(oracle.denoise(x, sigma)).detach()


@pytest.mark.slow
def test_one_of_float32_is_audited_in_it() -> None:
    for adapter in (Adapter(), Adapter(dtype=torch.float32)):
        found = audit.run(identity, adapter=adapter, oracle=reference.mixture())
        assert found.passed
        of_values = [row for row in found.rows if row.part == "oracle"]
        assert {row.dtype for row in of_values} == {"float32"}
        reasons = {row.part: row.reason for row in found.rows if row.reason}
        assert set(reasons) == {"second order", "sampling"}
        assert all("float32 alone" in reason for reason in reasons.values())
    wrong = audit.run(
        lambda oracle: lambda x, sigma: identity(oracle)(x, sigma) * 1.001,
        parts=COARSE,
        oracle=reference.mixture(),
    )
    assert not wrong.passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_is_given_the_dtype_of_its_weights(dtype: torch.dtype) -> None:
    seen = set()

    class Net(nn.Linear):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            seen.add((x.dtype, sigma.dtype))
            return super().forward(x)

    net = Net(3, 3, bias=False, dtype=dtype)
    nn.init.eye_(net.weight)  # its sums are exact, in whatever order
    assert audit.run(net, parts=COARSE).passed
    assert seen == {(dtype, dtype)}


# --- levels at which it raises, and a batch as large as a dimension -------------------------------


@pytest.mark.slow
def test_levels_at_which_it_raises_are_broken_and_the_rest_is_audited() -> None:
    def factory(oracle: Oracle) -> Any:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            if bool((sigma > 500).any()):
                raise ValueError(f"too noisy: {sigma}")
            return oracle.denoise(x, sigma)

        return denoise

    found = audit.run(factory, parts=COARSE, oracle=reference.mixture())
    broken = [row for row in found.rows if not row.passed]
    assert {(row.law, row.sigma) for row in broken} == {
        (external.ANSWERS, 1e3), (external.ANSWERS, 1e4),
    }  # fmt: skip
    assert any("too noisy" in text and "at sigma = 1e+04" in text for text in found.findings)
    assert all(len(text) < 300 for text in found.findings)


def test_an_exception_on_the_way_is_a_broken_law() -> None:
    def factory(oracle: Oracle) -> Any:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            if len(x) > 1000:
                raise MemoryError("a batch of more than a thousand")
            return oracle.denoise(x, sigma)

        return denoise

    found = audit.run(factory, parts=("oracle", "learning"), oracle=reference.mixture())
    assert [row.law for row in found.rows if not row.passed] == [external.ANSWERS]
    assert "MemoryError: a batch of more than a thousand for the part learning" in found.findings[0]


# --- readings -------------------------------------------------------------------------------------


def nearly(oracle: Oracle, prediction_type: str) -> Any:
    """A network that learnt eps, v or x0 of `oracle` to a tenth."""

    def answer(x: Tensor, sigma: Tensor) -> Tensor:
        s, D = sigma[:, None], oracle.denoise(x, sigma)
        eps = (x - D) / s
        q = {"x0": D, "eps": eps, "v": (eps - s * D) / torch.sqrt(1 + s**2)}[prediction_type]
        return q + 0.1 * torch.sin(3 * x)

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("by", ["oracle", "held_out"])
@pytest.mark.parametrize("true", ["x0", "eps", "v"])
def test_the_stated_reading_holds_and_every_other_one_is_found_out(true: str, by: str) -> None:
    oracle = reference.mixture()
    data: dict[str, Any] = {"oracle": oracle}
    if by == "held_out":
        data = {"held_out": oracle.sample(256, stream(0, "tests/held")).float()}
    for stated in {true, "eps", "-v", "flow"}:
        found = audit.run(
            nearly(oracle, true), trained=True, adapter=Adapter(stated), parts=("learning",), **data
        )
        assert found.passed is (stated == true)
        if stated == true:
            assert found.findings == ()
        else:
            (said,) = found.findings
            assert f"read with --prediction-type {true} it fits the data better" in said
            numbers = re.search(r"it is (\S+) and not (\S+)\.", said)
            assert numbers is not None
            assert float(numbers[1]) < float(numbers[2])


@pytest.mark.slow
def test_a_network_without_its_weights_is_said_to_be_one() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 3))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            found: Tensor = self.layers(torch.cat([x, sigma.log()[:, None]], 1))
            return found

    for seed in range(3):
        torch.manual_seed(seed)
        net = Net()
        for stated in ("eps", "v"):
            found = audit.run(
                net, adapter=Adapter(stated), oracle=reference.mixture(), trained=True,
                parts=("learning",),
            )  # fmt: skip
            broken = {row.law for row in found.rows if not row.passed}
            assert broken == {readings.BEYOND_LINEAR}
            assert "are its weights loaded?" in found.findings[0]


@pytest.mark.slow
def test_data_whose_best_denoiser_is_linear_tell_no_readings_apart() -> None:
    oracle = testbed.oracles.Gaussian(torch.zeros(3).double(), torch.eye(3).double() / 4)
    found = audit.run(oracle.denoise, oracle=oracle, trained=True, parts=("learning",))
    assert {row.reason for row in found.rows} == {
        "the best denoiser of these data is linear: it tells no readings apart"
    }


# --- factories in folders, and the command line ---------------------------------------------------

NET = """
import torch
from torch import nn


class Net(nn.Module):
    kind = {kind!r}

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x, index):
        sigma = SIGMAS[index].to(x)
        state = x * torch.sqrt(1 + sigma[:, None] ** 2)
        D = ORACLE.denoise(state, sigma)
        return self.one * (state - D) / sigma[:, None]


import testbed
from testbed.diffusion import noise_levels

SIGMAS = noise_levels.ddpm_sigmas(noise_levels.linear_betas())
ORACLE = testbed.Registry().dataset("mixture", dim=4, n=64, test=64)().oracle
"""
FACTORY = """
from net import Net


def trained():
    import lazily

    net = Net()
    net.kind += lazily.WORD
    return net.eval()


def zeros():
    return lambda x, index: 0 * x
"""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for kind in ("first", "second"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "net.py").write_text(NET.format(kind=kind))
        (tmp_path / kind / "lazily.py").write_text("WORD = '!'\n")
        (tmp_path / kind / "factory.py").write_text(FACTORY)
    np.save(tmp_path / "betas.npy", BETAS.numpy())
    return tmp_path


@pytest.mark.slow
def test_each_factory_has_the_modules_of_its_own_folder(folders: Path) -> None:
    for kind in ("first", "second"):
        word = f"{folders / kind / 'factory.py'}:trained"
        factory = audit.find(word, testbed.Registry())
        subject = factories.external_denoiser(word, factory, None, Adapter())
        net = subject.make(reference.mixture())
        assert net.kind == f"{kind}!"


WORDS = (
    "--schedule", "vp", "--time-argument", "index", "--trained",
    "--data", '{name="mixture", dim=4, n=64, test=64}', "--table", "betas.npy",
    "--part", "learning", "--json",
)  # fmt: skip


@pytest.mark.slow
def test_a_trained_network_by_command(folders: Path) -> None:
    for stated, code in (("eps", 0), ("v", 3)):
        done = run_here(
            folders, "audit", "first/factory.py:trained", "--prediction-type", stated, *WORDS
        )
        assert done.code == code, done.err + done.out
        found = json.loads(done.out)
        assert "betas.npy was read as betas: 1000 noise levels" in found["notes"][0]
        said = ["--prediction-type eps it fits" in text for text in found["findings"]]
        assert said == [True] * (code == 3)
    done = run_here(folders, "audit", "first/factory.py:zeros", "--prediction-type", "eps", *WORDS)
    assert done.code == 3
    assert "are its weights loaded?" in json.loads(done.out)["findings"][0]


MISTAKES = {
    "a shape that is none": (("--shape", "3,x"), "--shape 3,x: expected positive sizes"),
    "a dtype that is none": (("--dtype", "float31"), "Did you mean 'float32'?"),
    "contents that are none": (
        ("--table", "betas.npy", "--table-contents", "alphas"), "Did you mean 'alpha_bars'?",
    ),
    "data without a name": (("--data", "{dim=8}"), "--data {dim=8}: has no name"),
    "data that are no TOML": (("--data", "{name=}"), "--data {name=}: cannot be read as TOML"),
    "an unknown option of data": (
        ("--data", '{name="mixture", dims=8}'), "Did you mean 'dim'?",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_message(folders: Path, words: tuple[str, ...], said: str) -> None:
    done = run_here(folders, "audit", "first/factory.py:trained", *words)
    assert done.code == 2, done.out + done.err
    assert said in re.sub(r"[\s│]+", " ", done.err)
    assert "Traceback" not in done.out + done.err


# --- parameterizations at several values of their options -----------------------------------------

ANGLE = """
import math
import testbed


def scaling(sigma, sigma_data, phi=math.pi / 4):
    d = math.{cos}(phi) + sigma * math.{sin}(phi)
    return testbed.Coefficients(
        skip=math.sin(phi) / d, out=sigma / d, in_=(sigma**2 + sigma_data**2).rsqrt(),
        noise=sigma.log() / 4,
    )


def target(x0, eps, sigma, phi=math.pi / 4):
    return math.cos(phi) * x0 - math.sin(phi) * eps


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        "angle", scaling=scaling, target=target, noise_kind="log_sigma", reference="a rotation"
    )
"""


@pytest.fixture
def angles(tmp_path: Path) -> Path:
    (tmp_path / "wrong.py").write_text(ANGLE.format(cos="cos", sin="sin"))
    (tmp_path / "right.py").write_text(ANGLE.format(cos="sin", sin="cos"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subject", "file", "code"),
    [
        ("angle", "wrong.py", 3),
        ("angle", "right.py", 0),
        ('{name="angle", phi=0.3}', "wrong.py", 3),
        ('{name="angle", phi=0.3}', "right.py", 0),
    ],
)
def test_every_law_at_several_values_of_every_option(
    angles: Path, subject: str, file: str, code: int
) -> None:
    """At its default, phi = pi/4, the wrong one is right."""
    done = run_here(angles, "audit", subject, "-p", file, "--part", "oracle", "--json")
    assert done.code == code, done.err + done.out
    found = json.loads(done.out)
    at = {row["subject"] for row in found["rows"]}
    assert len(at) == 3
    assert sum("with phi = " in name for name in at) == 2
    broken = {row["subject"] for row in found["rows"] if not row["passed"]}
    assert len(broken) == {("angle", 3): 2, ('{name="angle", phi=0.3}', 3): 3}.get(
        (subject, code), 0
    )
    if code:
        assert any(re.match(r"with phi = \S+, c_skip", text) for text in found["findings"])


# --- a wrong sampler, sigma = infinity, short reprs -----------------------------------------------

WRONG_HEUN = """
import testbed


def step(denoise, x, sigma, sigma_next, generator, history):
    d = (x - denoise(x, sigma)) / sigma
    end = x + (sigma_next - sigma) * d
    if sigma_next == 0:
        return end
    d_next = (end - denoise(end, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (0.5 * d + 0.45 * d_next)


@testbed.hookimpl
def testbed_samplers():
    yield testbed.Sampler("wrong_heun", step)
"""


@pytest.mark.slow
def test_a_wrong_sampler_misses_the_exact_end(tmp_path: Path) -> None:
    (tmp_path / "wrong_heun.py").write_text(WRONG_HEUN)
    registry = testbed.Registry([str(tmp_path / "wrong_heun.py")])
    found = audit.run("v", registry=registry, parts=("sampling",), oracle=reference.gaussian())
    assert {row.law for row in found.rows if not row.passed} == {f"{trajectories.FLOW}: wrong_heun"}


def test_sigma_infinity_is_refused_from_python_too() -> None:
    registry = testbed.Registry()
    table = registry.table("ddpm", zero_terminal_snr=True)
    with pytest.raises(InputError, match=r"'eps' at sigma_max = infinity \(zero terminal SNR\)"):
        testbed.Denoiser(nn.Identity(), registry.parameterization("eps"), 0.5, table=table)
    D = testbed.Denoiser(lambda x, c, y: 0 * x, registry.parameterization("v"), 0.5, table=table)
    sigmas = torch.cat([table.sigmas.flip(0)[::100], torch.zeros(1)])
    x = float(sigmas[0]) * torch.randn(8, 2, generator=stream(0, "tests/start"))
    with pytest.raises(InputError, match="'heun' cannot step from sigma = infinity"):
        testbed.sample(D, x, sigmas, "heun")
    assert bool(testbed.sample(D, x, sigmas, "ddim").isfinite().all())


@pytest.mark.slow
def test_reprs_are_short_and_notebooks_have_a_table() -> None:
    found = audit.run("v", parts=("oracle",), oracle=reference.gaussian())
    assert len(repr(found)) < 300
    assert repr(found).startswith("<Audit of v: All 3 laws hold (")
    assert found._repr_html_().count("<tr") >= 4
    wrong = audit.run(
        lambda oracle: lambda x, s: oracle.denoise(x, s**2),
        parts=("oracle",),
        oracle=reference.mixture(),
    )
    assert "probably: the noise level is taken as sigma^2." in repr(wrong)
    assert "sigma^2" in wrong._repr_html_()
    p = testbed.Registry().parameterization("v")
    assert len(repr(p)) < 200
    assert len(repr(testbed.Denoiser(nn.Linear(3, 3), p, 0.5))) < 200
