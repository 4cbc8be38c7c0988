"""`testbed study --until-decided`: seeds for the variants that are undecided, look by look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from testbed.cli import terminal
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.report.comparisons import Comparisons, Versus
    from testbed.report.results import Results
    from testbed.study.looks import Label, Seeds
    from testbed.study.plan import Plan
    from testbed.study.session import Ending

AT_MOST = 30
"""Most seeds of a variant, where the command line names no number."""


def most(until_decided: bool, at_most: int | None, trial: str) -> int | None:
    """The most seeds of a variant that the command line allows; None where none are added.

    Raises:
        InputError: options that do not go together.
    """
    if not until_decided:
        if at_most is not None:
            raise InputError(f"--at-most {at_most} belongs to --until-decided, which is not given.")
        return None
    if trial:
        raise InputError(
            "--until-decided and --trial do not go together: one trial decides nothing."
        )
    return AT_MOST if at_most is None else at_most


def until_decided(
    made: Plan,
    ending: Ending,
    at_most: int,
    replan: Callable[[], Plan],
    run: Callable[[Plan], Ending],
) -> tuple[Plan, Ending, str]:
    """Adds a seed to what is undecided and runs the study again, until nothing is or may be.

    What it adds is written into the study's folder before it runs, so that the same command
    resumes. It stops where a trial fails, an identity fails, or the study is interrupted.

    Returns:
        The last plan and how it ended; and what is undecided with as many seeds as are allowed, in
        a sentence, or nothing.
    """
    from testbed.report import comparisons, reading, seeds
    from testbed.study import looks

    while ending.exit_code == 0:
        read = reading.read(made.folder)
        compared = comparisons.make(read)
        left = seeds.undecided(compared)
        for line in look_lines(read, compared, left):
            terminal.console().print(line, markup=False, highlight=False)
        more = next_seeds(made, left, at_most)
        if not more:
            return made, ending, _too_few(left)
        looks.write(made.files, looks.read(made.files).adding(more))
        made = replan()
        ending = run(made)
    return made, ending, ""


def look_lines(read: Results, compared: Comparisons, left: list[Versus]) -> Iterator[str]:
    """What a look decides, in a line for each case and arm."""
    from testbed.report.words import effect_text, listed

    for case in read.cases:
        for arm in read.arms(case):
            here = compared.with_baseline(case, arm)
            said = [
                f"{one.variant} is {one.verdict} against {one.against} "
                f"({effect_text(c.ratio, c.low, c.high)})"
                if (c := one.comparison) and not one.reason
                else f"{one.variant}: {one.verdict}"
                for one in here
                if one not in left
            ]
            open_ = [f"{one.variant} ({_count(one)})" for one in here if one in left]
            said += [f"undecided: {listed(open_)}"] if open_ else []
            where = ", ".join(filter(None, (case, arm)))
            yield f"Look {read.look.number}{where and f', {where}'}: {'; '.join(said) or '–'}"


def next_seeds(made: Plan, left: list[Versus], at_most: int) -> Seeds:
    """One more seed for each undecided variant that may have one, and for its baseline."""
    from testbed.report.reading import arm_names

    listed = [{"id": trial.id, "labels": trial.labels} for trial in made.trials]
    names = arm_names(listed)
    planned = made.seeds()
    more: dict[Label, set[int]] = {}
    for one in left:
        for case, arm in (key for key, name in names.items() if key[0] == one.case):
            mine = planned.get((case, arm, one.variant))
            if names[case, arm] != one.arm or mine is None or len(mine) >= at_most:
                continue
            for variant in (one.variant, one.against):
                more.setdefault((case, arm, variant), set()).add(max(mine) + 1)
    return {label: tuple(sorted(seeds)) for label, seeds in more.items()}


def _count(one: Versus) -> str:
    """The number of seeds of a comparison."""
    n = one.comparison.seeds if one.comparison else 0
    return f"{n} {'seed' if n == 1 else 'seeds'}"


def _too_few(left: list[Versus]) -> str:
    from testbed.report.words import listed

    if not left:
        return ""
    names = [
        f"{' '.join(filter(None, (one.variant, one.case, one.arm)))} ({_count(one)})"
        for one in left
    ]
    return (
        f"Undecided, with as many seeds as --at-most allows: {listed(names)}. Neither a "
        "difference was shown nor that there is none."
    )
