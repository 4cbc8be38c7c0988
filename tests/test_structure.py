"""How the tests are laid out: no test module imports another, and no two have one name."""

import ast
from collections import Counter

from helpers.paths import ROOT

TESTS = ROOT / "tests"
MODULES = sorted(file for file in TESTS.rglob("*.py") if "fixtures" not in file.parts)


def imported(code: str) -> set[str]:
    """Every dotted name that the code imports, and those of the modules that it imports from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def of_tests(code: str) -> set[str]:
    """The imports of test modules: `test_x`, `room.test_x` or a name of one."""
    return {
        name
        for name in imported(code)
        if not name.startswith("testbed")
        and any(part.startswith("test_") for part in name.split("."))
    }


def test_no_module_imports_a_test_module() -> None:
    found = {str(file.relative_to(TESTS)): of_tests(file.read_text()) for file in MODULES}
    assert {file: names for file, names in found.items() if names} == {}


def test_an_import_of_a_test_module_is_seen() -> None:
    for code in ("import test_x", "from study import test_x", "from study.test_x import same"):
        assert of_tests(code)
        assert of_tests(f"def later():\n    {code}")
    assert not of_tests(
        "from helpers.training import same, test\nfrom testbed.testing import plugin"
    )


def test_test_modules_have_names_of_their_own() -> None:
    names = Counter(file.name for file in MODULES if file.name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []
    assert list(TESTS.rglob("__init__.py")) == []
