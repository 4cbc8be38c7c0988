"""A study's runs in MLflow: each is begun once, and found again by its tags.

MLflow's client sends a request again whose answer is late or was lost with the server. A run that
is created so stands there twice, since the server gives every one an id of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testbed.study import tracking_store

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
STUDY, TRIAL = "testbed.study", "testbed.trial"
"""Tags: the study's key, and the id of the trial, which the study's own run does not have."""


def experiment(client: Any, address: str, study: str) -> str:
    """The id of a study's experiment, whoever creates it first."""
    from mlflow.exceptions import MlflowException

    name, location = f"testbed/{study}", None
    found = client.get_experiment_by_name(name)
    if found is None:
        if address.startswith(tracking_store.SQLITE):
            file = Path(address.removeprefix(tracking_store.SQLITE)).absolute()
            location = tracking_store.artifacts(file).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def create(client: Any, experiment: str, name: str, tags: Mapping[str, str], began: int) -> str:
    """Begins a run; its id. The request is sent once, whatever becomes of the answer.

    Args:
        client: MLflow's.
        experiment: the id of the study's experiment.
        name: the run's.
        tags: of the run, STUDY among them, by which `of_study` finds it if the answer is lost.
        began: its beginning in milliseconds.
    """
    own = {"mlflow.runName": name, **tags}
    with _sent_once():
        run = client.create_run(experiment, run_name=name, tags=own, start_time=began)
    return str(run.info.run_id)


def of_study(client: Any, experiment: str, key: str, note: Mapping[str, Any]) -> dict[str, str]:
    """The run of each trial by the trial's id, and that of the study itself by "".

    A run that is there twice, since a proxy has repeated the request or the server was late with
    it, is deleted but for one: that of the note, which has the driver's rows, where there is one.

    Args:
        client: MLflow's.
        experiment: the id of the study's experiment.
        key: the study's, as the tag STUDY.
        note: what was sent, as in mlflow.json; it may be empty.
    """
    known = {id_: entry["run"] for id_, entry in note.get("trials", {}).items()}
    known[""] = note.get("study", "")
    found: dict[str, list[str]] = {}
    for run in _pages(client, experiment, key):
        found.setdefault(run.data.tags.get(TRIAL, ""), []).append(run.info.run_id)
    kept = {}
    for trial, runs in found.items():
        kept[trial] = known[trial] if known.get(trial) in runs else runs[0]
        for run in runs:
            if run != kept[trial]:
                client.delete_run(run)
    return kept


def _pages(client: Any, experiment: str, key: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{STUDY}` = '{key}'", page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _sent_once() -> Iterator[None]:
    """MLflow's client reads its number of retries from the environment at every request."""
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[RETRIES]
        else:
            os.environ[RETRIES] = before
