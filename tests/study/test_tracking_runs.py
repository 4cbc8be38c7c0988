"""Runs in MLflow: begun once on a network that loses requests, and found again, one for each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.faulty_proxy import Proxy

from testbed.study import tracking_runs, tracking_store


@pytest.fixture
def lost() -> Iterator[Proxy]:
    """A server that takes requests and never answers."""
    proxy = Proxy(target=0, fault=lambda request: "request lost")
    yield proxy
    proxy.close()


@pytest.mark.slow
@pytest.mark.parametrize("retries", [None, "1"])
def test_a_run_is_asked_for_once_although_the_answer_is_lost(
    lost: Proxy, monkeypatch: pytest.MonkeyPatch, retries: str | None
) -> None:
    tracking_store.silence()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    if retries is None:
        monkeypatch.delenv(tracking_runs.RETRIES)
    else:
        monkeypatch.setenv(tracking_runs.RETRIES, retries)
    client = MlflowClient(tracking_uri=lost.address)
    with pytest.raises(MlflowException):
        tracking_runs.create(client, "1", "name", {tracking_runs.STUDY: "key"}, 1)
    assert [one.path for one in lost.seen] == ["/api/2.0/mlflow/runs/create"]
    assert os.environ.get(tracking_runs.RETRIES) == retries


class Client:
    """MLflow's, for a store that holds these runs by the trial's id, two a page."""

    def __init__(self, *runs: tuple[str, str]) -> None:
        self.runs = list(runs)
        self.deleted: list[str] = []

    def search_runs(self, experiments: list[str], query: str, page_token: str | None) -> Any:
        start = int(page_token or 0)
        page = Page(map(run, self.runs[start : start + 2]))
        page.token = str(start + 2) if start + 2 < len(self.runs) else None
        return page

    def delete_run(self, id_: str) -> None:
        self.deleted.append(id_)


class Page(list[Any]):
    """Runs, and where the next page begins."""

    token: str | None = None


def run(words: tuple[str, str]) -> Any:
    id_, trial = words
    tags = {tracking_runs.TRIAL: trial} if trial else {}
    return SimpleNamespace(info=SimpleNamespace(run_id=id_), data=SimpleNamespace(tags=tags))


def test_of_runs_that_are_there_twice_the_known_one_stays() -> None:
    client = Client(("p", ""), ("a", "t"), ("b", "t"), ("q", ""), ("c", "t"), ("d", "u"))
    note = {"study": "q", "trials": {"t": {"run": "b"}, "gone": {"run": "x"}}}
    assert tracking_runs.of_study(client, "1", "key", note) == {"": "q", "t": "b", "u": "d"}
    assert sorted(client.deleted) == ["a", "c", "p"]


def test_without_a_note_one_of_them_stays() -> None:
    client = Client(("a", "t"), ("b", "t"), ("p", ""))
    assert tracking_runs.of_study(client, "1", "key", {}) == {"": "p", "t": "a"}
    assert client.deleted == ["b"]
