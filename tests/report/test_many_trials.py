"""What makes a report of many trials linear in them gives what reading one by one gives."""

from pathlib import Path

import numpy as np
import pandas as pd
from helpers.planted_studies import noisy, plant

from testbed.report import comparisons, files, finding, reading
from testbed.report.comparisons import MOST_PAIRED
from testbed.report.files import StoredNumbers
from testbed.report.results import Rows
from testbed.report.robustness import LeaveOneOut, effect, lowest
from testbed.trial.config import TrialConfig
from testbed.trial.study_folder import StudyFolder


def test_files_of_numbers_are_parsed_together_and_keep_their_order() -> None:
    contents = [
        b"sigma,loss\n1,2\n3,4\n",
        b"sigma,loss,excess\n1,5,0.5\n",
        b"sigma,loss\n1,6\n2,inf",
        b"sigma,loss\n",
    ]
    given = [({"seed": i}, StoredNumbers(f"t{i}", text)) for i, text in enumerate(contents)]
    missing: list[str] = []
    table = files.numbers(given, missing)
    assert table is not None
    assert missing == []
    assert table["seed"].tolist() == [0, 0, 1, 2, 2]
    assert table["loss"].tolist() == [2, 4, 5, 6, np.inf]
    assert table["excess"].notna().tolist() == [False, False, True, False, False]
    assert files.numbers([], missing) is None


def test_a_damaged_file_of_numbers_is_named_and_the_others_are_read() -> None:
    contents = [b"sigma,loss\n1,2\n", b"sigma,loss\n1,2\n1,2,3,4\n", b"sigma,loss\n3,4\n"]
    given = [({"seed": i}, StoredNumbers(f"t{i}", text)) for i, text in enumerate(contents)]
    missing: list[str] = []
    table = files.numbers(given, missing)
    assert table is not None
    assert table["seed"].tolist() == [0, 2]
    (said,) = missing
    assert said.startswith("t1 cannot be read")


def test_the_rows_of_a_label_are_those_of_a_search() -> None:
    table = pd.DataFrame({"case": list("aab"), "arm": "", "variant": list("xyx"), "n": range(3)})
    rows = Rows(table)
    assert list(rows) == [("a", "", "x"), ("a", "", "y"), ("b", "", "x")]
    assert rows["b", "", "x"]["n"].tolist() == [2]
    assert rows["b", "", "y"].columns.tolist() == table.columns.tolist()
    assert not len(rows["b", "", "y"])


def test_trials_that_differ_in_their_seed_alone_share_their_settings(tmp_path: Path) -> None:
    planted = {("c", "", "b"): noisy(1.0, seeds=3)}
    read = reading.read(plant(tmp_path, planted))
    assert len(read.configs) == 3
    for id_, config in read.configs.items():
        described = StudyFolder.at(tmp_path).trial(id_).json("trial.json")
        assert config == TrialConfig.model_validate(described["config"])
    assert len({id(config.training) for config in read.configs.values()}) == 1
    assert read.ended == dict.fromkeys(planted, (0, 1, 2))


def test_a_statement_of_means_is_that_of_results_without_one(tmp_path: Path) -> None:
    values = {
        ("c", "", name): noisy(mean, seeds=5, sd=0.3, stream=i)
        for i, (name, mean) in enumerate({"b": 1.0, "a": 0.95, "d": 1.02, "e": 0.93}.items())
    }
    values["c", "", "d"] = [*values["c", "", "d"][:4], "failed"]
    read = reading.read(plant(tmp_path, values))
    left = LeaveOneOut(read, "c")
    versus = comparisons.make(read).with_baseline("c", "")
    stated = [effect(one, True) for one in versus] + [lowest(versus, "b", ["e", "a", "b", "d"])]
    hanging = [left.hangs_on(one) for one in stated]
    assert hanging == [left.hangs_on(lambda results, one=one: one(results)) for one in stated]
    assert any(hanging)


def test_where_pairs_are_not_compared_no_variant_is_called_the_best(tmp_path: Path) -> None:
    names = [f"v{i:02}" for i in range(MOST_PAIRED + 1)]
    values = {("c", "", "b"): noisy(1.0, seeds=3)}
    values |= {
        ("c", "", name): noisy(0.5 if name == "v07" else 0.9, seeds=3, stream=i)
        for i, name in enumerate(names)
    }
    read = reading.read(plant(tmp_path, values))
    made = comparisons.make(read)
    assert made.pairs == []
    said = " ".join(finding.make(read, made)[1].lead)
    assert "v07 is lowest: better than b, but not shown to be better than the others, which" in said
