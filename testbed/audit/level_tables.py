"""The noise levels that an index counts in, read from a file of sigmas, betas or alpha-bars."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from testbed.data import level_files
from testbed.diffusion.noise_levels import CONTENTS, ddpm_sigmas, sigmas_of
from testbed.errors import InputError, UnknownName, unknown

ASK = "Say which with --table-contents (sigmas, betas or alpha_bars)."


class LevelTable(NamedTuple):
    """The noise levels (n,) float64, ascending, and in words what they were read from."""

    sigmas: Tensor
    note: str


def read_table(file: Path, contents: str = "") -> LevelTable:
    """Reads the noise levels of a file.

    Args:
        file: One row or column of numbers: ascending sigmas, betas, or descending alpha-bars.
        contents: Which of them they are; "" tells them apart by `contents_of`.

    Raises:
        InputError: The file cannot be read, holds none of these, or may hold two of them.
        UnknownName: `contents` is none of `CONTENTS`.
    """
    if contents and contents not in CONTENTS:
        raise UnknownName(unknown("table contents", contents, CONTENTS))
    values = level_files.numbers(file, contents, "--table")
    try:
        contents = contents or contents_of(values)
        sigmas = sigmas_of(values, contents)
    except InputError as problem:
        raise InputError(f"--table {file}: {problem}") from None
    return LevelTable(
        sigmas,
        f"{file} was read as {contents}: {len(sigmas)} noise levels from {float(sigmas[0]):.4g} "
        f"to {float(sigmas[-1]):.4g}.",
    )


def contents_of(values: Tensor) -> str:
    """Returns what the numbers are: sigmas reach 1, betas stay below 0.1 and leave little signal.

    Raises:
        InputError: They are none of these, or may be two.
    """
    inside = values.ndim == 1 and len(values) >= 2 and bool(values.isfinite().all())
    if not inside or not float(values.min()) > 0:
        raise InputError("expected (n,) ascending positive noise levels, betas or alpha-bars.")
    rises, falls = bool((values.diff() > 0).all()), bool((values.diff() < 0).all())
    if float(values.max()) >= 1:
        if not rises:
            raise InputError("expected (n,) ascending positive noise levels.")
        return "sigmas"
    if falls:
        if float(values[-1]) < 0.5 and float(values.median()) < 0.9:
            return "alpha_bars"
        raise InputError(
            "these descend from below 1 and hardly fall: alpha-bars that end at little noise, or "
            "1 - beta, of which only the betas are taken. Write the betas, or say "
            "--table-contents alpha_bars."
        )
    end = float(ddpm_sigmas(values)[-1])
    if end >= 1 and float(values.max()) < 0.1:
        return "betas"
    if not rises:
        raise InputError("expected (n,) ascending positive noise levels, betas or alpha-bars.")
    raise InputError(
        f"these may be sigmas that end at {float(values[-1]):.4g}, or betas, by which the last "
        f"noise level is {end:.4g}. {ASK}"
    )
