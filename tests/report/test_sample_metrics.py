"""What the samples say beside the primary metric: paired differences, a family of their own."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.planted_studies import Planted, lead, noisy, plant
from scipy import stats

from testbed import report
from testbed.report import finding, reading, sample_metrics
from testbed.report.sample_metrics import SampleComparison


def with_energy(folder: Path, planted: Planted, energy: dict[str, list[float]]) -> Path:
    """A planted study in which energy and MMD of a variant's samples are these, by seed."""
    plant(folder, planted)
    read = reading.read(folder)
    for row in read.trials.itertuples():
        at = folder / "trials" / str(row.id) / "result.json"
        ended = pd.read_json(at, typ="series").to_dict()
        if ended["status"] == "finished":
            value = energy[str(row.variant)][int(str(row.seed))]
            ended["metrics"] |= {"energy": value, "mmd": value}
            pd.Series(ended).to_json(at)
    return folder


PRIMARY = {"b": 1.0, "better": 0.8, "worse": 1.3, "same": 1.001}
PLANTED: Planted = {
    ("c", "", name): noisy(mean, seeds=6, stream=stream)
    for stream, (name, mean) in enumerate(PRIMARY.items())
}
BASE = [0.02, 0.03, 0.01, 0.025, 0.015, -0.005]


def moved(by: float, wobble: float = 0.0005) -> list[float]:
    signs = (1, -1, 0.5, -0.5, 1, -1)
    return [value + by + wobble * sign for value, sign in zip(BASE, signs, strict=True)]


def test_differences_p_and_holm_are_those_of_scipy(tmp_path: Path) -> None:
    """Also where an unbiased distance is estimated below zero, so that it has no ratio."""
    energy = {"b": BASE, "better": moved(-0.01), "worse": moved(0.001, 0.01), "same": moved(0.0)}
    read = reading.read(with_energy(tmp_path, PLANTED, energy))
    made = sample_metrics.make(read)
    assert [(one.variant, one.metric) for one in made] == [
        (name, metric) for name in ("better", "worse", "same") for metric in ("energy", "mmd")
    ]
    raw = [stats.ttest_rel(energy[one.variant], BASE) for one in made]
    for one, test in zip(made, raw, strict=True):
        assert one.p == pytest.approx(test.pvalue, rel=1e-9)
        mean = np.mean(energy[one.variant]) - np.mean(BASE)
        assert one.difference == pytest.approx((mean, *test.confidence_interval(0.95)))
    holm, least = {}, 0.0
    for rank, index in enumerate(np.argsort([test.pvalue for test in raw])):
        least = max(least, min(1.0, (len(raw) - rank) * raw[index].pvalue))
        holm[index] = least
    assert [one.p_holm for one in made] == pytest.approx([holm[i] for i in range(len(made))])


@pytest.mark.parametrize(
    ("variant", "by", "said"),
    [
        ("better", -0.01, "better for better (−0.0100 [−0.0105, −0.0095]), as the verdict is"),
        ("better", 0.01, "worse for better (0.0100 [0.0095, 0.0105]), against the verdict"),
        ("worse", 0.01, "worse for worse (0.0100 [0.0095, 0.0105]), as the verdict is"),
        ("worse", 0.0, "undecided for better (0.00000 [−0.00050, 0.00050])"),
        ("same", 0.01, "worse for same (0.0100 [0.0095, 0.0105]), where the verdict is equivalent"),
    ],
)
def test_the_lead_says_whether_the_samples_agree(
    tmp_path: Path, variant: str, by: float, said: str
) -> None:
    energy = {name: moved(0.0) for name in PRIMARY} | {"b": BASE, variant: moved(by)}
    text = lead(with_energy(tmp_path, PLANTED, energy))
    assert "By energy distance of the samples (0.0158 for b, 0.100 for real data): " in text
    assert said in text
    assert "MMD² gives the same verdicts." in text
    assert "its verdicts are corrected for 6 tests, a family of their own." in text


def test_a_seed_that_makes_the_sign_is_named(tmp_path: Path) -> None:
    """Without its one large difference the mean is -0.001: the sign hangs on seed 2."""
    one = SampleComparison("c", "", "a", "b", "energy", 6, (0.0, 0.0, 0.0), 0.0, 0.0)  # type: ignore[arg-type]
    a = [v - 0.001 for v in BASE]
    a[2] += 0.1
    pair = {("c", "", "b"): noisy(1.0, seeds=6), ("c", "", "a"): noisy(0.8, seeds=6, stream=1)}
    read = reading.read(with_energy(tmp_path, pair, {"b": BASE, "a": a}))
    left = finding.LeaveOneOut(read, "c")
    assert left.hangs_on(sample_metrics._sign(one)) == ["seed 2"]


def test_a_divergence_stays_in_the_family_and_few_seeds_do_not(tmp_path: Path) -> None:
    planted: Planted = {
        ("c", "", "b"): noisy(1.0, stream=1),
        ("c", "", "lost"): ["diverged", *noisy(0.8, stream=2)[1:]],
        ("c", "", "kept"): noisy(0.8, stream=3),
    }
    made = sample_metrics.make(reading.read(plant(tmp_path, planted)))
    verdicts = {(one.variant, one.metric): one.verdict for one in made}
    assert verdicts["lost", "energy"] == "diverged"
    kept = next(one for one in made if one.variant == "kept")
    same = next(one for one in made if (one.variant, one.metric) == ("kept", "mmd"))
    # Four members: two of the variant that diverged count with p = 1.
    assert kept.p_holm == pytest.approx(min(1.0, 4 * kept.p))
    assert same.p_holm >= same.p
    few = {label: values[:2] for label, values in planted.items()}
    made = sample_metrics.make(reading.read(plant(tmp_path / "few", few)))
    assert {one.verdict for one in made if one.variant == "kept"} == {"too few seeds"}
    assert all(math.isnan(one.p_holm) for one in made)


@pytest.mark.usefixtures("blank_figures")
def test_the_table_has_every_comparison(tmp_path: Path) -> None:
    folder = plant(tmp_path, PLANTED)
    page = report.write(folder).read_text()
    found = pd.read_csv(folder / "tables" / "samples.csv")
    assert found["variant"].tolist() == ["better", "better", "worse", "worse", "same", "same"]
    assert {"difference", "low", "high", "p", "p_holm", "verdict", "seeds"} <= set(found)
    assert "the 6 tests\nof samples are a family of their own." in page
