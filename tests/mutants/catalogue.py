"""Every mutant, and docs/maintainers/mutants.md made of them: python tests/mutants writes it.

A mutant is tried on every check of its family. It must fail the one meant for it and those named
with it, and no other; what is not mutated must pass them all.
"""

from __future__ import annotations

import importlib

from helpers.paths import ROOT
from laws.audit import SELF_TESTS
from mutants.registry import FAMILIES, LAWS, MUTANTS, REGISTRY, Stated

from testbed.testing import iter_checks

MODULES = [
    "formulas",
    "weightings",
    "oracles",
    "samplers",
    "noise_tables",
    "ddpm",
    "denoisers",
    "audit",
    "formula_laws",
    "objective_laws",
    "process_laws",
    "oracle_laws",
    "likelihood_laws",
    "guidance_laws",
    "pipeline_laws",
    "network_laws",
    "data_laws",
    "statistics_laws",
    "sequential_laws",
    "crossing_laws",
    "average_laws",
    "clipping_laws",
    "verdict_laws",
    "level_laws",
    "distance_laws",
    "sample_quality_laws",
    "feature_distance_laws",
    "recipes",
    "wrapper_laws",
    "property_laws",
    "installations",
    "wrong_components",
]
"""Each enters its families."""
for name in MODULES:
    importlib.import_module(f"mutants.{name}")


def first_line(law: object) -> str:
    return (law.__doc__ or "").strip().split("\n")[0]


def laws_of_tests() -> dict[str, str]:
    """What each law of tests/laws says, by id.

    Raises:
        ValueError: two laws have one name.
    """
    found: dict[str, str] = {}
    for file in sorted((ROOT / "tests" / "laws").glob("*.py")):
        module = importlib.import_module(f"laws.{file.stem}")
        for name, law in vars(module).items():
            if name.startswith("law_") and law.__module__ == module.__name__:
                check = f"tests.{name.removeprefix('law_')}"
                if check in found:
                    raise ValueError(f"{file}: another file has a law called {name}")
                found[check] = first_line(law)
    return found


def laws() -> dict[str, str]:
    """What each check says, by id; of a law without a sentence, its name."""
    found = {name: law for law, name in LAWS.items()}
    found["audit.answers"] = "the audited callable answers, and raises nothing"
    components = [one.subject for one in MUTANTS if one.family.startswith("components: ")]
    components += [REGISTRY.parameterization("v")]
    found |= {check.id: check.law for one in components for check in iter_checks(one)}
    stated = [one.subject for one in MUTANTS if isinstance(one.subject, Stated)]
    found |= {one.id: first_line(one.law) for one in stated} | laws_of_tests()
    found |= {name: (law.__doc__ or "").strip() for name, law in SELF_TESTS.items()}
    found |= {name: text for family in FAMILIES.values() for name, text in family.sentences.items()}
    return {check: law or check.partition(".")[2].replace("_", " ") for check, law in found.items()}


def markdown() -> str:
    """docs/maintainers/mutants.md."""
    lines = [
        "# Mutants",
        "",
        "Tests of the tests: each line of the table is a mistake made on purpose, the check that",
        "is there to see it, and the others that see it too. None but these does, and what is not",
        "mutated passes them all (`tests/mutants/test_mutants.py`). `algebra` to `sampling` are",
        "laws of `testbed audit`, `tests` laws of the project's own tests, `self` laws about the",
        "audit; the others are checks of `testbed check`.",
        "",
    ]
    # Not in the order of entry, which depends on which test imports a family first.
    entries = sorted(MUTANTS, key=lambda one: (one.family, one.mistake))
    for name in sorted(FAMILIES):
        mine = [one for one in MUTANTS if one.family == name]
        lines += [f"- {name} ({len(mine)}): {FAMILIES[name].about}"]
    lines += ["", "| mistake | family | caught by | also by |", "|---|---|---|---|"]
    for one in entries:
        cells = [
            one.mistake,
            one.family,
            f"`{one.meant}`",
            " ".join(f"`{c}`" for c in sorted(one.also)),
        ]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    used = {check for one in MUTANTS for check in one.caught_by}
    lines += ["", "## The checks", "", "| check | law |", "|---|---|"]
    said = laws()
    for check in sorted(used):
        law = said[check].replace("|", r"\|")
        lines.append(f"| `{check}` | {law} |")
    return "\n".join(lines) + "\n"
