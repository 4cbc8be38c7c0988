"""Images with captions of a finite grammar, whose distributions given a caption are exact.

A scene has a blob in some of three places; one of its blobs is red, the others are blue. A caption
tells how many there are, where the red one is, or both:

    caption = count | count ", " place | place
    count = "one blob" | "two blobs" | "three blobs"
    place = "the red one left" | "the red one in the middle" | "the red one right"

So a caption fits several scenes, and a scene has three captions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from testbed.components.dataset import Data, Dataset
from testbed.errors import InputError
from testbed.hookspecs import hookimpl
from testbed.oracles import Conditional, Mixture
from testbed.random import stream

COUNTS = ("one blob", "two blobs", "three blobs")
PLACES = ("the red one left", "the red one in the middle", "the red one right")
CAPTIONS = (*COUNTS, *map(", ".join, itertools.product(COUNTS, PLACES)), *PLACES)
P_COUNT, P_PLACE = (0.3, 0.4, 0.3), (0.4, 0.35, 0.25)
P_FORM = (0.25, 0.5, 0.25)
"""How often a scene is told by its count, by both, and by its red blob's place."""
BLUE, RED = 2, 0
AMPLITUDE = 2.0


class Scene(NamedTuple):
    """The places (0 to 2) of the blobs, and that of the red one."""

    places: tuple[int, ...]
    red: int

    @property
    def captions(self) -> tuple[str, str, str]:
        """Its captions, in the order of P_FORM."""
        count, place = COUNTS[len(self.places) - 1], PLACES[self.red]
        return count, f"{count}, {place}", place


SCENES = tuple(
    Scene(places, red)
    for n in (1, 2, 3)
    for places in itertools.combinations(range(3), n)
    for red in places
)


def prior() -> Tensor:
    """pi of the scenes, (12,) float64: that of the count times that of the place, normalised."""
    pi = torch.tensor([P_COUNT[len(s.places) - 1] * P_PLACE[s.red] for s in SCENES]).double()
    alike = torch.tensor([sum(len(s.places) == len(t.places) for t in SCENES) for s in SCENES])
    return (pi / alike) / (pi / alike).sum()


def caption_probabilities() -> Tensor:
    """p(caption | scene), (12, 15) float64."""
    p = torch.zeros(len(SCENES), len(CAPTIONS), dtype=torch.float64)
    for k, scene in enumerate(SCENES):
        for caption, share in zip(scene.captions, P_FORM, strict=True):
            p[k, CAPTIONS.index(caption)] = share
    return p


def rendered(size: int) -> Tensor:
    """The scenes without noise, (12, 3, size, size) float64.

    A blob is AMPLITUDE exp(-|r - c|^2/(2 w^2)) at pixel r, with w = size/8, in the red or the blue
    channel; its centre c is at one, three or five sixths of the width, at half the height.
    """
    at = torch.arange(size, dtype=torch.float64) + 0.5
    w = size / 8
    row = torch.exp(-((at - size / 2) ** 2) / (2 * w**2))
    images = torch.zeros(len(SCENES), 3, size, size, dtype=torch.float64)
    for image, scene in zip(images, SCENES, strict=True):
        for place in scene.places:
            column = torch.exp(-((at - size * (2 * place + 1) / 6) ** 2) / (2 * w**2))
            image[RED if place == scene.red else BLUE] += AMPLITUDE * row[:, None] * column
    return images


def captions(
    size: int = 8, width: float = 0.1, n: int = 4_000, test: int = 1_000, data_seed: int = 0
) -> Data:
    """Images of one to three blobs with a caption each, and the exact distribution given it.

    x0 ~ sum_k pi_k N(m_k, width^2 I) over the 12 scenes m_k, (3, size, size). The condition
    `caption` is the number of one of 15 texts, drawn from p(caption | scene); the label is the
    number of blobs, from 0.

    Raises:
        InputError: a size below 4, or another number that is not positive.
    """
    if size < 4 or min(n, test) < 1 or not width > 0:
        raise InputError(
            f"size = {size} must be at least 4, n = {n}, test = {test} and width = {width} "
            "positive."
        )
    m = rendered(size)
    oracle = Mixture(m, torch.full((len(m),), width).double(), prior())
    p = caption_probabilities()
    count = torch.tensor([len(scene.places) - 1 for scene in SCENES])

    def draw(k: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        x0, scene = oracle.sample_labelled(k, generator)
        told = torch.multinomial(p[scene], 1, generator=generator)[:, 0]
        return x0.float(), count[scene], told

    train, train_labels, train_captions = draw(n, stream(data_seed, "train"))
    held, test_labels, test_captions = draw(test, stream(data_seed, "test"))
    return Data(
        train=train,
        test=held,
        train_labels=train_labels,
        test_labels=test_labels,
        oracle=oracle,
        further={"caption": (train_captions, test_captions)},
        texts={"caption": CAPTIONS},
        conditional=Conditional(oracle, {"label": count, "caption": p}),
    )


@hookimpl
def testbed_datasets() -> Iterable[Dataset]:
    """Images with captions."""
    yield Dataset("captions", captions)
