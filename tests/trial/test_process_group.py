"""One training over several processes: two of them on the CPU, by gloo."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import SMALL, config, planned

from testbed.errors import InputError
from testbed.registry import default_registry
from testbed.study import engines
from testbed.trial import process_group, worker
from testbed.trial.folders import TrialFolder

SETS = (
    'dataset={ name = "mixture", dim = 2, n = 256, test = 64 }',
    "training={ steps = 150, batch = 8, points = 3 }",
    "evaluation={ levels = 2, draws = 8, samples = 8, steps = 2, metrics = [] }",
)


def curve(folder: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in TrialFolder.at(folder).rows()]


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def after(windows: int) -> Callable[[], bool]:
    """Asks to stop after so many windows."""
    left = iter([False] * (windows - 1))
    return lambda: next(left, True)


@pytest.mark.slow
@pytest.mark.process
def test_two_processes_have_the_bits_of_two_parts_in_one_and_resume(tmp_path: Path) -> None:
    parts = config(SMALL, tmp_path, *SETS, "training.accumulation=2")
    assert worker.run(parts, tmp_path / "parts") == "finished"
    whole = config(SMALL, tmp_path, *SETS)
    together: dict[str, Any] = {"devices": ("cpu", "cpu")}
    at = tmp_path / "together"
    assert worker.run(whole, at, stop=after(2), **together) == "interrupted"
    assert [step for step, _ in curve(at)] == [50, 100]
    assert worker.run(whole, at, **together) == "finished"
    assert curve(at) == curve(tmp_path / "parts")
    assert weights(at) == weights(tmp_path / "parts")


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.batch = 8 cannot be cut into 3 equal parts"):
        process_group.require(config(SMALL, tmp_path, *SETS), 3)
    accumulating = config(SMALL, tmp_path, *SETS, "training.accumulation=4")
    process_group.require(accumulating, 2)
    with pytest.raises(InputError, match="into 16 equal parts"):
        process_group.require(accumulating, 4)


def test_the_engine_takes_a_trial_at_a_time_over_all_devices(tmp_path: Path) -> None:
    made = planned(SMALL, tmp_path, *SETS, seeds=2)
    registry = default_registry()
    with pytest.raises(InputError, match="--device cpu is one device alone"):
        engines.choose(made, registry, "distributed")
    made.device = "cuda:0,1"
    chosen = engines.choose(made, registry, "distributed")
    assert (chosen.slots, [len(group.trials) for group in chosen.groups]) == (1, [1, 1])
    chosen.write(made.folder)
    again = engines.choose(made, registry)
    assert (again.name, len(again.groups)) == ("distributed", 2)
