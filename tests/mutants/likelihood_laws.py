"""Mistakes in the likelihood and in the integrals, each rejected by its law.

A mutant is the module's own source with one place changed. The law holds for the original, run in
the same way, and fails for the mutant.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import partial, wraps
from types import ModuleType
from typing import Any

from laws import information as integrals
from laws import likelihood as law
from mutants.registry import laws_of, rejected_by

LIKELIHOOD = "testbed.sampling.likelihood"
INFORMATION = "testbed.metrics.information"
Test = Callable[[Callable[[], ModuleType]], None]


def changed(module: str, old: str = "", new: str = "") -> ModuleType:
    """The module with `old`, which it has exactly once, replaced by `new`."""
    original = importlib.import_module(module)
    source = inspect.getsource(original)
    assert not old or source.count(old) == 1, (old, source.count(old))
    found = ModuleType("mutant")
    exec(compile(source.replace(old, new), "mutant", "exec"), found.__dict__)
    return found


def of(name: str, check: Callable[..., None], *rest: Any) -> Test:
    """The law of what a module has under that name, or of the module itself where it is empty."""

    @wraps(check)
    def stated(make: Callable[[], ModuleType]) -> None:
        module = make()
        check(getattr(module, name) if name else module, *rest)

    return stated


density = partial(of, "log_likelihood")
trace = partial(of, "traces")
bits = partial(of, "bits_per_dim")
integral = partial(of, "")
POINT = density(law.law_a_point_is_exact)
PLANE = density(law.law_a_plane_adds_only_what_is_outside)
ORDER = density(law.law_converges_with_order_two, "mixture")
PRIOR = density(law.law_default_prior_is_that_of_samples)
ONE_PROBE = density(law.law_a_diagonal_is_exact_with_one_probe)
SPREAD = density(law.law_its_error_is_that_of_the_probes)
TRACE = trace(law.law_exact_divergence_is_the_oracle_s)
UNBIASED = trace(law.law_hutchinson_has_no_bias)
CELLS, UNIT, MASS = map(bits, law.BITS)
KL = integral(integrals.law_mismatched_gaussians)
NORMAL = integral(integrals.law_entropy_of_a_gaussian)
MIXED = integral(integrals.law_entropy_of_a_mixture)
TWO = integral(integrals.law_a_sign_is_one_bit)
STEP = integral(integrals.law_the_step_is_the_rule_s_error)
ERRORS = integral(integrals.law_errors_of_levels_add)

RATE = "before, rate = rate, d - traces(D, y.to(x.dtype), sigma_next, V)"
ROWS: list[tuple[str, str, str, str, Test]] = [
    ("the divergence of the other sign", LIKELIHOOD,
     "gained += math.log(sigma_next / sigma)", "gained -= math.log(sigma_next / sigma)", POINT),
    ("the sign of the trace", LIKELIHOOD,
     RATE, RATE.replace("d - traces", "d + traces"), ORDER),
    ("d forgotten", LIKELIHOOD, RATE, RATE.replace("d - traces", "-traces"), POINT),
    ("dsigma for dlog sigma", LIKELIHOOD,
     "gained += math.log(sigma_next / sigma)", "gained += (sigma_next - sigma)", POINT),
    ("log sigma^2 for log sigma", LIKELIHOOD,
     "math.log(sigma_next / sigma)", "2 * math.log(sigma_next / sigma)", PLANE),
    ("the trace at the left end alone", LIKELIHOOD, "(before + rate) / 2", "before", ORDER),
    ("the trace at the right end alone", LIKELIHOOD, "(before + rate) / 2", "rate", ORDER),
    ("the trace where x was before the step", LIKELIHOOD,
     "sigma_next, V)\n        gained", "sigma, V)\n        gained", ORDER),
    ("Euler's step", LIKELIHOOD, "import heun", "import euler as heun", ORDER),
    ("the prior at the first level", LIKELIHOOD,
     "prior(y, levels[-1])", "prior(y, levels[0])", POINT),
    ("the prior at the first point", LIKELIHOOD,
     "prior(y, levels[-1])", "prior(x.double(), levels[-1])", POINT),
    ("the prior's sigma for its square", LIKELIHOOD,
     "sigma**2 + sigma_data**2", "sigma + sigma_data**2", PRIOR),
    ("sigma_data for its square", LIKELIHOOD,
     "sigma**2 + sigma_data**2", "sigma**2 + sigma_data", PRIOR),
    ("a prior without sigma_data", LIKELIHOOD,
     "sigma**2 + sigma_data**2", "sigma**2", PRIOR),
    ("pi for 2 pi", LIKELIHOOD, "d * math.log(2 * math.pi", "d * math.log(math.pi", PRIOR),
    ("the half of the normal density dropped", LIKELIHOOD,
     "(2 * math.pi * variance)) / 2", "(2 * math.pi * variance))", PRIOR),
    ("probes of 0 and 1", LIKELIHOOD, "(2 * v - 1)", "v", ONE_PROBE),
    ("probes of another variance", LIKELIHOOD, "(2 * v - 1)", "(4 * v - 2)", ONE_PROBE),
    ("one probe's error for all", LIKELIHOOD, "gained.std(0) / math.sqrt(k)", "gained.std(0)",
     SPREAD),
    ("the sum of the probes", LIKELIHOOD, "gained.mean(0)", "gained.sum(0)", SPREAD),
    ("the sum of dD/dx", LIKELIHOOD, "(v.double() * pulled.double())", "pulled.double()", TRACE),
    ("|J v|^2 for v J v", LIKELIHOOD, "(v.double() * pulled.double())", "(pulled.double() ** 2)",
     UNBIASED),
    ("the batch's trace for each sample", LIKELIHOOD, ".flatten(2).sum(2)",
     ".flatten(2).sum(2).mean(1, keepdim=True).expand(-1, len(x))", TRACE),
    ("bits without log 2", LIKELIHOOD, "(d * math.log(2))", "d", CELLS),
    ("bits of all dimensions", LIKELIHOOD, "(d * math.log(2))", "math.log(2)", CELLS),
    ("the quantum of the other sign", LIKELIHOOD,
     "(-log_p - d * math.log(quantum))", "(-log_p + d * math.log(quantum))", UNIT),
    ("the quantum of one dimension", LIKELIHOOD,
     "(-log_p - d * math.log(quantum))", "(-log_p - math.log(quantum))", UNIT),
    ("log p for -log p", LIKELIHOOD,
     "(-log_p - d * math.log(quantum))", "(log_p - d * math.log(quantum))", MASS),
    ("excess/sigma^3 over log sigma", INFORMATION,
     "d * excess / sigma**2", "d * excess / sigma**3", KL),
    ("excess not over sigma^2", INFORMATION, "d * excess / sigma**2", "d * excess", KL),
    ("half the bound", INFORMATION, "d * excess / sigma**2", "d * excess / sigma**2 / 2", KL),
    ("the bound of one dimension", INFORMATION,
     "d * excess / sigma**2", "excess / sigma**2", KL),
    ("over sigma", INFORMATION, "t = np.log(sigma)", "t = sigma", KL),
    ("mmse of one dimension", INFORMATION,
     "d * (v / (v + sigma**2) - mmse / sigma**2)", "(d * v / (v + sigma**2) - mmse / sigma**2)",
     NORMAL),
    ("the integral halved again", INFORMATION,
     "normal - lost.value", "normal - lost.value / 2", MIXED),
    ("the integral added", INFORMATION, "normal - lost.value", "normal + lost.value", MIXED),
    ("the Gaussian's sigma_0 forgotten", INFORMATION,
     "(v + float(sigma[0]) ** 2)", "v", NORMAL),
    ("no e in the entropy of a Gaussian", INFORMATION,
     "2 * math.pi * math.e * (v", "2 * math.pi * (v", NORMAL),
    ("the noise's entropy of sigma", INFORMATION, "math.e * first**2", "math.e * first", TWO),
    ("half the step's error", INFORMATION, "abs(value - coarse) / 3", "abs(value - coarse) / 6",
     STEP),
    ("errors of levels as if independent", INFORMATION,
     "float(np.trapezoid(error, t))", "float(np.sqrt(np.trapezoid(error**2, t)))", ERRORS),
]  # fmt: skip


FAMILY = laws_of(
    "laws: likelihood",
    "the source of the likelihood and of the integrals, with one place changed",
)
for module, test in {(row[1], row[4]): None for row in ROWS}:
    rejected_by(
        FAMILY,
        test,
        partial(changed, module),
        **{row[0]: partial(changed, *row[1:4]) for row in ROWS if row[1::3] == (module, test)},
    )
