"""Data sets: what they hold, that they are the same every time, and that their oracles are theirs.

A law is a function of an implementation. It passes for ours and fails for its mutants.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws.data import (
    DIMS,
    U32,
    U64,
    Z,
    law_disjoint,
    law_in_the_plane,
    law_moments,
    law_off_the_plane,
    rows,
)
from torch import Tensor

from testbed.components.dataset import Data
from testbed.data.files import array, digits
from testbed.data.synthetic import embed, plane
from testbed.errors import InputError
from testbed.registry import Registry

SETS = ["gaussian", "mixture", "ring", "moons", "swiss_roll", "checkerboard"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


def build(registry: Registry, name: str, **options: Any) -> Data:
    return registry.dataset(name, **options)()


# --- digits -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numerals() -> Data:
    return digits()


def test_digits_are_images_split_four_to_one(numerals: Data) -> None:
    assert numerals.train.shape == (1438, 1, 8, 8)
    assert numerals.test.shape == (359, 1, 8, 8)


def test_digits_reach_both_ends_of_their_range(numerals: Data) -> None:
    assert (float(numerals.train.min()), float(numerals.train.max())) == (-1.0, 1.0)
    assert numerals.train.dtype == torch.float32


def test_digits_are_scikit_learn_s(numerals: Data) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    whole = np.concatenate([bunch.images.reshape(-1, 64) / 8 - 1, bunch.target[:, None]], 1)
    ours = torch.cat(
        [
            torch.cat([images.flatten(1), labels[:, None]], 1)
            for images, labels in (
                (numerals.train, numerals.train_labels),
                (numerals.test, numerals.test_labels),
            )
        ]
    )
    assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, ours.tolist()))


def test_digits_have_ten_labels(numerals: Data) -> None:
    assert numerals.labels == 10
    for labels in (numerals.train_labels, numerals.test_labels):
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) == set(range(10))


def test_digits_are_the_same_in_every_build(numerals: Data) -> None:
    assert digits().digest == numerals.digest


def test_digits_differ_with_the_split_seed(numerals: Data) -> None:
    assert digits(split_seed=1).digest != numerals.digest


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1e-9, -0.1, 1.5])
def test_a_split_that_leaves_a_side_empty_is_refused(fraction: float) -> None:
    said = "leaves one split empty: expected the share of the samples that is held out, above 0"
    with pytest.raises(InputError, match=said):
        digits(test=fraction)


# --- the split --------------------------------------------------------------------------------


# --- your own arrays --------------------------------------------------------------------------

NUMBERS = np.arange(1.0, 41).reshape(10, 4)
CLASSES = np.arange(10) % 3


def saved(folder: Path, **arrays: Any) -> str:
    file = folder / "mine.npz"
    np.savez(file, **arrays)
    return str(file)


def test_an_npy_file_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", NUMBERS)
    found = array(str(tmp_path / "mine.npy"))
    assert sorted(torch.cat([found.train, found.test]).tolist()) == NUMBERS.tolist()
    assert (found.train.shape, found.test.shape, found.labels) == ((8, 4), (2, 4), 0)


def test_an_npz_file_is_read_with_its_labels(tmp_path: Path) -> None:
    found = array(saved(tmp_path, x=NUMBERS, y=CLASSES))
    assert found.labels == 3
    for x, y in ((found.train, found.train_labels), (found.test, found.test_labels)):
        assert torch.equal((x[:, 0].long() - 1) // 4 % 3, y)


def test_labels_are_optional(tmp_path: Path) -> None:
    found = array(saved(tmp_path, x=NUMBERS))
    assert (found.train_labels, found.test_labels, found.labels) == (None, None, 0)


def test_arrays_of_other_names_are_found(tmp_path: Path) -> None:
    found = array(saved(tmp_path, images=NUMBERS, kinds=CLASSES), data="images", labels="kinds")
    assert found.labels == 3


def test_one_number_a_sample_becomes_a_column(tmp_path: Path) -> None:
    assert array(saved(tmp_path, x=NUMBERS[:, 0])).shape == (1,)


def test_images_keep_their_shape(tmp_path: Path) -> None:
    assert array(saved(tmp_path, x=NUMBERS.reshape(10, 1, 2, 2))).shape == (1, 2, 2)


def test_integers_become_float32(tmp_path: Path) -> None:
    assert array(saved(tmp_path, x=NUMBERS.astype(np.int16))).train.dtype == torch.float32


def test_samples_are_shifted_then_scaled(tmp_path: Path) -> None:
    found = array(saved(tmp_path, x=NUMBERS), scale=0.5, shift=-20.0)
    assert sorted(torch.cat([found.train, found.test]).tolist()) == ((NUMBERS - 20) / 2).tolist()


def test_an_array_is_the_same_in_every_build(tmp_path: Path) -> None:
    path = saved(tmp_path, x=NUMBERS, y=CLASSES)
    assert array(path).digest == array(path).digest
    assert array(path).digest != array(path, split_seed=1).digest


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    Path(saved(tmp_path, x=NUMBERS)).rename(tmp_path / "mine.npy")
    assert array(str(tmp_path / "mine.npy")).shape == (4,)
    np.save(tmp_path / "other.npy", NUMBERS)
    (tmp_path / "other.npy").rename(tmp_path / "other.npz")
    assert array(str(tmp_path / "other.npz")).shape == (4,)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_the_trap_works(tmp_path: Path) -> None:
    np.save(tmp_path / "trap.npy", np.array([Trap(tmp_path / "sprung")], dtype=object))
    np.load(tmp_path / "trap.npy", allow_pickle=True)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_pickled_objects_are_refused_without_unpickling(tmp_path: Path, suffix: str) -> None:
    file, objects = tmp_path / f"trap.{suffix}", np.array([Trap(tmp_path / "sprung")], dtype=object)
    if suffix == "npy":
        np.save(file, objects)
    else:
        np.savez(file, x=objects)
    with pytest.raises(InputError, match="cannot be read as numbers"):
        array(str(file))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("path", ["", "no_such_folder/file.npy", "no_such_file.npy", "."])
def test_a_path_that_is_no_file_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"is not a file|no such file or folder"):
        array(path)


def test_an_unknown_array_gets_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown array 'image'\. Did you mean 'images'"):
        array(saved(tmp_path, images=NUMBERS), data="image")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("content", [b"", b"1.0,2.0\n3.0,4.0\n", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"mine.{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as numbers"):
        array(str(file))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: float) -> None:
    for file in (tmp_path / "mine.npy", Path(saved(tmp_path, x=NUMBERS))):
        if file.suffix == ".npy":
            np.save(file, NUMBERS)
        content = file.read_bytes()
        file.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(InputError, match="cannot be read as numbers"):
            array(str(file))


@pytest.mark.slow
def test_a_damaged_compressed_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    np.savez_compressed(file, x=np.random.default_rng(0).normal(size=(50, 4)))
    content, refused = file.read_bytes(), 0
    whole = array(str(file)).digest
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        file.write_bytes(damaged)
        try:
            # Some bytes mean nothing: dates, padding, a copy of the central directory's entry.
            assert array(str(file)).digest == whole
        except InputError:
            refused += 1
    assert refused > len(content) / 7 * 0.8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    spoilt = NUMBERS.copy()
    spoilt[3, 2] = value
    with pytest.raises(InputError, match="not finite"):
        array(saved(tmp_path, x=spoilt))


@pytest.mark.parametrize("x", [NUMBERS.astype(str), NUMBERS + 1j, NUMBERS > 3])
def test_what_is_no_real_number_is_refused(tmp_path: Path, x: Any) -> None:
    with pytest.raises(InputError, match="expected real numbers"):
        array(saved(tmp_path, x=x))


def test_negative_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must count from 0, got -1"):
        array(saved(tmp_path, x=NUMBERS, y=CLASSES - 1))


def test_labels_that_are_no_integers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are float64, expected integers"):
        array(saved(tmp_path, x=NUMBERS, y=CLASSES / 2))


def test_labels_of_another_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x has 10 samples and labels of shape \(9,\)"):
        array(saved(tmp_path, x=NUMBERS, y=CLASSES[:9]))


# --- synthetic: shape, split, streams -----------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_a_synthetic_set_has_the_sizes_asked_for(registry: Registry, name: str) -> None:
    found = build(registry, name, dim=5, n=70, test=30)
    assert (found.train.shape, found.test.shape) == ((70, 5), (30, 5))
    assert (found.train.dtype, found.basis.shape) == (torch.float32, (5, 2))


@pytest.mark.parametrize("name", SETS)
def test_a_synthetic_set_is_the_same_in_every_build(registry: Registry, name: str) -> None:
    first, second = (build(registry, name, dim=3, n=50, test=50) for _ in range(2))
    assert first.digest == second.digest


@pytest.mark.parametrize("name", SETS)
def test_a_synthetic_set_differs_with_its_seed(registry: Registry, name: str) -> None:
    first, second = (build(registry, name, n=50, test=50, data_seed=s) for s in (0, 1))
    assert not rows(first.train) & rows(second.train)


@pytest.mark.parametrize("name", SETS)
def test_a_synthetic_set_uses_no_global_generator(registry: Registry, name: str) -> None:
    before = torch.get_rng_state()
    build(registry, name, dim=4, n=50, test=50)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", SETS)
def test_the_test_split_does_not_depend_on_how_much_is_trained_on(
    registry: Registry, name: str
) -> None:
    first, second = (build(registry, name, n=n, test=40) for n in (10, 1000))
    assert torch.equal(first.test, second.test)


@pytest.mark.parametrize("name", SETS)
def test_train_and_test_are_disjoint(registry: Registry, name: str) -> None:
    law_disjoint(lambda **options: build(registry, name, **options))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dim", [1, 0, -3])
def test_less_than_a_plane_is_refused(registry: Registry, name: str, dim: int) -> None:
    with pytest.raises(InputError, match="must be at least 2"):
        build(registry, name, dim=dim)


@pytest.mark.parametrize("options", [{"n": 0}, {"test": 0}, {"scale": 0.0}, {"scale": -1.0}])
def test_sizes_that_are_not_positive_are_refused(
    registry: Registry, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="must be positive"):
        build(registry, "ring", **options)


# --- synthetic: the embedding -------------------------------------------------------------------


def test_in_the_plane_nothing_is_turned() -> None:
    assert torch.equal(plane(2), torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dim", DIMS)
def test_the_data_lie_in_their_plane(registry: Registry, name: str, dim: int) -> None:
    law_in_the_plane(build(registry, name, dim=dim, n=500, test=10))


@pytest.mark.parametrize("name", SETS)
def test_the_scale_multiplies_every_number(registry: Registry, name: str) -> None:
    one, two = (build(registry, name, dim=3, scale=s, n=50, test=50) for s in (1.0, 2.0))
    assert torch.equal(2 * one.train, two.train)
    assert torch.equal(2 * one.test, two.test)


@pytest.mark.parametrize("name", SETS)
def test_the_embedding_keeps_the_points(registry: Registry, name: str) -> None:
    flat, deep = (build(registry, name, dim=d, n=50, test=50) for d in (2, 16))
    error = (deep.train.double() @ deep.basis - flat.train.double()).norm(dim=1)
    bound = 2 * U32 + 40 * 16 * U64
    assert bool((error <= bound * flat.train.double().norm(dim=1) * (1 + 4 * U32)).all())


# --- synthetic: sigma_data and the oracle -------------------------------------------------------


@pytest.mark.parametrize("name", [*SETS, "digits"])
def test_sigma_data_is_numpy_s(registry: Registry, name: str) -> None:
    found = build(registry, name)
    x = found.train.numpy().astype(np.float64)
    # Two ways to sum n positive numbers: each is within n u of the sum.
    assert found.sigma_data == pytest.approx(math.sqrt((x**2).mean()), rel=2 * x.size * U64)


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
@pytest.mark.parametrize("options", [{}, {"dim": 5, "scale": 3.0}], ids=["flat", "embedded"])
@pytest.mark.parametrize("law", [law_moments, law_off_the_plane])
def test_an_oracle_is_that_of_its_data(
    registry: Registry, name: str, options: dict[str, Any], law: Callable[[Data], None]
) -> None:
    law(build(registry, name, **options))


@pytest.mark.parametrize("name", ["ring", "moons", "swiss_roll", "checkerboard", "digits"])
def test_without_a_closed_form_there_is_no_oracle(registry: Registry, name: str) -> None:
    assert build(registry, name).oracle is None


# --- synthetic: what is drawn -------------------------------------------------------------------


def test_the_ring_has_radius_one(registry: Registry) -> None:
    radius = build(registry, "ring", n=500).train.double().norm(dim=1)
    assert float((radius - 1).abs().max()) <= 2 * U32


def test_the_ring_s_width_is_the_deviation_of_its_radius(registry: Registry) -> None:
    radius = build(registry, "ring", width=0.1).train.double().norm(dim=1)
    z = (float(radius.var()) / 0.01 - 1) / math.sqrt(2 / len(radius))
    assert abs(z) < Z


def test_the_moons_are_labelled_by_their_half(registry: Registry) -> None:
    found = build(registry, "moons", width=0.0, n=500)
    z = found.train.double() + torch.tensor([0.5, 0.25])
    centre = torch.stack([found.train_labels.double(), 0.5 * found.train_labels], 1)
    off = (z - centre).norm(dim=1) - 1
    assert found.labels == 2
    assert float(off.abs().max()) <= 4 * U32
    upper = found.train_labels == 0
    assert bool((z[upper, 1] >= -U32).all())
    assert bool((z[~upper, 1] <= 0.5 + U32).all())


def test_the_swiss_roll_is_an_archimedean_spiral(registry: Registry) -> None:
    z = 3 * math.pi * build(registry, "swiss_roll", width=0.0, n=500).train.double()
    radius = z.norm(dim=1)
    angle = torch.atan2(z[:, 1], z[:, 0])
    turns = (radius - angle) / (2 * math.pi)
    assert float((turns - turns.round()).abs().max()) <= 8 * U32 * 4.5 * math.pi
    assert 1.5 * math.pi * (1 - 4 * U32) <= float(radius.min())
    assert float(radius.max()) <= 4.5 * math.pi * (1 + 4 * U32)


# --- Data ---------------------------------------------------------------------------------------

GOOD = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": torch.zeros(0, 2)}, "train data have shape"),
        ({"test": torch.zeros(0, 2)}, "test data have shape"),
        ({"train": torch.ones(3)}, r"train data have shape \(3,\), expected \(N, ...\)"),
        ({"train": torch.zeros(3, 2)}, "all zero"),
        ({"train": GOOD / 0}, "train data hold values that are not finite"),
        ({"test": torch.full((3, 2), math.nan)}, "test data hold values that are not finite"),
        ({"test": torch.ones(3, 3)}, r"train samples have shape \(2,\), test samples \(3,\)"),
        ({"train_labels": torch.zeros(2).long()}, r"train labels have shape \(2,\), expected \(3,"),
        ({"test_labels": torch.zeros(3, 1).long()}, r"test labels have shape \(3, 1\)"),
        ({"train_labels": torch.tensor([0, -1, 1])}, "train labels are .* from -1, expected"),
        (
            {"train_labels": torch.tensor([0.0, 1.0, 2.0])},
            "train labels are .*float32.* expected int64",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(changes: dict[str, Tensor], says: str) -> None:
    Data(**{"train": GOOD, "test": GOOD})
    with pytest.raises(InputError, match=says):
        Data(**{"train": GOOD, "test": GOOD, **changes})


def test_the_number_of_classes_is_that_of_both_splits() -> None:
    labels = {"train_labels": torch.tensor([0, 1, 0]), "test_labels": torch.tensor([4, 0, 1])}
    assert Data(GOOD, GOOD, **labels).labels == 5
    assert Data(GOOD, GOOD).labels == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"train": GOOD.flip(0)},
        {"test": GOOD + 1},
        {"train_labels": torch.tensor([0, 1, 0])},
        {"test_labels": torch.tensor([0, 1, 0])},
        {"train": GOOD.reshape(3, 1, 2), "test": GOOD.reshape(3, 1, 2)},
    ],
)
def test_the_digest_tells_data_apart(changes: dict[str, Tensor]) -> None:
    labels = {"train_labels": torch.tensor([0, 1, 1]), "test_labels": torch.tensor([0, 1, 1])}
    one = Data(**{"train": GOOD, "test": GOOD, **labels})
    assert one.digest != Data(**{"train": GOOD, "test": GOOD, **labels, **changes}).digest


def test_the_digest_does_not_depend_on_how_memory_is_laid_out() -> None:
    assert Data(GOOD, GOOD).digest == Data(GOOD.T.contiguous().T, GOOD).digest


def test_sizes_are_checked_before_anything_is_drawn() -> None:
    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        raise AssertionError("drawn")

    with pytest.raises(InputError, match="must be positive"):
        embed(draw, 2, 1.0, -1, 10, 0)
