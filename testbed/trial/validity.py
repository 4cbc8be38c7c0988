"""Which parts fit together: every combination that cannot work is refused before training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from testbed.components.base import Sigma
from testbed.components.dataset import Data
from testbed.components.density import Density
from testbed.components.network import Network
from testbed.components.sampler import Sampler
from testbed.components.schedule import Schedule
from testbed.diffusion.ddpm import Normal, small
from testbed.diffusion.denoiser import singular_at_infinity
from testbed.diffusion.inputs import C_NOISE, noise_kind
from testbed.diffusion.noise_levels import TERMINAL
from testbed.diffusion.noise_tables import NoiseTable
from testbed.diffusion.parameterization import Parameterization
from testbed.errors import InputError, one_line
from testbed.random import stream
from testbed.sampling.likelihood import levels
from testbed.sampling.loop import refused_at_infinity, sample
from testbed.sampling.schedules import snapped
from testbed.tensors import widen
from testbed.training import averages
from testbed.training.objective import Objective
from testbed.training.settings import Training
from testbed.trial.specs import Evaluation, Likelihood

MOST_EXACT = 256
"""Dimensions up to which the divergence of a likelihood may be exact."""
ROUNDED = 2.0**-20
"""How far, as a part of it, a level may lie beyond an end of its range: rounding, and no more."""
RARE = 2.0**-20
"""A share of the draws that training does not see."""


def levels_of(density: Density, n: int = 33) -> Tensor:
    """n log-spaced noise levels over the density's range, float64."""
    low, high = span(density)
    return torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64)


def _trained(objective: Objective) -> Tensor:
    """Levels over the density's range, as training has them: of the table where there is one."""
    sigma = levels_of(objective.density)
    return sigma if objective.table is None else objective.table.quantised(sigma)


def span(density: Density) -> tuple[float, float]:
    """(sigma_min, sigma_max) of a density."""
    options = {**density.defaults, **density.options}
    return options["sigma_min"], options["sigma_max"]


def problems(objective: Objective, c_noise: str, network: Network, data: Data) -> Iterator[str]:
    """Why this combination cannot work, a line each; nothing where it can.

    Args:
        objective: the trial's; its sigma_data is the one that training uses.
        c_noise: "native", "index", or a name of `inputs.C_NOISE`.
        network: what takes c_noise.
        data: what is trained on.
    """
    p, (low, high) = objective.parameterization, span(objective.density)
    if objective.table is not None and not ascends(objective.table):
        yield f"{objective.table.label}: its levels must be positive, finite and ascending."
        return
    if math.isinf(high):
        yield _at_infinity(p, math.inf in p.singular)
        return
    if objective.table is not None and objective.table.terminal:
        if math.inf in p.singular or bool(_lost(objective, TERMINAL) > objective.sigma_data):
            yield _at_infinity(p, singular=True)
            return
        yield from _drawn_last(objective, objective.table)
    for component in (p, objective.weighting):
        if component is not None:
            yield from _outside(component.label, component.sigma_range, low, high)
    wired = p.sigma_data
    if wired is not None and wired != objective.sigma_data and not data.agrees(wired):
        yield (
            f"{p.label} is hard-wired to sigma_data = {wired:g}, the training data have "
            f"{data.sigma_data:.4g} ± {data.sigma_data_error:.1g}: rescale the data (by "
            f"{wired / data.sigma_data:.4g}), let the plugin ask for sigma_data, or write "
            f"sigma_data = {{ assumed = {wired:g} }} to train with a wrong one on purpose."
        )
    try:
        objective.noise.shape_of_z(data.shape)
    except InputError as problem:
        yield one_line(problem)
        return
    if objective.noise.regression(data.shape) != 1 and not p.affine:
        yield (
            f"{objective.noise.label} is in x and not in the target: {p.label} is not affine, and "
            "reads x in its target too. Take an affine one."
        )
        return
    yield from _noise(p, c_noise, objective, network)
    yield from _numbers(objective)


