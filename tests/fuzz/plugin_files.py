"""Plugin files: the templates and the bundled ones, with what a first attempt gets wrong."""

import functools
import re
from collections.abc import Callable
from random import Random

from fuzz import command_lines, hostile, study_files
from fuzz.inputs import Input

from testbed import templates
from testbed.bundled import bundled
from testbed.registry import AXES, Registry

RETURNED = (
    "None", "0", "-1", "1.5", "'x'", "[]", "()", "{}", "float('nan')", "torch.zeros(())",
    "torch.ones(3)", "torch.ones(2, 2)", "torch.ones(0)", "torch.full((3,), float('nan'))",
    "torch.full((1,), float('inf'))", "torch.ones(3, dtype=torch.int64)", "torch.ones(1) * 1j",
    "torch.ones(3, dtype=torch.bool)", "object()", "lambda *a: None", "(1, 2)", "(1, 2, 3, 4)",
    "(1, 2, 3, 4, 5)", "torch.nn.Identity()", "torch.ones(3, device='meta')", "...",
    "testbed.Coefficients(1, 1, 1, 1)", "testbed.Coefficients(None, 'x', [], {})",
    "torch.nn.Linear(2, 3)", "testbed", "range(3)", "(x for x in ())", "10**400", "NotImplemented",
    "torch.ones(3).to_sparse()", "__import__('numpy').ones(3)",
)  # fmt: skip
RAISED = (
    "KeyError('x')", "ValueError()", "RuntimeError('a [/b] c')", "AssertionError", "SystemExit(7)",
    "StopIteration", "RecursionError('deep')", "MemoryError()", "TypeError('two\\nlines')",
    "ImportError('x')", "UnicodeError('\\udcff')", "AttributeError('x')", "LookupError('x' * 99)",
    "NotImplementedError", "testbed.errors.InputError('the plugin itself says so')",
    "ZeroDivisionError('σ')",
)  # fmt: skip
AT_CALL = tuple(found for found in RAISED if "SystemExit" not in found)
IMPORTED = (
    "import nothing_of_this_name", "from testbed import nothing", "import testbed.nothing",
    "from . import x", "from .v import scaling", "import torch.nothing", "1/0", "raise SystemExit",
    "exit(3)", "testbed.hookimpl()", "testbed.Weighting('a', None)", "del testbed",
    "testbed = None", "print('hello')", "x = y", "assert False", "import sys; sys.path.append('x')",
    "from testbed import *", "__all__ = 3", "def testbed_nothing(): pass",
    "@testbed.hookimpl\ndef testbed_nothing(): pass", "testbed_weightings = 3",
    "def testbed_losses(): yield 3", "__getattr__ = 3",
    "def __getattr__(name): raise KeyError(name)",
)  # fmt: skip
NAMES = (
    "''", "' '", "'a b'", "'../x'", "'é'", "'class'", "None", "3", "'x' * 300", "'a\\nb'", "'[/b]'",
    "b'x'", "['x']", "'v'", "'recipe'", "'none'", "'σ'", "'\\udcff'", "'__init__'", "float('nan')",
)  # fmt: skip
YIELDED = (
    "None", "3", "'x'", "[]", "testbed", "testbed.Weighting", "testbed.Loss('l', testbed.squared)",
    "object()", "(1,)", "lambda: 1", "testbed.Recipe(density='lognormal')",
    "testbed.Weighting('w', print)",
    "testbed.Loss('x y', testbed.squared)", "testbed.Weighting()", "testbed.Density('d', 1, 2)",
    "testbed.Network('n', len, noise=3)", "testbed.Metric('m', max)", "testbed.Sampler('s', min)",
    "testbed.Dataset('d', dict)", "testbed.Parameterization('p')",
)  # fmt: skip
ARGUMENTS = (
    "",
    "*args",
    "**kw",
    "a, b, c",
    "sigma=1",
    "x, /",
    "self",
    "*, sigma",
    "sigma, nothing",
)
VALUES = (
    "None", "3", "'x'", "()", "(2, 1)", "(0.1, 1.0)", "('x',)", "[1]", "{}", "testbed", "(None,)",
    "-1.0", "float('nan')", "lambda: 0", "('boundary', 'nothing')", "{'sigma': 3}",
    "{'time': (0,)}", "{3: (0.0, 1.0)}", "testbed.Recipe(density='nothing')",
    "testbed.Recipe(density=3, weighting=4, loss=5)",
    "(float('inf'), 0.0)",
    "testbed.Recipe(density='lognormal', weighting={'name': 'min_snr', 'gama': 3})",
    "(float('nan'), 1.0)", "True",
)  # fmt: skip
Change = Callable[[Random, str], str]


@functools.cache
def originals() -> dict[str, tuple[str, tuple[tuple[str, str], ...]]]:
    """By file: its source with new names, and the (axis, name) of what it registers."""
    found = {axis: (templates.source_of(axis, "mine"), ((axis, "mine"),)) for axis in AXES}
    registry = Registry()
    for file in sorted(bundled("plugins").glob("*.py")):
        components = tuple(
            (axis, name)
            for axis in AXES
            for name in registry.names(axis)
            if registry.source(getattr(registry, axis)(name)).origin == str(file.resolve())
        )
        found[file.stem] = (file.read_text(encoding="utf-8"), components)
    return found


def make(chance: Random) -> Input:
    """A wrong plugin file, and a command that loads it."""
    stem = chance.choice([*AXES, *AXES, *originals()])
    source, components = originals()[stem]
    content = written(chance, source)
    axis, name = chance.choice(components)
    file = f"{stem}_x.py"
    # A changed one takes the place of the one that is there.
    words = [*commands(chance, file, axis, name), *([] if stem in AXES else ["-p", f"no:{stem}"])]
    return Input(tuple(words), {file: content, "tiny.toml": command_lines.TINY.encode()})


