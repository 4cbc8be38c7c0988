"""The mutants: what a plausible mistake is, its family, and the checks that it is tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from testbed.audit import (
    algebra,
    curvature,
    exact,
    external,
    learning,
    readings,
    reference,
    rows,
    trajectories,
)
from testbed.audit.render import VARIANT
from testbed.audit.subject import Subject
from testbed.components.base import Component
from testbed.diffusion import noise_levels
from testbed.oracles import Oracle
from testbed.registry import default_registry
from testbed.testing import Context, iter_checks
from testbed.testing.running import run

LAWS = {
    algebra.CONSISTENT: "algebra.consistent",
    algebra.LIMITS: "algebra.limits",
    algebra.CONVERSION: "algebra.conversion",
    algebra.ROUND_TRIP: "algebra.round_trip",
    algebra.TRIANGLE: "algebra.triangle",
    algebra.EQUIVARIANCE: "algebra.equivariance",
    external.ANSWERS: "algebra.answers",
    external.SHAPE: "algebra.shape",
    external.FINITE: "algebra.finite",
    external.SINGLE: "algebra.single",
    external.SQUARE: "algebra.square",
    external.PURE: "algebra.pure",
    external.STEADY: "algebra.steady",
    exact.TARGET: "oracle.target",
    exact.TWEEDIE: "oracle.tweedie",
    exact.SCORE: "oracle.score",
    curvature.ATTACHED: "second_order.attached",
    curvature.COVARIANCE: "second_order.covariance",
    curvature.SYMMETRIC: "second_order.symmetric",
    curvature.POSITIVE: "second_order.positive",
    learning.SPLIT: "learning.split",
    readings.STATED: "learning.stated",
    readings.BEYOND_LINEAR: "learning.beyond_linear",
    trajectories.DERIVATIVE: "sampling.derivative",
    trajectories.TRAJECTORY: "sampling.trajectory",
    trajectories.ODE: "sampling.ode",
    trajectories.FLOW: "sampling.flow",
    "trained model: D = x + sigma^2 score(F)": "model.score",
}
"""The audit's laws, by the id that the catalogue has for each."""
SLOW = (".spawned", ".compile")
"""Checks that cost a process or a compiler: tests of their own try them."""
REGISTRY = default_registry()
STEPS = noise_levels.karras_sigmas(8)[:-1]
GAUSSIAN = reference.gaussian()
SAMPLERS = [REGISTRY.sampler(name) for name in ("euler", "heun")]


def broken(found: Iterable[rows.LawCheck]) -> set[str]:
    """The ids of the laws that failed; a law's variants are one."""
    return {LAWS.get(row.law) or LAWS[VARIANT.sub("", row.law)] for row in found if not row.passed}


def kit(
    component: Component, context: Context | None = None, without: tuple[str, ...] = SLOW
) -> set[str]:
    """The checks of `testbed.testing` that reject a component."""
    checks = [check for check in iter_checks(component) if not check.id.endswith(without)]
    found = run(component, checks, context or Context.of([component]), {})
    return {one.check.id for one in found if not one.ok}


def tests(**laws: Callable[[], None]) -> set[str]:
    """The laws of the project's own tests that are broken."""
    found = set()
    for name, law in laws.items():
        try:
            law()
        except AssertionError:
            found.add(f"tests.{name}")
    return found


def audited(subject: Subject, oracle: Oracle, *levels: str, sigmas: Tensor = STEPS) -> set[str]:
    """The laws of the audit that a subject breaks on one distribution, in float64."""
    parts: dict[str, Callable[[], list[rows.LawCheck]]] = {
        "algebra": lambda: subject.algebra((torch.float64,)),
        "oracle": lambda: exact.check(subject, oracle),
        "second order": lambda: curvature.check(subject, oracle),
        "learning": lambda: learning.check(subject, oracle, 2048),
        "derivative": lambda: trajectories.check(subject, oracle, ()),
        "sampling": lambda: trajectories.check(subject, oracle, SAMPLERS, sigmas),
        "ode": lambda: trajectories.check_ode(subject, GAUSSIAN),
    }
    found = set()
    for level in levels or parts:
        try:
            found |= broken(parts[level]())
        except (RuntimeError, ValueError, TypeError, IndexError):
            found.add("audit.answers")
    return found