class Zero:
    """D = 0."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return 0 * x


class ZeroLearned(Zero):
    """D = 0, and the small variance for a learned one."""

    def posterior(self, x: Tensor, sigma: float, sigma_next: float) -> Normal:
        variance = torch.full_like(x, small(sigma, sigma_next))
        return Normal((sigma_next / sigma) ** 2 * x, variance)


def unsampled(
    sampler: Sampler,
    schedule: Schedule,
    steps: int,
    ends: tuple[float, float],
    objective: Objective,
    trained: tuple[float, float],
    guided: bool,
) -> Iterator[str]:
    """Why the samples cannot be drawn, if not: found by the first and the last step with D = 0.

    Args:
        ends: the last level above 0 and the first one of the path.
        trained: the lowest and the highest level that training draws.
        guided: whether the denoiser is guided; it has no learned variance then.
    """
    low, high = ends
    if not low < high or math.isinf(high):
        return
    try:
        sigmas = schedule(steps, low, high, objective.table)
        if not _rising(sigmas.flip(0)) or sigmas[-1] != 0:
            yield f"evaluation: {schedule.label}: its levels must fall strictly, the last to 0."
            return
        if sigmas[0] > high * (1 + ROUNDED):
            yield (
                f"evaluation: {schedule.label} begins at sigma = {float(sigmas[0]):.4g}, and the "
                f"denoiser is trained up to {high:g}."
            )
            return
        if objective.table is not None:
            sigmas = snapped(sigmas, objective.table, *trained)
        few = torch.cat([sigmas[:2], sigmas[2:][-2:]])
        passed: list[Tensor] = []
        start = torch.full((1, 256), float(sigmas[0]))
        common = few, sampler, stream(0, "validity")
        zero = Zero() if objective.vlb is None or guided else ZeroLearned()
        end = sample(zero, start, *common, lambda i, s, x: passed.append(x))
        after, target = [*passed, end][1].square().mean().sqrt(), few[1]
        refused = refused_at_infinity(sampler, float(after), float(target))
        if few[0] >= TERMINAL and refused:
            yield f"evaluation: {refused}"
    except (InputError, ArithmeticError) as problem:
        yield f"evaluation: {one_line(problem)}"
    except Exception:  # a plugin's: the trial itself will fail and say why
        return


def unlearnt(objective: Objective, network: Network, elbo: str) -> Iterator[str]:
    """Why the variance cannot be learned, or the bound not be computed, a line each."""
    learned, table = objective.vlb is not None, objective.table
    for asked, what in ((learned, 'variance = "learned"'), (elbo != "off", "evaluation.elbo")):
        if not asked:
            continue
        if table is None:
            yield f'{what} is of steps between levels of a table: name one, such as table = "ddpm".'
        elif len(objective.levels) < 2:
            yield f"{what}: {table.label} has {len(objective.levels)} level in the density's range."
    if elbo == "learned" and not learned:
        yield 'evaluation.elbo = "learned" needs variance = "learned".'
    if not learned:
        return
    if not objective.noise.white:
        yield (
            f'variance = "learned": L_vlb is of a chain whose noise is white, and '
            f'{objective.noise.label} is not: write noise = "white".'
        )
    if objective.density.name != "table":
        yield (
            'variance = "learned": L_vlb is a sum over the levels of the table, drawn with equal '
            f'mass, and {objective.density.label} draws others: write density = "table".'
        )
    if not objective.parameterization.affine:
        yield f"{objective.parameterization.label} is not affine: its variance cannot be learned."
    if not network.takes_outputs:
        yield (
            f'variance = "learned" needs a network with twice the channels, F and nu: the build of '
            f"{network.label} does not take `outputs`."
        )


def unlikely(
    likelihood: Likelihood, ends: tuple[float, float], objective: Objective, data: Data
) -> Iterator[str]:
    """Why `evaluation.likelihood` cannot be measured, a line each; nothing where it can.

    `ends` are the lowest and the highest level that is measured.
    """
    (low, high), d = ends, data.train[0].numel()
    if not low < high:
        return
    if span(objective.density)[1] >= TERMINAL:
        yield (
            "evaluation.likelihood at sigma_max = infinity (zero terminal SNR): the density of "
            "x = x0 + sigma eps has no limit there. Give a finite sigma_max."
        )
        return
    if likelihood.samples > len(data.test):
        yield (
            f"evaluation.likelihood.samples = {likelihood.samples}: there are {len(data.test)} "
            "held-out samples."
        )
    if likelihood.divergence == "exact" and d > MOST_EXACT:
        yield (
            f"evaluation.likelihood: the exact divergence takes {d} reverse passes a level, one "
            f"for each dimension; at most {MOST_EXACT} are made: write "
            'divergence = "hutchinson".'
        )
    try:
        levels(likelihood.steps, low, high, objective.table)
    except InputError as problem:
        yield f"evaluation.likelihood: {problem}"


def ascends(table: NoiseTable) -> bool:
    """Whether a table's levels are positive, finite and ascending."""
    return bool((table.sigmas > 0).all()) and _rising(table.sigmas)


