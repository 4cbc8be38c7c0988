"""The commands for results: put studies side by side, pack one, and verify a packed one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli import completion, options, terminal

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10
"""How many differences the terminal shows."""
Folders = Annotated[
    list[Path],
    typer.Argument(
        metavar="FOLDER...",
        help="The folders of two or more studies; the first is what the others are compared with.",
        autocompletion=completion.study_folders,
    ),
]
Folder = Annotated[
    Path,
    typer.Argument(
        help="The folder of a finished study, for example runs/default, or its URL.",
        autocompletion=completion.study_folders,
    ),
]
ArchiveOut = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The zip file to write.")
]
Archive = Annotated[Path, typer.Argument(metavar="FILE", help="A file by testbed pack.")]
RunOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Keep what runs in this folder, from which the same command resumes; by default it "
        "runs in a temporary one.",
    ),
]
RunDevice = Annotated[
    str,
    typer.Option(
        help="Where the networks run: cpu, cuda or cuda:N. By default it is the class of device "
        "that the study ran on.",
    ),
]
CSV = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Also write the table, as CSV.")
]


def compare(folders: Folders, out: CSV = None) -> None:
    """Put finished studies side by side where their trials are comparable, and say where not.

    Trials are comparable where all but their objective is equal: data, network, training, noise,
    conditions and evaluation. Their variants are compared with the baseline of the first study, on
    the primary metric, paired by seed; the p values are corrected over all of them.

    Exit codes: 0 done, also where nothing is comparable; 2 bad input.
    """
    from testbed.report import study_result
    from testbed.report.side_by_side import side_by_side

    found = side_by_side([study_result.open(folder) for folder in folders])
    console = terminal.console()
    for number, members in found.setups.items():
        console.print(f"Setup {number}: {members}", markup=False, highlight=False)
        console.print(_text(found.table[found.table["setup"] == number]), highlight=False)
    for line in (*found.apart, *found.notes):
        console.print(line, markup=False, highlight=False)
    if out is not None:
        found.table.to_csv(out, index=False)
        console.print(f"Table: [bold]{out}[/]")


def pack(folder: Folder, out: ArchiveOut = None) -> None:
    """Write a zip file with what another lab needs to run a study again and to compare.

    It has the study file, the plugin files, versions, seeds and all tables, as plain text; no
    weights, no samples and no data.

    Exit codes: 0 the file is written, 2 bad input.
    """
    from testbed.workflow import archive

    file = options.output(out, f"{folder.name}.zip", "a zip file")
    manifest = archive.pack(folder, file)
    console = terminal.console()
    console.print(f"{len(manifest.files)} files in [bold]{file}[/]")
    terminal.next_step(terminal.command("verify", str(file)), " runs it again and compares.")


def verify(
    file: Archive, out: RunOut = None, device: RunDevice = "", as_json: options.AsJSON = False
) -> None:
    """Run a packed study again and say whether its numbers are the same.

    It runs the code of the plugins in the file: verify one from somebody whom you trust.

    Exit codes: 0 the same, 1 it differs, 2 bad input, 130 interrupted.

    The document of --json has the keys same, summary, cells, changed (files of the archive that
    are not as they were packed), differences (table, row, column, before, after) and notes.
    """
    from testbed.workflow.verification import verify as run_again

    console = terminal.console()
    with terminal.text_on_stderr(as_json):
        found = run_again(file, device, out, console.print)
    if as_json:
        from testbed.cli import documents

        terminal.document(documents.verification(found))
        raise typer.Exit(0 if found.same else 1)
    for line in (*found.changed, *found.notes):
        console.print(line, markup=False, highlight=False)
    others = [one for one in found.differences if one not in found.verdicts]
    for one in (*found.verdicts, *others)[:SHOWN]:
        console.print(str(one), markup=False, highlight=False)
    if len(found.differences) > SHOWN:
        console.print(f"and {len(found.differences) - SHOWN} more")
    console.print(found.summary(), markup=False, highlight=False)
    raise typer.Exit(0 if found.same else 1)


def _text(table: pd.DataFrame) -> str:
    """A setup's rows, with values as the report writes them."""
    import pandas as pd

    from testbed.report.words import between, number, probability

    rows = [
        {
            "study": row["study"],
            "case": row["case"],
            "arm": row["arm"],
            "variant": row["variant"],
            row["metric"]: number(row["value"]),
            "seeds": row["seeds"],
            "ratio": between(row["ratio"], row["low"], row["high"]),
            "p (Holm)": probability(row["p_holm"]),
            "verdict": row["verdict"],
        }
        for row in table.to_dict("records")
    ]
    return str(pd.DataFrame(rows).to_string(index=False))
