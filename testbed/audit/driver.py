"""One audit of one subject: which laws hold, by how much, and what is probably wrong."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from testbed.audit import algebra, curvature, diagnosis, exact, learning, trajectories
from testbed.audit.adapters import Adapter
from testbed.audit.external import ExternalDenoiser, around_network
from testbed.audit.learning import Effect
from testbed.audit.reference import distributions, mixture, noisy
from testbed.audit.result import PARTS, Audit
from testbed.audit.rows import LawCheck, in_part
from testbed.audit.subject import ParameterizedDenoiser, Subject
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

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
Say = Callable[[str], None]


def read_table(file: Path | None) -> Tensor | None:
    """Reads the noise levels in a .npy file, (n,) float64; None without a file.

    Raises:
        InputError: The file cannot be read, or does not hold ascending positive numbers.
    """
    if file is None:
        return None
    try:
        array = np.load(file, allow_pickle=False)
        if np.iscomplexobj(array):
            raise TypeError("its numbers are complex")
        with np.errstate(over="ignore", invalid="ignore"):  # refused below
            table = torch.from_numpy(array.astype(np.float64))
    except Exception as problem:  # a damaged header raises whatever its damage leads to
        raise InputError(f"--table {file}: cannot be read as .npy: {one_line(problem)}") from None
    ascending = table.ndim == 1 and len(table) >= 2 and bool((table.diff() > 0).all())
    if not (ascending and float(table[0]) > 0 and math.isfinite(float(table[-1]))):
        raise InputError(f"--table {file}: expected (n,) ascending positive noise levels.")
    return table


def oracle_of(dataset: str, registry: Registry) -> Oracle | None:
    """Returns the oracle of a data set by name; None without a name.

    Raises:
        InputError: There is no such data set, or it has no oracle.
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
    parts: Sequence[str] = PARTS,
    adapter: Adapter | None = None,
    oracle: Oracle | None = None,
    trained: bool = False,
    parameterization: str | Parameterization | None = None,
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
        held_out: The data that a trained Denoiser is measured on, (N, ...) float32; draws from
            `oracle` by default.
        parts: Some of "algebra", "oracle", "second order", "learning", "sampling".
        adapter: The conventions of a callable; by default (x, sigma) -> x0.
        oracle: The distribution that a callable claims to be exact for; for a trained model, the
            one of its data.
        trained: Whether a callable is a trained model of `oracle`: its errors are effects then, and
            no failures.
        parameterization: The parameterization whose network a factory wraps.
        sigma_data: The value that parameterizations get.
        dtypes: The dtypes that the algebra and the oracle part are computed in.
        registry: The registry for names; by default the one of the bundled plugins.
        say: It is called with a line for each part.

    Returns:
        The Audit; `Audit.passed`, `Audit.table()`, `Audit.findings`.

    Raises:
        InputError: A part or a name is unknown, the subject is none of these, or it raises.
    """
    for part in parts:
        if part not in PARTS:
            raise UnknownName(unknown("part", part, PARTS))
    if not 0 < sigma_data < float("inf"):
        raise InputError(f"sigma_data = {sigma_data!r} must be a positive number.")
    registry = registry or default_registry()
    if isinstance(parameterization, str):
        parameterization = registry.parameterization(parameterization)
    if isinstance(subject, str):
        name, subject = name or subject, find(subject, registry)
    own = getattr(subject, "name", "") or getattr(subject, "__name__", "denoiser")
    name = name or str(own)
    if isinstance(subject, Parameterization):
        return _exact(
            ParameterizedDenoiser(subject, sigma_data, oracle), parts, dtypes, registry, say
        )
    if isinstance(subject, Denoiser):
        return _trained(name, subject, oracle, held_out, parts, say)
    if not callable(subject):
        raise InputError(f"cannot audit {subject!r}: neither a name nor a callable.")
    given = adapter or Adapter(), oracle, parameterization, sigma_data, trained
    external = external_denoiser(name, subject, *given)
    if trained:
        denoise = external.denoiser(oracle or mixture())
        return _trained(name, denoise, oracle, None, parts, say, external)
    return _exact(external, parts, dtypes, registry, say)


def find(word: str, registry: Registry) -> Any:
    """Returns what a word names: a parameterization, or the factory of a denoiser.

    Raises:
        InputError: The word names neither, or the factory cannot be imported.
    """
    names = registry.names("parameterization")
    if word in names:
        return registry.parameterization(word)
    module, colon, attribute = word.rpartition(":")
    if colon and attribute.isidentifier():
        return _import(module, attribute)
    raise UnknownName(
        f"{unknown('subject', word, names)} A trial's folder or id, or module:factory, would do "
        "too."
    )


def _import(module: str, attribute: str) -> Any:
    """Returns the attribute of a module, or of a Python file that `module` is the path of.

    Raises:
        InputError: The module cannot be imported, or has no such attribute.
    """
    try:
        if module.endswith(".py"):
            namespace = import_file(str(Path(module).resolve()))
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")
            namespace = importlib.import_module(module)
    except InputError:
        raise
    except Exception as problem:
        raise InputError(f"{module} cannot be imported: {one_line(problem)}") from problem
    if not hasattr(namespace, attribute):
        members = vars(namespace).items()
        names = [name for name, member in members if callable(member) and name[:1] != "_"]
        raise InputError(f"{module}: {unknown('factory', attribute, names)}")
    return getattr(namespace, attribute)


def external_denoiser(
    name: str,
    function: Callable[..., Any],
    adapter: Adapter,
    oracle: Oracle | None,
    parameterization: Parameterization | None,
    sigma_data: float,
    trained: bool,
) -> ExternalDenoiser:
    """Returns the subject that a callable or a factory stands for.

    Raises:
        InputError: The factory takes a network and no parameterization is given, or it raises.
    """
    arguments = _factory_arguments(name, function)
    if "network" in arguments:
        if parameterization is None:
            raise InputError(
                f"{name} takes a network: say which parameterization's it is, for example "
                "parameterization='edm' (--parameterization edm)."
            )
        if trained:
            raise InputError(f"{name} takes a network: it is audited with the exact one.")

        def wrap(network: torch.nn.Module) -> Any:
            return _call(name, function, arguments, network=network, sigma_data=sigma_data)

        return around_network(name, wrap, parameterization, sigma_data, adapter)
    if "oracle" in arguments:

        def make(data: Oracle) -> Any:
            return _call(name, function, arguments, oracle=data, sigma_data=sigma_data)

        oracles = distributions() if oracle is None else {"data": oracle}
        return ExternalDenoiser(name, make, adapter, oracles)
    if arguments or _takes_nothing(function):
        function = _call(name, function, arguments, sigma_data=sigma_data)
    return ExternalDenoiser(
        name, lambda data: function, adapter, {"data": oracle} if oracle else {}
    )


def _factory_arguments(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    """Returns which of oracle, network and sigma_data a factory takes; none for a denoiser."""
    try:
        return Signature(name, function, ("oracle", "network", "sigma_data")).inputs
    except InputError:
        return ()


def _takes_nothing(function: Callable[..., Any]) -> bool:
    """Whether a callable takes no argument: then it is a factory."""
    try:
        return not inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _call(name: str, factory: Callable[..., Any], arguments: Sequence[str], **values: Any) -> Any:
    """Returns the denoiser of a factory, called with those of `values` that it takes.

    Raises:
        InputError: The factory raises, or returns something that is not callable.
    """
    try:
        denoiser = factory(**{key: values[key] for key in arguments})
    except Exception as problem:
        raise InputError(f"{name} raised {one_line(problem)}") from problem
    if not callable(denoiser):
        raise InputError(f"{name} returned {denoiser!r}, expected a callable (x, sigma) -> x0.")
    return denoiser


def _exact(
    subject: Subject,
    parts: Sequence[str],
    dtypes: Sequence[torch.dtype],
    registry: Registry,
    say: Say,
) -> Audit:
    """Audits a subject that claims to be exact: every law of it can fail."""
    checks: list[LawCheck] = []
    samplers = [registry.sampler(name) for name in registry.names("sampler")]
    samplers = [sampler for sampler in samplers if sampler.deterministic]
    try:
        if "algebra" in parts:
            say("algebra")
            checks += in_part("algebra", subject.algebra(tuple(dtypes)))
        for name, oracle in subject.data().items():
            laws: dict[str, Callable[[], list[LawCheck]]] = {
                "oracle": functools.partial(exact.check, subject, oracle, tuple(dtypes)),
                "second order": functools.partial(curvature.check, subject, oracle),
                "learning": functools.partial(learning.check, subject, oracle),
                "sampling": functools.partial(_sampling, subject, oracle, samplers),
            }
            for part, check in laws.items():
                if part in parts:
                    say(f"{part}, {name}")
                    checks += in_part(part, check(), name)
        return _explained(subject, checks, registry)
    except InputError:
        raise
    except Exception as problem:  # the code of others may raise anything
        raise InputError(f"{subject.name} raised {one_line(problem)}") from problem


def _explained(subject: Subject, checks: list[LawCheck], registry: Registry) -> Audit:
    """Returns the checks as an audit, with what the failures among them probably mean."""
    findings = ""
    if not all(check.passed for check in checks):
        findings = _diagnosis(subject) or diagnosis.by_rows(checks)
    notes: list[str] = []
    if isinstance(subject, ParameterizedDenoiser):
        others = [registry.parameterization(name) for name in registry.names("parameterization")]
        notes = [
            f"{other} is the same objective at sigma_data = {subject.sigma_data:g}: its F is "
            f"{c:.6g} times this one's."
            for other, c in equal_objectives_of(subject.p, others, subject.sigma_data).items()
        ]
    elif not subject.data():
        notes = ["no oracle: only what every denoiser owes its caller was checked."]
    return Audit(subject.name, tuple(checks), (), (findings,) if findings else (), tuple(notes))


def _sampling(subject: Subject, oracle: Oracle, samplers: Sequence[Sampler]) -> list[LawCheck]:
    if isinstance(subject, ExternalDenoiser) and subject.adapter.table is not None:
        table = subject.adapter.table.double().flip(0)
        sigmas = table[:: max(1, len(table) // 18)]
        return trajectories.check(subject, oracle, samplers, sigmas)
    return trajectories.check(subject, oracle, samplers) + trajectories.check_ode(subject, oracle)


def _diagnosis(subject: Subject) -> str:
    if isinstance(subject, ParameterizedDenoiser):
        return diagnosis.compare(subject.p, subject.sigma_data)
    assert isinstance(subject, ExternalDenoiser)
    oracle = next(iter(subject.data().values()), None)
    return diagnosis.explain(subject, oracle) if oracle is not None else ""


def _trained(
    name: str,
    denoise: Denoiser | Callable[..., Tensor],
    oracle: Oracle | None,
    held_out: Tensor | None,
    parts: Sequence[str],
    say: Say,
    external: ExternalDenoiser | None = None,
) -> Audit:
    """Audits a trained model: identities of its parts can fail, the sizes of its errors cannot."""
    checks: list[LawCheck] = []
    notes: list[str] = []
    if held_out is None:
        held_out = (oracle or mixture()).sample(256, stream(0, "audit/held")).float()
    sigmas = torch.logspace(-2.6, 1.9, 10, dtype=torch.float64)
    if "algebra" in parts:
        say("algebra")
    if external is not None:
        if "algebra" in parts:
            checks += in_part("algebra", external.algebra((torch.float32,)))
        sigmas = external.levels
    if isinstance(denoise, Denoiser):
        own = ParameterizedDenoiser(denoise.parameterization, denoise.sigma_data, oracle)
        if "algebra" in parts:
            few = held_out[:8].repeat(len(sigmas), *[1] * (held_out.ndim - 1))
            eps = torch.randn(few.shape, generator=stream(0, "audit/trained"))
            sigma = sigmas.repeat_interleave(len(few) // len(sigmas))
            laws = [*own.algebra(DTYPES), *check_model(denoise, few, eps, sigma)]
            checks += in_part("algebra", laws)
        if "oracle" in parts:
            say("oracle")
            for data, of_data in own.data().items():
                laws = exact.check(own, of_data, (torch.float64,))
                checks += in_part("oracle", laws, data)
    effects: list[Effect] = []
    if "learning" in parts or "second order" in parts:
        say("learning")
        some = held_out[:256]
        effects = learning.measure(
            lambda x, sigma: denoise(x, sigma),
            name,
            some,
            sigmas,
            oracle,
            stream(0, "audit/learning"),
            jacobians=16 if "second order" in parts and some[0].numel() <= 256 else 0,
        )
        if oracle is None:
            notes.append("its data have no oracle: excess risk and Fisher divergence are unknown.")
    if "sampling" in parts:
        notes.append("trajectories are compared for exact denoisers only.")
    return Audit(name, tuple(checks), tuple(effects), (), tuple(notes))


def check_parameterization(
    p: Parameterization, sigma_data: float, oracle: Oracle | None = None
) -> list[LawCheck]:
    """Checks what a study audits: p's conversions, and the first four parts on one distribution.

    Args:
        p: Any parameterization.
        sigma_data: The value that p gets.
        oracle: The distribution; by default the audit's three-dimensional mixture.
    """
    subject, data = ParameterizedDenoiser(p, sigma_data), "mixture" if oracle is None else "data"
    oracle = oracle or mixture()
    batch = noisy(oracle, subject.levels, 16)
    laws: list[LawCheck] = []
    for dtype in (torch.float64, torch.float32):
        narrow = [tensor.to(dtype) for tensor in batch]
        laws += algebra.consistency(algebra.CONSISTENT, p, sigma_data, *narrow)
        laws += algebra.conversions(p, sigma_data, *narrow)
    return [
        *in_part("algebra", laws, data),
        *in_part("oracle", exact.check(subject, oracle), data),
        *in_part("second order", curvature.check(subject, oracle), data),
        *in_part("learning", learning.check(subject, oracle), data),
    ]


def check_sampler(
    p: Parameterization,
    sigma_data: float,
    samplers: Sequence[Sampler],
    oracle: Oracle | None = None,
) -> list[LawCheck]:
    """Checks derivative and trajectories of samplers: by x0 through p, and by the score."""
    laws = trajectories.check(ParameterizedDenoiser(p, sigma_data), oracle or mixture(), samplers)
    return in_part("sampling", laws, "mixture" if oracle is None else "data")
