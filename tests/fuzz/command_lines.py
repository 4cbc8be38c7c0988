"""Command lines: words that are wrong, missing or one too many, and paths that lead nowhere."""

import functools
from collections.abc import Callable
from random import Random
from typing import Any

import typer
from fuzz import hostile, study_files
from fuzz.inputs import TRIAL, Input

from testbed.cli import app
from testbed.registry import AXES

TINY = """
[study]
name = "tiny"
[base]
dataset = { name = "mixture", n = 300, test = 60 }
network = { name = "mlp", width = 8, depth = 1 }
training = { steps = 2, batch = 4, points = 1 }
evaluation = { levels = 2, draws = 8, samples = 4, steps = 1, metrics = ["energy"] }
seeds = 1
[grid]
parameterization = ["v"]
"""
PLUGIN = """
import testbed
def weighting(sigma, floor=0.1):
    return 1 / (sigma**2 + floor**2)
@testbed.hookimpl
def testbed_weightings():
    yield testbed.Weighting("mine", weighting)
"""
FACTORY = "def factory(oracle):\n    return oracle.denoise\n"
FILES = {
    "tiny.toml": TINY.encode(),
    "mine.py": PLUGIN.encode(),
    "factory.py": FACTORY.encode(),
    "broken.py": b"raise RuntimeError('on purpose')\n",
    "broken.toml": b"[study\n",
    "empty": b"",
    "unreadable.toml": TINY.encode(),
    "unreadable.py": PLUGIN.encode(),
    "bytes.npy": b"\x93NUMPY\x01\x00\xff",
    "plugins/mine.py": PLUGIN.encode(),
    "plugins/broken.py": b"import nothing_of_this_name\n",
}
LINKS = {"loop.toml": "loop.toml", "dangling.py": "nowhere.py", "link.toml": "tiny.toml"}
PATHS = (
    *FILES, *LINKS, "folder", "folder/", ".", "..", "/proc", "", " ", "nowhere", "nowhere/a.toml",
    "tiny.toml/a", "x" * 300, "/dev/null", "/proc/self/mem", "a\nb.toml", "é.toml",
    "\udcff.toml", "~", "plugins",
)  # fmt: skip
NAMES = (
    "v", "edm", "eps", "mine", "mixture", "digits", "min_snr", "lognormal", "default", "mlp",
    "heun", "energy", "array", "testbed", "json", "os:system", "factory.py:factory", "mine.py:",
    "factory.py:nothing", ":", "nothing:factory", "json:loads", "no:v", "no:nothing", "no:", "-",
    "0", "abcdef", "runs/tiny", "*", "[a", "**", "class", "a.b",
)  # fmt: skip
OUTS = ("out/a.svg", "out/a.png", "out/a.csv", "out/a.npy", "out/a.py", "out/a.gif", "out", "out/b")
SETTINGS = (
    "", "=", "a", "a=", "=1", ".=1", "a.=1", ".a=1", "a..b=1", "a=[", "a={", "a='", "a=\"\"\"",
    "training", "training=1", "training.steps", "training.steps=", "training.steps.a=1",
    "training.steps=1.5", "training.steps=[1]", "training.steps=1\nbatch=2", "training.steps=x",
    "cases=1", "cases.mixture=1", "cases.nothing.seeds=1", "cases..seeds=1", "cases=[]",
    "cases=[{}]", "grid=1", "grid.parameterization=v", "grid.parameterization=[]", "grid.a=[1]",
    "grid.parameterization.name=['v']", "grid.network.width=[4, 8]", "grid={}", "arms=1",
    "arms.a=1", "arms.a.b=1", "study=1", "study.name=", "study.name=..", "study.name='a/b'",
    "study.title=[/red]", "report.baseline=nothing", "report.level=2", "base=1", "base.seeds=0",
    "seeds=[]", "seeds=[1,1]", "seeds=-1", "seeds=[-5]", "seeds=[1e3]", "sigma_min=90",
    "sigma_max=inf", "sigma_min=nan", "sigma_data=0", "sigma_data={assumed=0}", "c_in=native",
    "c_noise=x", "dataset.dim=1", "dataset.dim=1.5", "dataset.n=0", "dataset=array",
    "dataset={name='array',path='empty'}", "dataset={name='array',path='folder'}",
    "dataset={name='array',path='bytes.npy'}", "network.width=0", "network=nothing",
    "parameterization=v", "parameterization=[]", "loss.space=y", "weighting=none", "loss=none",
    "density=none", "density.mean=1e400", "evaluation.metrics=x", "evaluation.metrics=['x']",
    "evaluation.levels=1", "a=" + "[" * 3000, "a=" + "9" * 5000, "a=1979-05-27", "é=1", " =1",
    "dataset.data_seed=1979-05-27", "\udcff=1", "training.steps=\udcff",
)  # fmt: skip
WORDS = ("-", "--", "---", "-x", "--nothing", "extra", "", "--help", "--debug=1", "-p", "--set")
COMMANDS = (
    "plugins",
    "explain",
    "check",
    "new",
    "audit",
    "plan",
    "study",
    "sample",
    "report",
    "ui",
)
FOLDER = f"runs/tiny/trials/{TRIAL}"
SMALL = ("--jobs", "0", "--no-mlflow", "--set", "training.steps=2")
WRITTEN = {"new": ".py", "sample": ".npy"}
"""The commands that have to be told which file to write, and its suffix."""
SELDOM = 0.08
"""How often a command runs that takes seconds."""


@functools.cache
def parameters(command: str) -> tuple[Any, ...]:
    """The parameters of a command, as Click knows them."""
    group = typer.main.get_command(app.app)
    return tuple(group.commands[command].params)


