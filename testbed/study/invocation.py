"""What a study was asked for on the command line, for its record: the report repeats it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from testbed.plugin_files import LEAVE_OUT
from testbed.registry import Registry
from testbed.study import tracking_store
from testbed.study.plan import Plan
from testbed.trial import storage


def record(plan: Plan, registry: Registry, tracking_uri: str = "") -> dict[str, Any]:
    """`command`, the words that run this study again in this folder, and its flags one by one.

    `tracking_uri` is the MLflow store; the command names one that is not the default of this folder
    and environment, without a user's name and password, since the report repeats it.
    """
    asked, usual = plan.study.asked, ("", tracking_store.uri())
    plugins = [_near(word) for word in registry.plugins]
    given = [_near(word) for word in registry.plugins if word not in plan.study.plugins]
    command = ["testbed", "study", _near(asked.file)]
    for flag, words in (
        ("-p", given),
        ("--plugin-dir", [_near(folder) for folder in registry.plugin_dirs]),
        ("--set", asked.overrides),
        ("--only", [",".join(asked.only)] if asked.only else []),
        ("--seeds", [] if asked.seeds is None else [str(asked.seeds)]),
        ("--until-decided --at-most", [] if asked.at_most is None else [str(asked.at_most)]),
        ("--device", [] if plan.device == _auto() else [plan.device]),
        (
            "--tracking-uri",
            [] if tracking_uri in usual else [_public(tracking_uri)],
        ),
        (
            "--out",
            [] if plan.folder == default_folder(plan) else [_near(storage.address(plan.folder))],
        ),
    ):
        command += [part for word in words for part in (*flag.split(), word)]
    return {
        "command": command,
        "set": list(asked.overrides),
        "only": list(asked.only),
        "seeds": asked.seeds,
        "plugins": plugins,
    }


def default_folder(plan: Plan) -> Path:
    """Where a study goes that is not told where."""
    return Path("runs") / plan.study.header.name


def _auto() -> str:
    """What `--device auto` means here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _public(uri: str) -> str:
    """An address without the user's name and password that it may hold."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


def _near(word: str) -> str:
    """A path in this folder without it, also behind `no:`; any other word as it is."""
    here = os.path.realpath(os.curdir)
    mark = LEAVE_OUT if word.startswith(LEAVE_OUT) else ""
    path = word.removeprefix(mark)
    return mark + (os.curdir if path == here else path.removeprefix(os.path.join(here, "")))
