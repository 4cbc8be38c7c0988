"""The plan refuses what cannot work, before training, and says why."""

import functools
from pathlib import Path

import pytest
import torch
from helpers import studies

import testbed
from testbed.errors import InputError
from testbed.registry import default_registry

STUDY = """
[study]
name = "v"
[base]
dataset = { name = "mixture", dim = 2, n = 256, test = 64 }
density = "lognormal"
weighting = "edm"
loss = "l2"
c_in = "native"
c_noise = "native"
training = { steps = 1 }
evaluation = { levels = 2, draws = 2, samples = 4, steps = 1, metrics = [] }
seeds = 1
[grid]
parameterization = ["eps"]
"""

PLUGIN = """
import math
import torch
import testbed


def plain(sigma):
    return testbed.Coefficients(torch.ones_like(sigma), -sigma, torch.ones_like(sigma), sigma)


def late(sigma):
    skip = torch.where(sigma > 1, sigma, torch.nan)
    return testbed.Coefficients(skip, -sigma, torch.ones_like(sigma), sigma)


def nothing(sigma):
    zero = torch.zeros_like(sigma)
    return testbed.Coefficients(zero, zero, zero + 1, sigma)


def mixed(sigma, k=0.5):
    # u = k x0 - (1 - k) eps
    d = k * sigma + 1 - k
    return testbed.Coefficients((1 - k) / d, sigma / d, torch.ones_like(sigma), sigma)


def mixed_target(x0, eps, sigma, k=0.5):
    return k * x0 - (1 - k) * eps


def heavy(sigma, c=0.0):
    one = torch.ones_like(sigma)
    return testbed.Coefficients(c * one, one, one, sigma)


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization("mixed", mixed, target=mixed_target)
    yield testbed.Parameterization("heavy", heavy)
    yield testbed.Parameterization("narrow", plain, sigma_range=(0.01, 100.0))
    yield testbed.Parameterization("wired", plain, sigma_data=0.123)
    yield testbed.Parameterization("late", late)
    yield testbed.Parameterization("nothing", nothing)
    yield testbed.Parameterization(
        "bent", target=lambda x0, eps, sigma: x0, denoise=lambda F, x, sigma: F
    )


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("clipped", lambda sigma: 1 / sigma, sigma_range=(0.1, math.inf))
    yield testbed.Weighting("negative", lambda sigma: sigma - 1)
    yield testbed.Weighting("absent", lambda sigma: 0 * sigma)
    yield testbed.Weighting("steep", lambda sigma: sigma**-40)


@testbed.hookimpl
def testbed_schedules():
    yield testbed.Schedule("rising", lambda steps: torch.arange(steps + 1.0))
    yield testbed.Schedule("open", lambda steps: torch.arange(steps + 1.0).flip(0) + 1)
    yield testbed.Schedule("far", lambda steps: 100 * torch.arange(steps + 1.0).flip(0))
    yield testbed.Schedule("mine", lambda steps: torch.arange(steps + 1.0).flip(0))
    yield testbed.Schedule("longer", lambda steps: torch.arange(steps + 2.0).flip(0))


@testbed.hookimpl
def testbed_tables():
    yield testbed.NoiseTable("falling", lambda: torch.arange(1.0, 9.0).flip(0).double())
    yield testbed.NoiseTable("from_zero", lambda: torch.arange(9.0).double())
    yield testbed.NoiseTable("endless", lambda: torch.tensor([1.0, 2.0, math.inf]).double())
    yield testbed.NoiseTable("few", lambda: torch.arange(1.0, 9.0).double())


@testbed.hookimpl
def testbed_noises():
    yield testbed.Noise("odd", lambda shape: (*shape, 1))
    yield testbed.Noise("hidden", lambda shape: (1,) * len(shape), in_target=False)


@testbed.hookimpl
def testbed_networks():
    mlp = testbed.Registry().network("mlp").build
    yield testbed.Network(
        "table", mlp, noise={"index": (0, 999)}, condition_kinds=("vector",)
    )
    yield testbed.Network(
        "short",
        mlp,
        noise={"sigma": (0.0, 10.0), "log_sigma": (-1, 1)},
        condition_kinds=("vector",),
    )
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> testbed.Registry:
    file = tmp_path_factory.mktemp("plugins") / "misfits.py"
    file.write_text(PLUGIN)
    return testbed.Registry([str(file)])


planned = functools.partial(studies.planned, STUDY)


ONLY = 'grid.parameterization=["{}"]'
BOUND = 'grid.parameterization=[{{name="{}", {} = {}}}]'
TERMINAL = ['table={name="ddpm", zero_terminal_snr=true}', "sigma_max=inf", "density=table"]
TERMINAL += ["c_noise=index", "network=mlp_index"]
REFUSED = {
    "eps at infinity": (
        ["sigma_max=inf"],
        "'eps' at sigma_max = infinity (zero terminal SNR): x is pure noise there and F says",
    ),
    "score at infinity": (
        ["sigma_max=inf", ONLY.format("score")],
        "'score' at sigma_max = infinity (zero terminal SNR)",
    ),
    "singular at infinity with its bound options alone": (
        [BOUND.format("mixed", "k", 0.0), *TERMINAL],
        "'mixed' at sigma_max = infinity (zero terminal SNR): x is pure noise there and F says",
    ),
    "an output that float32 cannot carry with its bound options": (
        [BOUND.format("heavy", "c", 1e9)],
        "'heavy' with these options: |c_out F*| is 8e+10 at sigma = 80: one rounding of F in "
        "float32 moves D by 4.77e+03, more than sigma_data",
    ),
    "v at infinity": (
        ["sigma_max=inf", ONLY.format("v")],
        "training draws x = x0 + sigma eps, which has no limit there",
    ),
    "infinity by the density": (
        ['density={name = "lognormal", sigma_max = inf}'],
        "zero terminal SNR",
    ),
    "beyond the parameterization's range": (
        [ONLY.format("narrow")],
        "'narrow' is defined for sigma between 0.01 and 100 (ends excluded), the density draws "
        "sigma from 0.002 to 80",
    ),
    "beyond the weighting's range": (
        ["weighting=clipped"],
        "weighting 'clipped' is defined for sigma between 0.1 and inf",
    ),
    "a hard-wired sigma_data": (
        [ONLY.format("wired")],
        "'wired' is hard-wired to sigma_data = 0.123, the training data have",
    ),
    "a stated sigma_data that the data lack": (
        ["sigma_data=3"],
        "sigma_data = 3, but the training split has",
    ),
    "sigma into an index table": (
        ["network=table"],
        "gives c_noise as 'sigma', network 'table' takes index. Its table has no entry at a sigma",
    ),
    "log sigma into an index table": (
        ["network=table", ONLY.format("edm")],
        "gives c_noise as 'log_sigma', network 'table' takes index. Its table has no entry at a "
        "log_sigma",
    ),
    "c_noise beyond the network's range": (["network=short"], "takes sigma from 0 to 10"),
    "coefficients that are not finite": (
        [ONLY.format("late")],
        "'late': c_skip is nan at sigma = 0.002",
    ),
    "c_out = 0": ([ONLY.format("nothing")], "1/c_out, by which F is read from x0, is inf"),
    "a negative weight": (["weighting=negative"], "'negative': the weight is -0.998 < 0"),
    "a weight of nothing": (["weighting=absent"], "'absent': the weight is 0 at every sigma"),
    "a weight beyond float32": (["weighting=steep"], "the loss's factor k in float32 is inf"),
    "a non-affine one compared in its own F": (
        [ONLY.format("bent"), 'loss={name = "l2", space = "F"}'],
        "not affine: its target has no coefficients",
    ),
    "a schedule that rises": (
        ["evaluation.schedule=rising"],
        "schedule 'rising': its levels must fall strictly, the last to 0",
    ),
    "a schedule that does not end at 0": (
        ["evaluation.schedule=open"],
        "schedule 'open': its levels must fall strictly, the last to 0",
    ),
    "a schedule beyond what is trained": (
        ["evaluation.schedule=far"],
        "schedule 'far' begins at sigma = 100, and the denoiser is trained up to 80",
    ),
    "a schedule of other numbers of levels": (
        ["evaluation.schedule=longer"],
        "schedule 'longer': levels must return a tensor of 2 levels for 1 steps",
    ),
    "a table that falls": (["table=falling"], "'falling': its levels must be positive, finite and"),
    "a table from 0": (["table=from_zero"], "'from_zero': its levels must be positive, finite and"),
    "a table to infinity": (["table=endless"], "'endless': its levels must be positive, finite an"),
    "noise of another shape": (
        ["noise=odd"],
        "noise 'odd': z_shape must return 1 numbers, (2,) with ones in it, got a tuple of 2",
    ),
    "shared noise in x alone for a non-affine one": (
        [ONLY.format("bent"), "noise=hidden"],
        "noise 'hidden' is in x and not in the target: parameterization 'bent' is not affine",
    ),
    "noise in x alone for a non-affine one": (
        [ONLY.format("bent"), "noise=perturbed"],
        "noise 'perturbed' is in x and not in the target: parameterization 'bent' is not affine",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_combination_that_cannot_work_is_refused_with_the_reason(
    why: str, tmp_path: Path, registry: testbed.Registry
) -> None:
    sets, reason = REFUSED[why]
    assert reason in studies.refusal(STUDY, tmp_path, *sets, registry=registry)


@pytest.mark.parametrize(
    "sets",
    [
        [],
        [BOUND.format("mixed", "k", 0.5), *TERMINAL],
        [BOUND.format("mixed", "k", 0.0)],
        [ONLY.format("heavy")],
        [ONLY.format("narrow"), "sigma_min=0.02"],
        ["weighting=clipped", "sigma_min=0.2"],
        [ONLY.format("wired"), "sigma_data.assumed=0.123"],
        ["sigma_data.assumed=3"],
        [ONLY.format("edm"), "network=short", "sigma_min=0.02", "sigma_max=50"],
        [ONLY.format("late"), "sigma_min=1.5"],
        [ONLY.format("bent")],
        [ONLY.format("bent"), "noise=offset"],
        ["evaluation.schedule=mine"],
        ["table=few"],
        ["noise=hidden"],
    ],
)
def test_its_neighbour_that_can_work_is_planned(
    sets: list[str], tmp_path: Path, registry: testbed.Registry
) -> None:
    assert len(planned(tmp_path, *sets, registry=registry).trials) == 1


def test_a_stated_sigma_data_is_accepted_within_four_standard_errors_and_no_further(
    tmp_path: Path, registry: testbed.Registry
) -> None:
    data = registry.dataset("mixture", dim=2, n=256, test=64)()
    near, far = (data.sigma_data + k * data.sigma_data_error for k in (3.9, 4.1))
    (one,) = planned(tmp_path, f"sigma_data={near!r}", registry=registry).trials
    assert one.config.sigma_data == near
    with pytest.raises(InputError, match="assumed"):
        planned(tmp_path, f"sigma_data={far!r}", registry=registry)


def test_the_standard_error_of_sigma_data_is_that_of_repeated_samples() -> None:
    """Its square estimates the variance over 400 data sets; 6 of its own standard errors."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(400, 200, 3, generator=generator) * torch.tensor([0.2, 1.0, 3.0]) + 0.5
    found = [testbed.Data(train=x, test=x[:1]) for x in draws]
    spread = torch.tensor([data.sigma_data for data in found]).double().std()
    told = torch.tensor([data.sigma_data_error for data in found]).double().mean()
    # A standard deviation of 400 numbers has a relative standard error of 1/sqrt(800).
    assert abs(float(spread / told) - 1) < 6 / 800**0.5


