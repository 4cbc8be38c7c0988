"""Wrong installations: the library with one line of a function changed, which `selftest` finds."""

import inspect
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from unittest.mock import patch

from mutants.registry import FAMILIES, Family, wrong

from testbed.components.dataset import Data
from testbed.components.density import Density
from testbed.diffusion.correlated import Noise
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics import information, intervals
from testbed.registry import default_registry
from testbed.sampling import likelihood, solvers
from testbed.selftest.law import LAWS, Broken, Setup
from testbed.selftest.running import DTYPES
from testbed.training import trainer
from testbed.training.objective import Objective
from testbed.training.weights import Weights

FUTURE = "from __future__ import annotations\n"


def failed(names: tuple[str, ...]) -> set[str]:
    """The laws of the self-test, of these, that are broken."""
    found = set()
    for law in LAWS:
        if law.name in names:
            try:
                law.run(Setup(0, DTYPES["float64"], default_registry()))
            except Broken:
                found.add(f"selftest.{law.name}")
    return found


FAMILIES["installation"] = Family(
    "the installed package, by the law of `testbed selftest` that is to see it",
    failed,
    {"every law": tuple(law.name for law in LAWS)},
    {f"selftest.{law.name}": law.sentence for law in LAWS},
)


def changed(owner: Any, name: str, old: str, new: str) -> AbstractContextManager[Any]:
    """The function of a module or class with `old`, which it has exactly once, replaced."""
    function = vars(owner)[name]
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, (name, old, source.count(old))
    namespace: dict[str, Any] = {**function.__globals__}
    exec(compile(FUTURE + source.replace(old, new), "mutant", "exec"), namespace)
    return patch.object(owner, name, namespace[name])


def mutant(mistake: str, law: str, owner: Any, name: str, old: str, new: str) -> None:
    """Enters a change of a function, and the law that sees it."""
    put: Callable[[], AbstractContextManager[Any]] = partial(changed, owner, name, old, new)
    wrong("installation", mistake, (law,), f"selftest.{law}", patch=put)


# --- named when the self-test was planned ---------------------------------------------------------

mutant(
    "c_in dropped", "denoiser", Denoiser, "_answer",
    "(per_sample(c_in, x).to(wide) * x)", "x.to(wide)",
)  # fmt: skip
mutant(
    "the weight twice", "loss", Objective, "k",
    "return weight / slope", "return weight * weight / slope",
)  # fmt: skip
mutant(
    "the batch's mean sigma", "loss", Objective, "terms",
    "self.parameterization, sigma.double()",
    "self.parameterization, sigma.double().mean().expand_as(sigma)",
)  # fmt: skip
mutant(
    "the likelihood's integral with the other sign", "likelihood", likelihood, "log_likelihood",
    "double() + gained.mean(0)", "double() - gained.mean(0)",
)  # fmt: skip
mutant(
    "a normal density without its 2", "likelihood", likelihood, "normal_log_density",
    "math.log(2 * math.pi * variance)", "math.log(math.pi * variance)",
)  # fmt: skip
mutant(
    "an average that follows by its decay", "training", Weights, "update",
    "1 - rates.decay(settings, step)", "rates.decay(settings, step)",
)  # fmt: skip

# --- written when the self-test was finished ------------------------------------------------------

mutant(
    "the score with the other sign", "denoiser", Denoiser, "score",
    "return convert(", "return -convert(",
)  # fmt: skip
mutant(
    "the gradient of the sum of a batch", "training", trainer, "accumulated",
    "value.mean(dim).sum() / (parts", "value.sum() / (parts",
)  # fmt: skip
mutant(
    "an average that starts at zero", "adam", Weights, "__init__",
    "self.ema = self.W.clone()", "self.ema = torch.zeros_like(self.W)",
)  # fmt: skip
mutant(
    "a density that is cut at its lower end alone", "draws", Density, "sigma",
    "u.double() * (high - low)", "u.double() * (1 - low)",
)  # fmt: skip
mutant(
    "a step that keeps x in the place of D", "ode", solvers, "toward",
    "return D + ratio * (x - D)", "return x + ratio * (D - x)",
)  # fmt: skip
mutant(
    "sigma_data about the mean", "scale", Data, "__post_init__",
    "math.sqrt(energy / self.train.numel())", "float(self.train.double().std(correction=0))",
)  # fmt: skip
mutant(
    "a t interval of a normal quantile", "statistics", intervals, "t_interval",
    "_t_quantile((1 + level) / 2, n - 1)", "float(stats.norm.ppf((1 + level) / 2))",
)  # fmt: skip
mutant(
    "bits with the quantum's other sign", "likelihood", likelihood, "bits_per_dim",
    "-log_p - d * math.log(quantum)", "-log_p + d * math.log(quantum)",
)  # fmt: skip
mutant(
    "KL over sigma^3", "risk", information, "kl_bound",
    "d * excess / sigma**2", "d * excess / sigma**3",
)  # fmt: skip
mutant(
    "offset noise that is not in the target", "training", Noise, "pair",
    "return n, n if self.in_target else eps", "return n, eps",
)  # fmt: skip
