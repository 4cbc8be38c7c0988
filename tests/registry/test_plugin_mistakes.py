"""What the author of a plugin gets wrong: one line that names the component, the mistake, where."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_line import run_here

import testbed
from testbed.errors import ComponentError, InputError
from testbed.testing import CheckFailed, behaviour, iter_checks, render
from testbed.testing.rounding import Worst

HEAD = '"""A mistake."""\n\nimport math\n\nimport torch\n\nimport testbed\n\n\n'
HOOK = """

@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(
        "mine",
        scaling=scaling,
        recipe=testbed.Recipe(density="lognormal", weighting="edm"),
        noise_kind="log_sigma",
        reference="a test",
        singular=(math.inf,),
        claims=("unit_input",),
    )
"""
BODY = """one = torch.ones_like(sigma)
    c_in = 1 / torch.sqrt(sigma**2 + sigma_data**2)
    return testbed.Coefficients(one, -sigma, c_in, torch.log(sigma) / 4)"""
RIGHT = "a, b = testbed.Coefficients(1, 1, 1, 1)[:2]\n    " + BODY
FOUR = "testbed.Coefficients(skip, out, in_, noise)"
LIKE = "a tensor shaped like sigma"


def scaled(body: str) -> str:
    """A plugin file whose scaling has this body."""
    return f"{HEAD}def scaling(sigma, sigma_data):\n    {body}\n{HOOK}"


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process, which takes seconds, where it is not the matter."""
    monkeypatch.setattr(behaviour, "equal_elsewhere", lambda component, context: "not asked")


# --- a scaling that returns the wrong thing -------------------------------------------------------

