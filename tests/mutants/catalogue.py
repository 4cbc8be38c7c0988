"""Every mutant, and docs/maintainers/mutants.md made of them: python tests/mutants writes it.

A mutant is tried on every check of its family. It must fail the one meant for it and those named
with it, and no other; what is not mutated must pass them all.
"""

from __future__ import annotations

from components import test_losses as losses
from components import test_weightings as weightings
from diffusion import test_ddpm as chains
from diffusion import test_noise_tables as tables
from diffusion import test_outputs as readings
from mutants import (
    mutants_of_audit,  # noqa: F401
    mutants_of_ddpm,  # noqa: F401
    mutants_of_denoisers,  # noqa: F401
    mutants_of_formulas,  # noqa: F401
    mutants_of_oracles,  # noqa: F401
    mutants_of_samplers,  # noqa: F401
    mutants_of_tables,  # noqa: F401
    mutants_of_weightings,  # noqa: F401
)
from mutants.mutation import FAMILIES, LAWS, MUTANTS, REGISTRY
from mutants.self_tests import SELF_TESTS
from sampling import test_samplers as samplers
from sampling import test_schedules as schedules
from sampling import test_solvers as sampling

from testbed.testing import iter_checks

__all__ = ["FAMILIES", "LAWS", "MUTANTS", "laws", "markdown"]
ORDER = (
    "conversion",
    "coefficients",
    "target",
    "weighting",
    "oracle",
    "sampler",
    "named sampler",
    "schedule",
    "nearest level",
    "rescaling",
    "discrete denoiser",
    "discrete training",
    "chain",
    "normal",
    "learned variance",
    "score",
    "denoiser",
    "trained model",
    "audit",
)


def laws() -> dict[str, str]:
    """What each check says, by id."""
    found = {name: law for law, name in LAWS.items()}
    found["audit.answers"] = "the audited callable answers, and raises nothing"
    components = [
        REGISTRY.parameterization("v"),
        REGISTRY.weighting("unit"),
        REGISTRY.sampler("euler"),
    ]
    found |= {check.id: check.law for one in components for check in iter_checks(one)}
    for module in (weightings, losses, sampling, samplers, schedules, tables, chains, readings):
        for name, law in vars(module).items():
            if name.startswith("law_") and law.__doc__:
                found[f"tests.{name.removeprefix('law_')}"] = law.__doc__.strip().split("\n")[0]
    return found | {name: (law.__doc__ or "").strip() for name, law in SELF_TESTS.items()}


def markdown() -> str:
    """docs/maintainers/mutants.md."""
    lines = [
        "# Mutants",
        "",
        "Tests of the tests: each line of the table is a mistake made on purpose, the check that",
        "is there to see it, and the others that see it too. None but these does, and what is not",
        "mutated passes them all (`tests/mutants/test_catalogue.py`). `algebra` to `sampling` are",
        "laws of `testbed audit`, `tests` laws of the project's own tests, `self` laws about the",
        "audit; the others are checks of `testbed check`.",
        "",
    ]
    entries = sorted(MUTANTS, key=lambda one: ORDER.index(one.family))
    for name in ORDER:
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
    used = {check for one in MUTANTS for check in (one.meant, *one.also)}
    lines += ["", "## The checks", "", "| check | law |", "|---|---|"]
    said = laws()
    for check in sorted(used):
        law = said[check].replace("|", r"\|")
        lines.append(f"| `{check}` | {law} |")
    return "\n".join(lines) + "\n"