def _rising(levels: Tensor) -> bool:
    """Whether they are finite, each above the one before."""
    return bool(torch.isfinite(levels).all() and (levels.diff() > 0).all())


def _drawn_last(objective: Objective, table: NoiseTable) -> Iterator[str]:
    """A level at infinity is of use only if it is drawn."""
    top = objective.sigma(torch.tensor([1 - RARE], dtype=torch.float64))
    if not bool((top >= TERMINAL).all()):
        yield (
            f"{table.label} ends at sigma = infinity (zero terminal SNR), and "
            f"{objective.density.label} draws up to {float(top):.4g}: write sigma_max = inf and "
            'density = "table".'
        )


def _at_infinity(p: Parameterization, singular: bool) -> str:
    """Zero terminal SNR is sigma = infinity (Lin et al. 2024, sec. 3)."""
    if singular:
        return singular_at_infinity(p)
    return (
        f"{p.label} at sigma_max = infinity: training draws x = x0 + sigma eps, which has no "
        "limit there. Give a finite sigma_max."
    )


def _outside(label: str, allowed: tuple[float, float], low: float, high: float) -> Iterator[str]:
    if not allowed[0] < low <= high < allowed[1]:
        yield (
            f"{label} is defined for sigma between {allowed[0]:g} and {allowed[1]:g} (ends "
            f"excluded), the density draws sigma from {low:g} to {high:g}."
        )


def untrained(training: Training, network: Network, data: Data) -> Iterator[str]:
    """Which settings of training do not apply to this network or these data, a line each."""
    if training.checkpointing and not network.takes_checkpointing:
        yield (
            "training.checkpointing: the build of "
            f"{network.label} does not take `checkpointing`: its activations are kept."
        )
    if training.memory_format == "channels_last" and len(data.shape) != 3:
        yield (
            'training.memory_format = "channels_last" is of images (channels, height, width), and '
            f"samples have shape {data.shape}."
        )


def disordered(measured: tuple[float, float], sampled: tuple[float, float]) -> Iterator[str]:
    """Which range of noise levels of the evaluation is none, a line each."""
    for prefix, (low, high) in (("", measured), ("sampling_", sampled)):
        if not low < high:
            yield (
                f"evaluation.{prefix}sigma_max = {high:g} must be above "
                f"evaluation.{prefix}sigma_min = {low:g}."
            )


def unflippable(flips: float, shape: tuple[int, ...]) -> Iterator[str]:
    """Why samples of a shape cannot be mirrored."""
    if flips and len(shape) < 2:
        yield (
            f"training.flips = {flips:g} mirrors images, and the samples have shape {shape}: "
            "expected (channels, height, width)."
        )


def unmeasured(evaluation: Evaluation, steps: int) -> Iterator[str]:
    """Why a training of `steps` steps cannot be measured at its points or with its averages."""
    if late := [step for step in evaluation.at(steps) if step > steps]:
        yield f"evaluation.points = {late[0]} is beyond the end: training.steps = {steps}."
    for width in evaluation.widths:
        off = averages.error(averages.stored(steps), averages.Profile(steps, width))
        if off > averages.LARGEST_ERROR:
            yield (
                f"evaluation.widths = {width:g} cannot be reconstructed: from {averages.SNAPSHOTS} "
                f"snapshots of averages of widths {averages.WIDTHS[0]:g} and "
                f"{averages.WIDTHS[1]:g} its profile is {off:.0%} off, and at most "
                f"{averages.LARGEST_ERROR:.0%} is accepted. From about 0.02 to 0.25 it works."
            )


