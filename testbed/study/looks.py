"""How often the results of a study were looked at: `looks.json` in its folder.

A look is the report written over a set of seeds that no report was written over before. Only seeds
that can be tested count: a label (case, arm, variant) with fewer than three that ended has no test,
so that a first try with one or two seeds spends nothing. Variants, arms and cases that come later
belong to the look at whose seeds they have. The design, fixed or sequential, is written before the
first trial runs and stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from testbed.errors import InputError
from testbed.metrics.looks import Design, Look
from testbed.trial.folders import ENDED
from testbed.trial.study_folder import StudyFolder

FILE = "looks.json"
NOT_TRAINED = "fixed"
"""The key of the label of a fixed model, which has no seeds and is in no comparison."""
APART = frozenset({"budget", NOT_TRAINED})
"""Keys of labels that are no variant's own."""
Label = tuple[str, str, str]
"""Case, arm and variant, as in the study file."""
Seeds = Mapping[Label, Sequence[int]]
"""Seeds by label, in order."""


@dataclass(frozen=True)
class Looks:
    """What `looks.json` holds."""

    design: Design = "fixed"
    past: tuple[Seeds, ...] = ()
    """The seeds of each look so far, the first look first."""
    extra: Seeds = field(default_factory=dict)
    """Seeds that the study has beyond those of its file, since `--until-decided` added them."""

    def at(self, ended: Seeds) -> tuple[Look, Looks]:
        """Returns the look over these seeds, and the record with it.

        Args:
            ended: the seeds with a result.
        """
        from testbed.metrics.paired_tests import MIN_SEEDS

        here = {label: tuple(seeds) for label, seeds in ended.items() if len(seeds) >= MIN_SEEDS}
        for index, past in enumerate(self.past):
            if all(past.get(label, seeds) == seeds for label, seeds in here.items()):
                merged = (*self.past[:index], {**past, **here}, *self.past[index + 1 :])
                return Look(self.design, index + 1, len(self.past) > 1), self._with(merged)
        if not here:
            return Look(self.design, max(1, len(self.past)), len(self.past) > 1), self
        looks = (*self.past, here)
        return Look(self.design, len(looks), len(looks) > 1), self._with(looks)

    def _with(self, past: tuple[Seeds, ...]) -> Looks:
        return Looks(self.design, past, self.extra)

    def adding(self, more: Seeds) -> Looks:
        """Returns the record with further seeds of the study."""
        labels = dict.fromkeys((*self.extra, *more))
        extra = {
            one: tuple(sorted({*self.extra.get(one, ()), *more.get(one, ())})) for one in labels
        }
        return Looks(self.design, self.past, extra)


def read(files: StudyFolder) -> Looks:
    """Returns the record of a study's folder; without one, it is a fixed design not looked at.

    Raises:
        InputError: the file is damaged, so that it is not known how often results were looked at.
    """
    if not files.has(FILE):
        return Looks()
    lost = (
        f"{files.path / FILE}: is damaged, and it alone says which test the study was begun with "
        "and how often its results were looked at. Restore it, or begin anew with --out."
    )
    try:
        found = files.json(FILE)
        design = found["design"]
        past = tuple(map(_seeds, found["looks"]))
        extra = _seeds(found["extra"])
    except (InputError, KeyError, TypeError, ValueError):
        raise InputError(lost) from None
    if design not in ("fixed", "sequential"):
        raise InputError(lost)
    return Looks(cast(Design, design), past, extra)


def write(files: StudyFolder, looks: Looks) -> None:
    """Writes the record.

    Raises:
        OSError: the folder cannot be written to.
    """
    record = {
        "design": looks.design,
        "looks": [_rows(seeds) for seeds in looks.past],
        "extra": _rows(looks.extra),
    }
    files.put_json(FILE, record)


