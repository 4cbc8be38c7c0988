"""The covering design that stands in place of a full product of options."""

from itertools import combinations, product

import pytest
from helpers.covering import pairwise


@pytest.mark.parametrize(
    ("axes", "rows"),
    [
        (("ab", "xyz"), 6),
        ((range(6), range(6), range(15)), 6 * 15),
        ((range(6), range(6), range(3), range(4)), 6 * 6),
    ],
)
def test_every_two_values_meet_in_few_rows(axes: tuple[str | range, ...], rows: int) -> None:
    found = pairwise(*axes)
    for one, other in combinations(range(len(axes)), 2):
        assert {(row[one], row[other]) for row in found} == set(product(axes[one], axes[other]))
    assert len(found) == len(set(found)) == rows
