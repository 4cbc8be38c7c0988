"""Mistakes in discrete denoisers: the table, the nearest level, and where it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from laws import noise_tables as tables
from mutants.registry import FAMILIES, Family, tests, wrong
from torch import Tensor

import testbed
from testbed import tensors
from testbed.data import scheduler_files
from testbed.data.level_files import FILE_TABLES, FileTable
from testbed.diffusion import noise_levels
from testbed.diffusion.noise_tables import NoiseTable
from testbed.training.objective import Objective

NEAREST = "tests.index_is_nearest"
RESCALED = "tests.rescaled_is_algorithm_1"
AT_LEVEL = "tests.everything_is_at_the_level"
STABILITY = "tests.discrete_is_stability"
IN_OPTIONS = "tests.a_file_is_in_the_options"
KEYS = "tests.scheduler_is_its_keys"
SHARED = "tests.training_quantises_before_noising"


# --- the nearest level ---------------------------------------------------------------------------

Index = Callable[[Tensor, Tensor, str], Tensor]
FAMILIES["nearest level"] = Family(
    "the index of the level nearest to a sigma, or to its logarithm",
    lambda index: tests(index_is_nearest=lambda: tables.law_index_is_nearest(index)),
    {"right": tables.of_table},
)


def nearest(mistake: str, index: Index) -> None:
    wrong("nearest level", mistake, index, NEAREST)


def middles(levels: Tensor) -> Tensor:
    return (levels[1:] + levels[:-1]) / 2


nearest(
    "the level below", lambda b, s, how: (torch.searchsorted(b, s, right=True) - 1).clamp(min=0)
)
nearest("the level above", lambda b, s, how: torch.searchsorted(b, s).clamp(max=len(b) - 1))
nearest("in sigma, whatever was asked", lambda b, s, how: tables.of_table(b, s, "sigma"))
nearest(
    "the two exchanged",
    lambda b, s, how: tables.of_table(b, s, "sigma" if how == "log_sigma" else "log_sigma"),
)
nearest(
    "counted from the noisiest",
    lambda b, s, how: len(b) - 1 - tables.of_table(b, s, how),
)
nearest("the first middle left out", lambda b, s, how: torch.bucketize(s, middles(b[1:])))

# --- zero terminal SNR ---------------------------------------------------------------------------

FAMILIES["rescaling"] = Family(
    "the levels of a table, rescaled to zero terminal SNR",
    lambda rescaled: tests(
        rescaled_is_algorithm_1=lambda: tables.law_rescaled_is_algorithm_1(rescaled)
    ),
    {"right": noise_levels.zero_terminal},
)


def through(map_: Callable[[Tensor], Tensor], power: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Rescaled through sqrt(abar)^power, with the last level moved to zero SNR by hand."""

    def rescaled(sigmas: Tensor) -> Tensor:
        root = (1 + sigmas**2) ** (-power / 2)
        bar = map_(root) ** (2 / power)
        found = torch.sqrt((1 - bar) / bar)
        found[-1] = noise_levels.TERMINAL
        return found

    return rescaled


def right(root: Tensor) -> Tensor:
    return root[0] * (root - root[-1]) / (root[0] - root[-1])


def rescaling(mistake: str, rescaled: Callable[[Tensor], Tensor]) -> None:
    wrong("rescaling", mistake, rescaled, RESCALED)


rescaling("abar for its root", through(right, 2.0))
rescaling("moved and not stretched", through(lambda root: root - root[-1]))
rescaling("stretched to 1", through(lambda root: (root - root[-1]) / (root[0] - root[-1])))
rescaling("the last level alone", through(lambda root: root))
rescaling("not at all", lambda sigmas: sigmas.clone())

# --- tables of files -----------------------------------------------------------------------------

FAMILIES["table of a file"] = Family(
    "a table whose levels stand in a file",
    lambda table: tests(
        a_file_is_in_the_options=lambda: tables.law_a_file_is_in_the_options(table)
    ),
    {"right": FILE_TABLES["betas"]},
)


class ReadAgain(FileTable):
    """The path is kept, and the file is read whenever the options are bound."""

    def bound(self, options: Mapping[str, Any]) -> Self:
        path = options.get("path")
        found = super().bound(options)
        kept = {**found.options, "path": path, self.contents: ()}
        object.__setattr__(found, "options", kept)
        return found


class Beside(FileTable):
    """The path stays beside the numbers."""

    def bound(self, options: Mapping[str, Any]) -> Self:
        found = super().bound({**options, "values": ()} if options.get("path") else options)
        found.options["path"] = options.get("path", "")
        return found


def of_file(mistake: str, kind: type[FileTable], **changes: Any) -> None:
    right = FILE_TABLES["betas"]
    given = {"levels": right.levels, "contents": right.contents, "read": right.read, **changes}
    wrong("table of a file", mistake, kind("betas", **given), IN_OPTIONS)


of_file("the file is read again", ReadAgain)
of_file("the path is another trial", Beside)
of_file("the numbers are rounded", FileTable, read=lambda path: (0.1, 0.2, 0.4))
of_file(
    "the root is left out",
    FileTable,
    levels=lambda values=(): noise_levels.ddpm_sigmas(torch.tensor(values).double()) ** 2,
)