def test_one_sample_has_no_standard_error_and_agrees_with_anything() -> None:
    data = testbed.Data(train=torch.ones(1, 2), test=torch.ones(1, 2))
    assert data.sigma_data_error == float("inf")
    assert data.agrees(7.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma_range": (2.0, 1.0)}, "needs 0 <= low < high"),
        ({"singular": (1.0,)}, "may hold 0.0 and math.inf only"),
        ({"claims": ("unit_targt",)}, "Did you mean 'unit_target'"),
        ({"sigma_data": -1.0}, "must be positive"),
    ],
)
def test_a_wrong_declaration_is_told_where_it_is_written(
    change: dict[str, object], message: str
) -> None:
    eps = default_registry().parameterization("eps")
    with pytest.raises(InputError, match=message):
        testbed.Parameterization("mine", eps.scaling, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: testbed.Weighting("w", lambda sigma, state: sigma), "asks for a state"),
        (
            lambda: testbed.Weighting("w", lambda sigma: sigma, state=torch.nn.ReLU),
            "builds a state, and no function asks for it",
        ),
        (
            lambda: testbed.Weighting("w", lambda sigma: sigma, penalty=lambda sigma: sigma),
            "a penalty without a state",
        ),
        (lambda: testbed.Loss("l", lambda p, q, state: p - q), "asks for a state"),
        (
            lambda: testbed.Loss("l", lambda p, q, state: p - q, state=lambda: 3).build(),
            "must build a torch.nn.Module, got 3",
        ),
    ],
)
def test_a_state_is_built_exactly_where_a_function_asks_for_one(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]
