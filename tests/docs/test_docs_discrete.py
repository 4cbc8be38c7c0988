"""The page on discrete denoisers: its studies can be planned, and it names all there is."""

import re
from pathlib import Path

import pytest
from helpers.paths import DOCS
from helpers.studies import WITHOUT_NETWORK

import testbed
from testbed.diffusion.noise_levels import TERMINAL
from testbed.diffusion.noise_tables import NEAREST, TABLES
from testbed.study import plan, study_file

GUIDE = (DOCS / "explanation" / "discrete.md").read_text()
BLOCKS = re.findall(r"^```toml\n\[base\]\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
ROWS = {row[1]: row[2] for row in re.finditer(r"^\| `(\w+)` \| (.*?) \|", GUIDE, re.MULTILINE)}


@pytest.mark.parametrize("block", BLOCKS)
def test_the_studies_shown_are_ones(tmp_path: Path, block: str) -> None:
    file = tmp_path / "discrete.toml"
    file.write_text(WITHOUT_NETWORK.replace("[base]\n", f"[base]\n{block}"))
    (one,) = plan.make(
        study_file.read(file, seeds=1), testbed.Registry(), tmp_path / "out", "cpu"
    ).trials
    assert one.config.c_noise == "index"
    zero = one.config.table.options["zero_terminal_snr"]
    assert zero == ("zero_terminal_snr" in block)
    assert one.config.density.options["sigma_max"] == (TERMINAL if zero else 80.0)


@pytest.mark.parametrize("name", ["euler", "ddim", "euler_ancestral", "ddpm", "dpmpp_2m", "heun",
                                  "lms", "dpmpp_2s_ancestral", "dpmpp_sde"])  # fmt: skip
def test_the_samplers_that_cannot_start_at_infinity_are_those_named(
    tmp_path: Path, name: str
) -> None:
    line = GUIDE[: GUIDE.index("cannot start there")].splitlines()[-1]
    named = f"`{name}`" not in line
    file = tmp_path / "discrete.toml"
    file.write_text(WITHOUT_NETWORK.replace("[base]\n", f"[base]\n{BLOCKS[1]}"))
    study = study_file.read(file, [f"evaluation.sampler={name}"], seeds=1)
    if named:
        plan.make(study, testbed.Registry(), tmp_path / "out", "cpu")
        return
    with pytest.raises(testbed.errors.InputError, match="cannot step from sigma = infinity"):
        plan.make(study, testbed.Registry(), tmp_path / "out", "cpu")


def test_the_table_has_every_table_and_option() -> None:
    assert set(ROWS) == set(TABLES)
    for name, table in TABLES.items():
        common = {"nearest", "zero_terminal_snr"}
        assert set(re.findall(r"`(\w+)`", ROWS[name])) == set(table.defaults) - common
    for word in NEAREST:
        assert f'"{word}"' in GUIDE