FAMILIES["scheduler of diffusers"] = Family(
    "the levels of a scheduler's configuration",
    lambda levels: tests(scheduler_is_its_keys=lambda: tables.law_scheduler_is_its_keys(levels)),
    {"right": scheduler_files.sigmas_of},
)


def configured(mistake: str, **changes: Any) -> None:
    """The levels of a configuration in which keys have other values: a function of the old one."""

    def levels(config: dict[str, Any]) -> Tensor:
        changed = {key: change(config) for key, change in changes.items()}
        return scheduler_files.sigmas_of({**config, **changed})

    wrong("scheduler of diffusers", mistake, levels, KEYS)


configured("zero SNR ignored", rescale_betas_zero_snr=lambda config: False)
configured("trained betas ignored", trained_betas=lambda config: None)
configured("flow of a beta scheduler ignored", use_flow_sigmas=lambda config: False)
configured(
    "the shift inverted",
    shift=lambda config: 1 / config["shift"] if "shift" in config else None,
)
configured(
    "scaled_linear as linear",
    beta_schedule=lambda config: config.get("beta_schedule") and "linear",
)
configured("one level too many", num_train_timesteps=lambda config: 51)

# --- the denoiser --------------------------------------------------------------------------------


def of_build(build: tables.Build) -> set[str]:
    return tests(
        discrete_is_stability=lambda: tables.law_discrete_is_stability(build),
        everything_is_at_the_level=lambda: tables.law_everything_is_at_the_level(build),
    )


FAMILIES["discrete denoiser"] = Family(
    "D at the nearest level of a table, with its index or value as c_noise",
    of_build,
    {"right": tables.discrete},
)


def built(kind: type[testbed.Denoiser]) -> tables.Build:
    def build(name: str, t: NoiseTable, c_noise: str = "index") -> testbed.Denoiser:
        p = tables.default_registry().parameterization(name)
        return kind(tables.Tanh(), p, 0.5, c_noise=c_noise, table=t)

    return build


class CoefficientsAtSigma(testbed.Denoiser):
    """c_skip and c_out at the sigma that was asked for."""

    def forward(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        F = self.output(x, sigma, condition)
        return self.parameterization.denoise(F, x, sigma, sigma_data=self.sigma_data)


class InputsAtSigma(testbed.Denoiser):
    """c_in at the sigma that was asked for."""

    def inputs(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        _, c_noise = super().inputs(sigma)
        c = self.parameterization.coefficients(sigma.double(), sigma_data=self.sigma_data)
        return c.in_, c_noise

    def forward(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        F, level = self.output(x, sigma, condition), self.level(sigma)
        return self.parameterization.denoise(F, x, level, sigma_data=self.sigma_data)


class FromOne(testbed.Denoiser):
    """The first level has the index 1."""

    def inputs(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        c_in, c_noise = super().inputs(sigma)
        return c_in, c_noise + 1


class Nothing(testbed.Denoiser):
    """No sigma is quantised."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._lookup = None

    def level(self, sigma: Any) -> Tensor:
        return tensors.widen(sigma)


class ScoreAtSigma(testbed.Denoiser):
    """The score at the sigma that was asked for."""

    def score(self, x: Tensor, sigma: Any, condition: Any = None) -> Tensor:
        return (self(x, sigma) - x) / tensors.per_sample(sigma, x) ** 2


def denoiser(mistake: str, kind: type[testbed.Denoiser], meant: str, *also: str) -> None:
    wrong("discrete denoiser", mistake, built(kind), meant, *also)


denoiser("c_skip and c_out at sigma", CoefficientsAtSigma, AT_LEVEL, STABILITY)
denoiser("c_in at sigma", InputsAtSigma, AT_LEVEL, STABILITY)
denoiser("indices from one", FromOne, AT_LEVEL, STABILITY)
denoiser("nothing is quantised", Nothing, AT_LEVEL, STABILITY)
denoiser("the score at sigma", ScoreAtSigma, AT_LEVEL)

# --- training ------------------------------------------------------------------------------------


class AsDrawn(Objective):
    """The levels are quantised by the denoiser alone, after noising."""

    def sigma(self, u: Tensor) -> Tensor:
        return self.density.sigma(u)


class WeightAsDrawn(Objective):
    """The weight does not know the level."""

    def k(self, sigma: Tensor) -> Tensor:
        return super().k(1.01 * sigma)


def of_objective(kind: type[Objective]) -> set[str]:
    one = tables.objective(tables.few())
    changed = kind(**{name: getattr(one, name) for name in one.__dataclass_fields__})
    return tests(
        training_quantises_before_noising=lambda: tables.law_training_quantises_before_noising(
            changed
        )
    )


FAMILIES["discrete training"] = Family(
    "what is drawn, noised and weighted of a trial with a table", of_objective, {"right": Objective}
)
wrong("discrete training", "noised before it is quantised", AsDrawn, SHARED)
wrong("discrete training", "weighted at another level", WeightAsDrawn, SHARED)
