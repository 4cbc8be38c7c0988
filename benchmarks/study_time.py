"""Where the time of a finished study went: `python benchmarks/study_time.py FOLDER`.

For each case the worker seconds of its trainings, in which compiling is counted, and of measuring
its trials, by the clock; and the seconds in which the study had workers at all.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from testbed.trial.study_folder import StudyFolder

PARTS = {"training_seconds": "training", "measuring_seconds": "measuring"}


def table(folder: Path) -> pd.DataFrame:
    """The number of trials and the worker seconds of each case, and of all of them."""
    files = StudyFolder.at(folder)
    rows = []
    for listed in files.json("study.json")["trials"]:
        result, case = files.trial(listed["id"]).result(), listed["labels"][0]["case"]
        seconds = {name: result[key] for key, name in PARTS.items()}
        rows.append({"case": case, "trials": 1, **seconds})
    found = pd.DataFrame(rows).groupby("case").sum()
    found.loc["all"] = found.sum()
    return found.astype({"trials": int}).round(1)


def main(folder: Path) -> None:
    """Prints the table and the seconds of the study."""
    print(table(folder).to_string())
    print(f"by the clock: {StudyFolder.at(folder).json('study.json')['seconds']:.1f} s")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
