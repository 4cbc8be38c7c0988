"""One audit of one subject: which laws hold, by how much, and what is probably wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from testbed.audit import trajectories
from testbed.audit.adapters import Adapter
from testbed.audit.exact_denoisers import (
    audit_external,
    audit_parameterization,
)
from testbed.audit.external import brief
from testbed.audit.factories import external_denoiser, find
from testbed.audit.reference import mixture
from testbed.audit.result import PARTS, Audit
from testbed.audit.rows import LawCheck, in_part
from testbed.audit.subject import ParameterizedDenoiser
from testbed.audit.trained import audit_trained
from testbed.components.dataset import Data
from testbed.components.sampler import Sampler
from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError, UnknownName, unknown
from testbed.oracles import Empirical, Oracle
from testbed.registry import Registry, default_registry

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
POINTS = 64
"""Samples that stand for data of a trained model whose distribution is not known."""
Say = Callable[[str], None]


def oracle_of(data: Data, label: str) -> Oracle:
    """Returns the oracle of data.

    Raises:
        InputError: They have none.
    """
    if data.oracle is None:
        raise InputError(f"--data {label}: its exact distribution is not known; mixture's is.")
    return data.oracle


def run(
    subject: str | Parameterization | Denoiser | Callable[..., Any],
    *,
    name: str = "",
    held_out: Tensor | None = None,
    parts: Sequence[str] = PARTS,
    adapter: Adapter | None = None,
    oracle: Oracle | None = None,
    trained: bool = False,
    parameterization: str | Parameterization | None = None,
    variants: Mapping[str, Parameterization] | None = None,
    sigma_data: float = 0.5,
    dtypes: Sequence[torch.dtype] = DTYPES,
    registry: Registry | None = None,
    say: Say = lambda text: None,
) -> Audit:
    """Checks that a subject is the denoiser it claims to be, part by part.

    Args:
        subject: A parameterization, by name or itself; a trained Denoiser (`trial.audited` audits
            a trial by its folder); `"module:factory"` or `"file.py:factory"`; or a callable
            (x, sigma) -> x0. A factory names the arguments it takes out of `oracle` (it returns the
            exact denoiser of that distribution), `network` (it returns a denoiser around that
            network) and `sigma_data`; one without arguments returns a denoiser, taken as it is.
        name: The name of the subject in the result; its own name by default.
        held_out: The data that a trained model is measured on, (N, ...) float32; draws from
            `oracle` by default. With either, a trained callable is also read in every other way.
        parts: Some of "algebra", "oracle", "second order", "learning", "sampling".
        adapter: The conventions of a callable; by default (x, sigma) -> x0.
        oracle: The distribution that a callable claims to be exact for; for a trained model, the
            one of its data.
        trained: Whether a callable is a trained model of `oracle`: its errors are effects then, and
            no failures.
        parameterization: The parameterization whose network a factory wraps.
        variants: For a parameterization, the same at other values of its options, by what these
            are ("with phi = 0.4"); all but the part sampling is checked for them too.
        sigma_data: The value that parameterizations get.
        dtypes: The dtypes that the algebra and the oracle part are computed in.
        registry: The registry for names; by default the one of the bundled plugins.
        say: It is called with a line for each part.

    Returns:
        The Audit; `Audit.passed`, `Audit.table()`, `Audit.findings`.

    Raises:
        InputError: A part or a name is unknown, the subject is none of these, or it raises.
    """
    _check_settings(parts, sigma_data)
    registry = registry or default_registry()
    if isinstance(parameterization, str):
        parameterization = registry.parameterization(parameterization)
    if isinstance(subject, str):
        name, subject = name or subject, find(subject, registry)
    own = getattr(subject, "name", "") or getattr(subject, "__name__", "denoiser")
    name = name or str(own)
    if isinstance(subject, Parameterization):
        among = parts, dtypes, registry, say
        return audit_parameterization(subject, sigma_data, oracle, variants or {}, *among)
    if isinstance(subject, Denoiser):
        return audit_trained(name, subject, oracle, held_out, parts, say)
    if not callable(subject):
        raise InputError(f"cannot audit {subject!r}: neither a name nor a callable.")
    reads = adapter or Adapter(), parameterization, sigma_data
    if trained:
        return _trained(name, subject, oracle, held_out, reads, parts, say)
    external = external_denoiser(name, subject, oracle, *reads)
    return audit_external(external, parts, dtypes, registry, say)


def _trained(
    name: str,
    factory: Callable[..., Any],
    oracle: Oracle | None,
    held_out: Tensor | None,
    reads: tuple[Adapter, Parameterization | None, float],
    parts: Sequence[str],
    say: Say,
) -> Audit:
    """Audits a trained network of another codebase.

    Raises:
        InputError: It raises, or wraps another network.
    """
    reference = oracle
    if oracle is None and held_out is not None:
        reference = Empirical(held_out[:POINTS])
    external = external_denoiser(name, factory, reference, *reads, trained=True)
    try:
        return audit_trained(name, external, oracle, held_out, parts, say)
    except InputError:
        raise
    except Exception as problem:  # the code of others may raise anything
        raise InputError(f"{name} raised {brief(problem)}") from problem


def _check_settings(parts: Sequence[str], sigma_data: float) -> None:
    """InputError unless the parts are known and sigma_data is a positive number."""
    for part in parts:
        if part not in PARTS:
            raise UnknownName(unknown("part", part, PARTS))
    if not 0 < sigma_data < float("inf"):
        raise InputError(f"sigma_data = {sigma_data!r} must be a positive number.")


def check_sampler(
    p: Parameterization,
    sigma_data: float,
    samplers: Sequence[Sampler],
    oracle: Oracle | None = None,
) -> list[LawCheck]:
    """Checks derivative and trajectories of samplers: by x0 through p, and by the score."""
    laws = trajectories.check(ParameterizedDenoiser(p, sigma_data), oracle or mixture(), samplers)
    return in_part("sampling", laws, "mixture" if oracle is None else "data")
