"""One audit of one subject: which laws hold, by how much, and what is probably wrong."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from testbed.audit import algebra, curvature, diagnosis, exact, learning, trajectories
from testbed.audit.adapters import Adapter
from testbed.audit.external import ExternalDenoiser, around_network
from testbed.audit.learning import Effect, effects_table
from testbed.audit.reference import distributions, mixture, noisy
from testbed.audit.rows import Row, at_level, table
from testbed.audit.subject import Affine, Subject
from testbed.audit.trained import check_model
from testbed.components.sampler import Sampler
from testbed.components.signature import Signature
from testbed.diffusion.denoiser import Denoiser
from testbed.diffusion.equal_objectives import equal_objectives_of
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError, UnknownName, one_line, unknown
from testbed.oracles import Oracle
from testbed.plugin_files import import_file
from testbed.random import stream
from testbed.registry import Registry, default_registry

PARTS = ("algebra", "oracle", "second order", "learning", "sampling")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Audit:
    """What an audit found. `rows` are laws that can fail, `effects` sizes that cannot."""

    subject: str
    rows: tuple[Row, ...]
    effects: tuple[Effect, ...] = ()
    findings: tuple[str, ...] = ()
    """What is probably wrong, in words."""
    notes: tuple[str, ...] = ()
    """What is worth knowing and not wrong: twins, levels left out."""

    @property
    def passed(self) -> bool:
        """Whether every law that could be checked holds, and at least one could."""
        return all(row.passed for row in self.rows) and any(not row.reason for row in self.rows)

    def table(self) -> pd.DataFrame:
        """Every row: level, law, subject, data, sigma, dtype, error, bound, ratio, passed."""
        found = table(self.rows)
        first = ["level", "law", "subject", "data", "sigma", "dtype"]
        return found[[*first, *(name for name in found if name not in first)]]

    def laws(self) -> pd.DataFrame:
        """The worst row of each level, law, data and dtype, failures first within a level."""
        found = self.table()
        keys = ["level", "law", "data", "dtype"]
        worst = (
            found.assign(order=found["ratio"].fillna(-1.0))
            .sort_values("order", ascending=False, kind="stable")
            .groupby(keys, sort=False)
            .head(1)
            .drop(columns="order")
        )
        counts = found.groupby(keys)["passed"].agg(checks="size", held="sum").reset_index()
        merged = worst.merge(counts, on=keys)
        merged["rank"] = merged["level"].map({name: i for i, name in enumerate(PARTS)})
        return merged.sort_values(["rank", "passed", "law"], kind="stable").drop(columns="rank")

    def json(self) -> str:
        """All of it as JSON; a number that is not finite is null."""
        parts = {
            "subject": self.subject,
            "passed": self.passed,
            "rows": [{**asdict(row), "passed": row.passed} for row in self.rows],
            "effects": [asdict(effect) for effect in self.effects],
            "findings": self.findings,
            "notes": self.notes,
        }
        return json.dumps(_finite(parts), indent=1)

    def effects_table(self) -> pd.DataFrame:
        """Every effect: name, subject, sigma, value, low, high, unit."""
        return effects_table(list(self.effects))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_table(file: Path | None) -> Tensor | None:
    """The noise levels in a .npy file, (n,) float64.

    Raises:
        InputError: it cannot be read, or holds no ascending positive numbers.
    """
    if file is None:
        return None
    try:
        found = np.load(file, allow_pickle=False)
        if np.iscomplexobj(found):
            raise TypeError("its numbers are complex")
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            table = torch.from_numpy(found.astype(np.float64))
    except Exception as problem:  # a damaged header raises whatever its damage leads to
        raise InputError(f"--table {file}: cannot be read as .npy: {one_line(problem)}") from None
    ascending = table.ndim == 1 and len(table) >= 2 and bool((table.diff() > 0).all())
    if not (ascending and float(table[0]) > 0 and math.isfinite(float(table[-1]))):
        raise InputError(f"--table {file}: expected (n,) ascending positive noise levels.")
    return table


def oracle_of(dataset: str, registry: Registry) -> Oracle | None:
    """The oracle of a data set by name; None without a name.

    Raises:
        InputError: no such data set, or one without an oracle.
    """
    if not dataset:
        return None
    oracle = registry.dataset(dataset)().oracle
    if oracle is None:
        raise InputError(f"--data {dataset}: its exact distribution is not known; mixture's is.")
    return oracle


def run(
    subject: str | Parameterization | Denoiser | Callable[..., Any],
    *,
    name: str = "",
    held_out: Tensor | None = None,
    levels: Sequence[str] = PARTS,
    adapter: Adapter | None = None,
    oracle: Oracle | None = None,
    trained: bool = False,
    parameterization: str | Parameterization | None = None,
    sigma_data: float = 0.5,
    dtypes: Sequence[torch.dtype] = DTYPES,
    registry: Registry | None = None,
    say: Say = lambda text: None,
) -> Audit:
    """Checks that a subject is the denoiser it claims to be, level by level.

    Args:
        subject: a parameterization, by name or itself; a trained Denoiser (`trial.audited` audits
            a trial by its folder); `"module:factory"` or `"file.py:factory"`; or a callable
            (x, sigma) -> x0. A factory names what it wants of `oracle` (it returns the exact
            denoiser of that distribution), `network` (it returns a denoiser around that network)
            and `sigma_data`; one that wants none of them returns a denoiser, taken as it is.
        name: what the subject is called; its own name by default.
        held_out: (N, ...) what a trained Denoiser is measured on; draws from `oracle` by default.
        levels: some of "algebra", "oracle", "second order", "learning", "sampling".
        adapter: how to read a callable's arguments and output; by default (x, sigma) -> x0.
        oracle: what a callable claims to be exact for; for a trained model, its data's.
        trained: a callable is a trained model of `oracle`: its errors are effects, not failures.
        parameterization: the one whose network a factory wraps.
        sigma_data: handed to parameterizations.
        dtypes: what the algebra and the oracle level are computed in.
        registry: where names are looked up; by default the one of the bundled plugins.
        say: is told what is being checked.

    Returns:
        the Audit; `Audit.passed`, `Audit.table()`, `Audit.findings`.

    Raises:
        InputError: an unknown level or name, a subject that is none of these, or one that raises.
    """
    for level in levels:
        if level not in PARTS:
            raise UnknownName(unknown("level", level, PARTS))
    if not 0 < sigma_data < float("inf"):
        raise InputError(f"sigma_data = {sigma_data!r} must be a positive number.")
    registry = registry or default_registry()
    if isinstance(parameterization, str):
        parameterization = registry.parameterization(parameterization)
    name = name or _name(subject)
    if isinstance(subject, str):
        subject = find(subject, registry)
    if isinstance(subject, Parameterization):
        return _exact(Affine(subject, sigma_data, oracle), levels, dtypes, registry, say)
    if isinstance(subject, Denoiser):
        return _trained(name, subject, oracle, held_out, levels, say)
    if not callable(subject):
        raise InputError(f"cannot audit {subject!r}: neither a name nor a callable.")
    adapter = adapter or Adapter()
    foreign = made(name, subject, adapter, oracle, parameterization, sigma_data, trained)
    if trained:
        denoise = foreign.denoiser(oracle or mixture())
        return _trained(name, denoise, oracle, None, levels, say, foreign)
    return _exact(foreign, levels, dtypes, registry, say)


def _name(subject: Any) -> str:
    if isinstance(subject, str):
        return subject
    return str(getattr(subject, "name", None) or getattr(subject, "__name__", "denoiser"))


def find(word: str, registry: Registry) -> Any:
    """What a word names: a parameterization, or the factory of a denoiser.

    Raises:
        InputError: nothing of that name.
    """
    if word in registry.names("parameterization"):
        return registry.parameterization(word)
    module, colon, attribute = word.rpartition(":")
    if colon and attribute.isidentifier():
        return imported(module, attribute)
    known = registry.names("parameterization")
    raise UnknownName(
        f"{unknown('subject', word, known)} A trial's folder or id, or module:factory, would do "
        "too."
    )


def imported(module: str, attribute: str) -> Any:
    """The attribute of a module, or of a Python file given by its path.

    Raises:
        InputError: it cannot be imported, or has no such attribute.
    """
    try:
        if module.endswith(".py"):
            home = import_file(str(Path(module).resolve()))
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")
            home = importlib.import_module(module)
    except InputError:
        raise
    except Exception as problem:
        raise InputError(f"{module} cannot be imported: {one_line(problem)}") from problem
    if not hasattr(home, attribute):
        names = [n for n in vars(home) if callable(getattr(home, n)) and not n.startswith("_")]
        raise InputError(f"{module}: {unknown('factory', attribute, names)}")
    return getattr(home, attribute)


def made(
    name: str,
    function: Callable[..., Any],
    adapter: Adapter,
    oracle: Oracle | None,
    parameterization: Parameterization | None,
    sigma_data: float,
    trained: bool,
) -> ExternalDenoiser:
    """The subject that a callable or a factory stands for."""
    wants = _wants(name, function)
    if "network" in wants:
        if parameterization is None:
            raise InputError(
                f"{name} takes a network: say which parameterization's it is, for example "
                "parameterization='edm' (--parameterization edm)."
            )
        if trained:
            raise InputError(f"{name} takes a network: it is audited with the exact one.")

        def wrap(network: torch.nn.Module) -> Any:
            return _called(name, function, wants, network=network, sigma_data=sigma_data)

        return around_network(name, wrap, parameterization, sigma_data, adapter)
    if "oracle" in wants:
        oracles = distributions() if oracle is None else {"data": oracle}
        return ExternalDenoiser(
            name,
            lambda given: _called(name, function, wants, oracle=given, sigma_data=sigma_data),
            adapter,
            oracles,
        )
    if wants or _is_factory(function):
        function = _called(name, function, wants, sigma_data=sigma_data)
    return ExternalDenoiser(
        name, lambda given: function, adapter, {"data": oracle} if oracle else {}
    )


def _wants(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """Which of oracle, network and sigma_data a factory names; none for a denoiser itself."""
    try:
        return Signature(name, function, ("oracle", "network", "sigma_data")).inputs
    except InputError:
        return ()


def _is_factory(function: Callable[..., Any]) -> bool:
    """Whether it takes no argument: then it builds the denoiser."""
    try:
        return not inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _called(name: str, function: Callable[..., Any], wants: Sequence[str], **given: Any) -> Any:
    try:
        found = function(**{key: given[key] for key in wants})
    except Exception as problem:
        raise InputError(f"{name} raised {one_line(problem)}") from problem
    if not callable(found):
        raise InputError(f"{name} returned {found!r}, expected a callable (x, sigma) -> x0.")
    return found


def _exact(
    subject: Subject,
    levels: Sequence[str],
    dtypes: Sequence[torch.dtype],
    registry: Registry,
    say: Say,
) -> Audit:
    found: list[Row] = []
    samplers = deterministic(registry)
    try:
        if "algebra" in levels:
            say("algebra")
            found += at_level("algebra", subject.algebra(tuple(dtypes)))
        for name, oracle in subject.data().items():
            parts: dict[str, Callable[[], list[Row]]] = {
                "oracle": functools.partial(exact.check, subject, oracle, tuple(dtypes)),
                "second order": functools.partial(curvature.check, subject, oracle),
                "learning": functools.partial(learning.check, subject, oracle),
                "sampling": functools.partial(_sampling, subject, oracle, samplers),
            }
            for level, check in parts.items():
                if level in levels:
                    say(f"{level}, {name}")
                    found += at_level(level, check(), name)
        return _explained(subject, found, registry)
    except InputError:
        raise
    except Exception as problem:  # the code of others may raise anything
        raise InputError(f"{subject.name} raised {one_line(problem)}") from problem


def _explained(subject: Subject, found: list[Row], registry: Registry) -> Audit:
    """What was found, with what it probably means."""
    findings: list[str] = []
    notes: list[str] = []
    if isinstance(subject, Affine):
        others = [registry.parameterization(n) for n in registry.names("parameterization")]
        for other, c in equal_objectives_of(subject.p, others, subject.sigma_data).items():
            notes.append(
                f"twin of {other} at sigma_data = {subject.sigma_data:g}: its F is {c:.6g} times "
                "this one's."
            )
    if not all(row.passed for row in found):
        told = _diagnosed(subject) or diagnosis.by_rows(found)
        findings = [told] if told else []
    if isinstance(subject, ExternalDenoiser) and not subject.data():
        notes.append("no oracle: only what every denoiser owes its caller was checked.")
    return Audit(subject.name, tuple(found), (), tuple(findings), tuple(notes))


def _sampling(subject: Subject, oracle: Oracle, samplers: Sequence[Sampler]) -> list[Row]:
    if isinstance(subject, ExternalDenoiser) and subject.adapter.table is not None:
        table = subject.adapter.table.double().flip(0)
        sigmas = table[:: max(1, len(table) // 18)]
        return trajectories.check(subject, oracle, samplers, sigmas)
    return trajectories.check(subject, oracle, samplers) + trajectories.check_ode(subject, oracle)


def _diagnosed(subject: Subject) -> str:
    if isinstance(subject, Affine):
        return diagnosis.compare(subject.p, subject.sigma_data)
    assert isinstance(subject, ExternalDenoiser)
    oracle = next(iter(subject.data().values()), None)
    return diagnosis.explain(subject, oracle) if oracle is not None else ""


def deterministic(registry: Registry) -> list[Sampler]:
    """Every deterministic sampler of a registry."""
    found = [registry.sampler(name) for name in registry.names("sampler")]
    return [sampler for sampler in found if sampler.deterministic]


def _trained(
    name: str,
    denoise: Denoiser | Callable[..., Tensor],
    oracle: Oracle | None,
    held: Tensor | None,
    levels: Sequence[str],
    say: Say,
    foreign: ExternalDenoiser | None = None,
) -> Audit:
    """Identities of what the model is made of, and the size of what it missed."""
    found: list[Row] = []
    notes: list[str] = []
    if held is None:
        held = (oracle or mixture()).sample(256, stream(0, "audit/held")).float()
    sigmas = torch.logspace(-2.6, 1.9, 10, dtype=torch.float64)
    if foreign is not None:
        if "algebra" in levels:
            say("algebra")
            found += at_level("algebra", foreign.algebra((torch.float32,)))
        sigmas = foreign.levels
    if isinstance(denoise, Denoiser):
        p = denoise.parameterization
        few = held[:8].repeat(len(sigmas), *[1] * (held.ndim - 1))
        eps = torch.randn(few.shape, generator=stream(0, "audit/trained"))
        level = sigmas.repeat_interleave(len(few) // len(sigmas))
        if "algebra" in levels:
            say("algebra")
            own = Affine(p, denoise.sigma_data)
            found += at_level("algebra", own.algebra(DTYPES))
            found += at_level("algebra", check_model(denoise, few, eps, level))
        if "oracle" in levels:
            say("oracle")
            own = Affine(p, denoise.sigma_data, oracle)
            for data, known in own.data().items():
                found += at_level("oracle", exact.check(own, known, (torch.float64,)), data)
    effects: list[Effect] = []
    if "learning" in levels or "second order" in levels:
        say("learning")
        some = held[:256]
        effects = learning.measure(
            lambda x, sigma: denoise(x, sigma),
            name,
            some,
            sigmas,
            oracle,
            stream(0, "audit/learning"),
            jacobians=16 if "second order" in levels and some[0].numel() <= 256 else 0,
        )
        if oracle is None:
            notes.append("its data have no oracle: excess risk and Fisher divergence are unknown.")
    if "sampling" in levels:
        notes.append("trajectories are compared for exact denoisers only.")
    return Audit(name, tuple(found), tuple(effects), (), tuple(notes))


def check_parameterization(
    p: Parameterization, sigma_data: float, oracle: Oracle | None = None
) -> list[Row]:
    """A study's part of the audit: p's conversions, and its first four levels on one distribution.

    Args:
        p: any parameterization.
        sigma_data: handed to p.
        oracle: the distribution; by default the audit's three-dimensional mixture.
    """
    subject, known = Affine(p, sigma_data), oracle or mixture()
    pairs = noisy(known, subject.levels, 16)
    algebraic: list[Row] = []
    for dtype in (torch.float64, torch.float32):
        narrow = [part.to(dtype) for part in pairs]
        algebraic += algebra.consistency(algebra.CONSISTENT, p, sigma_data, *narrow)
        algebraic += algebra.conversions(p, sigma_data, *narrow)
    data = "mixture" if oracle is None else "data"
    return [
        *at_level("algebra", algebraic, data),
        *at_level("oracle", exact.check(subject, known), data),
        *at_level("second order", curvature.check(subject, known), data),
        *at_level("learning", learning.check(subject, known), data),
    ]


def check_sampler(
    p: Parameterization,
    sigma_data: float,
    samplers: Sequence[Sampler],
    oracle: Oracle | None = None,
) -> list[Row]:
    """The sampler's derivative and whole trajectories: by way of x0 through p, and of the score."""
    found = trajectories.check(Affine(p, sigma_data), oracle or mixture(), samplers)
    return at_level("sampling", found, "mixture" if oracle is None else "data")
