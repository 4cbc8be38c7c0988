"""A study from its file, or from Python, to its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from testbed import report as reports
from testbed import toml
from testbed.registry import Registry
from testbed.report.study_result import StudyResult
from testbed.report.study_result import open as open_result
from testbed.study import engines, plan, sharing, study_file
from testbed.study.definition import Study, plain
from testbed.study.runner import Progress
from testbed.study.study_file import Invocation
from testbed.trial import storage
from testbed.trial.devices import one_thread

WRITTEN = "study.toml"
"""The file of a study that was written in Python, in the study's folder."""


def run(
    study: Study | str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    seeds: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    engine: str = "auto",
    jobs: int | None = None,
    executor: str = "",
    plugins: Sequence[str | Path] = (),
    plugin_dirs: Sequence[str | Path] = (),
    lease: float | None = None,
    tracking_uri: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> StudyResult:
    """Runs a study as `testbed study` does and returns its results; the same call again resumes.

    Args:
        study: a `testbed.Study`, which is written to study.toml in the study's folder; a study
            file; or the name of a bundled study.
        overrides: values by dotted key, as `--set` takes them: `{"training.steps": 500}`.
        only: names of parameterizations, cases and arms to keep.
        seeds: number of seeds of every case.
        out: the study's folder; runs/NAME by default.
        device: "cpu", "cuda" (every GPU), "cuda:N", "cuda:N,M" or "auto".
        engine: how trials of one architecture train: "auto", "sequential", "batched",
            "compiled" or "distributed".
        jobs: number of groups of trials that run at a time, at most; 0 trains in this process.
        executor: where the trials run, "in-process", "processes", "slurm" or "ray"; by default
            as the study says.
        plugins: modules or plugin files to load, besides those that the study names; "no:NAME"
            leaves one out.
        plugin_dirs: folders of plugin files to load.
        lease: own the study's folder by leases of so many seconds, which hold on a disk that
            several machines share; without it by file locks, or as the study was begun.
        tracking_uri: the MLflow store that is written to; none by default.
        say: given a line for each phase and each trial that ended.

    Returns:
        The results, those of trials that failed or diverged included: see
        `StudyResult.statuses`.

    Raises:
        InputError: the study cannot run; the message has every problem found.
        KeyboardInterrupt: Ctrl-C; the trials have stopped at a checkpoint.
        Busy: another process runs this study.
    """
    words = [f"{key}={toml.value(plain(value), key)}" for key, value in (overrides or {}).items()]
    words += [f"executor.name={executor}"] if executor else []
    read, folder = _read(study, out, words, only, seeds)
    named = [*read.plugins, *map(str, plugins)]
    registry = Registry(named, plugin_dirs, places=read.plugins)
    with one_thread():
        made = plan.make(read, registry, folder, read.executor.device(device, "device"))
        for note in plan.notes(made):
            say(note)
        storage.begin(folder if out is None else out, lease)
        slots = read.executor.slots(jobs)
        choose = partial(engines.choose, made, registry, engine, slots)
        progress = Progress(ended=lambda one, status: say(f"{one.title}: {status}"), say=say)
        if isinstance(study, Study):
            made.files.store.put(WRITTEN, read.text.encode())
        how = choose, slots, lambda chosen: nullcontext(progress)
        ending = sharing.run(made, registry, *how, reports.renew, tracking_uri)
    if ending.outcome.interrupted:
        raise KeyboardInterrupt(f"{folder}: its trials stopped at a checkpoint; run it again.")
    return open_result(folder)


def _read(
    study: Study | str | Path,
    out: str | Path | None,
    words: Sequence[str],
    only: Sequence[str],
    seeds: int | None,
) -> tuple[study_file.StudyFile, Path]:
    """A study as its file, or what would be its file, has it, and the study's folder."""
    if not isinstance(study, Study):
        read = study_file.read(Path(study), list(words), list(only), seeds)
        return read, Path("runs") / read.header.name if out is None else storage.local(out)
    folder = Path("runs") / study.name if out is None else storage.local(out)
    asked = Invocation(str(folder / WRITTEN), tuple(words), tuple(only), seeds)
    return study_file.parse(study.to_toml(), folder / WRITTEN, asked), folder
