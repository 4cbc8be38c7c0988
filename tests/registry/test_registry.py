"""The registry: discovery, look-up by name, options, isolation of broken plugins, provenance."""

import hashlib
import importlib
import inspect
import itertools
import os
import pickle
import shlex
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import testbed
import testbed.ext
from testbed.errors import InputError, PluginError, UnknownName
from testbed.registry import HOOKS, Registry

DRIFT = '''
"""Rectified-flow velocity u = eps - x0, mapped to x = x0 + sigma * eps."""
import testbed

def drift(sigma):
    a, t = 1 / (1 + sigma), sigma / (1 + sigma)
    return testbed.Coefficients(skip=a, out=-t, in_=a, noise=t)

@testbed.hookimpl
def testbed_parameterizations():
    yield testbed.Parameterization(name="drift", scaling=drift, reference="arXiv:2209.03003")
'''

FIVE = ["edm", "eps", "score", "v", "x0"]


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plugin folders, plugin modules and the plugin path are as they were after each test."""
    monkeypatch.delenv("TESTBED_PLUGIN_PATH", raising=False)
    path, modules = list(testbed.ext.__path__), set(sys.modules)
    yield
    testbed.ext.__path__[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("testbed.ext."):
            del sys.modules[name]


def put(file: Path, source: str) -> Path:
    """A plugin file; missing folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(source), encoding="utf-8")
    return file


def weighting(name: str, body: str = "return sigma", arguments: str = "sigma") -> str:
    """The source of a plugin with one weighting."""
    return (
        f"import testbed\n\ndef function({arguments}):\n    {body}\n\n"
        "@testbed.hookimpl\ndef testbed_weightings():\n"
        f'    yield testbed.Weighting("{name}", function)\n'
    )


# --- the public interface ---------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["parameterization", "weighting", "loss"])
def test_the_five_are_registered_with_a_weighting_and_a_loss_of_their_name(axis: str) -> None:
    assert set(FIVE) <= set(Registry().names(axis))


def test_the_bundled_parameterizations() -> None:
    more = ["flow", "minus_eps", "trigflow"]
    assert Registry().names("parameterization") == sorted([*FIVE, *more])


@pytest.mark.parametrize(
    ("axis", "names"),
    [
        ("weighting", ["min_snr", "p2", "sigmoid", "soft_min_snr", "truncated_snr", "unit"]),
        ("loss", ["huber", "l1", "l2"]),
        ("density", ["cosine", "ddpm", "logit_normal", "lognormal", "loguniform"]),
        (
            "dataset",
            [
                "array",
                "digits",
                "fashion_mnist",
                "gaussian",
                "images",
                "mixture",
                "moons",
                "ring",
                "swiss_roll",
            ],
        ),
        ("network", ["mlp"]),
        ("sampler", ["euler", "heun"]),
        ("metric", ["energy", "mmd"]),
    ],
)
def test_what_is_bundled_is_found_by_name(axis: str, names: list[str]) -> None:
    registry = Registry()
    for name in names:
        found = getattr(registry, axis)(name)
        assert found.name == name
        assert isinstance(found, getattr(testbed, axis.capitalize()))


@pytest.mark.parametrize(("kind", "hook"), list(HOOKS.items()))
def test_an_axis_has_a_singular_and_a_plural(kind: type, hook: str) -> None:
    registry = Registry()
    names = registry.names(kind.axis)
    assert names
    assert names == registry.names(hook.removeprefix("testbed_"))


def test_names_are_sorted(tmp_path: Path) -> None:
    put(tmp_path / "a.py", weighting("zebra"))
    put(tmp_path / "z.py", weighting("ape"))
    names = Registry(plugin_dirs=[tmp_path]).names("weightings")
    assert names == sorted(names)
    assert {"ape", "zebra"} <= set(names)


def test_nothing_bundled_fails() -> None:
    assert Registry().failures == []


def test_names_belong_to_one_registry(tmp_path: Path) -> None:
    put(tmp_path / "drift.py", DRIFT)
    assert "drift" in Registry(plugin_dirs=[tmp_path]).names("parameterization")
    assert "drift" not in Registry().names("parameterization")


