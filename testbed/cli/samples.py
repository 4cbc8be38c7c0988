"""The command that draws samples from a trained trial."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from testbed.cli import completion, options, terminal
from testbed.errors import InputError

TrialName = Annotated[
    str,
    typer.Argument(
        help="The folder of a trial, or the first letters of its id below ./runs.",
        autocompletion=completion.trials,
    ),
]
Number = Annotated[int, typer.Option("-n", min=1, max=1_000_000, help="Number of samples.")]
SamplesOut = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The file to write (required): numbers as .npy or .safetensors, or a picture as "
        ".png or .svg.",
    ),
]
Seed = Annotated[int, typer.Option(help="The seed of the starting noise.")]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="For a conditional or guided trial: the class that all samples have, for example "
        "label=3, or the text, caption='three blobs': one of the data's, or any of a trial "
        "with a text encoder; -1 switches it off. By default the classes are those of "
        "held-out data.",
    ),
]
Negatives = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="For classifier-free guidance: the class or the text of the denoiser that samples "
        "are guided away from, in place of the study's.",
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        help="The scale w of classifier-free guidance, D_n + w (D_y - D_n); by default samples "
        "are guided as in the study.",
    ),
]
Interval = Annotated[
    tuple[float, float],
    typer.Option(
        metavar="LOW HIGH",
        help="With --scale: the noise levels that are guided; all by default.",
        show_default=False,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Number of sampler steps; that of the study by default."),
]
SamplerName = Annotated[
    str,
    typer.Option(
        help="The sampler, by name or with options ('{name=\"ddim\", eta=0.5}'); that of the "
        "study by default."
    ),
]
ScheduleName = Annotated[
    str,
    typer.Option(
        help="The schedule of noise levels, by name or with options; that of the study by default."
    ),
]
Eta = Annotated[
    float | None,
    typer.Option(help="The sampler's option eta: how much fresh noise its steps draw."),
]
SeedEach = Annotated[
    bool,
    typer.Option(
        "--seed-each",
        help="Seed every sample by itself, with --seed, --seed + 1 and so on: a sample is then "
        "the same whatever the number of samples.",
    ),
]
ImageFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Start from this image, or from the samples in a .npy file, with noise added.",
    ),
]
Strength = Annotated[
    float,
    typer.Option(help="With --image: the share of the steps that the image goes through, above 0."),
]
KnownFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="With --image: a mask, white where the image is kept, or 1 in a .npy file.",
    ),
]


def sample(
    trial: TrialName,
    n: Number = 64,
    out: SamplesOut = None,
    seed: Seed = 0,
    condition: Conditions = None,
    negative: Negatives = None,
    scale: Scale = None,
    interval: Interval = (0.0, float("inf")),
    steps: Steps = None,
    sampler: SamplerName = "",
    schedule: ScheduleName = "",
    eta: Eta = None,
    each: SeedEach = False,
    image: ImageFile = None,
    strength: Strength = 1.0,
    known: KnownFile = None,
    device: options.Device = "auto",
) -> None:
    """Draw samples from a trained trial, as numbers or as a picture.

    Without further options they are drawn as the study draws them. With --image they begin at that
    image, and with --known its white region is kept and the rest is filled in.

    Exit codes: 0 the file is written, 2 bad input.
    """
    from testbed.trial import sample
    from testbed.trial.devices import device_of

    kinds = ", ".join(sample.SUFFIXES)
    file = options.output(out, "samples.npy", f"one of {kinds}")
    if file.suffix not in sample.SUFFIXES:
        raise InputError(f"--out {file}: expected one of {kinds}.")
    console = terminal.console()
    request = sample.Request(
        condition=condition or (),
        negative=negative or (),
        scale=scale,
        interval=interval,
        steps=steps,
        sampler=sampler,
        schedule=schedule,
        eta=eta,
        each=each,
        image=image,
        strength=strength,
        known=known,
    )
    sample.draw(trial, n, file, seed, device_of(device), console, request)
    console.print(f"{n} samples in [bold]{file}[/]")
    terminal.next_step(terminal.command("audit", trial), " measures what the model missed.")
