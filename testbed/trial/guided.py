"""The guided denoisers of a trial: its trained one, and the exact one that it ought to be."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testbed.components.dataset import Data
from testbed.components.guidance import Condition, Denoise, GuidanceMethod, LogClasses
from testbed.components.metric import MetricValue
from testbed.diffusion.denoiser import Denoiser
from testbed.metrics import denoising, guidance
from testbed.random import stream
from testbed.registry import Registry
from testbed.sampling.guidance_methods import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    NoGuidance,
)
from testbed.training import classifier
from testbed.trial.build import component
from testbed.trial.config import TrialConfig

if TYPE_CHECKING:
    import pandas as pd


@functools.lru_cache(maxsize=64)
def _classifier(
    data: Data, of: str, low: float, high: float, settings: classifier.ClassifierSettings, seed: int
) -> classifier.Classifier:
    """One for all trials of a data set and a seed, trained once a process."""
    return classifier.train(data, of, low, high, settings, seed)


class Guide:
    """How the samples of a trial are guided.

    Args:
        config: the trial's resolved configuration.
        data: its data.
        denoiser: its trained denoiser, on `device`.
        negatives: of classifier-free guidance, the classes of D_n by condition in place of those of
            the configuration.
    """

    def __init__(
        self,
        config: TrialConfig,
        registry: Registry,
        data: Data,
        denoiser: Denoiser,
        device: torch.device,
        negatives: Mapping[str, int] | None = None,
    ) -> None:
        guidance = component(registry, "guidance", config.evaluation.guidance)
        self.conditions: Mapping[str, float] = config.conditions
        self.way: GuidanceMethod = guidance.build()
        if isinstance(self.way, ClassifierFreeGuidance):
            of_config = self.way.negatives(config.conditions, data)
            self.way = self.way.against(of_config if negatives is None else negatives)
        self.config, self.data, self.denoiser, self.device = config, data, denoiser, device
        exact = data.conditional
        self._exact = exact.to(device) if self.guides and exact is not None else None

    @property
    def names(self) -> list[str]:
        """The conditions whose classes a sample needs."""
        return self.way.classes(self.conditions)

    def held(self, index: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The classes of rows of the test split, name -> (n,); of `names` where they are given."""
        names = self.names if names is None else names
        return {k: y[index] for k, y in self.data.condition("test", names).items()}

    def of_samples(self, n: int, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The classes of n samples: those of held-out rows, the same ones for every trial."""
        return self.held(denoising.rows(self.data, n, stream(0, "samples/condition")), names)

    def trained(self, condition: Condition) -> Denoise:
        """The trial's own guided denoiser for samples of these classes."""
        return self.way.denoiser(self.denoiser, self._log_classes(), self._here(condition))

    @property
    def guides(self) -> bool:
        """Whether samples follow another denoiser than the trial's own under its conditions."""
        return not isinstance(self.way, NoGuidance)

    def unguided(self, condition: Condition) -> Denoise:
        """The trial's denoiser for samples of these classes of its own conditions, at w = 1."""
        return NoGuidance().denoiser(self.denoiser, None, self._here(condition))

    def exact(self, condition: Condition) -> Denoise | None:
        """The exactly guided oracle for them; None without guidance or where it is not known."""
        if self._exact is None:
            return None
        log_classes = None
        if isinstance(self.way, ClassifierGuidance):
            log_classes = functools.partial(self._exact.log_classes, self.way.of)
        return self.way.denoiser(self._exact.denoise, log_classes, self._here(condition))

    def _here(self, condition: Condition) -> dict[str, Tensor]:
        return {name: y.to(self.device) for name, y in condition.items()}

    def _log_classes(self) -> LogClasses | None:
        if not isinstance(self.way, ClassifierGuidance):
            return None
        ranges = self.config.measured, self.config.sampled
        low, high = min(one[0] for one in ranges), max(one[1] for one in ranges)
        settings, seed = self.way.settings(), self.config.seed
        found = _classifier(self.data, self.way.of, low, high, settings, seed)
        return found.to(self.device)

    def measured(
        self, against: denoising.HeldOutPairs, levels: pd.DataFrame, counted: NDArray[np.bool_]
    ) -> tuple[dict[str, MetricValue], pd.DataFrame | None]:
        """Adds the guided columns to the table by level.

        Args:
            counted: which of the levels (L,) the metrics are made of.

        Returns:
            excess_guided_nats and classifier_nats, the classifier's E KL(p* || p) averaged over
            the levels; and the classifier's own table by level. Nothing and None where the exact
            answer is not known.
        """
        condition = self.held(against.index)
        exact = self.exact(condition)
        if exact is None or self._exact is None:
            return {}, None
        found = guidance.per_level(self.trained(condition), exact, against, self.device)
        for name, values in found.items():
            levels[name] = values
        dim = self._exact.oracle.dim
        metrics = {"excess_guided_nats": denoising.integral(levels[counted], "excess_guided", dim)}
        log_classes = self._log_classes()
        if log_classes is None or not isinstance(self.way, ClassifierGuidance):
            return metrics, None
        of = self.way.of
        right = functools.partial(self._exact.log_classes, of)
        table = guidance.classified(log_classes, right, condition[of], against, self.device)
        return {
            **metrics,
            "classifier_nats": MetricValue(float(table["kl_nats"][counted].mean())),
        }, table