# --- unknown words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "typo", "meant"),
    [
        ("parameterization", "epsilon", "eps"),
        ("weighting", "minsnr", "min_snr"),
        ("loss", "hubr", "huber"),
        ("density", "log_normal", "lognormal"),
        ("dataset", "digit", "digits"),
        ("network", "mpl", "mlp"),
        ("sampler", "eular", "euler"),
        ("metric", "enegry", "energy"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(axis: str, typo: str, meant: str) -> None:
    with pytest.raises(UnknownName, match=f"Unknown {axis} '{typo}'.*Did you mean '{meant}'"):
        getattr(Registry(), axis)(typo)


def test_a_loss_lpips_is_refused_with_what_to_do_and_may_be_a_plugins(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"^No loss 'lpips'\. A loss here is elementwise"):
        Registry().loss("lpips")
    file = tmp_path / "mine.py"
    file.write_text(
        "import testbed\n"
        "@testbed.hookimpl\n"
        "def testbed_losses():\n"
        "    yield testbed.Loss('lpips', lambda prediction, target: (prediction - target).abs())\n"
    )
    assert Registry([str(file)]).loss("lpips").name == "lpips"


def test_an_unknown_name_far_from_all_gets_the_list() -> None:
    with pytest.raises(UnknownName, match="Known: edm, eps, flow, minus_eps, score") as caught:
        Registry().parameterization("qqqqqq")
    assert "Did you mean" not in str(caught.value)


def test_an_unknown_axis_gets_the_nearest_one() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'parameterization'"):
        Registry().names("parametrization")


def test_an_unknown_option_gets_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"'min_snr'.*'gama'.*Did you mean 'gamma'"):
        Registry().weighting("min_snr", gama=5)


@pytest.mark.parametrize(
    ("space", "meant"), [("eps0", "eps"), ("scores", "score"), ("Flow", "flow")]
)
def test_an_unknown_space_gets_the_nearest_one(space: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"'{space}'.*Did you mean '{meant}'"):
        Registry().loss("l2", space=space)


def test_an_unknown_space_gets_the_list_with_F_in_it() -> None:
    with pytest.raises(InputError, match="Known: F, eps, flow, score, v, x0"):
        Registry().loss("l2", space="nowhere")


def test_every_space_is_accepted() -> None:
    registry = Registry()
    for space in ("F", "eps", "flow", "score", "v", "x0"):
        assert registry.loss("l1", space=space).space == space


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("testbed_parametrizations", "testbed_parameterizations"),
        ("testbed_weighting", "testbed_weightings"),
        ("testbed_study_finish", "testbed_study_finished"),
    ],
)
def test_an_unknown_hook_gets_the_nearest_one(tmp_path: Path, typo: str, meant: str) -> None:
    put(tmp_path / "drift.py", DRIFT.replace("testbed_parameterizations", typo))
    (failure,) = Registry(plugin_dirs=[tmp_path]).failures
    assert f"Unknown hook '{typo}'. Did you mean '{meant}'" in failure.error


def test_an_unknown_hook_beside_a_known_one_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "both.py", weighting("mine") + DRIFT.replace("zations", "zation"))
    registry = Registry(plugin_dirs=[tmp_path])
    assert "Did you mean 'testbed_parameterizations'" in registry.failures[0].error
    assert "mine" not in registry.names("weighting")


# --- options ----------------------------------------------------------------------------------


def test_an_option_left_out_has_its_default() -> None:
    assert Registry().weighting("min_snr").options == {"gamma": 5.0}


def test_every_option_is_resolved() -> None:
    found = Registry().density("lognormal", mean=0.0)
    assert found.options == {"mean": 0.0, "std": 1.2, "sigma_min": 0.002, "sigma_max": 80.0}


def test_an_option_reaches_the_function() -> None:
    found = Registry().weighting("min_snr", gamma=2.0)
    assert float(found(0.01)) == 2.0


def test_options_of_one_look_up_do_not_reach_the_next() -> None:
    registry = Registry()
    registry.weighting("min_snr", gamma=2.0)
    assert registry.weighting("min_snr").options == {"gamma": 5.0}


def test_an_integer_is_taken_for_a_float() -> None:
    value = Registry().weighting("min_snr", gamma=3).options["gamma"]
    assert (value, type(value)) == (3.0, float)


def test_a_list_is_taken_for_a_tuple() -> None:
    assert Registry().network("mlp", frequencies=[1, 2]).options["frequencies"] == (1, 2)


