"""The audit of a subject that claims to be the exact denoiser: every law of it can fail."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from testbed.audit import algebra, curvature, diagnosis, exact, external, learning, trajectories
from testbed.audit.external import ExternalDenoiser
from testbed.audit.factories import with_its_dtype
from testbed.audit.reference import mixture, noisy
from testbed.audit.result import PARTS, Audit
from testbed.audit.rows import LawCheck, in_part, skipped, verdict
from testbed.audit.subject import ParameterizedDenoiser, Subject
from testbed.components.sampler import Sampler
from testbed.diffusion.equal_objectives import equal_objectives_of
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import ComponentError, InputError, one_line
from testbed.oracles import Gaussian, Oracle
from testbed.registry import Registry

MOST_DIMENSIONS = 16
"""Dimensions up to which Jacobians and trajectories, which cost a pass for each, are checked."""
DRAWS = 4096
"""Draws at each level for the law of the loss, in three dimensions; fewer in more."""
Say = Callable[[str], None]
Laws = Callable[[], list[LawCheck]]


def audit_parameterization(
    p: Parameterization,
    sigma_data: float,
    oracle: Oracle | None,
    variants: Mapping[str, Parameterization],
    parts: Sequence[str],
    dtypes: Sequence[torch.dtype],
    registry: Registry,
    say: Say,
) -> Audit:
    """Audits a parameterization, and in the parts without sampling its variants too.

    Raises:
        InputError: It raises.
    """
    subject = ParameterizedDenoiser(p, sigma_data, oracle)
    checks = list(_checks(subject, parts, dtypes, deterministic(registry), say))
    findings = [_compare(checks, p, sigma_data)]
    notes = _equal_objectives(p, sigma_data, registry)
    for where, other in variants.items():
        say(where)
        try:
            rows = check_parameterization(other, sigma_data, oracle, parts)
        except ComponentError as problem:
            if not isinstance(problem.__cause__, ValueError):
                raise
            notes.append(f"{where} it is refused: {one_line(problem)}")
            continue
        rows = [replace(row, subject=f"{p.name} {where}") for row in rows]
        found = _compare(rows, other, sigma_data)
        findings.append(f"{where}, {found}" if found else "")
        checks += rows
    changed = [f"{key} {v}" for key, v in p.options.items() if v != p.defaults.get(key)]
    label = f"{p.name} ({', '.join(changed)})" if changed else p.name
    return Audit(label, tuple(checks), (), tuple(filter(None, findings)), tuple(notes))


def audit_external(
    subject: ExternalDenoiser,
    parts: Sequence[str],
    dtypes: Sequence[torch.dtype],
    registry: Registry,
    say: Say,
) -> Audit:
    """Audits a denoiser of another codebase.

    Raises:
        InputError: It raises at every noise level, or returns something else than x's like.
    """
    subject, note = with_its_dtype(subject)
    narrow = subject.adapter.dtype
    dtypes = dtypes if narrow is None else (narrow,)
    answers = subject.leave_out_refused(dtypes[0] if dtypes else torch.float64)
    checks = in_part("algebra", answers) if subject.refused or "algebra" in parts else []
    checks += _checks(subject, parts, dtypes, deterministic(registry), say)
    findings: list[str] = []
    if not all(check.passed for check in checks):
        oracle = next(iter(subject.data().values()), None)
        findings = (
            diagnosis.findings(subject, oracle, checks)
            if oracle is not None
            else [*filter(None, [diagnosis.by_rows(checks)])]
        )
    notes = [note] if note else []
    if not subject.data():
        notes.append("no oracle: only what every denoiser owes its caller was checked.")
    return Audit(subject.name, tuple(checks), (), tuple(findings), tuple(notes))


def check_parameterization(
    p: Parameterization,
    sigma_data: float,
    oracle: Oracle | None = None,
    parts: Sequence[str] = PARTS,
) -> list[LawCheck]:
    """Checks what a study audits: p's conversions, and the first four parts on one distribution.

    Args:
        p: Any parameterization.
        sigma_data: The value that p gets.
        oracle: The distribution; by default the audit's three-dimensional mixture.
        parts: Those of the first four that are checked.
    """
    subject, data = ParameterizedDenoiser(p, sigma_data), "mixture" if oracle is None else "data"
    oracle = oracle or mixture()
    laws: dict[str, Laws] = {
        "algebra": functools.partial(_conversions, subject, oracle),
        "oracle": functools.partial(exact.check, subject, oracle),
        "second order": functools.partial(curvature.check, subject, oracle),
        "learning": functools.partial(learning.check, subject, oracle),
    }
    found = (in_part(part, check(), data) for part, check in laws.items() if part in parts)
    return list(itertools.chain.from_iterable(found))


def _conversions(subject: ParameterizedDenoiser, oracle: Oracle) -> list[LawCheck]:
    """Checks a parameterization's scaling and conversions on draws of a distribution."""
    batch = noisy(oracle, subject.levels, 16)
    laws: list[LawCheck] = []
    for dtype in (torch.float64, torch.float32):
        narrow = [tensor.to(dtype) for tensor in batch]
        laws += algebra.consistency(algebra.CONSISTENT, subject.p, subject.sigma_data, *narrow)
        laws += algebra.conversions(subject.p, subject.sigma_data, *narrow)
    return laws


