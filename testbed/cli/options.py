"""The options that several commands have, and what those of plugins and devices mean."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli import completion
from testbed.errors import InputError

if TYPE_CHECKING:
    from testbed.registry import Registry

Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        "-p",
        metavar="PLUGIN",
        help="Load this module or plugin file as well; no:NAME leaves the plugin NAME out, and "
        "no:FILE the one in that file. "
        "The option may be given several times.",
    ),
]
PluginDirs = Annotated[
    list[Path] | None,
    typer.Option("--plugin-dir", metavar="DIR", help="Load every plugin file in this folder."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="End with an error where a plugin is broken.")
]
StudyName = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="The study file, or the name of a bundled study.",
        autocompletion=completion.study_files,
    ),
]
StudyFolder = Annotated[
    Path,
    typer.Argument(
        help="The folder of a study, for example runs/default, or its URL (s3://bucket/folder).",
        autocompletion=completion.study_folders,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override the study file, for example training.steps=500 (in every trial), "
        "base.network.width=64 or report.level=0.9. The option may be given several times.",
    ),
]
Only = Annotated[
    str,
    typer.Option(
        "--only",
        metavar="NAMES",
        help="Keep only these parameterizations, cases and arms, for example eps,v,digits.",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option("--seeds", help="Number of seeds per case; overrides the study file."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where the networks run: cpu, cuda or cuda:N; auto takes cuda where there is one. A "
        "study has one worker on each GPU of cuda, or on some: cuda:0,2.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        help="Number of groups of trials that run at a time, each in a worker of its own; 0 "
        "runs all trials in this process, as a debugger needs it. By default it follows from the "
        "cores that this process may use."
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="How trials of one architecture train: sequential (one by one), batched (as one), "
        "compiled (as one, fused, which takes a quarter of a minute before the first step), "
        "distributed (each over all the GPUs of --device), or auto, the one of the first three "
        "that a measurement finds fastest."
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Where the trials run: in-process, processes, slurm or ray. It overrides the study "
        "file's executor.name, and leaves the other settings of that section as they are.",
    ),
]
StudyOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The study's folder; runs/NAME by default."),
]
TrackingURI = Annotated[
    str,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="The MLflow store; by default that of the environment variable MLFLOW_TRACKING_URI, "
        "or else mlflow.db in the current folder.",
    ),
]
AsJSON = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON document, and nothing else on the standard output."
    ),
]
SigmaData = Annotated[
    float,
    typer.Option(
        "--sigma-data", help="The standard deviation of the data that formulas are given."
    ),
]


def registry(
    plugins: list[str] | None,
    folders: list[Path] | None,
    strict: bool = False,
    study: Path | None = None,
) -> Registry:
    """The registry that `--plugin`, `--plugin-dir`, `--strict` and a study file ask for.

    Plugins that are broken and left out are named on the standard error.

    Raises:
        PluginError: a plugin that was asked for is missing or broken, or any under `strict`.
        InputError: the study file cannot be read.
    """
    from testbed.registry import Registry

    places: dict[str, str] = {}
    if study is not None:
        from testbed.study import study_file

        places = study_file.plugins(study)
    made = Registry([*places, *(plugins or ())], folders or (), strict, places)
    for failure in made.failures:
        sys.stderr.write(
            f"testbed: plugin {failure.plugin} ({failure.origin}) is broken and left out: "
            f"{failure.error}\n"
        )
    return made


def with_executor(sets: list[str] | None, executor: str) -> list[str]:
    """What `--set` says, with `--executor` as the setting that it stands for."""
    return [*(sets or ()), *([f"executor.name={executor}"] if executor else ())]


def output(file: Path | None, example: str, kinds: str) -> Path:
    """The file that `--out` names, for a command that writes one and has no default.

    Raises:
        InputError: `--out` is not given; the message shows an `example` and says which `kinds`
            of file there are.
    """
    if file is None:
        raise InputError(f"--out is missing: name the file to write, {kinds}: --out {example}")
    return file
