"""The command of the installation: its self-test."""

from __future__ import annotations

from typing import Annotated

import typer

from testbed.cli import options, terminal

BROKEN = 3
"""The exit code where a law is broken, as of an audit."""


def selftest(
    seed: Annotated[int, typer.Option("--seed", help="Seed of the inputs, a whole number.")] = 0,
    dtype: Annotated[
        str, typer.Option("--dtype", help="The dtype of the inputs: float64 or float32.")
    ] = "float64",
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Number of threads of torch.")
    ] = 1,
    as_json: options.AsJSON = False,
) -> None:
    """Test the installed package by closed forms, in seconds: is it the package it should be?

    After an installation, an upgrade of torch, or a change of the source: each line is a formula
    whose value is known without this package. EDM's loss is 1 at every noise level on Gaussian
    data; the probability-flow ODE takes noise to a standard deviation of 0.5; training and the
    averages of its weights are replayed in float64; likelihood, scores, conversions, bundled
    names and statistics have values from the papers. Tolerances follow from rounding, from a
    method's order or from chance, and every run of a right installation passes.

    It tests the bundled plugins and the code of the package, not your plugins (testbed check does)
    and not a trained model (testbed audit does).

    Exit codes: 0 every law holds, 3 one is broken, 2 bad input.

    The document of --json has the keys passed, version, torch, seed, dtype, threads and laws (law,
    sentence, passed, message, seconds).
    """
    import torch

    from testbed import __version__, selftest

    torch.set_num_threads(threads)
    console, found = terminal.console(), []
    with terminal.text_on_stderr(as_json):
        for one in selftest.run(seed, dtype):
            found.append(one)
            if not as_json:
                mark = "[green]holds [/]" if one.passed else "[red]BROKEN[/]"
                console.print(f"{mark} {one.law:14}", end="", highlight=False)
                console.print(one.sentence, highlight=False, markup=False)
                if not one.passed:
                    console.print(f"{'':22}{one.message}", highlight=False, markup=False)
    broken = [one.law for one in found if not one.passed]
    if as_json:
        terminal.document(
            {
                "passed": not broken,
                "version": __version__,
                "torch": torch.__version__,
                "seed": seed,
                "dtype": dtype,
                "threads": threads,
                "laws": [vars(one) for one in found],
            }
        )
    else:
        seconds = sum(one.seconds for one in found)
        about = f"testbed {__version__} with torch {torch.__version__}, {dtype}, {seconds:.0f} s"
        verdict = (
            f"[red]This installation is broken[/]: {', '.join(broken)} of {len(found)} laws "
            f"({about}). Its numbers are not to be trusted."
            if broken
            else f"[green]This installation is sound[/]: all {len(found)} laws hold ({about})."
        )
        console.print(verdict, highlight=False)
    raise typer.Exit(BROKEN if broken else 0)