def _noise(
    p: Parameterization, c_noise: str, objective: Objective, network: Network
) -> Iterator[str]:
    """The network must take the kind of c_noise that it is given, over the range it gets."""
    table = objective.table
    if c_noise == "index" and table is None:
        yield 'c_noise = "index" is the index in a table: name one, such as table = "ddpm".'
        return
    if network.blind:
        return
    kind = noise_kind(c_noise, p)
    given = f"{p.label} gives c_noise"
    if c_noise in C_NOISE and c_noise != "shared":
        given = f'c_noise = "{c_noise}" gives it'
    if c_noise == "index" and table is not None:
        given = f"{table.label} gives an index"
    if kind not in network.noise:
        hint = 'c_noise = "shared" gives log_sigma.'
        if "index" in network.noise:
            hint = f'Its table has no entry at a {kind}: c_noise = "index" gives one, with a table.'
        how = "" if c_noise == "index" else f" as {kind!r}"
        yield f"{given}{how}, {network.label} takes {', '.join(sorted(network.noise))}. {hint}"
        return
    sigma, sd = _trained(objective), objective.sigma_data
    if c_noise == "index" and table is not None:
        values = table.c_noise(sigma, sd)
    elif c_noise in C_NOISE:
        values = C_NOISE[c_noise].function(sigma, sd)
    else:
        values = p.coefficients(sigma, sigma_data=sd).noise
    low, high = network.noise[kind]
    if not (low <= float(values.min()) and float(values.max()) <= high):
        yield (
            f"{given} from {float(values.min()):.3g} to {float(values.max()):.3g}, "
            f"{network.label} takes {kind} from {low:g} to {high:g}."
        )


def _numbers(objective: Objective) -> Iterator[str]:
    """Coefficients and weights must be numbers that training can use, in its float32."""
    p, sigma = objective.parameterization, _trained(objective)
    objective = objective.with_states(0)
    with torch.no_grad():
        if p.affine:
            c = p.coefficients(sigma, sigma_data=objective.sigma_data)
            for name, values in zip(("c_skip", "c_out", "c_in", "c_noise"), c, strict=True):
                yield from _finite(f"{p.label}: {name}", values, sigma)
            yield from _finite(f"{p.label}: 1/c_out, by which F is read from x0,", 1 / c.out, sigma)
            lost = _lost(objective, sigma)
            at = int(lost.nan_to_num().argmax())
            if lost[at] > objective.sigma_data:
                yield (
                    f"{p.label} with these options: |c_out F*| is {float(lost[at] * 2**24):.3g} at "
                    f"sigma = {float(sigma[at]):.3g}: one rounding of F in float32 moves D by "
                    f"{float(lost[at]):.3g}, more than sigma_data = {objective.sigma_data:.3g}. "
                    "Take other options, or a smaller range of sigma."
                )
        whose = objective.weighting.label if objective.weighting else objective.loss.label
        k = objective.k(sigma)
        yield from _finite(f"{whose}: the weight", k, sigma)
        if bool((k < 0).any()):
            yield f"{whose}: the weight is {float(k.min()):.3g} < 0 at some sigma."
        if bool((k == 0).all()):
            yield f"{whose}: the weight is 0 at every sigma of the density."
        if p.affine:
            names = ("k", "gain", "a", "b", "a_q", "b_q")
            for name, values in zip(names, objective.terms(sigma), strict=True):
                yield from _finite(
                    f"{p.label} with {whose}: the loss's factor {name} in float32", values, sigma
                )


def _lost(objective: Objective, sigma: Sigma) -> Tensor:
    """How far one rounding of F in float32 moves D: 2^-24 |c_out F*|, shaped like sigma.

    It is 0 for a parameterization that is not affine, whose D may be any function of F.
    """
    p, sd, sigma = objective.parameterization, objective.sigma_data, widen(sigma)
    if not p.affine:
        return torch.zeros_like(sigma)
    a, b = p.pair_weights(sigma, sigma_data=sd)
    reach = p.coefficients(sigma, sigma_data=sd).out.abs() * torch.sqrt((a * sd) ** 2 + b**2)
    return 2.0**-24 * reach


def _finite(what: str, values: Tensor, sigma: Tensor) -> Iterator[str]:
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        yield f"{what} is {float(values[at])} at sigma = {float(sigma[at]):.3g}."
