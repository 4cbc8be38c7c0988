"""Models of other codebases on the command line: what an audit is given, and the command export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from testbed.cli import completion, terminal
from testbed.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from testbed.checkpoints.models import Checkpoint

WrappingName = Annotated[
    str,
    typer.Option(
        "--wrapping",
        help="The factory returns a raw network (x, t): what its codebase puts around it, for "
        "example edm.EDMPrecond, k_diffusion.VDenoiser or sgm.EpsScaling.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="With --wrapping: the .safetensors file of the network's weights.",
    ),
]
Prefix = Annotated[
    str,
    typer.Option(
        "--prefix",
        help="With --weights: what stands before the network's names, for example "
        "model.diffusion_model.",
    ),
]
Average = Annotated[
    str,
    typer.Option(
        "--average",
        help="With --weights: of several sets of weights, the average that is taken, such as ema "
        "or model_ema; none for the weights themselves.",
    ),
]
Subfolder = Annotated[
    str,
    typer.Option(
        "--subfolder",
        help="Of a folder of diffusers, that of the network, for example unet_ema.",
    ),
]


@dataclass(frozen=True)
class Files:
    """What the options of a checkpoint say.

    Args:
        wrapping, weights, prefix, average, subfolder: as the options.
    """

    wrapping: str = ""
    weights: Path | None = None
    prefix: str = ""
    average: str = ""
    subfolder: str = ""

    def checkpoint(
        self, word: str, sigmas: Tensor | None, sigma_data: float
    ) -> tuple[Checkpoint, tuple[int, ...] | None] | None:
        """The checkpoint that a word means, and its shape where its files say it; None for none.

        Args:
            word: the folder of a model of diffusers, or with a wrapping a factory.
            sigmas: the levels of --table, if any.
            sigma_data: that of --sigma-data.

        Raises:
            InputError: options without what they belong to, or files that do not fit.
        """
        from testbed.checkpoints import diffusers_folders, models
        from testbed.checkpoints.wrappings import wrapping
        from testbed.data.level_files import FILE_TABLES

        for name in ("weights", "prefix", "average"):
            if getattr(self, name) and not self.wrapping:
                raise InputError(
                    f"--{name} is that of a network that a factory builds: say with --wrapping "
                    "what is around it."
                )
        if self.wrapping:
            table = None
            if sigmas is not None:
                table = FILE_TABLES["sigmas"].bound({"values": tuple(sigmas.tolist())})
            own = None if wrapping(self.wrapping).sigma_data else sigma_data
            model = models.factory_model(
                word,
                self.wrapping,
                weights=str(self.weights or ""),
                prefix=self.prefix,
                average=self.average,
                table=table,
                sigma_data=own,
            )
            return model, None
        if diffusers_folders.is_folder(word):
            folder = diffusers_folders.read(word, subfolder=self.subfolder)
            if folder.text is not None:  # it is audited as it is without a text
                folder = folder.with_prompts()
            return folder, folder.shape
        if self.subfolder:
            raise InputError(f"--subfolder {self.subfolder}: {word} is no folder of diffusers.")
        return None


def export(
    trial: Annotated[
        str,
        typer.Argument(
            help="The folder of a trial, or the first letters of its id below ./runs.",
            autocompletion=completion.trials,
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FOLDER", help="The folder to write (required)."),
    ] = None,
) -> None:
    """Write a trained trial as a pipeline of diffusers: the network, its scheduler, its weights.

    The scheduler has the trial's own betas and prediction type, and its sampler where diffusers has
    it. The encoder of its texts and the first stage of its latents are written too. A trial that is
    no pipeline of diffusers is refused by name.

    Exit codes: 0 the folder is written, 2 bad input.
    """
    from testbed.trial import export as exporting

    if to is None:
        raise InputError("--to FOLDER is required: for example --to pipeline.")
    said = exporting.export(trial, to)
    console = terminal.console()
    console.print(f"{said.pipeline} in [bold]{to}[/]")
    for note in said.notes:
        console.print(note, highlight=False)
    loads = terminal.command("audit", str(to))
    terminal.next_step(loads, " reads it back.")
