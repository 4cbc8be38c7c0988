"""Conditions that stand for values: tables of vectors, tokens and images, and who takes them."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import testbed
from testbed.errors import InputError
from testbed.trial import class_conditions

NONE = testbed.Registry().guidance("none").build()
NOISE = {"log_sigma": (-3.0, 3.0)}
SIZES = testbed.ConditionTable("vector", torch.tensor([[8.0, 8.0], [8.0, 4.0], [4.0, 4.0]]))
WORDS = testbed.ConditionTable(
    "tokens", torch.ones(2, 3, 5), torch.tensor([[True, True, False], [True, False, False]])
)


def data(**change: Any) -> testbed.Data:
    """Six training and two test samples with a label and a size."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1])
    fields: dict[str, Any] = {
        "train": torch.randn(6, 1, 4, 4, generator=generator),
        "test": torch.randn(2, 1, 4, 4, generator=generator),
        "train_labels": torch.tensor([0, 1, 0, 1, 0, 1]),
        "test_labels": torch.tensor([0, 1]),
        "further": {"size": classes},
        "tables": {"size": SIZES},
    }
    return testbed.Data(**{**fields, **change})


class Scaled(nn.Module):
    """x times the first entry of the size, where there is one."""

    def __init__(self, tables: Mapping[str, testbed.ConditionTable]) -> None:
        super().__init__()
        self.tables = dict(tables)

    def forward(self, x: Tensor, c_noise: Tensor, condition: Any = None) -> Tensor:
        rows = self.tables["size"].rows[condition["size"], 0]
        return x * rows.view(-1, 1, 1, 1)


def build(shape: tuple[int, ...], tables: Mapping[str, testbed.ConditionTable]) -> Scaled:
    return Scaled(tables)


def network(**change: Any) -> testbed.Network:
    return testbed.Network("scaled", build, NOISE, **{"condition_kinds": ("vector",), **change})


@pytest.mark.parametrize(
    ("kind", "rows", "mask", "message"),
    [
        ("words", torch.ones(2, 3), None, "kind of condition 'words'"),
        ("vector", torch.ones(2, 3, 4), None, r"shape \(2, 3, 4\), expected \(R, V\)"),
        ("tokens", torch.ones(2, 3), None, r"expected \(R, T, E\)"),
        ("image", torch.ones(0, 1, 4, 4), None, r"expected \(R, C, H, W\)"),
        ("vector", torch.ones(2, 3).double(), None, "torch.float64, expected finite float32"),
        ("vector", torch.full((2, 3), torch.inf), None, "expected finite float32"),
        ("vector", torch.ones(2, 3), torch.ones(2, 3) > 0, "mask of a condition of kind 'vector'"),
        ("tokens", torch.ones(2, 3, 5), torch.ones(2, 5) > 0, r"shape \(2, 5\), expected .*2, 3"),
        ("tokens", torch.ones(2, 3, 5), torch.eye(2, 3) > 1, "bool with a True"),
        ("tokens", torch.ones(2, 3, 5), torch.ones(2, 3), "torch.float32, expected bool"),
    ],
)
def test_wrong_tables_are_refused(
    kind: Any, rows: Tensor, mask: Tensor | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        testbed.ConditionTable(kind, rows, mask)


@pytest.mark.parametrize("off", [-1, 2])
def test_a_row_for_off_is_one_of_the_table(off: int) -> None:
    with pytest.raises(InputError, match=f"off = {off}: expected one of 2 rows"):
        testbed.ConditionTable("tokens", WORDS.rows, WORDS.mask, off)


def test_a_table_knows_the_shape_of_a_value() -> None:
    assert (len(WORDS), WORDS.shape) == (2, (3, 5))


def test_data_with_tables_have_a_class_for_each_row() -> None:
    classes = torch.zeros(6, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    assert data(further={"size": classes}).classes == {"label": 2, "size": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": {"sise": SIZES}}, "'sise'.*'size'"),
        ({"tables": {"size": WORDS}}, "number 2, and its table 2 rows"),
    ],
)
def test_data_with_wrong_tables_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data(**change)


def test_values_and_masks_enter_the_digest() -> None:
    other = testbed.ConditionTable("vector", SIZES.rows + 1)
    words = testbed.ConditionTable("tokens", torch.ones(3, 3, 5))
    masked = testbed.ConditionTable("tokens", words.rows, torch.tensor([[True, False, True]] * 3))
    off = testbed.ConditionTable("vector", SIZES.rows, off=1)
    digests = {data(tables={"size": one}).digest for one in (SIZES, other, words, masked, off)}
    assert len(digests | {data(tables={}).digest}) == 6


def test_a_network_gets_the_tables_of_the_conditions_in_use() -> None:
    labels, further, tables = class_conditions.built({"size": 0.1}, data())
    assert (labels, further, tables) == (0, {}, {"size": SIZES})
    module = network()(data().shape, labels, 0, further, tables=tables)
    x = data().test
    F = module(x, torch.zeros(2), {"size": torch.tensor([2, 0])})
    assert torch.equal(F, x * torch.tensor([4.0, 8.0]).view(2, 1, 1, 1))


def test_a_network_takes_the_kinds_that_it_names() -> None:
    assert network().takes("size", "vector")
    assert not network().takes("size", "tokens")
    assert not network().takes("size")
    assert testbed.Registry().network("mlp").takes("size", "vector")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [(("vectors",), "'vectors'.*'vector'"), ((), "a build that takes `tables` names the kinds")],
)
def test_networks_with_wrong_kinds_are_refused(kinds: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        network(condition_kinds=kinds)


def test_kinds_without_tables_are_refused() -> None:
    with pytest.raises(InputError, match="a build that takes `tables`"):
        testbed.Network("a", lambda shape: nn.Identity(), NOISE, condition_kinds=("vector",))


def classes_alone() -> testbed.Network:
    return testbed.Network("classes", lambda shape, conditions: nn.Identity(), NOISE)


@pytest.mark.parametrize("name", ["classes", "scaled"])
def test_a_trial_says_which_kinds_its_network_takes(name: str) -> None:
    of = network() if name == "scaled" else classes_alone()
    found = list(class_conditions.problems({"size": 0.1}, NONE, of, data()))
    words = data(tables={"size": testbed.ConditionTable("tokens", torch.ones(3, 3, 5))})
    other = list(class_conditions.problems({"size": 0.1}, NONE, of, words))
    assert found == (
        []
        if name == "scaled"
        else [
            "conditions.size has values of kind 'vector': network 'classes' takes classes alone.",
        ]
    )
    assert len(other) == 1
    assert "kind 'tokens'" in other[0]