WRONG_D = (
    "oracle.target oracle.tweedie oracle.score second_order.covariance "
    "sampling.derivative sampling.trajectory sampling.ode"
)
"""What sees that D is wrong by more than rounding; more than per cents are seen elsewhere too."""
AFFINE = (
    "algebra.limits parameterization.stated_target parameterization.optimal_denoiser "
    "parameterization.tweedie"
)
"""What sees that scaling and stated target disagree."""
CONVERTED = "algebra.conversion algebra.round_trip algebra.triangle"
EVERY_SIZE = (
    "one_part_in_a_billion_is_rejected an_error_of_either_sign_is_rejected "
    "opposite_errors_do_not_cancel every_sample_counts every_dimension_counts "
    "every_decade_of_sigma_counts a_bound_is_far_below_what_it_bounds "
    "a_wrong_posterior_mean_of_an_oracle_is_rejected "
    "a_wrong_density_of_an_oracle_is_rejected a_wrong_trajectory_is_rejected "
    "a_field_that_is_no_gradient_is_rejected every_kind_is_tried "
    "float32_inside_is_rejected"
)
"""The laws about the audit that need a bound of the size of rounding."""


@dataclass(frozen=True)
class Family:
    """What is mutated, what it is tried on, and what must pass.

    Args:
        about: what is mutated, in words.
        failed: the ids of the checks that a subject fails.
        right: by name, subjects that must pass them all.
        sentences: what each check says, by id, where no other place knows it.
    """

    about: str
    failed: Callable[[Any], set[str]]
    right: dict[str, Any]
    sentences: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Mutant:
    """A mistake: a subject that makes it, or a patch of the library under which a right one does.

    Args:
        mistake: in words.
        family: a key of FAMILIES.
        subject: what the family's checks are tried on.
        meant: the check that is there to see it.
        also: the others that see it.
        patch: for what is in place while they are tried.
        told: a part of what the audit says is probably wrong.
    """

    mistake: str
    family: str
    subject: Any
    meant: str
    also: frozenset[str] = frozenset()
    patch: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)
    told: str = ""

    @property
    def caught_by(self) -> frozenset[str]:
        """Exactly the checks that see it."""
        return self.also | {self.meant}

    def failed(self) -> set[str]:
        """The checks that reject it."""
        with self.patch():
            return FAMILIES[self.family].failed(self.subject)


TOLD: dict[int, str] = {}
"""What the audit said is probably wrong, by the id of a denoiser's subject."""
MUTANTS: list[Mutant] = []
FAMILIES: dict[str, Family] = {}


def wrong(
    family: str,
    mistake: str,
    subject: Any,
    meant: str,
    *also: str,
    patch: Callable[[], AbstractContextManager[Any]] = nullcontext,
    told: str = "",
) -> None:
    """Enters a mutant; `also` are names, or several with blanks between, maybe the meant again."""
    others = frozenset(" ".join(also).split()) - {meant}
    MUTANTS.append(Mutant(mistake, family, subject, meant, others, patch, told))


# --- families of one law a mutant -----------------------------------------------------------------


@dataclass(frozen=True)
class Stated:
    """A law, and what it is stated of; the law raises AssertionError where it does not hold."""

    law: Callable[[Any], None]
    subject: Any = None

    @property
    def id(self) -> str:
        return f"tests.{self.law.__name__.removeprefix('law_')}"


def laws_of(
    name: str,
    about: str,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    raised: tuple[type[Exception], ...] = (AssertionError,),
) -> str:
    """Enters a family whose subjects are laws, each with what it is stated of; returns `name`.

    Args:
        around: for what is in place while a law is tried.
        raised: what counts as a rejection.

    Raises:
        ValueError: another module has entered a family of this name.
    """
    if name in FAMILIES:
        raise ValueError(f"another module has a family called {name!r}")

    def failed(stated: Stated) -> set[str]:
        try:
            with around():
                stated.law(stated.subject)
        except raised:
            return {stated.id}
        return set()

    FAMILIES[name] = Family(about, failed, {})
    return name


def given(law: Callable[..., None], *rest: Any) -> Callable[[Any], None]:
    """The law of a subject with the rest of its arguments."""

    @wraps(law)
    def stated(subject: Any) -> None:
        law(subject, *rest)

    return stated


def rejected_by(family: str, law: Callable[[Any], None], right: Any, **wrong_ones: Any) -> None:
    """Enters wrong versions of `right` under the mistakes they make; `law` rejects each."""
    one = Stated(law, right)
    mine = FAMILIES[family]
    mine.right[f"{one.id} {len(mine.right)}"] = one
    mine.sentences[one.id] = (law.__doc__ or "").strip().split("\n")[0]
    for mistake, subject in wrong_ones.items():
        wrong(family, mistake.replace("_", " "), Stated(law, subject), one.id)


def alpha(sigma: Tensor) -> Tensor:
    return 1 / torch.sqrt(1 + sigma**2)


def col(sigma: Tensor) -> Tensor:
    """Sigma (B,) to multiply x (B, d)."""
    return sigma[:, None]
