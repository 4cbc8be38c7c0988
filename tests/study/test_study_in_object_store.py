"""A study whose folder is a URL: it runs, resumes, and is read from there on another machine."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.command_line import run_here
from helpers.ended_studies import ONE, put
from helpers.faulty_proxy import Proxy, faults

import testbed
from testbed.trial.storage import local
from testbed.trial.study_folder import StudyFolder

WORDS = ("one.toml", "--set", "training.steps=50")


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
