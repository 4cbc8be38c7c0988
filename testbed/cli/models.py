"""The command that audits denoisers, trained ones and those of other codebases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli import checkpoints, completion, options, terminal
from testbed.errors import InputError, UnknownName, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from testbed.audit import Adapter, Audit
    from testbed.checkpoints.diffusers_folders import DiffusersFolder
    from testbed.checkpoints.models import Checkpoint
    from testbed.diffusion.parameterization import Parameterization
    from testbed.oracles import Oracle
    from testbed.registry import Registry

Subject = Annotated[
    str,
    typer.Argument(
        help="A parameterization, by name or with options ('{name=\"v\"}'), a trial (its folder or "
        "id), the folder of a model of diffusers, or module:factory or file.py:factory of a "
        "denoiser (x, sigma) -> x0.",
        autocompletion=completion.parameterizations,
    ),
]
Parts = Annotated[
    list[str] | None,
    typer.Option(
        help="Check only this part: algebra, oracle, 'second order', learning or sampling. "
        "The option may be given several times."
    ),
]
PredictionType = Annotated[
    str,
    typer.Option(
        help="What the denoiser returns: x0, eps, score, v or flow; -flow and the like are "
        "the same with the other sign."
    ),
]
ScheduleName = Annotated[
    str,
    typer.Option(
        help="The noise schedule of the state that the denoiser takes: ve, vp, cosine or flow."
    ),
]
TimeArgument = Annotated[
    str,
    typer.Option(help="What its second argument is: sigma, log_sigma, time, 1-time or index."),
]
LevelTable = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The .npy file of the noise levels that --time-argument index counts in: ascending "
        "sigmas, betas or alpha-bars.",
    ),
]
TableContents = Annotated[
    str,
    typer.Option(
        help="What the numbers of --table are: sigmas, betas or alpha_bars; by default they are "
        "told apart, or refused where they may be two of these."
    ),
]
Shape = Annotated[
    str,
    typer.Option(
        metavar="SIZES",
        help="The shape of a sample that the denoiser takes, where it takes one alone, for "
        "example 3,8,8.",
    ),
]
DtypeName = Annotated[
    str,
    typer.Option(
        help="The dtype that the denoiser takes, where it takes one alone: float64, float32, "
        "bfloat16 or float16; by default that of its weights, or what it answers in."
    ),
]
NetworkOf = Annotated[
    str,
    typer.Option(
        help="For a factory that takes a network: the parameterization of that network.",
        autocompletion=completion.parameterizations,
    ),
]
DataName = Annotated[
    str,
    typer.Option(
        help="The data set that takes the place of the audit's own three, by name or with options "
        "('{name=\"mixture\", dim=8}'). It needs an oracle, unless the denoiser is --trained on it."
    ),
]
Trained = Annotated[
    bool,
    typer.Option(
        "--trained", help="The denoiser is a trained model: its errors are sizes, not failures."
    ),
]
AuditOut = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Also write every check to this file: a .csv table, or a .svg or .png picture.",
    ),
]


def audit(
    subject: Subject,
    part: Parts = None,
    prediction_type: PredictionType = "x0",
    schedule: ScheduleName = "ve",
    time_argument: TimeArgument = "sigma",
    table: LevelTable = None,
    table_contents: TableContents = "",
    shape: Shape = "",
    dtype: DtypeName = "",
    parameterization: NetworkOf = "",
    data: DataName = "",
    trained: Trained = False,
    sigma_data: options.SigmaData = 0.5,
    wrapping: checkpoints.WrappingName = "",
    weights: checkpoints.Weights = None,
    prefix: checkpoints.Prefix = "",
    average: checkpoints.Average = "",
    subfolder: checkpoints.Subfolder = "",
    out: AuditOut = None,
    as_json: options.AsJSON = False,
    plugin: options.Plugins = None,
    plugin_dir: options.PluginDirs = None,
) -> None:
    """Check that a denoiser is what it claims to be: the law it breaks, by how much, and where.

    Every law has a bound from floating-point analysis; the table gives error over bound. A factory
    names what it wants: `oracle` (it returns the exact denoiser of that distribution, in its own
    code and conventions), `network` (it returns a denoiser around that network; give
    --parameterization), or nothing.

    Exit codes: 0 every law holds, 3 one is broken, 2 bad input.

    The document of --json has the keys subject, passed, rows, effects, findings and notes.
    """
    _check_out(out)
    with terminal.text_on_stderr(as_json):
        import torch

        from testbed.audit import PARTS, Adapter, level_tables

        torch.set_num_threads(1)
        registry = options.registry(plugin, plugin_dir)
        parts = part or PARTS
        levels = level_tables.read_table(table, table_contents) if table is not None else None
        table_of = levels and levels.sigmas
        # The table of a wrapping is its own: the wrapping says that it is counted in.
        argument = "index" if wrapping and table_of is not None else time_argument
        reads = prediction_type, schedule, argument, table_of, _sizes(shape), _dtype(dtype)
        files = checkpoints.Files(wrapping, weights, prefix, average, subfolder)
        subjects = _Subjects(registry, data, trained, parameterization, sigma_data, files)
        with terminal.console().status("auditing") as status:
            found = subjects.audited(
                subject, Adapter(*reads), parts, lambda text: status.update(f"auditing: {text}")
            )
    if levels is not None:
        found = replace(found, notes=(levels.note, *found.notes))
    _conclude(found, out, as_json, terminal.words_after("audit", subject))
    if not found.passed:
        raise typer.Exit(3)


def _check_out(out: Path | None) -> None:
    """InputError unless the file of --out can be written."""
    if out is not None and out.suffix not in (".csv", ".svg", ".png"):
        raise InputError(f"--out {out}: expected .csv, .svg or .png.")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}.")


def _sizes(words: str) -> tuple[int, ...] | None:
    """The shape that `--shape` names.

    Raises:
        InputError: it is none.
    """
    if not words:
        return None
    sizes = [word.strip() for word in words.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in sizes):
        raise InputError(f"--shape {words}: expected positive sizes, such as 3,8,8.")
    return tuple(map(int, sizes))


def _dtype(word: str) -> torch.dtype | None:
    """The dtype that `--dtype` names.

    Raises:
        UnknownName: it is none of floating point.
    """
    import torch

    names = ("float64", "float32", "bfloat16", "float16")
    if word and word not in names:
        raise UnknownName(f"--dtype: {unknown('dtype', word, names)}")
    found: torch.dtype | None = getattr(torch, word) if word else None
    return found


@dataclass(frozen=True)
class _Subjects:
    """What subjects are audited with, besides how their outputs are read.

    Args:
        registry: the components.
        data: the data set's word, with options or without; "" for the audit's own distributions.
        trained: whether a denoiser is a trained model.
        parameterization: the name of that whose network a factory wraps; "" for none.
        sigma_data: what parameterizations get.
        files: what the options of a checkpoint say.
    """

    registry: Registry
    data: str
    trained: bool
    parameterization: str
    sigma_data: float
    files: checkpoints.Files

    def audited(
        self, word: str, adapter: Adapter, parts: Sequence[str], say: Callable[[str], None]
    ) -> Audit:
        """The audit of a parameterization, a trial, or a denoiser of another codebase.

        Raises:
            InputError: the word names none of these, or the subject or the data cannot be used.
        """
        from testbed.audit import driver
        from testbed.trial import audited
        from testbed.trial.specs import ComponentSpec

        spec = ComponentSpec.parse(word)
        name, chosen = spec.name, spec.options
        subject: str | Parameterization
        kept: dict[str, Parameterization]
        if chosen or name in self.registry.names("parameterization"):
            p = self.registry.parameterization(name, **chosen)
            subject, trained, kept = p, False, _variants(p)
        elif found := self.files.checkpoint(name, adapter.table, self.sigma_data):
            checkpoint, shape = found
            return self._of_checkpoint(name, checkpoint, adapter.shape or shape, parts, say)
        elif audited.is_trial(name, self.registry):
            return audited.run(name, parts, say)
        else:
            subject, trained, kept = name, self.trained, {}
        oracle, held_out = self._distribution(trained)
        return driver.run(
            subject,
            parts=parts,
            adapter=adapter,
            oracle=oracle,
            held_out=held_out,
            trained=trained,
            parameterization=self.parameterization or None,
            variants=kept,
            sigma_data=self.sigma_data,
            registry=self.registry,
            say=say,
        )

    def _of_checkpoint(
        self,
        name: str,
        checkpoint: Checkpoint,
        shape: tuple[int, ...] | None,
        parts: Sequence[str],
        say: Callable[[str], None],
    ) -> Audit:
        """The audit of a model of another codebase, read as its files state.

        Raises:
            InputError: it cannot be loaded, or the data do not have its shape.
        """
        from testbed.audit import checkpoints as subjects
        from testbed.checkpoints.diffusers_folders import DiffusersFolder

        folder = checkpoint if isinstance(checkpoint, DiffusersFolder) else None
        oracle, held_out = self._distribution(trained=True, folder=folder)
        return subjects.run(
            checkpoint,
            name=name,
            shape=shape,
            held_out=held_out,
            oracle=oracle,
            parts=parts,
            registry=self.registry,
            say=say,
        )

    def _distribution(
        self, trained: bool, folder: DiffusersFolder | None = None
    ) -> tuple[Oracle | None, torch.Tensor | None]:
        """The oracle and the held-out samples of the data set, if one is named.

        Args:
            trained: whether an oracle is of use, and not needed.
            folder: the model of diffusers whose latents take the place of images.

        Raises:
            InputError: there is no such data set, its oracle is not known and is needed, or the
                first stage of the model cannot encode its images.
        """
        from testbed.audit import driver
        from testbed.trial.first_stage import in_latents
        from testbed.trial.specs import ComponentSpec

        if not self.data:
            return None, None
        try:
            spec = ComponentSpec.parse(self.data)
            data = self.registry.dataset(spec.name, **spec.options)()
        except InputError as problem:
            raise InputError(f"--data {problem}") from None
        if folder is not None:
            data = in_latents(data, folder)
        return (data.oracle, data.test) if trained else (driver.oracle_of(data, self.data), None)


def _variants(p: Parameterization) -> dict[str, Parameterization]:
    """The parameterization at other values of its options, by what these are."""
    from testbed.diffusion.parameterization import Parameterization
    from testbed.testing import option_points

    return {
        point.where: point.component
        for point in option_points(p)
        if point.where and isinstance(point.component, Parameterization)
    }


def _conclude(found: Audit, out: Path | None, as_json: bool, words: list[str]) -> None:
    """Writes every check where it is asked for, and prints the document or the table."""
    from testbed.audit import render

    if out is not None and out.suffix == ".csv":
        found.table().to_csv(out, index=False)
    elif out is not None:
        render.draw(found, out)
    if as_json:
        typer.echo(found.json())
        return
    console = terminal.console()
    for line in render.lines(found):
        console.print(line, highlight=False)
    if out is not None:
        terminal.next_step(f"open {out}", ", which has every check.")
    else:
        drawn = terminal.command("audit", *words, "--out", "audit.svg")
        terminal.next_step(drawn, " draws every check.")
