"""What is wrong with the trials of a study, told with the place in the file where it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from testbed.errors import InputError
from testbed.study.layers import Layers
from testbed.study.study_file import TrialTemplate
from testbed.study.validation import named, written
from testbed.trial.build import KEYS
from testbed.trial.config import TrialSettings

LABEL = re.compile(r"(?:\w+: )?(?:Unknown |No )?(\w+) '")
"""A message about a component begins so, as in `evaluation: schedule 'karras': rho = ...`."""
KEY = re.compile(r"((\w+)(?:\.\w+)*)(?: = |:)")
"""A message about a setting begins so, as in `training.flips = 0.5 mirrors images`."""
SHOWN = 3


@dataclass
class Problems:
    """What is wrong with the trials of a study file, each of it once.

    Args:
        file: the study file.
        templates: all of its trials.

    `found` has the names of the trials by the key of a setting, its place and the message; key and
    place are "" where the message is about no value that the file states.
    """

    file: str
    templates: Sequence[TrialTemplate]
    found: dict[tuple[str, str, str], dict[str, None]] = field(default_factory=dict)

    def add(self, problem: InputError, template: TrialTemplate) -> None:
        """Puts down all that is wrong with a trial."""
        for key, message in problem.problems():
            told = _told(key, message, template.layers)
            self.found.setdefault(told, {})[_name(template)] = None

    def lines(self) -> list[str]:
        """A line for each of them.

        The trials are named where the value stands in no place of the file, or is wrong in some of
        the trials that have it and right in others.
        """
        lines = []
        for (key, place, message), names in self.found.items():
            several = ", ".join(list(names)[:SHOWN])
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            having = {_name(one) for one in self.templates if one.layers.place(key) == place}
            if not place:
                message = f"{several}{more}: {message}"
            elif len(names) < len(having):
                message = f"{message} (in {several}{more})"
            lines.append(f"{self.file}: {message}")
        return lines


def _name(template: TrialTemplate) -> str:
    """`digits published v`: the case, the arm, and the parameterization or the fixed model."""
    last = template.fixed or template.settings.parameterization.name
    return " ".join(filter(None, (template.case, template.arm, last)))


def _told(key: str, message: str, layers: Layers) -> tuple[str, str, str]:
    """The key of the setting that a message is about, its place, and the message with both."""
    key = key or _key(message)
    value = layers.value(key)
    if isinstance(value, Mapping) and (inner := named(message, value)):
        key = f"{key}.{inner}"
    while key and not layers.place(key):
        key = key.rpartition(".")[0]
    if not key:
        return "", "", message
    value, place = layers.value(key), layers.place(key)
    given = "" if isinstance(value, Mapping | list) else f" = {written(value)}"
    for own in (f"{key} = {written(value)}", f"{key}:"):
        if message.startswith(own):
            return key, place, f"{place}{given}{message.removeprefix(own.rstrip(':'))}"
    return key, place, f"{place}{given}: {message}"


def _key(message: str) -> str:
    """The key of the setting that a message begins with; "" where it begins with none."""
    if (label := LABEL.match(message)) and label[1] in KEYS:
        return KEYS[label[1]]
    stated = KEY.match(message)
    return stated[1] if stated and stated[2] in TrialSettings.model_fields else ""
