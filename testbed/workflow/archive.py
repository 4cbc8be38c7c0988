"""An archive of a study: what another lab needs to run it again and to compare.

A zip file with plain text alone:

manifest.json   what the study was asked for, how it was run, and the sha256 of every other file
study.toml      the study file
plan.json       which trials trained as one
looks.json      how often results were looked at, and the seeds that were added
plugins/N/      the plugin files that are not bundled, a folder for each that they came from
tables/         the tables of the report, trials.csv with every metric of every seed among them
README.txt      what to do with it
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, ValidationError

from testbed import plugin_files
from testbed.bundled import bundled
from testbed.errors import InputError
from testbed.report import study_result
from testbed.report.study_result import StudyResult
from testbed.study import looks
from testbed.trial.folders import ENDED
from testbed.trial.specs import Model
from testbed.trial.study_folder import StudyFolder

MANIFEST = "manifest.json"
FORMAT = 1
KEPT = ("plan.json", looks.FILE)
"""The files of a study's folder with which it runs again as it ran."""
LARGEST = 256 * 2**20
"""The most bytes that a file of an archive may unpack to."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the archive: the same study gives the same bytes."""
README = """\
A study of testbed {version}: {name}.

    testbed verify {file}

runs it again and says whether the numbers are the same. This runs the code of the plugins in
plugins/: do it with an archive from somebody whom you trust. tables/ has the numbers,
manifest.json the versions that they were made with.
"""


class PackedPlugin(Model):
    """A plugin that was loaded.

    Args:
        name: its name.
        kind: "built in", "file", "module" or "entry point".
        version: the version of a distribution, or the sha256 of a file.
        file: its path in the archive; empty where it is not in it.
    """

    name: str
    kind: str
    version: str
    file: str = ""


class Manifest(Model):
    """What an archive says of itself.

    Args:
        format: the version of this list.
        name: the study's name.
        overrides, only, seeds: what the command changed of the study file, as it takes them.
        plugins: what was loaded.
        modules: the plugins that were asked for by a module's name, and those left out, "no:NAME".
        device: the class of device, "cpu" or "cuda".
        engine: the engine's name.
        slots: its number of worker processes.
        versions: of what the numbers depend on.
        trained_seeds: the seeds of the trials.
        files: the sha256 of every other file.
    """

    format: int = Field(default=FORMAT, ge=1, le=FORMAT)
    name: str
    overrides: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seeds: int | None = None
    plugins: tuple[PackedPlugin, ...] = ()
    modules: tuple[str, ...] = ()
    device: str = "cpu"
    engine: str = "sequential"
    slots: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    trained_seeds: tuple[int, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)


def pack(folder: str | Path, file: Path) -> Manifest:
    """Writes the archive of a finished study.

    Args:
        folder: the study's folder, or its URL.
        file: the zip file to write.

    Returns:
        What the archive says of itself.

    Raises:
        InputError: the folder holds no study, a trial of it has not ended, or a plugin's file is
            not what the study ran with.
    """
    result = study_result.open(folder)
    _require_ended(result)
    record = result.content.study
    plugins, files = _plugins(record)
    files["study.toml"] = str(record.get("file", "")).encode()
    stored = StudyFolder.at(result.folder)
    engine = stored.json_or_empty("plan.json")
    for name in KEPT:
        if stored.has(name):
            files[name] = json.dumps(stored.json(name), indent=1, sort_keys=True).encode()
    for name, table in result.tables.items():
        files[f"tables/{name}.csv"] = table.to_csv(index=False).encode()
    versions = {str(name): str(text) for name, text in (record.get("versions") or {}).items()}
    words = {"version": versions.get("testbed", ""), "name": result.name, "file": file.name}
    files["README.txt"] = README.format(**words).encode()
    asked = record.get("asked") or {}
    configs = result.content.configs
    named = [str(word) for word in asked.get("plugins") or []]
    manifest = Manifest(
        name=result.name,
        overrides=tuple(map(str, asked.get("set") or [])),
        only=tuple(map(str, asked.get("only") or [])),
        seeds=asked.get("seeds"),
        plugins=tuple(plugins),
        modules=tuple(word for word in named if not plugin_files.is_file(word)),
        device=next((config.device for config in configs.values()), "cpu"),
        engine=str(engine.get("name", "sequential")),
        slots=int(engine.get("slots", 0)),
        versions=versions,
        trained_seeds=tuple(sorted({config.seed for config in configs.values()})),
        files={name: sha256(content) for name, content in sorted(files.items())},
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_zip({MANIFEST: text.encode(), **files}))
    return manifest


