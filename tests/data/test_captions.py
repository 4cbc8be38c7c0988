"""Images with captions: the grammar, the prior, and the exact distributions given a caption."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from scipy import stats

import testbed
from testbed.components.dataset import Data
from testbed.data.captions import (
    BLUE,
    CAPTIONS,
    RED,
    SCENES,
    caption_probabilities,
    captions,
    prior,
    rendered,
)
from testbed.errors import InputError

LEFT_OF_THREE = CAPTIONS.index("three blobs, the red one left")


@functools.cache
def data() -> Data:
    return captions(size=4, n=6_000, test=300)


def test_there_are_twelve_scenes_and_fifteen_captions() -> None:
    assert len(set(SCENES)) == len(SCENES) == 12
    assert len(set(CAPTIONS)) == len(CAPTIONS) == 15
    assert {caption for scene in SCENES for caption in scene.captions} == set(CAPTIONS)


@pytest.mark.parametrize("size", [4, 8, 11])
def test_a_caption_is_true_of_the_pictures_of_its_scenes(size: int) -> None:
    """Blobs are counted, and the red one placed, in the pixels: by thirds of the width."""
    counts = {"one": 1, "two": 2, "three": 3}
    third = (3 * (torch.arange(size) + 0.5) / size).long()
    m, p = rendered(size), caption_probabilities()
    for text, of_scene in zip(CAPTIONS, p.T, strict=True):
        for image in m[of_scene > 0]:
            column = image.amax(1)
            row = torch.stack([column[:, third == place].amax(1) for place in range(3)], 1)
            red, blue = row[RED] > 0.7, row[BLUE] > 0.7
            told = re.match(r"(\w+) blob", text)
            assert told is None or int((red | blue).sum()) == counts[told[1]]
            place = re.search("left|middle|right", text)
            if place:
                at = ("left", "middle", "right").index(place[0])
                assert red.nonzero().flatten().tolist() == [at]


def test_the_null_caption_is_the_marginal_weighted_by_the_prior() -> None:
    """sum_c p(c) p(x|c) = p(x), with p(c) = sum_k pi_k p(c|k): in densities, to rounding."""
    found = data().conditional
    assert found is not None
    p_caption = prior() @ caption_probabilities()
    x = data().test[:50].double()
    for sigma in (0.1, 1.0, 10.0):
        parts = [found.given({"caption": c}).log_density(x, sigma) for c in range(15)]
        marginal = (torch.stack(parts, 1) + p_caption.log()).logsumexp(1)
        whole = found.log_density(x, sigma, {"caption": torch.full((50,), -1)})
        # Each log-density is a sum of 48 squares: its own rounding, a few times over.
        assert torch.allclose(marginal, whole, rtol=200 * 2.0**-53, atol=200 * 2.0**-53)


def test_a_caption_that_several_scenes_share_is_their_mixture() -> None:
    found = data().conditional
    assert found is not None
    few = found.given({"caption": CAPTIONS.index("two blobs, the red one left")})
    assert len(few.pi) == 2
    assert torch.allclose(few.pi, torch.tensor([0.5, 0.5]).double())
    one = found.given({"caption": LEFT_OF_THREE})
    assert torch.equal(one.m.view(3, 4, 4), rendered(4)[SCENES.index(((0, 1, 2), 0))])
    wide = found.given({"caption": CAPTIONS.index("three blobs")})
    assert torch.allclose(wide.pi, torch.tensor([0.4, 0.35, 0.25]).double())


def test_captions_and_scenes_are_drawn_at_their_rates() -> None:
    expected = prior() @ caption_probabilities() * 6_000
    drawn = torch.bincount(data().further["caption"][0], minlength=15).double()
    assert stats.chisquare(drawn.numpy(), expected.numpy()).pvalue > 1e-6


def test_the_label_is_the_number_of_blobs() -> None:
    told = data().further["caption"][1]
    labels = data().test_labels
    assert labels is not None
    for n, word in enumerate(("one", "two", "three")):
        of_count = torch.tensor([text.startswith(word) for text in CAPTIONS])[told]
        assert of_count.any()
        assert bool((labels[of_count] == n).all())


def test_texts_are_part_of_the_data() -> None:
    assert data().texts == {"caption": CAPTIONS}
    assert data().classes == {"label": 3, "caption": 15}
    x, y = torch.ones(3, 2), torch.tensor([0, 1, 1])
    one, other = (
        testbed.Data(x, x, further={"c": (y, y)}, texts={"c": texts})
        for texts in (("a", "b", "c"), ("a", "b", "d"))
    )
    assert one.classes == {"c": 3}
    assert one.digest != other.digest


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"d": ("a", "b")}, "texts: Unknown condition 'd'"),
        ({"c": ("a",)}, "number 1, 1 texts.*: expected a text for each"),
        ({"c": ("a", "a")}, "must be different strings"),
        ({"c": ("a", "b")}, "2 texts and its table 3 rows"),
    ],
)
def test_texts_that_do_not_fit_are_refused(texts: dict[str, tuple[str, ...]], message: str) -> None:
    x, y = torch.ones(3, 2), torch.tensor([0, 1, 1])
    table = testbed.ConditionTable("tokens", torch.ones(3, 2, 4))
    with pytest.raises(InputError, match=message):
        testbed.Data(x, x, further={"c": (y, y)}, texts=texts, tables={"c": table})


@pytest.mark.parametrize("options", [{"size": 3}, {"n": 0}, {"width": 0.0}])
def test_sizes_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="size = "):
        testbed.Registry().dataset("captions", **options)()