SCALINGS = {
    "a dict": ("return {'skip': 1}", f"scaling must return {FOUR}, got dict."),
    "too few": ("return sigma, sigma, sigma", f"scaling must return {FOUR}, got a tuple of 3."),
    "nothing": ("pass", f"scaling must return {FOUR}, got None."),
    "one tensor": ("return sigma", f"scaling must return {FOUR}, got a tensor of shape (9,)."),
    "a word among them": (
        "return sigma, '1', sigma, sigma",
        f"scaling must return c_out, {LIKE}, or a number, got '1'.",
    ),
    "another shape": (
        "return sigma, sigma, torch.ones(3), sigma",
        f"scaling must return c_in, {LIKE}, (9,), got a tensor of shape (3,).",
    ),
    "the name in formulas": (
        "return testbed.Coefficients(skip=sigma, out=sigma, c_in=sigma, noise=sigma)",
        "scaling raised TypeError: Coefficients.__new__() got an unexpected keyword argument "
        "'c_in'; c_in is called in_ (mine.py, line 11)",
    ),
    "a name that is not there": (
        "return np.ones(3)",
        "scaling raised NameError: name 'np' is not defined (mine.py, line 11)",
    ),
    "a helper that raises": (
        "return {}[torch.log(sigma).sum() and 'c']",
        "scaling raised KeyError: 'c' (mine.py, line 11)",
    ),
}
COMMANDS = {
    "check": ("check", "mine.py"),
    "explain": ("explain", "mine.py"),
    "audit": ("audit", "mine", "-p", "mine.py"),
    "plan": ("plan", "default", "-p", "mine.py", "--set", 'grid.parameterization=["mine","edm"]',
             "--only", "mixture"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("mistake", SCALINGS)
def test_a_wrong_scaling_is_one_line(tmp_path: Path, mistake: str, command: str) -> None:
    body, said = SCALINGS[mistake]
    (tmp_path / "mine.py").write_text(scaled(body))
    done = run_here(tmp_path, *COMMANDS[command])
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith("testbed: ")
    said = re.escape(said).replace(r"\(9,\)", r"\((?:\d+,)?\)")
    assert re.search(rf"parameterization 'mine': {said}$", done.err.rstrip("\n")), done.err


@pytest.mark.process
@pytest.mark.slow
def test_a_right_one_is_shown_by_every_command(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(scaled(RIGHT))
    for words in COMMANDS.values():
        done = run_here(tmp_path, *words)
        assert (done.code, done.err) == (0, "")


def test_what_a_scaling_raises_is_kept_as_the_cause() -> None:
    def scaling(sigma: torch.Tensor) -> testbed.Coefficients:
        raise KeyError("c")

    with pytest.raises(ComponentError, match=r"'mine': scaling raised KeyError: 'c' \(test_plugin"):
        testbed.Parameterization("mine", scaling).coefficients(1.0)
    with pytest.raises(InputError) as caught:
        testbed.Parameterization("mine", scaling).denoise(torch.ones(1), torch.ones(1), 1.0)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("problem", [MemoryError, torch.OutOfMemoryError])
def test_too_little_memory_is_nobodys_mistake(problem: type[Exception]) -> None:
    def weighting(sigma: torch.Tensor) -> torch.Tensor:
        raise problem

    with pytest.raises(problem):
        testbed.Weighting("mine", weighting)(1.0)


def test_plain_numbers_are_the_same_at_every_level() -> None:
    p = testbed.Parameterization("mine", lambda sigma: testbed.Coefficients(1, 0.1, 3, sigma))
    found = p.coefficients(torch.ones(2, dtype=torch.float64))
    assert [list(c) for c in found] == [[1, 1], [0.1, 0.1], [3, 3], [1, 1]]
    w = testbed.Weighting("mine", lambda sigma: 0.1)
    assert w(torch.ones(2, dtype=torch.float64)).tolist() == [0.1, 0.1]


# --- the other functions --------------------------------------------------------------------------

X = torch.ones(4, 3, dtype=torch.float64)
S = torch.ones(4, dtype=torch.float64)


def right(sigma: torch.Tensor) -> testbed.Coefficients:
    return testbed.Coefficients(1, -sigma, 1, sigma)


def nothing(samples: Any, data: Any, generator: Any) -> None:
    return None


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "weighting, None": (
        lambda: testbed.Weighting("a", lambda sigma: None)(S),
        f"weighting 'a': function must return {LIKE}, or a number, got None.",
    ),
    "weighting, a word": (
        lambda: testbed.Weighting("a", lambda sigma: "1")(S),
        f"weighting 'a': function must return {LIKE}, or a number, got '1'.",
    ),
    "weighting, a shape": (
        lambda: testbed.Weighting("a", lambda sigma: sigma[:, None])(S),
        f"weighting 'a': function must return {LIKE}, (4,), got a tensor of shape (4, 1).",
    ),
    "loss, None": (
        lambda: testbed.Loss("a", lambda q_hat, q: None)(X, X),
        "loss 'a': function must return a tensor shaped like prediction, (4, 3), got None.",
    ),
    "loss, a mean": (
        lambda: testbed.Loss("a", lambda q_hat, q: (q_hat - q).mean())(X, X),
        "loss 'a': function must return a tensor shaped like prediction, (4, 3), got a tensor of "
        "shape ().",
    ),
    "density, a number": (
        lambda: testbed.Density("a", lambda u: 1.0, lambda sigma: sigma).sigma(S),
        "density 'a': icdf must return a tensor shaped like u, (), got 1.0.",
    ),
    "density, a pdf that raises": (
        lambda: testbed.Density("a", lambda u: u, lambda sigma: sigma.nothing).pdf_over_log_sigma(
            S
        ),
        "density 'a': pdf raised AttributeError: 'Tensor' object has no attribute 'nothing' "
        "(test_plugin_mistakes.py, line ",
    ),
    "target, a number": (
        lambda: testbed.Parameterization("a", right, target=lambda x0, eps: 0).target(X, X, S),
        "parameterization 'a': target must return a tensor shaped like x0, (4,), got 0.",
    ),
    "target, a sum": (
        lambda: testbed.Parameterization("a", right, target=lambda x0: x0.sum()).target(X, X, S),
        "parameterization 'a': target must return a tensor shaped like x0, (4,), got a tensor of "
        "shape ().",
    ),
    "denoise, a sum": (
        lambda: testbed.Parameterization(
            "a", target=lambda x0: x0, denoise=lambda F: F.sum(1)
        ).denoise(X, X, S),
        "parameterization 'a': denoise must return a tensor shaped like F, (4, 3), got a tensor of "
        "shape (4,).",
    ),
    "data set, a tensor": (
        lambda: testbed.Dataset("a", lambda: X)(),
        "dataset 'a': build must return testbed.Data, got a tensor of shape (4, 3).",
    ),
    "network, None": (
        lambda: testbed.Network("a", lambda: None, noise={})((2,), 0, 0),  # type: ignore[arg-type,return-value]
        "network 'a': build must return a torch.nn.Module, got None.",
    ),
    "schedule, a list": (
        lambda: testbed.Schedule("a", lambda steps: [1.0, 0.0])(1, 0.1, 1.0),  # type: ignore[arg-type,return-value]
        "schedule 'a': levels must return a tensor of 2 levels for 1 steps, got a list of 2.",
    ),
    "schedule, a level too many": (
        lambda: testbed.Schedule("a", lambda steps: torch.zeros(steps + 2))(3, 0.1, 1.0),
        "schedule 'a': levels must return a tensor of 4 levels for 3 steps, got a tensor of shape "
        "(5,).",
    ),
    "schedule, an index": (
        lambda: testbed.Schedule("a", lambda steps: S[steps])(9, 0.1, 1.0),
        "schedule 'a': levels raised IndexError: index 9 is out of bounds for dimension 0 with "
        "size 4 (test_plugin_mistakes.py, line ",
    ),
    "table, a number": (
        lambda: testbed.NoiseTable("a", lambda: 3).bound({}),  # type: ignore[arg-type,return-value]
        "table 'a': levels must return a tensor of levels (n,), got 3.",
    ),
    "table, a division": (
        lambda: testbed.NoiseTable("a", lambda n=0: S / (1 // n)).bound({}),
        "table 'a': levels raised ZeroDivisionError: integer division or modulo by zero "
        "(test_plugin_mistakes.py, line ",
    ),
    "noise, a number": (
        lambda: testbed.Noise("a", lambda shape: shape[0]).shape_of_z((4, 3)),  # type: ignore[arg-type,return-value]
        "noise 'a': z_shape must return 2 numbers, (4, 3) with ones in it, got 4.",
    ),
    "guidance, a number": (
        lambda: testbed.Guidance("a", lambda scale=2.0: scale).build(),
        "guidance 'a': method must return an object with classes, misfits and denoiser, got 2.0.",
    ),
    "guidance, an option": (
        lambda: testbed.Guidance("a", lambda scale=2.0: {}[scale]).build(),
        "guidance 'a': method raised KeyError: 2.0 (test_plugin_mistakes.py, line ",
    ),
    "metric, None": (
        lambda: testbed.Metric("a", nothing)(X, None, None),  # type: ignore[arg-type]
        "metric 'a': measure must return a number or a MetricValue, got None.",
    ),
}


@pytest.mark.parametrize("mistake", CALLS)
def test_a_wrong_value_is_named(mistake: str) -> None:
    call, said = CALLS[mistake]
    with pytest.raises(ComponentError) as caught:
        call()
    assert str(caught.value).startswith(said)


WEIGHTING = """
import testbed


def weight(sigma):
    return None


@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("mine", weight)
"""


@pytest.mark.slow
def test_a_weighting_without_a_return_is_one_line_in_a_plan(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WEIGHTING)
    grid = ("--set", 'grid.parameterization=["edm"]', "--set", 'grid.weighting=["mine","edm"]')
    done = run_here(tmp_path, "plan", "default", "-p", "mine.py", *grid, "--only", "mixture")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"weighting 'mine': function must return {LIKE}, or a number, got None." in done.err


# --- at import ------------------------------------------------------------------------------------

LOADING = {
    "an unknown hook": (
        HEAD + "@testbed.hookimpl\ndef testbed_weighting():\n    yield 1\n",
        "is broken: Unknown hook 'testbed_weighting'. Did you mean 'testbed_weightings'? Known: ",
    ),
    "return for yield": (
        scaled(RIGHT).replace("yield testbed", "return testbed"),
        "is broken: testbed_parameterizations must yield components, it returned a "
        "Parameterization: write `yield testbed.Parameterization(...)`.",
    ),
    "claim for claims": (
        scaled(RIGHT).replace("claims=", "claim="),
        "is broken: TypeError: Parameterization.__init__() got an unexpected keyword argument "
        "'claim'; did you mean 'claims'? It takes name, scaling, target, ",
    ),
    "a claim that is none": (
        scaled(RIGHT).replace('"unit_input"', '"unit_inputs"'),
        "is broken: parameterization 'mine': Unknown claim 'unit_inputs'. Did you mean",
    ),
    "a colon forgotten": (
        scaled(RIGHT).replace("sigma_data):", "sigma_data)"),
        "is broken: SyntaxError: expected ':' (mine.py, line 10): def scaling(sigma, sigma_data)\n",
    ),
    "a name at the top": (
        scaled(RIGHT).replace("scaling=scaling", "scaling=scalling"),
        "is broken: NameError: name 'scalling' is not defined (mine.py, line 21)\n",
    ),
}


@pytest.mark.parametrize("mistake", LOADING)
def test_a_file_that_cannot_be_loaded(tmp_path: Path, mistake: str) -> None:
    source, said = LOADING[mistake]
    (tmp_path / "mine.py").write_text(source)
    done = run_here(tmp_path, "check", "mine.py")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert said in done.err
    assert "PluginError" not in done.err
    assert "InputError" not in done.err


@pytest.mark.parametrize("command", ["check", "explain"])
def test_a_file_that_is_not_there(tmp_path: Path, command: str) -> None:
    (tmp_path / "consistency.py").write_text("")
    done = run_here(tmp_path, command, "p2.py")
    assert (done.code, done.err) == (2, "testbed: p2.py: no such file.\n")
    done = run_here(tmp_path, command, "./consistent.py")
    said = "testbed: ./consistent.py: no such file. Did you mean 'consistency.py'?\n"
    assert (done.code, done.err) == (2, said)


@pytest.mark.parametrize("command", ["check", "explain"])
def test_a_name_that_is_not_there_may_be_in_a_file(tmp_path: Path, command: str) -> None:
    done = run_here(tmp_path, command, "halfhalf")
    assert done.code == 2
    assert done.err.endswith(" Is it in a file? Add -p FILE.\n")


# --- explain a file -------------------------------------------------------------------------------


@pytest.mark.slow
def test_explain_takes_a_file(tmp_path: Path) -> None:
    (tmp_path / "both.py").write_text(scaled(RIGHT) + WEIGHTING.replace("None", "1 / sigma"))
    done = run_here(tmp_path, "explain", "both.py", "--out", "both.svg")
    assert (done.code, done.err) == (0, "")
    assert re.findall(r"^(\w+ 'mine')  \(file", done.out, flags=re.MULTILINE) == [
        "parameterization 'mine'",
        "weighting 'mine'",
    ]
    assert (tmp_path / "both.svg").is_file()


def test_a_file_without_anything_to_explain(tmp_path: Path) -> None:
    source = HEAD + "@testbed.hookimpl\ndef testbed_datasets():\n"
    source += "    yield testbed.Dataset('mine', lambda: None)\n"
    (tmp_path / "mine.py").write_text(source)
    done = run_here(tmp_path, "explain", "mine.py")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "mine.py registers none of what is explained: parameterization, weighting" in done.err


# --- what check prints ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("at_home")
def test_what_fails_alike_is_one_row(tmp_path: Path) -> None:
    """Fine around sigma = 1, where a component is tried first, and not at the ends."""
    body = "if sigma_data > 5: raise ValueError('too large')\n    " + BODY
    (tmp_path / "mine.py").write_text(scaled(body))
    done = run_here(tmp_path, "check", "mine.py")
    text = " ".join(done.out.split())
    assert done.code == 1
    more = re.findall(
        r"scaling raised ValueError: too large \(mine\.py, line 11\); so did (\d+) more\.", text
    )
    assert len(more) == 1
    failed = re.search(r"(\d+) failed,", text)
    assert failed
    assert int(failed[1]) == int(more[0]) + 1 > 5
    assert done.out.count("too large") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("at_home")
def test_check_says_what_it_cannot_see_and_what_could_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(scaled(RIGHT))
    done = run_here(tmp_path, "check", "mine.py")
    assert done.code == 0
    assert "Note: parameterization 'mine': no target is stated: the formulas are not held" in (
        done.out
    )
    assert (
        "parameterization 'mine' could also claim: unit_target, homogeneous, boundary." in done.out
    )
    stated = scaled(RIGHT).replace(
        "        scaling=scaling,\n",
        "        scaling=scaling,\n        target=lambda x0, eps: eps,\n",
    )
    every = 'claims=("unit_target", "unit_input", "homogeneous", "boundary")'
    (tmp_path / "mine.py").write_text(stated.replace('claims=("unit_input",)', every))
    done = run_here(tmp_path, "check", "mine.py")
    assert done.code == 0, done.out
    for word in ("Note:", "could also claim", "No further claim"):
        assert word not in done.out


def factor(found: torch.Tensor, wanted: torch.Tensor) -> str:
    with pytest.raises(CheckFailed) as caught:
        Worst().compare("F", found, wanted, 0.0)
    return str(caught.value)


def test_a_constant_factor_is_named() -> None:
    wanted = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert factor(-wanted, wanted).endswith("expected 1) (= -1 times).")
    assert "(= 2 times)" in factor(2 * wanted, wanted)
    assert "times)" not in factor(wanted**2, wanted)
    assert "times)" not in factor(wanted + 1, wanted)
    assert "times)" not in factor(wanted * 0, wanted)
    assert "times)" not in factor(-wanted[:1], wanted[:1])


# --- what is declared -----------------------------------------------------------------------------


def law(component: testbed.Parameterization, name: str) -> str:
    (check,) = [one for one in iter_checks(component) if one.id == f"parameterization.{name}"]
    with pytest.raises(CheckFailed) as caught:
        check(component)
    return caught.value.numbers


@pytest.mark.parametrize(
    ("skip", "out", "declared", "said"),
    [
        (
            lambda s: 1.0,
            lambda s: -s,
            (),
            "at inf |c_out F*| grows without bound: write singular=(math.inf,), or",
        ),
        (
            lambda s: 1.0,
            lambda s: -torch.ones_like(s),
            (),
            "at 0 F* vanishes; at inf F* grows without bound: write singular=(0.0, math.inf), or",
        ),
        (
            lambda s: 1.0,
            lambda s: -(s**2),
            (),
            "at 0 F* grows without bound; at inf F* vanishes: write singular=(0.0, math.inf), or",
        ),
        (
            lambda s: 1.0,
            lambda s: -s,
            (0.0, float("inf")),
            "at 0 F* and |c_out F*| have finite limits, and F*'s is not 0: write "
            "singular=(math.inf,) (declared: (0.0, math.inf)).",
        ),
    ],
)
def test_the_quantity_that_makes_a_limit_singular_is_named(
    skip: Callable[[torch.Tensor], Any],
    out: Callable[[torch.Tensor], torch.Tensor],
    declared: tuple[float, ...],
    said: str,
) -> None:
    p = testbed.Parameterization(
        "mine",
        lambda sigma: testbed.Coefficients(skip(sigma), out(sigma), 1.0, sigma),
        singular=declared,
    )
    numbers = law(p, "singular")
    assert re.sub(r" \([^()]* at sigma = [^()]*\)", "", numbers).startswith(said)
    assert declared or numbers.count(" at sigma = 1e") >= 1


def test_a_reference_that_still_says_edit_is_told() -> None:
    p = testbed.Parameterization("mine", right, reference="EDIT: the paper and the equation")
    (note,) = (one for one in render.notes([p]) if "reference" in one)
    assert note.endswith("the paper and the equation': say where the formulas are from.")
