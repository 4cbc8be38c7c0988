"""The conformance kit: everything registered conforms, and the kit itself does what it says."""

import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers.command_line import environment, run_here
from helpers.paths import ROOT
from hypothesis import given

import testbed
import testbed.ext
from testbed.components.base import Component
from testbed.data.level_files import FILE_TABLES
from testbed.data.readers import idx
from testbed.errors import InputError, PluginError, UnknownName
from testbed.registry import AXES, default_registry
from testbed.testing import (
    Check,
    CheckFailed,
    Context,
    Outcome,
    Skipped,
    check_component,
    iter_checks,
    option_points,
    parametrize_with_checks,
    plugin,
    strategies,
    suggest_claims,
)
from testbed.testing.published import NOISE_TABLES

FLOW = '''
"""A velocity."""

import testbed


def scaling(sigma):
    a, t = 1 / (1 + sigma), sigma / (1 + sigma)
    return testbed.Coefficients(skip=a, out=-t, in_=a, noise=t)


def target(x0, eps, sigma):
    return eps - x0


@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        "velocity", scaling, target=target, noise_kind="time", reference="a test"
    )
'''


SMALL_NETWORKS: dict[str, dict[str, Any]] = {
    "dit": {"width": 16, "depth": 1, "heads": 2},
    "unet": {"channels": (8, 16), "groups": 4, "head": 4},
    "convnet": {"width": 8, "depth": 1},
}
"""Options at which the laws of networks take a second instead of half a minute."""


def registered() -> list[Component]:
    """Everything in the default registry, tables of files with levels, small networks."""
    found = default_registry()
    options: dict[tuple[str, str], dict[str, Any]] = {
        ("table", name): NOISE_TABLES[name].options for name in FILE_TABLES
    }
    options |= {("network", name): small for name, small in SMALL_NETWORKS.items()}
    options["dataset", "fashion_mnist"] = {"n": 400, "test": 100}  # 70,000 take minutes
    return [
        getattr(found, axis)(name, **options.get((axis, name), {}))
        for axis in AXES
        for name in found.names(axis)
    ]


