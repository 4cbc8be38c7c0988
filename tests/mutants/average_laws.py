"""Mistakes in averages of any length, each rejected by its law."""

from collections.abc import Sequence

import numpy as np
from laws.averages import Array, law_inner_products, law_least, law_reconstruction
from mutants.registry import laws_of, rejected_by

from testbed.training.averages import Profile, coefficients, inner_products
from testbed.training.rates import exponent

Profiles = Sequence[Profile]


def _formula(a: Profiles, b: Profiles, more: int, later: bool, last: bool) -> Array:
    rows = []
    for p in a:
        for q in b:
            g, h = exponent(p.width), exponent(q.width)
            (m, own), (n, other) = sorted([(p.step, g), (q.step, h)])
            ratio = m / n
            power = (other if later else own) if m < n else h
            scale = n if last else m
            rows.append((g + 1) * (h + 1) / (g + h + more) * ratio**power / scale)
    return np.array(rows).reshape(len(a), len(b))


def without_the_one(a: Profiles, b: Profiles) -> Array:
    return _formula(a, b, 0, True, True)


def exponent_of_the_other(a: Profiles, b: Profiles) -> Array:
    return _formula(a, b, 1, False, True)


def over_the_shorter(a: Profiles, b: Profiles) -> Array:
    return _formula(a, b, 1, True, False)


def widths_as_exponents(a: Profiles, b: Profiles) -> Array:
    g = np.array([[p.width] for p in a])
    h = np.array([[q.width for q in b]])
    last = np.maximum([[p.step] for p in a], [[q.step for q in b]])
    ratio = np.minimum([[p.step] for p in a], [[q.step for q in b]]) / last
    found: Array = (g + 1) * (h + 1) / (g + h + 1) * ratio**h / last
    return found


def free_sum(kept: Profiles, wanted: Profile) -> Array:
    """Least squares whose coefficients need not add up to 1."""
    gram, right = inner_products(kept, kept), inner_products(kept, [wanted])[:, 0]
    found: Array = np.linalg.lstsq(gram, right, rcond=None)[0]
    return found


def nearest(kept: Profiles, wanted: Profile) -> Array:
    """The one that was kept at the end with the nearest width."""
    found = np.zeros(len(kept))
    ends = [i for i, one in enumerate(kept) if one.step == wanted.step]
    found[min(ends, key=lambda i: abs(kept[i].width - wanted.width))] = 1
    return found


def between_two(kept: Profiles, wanted: Profile) -> Array:
    """Linear in the width between the two that were kept at the end."""
    found = np.zeros(len(kept))
    i, j = (k for k, one in enumerate(kept) if one.step == wanted.step)
    share = (wanted.width - kept[i].width) / (kept[j].width - kept[i].width)
    found[i], found[j] = 1 - share, share
    return found


def of_a_longer_training(kept: Profiles, wanted: Profile) -> Array:
    """The profile of an average that ends later."""
    return coefficients(kept, Profile(wanted.step + wanted.step // 10, wanted.width))


AVERAGES = laws_of("laws: averages", "averages of any length, by quadrature and direct sums")
rejected_by(
    AVERAGES,
    law_inner_products,
    inner_products,
    without_the_one=without_the_one,
    exponent_of_the_other=exponent_of_the_other,
    over_the_shorter=over_the_shorter,
    widths_as_exponents=widths_as_exponents,
)
rejected_by(
    AVERAGES,
    law_reconstruction,
    coefficients,
    free_sum=free_sum,
    nearest_snapshot=nearest,
    linear_in_the_width=between_two,
    of_a_longer_training=of_a_longer_training,
)
rejected_by(AVERAGES, law_least, coefficients, nearest_snapshot=nearest)
