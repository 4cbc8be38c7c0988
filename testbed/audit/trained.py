"""The audit of a trained model: its identities can fail, the sizes of its errors cannot.

The law of a trained Denoiser is that D from the scaling and the score from F by the pair agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from testbed.audit import diagnosis, exact, external, learning, readings
from testbed.audit.external import ExternalDenoiser
from testbed.audit.factories import with_its_dtype
from testbed.audit.learning import Effect
from testbed.audit.reference import mixture
from testbed.audit.result import Audit
from testbed.audit.rows import LawCheck, gamma, in_part, rows, skipped
from testbed.audit.subject import ParameterizedDenoiser
from testbed.diffusion.denoiser import Denoiser
from testbed.oracles import Oracle
from testbed.random import stream
from testbed.tensors import per_sample

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
TAKEN = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""The dtypes that a trained network is tried in, in this order."""
HELD_OUT = 256
"""Samples that errors are measured on, at each noise level."""
SMALL = 256
"""Dimensions up to which the Jacobian of a model is taken."""


def check_model(denoiser: Denoiser, x0: Tensor, eps: Tensor, sigma: Tensor) -> list[LawCheck]:
    """Checks a trained model's D against x + sigma^2 score, the score from F and not from D.

    Args:
        denoiser: Any Denoiser; one whose parameterization is not affine computes its score from D,
            and is skipped.
        x0, eps: (B, ...) in the model's dtype.
        sigma: The noise levels, (B,).
    """
    law, p = "trained model: D = x + sigma^2 score(F)", denoiser.parameterization
    if not p.affine:
        return [skipped(law, p.name, "not affine: its score is computed from D")]
    sd, sigma = denoiser.sigma_data, denoiser.level(sigma)
    s = per_sample(sigma, x0).double()
    x = x0 + s.to(x0.dtype) * eps
    with torch.no_grad():
        D, score = denoiser(x, sigma), denoiser.score(x, sigma)
        F = denoiser.output(x, sigma).double().abs()
    c = p.coefficients(sigma.double(), sigma_data=sd)
    weights = p.pair_weights(sigma, sigma_data=sd)
    a = per_sample(weights[0], x).abs()
    n = per_sample(weights[1] - sigma.double() * weights[0], x).abs()
    skip, out = per_sample(c.skip, x).abs(), per_sample(c.out, x).abs()
    size = skip * x.double().abs() + out * F + s * (F + a * x.double().abs()) / n
    second = x.double() + s**2 * score.double()
    return rows(law, p.name, sigma.double(), D, second, gamma(12, x.dtype) * size)


BATCH = (
    "its answer for a sample depends on the batch: sigma is on the wrong axis, or samples see each "
    "other, as by statistics of the batch."
)


def audit_trained(
    name: str,
    subject: Denoiser | ExternalDenoiser,
    oracle: Oracle | None,
    held_out: Tensor | None,
    parts: Sequence[str],
    say: Callable[[str], None],
) -> Audit:
    """Audits a trained model, on held-out data (N, ...) float32 or on draws from the oracle.

    Raises:
        InputError: An external denoiser raises at every noise level, or returns what is not like x.
    """
    checks: list[LawCheck] = []
    findings: list[str] = []
    notes: list[str] = []
    has_data = oracle is not None or held_out is not None
    if isinstance(subject, ExternalDenoiser):
        subject, note = with_its_dtype(subject, TAKEN)
        notes += [note] if note else []
    if held_out is None:
        dim = subject.reference.dim if isinstance(subject, ExternalDenoiser) else 3
        held_out = (oracle or mixture(dim)).sample(HELD_OUT, stream(0, "audit/held")).float()
    some = held_out[:HELD_OUT]
    if "algebra" in parts:
        say("algebra")
    if isinstance(subject, ExternalDenoiser):
        dtype = subject.adapter.dtype or torch.float32
        answers = subject.leave_out_refused(dtype)
        some, sigmas = some.to(dtype), subject.levels
        denoise = subject.denoiser(subject.reference)
        if "algebra" in parts:
            checks += in_part("algebra", [*answers, *subject.algebra((dtype,))])
        if "learning" in parts and has_data and len(some) > 1:
            say("learning: readings")
            laws, read = readings.check(subject, some, oracle)
            checks += in_part("learning", laws, "data")
            findings += read
        findings += diagnosis.raised(subject)
        findings += filter(None, [diagnosis.by_rows(checks)])
        if any(row.law == external.SINGLE and not row.passed for row in checks):
            findings.append(BATCH)
    else:
        denoise, sigmas = subject, torch.logspace(-2.6, 1.9, 10, dtype=torch.float64)
        checks += _identities(subject, oracle, held_out, sigmas, parts, say)
    effects: list[Effect] = []
    if "learning" in parts or "second order" in parts:
        say("learning")
        jacobians = 16 if "second order" in parts and some[0].numel() <= SMALL else 0
        effects = learning.measure(
            denoise, name, some, sigmas, oracle, stream(0, "audit/learning"), jacobians
        )
        if oracle is None:
            notes.append("its data have no oracle: excess risk and Fisher divergence are unknown.")
    if "sampling" in parts:
        notes.append("trajectories are compared for exact denoisers only.")
    return Audit(name, tuple(checks), tuple(effects), tuple(findings), tuple(notes))


def _identities(
    denoise: Denoiser,
    oracle: Oracle | None,
    held_out: Tensor,
    sigmas: Tensor,
    parts: Sequence[str],
    say: Callable[[str], None],
) -> list[LawCheck]:
    """Checks the identities of a trained Denoiser and of its parameterization."""
    checks: list[LawCheck] = []
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
    return checks