def unit(sigma: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(sigma)


def negative(sigma: torch.Tensor) -> torch.Tensor:
    return -torch.ones_like(sigma)


RIGHT = testbed.Weighting("right", unit)
WRONG = testbed.Weighting("wrong", negative)


# --- everything registered conforms --------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def unzipped_once() -> Iterator[None]:
    """The files of Fashion-MNIST are unzipped once, though its laws build the data fifty times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idx, "_array", functools.cache(idx._array))
        yield


@parametrize_with_checks(registered())
def test_everything_registered_conforms(component: Component, check: Check) -> None:
    check(component)


@pytest.mark.process
@pytest.mark.slow
def test_an_array_conforms(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=rows, y=np.arange(300) % 3)
    data = default_registry().dataset("array", path=str(tmp_path / "mine.npz"))
    outcomes = check_component(data)
    skipped = {one.check.id: one.message for one in outcomes if one.status == "skipped"}
    assert set(skipped.values()) == {
        "it has no oracle",
        "its distributions given a condition are not known",
    }


# --- checks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", registered(), ids=lambda one: f"{one.axis}-{one.name}")
def test_checks_have_names_and_laws(component: Component) -> None:
    checks = iter_checks(component)
    ids = [check.id for check in checks]
    # A recipe is a list of names: the functions behind them have laws of their own.
    assert len(set(ids)) == len(ids) >= (4 if component.axis == "recipe" else 8)
    for check in checks:
        prefix, _, name = check.id.partition(".")
        assert check.axis == component.axis
        assert prefix in (component.axis, "claim")
        assert name.isidentifier()
        assert check.law.endswith((".", ")."))


def test_a_table_without_levels_is_not_checked() -> None:
    outcomes = check_component(default_registry().table("betas"))
    skipped = {one.message for one in outcomes if one.status == "skipped"}
    assert skipped == {"its options name no levels: bind them to try it"}
    assert [one.check.id for one in outcomes if one.status == "passed"] == ["table.values"]


def test_claims_are_among_the_checks() -> None:
    edm = {check.id for check in iter_checks(default_registry().parameterization("edm"))}
    assert {"claim.unit_target", "claim.homogeneous"} <= edm
    l1, l2 = (default_registry().loss(name) for name in ("l1", "l2"))
    assert "claim.elicits_mean" not in {check.id for check in iter_checks(l1)}
    assert "claim.elicits_mean" in {check.id for check in iter_checks(l2)}


def test_true_claims_that_are_not_made_are_suggested() -> None:
    edm = default_registry().parameterization("edm")
    bare = testbed.Parameterization(
        "bare", edm.scaling, target=edm.stated_target, reference="a test"
    )
    every = [f"claim.{name}" for name in ("unit_target", "unit_input", "homogeneous", "boundary")]
    assert suggest_claims(bare) == every
    assert suggest_claims(edm) == []
    assert suggest_claims(default_registry().loss("l1")) == []
    assert suggest_claims(testbed.Loss("own", lambda a, b: 3 * (a - b) ** 2)) == [
        "claim.elicits_mean"
    ]


def test_true_claims_of_a_guidance_are_suggested() -> None:
    free = default_registry().guidance("classifier_free")
    both = ["claim.conditional_at_one", "claim.unconditional_at_zero"]
    assert suggest_claims(free) == []
    assert suggest_claims(testbed.Guidance("bare", free.method)) == both
    assert suggest_claims(default_registry().guidance("none")) == []
    with pytest.raises(InputError, match="Did you mean 'conditional_at_one'"):
        testbed.Guidance("mine", free.method, claims=("unconditional_at_one",))


Kind = Literal["a", "b", "c"]


def with_options(
    u: torch.Tensor, kind: Kind = "b", even: bool = True, n: int = 5, scale: float = 2.0
) -> torch.Tensor:
    return u


def test_a_component_is_checked_around_its_options() -> None:
    density = testbed.Density("mine", with_options, lambda sigma: sigma)
    points = option_points(density.bound({"scale": 3.0, "sigma_min": 0.02}))
    assert [point.where for point in points] == [
        "",
        "with sigma_min = 0.03, sigma_max = 40, n = 6, scale = 1.5",
        "with sigma_min = 0.01, sigma_max = 120, n = 2, scale = 4.5",
        "with kind = 'a'",
        "with kind = 'c'",
        "with even = False",
    ]
    tried = {point.where: point.component.options for point in points}
    assert tried[""]["scale"] == tried["with kind = 'a'"]["scale"] == 3.0
    assert tried["with kind = 'a'"]["kind"] == "a"


def test_what_a_component_refuses_is_left_out_and_the_rest_is_tried() -> None:
    def weight(sigma: torch.Tensor, k: float = 0.0, n: int = 4) -> torch.Tensor:
        if k < 0:
            raise ValueError("k must be at least 0.")
        return (1 + k) * n / sigma**2

    found = [point.where for point in option_points(testbed.Weighting("mine", weight))]
    assert found == ["", "with k = 0.5, n = 2", "with n = 5"]
    table = default_registry().table("karras", n=2)
    assert not any("n = 1," in point.where for point in option_points(table))


def test_a_number_that_only_another_name_takes_is_tried_beside_that() -> None:
    """The shift of equal steps of sigma is refused; at other times each value is a point."""
    uniform = default_registry().schedule("uniform")
    found = {point.where: point.component for point in option_points(uniform)}
    shifted = {where for where in found if "shift" in where}
    assert shifted == {
        f"with time = {time!r}, shift = {shift}"
        for time in ("vp", "cosine", "flow")
        for shift in (1.5, 0.5)
    }
    (check,) = [one for one in iter_checks(uniform) if one.id == "schedule.options"]
    assert "shift" in check(uniform)


def test_a_number_that_does_nothing_beside_the_only_name_that_takes_it_is_found() -> None:
    def levels(
        steps: int, sigma_min: float, sigma_max: float, kind: Kind = "a", k: float = 1.0
    ) -> torch.Tensor:
        if kind == "a" and k != 1:
            raise ValueError("k has no effect on a.")
        power = {"a": 1.0, "b": 2.0, "c": 3.0}[kind]
        t = torch.linspace(1, 0, steps, dtype=torch.float64) ** power
        return torch.cat([sigma_min + t * (sigma_max - sigma_min), torch.zeros(1).double()])

    deaf = testbed.Schedule("deaf", levels)
    (check,) = [one for one in iter_checks(deaf) if one.id == "schedule.options"]
    with pytest.raises(CheckFailed, match=r"option 'k' does nothing: 1\.0 and 1\.5 and 0\.5 give"):
        check(deaf)


def test_a_law_that_breaks_beside_the_default_says_where() -> None:
    def weight(sigma: torch.Tensor, k: float = 2.0) -> torch.Tensor:
        return (k - 1.5) / sigma**2

    mine = testbed.Weighting("mine", weight)
    (check,) = [one for one in iter_checks(mine) if one.id == "weighting.positive"]
    with pytest.raises(CheckFailed, match=r"Found: with k = 1: lambda = -.* is negative"):
        check(mine)
    assert check(mine.bound({"k": 4.0}))


@pytest.mark.slow
def test_noise_that_an_option_inflates_is_not_inflated_for_the_marginals() -> None:
    heun = default_registry().sampler("heun", churn=8.0, s_noise=1.5)
    (check,) = [one for one in iter_checks(heun) if one.id == "sampler.marginal"]
    assert check(heun)
    with pytest.raises(CheckFailed, match="variance by"):
        check(dataclasses.replace(heun, inflation=""))
    with pytest.raises(InputError, match="inflation: Unknown option 's_nois'"):
        testbed.Sampler("mine", heun.step, noise="churn", inflation="s_nois")


def test_every_bundled_name_with_a_formula_has_values() -> None:
    without = {"dataset", "network", "metric", "recipe"}
    for component in registered():
        ids = [check.id for check in iter_checks(component)]
        assert (f"{component.axis}.values" in ids) == (component.axis not in without), (
            f"the values of {component.label} belong into testbed/testing/published.py"
        )
    other = testbed.Weighting("mine", unit)
    assert "weighting.values" not in [check.id for check in iter_checks(other)]


@pytest.mark.parametrize(
    ("p", "declared", "message"),
    [
        ("edm", {}, 'log sigma/4: declare noise_kind = "log_sigma" (the default is "sigma").'),
        ("edm", {"noise_kind": "time"}, 'declare noise_kind = "log_sigma" (declared: "time").'),
        ("eps", {"noise_kind": "log_sigma"}, 'c_noise is sigma: declare noise_kind = "sigma" ('),
    ],
)
def test_a_forgotten_noise_kind_is_named(p: str, declared: dict[str, str], message: str) -> None:
    right = default_registry().parameterization(p)
    mine = testbed.Parameterization("mine", right.scaling, target=right.stated_target, **declared)
    (check,) = [one for one in iter_checks(mine) if one.id == "parameterization.noise_kind"]
    with pytest.raises(CheckFailed) as caught:
        check(mine)
    assert message in str(caught.value)


class Convolution(torch.nn.Module):
    """A network of images alone, whose last layer does not start at zero."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.noise = torch.nn.Linear(2, 4)
        self.first = torch.nn.Conv2d(shape[0], 4, 3, padding=1)
        self.last = torch.nn.Conv2d(4, shape[0], 3, padding=1)

    def forward(
        self, x: torch.Tensor, c_noise: torch.Tensor, condition: object = None
    ) -> torch.Tensor:
        c = c_noise[:, None].to(x.dtype)
        h = self.first(x) + self.noise(torch.cat([c.sin(), c.cos()], 1))[..., None, None]
        out: torch.Tensor = self.last(torch.tanh(h))
        return out


def test_a_network_is_checked_at_the_shapes_that_it_states() -> None:
    noise = {"log_sigma": (-2.4, 2.4)}
    mine = testbed.Network("mine", Convolution, noise, shapes=((1, 8, 8), (3, 5, 5)))
    slow = (".spawned", ".compile")
    for check in iter_checks(mine):
        if not check.id.endswith(slow):
            with contextlib.suppress(Skipped):
                check(mine)
    (check,) = [one for one in iter_checks(mine) if one.id == "network.shape"]
    with pytest.raises(CheckFailed):
        check(testbed.Network("mine", Convolution, noise))
    for shapes in ((), ((),), ((0, 2),), (3,), [[1, 8]]):
        with pytest.raises(InputError, match="expected shapes of samples"):
            testbed.Network("mine", Convolution, noise, shapes=shapes)  # type: ignore[arg-type]


def test_a_metric_is_checked_at_the_shapes_that_it_states() -> None:
    def measure(samples: torch.Tensor, data: testbed.Data, generator: object) -> float:
        if samples[0].numel() <= 32:
            raise InputError("needs more than 32 dimensions.")
        return float((samples.double().mean(0) - data.test.double().mean(0)).square().sum())

    mine = testbed.Metric("mine", measure, shapes=((40,), (1, 6, 6)))
    for check in iter_checks(mine):
        if not check.id.endswith(".spawned"):
            check(mine)
    with pytest.raises(CheckFailed, match="more than 32"):
        iter_checks(mine)[1](testbed.Metric("mine", measure))


def test_a_start_at_zero_is_advice_and_no_law() -> None:
    from testbed.testing.render import notes

    noise = {"log_sigma": (-2.4, 2.4)}
    mine = testbed.Network("mine", Convolution, noise, shapes=((1, 8, 8),))
    (note,) = notes([mine])
    assert "F is not 0 before training" in note
    assert "plateau" in note
    (zero,) = [one for one in notes([default_registry().network("mlp")]) if "F = 0" in one]
    assert "exact mirrors" in zero
    assert "plateau" in zero


def test_failure_says_who_which_law_and_the_numbers() -> None:
    v = default_registry().parameterization("v")
    half = testbed.Parameterization(
        "half", v.scaling, target=lambda x0, eps, sigma: eps / 2, reference="a test"
    )
    (check,) = [one for one in iter_checks(half) if one.id.endswith("optimal_denoiser")]
    with pytest.raises(CheckFailed) as caught:
        check(half)
    for word in (
        "parameterization 'half' breaks parameterization.optimal_denoiser",
        "denoise(target(x0, eps), x0 + sigma eps) = x0",
        "times its bound",
        "at sigma = ",
        "sigma_data = 0.1",
        "float64",
    ):
        assert word in str(caught.value)
    assert str(caught.value).endswith(caught.value.numbers)


def test_what_a_component_raises_is_a_failure_with_its_cause() -> None:
    def broken(sigma: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such level")

    check = iter_checks(testbed.Weighting("broken", broken))[0]
    with pytest.raises(CheckFailed, match="raised KeyError: 'no such level'") as caught:
        check(testbed.Weighting("broken", broken))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_skip_has_a_reason() -> None:
    derived = testbed.Parameterization(
        "derived", default_registry().parameterization("v").scaling, reference="a test"
    )
    (check,) = [one for one in iter_checks(derived) if one.id.endswith("stated_target")]
    with pytest.raises(Skipped, match="states no target of its own"):
        check(derived)


# --- check_component -----------------------------------------------------------------------------


@pytest.mark.usefixtures("at_home")
def test_outcomes_of_a_right_component() -> None:
    outcomes = check_component(RIGHT)
    assert [one.check for one in outcomes] == iter_checks(RIGHT)
    assert {one.status for one in outcomes} == {"passed", "skipped"}
    assert all(isinstance(one, Outcome) and one.ok and one.seconds >= 0 for one in outcomes)
    assert all(one.message for one in outcomes if one.status == "skipped")


@pytest.mark.usefixtures("at_home")
def test_every_failure_is_raised_at_once() -> None:
    def worse(sigma: torch.Tensor) -> torch.Tensor:
        return -torch.ones_like(sigma) + 0 * torch.rand(())

    with pytest.raises(CheckFailed, match=r"2 of 10 checks failed") as caught:
        check_component(testbed.Weighting("worse", worse))
    assert "weighting.positive" in str(caught.value)
    assert "weighting.pure" in str(caught.value)


@pytest.mark.usefixtures("at_home")
def test_on_fail() -> None:
    with pytest.warns(UserWarning, match=r"weighting\.positive: failed\. Law: .* negative"):
        outcomes = check_component(WRONG, on_fail="warn")
    assert [one.check.id for one in outcomes if not one.ok] == ["weighting.positive"]
    assert [one.status for one in check_component(WRONG, on_fail=None) if not one.ok] == ["failed"]
    with pytest.raises(InputError, match="on_fail = 'shout': expected"):
        check_component(WRONG, on_fail="shout")  # type: ignore[arg-type]


@pytest.mark.usefixtures("at_home")
def test_an_expected_failure_is_no_failure() -> None:
    outcomes = check_component(WRONG, expected_failures={"weighting.positive": "a sign"})
    (expected,) = [one for one in outcomes if one.status == "xfailed"]
    assert (expected.check.id, expected.message, expected.ok) == (
        "weighting.positive",
        "a sign",
        True,
    )


@pytest.mark.usefixtures("at_home")
def test_an_unexpected_pass_fails() -> None:
    with pytest.raises(CheckFailed, match=r"weighting\.positive: xpassed.*take it off the list"):
        check_component(RIGHT, expected_failures={"weighting.positive": "a sign"})


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"weighting.postive": "a"}, r"Unknown check 'weighting.postive'. Did you mean "),
        ({"claim.unit_target": "a"}, r"Unknown check 'claim.unit_target'"),
        ({"weighting.positive": " "}, r"weighting.positive needs a reason"),
    ],
)
def test_unknown_or_unexplained_expectations(expected: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_component(RIGHT, expected_failures=expected)
    with pytest.raises(InputError, match=message):
        parametrize_with_checks([RIGHT], expected_failures=expected)


@pytest.mark.parametrize("subject", [None, "edm", unit, testbed.Parameterization])
def test_only_components_have_checks(subject: object) -> None:
    with pytest.raises(InputError, match=r"expected a component \(Parameterization, Weighting"):
        iter_checks(subject)  # type: ignore[arg-type]


# --- parametrize_with_checks ---------------------------------------------------------------------

SUITE = """
import testbed
from testbed.testing import parametrize_with_checks


def unit(sigma):
    return 1 + 0 * sigma


def negative(sigma):
    return -1 + 0 * sigma


SIGN = {EXPECTED}


@parametrize_with_checks(
    [testbed.Weighting("right", unit), testbed.Weighting("wrong", negative)],
    expected_failures=SIGN,
)
def test_conforms(component, check):
    check(component)
"""


def test_ids_are_readable_and_one_process_serves_all() -> None:
    mark = parametrize_with_checks([RIGHT, WRONG])
    names, parameters = mark.args
    assert names == ("component", "check")
    ids = [parameter.id for parameter in parameters]
    assert ids[0] == "right-weighting.positive"
    assert ids[-1] == "wrong-weighting.spawned"
    contexts = {id(parameter.values[1].context) for parameter in parameters}
    assert len(contexts) == 1


@pytest.mark.process
@pytest.mark.slow
def test_under_pytest(tmp_path: Path) -> None:
    """An expected failure is an xfail; a pass where one was expected fails; a skip is a skip."""
    sign = {"wrong-weighting.positive": "a sign"}
    every = {"weighting.positive": "a sign"}
    strict = {"right-weighting.pure": "why not", **sign}
    for name, expected in {"sign": sign, "every": every, "strict": strict}.items():
        (tmp_path / f"test_{name}.py").write_text(SUITE.replace("{EXPECTED}", repr(expected)))
    words = ["-q", "-rA", "-p", "no:cacheprovider", "-k", "not spawned"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    failed = [line.partition(" - ")[0] for line in lines if line.startswith("FAILED")]
    xfailed = [line.partition(" - ")[0] for line in lines if line.startswith("XFAIL")]
    assert failed == [
        "FAILED test_every.py::test_conforms[right-weighting.positive]",
        "FAILED test_strict.py::test_conforms[right-weighting.pure]",
    ], done.stdout + done.stderr
    assert xfailed == [
        f"XFAIL test_{name}.py::test_conforms[wrong-weighting.positive]"
        for name in ("every", "sign", "strict")
    ]
    assert "2 failed, 31 passed, 18 skipped, 6 deselected, 3 xfailed" in lines[-1]
    assert any("learns nothing: it has no state" in line for line in lines)


# --- without pytest and Hypothesis ---------------------------------------------------------------


@pytest.mark.process
@pytest.mark.slow
def test_needs_neither_pytest_nor_hypothesis(tmp_path: Path) -> None:
    script = """
import sys
sys.modules["pytest"] = sys.modules["hypothesis"] = None
from testbed.cli import app
sys.argv = ["testbed", "check", "lognormal", "--json"]
app.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)["outcomes"]
    assert {one["status"] for one in outcomes} == {"passed"}


def test_names_are_complete() -> None:
    for name in testbed.testing.__all__:
        assert getattr(testbed.testing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'strategy'"):
        testbed.testing.strategy  # noqa: B018


# --- plugin --------------------------------------------------------------------------------------


def trace() -> tuple[object, ...]:
    return (
        list(testbed.ext.__path__),
        {name for name in sys.modules if name.startswith("testbed.ext")},  # others load lazily
        default_registry.cache_info().currsize,
        id(default_registry()),
    )


@pytest.mark.process
@pytest.mark.slow
def test_plugin_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "velocity_plugin.py"
    file.write_text(FLOW)
    before = trace()
    with plugin(file) as registry:
        p = registry.parameterization("velocity")
        assert registry.source(p).origin == str(file)
        assert "testbed.ext.velocity_plugin" in sys.modules
        check_component(p, registry=registry)
    assert trace() == before
    file.write_text(FLOW.replace("out=-t", "out=t"))
    with plugin(str(file)) as registry:
        assert float(registry.parameterization("velocity").coefficients(1.0).out) > 0
    assert trace() == before


@pytest.mark.process
@pytest.mark.slow
def test_plugin_from_components_and_modules() -> None:
    before = trace()
    module = types.ModuleType("a_plugin_of_a_test")

    @testbed.hookimpl
    def testbed_losses() -> list[testbed.Loss]:
        return [testbed.Loss("doubled", lambda a, b: 2 * (a - b) ** 2)]

    module.testbed_losses = testbed_losses  # type: ignore[attr-defined]
    with plugin(RIGHT, WRONG, module) as registry:
        assert registry.weighting("right")(torch.ones(2)).tolist() == [1, 1]
        assert registry.loss("doubled").name == "doubled"
        assert registry.weighting("edm").name == "edm"
        # In no file: other processes get them pickled.
        check_component(registry.weighting("right"), registry=registry)
    assert trace() == before


@pytest.mark.slow
def test_plugin_leaves_no_trace_of_a_failure(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import testbed\n1 / 0\n")
    before = trace()
    with pytest.raises(PluginError, match="division by zero"), plugin(tmp_path / "broken.py"):
        pass
    with (
        pytest.raises(PluginError, match="registered twice"),
        plugin(testbed.Weighting("edm", unit)),
    ):
        pass
    with pytest.raises(RuntimeError, match="in the block"), plugin(RIGHT):
        raise RuntimeError("in the block")
    with pytest.raises(InputError, match="needs a module"), plugin():
        pass
    with pytest.raises(InputError, match="3 is no module"), plugin(3):  # type: ignore[arg-type]
        pass
    assert trace() == before


@pytest.mark.slow
def test_a_default_registry_born_in_the_block_dies_with_it() -> None:
    default_registry.cache_clear()
    with plugin(RIGHT):
        default_registry()
    assert default_registry.cache_info().currsize == 0
    default_registry()


# --- strategies ----------------------------------------------------------------------------------


@pytest.mark.slow
@given(c=strategies.cases(), p=strategies.parameterizations())
def test_strategies(c: testbed.testing.cases.Case, p: testbed.Parameterization) -> None:
    assert c.x0.shape == c.eps.shape == c.x.shape
    assert c.x0.dtype == c.eps.dtype == c.x.dtype == c.dtype
    assert c.sigma.ndim == 0 or c.sigma.shape == c.x0.shape[:1]
    assert bool((c.sigma > 0).all())
    assert 0.1 <= c.sigma_data <= 10
    assert p.target(c.x0, c.eps, c.sigma, sigma_data=c.sigma_data).shape == c.x0.shape


# --- testbed check -------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.slow
def test_check_a_file(tmp_path: Path) -> None:
    (tmp_path / "velocity_plugin.py").write_text(FLOW)
    done = run_here(tmp_path, "check", "velocity_plugin.py", "--suggest-claims")
    assert done.code == 0, done.out + done.err
    assert "parameterization 'velocity'" in done.out
    assert "parameterization.optimal_denoiser" in done.out
    assert "could also claim: boundary." in done.out
    assert "24 passed, 0 failed, 0 skipped" in done.out
    assert "Next: testbed explain velocity -p velocity_plugin.py" in done.out


@pytest.mark.slow
@pytest.mark.usefixtures("at_home")
def test_check_a_wrong_file(tmp_path: Path) -> None:
    (tmp_path / "velocity_plugin.py").write_text(FLOW.replace("out=-t", "out=t"))
    done = run_here(tmp_path, "check", "velocity_plugin.py", "--json")
    assert done.code == 1
    found = json.loads(done.out)["outcomes"]
    bad = {one["check"]: one["message"] for one in found if one["status"] == "failed"}
    assert set(bad) == {
        f"parameterization.{name}" for name in ("stated_target", "optimal_denoiser", "tweedie")
    }
    assert "times its bound" in bad["parameterization.optimal_denoiser"]
    assert all({"subject", "law", "seconds"} <= set(one) for one in found)


@pytest.mark.usefixtures("at_home")
def test_check_a_name(tmp_path: Path) -> None:
    done = run_here(tmp_path, "check", "huber", "--suggest-claims")
    assert done.code == 0
    assert "loss 'huber'" in done.out
    assert "No further claim holds." in done.out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import testbed\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import testbed\nx = 1\n", "implements no hook"),
        ("def f(:\n", "SyntaxError"),
        (
            FLOW.replace("def scaling(sigma)", "def scaling(sigma, gamma)"),
            "'gamma' is not supplied",
        ),
        (
            "import testbed\n@testbed.hookimpl\ndef testbed_losses():\n    return []\n",
            "registers no component",
        ),
    ],
)
def test_check_a_broken_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    done = run_here(tmp_path, "check", "mine.py")
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.slow
@pytest.mark.usefixtures("at_home")
def test_check_a_name_with_options(tmp_path: Path) -> None:
    done = run_here(tmp_path, "check", '{name = "min_snr", gamma = 3}')
    assert done.code == 0, done.out + done.err
    assert "every law was checked with gamma = 4.5; with gamma = 1.5 as well" in done.out
    (tmp_path / "velocity_plugin.py").write_text(FLOW)
    words = ('{name = "velocity"}', "-p", "velocity_plugin.py")
    done = run_here(tmp_path, "check", *words)
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            '{name = "min_snr", gama = 3}',
            "weighting 'min_snr': Unknown option 'gama'. Did you mean",
        ),
        ('{name = "min_snr", gamma = "x"}', "option gamma = 'x' must be a number"),
        ('{name = "min_snrr"}', "Unknown component 'min_snrr'. Did you mean 'min_snr'"),
        ("{gamma = 3}", 'has no name: expected a name, or a table as in a study file: {name = "'),
        ("{name = ", "cannot be read as TOML"),
    ],
)
@pytest.mark.parametrize("command", ["check", "explain"])
def test_a_table_that_means_nothing(command: str, table: str, message: str, tmp_path: Path) -> None:
    done = run_here(tmp_path, command, table)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_explain_a_name_with_options(tmp_path: Path) -> None:
    done = run_here(tmp_path, "explain", '{name = "min_snr", gamma = 3}')
    assert done.code == 0, done.out + done.err
    assert "options: gamma = 3.0" in done.out
    assert "--out min_snr.svg" in done.out


def test_check_what_is_not_there(tmp_path: Path) -> None:
    done = run_here(tmp_path, "check", "no.py")
    assert (done.code, "no such file" in done.err) == (2, True)
    done = run_here(tmp_path, "check", "edn")
    assert done.code == 2
    assert "Unknown component 'edn'. Did you mean 'edm'?" in done.err


def test_subjects_of_a_name() -> None:
    from testbed.testing.render import subjects

    assert {one.axis for one in subjects("edm", default_registry())} == {
        "parameterization",
        "weighting",
        "loss",
        "recipe",
    }
    bundled = ROOT / "plugins/eps.py"
    assert {one.name for one in subjects(str(bundled), default_registry())} == {"eps", "ddpm"}
    with pytest.raises(UnknownName, match="Unknown component"):
        subjects("nothing", default_registry())


@pytest.mark.process
@pytest.mark.slow
def test_a_file_of_the_folder_is_no_module_of_the_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pandas imports `bottleneck` where there is one."""
    (tmp_path / "bottleneck.py").write_text("raise RuntimeError('the folder is on the path')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    edm = default_registry().weighting("edm")
    (value, _) = Context.of([edm]).courier.answer(edm)
    assert value.shape == (65,)


def test_a_folder_that_a_module_is_in_stays_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from testbed.testing.processes import _search_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert str(tmp_path) not in _search_path([])
    (tmp_path / "a_module_of_a_folder.py").write_text("x = 1\n")
    import importlib

    importlib.import_module("a_module_of_a_folder")
    monkeypatch.delitem(sys.modules, "a_module_of_a_folder", raising=False)
    sys.modules["a_module_of_a_folder"] = importlib.import_module("a_module_of_a_folder")
    assert str(tmp_path) in _search_path(["a_module_of_a_folder"])
    del sys.modules["a_module_of_a_folder"]


@pytest.mark.process
@pytest.mark.slow
def test_context_serves_one_process_for_all() -> None:
    context = Context.of([RIGHT, WRONG])
    assert context.registry is default_registry()
    first = context.courier.answer(RIGHT)
    assert context.courier.answer(RIGHT) is first