def commands(chance: Random, file: str, axis: str, name: str) -> list[str]:
    """What one does with a plugin; rarely the checks, which take seconds."""
    how = chance.random()
    if how < 0.12:
        return ["plugins", "-p", file]
    if how < 0.16:
        return ["plugins", "--plugin-dir", ".", *(["--json"] if how < 0.14 else [])]
    if how < 0.162:
        return ["check", file]
    if how < 0.19:
        return ["new", "fresh", "--axis", axis, "--out", "out.py"]
    if how < 0.40 and axis in templates.EXPLAINED:
        return ["explain", name, "-p", file, "--out", "out.svg"]
    if how < 0.60 and axis == "parameterization":
        return ["audit", name, "-p", file, "--part", "algebra"]
    value = f'["{name}"]' if axis in ("metric", "parameterization") else f'"{name}"'
    key = "grid.parameterization" if axis == "parameterization" else study_files.PLACES[axis]
    study = ["study", "tiny.toml", "--jobs", "0", "--no-mlflow"] if how > 0.985 else None
    plan = study or ["plan", "tiny.toml"]
    return [*plan, "-p", file, "--set", f"{key}={value}", "--out", "out"]


def written(chance: Random, source: str) -> bytes:
    """The content of a wrong plugin file."""
    for _ in range(chance.choice([1, 1, 1, 2])):
        source = chance.choice(CHANGES)(chance, source)
    content = source.encode(errors="surrogatepass")
    return chance.choice(hostile.EDITS)(chance, content) if chance.random() < 0.15 else content


def _one_of(chance: Random, pattern: str, source: str, new: Callable[[re.Match[str]], str]) -> str:
    """The source with one of the matches replaced."""
    matches = list(re.finditer(pattern, source, flags=re.MULTILINE))
    if not matches:
        return source
    match = chance.choice(matches)
    return source[: match.start()] + new(match) + source[match.end() :]


def returns(chance: Random, source: str) -> str:
    """Something else is returned."""
    return _one_of(
        chance, r"^( +)return .*$", source, lambda m: f"{m[1]}return {chance.choice(RETURNED)}"
    )


def raises(chance: Random, source: str) -> str:
    """A function or a hook raises."""
    return _one_of(
        chance, r"^( +)return ", source, lambda m: f"{m[1]}raise {chance.choice(AT_CALL)}\n{m[0]}"
    )


def hook_raises(chance: Random, source: str) -> str:
    """A hook raises, before or after what it yields."""
    return _one_of(
        chance, r"^( +)yield ", source, lambda m: f"{m[1]}raise {chance.choice(RAISED)}\n{m[0]}"
    )


def imports(chance: Random, source: str) -> str:
    """A statement at the top or at the end."""
    line = chance.choice([*IMPORTED, *(f"raise {one}" for one in RAISED)])
    return f"{source}\n{line}\n" if chance.random() < 0.5 else f"import testbed\n{line}\n{source}"


def forgets(chance: Random, source: str) -> str:
    """An import, a decorator or another line is missing."""
    pattern = chance.choice([r"^import .*\n", r"^@.*\n", r"^ +[a-z_]+=.*,\n", r"^.+\n"])
    return _one_of(chance, pattern, source, lambda m: "")


def arity(chance: Random, source: str) -> str:
    """A function with other arguments."""
    return _one_of(
        chance, r"^( *def \w+)\(.*\):", source, lambda m: f"{m[1]}({chance.choice(ARGUMENTS)}):"
    )


def name(chance: Random, source: str) -> str:
    """A component of another name."""
    pattern = r"(?<=[(\s=])[\"']\w+[\"'](?=,)"
    return _one_of(chance, pattern, source, lambda m: chance.choice(NAMES))


def yields(chance: Random, source: str) -> str:
    """A hook yields, or returns, something else."""
    word = chance.choice(["yield", "yield", "return", "yield from"])
    return _one_of(
        chance, r"^( +)yield ", source,
        lambda m: f"{m[1]}{word} {chance.choice(YIELDED)}\n{m[1]}yield ",
    )  # fmt: skip


def keyword(chance: Random, source: str) -> str:
    """An argument of a component at another value, or one that it does not have."""
    words = ("recipe", "noise_kind", "sigma_range", "singular", "claims", "sigma_data", "space",
             "reference", "noise", "against", "deterministic", "state", "penalty", "options",
             "elicits_mean", "denoise", "target", "nothing")  # fmt: skip
    pattern = r"^( +)(\w+)=.*,$"
    if chance.random() < 0.5 and re.search(pattern, source, flags=re.MULTILINE):
        return _one_of(chance, pattern, source, lambda m: f"{m[1]}{m[2]}={chance.choice(VALUES)},")
    added = f", {chance.choice(words)}={chance.choice(VALUES)}"
    return _one_of(chance, r",?\s*\)\n(?=\s*$|\n\n|    yield)", source, lambda m: f"{added})\n")


def number(chance: Random, source: str) -> str:
    """Another number."""
    return _one_of(
        chance, r"\b\d+(\.\d+)?\b", source, lambda m: repr(chance.choice(hostile.NUMBERS))
    )


def syntax(chance: Random, source: str) -> str:
    """A character too many or too few."""
    at = chance.randrange(len(source))
    extra = chance.choice(["(", ")", ":", "\t", " ", '"""', "'", "\\", "\0", "é", "=", "\n", ""])
    return source[:at] + extra + source[at + 1 :]


CHANGES: tuple[Change, ...] = (
    returns, returns, returns, raises, raises, hook_raises, imports, forgets, forgets, arity, name,
    yields, keyword, keyword, number, syntax,
)  # fmt: skip