@pytest.mark.parametrize(
    ("axis", "name", "options"),
    [
        ("weighting", "min_snr", {"gamma": True}),
        ("weighting", "min_snr", {"gamma": "5"}),
        ("weighting", "min_snr", {"gamma": None}),
        ("density", "ddpm", {"n": 10.0}),
        ("density", "ddpm", {"n": True}),
        ("network", "mlp", {"frequencies": 3.0}),
        ("loss", "l2", {"space": 1}),
    ],
)
def test_an_option_of_another_type_is_refused(axis: str, name: str, options: dict) -> None:
    (option,) = options
    with pytest.raises(InputError, match=f"option {option} = .*must be a"):
        getattr(Registry(), axis)(name, **options)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_a_density_cut_to_nothing_is_refused(low: float, high: float) -> None:
    with pytest.raises(InputError, match="0 < sigma_min < sigma_max"):
        Registry().density("lognormal", sigma_min=low, sigma_max=high)


# --- a whole plugin in one file ---------------------------------------------------------------


def test_a_plugin_file_in_a_plugin_dir_has_its_coefficients(tmp_path: Path) -> None:
    put(tmp_path / "drift.py", DRIFT)
    drift = Registry(plugin_dirs=[tmp_path]).parameterization("drift")
    assert [float(c) for c in drift.coefficients(3.0)] == [0.25, -0.75, 0.25, 0.75]


def test_a_plugin_file_takes_part_in_conversions(tmp_path: Path) -> None:
    put(tmp_path / "drift.py", DRIFT)
    drift = Registry(plugin_dirs=[tmp_path]).parameterization("drift")
    # Small integers and powers of two: every step is exact.
    x0, eps, sigma = torch.tensor([[3.0, -1.0]]), torch.tensor([[-2.0, 4.0]]), 1.0
    x = x0 + sigma * eps
    assert torch.equal(testbed.convert(eps - x0, drift, "x0", x=x, sigma=sigma), x0)
    assert torch.equal(testbed.convert(x0, "x0", drift, x=x, sigma=sigma), eps - x0)


def test_the_plugin_path_variable_is_a_list_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "one" / "a.py", weighting("first"))
    put(tmp_path / "two" / "b.py", weighting("second"))
    folders = [str(tmp_path / "one"), "", str(tmp_path / "two")]
    monkeypatch.setenv("TESTBED_PLUGIN_PATH", os.pathsep.join(folders))
    assert {"first", "second"} <= set(Registry().names("weighting"))


def test_a_plugin_dir_that_does_not_exist_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="nowhere does not exist or is not a folder"):
        Registry(plugin_dirs=[tmp_path / "nowhere"])


def test_a_folder_named_twice_is_loaded_once(tmp_path: Path) -> None:
    put(tmp_path / "sub" / "drift.py", DRIFT)
    (tmp_path / "other").mkdir()
    spellings = [tmp_path / "sub", tmp_path / "other" / ".." / "sub"]
    registry = Registry(plugin_dirs=spellings)
    assert [source.plugin for source in registry.provenance].count("drift") == 1


def test_a_file_that_is_linked_to_is_loaded_once(tmp_path: Path) -> None:
    file = put(tmp_path / "real" / "drift.py", DRIFT)
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    registry = Registry(plugins=[str(file)], plugin_dirs=[tmp_path / "link"])
    assert [source.plugin for source in registry.provenance].count("drift") == 1


# --- -p ---------------------------------------------------------------------------------------


def test_p_loads_a_file(tmp_path: Path) -> None:
    file = put(tmp_path / "drift.py", DRIFT)
    assert Registry(plugins=[str(file)]).parameterization("drift").name == "drift"


def test_p_loads_a_file_that_is_already_there_once(tmp_path: Path) -> None:
    file = put(tmp_path / "drift.py", DRIFT)
    registry = Registry(plugins=[str(file), str(file)], plugin_dirs=[tmp_path])
    assert [source.plugin for source in registry.provenance].count("drift") == 1


@pytest.mark.slow
def test_p_loads_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "rectified_flow_plugin.py", DRIFT)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        registry = Registry(plugins=["rectified_flow_plugin"])
    finally:
        sys.modules.pop("rectified_flow_plugin", None)
    drift = registry.parameterization("drift")
    assert registry.source(drift).kind == "module"