def _require_ended(result: StudyResult) -> None:
    waiting = {name: n for name, n in result.statuses().items() if name not in ENDED}
    if waiting:
        counts = ", ".join(f"{count} {status}" for status, count in waiting.items())
        raise InputError(
            f"{result.folder}: {counts}: expected every trial to have ended. testbed study "
            "finishes them."
        )


def _plugins(record: Mapping[str, Any]) -> tuple[list[PackedPlugin], dict[str, bytes]]:
    """The plugins that a study loaded, and the files of those that are not bundled."""
    ours = str(bundled("plugins").resolve())
    places: dict[Path, str] = {}
    found, files = [], {}
    for one in record.get("plugins") or []:
        name, kind, version = (str(one[key]) for key in ("plugin", "kind", "version"))
        path = Path(str(one["origin"]))
        if kind != "file" or str(path.parent) == ours:
            found.append(PackedPlugin(name=name, kind=kind, version=version))
            continue
        if not path.is_file() or plugin_files.sha256(path) != version:
            raise InputError(
                f"{path}: expected the plugin file with which the study ran, sha256 "
                f"{version[:12]}…: it is missing, or was changed since."
            )
        place = places.setdefault(path.parent, f"plugins/{len(places)}")
        files[f"{place}/{path.name}"] = path.read_bytes()
        # Files that begin with _ hold what the plugins beside them import.
        files |= {f"{place}/{near.name}": near.read_bytes() for near in path.parent.glob("_*.py")}
        found.append(
            PackedPlugin(name=name, kind=kind, version=version, file=f"{place}/{path.name}")
        )
    return found, files


def _zip(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(
                zipfile.ZipInfo(name, EPOCH), files[name], compress_type=zipfile.ZIP_DEFLATED
            )
    return stream.getvalue()


def read(file: Path) -> tuple[Manifest, dict[str, bytes]]:
    """An archive's manifest, and the content of every other file by its path.

    Raises:
        InputError: it is no archive of a study, or one that is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                path = PurePosixPath(info.filename)
                if path.is_absolute() or ".." in path.parts or "\\" in info.filename:
                    raise InputError(f"{file}: {info.filename!r} leads out of the archive.")
                if info.file_size > LARGEST:
                    raise InputError(f"{file}: {info.filename} is larger than {LARGEST} bytes.")
            files = {
                info.filename: archive.read(info)
                for info in archive.infolist()
                if not info.is_dir()
            }
    except FileNotFoundError:
        raise InputError(f"{file}: no such file.") from None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"{file}: cannot be read as a zip file: {problem}") from None
    if MANIFEST not in files:
        raise InputError(f"{file}: expected an archive by testbed pack: it has no {MANIFEST}.")
    try:
        manifest = Manifest.model_validate_json(files.pop(MANIFEST))
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: {MANIFEST}: {where}: {first['msg']}") from None
    return manifest, files


def sha256(content: bytes) -> str:
    """The sha256 of a file's content, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def changes(manifest: Manifest, files: Mapping[str, bytes]) -> list[str]:
    """What is not as it was packed: a sentence for each file."""
    found = []
    for name in sorted({*manifest.files, *files}):
        if name not in files:
            found.append(f"{name} is missing from the archive.")
        elif name not in manifest.files:
            found.append(f"{name} was added after the study was packed.")
        elif sha256(files[name]) != manifest.files[name]:
            found.append(f"{name} was changed after the study was packed.")
    return found
