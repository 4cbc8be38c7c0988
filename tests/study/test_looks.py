"""How often results were looked at, seeds that are added, and what seeds can show."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.command_line import run_here, without_identities
from helpers.planted_studies import Planted, noisy, plant
from helpers.studies import SMALL, planned
from scipy import stats

from testbed import report
from testbed.cli import seeds_added
from testbed.errors import InputError
from testbed.metrics.comparison import compare
from testbed.metrics.looks import Look
from testbed.metrics.paired_tests import ALPHA
from testbed.report import comparisons, reading, seeds
from testbed.report.seeds import Detectable, SeedSpread
from testbed.study import looks, plan
from testbed.study.looks import Looks, Seeds
from testbed.trial.study_folder import StudyFolder

A, B = ("c", "", "a"), ("c", "", "b")
DESIGN = {"baseline": "b", "primary": "", "level": 0.95}

# --- counting looks -------------------------------------------------------------------------------


def counted(*ended: Seeds) -> tuple[Look, Looks]:
    """The last of these looks, and the record of all."""
    look, record = Look(), Looks()
    for one in ended:
        look, record = record.at(one)
    return look, record


def first(n: int) -> Seeds:
    return {A: tuple(range(n)), B: tuple(range(n))}


@pytest.mark.parametrize(
    ("ended", "number", "added"),
    [
        ([first(3)], 1, False),
        ([first(3), first(3)], 1, False),
        ([first(3), first(5)], 2, True),
        ([first(3), first(5), first(6)], 3, True),
        # What was looked at before keeps its number, now that seeds were added after it.
        ([first(3), first(5), first(3)], 1, True),
        # Seeds left out of what was looked at are another choice of seeds.
        ([first(5), first(4)], 2, True),
        ([first(3), {A: (0, 1, 2), B: (0, 1, 3)}], 2, True),
        # One seed or two have no test, so that looking at them spends nothing.
        ([first(1), first(2), first(5)], 1, False),
        # A variant or a case that comes later is not looked at a second time.
        ([{A: (0, 1, 2)}, first(3)], 1, False),
        ([first(3), {B: (0, 1, 2)}, {A: (0, 1, 2)}], 1, False),
        ([{}, first(3)], 1, False),
    ],
)
def test_a_look_is_a_new_set_of_seeds_that_can_be_tested(
    ended: list[Seeds], number: int, added: bool
) -> None:
    look, _ = counted(*ended)
    assert (look.number, look.added) == (number, added)


def test_the_record_is_what_was_written(tmp_path: Path) -> None:
    _, record = counted(first(3), first(5))
    record = replace(record, design="sequential").adding({A: (7, 6)}).adding({A: (6,), B: (8,)})
    assert record.extra == {A: (6, 7), B: (8,)}
    files = StudyFolder.at(tmp_path)
    looks.write(files, record)
    assert looks.read(files) == record
    assert looks.read(StudyFolder.at(tmp_path / "none")) == Looks()


def test_the_plan_says_that_seeds_are_added_to_a_fixed_study(tmp_path: Path) -> None:
    made = planned(SMALL, tmp_path, seeds=3)
    assert not any("looked at" in line for line in plan.notes(made))
    looks.write(made.files, Looks().at(made.seeds())[1])
    assert not any("looked at" in line for line in plan.notes(made))
    more = planned(SMALL, tmp_path, seeds=5)
    said = "as look 2 the report tests at alpha/(2 * 3)."
    assert [line.endswith(said) for line in plan.notes(more)] == [True]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"design": "open", "looks": [], "extra": []}',
                '{"design": "fixed", "looks": [[1]], "extra": []}']
)  # fmt: skip
def test_a_damaged_record_is_one_clear_message(tmp_path: Path, content: str) -> None:
    (tmp_path / "looks.json").write_text(content)
    with pytest.raises(InputError, match=r"looks\.json: is damaged, .*Restore it, or begin anew"):
        looks.read(StudyFolder.at(tmp_path))


# --- the design is fixed before the first result --------------------------------------------------


def test_another_design_is_refused_once_there_are_results(tmp_path: Path) -> None:
    made = planned(SMALL, tmp_path, 'report.looks="sequential"')
    looks.begin(made.files, "sequential")
    planned(SMALL, tmp_path)  # without a result it may still change
    made.files.trial("x").put_json("trial.json", {})
    made.files.trial("x").put_json("result.json", {"status": "finished"})
    planned(SMALL, tmp_path, 'report.looks="sequential"')
    wanted = r'planned\.toml: report\.looks = "fixed": .* begun with "sequential" and has results'
    with pytest.raises(InputError, match=wanted):
        planned(SMALL, tmp_path)


def test_a_design_without_results_may_still_change(tmp_path: Path) -> None:
    files = StudyFolder.at(tmp_path)
    for design in ("fixed", "sequential", "fixed"):
        looks.begin(files, design)
        assert looks.read(files).design == design


def test_an_unknown_design_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"report\.looks.*'fixed' or 'sequential'"):
        planned(SMALL, tmp_path, 'report.looks="often"')


def test_results_from_before_there_was_a_record_are_a_look(tmp_path: Path) -> None:
    folder = plant(tmp_path, {A: noisy(0.8), B: noisy(1.0, stream=1)})
    looks.begin(StudyFolder.at(folder), "fixed")
    assert looks.read(StudyFolder.at(folder)).past == ()  # no report, and so no look
    (folder / "looks.json").unlink()
    (folder / "report.html").write_text("")
    looks.begin(StudyFolder.at(folder), "fixed")
    assert looks.read(StudyFolder.at(folder)).past == (first(5),)


# --- what the report makes of it ------------------------------------------------------------------


def two(n: int) -> Planted:
    return {A: noisy(0.97, n, 0.02, 3), B: noisy(1.0, n, 0.02, 4)}


def only(folder: Path) -> comparisons.Versus:
    """The one comparison of a planted study."""
    (one,) = comparisons.make(reading.read(folder)).with_baseline("c", "")
    return one


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_seeds_added_to_a_fixed_study_spend_alpha_and_are_said(tmp_path: Path) -> None:
    plant(tmp_path, two(4))
    page = report.write(tmp_path)
    assert "Seeds were added" not in page.read_text()
    assert page.read_bytes() == report.write(tmp_path).read_bytes()
    planted = two(6)
    plant(tmp_path, planted)
    one = only(tmp_path).comparison
    plain = compare(planted[A], planted[B])
    assert one is not None
    assert one.p == pytest.approx(6 * plain.p, rel=1e-12)
    wider = compare(planted[A], planted[B], 1 - 0.05 / 6)
    assert (one.low, one.high) == pytest.approx((wider.low, wider.high), rel=1e-12)
    said = " ".join(report.write(tmp_path).read_text().split())
    assert "Seeds were added after results had been looked at" in said
    assert "this is look 2, and its tests are at α/(2·3) = 0.0083" in said


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_the_report_of_a_sequential_study_has_the_anytime_valid_test(tmp_path: Path) -> None:
    planted = two(8)
    plant(tmp_path, planted, report=DESIGN)
    looks.begin(StudyFolder.at(tmp_path), "sequential")
    one = only(tmp_path).comparison
    expected = compare(planted[A], planted[B], test=Look("sequential").test)
    assert one is not None
    assert (one.p, one.low, one.high) == (expected.p, expected.low, expected.high)
    assert math.isnan(one.p_signflip)
    said = " ".join(report.write(tmp_path).read_text().split())
    assert "The design is sequential, and this is look 1" in said
    assert "confidence sequences that are not corrected" in said


# --- seeds are added until all is decided ---------------------------------------------------------


def test_seeds_go_to_what_is_undecided_alone() -> None:
    """a is undecided, d is decided, e has all the seeds that it may have."""
    row = {"kind": "baseline", "metric": "m", "against": "b"}
    left = [
        comparisons.Versus(case="c", arm="x", against_arm="x", variant="a", comparison=None, **row),
        comparisons.Versus(case="c", arm="x", against_arm="x", variant="e", comparison=None, **row),
    ]
    planned_seeds = {"a": (0, 1, 2), "b": (0, 1, 2, 3), "d": (0, 1, 2), "e": (0, 1, 2, 3)}
    made = PlanOf(planned_seeds)
    assert seeds_added.next_seeds(made, left, 4) == {  # type: ignore[arg-type]
        ("c", "x", "a"): (3,),
        ("c", "x", "b"): (3,),
    }
    assert seeds_added.next_seeds(made, left, 3) == {}  # type: ignore[arg-type]


class PlanOf:
    """A plan of one case and arm with these seeds by variant."""

    def seeds(self) -> Seeds:
        return {("c", "x", variant): numbers for variant, numbers in self.by_variant.items()}

    def __init__(self, by_variant: dict[str, tuple[int, ...]]) -> None:
        self.by_variant = by_variant
        self.trials = [
            Trial(f"{variant}{seed}", seed, variant)
            for variant, numbers in by_variant.items()
            for seed in numbers
        ]


class Trial:
    def __init__(self, id_: str, seed: int, variant: str) -> None:
        self.id, self.config = id_, self
        self.seed = seed
        self.labels = [{"case": "c", "arm": "x", "variant": variant}]


@pytest.mark.slow
def test_what_more_seeds_cannot_decide_is_not_undecided(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {A: noisy(1.0, 4, 0.02, 3), B: noisy(1.0, 4, 0.02, 4), ("c", "", "far"): noisy(9.0, 4),
         ("c", "", "lost"): [*noisy(1.0, 3), "diverged"]},
    )  # fmt: skip
    left = seeds.undecided(comparisons.make(reading.read(tmp_path)))
    assert [one.variant for one in left] == ["a"]


GROWING = (
    SMALL.replace('name = "sampled"', 'name = "grow"')
    .replace('["v"]', '["v", "edm"]')
    .replace("width = 8", "width = 32")
    .replace("steps = 50, batch = 8", "steps = 300, batch = 64, learning_rate = 1e-2")
    + """