def deterministic(registry: Registry) -> list[Sampler]:
    """Returns the samplers that draw no noise, as they are by default."""
    samplers = [registry.sampler(name) for name in registry.names("sampler")]
    return [sampler for sampler in samplers if sampler.deterministic]


def _checks(
    subject: Subject,
    parts: Sequence[str],
    dtypes: Sequence[torch.dtype],
    samplers: Sequence[Sampler],
    say: Say,
) -> Iterator[LawCheck]:
    """Yields every check of these parts."""
    if "algebra" in parts:
        say("algebra")
        yield from in_part(
            "algebra", _attempted(subject, "", lambda: subject.algebra(tuple(dtypes)))
        )
    for name, oracle in subject.data().items():
        laws: dict[str, Laws] = {
            "oracle": functools.partial(exact.check, subject, oracle, tuple(dtypes)),
            "second order": functools.partial(curvature.check, subject, oracle),
            "learning": functools.partial(_learning, subject, oracle),
            "sampling": functools.partial(_sampling, subject, oracle, samplers),
        }
        for part, check in laws.items():
            if part not in parts:
                continue
            say(f"{part}, {name}")
            reason = _left_out(subject, part, oracle)
            found = (
                [skipped(part, subject.name, reason)]
                if reason
                else _attempted(subject, f"the part {part} on the data {name}", check)
            )
            yield from in_part(part, found, name)


def _attempted(subject: Subject, when: str, check: Laws) -> list[LawCheck]:
    """Returns the checks; of a denoiser that raises on the way, that it does.

    Raises:
        InputError: A parameterization raises, or a denoiser returns what is not like x.
    """
    try:
        return check()
    except InputError:
        raise
    except Exception as problem:  # the code of others may raise anything
        if not isinstance(subject, ExternalDenoiser):
            raise InputError(f"{subject.name} raised {one_line(problem)}") from problem
        subject.trouble[when or "the part algebra"] = external.brief(problem)
        return [verdict(external.ANSWERS, subject.name, False)]


def _left_out(subject: Subject, part: str, oracle: Oracle) -> str:
    """Returns why a part cannot be checked; "" where it can."""
    if part not in ("second order", "sampling"):
        return ""
    if oracle.dim > MOST_DIMENSIONS:
        return f"{oracle.dim} dimensions: it is checked up to {MOST_DIMENSIONS}"
    narrow = subject.adapter.dtype if isinstance(subject, ExternalDenoiser) else None
    if narrow not in (None, torch.float64):
        assert narrow is not None
        return f"it takes {external.word_of(narrow)} alone: the bounds of this part are of float64"
    return ""


def _learning(subject: Subject, oracle: Oracle) -> list[LawCheck]:
    dtype = subject.adapter.dtype if isinstance(subject, ExternalDenoiser) else None
    draws = max(64, DRAWS * 3 // max(3, oracle.dim))
    return learning.check(subject, oracle, draws, dtype or torch.float64)


def _sampling(subject: Subject, oracle: Oracle, samplers: Sequence[Sampler]) -> list[LawCheck]:
    table = subject.adapter.table if isinstance(subject, ExternalDenoiser) else None
    checks: list[LawCheck] = []
    if table is None:
        checks += trajectories.check(subject, oracle, samplers)
        checks += trajectories.check_ode(subject, oracle)
        if isinstance(oracle, Gaussian):
            checks += trajectories.check_flow(subject, oracle, samplers)
        return checks
    table = table.double().flip(0)
    checks += trajectories.check(subject, oracle, samplers, table[:: max(1, len(table) // 18)])
    if isinstance(oracle, Gaussian):
        few = table[:: max(1, len(table) // trajectories.FLOW_STEPS)]
        checks += trajectories.check_flow(subject, oracle, samplers, few)
    return checks


def _compare(checks: Sequence[LawCheck], p: Parameterization, sigma_data: float) -> str:
    """Returns what the failures among the checks of a parameterization probably mean."""
    if all(check.passed for check in checks):
        return ""
    return diagnosis.compare(p, sigma_data) or diagnosis.by_rows(checks)


def _equal_objectives(p: Parameterization, sigma_data: float, registry: Registry) -> list[str]:
    others = [registry.parameterization(name) for name in registry.names("parameterization")]
    return [
        f"{other} is the same objective at sigma_data = {sigma_data:g}: its F is "
        f"{c:.6g} times this one's."
        for other, c in equal_objectives_of(p, others, sigma_data).items()
    ]
