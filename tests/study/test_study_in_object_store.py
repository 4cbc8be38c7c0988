"""A study whose folder is a URL: it runs, resumes, and is read from there on another machine."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import run_here
from helpers.ended_studies import ONE, put
from helpers.faulty_proxy import Proxy, faults
from helpers.studies import ONE_TRIAL, planned

import testbed
from testbed.registry import default_registry
from testbed.study import orders, plan, runner
from testbed.study.engines import Group
from testbed.study.plan import Plan
from testbed.study.waiting import Waiting
from testbed.trial.storage import begin, leases, local
from testbed.trial.study_folder import StudyFolder

WORDS = ("one.toml", "--set", "training.steps=50")


def at_url(url: str, folder: Path, lease: float = 60.0) -> Plan:
    """A study of two trials, described at a URL."""
    begin(url, lease)
    made = replace(planned(ONE_TRIAL, folder, seeds=2), folder=local(url))
    runner.describe(made, default_registry())
    return made


@pytest.mark.slow
def test_a_study_at_a_url_is_watched_and_told(proxy: Proxy, tmp_path: Path) -> None:
    url = f"s3://bucket/{tmp_path.name}/runs/watched"
    made = at_url(url, tmp_path)
    first, second = (made.files.trial(one.id) for one in made.trials)
    first.fail("Traceback\nValueError: on purpose", "ValueError: on purpose")
    more = {name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "XDG_"))}
    done = run_here(tmp_path, "status", url, **more)
    assert done.code == 0, done.err
    assert "1 waiting, 1 failed" in done.out
    assert f"Next: testbed log {url} {first.name}" in done.out
    done = run_here(tmp_path, "log", url, first.name[:6], **more)
    assert (done.code, "ValueError: on purpose" in done.out) == (1, True)
    assert f"Next: testbed retry {url} {first.name}" in done.out
    done = run_here(tmp_path, "cancel", url, second.name, **more)
    assert (done.code, second.cancelled) == (0, True), done.err
    done = run_here(tmp_path, "retry", url, **more)
    assert done.code == 0, done.err
    assert [made.files.state(one.name) for one in (first, second)] == ["new", "new"]
    done = run_here(tmp_path, "cancel", url, **more)
    assert f"{url}: no study runs in this folder" in " ".join(done.err.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["status", "log", "cancel", "retry", "report", "compare", "pack"]
)
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s4://bucket/x", "s4:// is no protocol that fsspec knows. Did you mean 's3://'?"),
        ("s3://bucket/none", "s3://bucket/none is not a study's folder"),
    ],
)
def test_a_url_without_a_study_is_refused_by_its_name(
    proxy: Proxy, tmp_path: Path, command: str, url: str, said: str
) -> None:
    more = {name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "XDG_"))}
    words = {"log": ["abc"], "pack": ["--out", "x.zip"], "compare": [url]}.get(command, [])
    done = run_here(tmp_path, command, url, *words, **more)
    assert done.code == 2
    assert said in " ".join(done.err.split()), done.err


@pytest.mark.slow
def test_a_plan_asks_for_no_trial_that_has_no_folder(proxy: Proxy, tmp_path: Path) -> None:
    """Each question is some requests."""
    url, asked = f"s3://bucket/{tmp_path.name}/runs/new", list[int]()
    begin(url, 60.0)
    for seeds in (2, 6):
        proxy.seen.clear()
        study = planned(ONE_TRIAL, tmp_path, seeds=seeds).study
        made = plan.make(study, default_registry(), local(url), "cpu")
        assert [one.state for one in made.trials] == ["new"] * seeds
        asked.append(len(proxy.seen))
    assert asked[0] == asked[1] > 0


def law_orders_are_asked_for_now_and_then(made: Plan, proxy: Proxy) -> None:
    """A driver looks several times a second whether there are any."""
    told = orders.Orders(made)
    told.read()
    orders.stop(made.files)
    proxy.seen.clear()
    for _ in range(5):
        told.read()
    assert not proxy.seen
    assert not told.stopped
    told._due -= orders.REMOTE
    told.read()
    assert proxy.seen
    assert told.stopped


@pytest.mark.slow
def test_orders_are_asked_for_now_and_then(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = at_url(f"s3://bucket/{tmp_path.name}/runs/told", tmp_path)
    law_orders_are_asked_for_now_and_then(made, proxy)
    monkeypatch.setattr(orders, "REMOTE", 0.0)
    with pytest.raises(AssertionError):
        law_orders_are_asked_for_now_and_then(made, proxy)


@pytest.mark.slow
def test_what_another_driver_trains_at_a_url_is_left_to_it(
    proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = at_url(f"s3://bucket/{tmp_path.name}/runs/shared", tmp_path, 2.0)
    first, second = (Group([one]) for one in made.trials)
    here, trial = Waiting(made, [first, second]), made.files.trial(made.trials[0].id)
    with trial.own():
        trial.put_json("result.json", {"status": "finished"})
        with monkeypatch.context() as patch:  # as another process sees it
            patch.setattr(leases.Leased, "held", {})
            assert here.next() == second
            assert list(here.ended()) == []
            assert here.elsewhere == [first]
            assert here.next() is None
    here._due = 0.0
    assert list(here.ended()) == [(first, ["finished"])]


@pytest.mark.slow
def test_a_study_at_a_url(proxy: Proxy, tmp_path: Path, own_cache: Path, trials_only: None) -> None:
    put(tmp_path, "one.toml", ONE)
    url = f"s3://bucket/{tmp_path.name}/runs/one"
    proxy.fault = faults(3, rate=0.05)
    words = ("--jobs", 0, "--no-mlflow")
    more = {name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "XDG_"))}
    done = run_here(tmp_path, "study", *WORDS, *words, "--out", url, "--lease", 5, **more)
    assert done.code == 0, done.out + done.err
    assert f"folder {url}" in done.out
    proxy.calm()
    shutil.rmtree(own_cache)  # on another machine
    planned = run_here(tmp_path, "plan", *WORDS, "--out", url, **more)
    assert "1 finished" in planned.out, planned.out + planned.err
    (trial,) = StudyFolder.at(local(url)).trials()
    assert run_here(tmp_path, "study", *WORDS, *words).code == 0
    at = StudyFolder.at(tmp_path / "runs" / "one").trial(trial.name)
    for name in ("weights.safetensors", "levels.csv", "samples.safetensors"):
        assert trial.store.get(name) == at.store.get(name), name
    address = f"{url}/trials/{trial.name}"
    drawn = run_here(tmp_path, "sample", address, "-n", 4, "--out", "samples.npy", **more)
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "samples.npy").exists()
    assert testbed.load(address).sigma_data == testbed.load(at.path).sigma_data