def test_p_with_a_missing_file_is_fatal_and_names_the_nearest(tmp_path: Path) -> None:
    put(tmp_path / "drift.py", DRIFT)
    with pytest.raises(PluginError, match=r"drif\.py: no such file\. Did you mean .*drift\.py"):
        Registry(plugins=[str(tmp_path / "drif.py")])


def test_p_with_a_missing_module_is_fatal() -> None:
    with pytest.raises(PluginError, match="no_such_module_anywhere"):
        Registry(plugins=["no_such_module_anywhere"])


def test_p_with_a_broken_file_is_fatal(tmp_path: Path) -> None:
    file = put(tmp_path / "broken.py", "import testbed\n1 / 0\n")
    with pytest.raises(PluginError, match="ZeroDivisionError") as caught:
        Registry(plugins=[str(file)])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_p_with_a_broken_file_that_was_also_discovered_is_fatal(tmp_path: Path) -> None:
    file = put(tmp_path / "broken.py", "import testbed\n1 / 0\n")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        Registry(plugins=[str(file)], plugin_dirs=[tmp_path])


@pytest.mark.parametrize("name", ["eps", "weightings", "mlp"])
def test_p_no_leaves_a_plugin_out(name: str) -> None:
    registry = Registry(plugins=[f"no:{name}"])
    assert name not in [source.plugin for source in registry.provenance]
    assert name in [source.plugin for source in Registry().provenance]


def test_p_no_leaves_its_components_out() -> None:
    registry = Registry(plugins=["no:eps"])
    for axis in ("parameterization", "weighting", "loss"):
        assert "eps" not in registry.names(axis)


def test_p_no_leaves_a_broken_plugin_out(tmp_path: Path) -> None:
    put(tmp_path / "broken.py", "import testbed\n1 / 0\n")
    assert Registry(plugins=["no:broken"], plugin_dirs=[tmp_path], strict=True).failures == []


def test_p_no_with_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(PluginError, match=r"no:losse.*Did you mean 'losses'"):
        Registry(plugins=["no:losse"])


def test_p_no_with_an_unknown_name_gets_the_nearest_broken_one(tmp_path: Path) -> None:
    put(tmp_path / "shattered.py", "import testbed\n1 / 0\n")
    with pytest.raises(PluginError, match="Did you mean 'shattered'"):
        Registry(plugins=["no:shatered"], plugin_dirs=[tmp_path])


# --- entry points -----------------------------------------------------------------------------


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str = "installed_flow"
) -> None:
    """A distribution `flow-plugin` 1.2.3 with one entry point in group `testbed`."""
    put(folder / "installed_flow.py", source)
    info = folder / "flow_plugin-1.2.3.dist-info"
    put(info / "METADATA", "Metadata-Version: 2.1\nName: flow-plugin\nVersion: 1.2.3\n")
    put(info / "entry_points.txt", f"[testbed]\nflowers = {target}\n")
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    # Set and taken away again: the module that the entry point imports goes with this test.
    monkeypatch.setitem(sys.modules, "installed_flow", None)
    monkeypatch.delitem(sys.modules, "installed_flow")


def test_an_entry_point_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, DRIFT)
    assert Registry().parameterization("drift").name == "drift"


def test_an_entry_point_has_its_distribution_as_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, DRIFT)
    registry = Registry()
    source = registry.source(registry.parameterization("drift"))
    assert (source.plugin, source.kind, source.origin, source.version) == (
        "flowers",
        "entry point",
        "installed_flow",
        "flow-plugin 1.2.3",
    )


def test_an_entry_point_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, DRIFT)
    assert "drift" not in Registry(plugins=["no:flowers"]).names("parameterization")


def test_a_broken_entry_point_is_kept_in_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, DRIFT, target="installed_flow:no_such_thing")
    (failure,) = Registry().failures
    assert (failure.plugin, failure.version) == ("flowers", "flow-plugin 1.2.3")
    assert "no_such_thing" in failure.error


# --- broken plugins ---------------------------------------------------------------------------