[report]
baseline = "v"
looks = "sequential"
"""
)
QUICK = "evaluation = { levels = 4, draws = 32, samples = 8, steps = 2, metrics = [] }\n[grid]"
WORDS = ("study", "grow.toml", "--no-mlflow", "--jobs", 0, "--engine", "sequential")


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_a_study_grows_until_it_may_not_and_resumes(tmp_path: Path) -> None:
    """Two seeds are too few to test, and three to decide anything, whatever their numbers are."""
    (tmp_path / "grow.toml").write_text(GROWING.replace("[grid]", QUICK))
    with without_identities():
        done = run_here(tmp_path, *WORDS, "--seeds", 2, "--until-decided", "--at-most", 3)
        again = run_here(tmp_path, *WORDS, "--seeds", 2)
    assert done.code == 0, done.err
    assert "Look 1: undecided: edm (2 seeds)" in done.out
    assert "Look 1: undecided: edm (3 seeds)" in done.out
    assert "Undecided, with as many seeds as --at-most allows: edm (3 seeds)." in done.out
    assert "--until-decided --at-most 6 adds further seeds." in done.out
    record = looks.read(StudyFolder.at(tmp_path / "runs" / "grow"))
    assert record.extra == {("", "", "v"): (2,), ("", "", "edm"): (2,)}
    assert [len(past["", "", "v"]) for past in record.past] == [3]
    # Without the option the seeds that were added stay, and nothing is trained.
    assert "6 trials (6 finished)" in again.out
    table = pd.read_csv(tmp_path / "runs" / "grow" / "tables" / "comparisons.csv")
    assert set(table["seeds"]) == {3}
    planned_one = json.loads(run_here(tmp_path, "plan", "grow.toml", "--seeds", 6, "--json").out)
    (one,) = planned_one["detectable"]
    assert (one["seeds"], one["comparisons"]) == (6, 5)  # all levels and four bands
    read = reading.read(tmp_path / "runs" / "grow")
    edm, v = (np.log(read.values("", "", name, read.primary(""))) for name in ("edm", "v"))
    (ratio,) = one["ratios"]
    effect = Look("sequential").test.effect(6, ALPHA / 5)
    assert ratio["ratio"] == pytest.approx(math.exp(effect * (edm - v).std()), rel=1e-9)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--at-most", "4"), "--at-most 4 belongs to --until-decided, which is not given."),
        (("--until-decided",), "report.looks = \"fixed\": --until-decided needs \"sequential\""),
        (("--until-decided", "--trial", "ab"), "--until-decided and --trial do not go together"),
        (("--until-decided", "--at-most", "0"), "--at-most 0 must be at least 1."),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    done = run_here(tmp_path, "study", "small.toml", "--no-mlflow", *words)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


# --- what seeds can show --------------------------------------------------------------------------


def test_without_stored_variance_the_plan_says_what_it_would_need(tmp_path: Path) -> None:
    text = SMALL.replace('["v"]', '["v", "edm", "eps"]')
    (one,) = seeds.detectable(planned(text, tmp_path, seeds=5))
    assert (one.seeds, one.comparisons, one.spreads) == (5, 10, ())  # all levels and four bands
    power = stats.nct.sf(stats.t.isf(ALPHA / 20, 4), 4, one.effect * math.sqrt(5))
    assert power == pytest.approx(0.8, abs=1e-9)
    assert "5 seeds show a difference of" in one.sentence()
    assert "needs that deviation: run with 3 seeds or more, then plan again" in one.sentence()
    (few,) = seeds.detectable(planned(text, tmp_path, seeds=2))
    assert few.sentence() == "2 seeds can show no difference: fewer than 3 are not tested."
    (none,) = seeds.detectable(planned(text, tmp_path, 'report.looks="sequential"', seeds=3))
    assert none.sentence().startswith("3 seeds can show no difference, however large")
    assert seeds.detectable(planned(SMALL, tmp_path, seeds=5)) == []


def test_with_stored_variance_it_is_said_in_per_cent() -> None:
    spreads = (SeedSpread("c", "x", "a", 0.05, 4), SeedSpread("c", "", "b", 0.5, 4))
    one = Detectable("c", 6, 8, 2.0, spreads)
    assert one.sentence() == (
        "c: 6 seeds show a difference of 10.5 % (a, x) to 172 % (b) with power 0.8 in the "
        "hardest of 8 comparisons; the spread is that of the 4 seeds that have run."
    )
