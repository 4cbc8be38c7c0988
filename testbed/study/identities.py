"""The Tweedie identities of a study, checked on slots that no training wants, and kept.

`identities.json` in the study's folder holds the rows of each subject by the digest of all that
they depend on: its components and their options, the sources, the plugins' versions and the data.
A study that runs again checks only what has changed, or has failed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from testbed.diffusion.outputs import with_output
from testbed.registry import Registry
from testbed.study.executors.base import Executor
from testbed.study.plan import Plan
from testbed.trial import sources
from testbed.trial.build import component, dataset, registry_of
from testbed.trial.config import TrialConfig
from testbed.trial.devices import one_thread
from testbed.trial.encoder import Encoder
from testbed.trial.specs import ComponentSpec, canonical

if TYPE_CHECKING:  # a second to import, which the driver does without
    from testbed import audit

FILE = "identities.json"
TRIES = 3


class Subject(NamedTuple):
    """What is checked together, in a worker: one parameterization on the data of one case."""

    parameterization: ComponentSpec
    dataset: ComponentSpec
    encoder: Encoder | None
    sampler: ComponentSpec
    output: str
    sigma_data: float
    plugins: Sequence[str]
    plugin_dirs: Sequence[str]

    @classmethod
    def of(cls, config: TrialConfig, registry: Registry) -> Subject:
        """The subject of a trial."""
        return cls(
            config.parameterization,
            config.dataset,
            config.encoder,
            config.evaluation.sampler,
            config.output,
            config.sigma_data,
            registry.plugins,
            registry.plugin_dirs,
        )

    @property
    def text(self) -> str:
        """Equal for equal subjects."""
        specs = self.parameterization, self.dataset, self.sampler
        encoder = self.encoder and self.encoder.model_dump_json()
        return canonical([*(spec.text for spec in specs), encoder, self.output, self.sigma_data])

    def on(self, device: str) -> Subject:
        """Itself: identities are checked on the CPU."""
        return self

    def run(self, stop: Callable[[], bool]) -> list[audit.LawCheck]:
        """Checks the parameterization, the sampler, and both on the data where they have an oracle.

        It takes about a second, and does not ask `stop`.
        """
        from testbed import audit

        with one_thread():
            registry = registry_of(tuple(self.plugins), tuple(self.plugin_dirs))
            p = component(registry, "parameterization", self.parameterization)
            p = with_output(p, self.output)
            oracle = dataset(registry, self.dataset, self.encoder).oracle
            found = audit.check_parameterization(p, self.sigma_data)
            sampler = component(registry, "sampler", self.sampler)
            found += audit.check_sampler(p, self.sigma_data, [sampler])
            if oracle is not None:
                found += audit.check_parameterization(p, self.sigma_data, oracle)
        return found


class Identities:
    """The identities of every parameterization, sampler and oracle in a plan.

    Args:
        plan: the trials of the study.
        registry: its plugins.
    """

    def __init__(self, plan: Plan, registry: Registry) -> None:
        self._files = plan.files
        self._subjects = subjects(plan, registry)
        stored = self._files.checked(FILE)
        self._kept = {key: stored[key] for key in self._subjects if key in stored}
        self._waiting = [key for key in self._subjects if key not in self._kept]
        self._running: dict[str, Future[list[audit.LawCheck]]] = {}
        self._done: dict[str, Future[list[audit.LawCheck]]] = {}
        self._tries = dict.fromkeys(self._waiting, 0)

    @property
    def pending(self) -> bool:
        """Whether a subject is still to be checked."""
        return bool(self._waiting or self._running)

    @property
    def running(self) -> list[Future[list[audit.LawCheck]]]:
        """What occupies a slot each."""
        return [*self._running.values()]

    def advance(self, executor: Executor, free: int) -> None:
        """Takes what is done, and starts a subject on each of `free` slots.

        A worker that was killed is worth two more tries. What a check raises is kept for `rows`:
        it must not stop a training.
        """
        for key, future in list(self._running.items()):
            if not future.done():
                continue
            del self._running[key]
            if isinstance(future.exception(), BrokenExecutor) and self._tries[key] < TRIES:
                self._waiting.insert(0, key)
            else:
                self._done[key] = future
        while self._waiting and len(self._running) < free:
            key = self._waiting.pop(0)
            self._tries[key] += 1
            self._running[key] = executor.submit(self._subjects[key])

    def rows(self) -> list[audit.LawCheck]:
        """The checks of all subjects, in the order of the plan; they are kept where all hold.

        Raises:
            Exception: what a component has raised in a worker.
        """
        from testbed import audit

        read = audit.LawCheck.read
        found = {key: [*map(read, rows)] for key, rows in self._kept.items()}
        for key, future in self._done.items():
            found[key] = future.result()
            if all(row.passed for row in found[key]):
                self._kept[key] = [asdict(row) for row in found[key]]
        if self._done:
            self._files.put_checked(FILE, self._kept)
        return [row for key in self._subjects for row in found[key]]


def subjects(plan: Plan, registry: Registry) -> dict[str, Subject]:
    """What is to be checked of a plan, each once and in its order, by digest."""
    found: dict[str, tuple[Subject, TrialConfig]] = {}
    for trial in plan.trials:
        subject = Subject.of(trial.config, registry)
        found.setdefault(subject.text, (subject, trial.config))
    return {_digest(subject, config): subject for subject, config in found.values()}


def _digest(subject: Subject, config: TrialConfig) -> str:
    """Of all that the rows of a subject depend on."""
    parts: Mapping[str, Any] = {
        "subject": subject.text,
        "sources": [config.sources, sources.digest([__name__])],
        "plugins": config.plugins,
        "data": config.data_digest,
        "torch": torch.__version__,
    }
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:16]