BROKEN = {
    "syntax error": ("def f(:\n", "SyntaxError"),
    "not UTF-8": ("word = '\udcff'\n", "SyntaxError"),
    "exception at import": ("import testbed\nraise RuntimeError('cold solder')\n", "cold solder"),
    "exit at import": ("import sys\nsys.exit(3)\n", "SystemExit"),
    "missing dependency": ("import no_such_module_anywhere\n", "no_such_module_anywhere"),
    "no hook": ("import testbed\n", "implements no hook"),
    "wrong type": (
        "import testbed\n@testbed.hookimpl\ndef testbed_weightings():\n    yield 'unit'\n",
        "testbed_weightings must yield testbed.Weighting, got 'unit'",
    ),
    "component of another axis": (
        "import testbed\n@testbed.hookimpl\ndef testbed_weightings():\n"
        "    yield testbed.Loss('mine', testbed.squared)\n",
        "testbed_weightings must yield testbed.Weighting",
    ),
    "nothing yielded": (
        "import testbed\n@testbed.hookimpl\ndef testbed_weightings():\n    pass\n",
        "testbed_weightings must yield components, it returned nothing: write `yield",
    ),
    "exception in the hook": (
        "import testbed\n@testbed.hookimpl\ndef testbed_weightings():\n"
        "    yield testbed.Weighting('good', lambda sigma: sigma)\n    raise KeyError('late')\n",
        "KeyError: 'late'",
    ),
    "hook with an argument": (
        "import testbed\n@testbed.hookimpl\ndef testbed_weightings(registry):\n    yield\n",
        "registry",
    ),
    "missing decorator": (
        weighting("mine").replace("@testbed.hookimpl\n", ""),
        "testbed_weightings lacks the decorator @testbed.hookimpl",
    ),
    "one missing decorator of two": (
        DRIFT + weighting("mine").replace("@testbed.hookimpl\n", ""),
        "testbed_weightings lacks the decorator @testbed.hookimpl",
    ),
    "unknown argument": (
        weighting("mine", arguments="sigma, gamma"),
        "argument 'gamma' is not supplied and has no default",
    ),
    "catch-all": (weighting("mine", arguments="sigma, **rest"), "takes anything"),
    "not a function": (weighting("mine").replace("function)", "3)"), "expected a function"),
    "name that is no identifier": (weighting("two words"), "must be an identifier"),
    "no scaling": (
        "import testbed\n@testbed.hookimpl\ndef testbed_parameterizations():\n"
        "    yield testbed.Parameterization('mine')\n",
        "needs a scaling, or target and denoise",
    ),
}