def make(chance: Random) -> Input:
    """A command with some of its options, at values of any kind."""
    if chance.random() < 0.03:
        words = [chance.choice([*COMMANDS, *WORDS, *PATHS]) for _ in range(chance.randint(0, 3))]
        if words[:1] != ["ui"] and words[:1] != ["check"] and words[:1] != ["study"]:
            return _input(chance, words)
    command = chance.choice(COMMANDS)
    return _input(chance, [command, *LINES.get(command, any_words)(chance, command)])


def _input(chance: Random, words: list[str]) -> Input:
    trained = "sample" in words or any("tiny" in word and "runs" in word for word in words)
    unreadable = ("unreadable.toml", "unreadable.py")
    return Input(tuple(words), FILES, LINKS, ("folder", "out"), unreadable, trained)


def any_words(chance: Random, command: str) -> list[str]:
    """Arguments and options of a command; seldom one that it does not have."""
    words = []
    for parameter in parameters(command):
        if parameter.param_type_name == "argument":
            if chance.random() < 0.95:
                words.append(argument(chance, command))
        elif parameter.name != "help" and chance.random() < 0.25:
            words += option(chance, command, parameter)
    if chance.random() < 0.1:
        words.insert(chance.randint(0, len(words)), chance.choice(WORDS))
    if chance.random() < 0.05 and words:
        del words[chance.randrange(len(words))]
    return words


def argument(chance: Random, command: str) -> str:
    """A file, a name or a mistake in either."""
    right = {
        "plan": ["tiny.toml"], "study": ["tiny.toml"], "report": ["runs/tiny"], "new": ["fresh"],
        "sample": [FOLDER], "explain": ["v"], "audit": ["v", FOLDER], "check": ["mine.py"],
    }.get(command, NAMES)  # fmt: skip
    word = chance.choice(chance.choice([right, right, NAMES, PATHS, hostile.STRINGS]))
    return hostile.typo(chance, word) if chance.random() < 0.1 else word


def option(chance: Random, command: str, parameter: Any) -> list[str]:
    """An option with a value, if it takes one."""
    flag = chance.choice(parameter.opts)
    if chance.random() < 0.03:
        flag = hostile.typo(chance, flag)
    if getattr(parameter, "is_flag", False):
        return [flag] if chance.random() < 0.9 else [f"{flag}=1"]
    if chance.random() < 0.03:
        return [flag]
    pools: dict[str, tuple[Any, ...]] = {
        "set_": SETTINGS,
        "out": (*OUTS, *OUTS, *PATHS),
        "plugin": ("mine.py", *NAMES, *PATHS),
        "plugin_dir": ("plugins", *PATHS),
        "only": ("v", "tiny", "v,v", ",", ",,v", "edm", "", " ", *NAMES),
        "axis": (*AXES, *hostile.STRINGS),
        "device": ("auto", "cpu", "cuda", "cuda:9", "meta", "cpu:0", "cuda:-1", "gpu", *NAMES),
        "part": ("algebra", "algebra", "oracle ", "second", *hostile.STRINGS),
        "table": ("bytes.npy", *PATHS),
        "tracking_uri": ("sqlite:///out/a.db", "http://127.0.0.1:9", "file:///nowhere", *PATHS),
    }
    pool = pools.get(parameter.name or "", (*NAMES, *hostile.NUMBERS, *hostile.STRINGS))
    if parameter.name == "set_" and chance.random() < 0.4:
        path = chance.choice(study_files.KEYS)
        return [flag, f"{path}={hostile.toml_value(hostile.value(chance))}"]
    return [flag, str(chance.choice(pool))]


def _audit(chance: Random, command: str) -> list[str]:
    """Only the shortest part; one of another name has to be wrong."""
    words = any_words(chance, command)
    return [*words, "--part", "algebra"] if "--part" not in words else words


def _sample(chance: Random, command: str) -> list[str]:
    words = _written(chance, command)
    return words if "-n" in words else [*words, "-n", "2"]


def _written(chance: Random, command: str) -> list[str]:
    """Mostly with the file that the command has to be given."""
    words = any_words(chance, command)
    given = "--out" in words or chance.random() < SELDOM
    return words if given else [*words, "--out", f"out/a{WRITTEN[command]}"]


def _study(chance: Random, command: str) -> list[str]:
    """Short where it may run; nowhere else than in out."""
    words = [word for word in any_words(chance, command) if word != "default"]
    if chance.random() < SELDOM and not {"--jobs", "--out", "--help"} & set(words):
        return ["tiny.toml", *words[1:], *SMALL, "--out", "out/study"]
    return [*words, chance.choice(["--nothing", "--seeds=x", "--jobs=-1", "--set=x", "--seeds=0"])]


def _check(chance: Random, command: str) -> list[str]:
    """Checking takes seconds: with a mistake, but for a few."""
    words = any_words(chance, command)
    wrong = chance.choice(["--nothing", "extra", "-p=nowhere.py", "--plugin-dir=nowhere", "-pno:x"])
    return words if chance.random() < SELDOM / 4 else [*words, wrong]


def _ui(chance: Random, command: str) -> list[str]:
    """It would serve: only what cannot."""
    return chance.choice([["--port", "x"], ["--port"], ["extra"], ["--nothing"], ["--help"]])


LINES: dict[str, Callable[[Random, str], list[str]]] = {
    "audit": _audit,
    "new": _written,
    "sample": _sample,
    "study": _study,
    "check": _check,
    "ui": _ui,
}
