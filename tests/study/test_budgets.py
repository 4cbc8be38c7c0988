"""Budgets: other lengths of training, each trained on its own, apart from every verdict."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from helpers.command_line import blank_figures, run_here, without_identities
from helpers.studies import refusal

import testbed
from testbed.registry import default_registry
from testbed.report import summaries
from testbed.study import looks, plan, study_file
from testbed.study.plan import Plan
from testbed.trial.study_folder import StudyFolder

STUDY = """
[study]
name = "lengths"
budgets = [20, 0.25]
[base]
network = { name = "mlp", width = 8, depth = 1 }
dataset = { name = "mixture", dim = 2, n = 200, test = 50 }
training = { steps = 40, batch = 8, points = 2 }
evaluation = { levels = 3, draws = 16, samples = 8, steps = 2, metrics = [], points = [10, 20] }
density = "lognormal"
weighting = "edm"
loss = "l2"
seeds = 3
[grid]
parameterization = ["v", "eps"]
[report]
baseline = "v"
"""


def made(folder: Path, text: str = STUDY, *sets: str) -> Plan:
    file = folder / "study.toml"
    file.write_text(text)
    return plan.make(study_file.read(file, sets), default_registry(), folder / "out", "cpu")


def budgets(found: Plan) -> list[tuple[str, int]]:
    """The budget of each trial's label, or nothing, and its number of steps; of one variant."""
    return [
        (label.get("budget", ""), one.config.training.steps)
        for one in found.trials
        for label in one.labels
        if label["variant"] == "v" and one.config.seed == 0
    ]


def test_every_variant_is_trained_at_every_budget(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert len(found.trials) == 2 * 3 * 3
    assert budgets(found) == [("", 40), ("10", 10), ("20", 20)]
    of_budgets = [one for one in found.trials if "budget" in one.labels[0]]
    for one in of_budgets:
        assert (one.config.evaluation.points, one.config.evaluation.widths) == ((), ())
    assert of_budgets[0].title == "v · 10 steps · seed 0"
    # The seeds of a study are those of its own budget, in all that counts them.
    assert found.seeds() == {("", "", name): (0, 1, 2) for name in ("v", "eps")}


@pytest.mark.parametrize(
    ("given", "steps"),
    [("[40]", []), ("[20, 0.5]", [20]), ("[80]", [80]), ("[0.25, 10, 20]", [10, 20])],
)
def test_the_own_budget_and_repetitions_add_nothing(
    tmp_path: Path, given: str, steps: list[int]
) -> None:
    found = budgets(made(tmp_path, STUDY, f"study.budgets={given}"))
    assert sorted(n for budget, n in found if budget) == steps


def test_budgets_change_no_identity_of_the_others(tmp_path: Path) -> None:
    without = made(tmp_path, STUDY, "study.budgets=[]")
    assert {one.id for one in without.trials} < {one.id for one in made(tmp_path).trials}


@pytest.mark.parametrize(
    ("set_", "message"),
    [
        ("study.budgets=[0]", "study.budgets = [0]: must be a list of whole numbers of steps"),
        ("study.budgets=20", "study.budgets = 20: must be a list"),
        ("study.budgets=[1.5]", "fractions above 0 and below 1"),
        ("study.budget=[20]", "Did you mean 'budgets'?"),
    ],
)
def test_what_is_no_budget_is_refused(tmp_path: Path, set_: str, message: str) -> None:
    assert message in refusal(STUDY, tmp_path, set_)


def test_a_budget_that_a_schedule_does_not_fit_is_refused(tmp_path: Path) -> None:
    text = refusal(STUDY, tmp_path, 'base.training.schedule="cosine"', "base.training.hold=15")
    assert "study.budgets = [20, 0.25]: with 10 steps hold = 15 is out of range" in text
    assert "with 20 steps" not in text


def test_a_study_in_python_has_budgets(tmp_path: Path) -> None:
    study = testbed.Study.from_toml(STUDY)
    assert study.budgets == [20, 0.25]
    assert testbed.Study.from_toml(study.to_toml()) == study
    assert "18 trials" in repr(study)
    assert [row["variant"] for row in study.table] == ["v", "eps"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "lengths.toml").write_text(STUDY)
    words = ("study", "lengths.toml", "--jobs", 0, "--no-mlflow", "--out", "out")
    with blank_figures(), without_identities():
        done = run_here(folder, *words, "--engine", "sequential")
    assert done.code == 0, done.err
    assert (
        "Trained on its own at each other budget, 10, 20 steps: 12 trials." in done.out + done.err
    )
    return folder / "out"


@pytest.mark.slow
def test_under_a_constant_rate_a_budget_is_a_point(run: Path) -> None:
    """Trained one by one the numbers are the same, bit for bit."""
    table = testbed.open(run).stages.drop(columns="id")
    points, own = (
        table[table["kind"] == kind].drop(columns="kind").reset_index(drop=True)
        for kind in ("points", "budgets")
    )
    assert sorted(set(points["at"])) == [10, 20, 40]
    pd.testing.assert_frame_equal(points, own)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
def test_budgets_are_in_no_other_table(run: Path) -> None:
    opened = testbed.open(run)
    assert len(opened.content.trials) == 6
    assert len(opened.content.budgets) == 12
    assert set(opened.trials["id"]) == set(opened.content.trials["id"])
    assert opened.statuses() == {"finished": 18}
    kinds = opened.comparisons["kind"].value_counts().to_dict()
    assert kinds == {"baseline": 1 + (opened.comparisons["band"] != "").sum()}
    page = (run / "report.html").read_text()
    assert "Trained at each budget on its own." in page
    assert "budgets_data" in opened.figures
    assert "18, under 18 labels" in page


@pytest.mark.slow
def test_a_budget_that_has_ended_is_no_look(run: Path) -> None:
    files = StudyFolder.at(run)
    listed = json.loads((run / "study.json").read_text())["trials"]
    shorter = [one for one in listed if "budget" in one["labels"][0]]
    assert len(shorter) == 12
    assert looks.ended(files, shorter) == {}
    assert set(looks.ended(files, listed).values()) == {(0, 1, 2)}


@pytest.mark.slow
def test_the_same_command_trains_nothing_again(run: Path) -> None:
    found = plan.make(study_file.read(run.parent / "lengths.toml"), default_registry(), run, "cpu")
    assert found.pending() == []


@pytest.mark.slow
def test_a_budget_that_failed_is_told(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    opened = testbed.open(copy)
    lost = opened.content.budgets.iloc[0]
    at = copy / "trials" / str(lost["id"]) / "result.json"
    at.write_text(json.dumps({"status": "failed", "error": "ValueError: broken", "metrics": {}}))
    (failed,) = summaries.failures(testbed.open(copy).content)
    assert failed[0] == f"{lost['variant']} · {lost['budget']} steps · seed {lost['seed']}"
    assert failed[3] == "ValueError: broken"