@pytest.fixture(params=list(BROKEN))
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder with a broken plugin between two good ones, and what the error must say."""
    source, says = BROKEN[request.param]
    put(tmp_path / "aaa.py", weighting("before"))
    (tmp_path / "broken.py").write_text(source, encoding="utf-8", errors="surrogateescape")
    put(tmp_path / "zzz.py", weighting("after"))
    return tmp_path, says


def test_a_broken_plugin_takes_no_other_down(broken: tuple[Path, str]) -> None:
    folder, _ = broken
    names = Registry(plugin_dirs=[folder]).names("weighting")
    assert set(names) == {*Registry().names("weighting"), "before", "after"}


def test_a_broken_plugin_is_recorded_with_its_traceback(broken: tuple[Path, str]) -> None:
    folder, says = broken
    file = folder / "broken.py"
    (failure,) = Registry(plugin_dirs=[folder]).failures
    assert (failure.plugin, failure.kind, failure.origin) == ("broken", "file", str(file))
    assert failure.version == hashlib.sha256(file.read_bytes()).hexdigest()
    assert says in failure.error
    assert failure.trace.startswith("Traceback (most recent call last)")
    assert failure.error.partition(":")[0] in failure.trace


def test_a_broken_plugin_is_not_among_the_loaded(broken: tuple[Path, str]) -> None:
    loaded = [source.plugin for source in Registry(plugin_dirs=[broken[0]]).provenance]
    assert "broken" not in loaded


def test_a_broken_plugin_is_quoted_when_a_name_is_unknown(broken: tuple[Path, str]) -> None:
    folder, says = broken
    with pytest.raises(UnknownName, match="Not loaded: broken") as caught:
        Registry(plugin_dirs=[folder]).weighting("mine")
    assert says in str(caught.value)
    assert str(folder / "broken.py") in str(caught.value)


def test_a_broken_plugin_is_fatal_when_strict(broken: tuple[Path, str]) -> None:
    with pytest.raises(PluginError, match="plugin 'broken'"):
        Registry(plugin_dirs=[broken[0]], strict=True)


def test_a_broken_plugin_is_fatal_when_asked_for(broken: tuple[Path, str]) -> None:
    with pytest.raises(PluginError, match="plugin 'broken'"):
        Registry(plugins=[str(broken[0] / "broken.py")])


def test_strict_is_quiet_when_nothing_is_broken(tmp_path: Path) -> None:
    put(tmp_path / "drift.py", DRIFT)
    assert "drift" in Registry(plugin_dirs=[tmp_path], strict=True).names("parameterization")


def test_a_module_that_fails_at_import_leaves_no_module(tmp_path: Path) -> None:
    put(tmp_path / "half_done.py", "import testbed\nraise RuntimeError\n")
    Registry(plugin_dirs=[tmp_path])
    assert "testbed.ext.half_done" not in sys.modules


def test_a_mended_plugin_loads_in_the_next_registry(tmp_path: Path) -> None:
    file = put(tmp_path / "drift.py", DRIFT + "raise RuntimeError\n")
    assert Registry(plugin_dirs=[tmp_path]).failures
    put(file, DRIFT)
    registry = Registry(plugin_dirs=[tmp_path])
    assert registry.failures == []
    assert registry.parameterization("drift").name == "drift"


def test_an_object_that_has_every_attribute_is_no_hook(tmp_path: Path) -> None:
    put(tmp_path / "drift.py", "from unittest.mock import call\nfrom torch import ops\n" + DRIFT)
    assert Registry(plugin_dirs=[tmp_path]).failures == []


def test_the_end_of_a_study_is_announced_to_every_plugin(tmp_path: Path) -> None:
    source = (
        "import testbed\n@testbed.hookimpl\ndef testbed_study_finished(study, results):\n"
        "    study.append(results)\n"
    )
    put(tmp_path / "one.py", source)
    put(tmp_path / "two.py", source)
    heard: list[str] = []
    Registry(plugin_dirs=[tmp_path]).study_finished(heard, "table")
    assert heard == ["table", "table"]


# --- duplicates -------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_a_duplicate_is_fatal_and_names_both_sources(tmp_path: Path, strict: bool) -> None:
    first = put(tmp_path / "one.py", weighting("mine"))
    second = put(tmp_path / "two.py", weighting("mine"))
    with pytest.raises(PluginError, match="'mine' is registered twice") as caught:
        Registry(plugin_dirs=[tmp_path], strict=strict)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def loads(tmp_path: Path, way: str) -> tuple[list[str], list[Path]]:
    """The words and the folders that load two plugins of one name, `mine`, with one weighting."""
    files = [put(tmp_path / name / "mine.py", weighting("mine")) for name in ("a b", "c")]
    if way == "files":
        return list(map(str, files)), []
    if way == "folders":
        return [], [file.parent for file in files]
    return [str(files[0])], [files[1].parent]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["files", "folders", "both"])
@pytest.mark.parametrize("relative", [False, True])
def test_of_two_plugins_of_one_name_the_advice_leaves_out_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, relative: bool
) -> None:
    words, folders = loads(tmp_path, way)
    with pytest.raises(PluginError, match=r"Rename one, or leave one out with -p .*") as caught:
        Registry(words, folders)
    (advice,) = shlex.split(str(caught.value).rpartition("with -p ")[2].removesuffix("."))
    assert advice.startswith("no:/")
    if relative:
        monkeypatch.chdir(tmp_path)
        advice = "no:" + os.path.relpath(advice.removeprefix("no:"))
    registry = Registry([*words, advice], folders)
    assert registry.names("weighting").count("mine") == 1
    (source,) = (one for one in registry.provenance if one.plugin == "mine")
    assert source.origin != os.path.realpath(advice.removeprefix("no:"))
    assert Registry(registry.plugins, folders).provenance == registry.provenance
    # The name leaves out both.
    assert "mine" not in Registry([*words, "no:mine"], folders).names("weighting")


def test_two_plugins_of_two_names_are_told_apart_by_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        put(tmp_path / f"{name}.py", weighting("mine"))
    with pytest.raises(PluginError, match=r"leave one out with -p no:one\.$"):
        Registry(plugin_dirs=[tmp_path])


def test_a_file_to_leave_out_that_is_not_loaded_gets_the_nearest(tmp_path: Path) -> None:
    file = put(tmp_path / "mine.py", weighting("mine"))
    wrong = f"no:{tmp_path}/mime.py"
    with pytest.raises(PluginError, match=f"^-p {wrong}: Unknown plugin .*Did you mean '{file}'"):
        Registry([str(file), wrong])


def test_a_duplicate_of_a_bundled_name_is_fatal(tmp_path: Path) -> None:
    put(tmp_path / "mine.py", DRIFT.replace('"drift"', '"eps"'))
    with pytest.raises(PluginError, match=r"'eps' is registered twice.*eps\.py.*mine\.py"):
        Registry(plugin_dirs=[tmp_path])


def test_a_bundled_plugin_can_be_replaced(tmp_path: Path) -> None:
    put(tmp_path / "mine.py", DRIFT.replace('"drift"', '"eps"'))
    found = Registry(plugins=["no:eps"], plugin_dirs=[tmp_path]).parameterization("eps")
    assert float(found.coefficients(3.0).skip) == 0.25


def test_the_same_name_on_two_axes_is_no_duplicate(tmp_path: Path) -> None:
    put(tmp_path / "drift.py", DRIFT)
    put(tmp_path / "other.py", weighting("drift"))
    registry = Registry(plugin_dirs=[tmp_path])
    assert registry.weighting("drift").axis == "weighting"
    assert registry.parameterization("drift").axis == "parameterization"


# --- files, order, provenance -----------------------------------------------------------------


def test_a_file_with_an_underscore_is_no_plugin(tmp_path: Path) -> None:
    put(tmp_path / "_helper.py", weighting("hidden"))
    registry = Registry(plugin_dirs=[tmp_path], strict=True)
    assert "hidden" not in registry.names("weighting")


def test_a_helper_is_importable(tmp_path: Path) -> None:
    put(tmp_path / "_helper_of_double.py", "def double(sigma):\n    return 2 * sigma\n")
    source = weighting("doubled", "return double(sigma)")
    put(tmp_path / "doubled.py", "from testbed.ext._helper_of_double import double\n" + source)
    assert float(Registry(plugin_dirs=[tmp_path], strict=True).weighting("doubled")(3.0)) == 6.0


def test_provenance_has_the_file_and_its_sha256(tmp_path: Path) -> None:
    file = put(tmp_path / "drift.py", DRIFT)
    registry = Registry(plugin_dirs=[tmp_path])
    source = registry.source(registry.parameterization("drift"))
    assert (source.plugin, source.kind, source.origin) == ("drift", "file", str(file))
    assert source.version == hashlib.sha256(file.read_bytes()).hexdigest()
    assert source in registry.provenance


def test_provenance_of_what_is_built_in_has_our_version() -> None:
    registry = Registry()
    source = registry.source(registry.network("mlp"))
    assert (source.kind, source.version) == ("built in", testbed.__version__)


@pytest.mark.slow
def test_the_order_of_files_never_matters(tmp_path: Path) -> None:
    sources = {"one": weighting("alpha"), "two": DRIFT, "three": weighting("beta")}
    seen = []
    for turn, order in enumerate(itertools.permutations(sources)):
        for position, name in enumerate(order):
            put(tmp_path / str(turn) / f"{position}_{name}.py", sources[name])
        registry = Registry(plugin_dirs=[tmp_path / str(turn)], strict=True)
        seen.append([registry.names(axis) for axis in ("weighting", "parameterization")])
    assert all(names == seen[0] for names in seen)
    assert {"alpha", "beta"} <= set(seen[0][0])


def test_the_order_of_folders_never_matters(tmp_path: Path) -> None:
    put(tmp_path / "one" / "a.py", weighting("alpha", "return 1 + sigma"))
    put(tmp_path / "two" / "a.py", weighting("beta", "return 2 + sigma"))
    for folders in itertools.permutations([tmp_path / "one", tmp_path / "two"]):
        registry = Registry(plugin_dirs=folders, strict=True)
        values = [float(registry.weighting(name)(0.0)) for name in ("alpha", "beta")]
        assert values == [1.0, 2.0]


def test_two_files_of_one_stem_both_load(tmp_path: Path) -> None:
    put(tmp_path / "one" / "mine.py", weighting("alpha"))
    put(tmp_path / "two" / "mine.py", weighting("beta"))
    registry = Registry(plugin_dirs=[tmp_path / "one", tmp_path / "two"], strict=True)
    modules = {registry.weighting(name).function.__module__ for name in ("alpha", "beta")}
    assert len(modules) == 2


@pytest.mark.slow
def test_one_content_in_many_folders_loads_from_each(tmp_path: Path) -> None:
    for turn in range(4):
        file = put(tmp_path / str(turn) / "drift.py", DRIFT)
        registry = Registry(plugin_dirs=[file.parent], strict=True)
        found = registry.parameterization("drift")
        assert inspect.getsourcefile(found.scaling) == str(file)


def test_a_changed_file_is_seen_by_the_next_registry(tmp_path: Path) -> None:
    put(tmp_path / "mine.py", weighting("mine", "return 1 + sigma"))
    first = Registry(plugin_dirs=[tmp_path]).weighting("mine")
    put(tmp_path / "mine.py", weighting("mine", "return 23 + sigma"))
    second = Registry(plugin_dirs=[tmp_path]).weighting("mine")
    assert (float(first(0.0)), float(second(0.0))) == (1.0, 23.0)


def test_a_change_within_the_clock_s_grain_is_seen_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A .pyc is taken for current when size and whole second agree.
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for value in (1, 2):
        file = put(tmp_path / "mine.py", weighting("mine", f"return {value} + sigma"))
        os.utime(file, (1_000_000_000, 1_000_000_000))
        sys.modules.pop("testbed.ext.mine", None)
        assert float(Registry(plugin_dirs=[tmp_path]).weighting("mine")(0.0)) == value


def test_an_unchanged_file_is_imported_once(tmp_path: Path) -> None:
    put(tmp_path / "drift.py", DRIFT)
    first, second = (Registry(plugin_dirs=[tmp_path]).parameterization("drift") for _ in range(2))
    assert first.scaling is second.scaling


# --- an ordinary module -----------------------------------------------------------------------


@pytest.fixture
def drift(tmp_path: Path) -> testbed.Parameterization:
    put(tmp_path / "drift.py", DRIFT)
    return Registry(plugin_dirs=[tmp_path]).parameterization("drift")


@pytest.mark.slow
def test_a_plugin_is_importable_under_our_package(drift: testbed.Parameterization) -> None:
    assert importlib.import_module("testbed.ext.drift").drift is drift.scaling


def test_the_source_of_a_plugin_s_function_is_found(drift: testbed.Parameterization) -> None:
    assert inspect.getsource(drift.scaling).startswith("def drift(sigma):\n    a, t =")


def test_a_plugin_s_function_survives_pickling(drift: testbed.Parameterization) -> None:
    assert pickle.loads(pickle.dumps(drift.scaling)) is drift.scaling


def test_a_whole_component_survives_pickling(drift: testbed.Parameterization) -> None:
    assert pickle.loads(pickle.dumps(drift)) == drift


@pytest.mark.slow
@pytest.mark.process
def test_a_plugin_s_function_is_unpickled_in_another_process(
    drift: testbed.Parameterization, tmp_path: Path
) -> None:
    (tmp_path / "function.pickle").write_bytes(pickle.dumps(drift.scaling))
    program = (
        "import pathlib, pickle, sys, torch; from testbed.registry import Registry\n"
        "folder = pathlib.Path(sys.argv[1]); Registry(plugin_dirs=[folder])\n"
        "function = pickle.loads((folder / 'function.pickle').read_bytes())\n"
        "print(float(function(torch.tensor(3.0)).skip))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("0.25\n", "")


def test_a_traceback_shows_the_plugin_s_line(tmp_path: Path) -> None:
    file = put(tmp_path / "mine.py", weighting("mine", "raise RuntimeError('in the plugin')"))
    mine = Registry(plugin_dirs=[tmp_path]).weighting("mine")
    with pytest.raises(InputError, match="in the plugin") as caught:
        mine(1.0)
    assert str(caught.value).endswith("raised RuntimeError: in the plugin (mine.py, line 4)")
    cause = caught.value.__cause__
    assert isinstance(cause, RuntimeError)
    last = traceback.extract_tb(cause.__traceback__)[-1]
    assert (last.filename, last.line) == (str(file), "raise RuntimeError('in the plugin')")


def test_a_plugin_may_hold_a_dataclass_with_postponed_annotations(tmp_path: Path) -> None:
    # dataclasses looks its module up in sys.modules: a file that is merely exec'ed fails here.
    head = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from typing import ClassVar\n\n@dataclass\nclass Facts:\n    n: ClassVar[int] = 3\n\n"
    )
    put(tmp_path / "mine.py", head + weighting("mine"))
    assert "mine" in Registry(plugin_dirs=[tmp_path], strict=True).names("weighting")