def conflicts(files: StudyFolder, design: Design, at_most: int | None) -> Iterator[str]:
    """Yields what stands in the way of a study of this design in this folder.

    Args:
        files: the study's folder.
        design: `report.looks` of the study.
        at_most: most seeds of a variant where seeds are added until all is decided, else None.

    Raises:
        InputError: see `read`.
    """
    if at_most is not None and at_most < 1:
        yield f"--at-most {at_most} must be at least 1."
    if at_most is not None and design != "sequential":
        yield (
            'report.looks = "fixed": --until-decided needs "sequential", set before the first '
            "result, since a t test that is repeated until it decides is wrong far more often "
            "than it says. --set 'report.looks=\"sequential\"' sets it."
        )
    begun = read(files).design
    results = sum(trial.ended() for trial in files.trials()) if begun != design else 0
    if results:
        yield (
            f'report.looks = "{design}": the study in {files.path} was begun with "{begun}" and '
            f"has results of {results} trials. Which test is made must be fixed before the first "
            f'result: set report.looks = "{begun}", or begin anew in another folder with --out.'
        )


def note(files: StudyFolder, planned: Seeds) -> str:
    """Returns that these seeds are a further look at a fixed study, or nothing.

    Raises:
        InputError: see `read`.
    """
    before = read(files)
    if before.design == "sequential" or not before.past:
        return ""
    look, _ = before.at(planned)
    if not look.added:
        return ""
    return (
        "The number of seeds was fixed, and results have been looked at with another: as look "
        f"{look.number} the report tests at alpha/({look.number} * {look.number + 1})."
    )


def begin(files: StudyFolder, design: Design) -> None:
    """Writes the design of a study before it has results.

    A folder of results from before there was this record had one look if it has a report.

    Raises:
        InputError: see `read`.
    """
    looks = read(files)
    if files.has(FILE) and looks.design == design:
        return
    looks = Looks(design, (), looks.extra)
    if not files.has(FILE) and files.report.has("report.html"):
        _, looks = looks.at(ended(files, files.json_or_empty("study.json").get("trials") or ()))
    write(files, looks)


def record(files: StudyFolder, ended: Seeds) -> None:
    """Records that a report is written over the seeds that have a result.

    Raises:
        InputError: see `read`.
        OSError: the folder cannot be written to.
    """
    before = read(files)
    _, after = before.at(ended)
    if after != before:
        write(files, after)


def ended(files: StudyFolder, listed: Iterable[Mapping[str, Any]]) -> Seeds:
    """Returns the seeds with a result by label.

    Args:
        files: the study's folder.
        listed: `trials` of study.json: the id of each trial and its labels.
    """
    having = (
        (entry["labels"], seed_of(files.trial(str(entry["id"])).json_or_empty("trial.json")))
        for entry in listed
        if files.state(str(entry["id"])) in ENDED
    )
    return seeds_of(having)


def seed_of(described: Mapping[str, Any]) -> int | None:
    """Returns the seed of a trial; None where its trial.json is damaged, which the report says."""
    seed = (described.get("config") or {}).get("seed")
    return seed if isinstance(seed, int) else None


def seeds_of(trials: Iterable[tuple[Sequence[Mapping[str, str]], int | None]]) -> Seeds:
    """Returns the seeds by label of trials, of which each has labels and a seed."""
    found: dict[Label, set[int]] = {}
    for labels, seed in trials:
        if seed is None:
            continue
        for label in (one for one in labels if APART.isdisjoint(one)):
            found.setdefault((label["case"], label["arm"], label["variant"]), set()).add(seed)
    return {label: tuple(sorted(seeds)) for label, seeds in found.items()}


def _rows(seeds: Seeds) -> list[list[Any]]:
    return [[*label, list(numbers)] for label, numbers in seeds.items()]


def _seeds(rows: Iterable[Sequence[Any]]) -> Seeds:
    return {
        (str(case), str(arm), str(variant)): tuple(map(int, numbers))
        for case, arm, variant, numbers in rows
    }
